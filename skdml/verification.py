"""Verification: whether two samples are of one class, by a threshold on the similarity of their embeddings.

Axes: N samples, D components, P pairs, T thresholds.
"""

from numbers import Real
from typing import Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import auc
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from ._constraints import Interval, StrOptions, check_constraints
from .metrics._rows import check_points, normalize_, prepare, similarities, tile_size, tiles

__all__ = ["PairVerifier", "calibrate_threshold"]

_HALF = 2**19  # bins of similarities in [0, 1]: 2e-6 wide, a few times the rounding of a product in float32
_N_BINS = 2 * _HALF + 1  # from -1 to 1; 0, 1/2 and 1, which equal rows and codes have, are in the middle of a bin


def calibrate_threshold(embedder, X, y, *, strategy="eer", far=1e-3) -> float:
    r"""Find the similarity at or above which two samples count as one class.

    The threshold is chosen on all :math:`N (N - 1) / 2` pairs of the samples. The false accept rate, FAR, is the share
    of the pairs from two classes that it accepts; the false reject rate, FRR, is the share of the pairs from one class
    that it rejects. The threshold is where

    - "eer": FAR and FRR are equal, or as close as possible (equal error rate);
    - "max_accuracy": the fewest pairs are misjudged. As most pairs are from two classes, it is stricter than "eer";
    - "far": FAR is at most `far`, and FRR is as low as that allows.

    Parameters
    ----------
    embedder : fitted transformer or Pipeline that ends in one
        Estimator of the embeddings. Calibrate on classes that it was not trained on, as these lie closer together.
    X : array-like of shape (n_samples, ...)
        Anything that `embedder.transform` takes.
    y : array-like of shape (n_samples,)
        Class of each sample: two or more classes, one of them with two or more samples.
    strategy : {"eer", "max_accuracy", "far"}, default="eer"
        Criterion for the threshold.
    far : float, default=1e-3
        Highest false accept rate in [0, 1); used only with strategy="far".

    Returns
    -------
    float
        Threshold on the cosine of two embeddings: pairs with at least this similarity are accepted. It is the middle of
        the range of thresholds that judge all pairs in the same way.

    Raises
    ------
    TypeError
        If the embedder has no `transform`, or the labels cannot be compared with each other.
    ValueError
        If a parameter is out of range, there are no pairs from one class or none from two, the lengths of X and y
        differ, or an embedding is not finite.

    See Also
    --------
    PairVerifier : The same as an estimator with predict.

    Notes
    -----
    The pairs are counted in :math:`2^{20}` bins of similarity, in one pass over tiles of similarities, and not stored.
    The threshold is therefore an odd multiple of :math:`2^{-20}`, about 1e-6, for which the counts are exact except for
    pairs within rounding of it. FAR cannot be measured more finely than one over the number of pairs from two classes.

    Examples
    --------
    >>> from skdml import calibrate_threshold
    >>> from sklearn.preprocessing import FunctionTransformer
    >>> Z, y = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], [0, 0, 1]  # cosines 0.8 in the class; 0 and 0.6 between classes
    >>> round(calibrate_threshold(FunctionTransformer(), Z, y), 4)
    0.7
    """
    parameters = {"strategy": strategy, "far": far}
    check_constraints(PairVerifier(embedder, **parameters), parameters)
    false, true = _accepted(*_count_pairs(_embed(embedder, X), y))
    if strategy == "far":
        chosen = (false <= far * false[0]).argmax()
    elif strategy == "eer":
        chosen = np.abs(false / false[0] - (1 - true / true[0])).argmin()
    else:
        chosen = (false - true).argmin()
    alike = np.flatnonzero((false == false[chosen]) & (true == true[chosen]))
    return float((alike[0] + alike[-1]) // 2 - _HALF - 0.5) / _HALF


class PairVerifier(BaseEstimator):
    """Tell whether two samples are of the same class by the similarity of their embeddings.

    Parameters
    ----------
    embedder : transformer or Pipeline that ends in one
        Estimator of the embeddings. If it is fitted, it is used as is; otherwise, a clone is fitted, see Notes.
    strategy : {"eer", "max_accuracy", "far"}, default="eer"
        Criterion for the threshold, see :func:`calibrate_threshold`.
    far : float, default=1e-3
        Highest false accept rate in [0, 1); used only with strategy="far".

    Attributes
    ----------
    embedder_ : transformer
        The embedder that was passed, or its fitted clone.
    threshold_ : float
        Cosine at or above which two embeddings count as one class.
    n_features_in_ : int
        Number of features of the embedder, if it has this attribute.
    feature_names_in_ : ndarray of shape (n_features,)
        Feature names of the embedder, if it has this attribute.

    See Also
    --------
    calibrate_threshold : Only the threshold.

    Notes
    -----
    A threshold calibrated on the training classes is too high for new classes, which are less tight, so fit the
    embedder on some classes and the verifier on others. If estimators are cloned, as in a grid search, wrap the fitted
    embedder in ``sklearn.frozen.FrozenEstimator``, whose clones stay fitted.

    Examples
    --------
    >>> from skdml import PairVerifier, class_train_test_split
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> X_train, X_new, y_train, y_new = class_train_test_split(*load_digits(return_X_y=True))
    >>> verifier = PairVerifier(PCA(16).fit(X_train)).fit(X_new, y_new)
    >>> y_new[1:5], y_new[11:15]
    (array([6, 7, 8, 9]), array([6, 7, 8, 9]))
    >>> verifier.predict((X_new[1:5], X_new[11:15]))
    array([ True,  True,  True,  True])
    >>> verifier.predict((X_new[1:5], X_new[12:16]))
    array([False,  True, False, False])
    """

    _parameter_constraints = {
        "strategy": [StrOptions({"eer", "max_accuracy", "far"})],
        "far": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(self, embedder, *, strategy="eer", far=1e-3):
        self.embedder = embedder
        self.strategy = strategy
        self.far = far

    def fit(self, X, y) -> Self:
        """Calibrate the threshold, after fitting a clone of the embedder if it is not fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, not pairs: anything that the embedder takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        self : object
            The fitted verifier.

        Raises
        ------
        TypeError
            If the embedder has no `transform`, or the labels cannot be compared with each other.
        ValueError
            If a parameter is out of range, there are no pairs from one class or none from two, the lengths of X and y
            differ, or an embedding is not finite.
        """
        if y is None:
            raise ValueError(
                "PairVerifier requires y to be passed, but the target y is None. Call fit(X, y) with one class label "
                "per sample."
            )
        try:
            check_is_fitted(self.embedder)
            self.embedder_ = self.embedder
        except NotFittedError:
            self.embedder_ = clone(self.embedder).fit(X, y)
        self.threshold_ = calibrate_threshold(self.embedder_, X, y, strategy=self.strategy, far=self.far)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.embedder_, name):
                setattr(self, name, getattr(self.embedder_, name))
        return self

    def decision_function(self, X) -> np.ndarray:
        """Return by how much the similarity of each pair exceeds the threshold.

        Parameters
        ----------
        X : array-like of shape (n_pairs, 2, ...), or tuple or list of two array-likes of shape (n_pairs, ...)
            The two samples of each pair; or all first samples and all second samples, which may be data frames, sparse
            matrices or anything else that the embedder takes. A list of two lists of two samples each is two pairs.

        Returns
        -------
        ndarray of shape (n_pairs,)
            Cosine of the two embeddings minus `threshold_`.

        Raises
        ------
        ValueError
            If X holds no pairs, or an embedding is not finite.
        """
        check_is_fitted(self)
        is_two_pairs = isinstance(X, list) and all(isinstance(side, list) and len(side) == 2 for side in X)
        if isinstance(X, (tuple, list)) and len(X) == 2 and not is_two_pairs:
            Z = [normalize_(_embed(self.embedder_, side)) for side in X]
        else:
            X = np.asarray(X)
            if X.ndim < 3 or X.shape[1] != 2:
                raise ValueError(
                    f"X must hold pairs, as an array of shape (n_pairs, 2, ...) or as a tuple of the first and the "
                    f"second samples; got shape {X.shape}."
                )
            Z = normalize_(_embed(self.embedder_, X.reshape(-1, *X.shape[2:])))  # (2 P, D)
            Z = [Z[::2], Z[1::2]]
        if Z[0].shape != Z[1].shape:
            raise ValueError(
                f"Each pair must have two samples; got {len(Z[0])} first and {len(Z[1])} second samples, embedded in "
                f"{Z[0].shape[1]} and {Z[1].shape[1]} components."
            )
        return (Z[0] * Z[1]).sum(1).cpu().numpy() - self.threshold_

    def predict(self, X) -> np.ndarray:
        """Return whether the two samples of each pair are of one class.

        Parameters
        ----------
        X : array-like of shape (n_pairs, 2, ...), or tuple or list of two array-likes of shape (n_pairs, ...)
            The pairs, as for `decision_function`.

        Returns
        -------
        ndarray of bool of shape (n_pairs,)
            True where the similarity is at least `threshold_`.

        Raises
        ------
        ValueError
            If X holds no pairs, or an embedding is not finite.
        """
        return self.decision_function(X) >= 0

    def roc_auc(self, X, y) -> float:
        """Return the area under the ROC curve over all pairs of the samples, regardless of the threshold.

        It is the probability that a pair from one class is more similar than a pair from two.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, not pairs.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            In [0, 1]; 0.5 for embeddings that carry no information on the classes. Similarities in the same of 2**20
            bins count as equal, and such a tie as half a success.

        Raises
        ------
        ValueError
            If there are no pairs from one class or none from two, the lengths of X and y differ, or an embedding is not
            finite.
        """
        check_is_fitted(self)
        false, true = _accepted(*_count_pairs(_embed(self.embedder_, X), y))
        return float(auc(false / false[0], true / true[0]))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags = get_tags(self.embedder).input_tags
        return tags


def _embed(embedder, X):
    """Return the embeddings as a new tensor (N, D)."""
    if not hasattr(embedder, "transform"):
        raise TypeError(f"embedder must be a transformer, such as an embedder of skdml; got {type(embedder).__name__}.")
    return check_points(embedder.transform(X), "embeddings").clone()


@torch.no_grad()
def _count_pairs(Z, y):
    """Return how many pairs from two classes, and from one, have a similarity in each bin; (T - 1,) each.

    Each pair counts twice, once in either order.
    """
    rows, _ = prepare(Z, y)
    size = 2 * tile_size(rows.points)
    buffer = rows.points.new_empty(min(size, len(rows)) ** 2)
    counts = torch.zeros(2 * _N_BINS, dtype=torch.int64, device=rows.points.device)
    for q, g, may_match, _ in tiles(rows, rows, size):
        S = similarities(rows[q], rows[g], buffer)
        # A power of two scales without rounding, so that the bins are those of S >= threshold.
        bins = S.mul_(_HALF).add_(0.5).floor_().clamp_(-_HALF, _HALF).int().add_(_HALF)
        if may_match:
            bins += (rows.classes[q, None] == rows.classes[g]).int().mul_(_N_BINS)
        found = torch.bincount(bins.flatten(), minlength=2 * _N_BINS if may_match else _N_BINS)
        if q == g:
            found -= torch.bincount(bins.diagonal(), minlength=2 * _N_BINS)  # a row is not a pair with itself
        counts[: len(found)].add_(found, alpha=1 if q == g else 2)
    different, same = counts.view(2, _N_BINS).cpu().numpy()
    if not different.any() or not same.any():
        raise ValueError(
            f"y must form pairs from one class and pairs from two, got {same.sum() // 2} and {different.sum() // 2}. "
            "Pass two or more classes, one of them with two or more samples."
        )
    return different, same


def _accepted(*counts):
    """Return how many pairs each threshold accepts, from all of them down to none; (T,) each."""
    return [np.append(count[::-1].cumsum()[::-1], 0) for count in counts]
