"""Verification: whether two samples are of one class, by a threshold on the similarity of their embeddings.

Axes: N samples, D components, P pairs, T thresholds, T - 1 bins of similarities.
"""

import math
import os
from numbers import Real
from typing import Self

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import auc
from sklearn.utils import _safe_indexing, column_or_1d, get_tags
from sklearn.utils.validation import check_is_fitted

from ._constraints import HasMethods, Interval, StrOptions, check_constraints
from ._data.sides import is_group, split
from ._data.targets import check_sample_weight
from .metrics._rows import check_points, normalize_, prepare, similarities, tile_size, tiles

__all__ = ["PairVerifier", "calibrate_threshold"]

_HALF = 2**19  # bins of similarities in [0, 1]: 2e-6 wide, a few times the rounding of a product in float32
_N_BINS = 2 * _HALF + 1  # from -1 to 1; 0, 1/2 and 1, which equal rows and codes have, are in the middle of a bin


def calibrate_threshold(embedder, X, y, *, strategy="eer", far=1e-3, sample_weight=None) -> float:
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
    sample_weight : array-like of shape (n_samples,), float or None, default=None
        Weight of each sample, >= 0, not all 0. A pair counts as much as the product of the weights of its samples.

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
    different, same = _count_pairs(_embed(embedder, X), y, sample_weight)
    return _find_threshold(different, same, strategy, far)


class PairVerifier(BaseEstimator):
    """Tell whether two samples are of the same class by the similarity of their embeddings.

    Parameters
    ----------
    embedder : transformer or Pipeline that ends in one
        Estimator of the embeddings. If it is fitted, it is used as is; otherwise, a clone is fitted, see Notes.
    strategy : {"eer", "max_accuracy", "far"}, default="eer"
        Criterion for the threshold, see :func:`calibrate_threshold`.
    far : float, default=1e-3
        Highest false accept rate in [0, 1), for strategy="far" and `true_accept_rate`.

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

    Pairs are written as a tuple ``(firsts, seconds)`` of all first and all second samples, each of them anything that
    the embedder takes, or else as a sequence of pairs: a list of ``(first, second)``, an array of shape
    (n_pairs, 2, ...), or an array or data frame of two columns of paths. A tuple of two tuples of two samples is an
    error, as it could be either. ``cross_val_score`` and searches split a sequence of pairs, but no tuple of two.

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
    >>> pairs, same = (X_new[:-1], X_new[1:]), y_new[:-1] == y_new[1:]
    >>> round(verifier.fit_pairs(pairs, same).score(pairs, same), 2)
    0.92
    """

    _parameter_constraints = {
        "embedder": [HasMethods("transform")],
        "strategy": [StrOptions({"eer", "max_accuracy", "far"})],
        "far": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(self, embedder, *, strategy="eer", far=1e-3):
        self.embedder = embedder
        self.strategy = strategy
        self.far = far

    def fit(self, X, y, sample_weight=None) -> Self:
        """Calibrate the threshold on all pairs of samples, after fitting a clone of the embedder if it is not fitted.

        So that ``cross_val_score`` and searches work over pairs, X may also hold pairs if the embedder is fitted: then
        this is `fit_pairs`. X is read as pairs if it has their form and a row of it does not have the
        ``n_features_in_`` numbers of one sample of the embedder.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples: anything that the embedder takes. Or pairs, as for `predict`.
        y : array-like of shape (n_samples,)
            Class of each sample. For pairs, whether each is of one class.
        sample_weight : array-like of shape (n_samples,), float or None, default=None
            Weight of each sample, >= 0, not all 0: a pair counts as much as the product of the weights of its samples.
            For pairs, the weight of each. An embedder that is not fitted is trained without them.

        Returns
        -------
        self : object
            The fitted verifier.

        Raises
        ------
        TypeError
            If the labels cannot be compared with each other.
        ValueError
            If a parameter is out of range, there are no pairs from one class or none from two, the lengths of X and y
            differ, an embedding is not finite, or X could hold pairs and the embedder is not fitted.
        """
        check_constraints(self, self.get_params(deep=False))
        if y is None:
            raise ValueError(
                "PairVerifier requires y to be passed, but the target y is None. Call fit(X, y) with one class label "
                "per sample, or fit_pairs(pairs, same)."
            )
        are_pairs = _are_pairs(X, self.embedder)
        if self._is_embedder_fitted():
            if are_pairs:
                return self.fit_pairs(X, y, sample_weight)
            embedder = self.embedder
        elif are_pairs and np.isin(_to_numbers(y)[1], (0, 1)).all():
            raise ValueError(
                f"X and y could be pairs or samples, and the {type(self.embedder).__name__} is not fitted, which pairs "
                "cannot train. Fit it first on samples with class labels, and wrap it in "
                "sklearn.frozen.FrozenEstimator where estimators are cloned, as in cross_val_score."
            )
        else:
            embedder = clone(self.embedder).fit(X, y)
        counts = _count_pairs(_embed(embedder, X), y, sample_weight)
        return self._set_fitted(embedder, *counts)

    def fit_pairs(self, pairs, same, sample_weight=None) -> Self:
        """Calibrate the threshold on given pairs, as for Labeled Faces in the Wild; the embedder must be fitted.

        Parameters
        ----------
        pairs : tuple (firsts, seconds) or sequence of n_pairs pairs
            As for `predict`.
        same : array-like of bool of shape (n_pairs,)
            Whether the two samples of a pair are of one class; True or 1, False or 0.
        sample_weight : array-like of shape (n_pairs,), float or None, default=None
            Weight of each pair, >= 0, not all 0. None: ones.

        Returns
        -------
        self : object
            The fitted verifier.

        Raises
        ------
        ValueError
            If the embedder is not fitted, a parameter is out of range, the pairs cannot be read, there are none from
            one class or none from two, the lengths of `pairs` and `same` differ, or an embedding is not finite.
        """
        check_constraints(self, self.get_params(deep=False))
        if not self._is_embedder_fitted():
            raise NotFittedError(
                f"The {type(self.embedder).__name__} is not fitted, and pairs cannot train it. Fit it first on samples "
                "with class labels, and wrap it in sklearn.frozen.FrozenEstimator where estimators are cloned."
            )
        similarity = _similarity(self.embedder, pairs)
        return self._set_fitted(self.embedder, *_count_given_pairs(similarity, same, sample_weight))

    def _is_embedder_fitted(self):
        try:
            check_is_fitted(self.embedder)
        except NotFittedError:
            return False
        return True

    def _set_fitted(self, embedder, different, same):
        self.embedder_ = embedder
        self.threshold_ = _find_threshold(different, same, self.strategy, self.far)
        for name in ("n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)  # of an earlier fit
            if hasattr(embedder, name):
                setattr(self, name, getattr(embedder, name))
        return self

    def decision_function(self, X) -> np.ndarray:
        """Return by how much the similarity of each pair exceeds the threshold.

        Parameters
        ----------
        X : tuple (firsts, seconds) or sequence of n_pairs pairs
            A tuple of two holds all first and all second samples: vectors, images, data frames, sparse matrices, paths
            or anything else that the embedder takes. All else is a sequence of pairs: a list of ``(first, second)``,
            an array of shape (n_pairs, 2, ...), or an array or data frame of two columns of paths.

        Returns
        -------
        ndarray of shape (n_pairs,)
            Cosine of the two embeddings minus `threshold_`.

        Raises
        ------
        ValueError
            If X holds no pairs or can be read in two ways, or an embedding is not finite.
        """
        check_is_fitted(self)
        return _similarity(self.embedder_, X).cpu().numpy() - self.threshold_

    def predict(self, X) -> np.ndarray:
        """Return whether the two samples of each pair are of one class.

        Parameters
        ----------
        X : tuple (firsts, seconds) or sequence of n_pairs pairs
            The pairs, as for `decision_function`.

        Returns
        -------
        ndarray of bool of shape (n_pairs,)
            True where the similarity is at least `threshold_`.

        Raises
        ------
        ValueError
            If X holds no pairs or can be read in two ways, or an embedding is not finite.
        """
        return self.decision_function(X) >= 0

    def score(self, X, y, sample_weight=None) -> float:
        """Return the accuracy: the share of the pairs that are judged correctly.

        Parameters
        ----------
        X : tuple (firsts, seconds), sequence of n_pairs pairs, or array-like of shape (n_samples, ...)
            Pairs; or samples, all of whose pairs count. They are told apart as in `fit`.
        y : array-like of shape (n_pairs,) or (n_samples,)
            Whether each pair is of one class; or the class of each sample.
        sample_weight : array-like of shape (n_pairs,) or (n_samples,), float or None, default=None
            Weight of each pair; or of each sample, see `fit`.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError
            If the lengths of X and y differ, or an embedding is not finite; for samples also if there are no pairs from
            one class or none from two.
        """
        check_is_fitted(self)
        if _are_pairs(X, self.embedder_):
            accepted = self.predict(X)
            is_right = accepted == _check_same(y, len(accepted))
            weights = None if sample_weight is None else check_sample_weight(sample_weight, is_right, None, None)
            return float(np.average(is_right.astype(np.float64), weights=weights))
        false, true = _accepted(*self._count(X, y, sample_weight))
        bins = int(np.clip(np.ceil(self.threshold_ * _HALF + _HALF + 0.5), 0, _N_BINS))
        return float((true[bins] + false[0] - false[bins]) / (true[0] + false[0]))

    def roc_auc(self, X, y, sample_weight=None) -> float:
        """Return the area under the ROC curve, regardless of the threshold.

        It is the probability that a pair from one class is more similar than a pair from two.

        Parameters
        ----------
        X : tuple (firsts, seconds), sequence of n_pairs pairs, or array-like of shape (n_samples, ...)
            Pairs or samples, as for `score`.
        y : array-like of shape (n_pairs,) or (n_samples,)
            Whether each pair is of one class; or the class of each sample.
        sample_weight : array-like of shape (n_pairs,) or (n_samples,), float or None, default=None
            Weight of each pair; or of each sample, see `fit`.

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
        false, true = _accepted(*self._count(X, y, sample_weight))
        return float(auc(false / false[0], true / true[0]))

    def true_accept_rate(self, X, y, *, far=None, sample_weight=None) -> float:
        """Return the share of the pairs from one class that are accepted at a false accept rate, TAR@FAR.

        The threshold is the lowest at which at most this share of the given pairs from two classes is accepted,
        whatever `threshold_` is.

        Parameters
        ----------
        X : tuple (firsts, seconds), sequence of n_pairs pairs, or array-like of shape (n_samples, ...)
            Pairs or samples, as for `score`.
        y : array-like of shape (n_pairs,) or (n_samples,)
            Whether each pair is of one class; or the class of each sample.
        far : float or None, default=None
            False accept rate in [0, 1). None: that of the verifier.
        sample_weight : array-like of shape (n_pairs,) or (n_samples,), float or None, default=None
            Weight of each pair; or of each sample, see `fit`.

        Returns
        -------
        float
            In [0, 1]. A rate below one over the number of pairs from two classes is that of no false accept.

        Raises
        ------
        ValueError
            If `far` is out of range, there are no pairs from one class or none from two, the lengths of X and y differ,
            or an embedding is not finite.
        """
        far = self.far if far is None else far
        check_constraints(self, {"far": far})
        false, true = _accepted(*self._count(X, y, sample_weight))
        return float(true[_first_within(false, far)] / true[0])

    def _count(self, X, y, sample_weight):
        """Return the counts of `_count_pairs` for given pairs or for all pairs of samples."""
        check_is_fitted(self)
        if _are_pairs(X, self.embedder_):
            return _count_given_pairs(_similarity(self.embedder_, X), y, sample_weight)
        return _count_pairs(_embed(self.embedder_, X), y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags = get_tags(self.embedder).input_tags
        return tags


def _find_threshold(different, same, strategy, far):
    """Return the middle of the thresholds that are best for the counts (T - 1,) of pairs from two classes and one."""
    false, true = _accepted(different, same)
    if strategy == "far":
        chosen = _first_within(false, far)
    elif strategy == "eer":
        chosen = np.abs(false / false[0] - (1 - true / true[0])).argmin()
    else:
        chosen = (false - true).argmin()
    alike = np.flatnonzero((false == false[chosen]) & (true == true[chosen]))
    return float((alike[0] + alike[-1]) // 2 - _HALF - 0.5) / _HALF


def _first_within(false, far):
    """Return the index of the lowest threshold with this false accept rate or less."""
    return (false / false[0] <= far).argmax()


def _accepted(*counts):
    """Return how many pairs each threshold accepts, from all of them down to none; (T,) each."""
    return [np.append(count[::-1].cumsum()[::-1], 0) for count in counts]


def _embed(embedder, X):
    """Return the embeddings as a new tensor (N, D)."""
    if not hasattr(embedder, "transform"):
        raise TypeError(f"embedder must be a transformer, such as an embedder of skdml; got {type(embedder).__name__}.")
    return check_points(embedder.transform(X), "embeddings").clone()


def _to_bins(S):
    """Return the bin of each similarity; S is overwritten."""
    # A power of two scales without rounding, so that the bins are those of S >= threshold.
    return S.mul_(_HALF).add_(0.5).floor_().clamp_(-_HALF, _HALF).int().add_(_HALF)


@torch.no_grad()
def _count_pairs(Z, y, sample_weight=None):
    """Return how many pairs from two classes, and from one, have a similarity in each bin; (T - 1,) each.

    Each pair counts twice, once in either order. With weights, it counts as much as the product of those of its
    samples.
    """
    rows, _ = prepare(Z, y, several_labels=False)
    weights = None
    if sample_weight is not None:
        weights = torch.as_tensor(check_sample_weight(sample_weight, rows.classes, None, None), dtype=torch.float64)
        # In the order of the rows: scaling a row of two numbers to unit length keeps their ratio.
        ratios = prepare(torch.stack([weights, torch.ones_like(weights)], dim=1), y)[0].points
        weights = (ratios[:, 0] / ratios[:, 1]).to(rows.points.device)
    size = 2 * tile_size(rows.points)
    buffer = rows.points.new_empty(min(size, len(rows)) ** 2)
    kind = torch.int64 if weights is None else torch.float64
    counts = torch.zeros(2 * _N_BINS, dtype=kind, device=rows.points.device)
    for q, g, may_match, _ in tiles(rows, rows, size):
        bins = _to_bins(similarities(rows[q], rows[g], buffer))
        if may_match:
            bins += (rows.classes[q, None] == rows.classes[g]).int().mul_(_N_BINS)
        n_bins = 2 * _N_BINS if may_match else _N_BINS
        if weights is None:
            found = torch.bincount(bins.flatten(), minlength=n_bins)
            if q == g:
                found -= torch.bincount(bins.diagonal(), minlength=n_bins)  # a row is not a pair with itself
        else:
            products = weights[q, None] * weights[g]
            if q == g:
                products.fill_diagonal_(0)  # exact, unlike a difference of sums
            found = torch.bincount(bins.flatten(), products.flatten(), minlength=n_bins)
        counts[: len(found)].add_(found, alpha=1 if q == g else 2)
    different, same = counts.view(2, _N_BINS).cpu().numpy()
    if not different.any() or not same.any():
        unit = "" if weights is None else " by weight"
        raise ValueError(
            f"y must form pairs from one class and pairs from two, got {same.sum() / 2:.12g} and "
            f"{different.sum() / 2:.12g}{unit}. Pass two or more classes, one of them with two or more samples."
        )
    return different, same


def _count_given_pairs(similarity, same, sample_weight):
    """Return the same as `_count_pairs` for the pairs with these similarities (P,)."""
    same = torch.from_numpy(_check_same(same, len(similarity)))
    weights = None
    if sample_weight is not None:
        weights = torch.as_tensor(check_sample_weight(sample_weight, same, None, None), dtype=torch.float64)
    bins = _to_bins(similarity.cpu()) + _N_BINS * same
    different, alike = torch.bincount(bins, weights, minlength=2 * _N_BINS).view(2, _N_BINS).numpy()
    if not different.any() or not alike.any():
        by_weight = "" if weights is None else ", by weight"
        raise ValueError(
            f"same must hold pairs of one class and pairs of two, got {alike.sum():.12g} and {different.sum():.12g}"
            f"{by_weight}. Pass both kinds."
        )
    return different, alike


def _similarity(embedder, pairs):
    """Return the cosine of the embeddings of each pair as a tensor (P,)."""
    firsts, seconds = (normalize_(_embed(embedder, side)) for side in split(pairs, 2))
    if firsts.shape != seconds.shape:
        raise ValueError(
            f"Each pair must have two samples; got {len(firsts)} first and {len(seconds)} second samples, embedded in "
            f"{firsts.shape[1]} and {seconds.shape[1]} components."
        )
    return (firsts * seconds).sum(1)


def _are_pairs(X, embedder):
    """Return whether X has the form of pairs, and a row of it is not one sample of the embedder."""
    if isinstance(X, tuple) and len(X) == 2:
        return True  # two samples could not be calibrated
    shape = tuple(getattr(X, "shape", ()))
    if sparse.issparse(X) or not (isinstance(X, list | tuple) or shape) or (shape or (len(X),))[0] == 0:
        return False
    if len(shape) > 1:
        if shape[1] != 2:
            return False
        sample = next(iter(_safe_indexing(X, 0, axis=1))) if len(shape) == 2 else np.empty(shape[2:], bool)
    else:
        row = next(iter(X))
        if not is_group(row, 2):
            return False
        sample = next(iter(row))
    is_path = isinstance(sample, str | os.PathLike)
    if not is_path and not np.ndim(sample):
        return False  # vectors of two numbers
    n_values = 2 * (1 if is_path else math.prod(np.shape(sample)))
    return getattr(embedder, "n_features_in_", None) != n_values


def _to_numbers(same):
    """Return the labels of pairs, and the same as numbers, nan where a value is none."""
    same = np.asarray(same.detach().cpu() if isinstance(same, torch.Tensor) else same)
    if same.dtype.kind in "biuf":
        return same, same
    return same, np.array([v if isinstance(v, Real | np.bool_) else np.nan for v in same.flat]).reshape(same.shape)


def _check_same(same, n_pairs):
    """Return the labels of the pairs as booleans (P,)."""
    given, values = _to_numbers(same)
    if values.ndim != 1 and values.shape[1:] != (1,):
        raise ValueError(f"same must hold one value per pair, shape (n_pairs,); got shape {values.shape}.")
    values = column_or_1d(values, warn=True)
    if len(values) != n_pairs:
        raise ValueError(f"same must hold one value per pair; got {len(values)} values for {n_pairs} pairs.")
    wrong = np.flatnonzero(~np.isin(values, (0, 1)))
    if len(wrong):
        raise ValueError(
            f"same must hold True or 1 for pairs of one class and False or 0 for pairs of two; got {len(wrong)} other "
            f"values, the first of them {given.flat[wrong[0]]!r}. Convert them, for example with same == 1."
        )
    return values == 1
