"""Embedders for those who have no classes, but pairs, triplets or quadruplets of samples.

Axes: B judgments of a batch, n samples in them, D components.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Self

import numpy as np
import torch
from sklearn.metrics import auc, roc_auc_score, roc_curve
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted

from .._constraints import FINITE, NON_NEGATIVE, POSITIVE, Interval, StrOptions, check_constraints
from .._docstrings import with_shared_docs
from .._engine.callbacks import with_callbacks
from .._engine.judgments import ComparisonsEmbedder, JudgmentsEmbedder
from .._engine.training import embed
from .._loss.terms import in_float32, rows_at, weighted_mean
from .._network.networks import unit_rows
from .binomial_deviance import BinomialDevianceLoss
from .contrastive import ContrastiveLoss
from .sst import SSTLoss, symmetric_terms
from .triplet import TripletLoss


class GivenPairs:
    """A loss over pairs for given pairs: each is a row of similarities with one entry, so that each has its weight."""

    @in_float32
    def forward(self, embeddings, pairs, sample_weight=None):
        """Return the loss of embeddings (n, D) and pairs (B, 3): the rows of both samples, and +1 or -1."""
        first, second = rows_at(embeddings, pairs[:, :2]).unbind(dim=1)  # (B, D)
        S = (first * second).sum(dim=1, keepdim=True)  # (B, 1)
        same = pairs[:, 2:] > 0
        return self.pair_loss(S, same, ~same, sample_weight=sample_weight)


class GivenPairsContrastiveLoss(GivenPairs, ContrastiveLoss):
    """`ContrastiveLoss` of given pairs."""


class GivenPairsBinomialDevianceLoss(GivenPairs, BinomialDevianceLoss):
    """`BinomialDevianceLoss` of given pairs."""


class GivenOrderLoss(TripletLoss):
    """`TripletLoss` of given triplets, or of quadruplets, which are triplets whose pairs need not share an anchor."""

    def __init__(self, *, margin):
        super().__init__(margin=margin, mining=None)

    @in_float32
    def forward(self, embeddings, judgments, sample_weight=None):
        """Return the loss of embeddings (n, D) and the rows (B, 3) or (B, 4) of each judgment's samples."""
        near_and_far = judgments if judgments.shape[1] == 4 else judgments[:, [0, 1, 0, 2]]
        a, b, c, d = rows_at(embeddings, near_and_far).unbind(dim=1)  # (B, D)
        squares = torch.stack([(a - b).square().sum(dim=1), (c - d).square().sum(dim=1)], dim=1)  # (B, 2)
        is_near = torch.tensor([True, False], device=squares.device).expand_as(squares)
        return self.pair_loss(1 - squares / 2, is_near, ~is_near, sample_weight=sample_weight)


class GivenTripletsSSTLoss(SSTLoss):
    """`SSTLoss` of given triplets."""

    @in_float32
    def forward(self, embeddings, triplets, sample_weight=None):
        """Return the loss of embeddings (n, D) and the rows (B, 3) of anchors, positives and negatives."""
        a, p, n = rows_at(embeddings, triplets).unbind(dim=1)  # (B, D)
        ap, an, pn = ((x - y).square().sum(dim=1) for x, y in ((a, p), (a, n), (p, n)))  # (B,)
        return weighted_mean(symmetric_terms(ap, an, pn), sample_weight)


def _exceeds(Z, far, near):
    """Return by how much the distances of the pairs far (B, 2) exceed those of the pairs near, by their rows in Z."""
    far, near = (torch.linalg.vector_norm(Z[pairs[:, 0]] - Z[pairs[:, 1]], dim=1) for pairs in (far, near))
    return far - near


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class PairsEmbedder(JudgmentsEmbedder):
    r"""Learn from pairs of samples that belong together, and pairs that do not.

    For those who know of some pairs whether they are alike, but have no classes: duplicates that users reported, two
    photographs of one person, siamese networks. With classes, an embedder that takes them learns more, as they say this
    of all pairs.

    Read more in the :ref:`User Guide <judgments>`.

    Parameters
    ----------
    loss : {"contrastive", "binomial_deviance"}, default="contrastive"
        The term of a pair; the mean over the pairs of a batch is minimized. "contrastive" [1]_: minus its similarity
        s if y is 1, and :math:`[s - \lambda]_+` if y is -1. "binomial_deviance" [2]_:
        :math:`\log[1 + e^{\alpha (\lambda - s)}]` and :math:`\log[1 + e^{\beta (s - \lambda)}]`.
    threshold : float, default=0.5
        Lambda, the similarity that pairs are compared with.
    alpha : float, default=2.0
        Sharpness over the pairs with y = 1; > 0. Used only with ``loss="binomial_deviance"``.
    beta : float, default=50.0
        Sharpness over the pairs with y = -1; > 0. Used only with ``loss="binomial_deviance"``.
    {BASE_PARAMETERS}

    Attributes
    ----------
    threshold_ : float
        Cosine of two embeddings at or above which a pair is judged to belong together. `fit` finds the one of the
        highest accuracy on its pairs; see `calibrate_threshold`.
    {BASE_ATTRIBUTES}

    See Also
    --------
    TripletsEmbedder : Learns which of two samples is nearer to a third.
    ContrastiveEmbedder : Learns from classes, with the same loss over all pairs of a batch.
    skdml.verification.PairVerifier : Finds a threshold for an embedder that was trained on classes.

    References
    ----------
    .. [1] R. Hadsell, S. Chopra and Y. LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.
    .. [2] D. Yi, Z. Lei, S. Liao and S. Z. Li, "Deep Metric Learning for Person Re-Identification", ICPR 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skdml import PairsEmbedder
    >>> X, digit = load_digits(return_X_y=True)
    >>> pairs = np.stack([X[:-7], X[7:]], axis=1) / 16  # (1790, 2, 64)
    >>> y = np.where(digit[:-7] == digit[7:], 1, -1)
    >>> embedder = PairsEmbedder(max_epochs=5, random_state=0).fit(pairs[:1000], y[:1000])
    >>> bool(embedder.score(pairs[1000:], y[1000:]) > 0.9)
    True
    >>> embedder.transform(X / 16).shape
    (1797, 64)
    """

    loss: str = "contrastive"
    threshold: float = 0.5
    alpha: float = 2.0
    beta: float = 50.0

    _parameter_constraints = {
        **JudgmentsEmbedder._parameter_constraints,
        "loss": [StrOptions({"contrastive", "binomial_deviance"})],
        "threshold": [FINITE],
        "alpha": [POSITIVE],
        "beta": [POSITIVE],
    }
    _n_sides = 2
    _own_fitted = frozenset({"threshold_"})
    _score_names = {"valid_accuracy": "accuracy", "valid_roc_auc": "ROC AUC"}

    def _make_loss(self, n_classes, network):
        if self.loss == "contrastive":
            return GivenPairsContrastiveLoss(threshold=self.threshold)
        return GivenPairsBinomialDevianceLoss(alpha=self.alpha, beta=self.beta, threshold=self.threshold)

    @with_callbacks
    def fit(self, X, y, sample_weight=None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : tuple (firsts, seconds), or sequence of n_pairs pairs
            A tuple of two holds all first and all second samples: vectors, images, data frames, sparse matrices, paths
            or anything else that embedders take. All else is a sequence of pairs: an array of shape (n_pairs, 2, ...),
            a list of ``(first, second)``, or an array or data frame of two columns of paths. With a ``preprocessor``,
            also row numbers or whatever it takes in place of samples.
        y : array-like of int of shape (n_pairs,)
            1 where the two samples belong together, -1 where they do not.
        sample_weight : array-like of shape (n_pairs,), float or None, default=None
            Weight of each pair's term in the loss of a batch, and in the accuracy that `threshold_` maximizes, >= 0,
            not all 0 for either sign. None: ones.

        Returns
        -------
        self : object
            The fitted embedder.

        Raises
        ------
        ValueError
            For a hyperparameter, X, y or sample_weight out of range, for pairs of one sign or of equal samples only,
            for a backbone that does not fit the samples, for files that cannot be used, and when the loss is no longer
            finite.
        RuntimeError
            When a process that decodes files dies.
        KeyboardInterrupt
            After Ctrl-C; the embedder is fitted if there was at least one whole epoch, otherwise as before.

        Warns
        -----
        ConvergenceWarning
            When all training samples have nearly the same embedding.
        """
        with self._start() as start:
            return self._train(X, y, sample_weight, **start)

    def calibrate_threshold(self, X, y, *, strategy="accuracy", min_rate=None, beta=1.0) -> Self:
        """Set `threshold_` by given pairs, best by pairs of samples that the embedder was not trained on.

        Parameters
        ----------
        X : tuple (firsts, seconds), or sequence of n_pairs pairs
            As in `fit`.
        y : array-like of int of shape (n_pairs,)
            1 or -1, both at least once.
        strategy : {"accuracy", "f_beta", "max_tpr", "max_tnr"}, default="accuracy"
            "accuracy": the fewest pairs are misjudged. "f_beta": the F score of the pairs with y = 1 is highest.
            "max_tpr": the highest true positive rate at which the true negative rate is at least ``min_rate``.
            "max_tnr": the highest true negative rate at which the true positive rate is at least ``min_rate``.
        min_rate : float or None, default=None
            In [0, 1]; needed by "max_tpr" and "max_tnr", and used only by them.
        beta : float, default=1.0
            Weight of recall relative to precision, > 0; used only by "f_beta".

        Returns
        -------
        self : object
            The embedder, with another `threshold_`: the middle of the range that judges these pairs in the same way.

        Raises
        ------
        ValueError
            If a parameter is out of range, the pairs cannot be read, or all have one sign.
        """
        check_is_fitted(self)
        check_constraints(Calibration(), {"strategy": strategy, "min_rate": min_rate, "beta": beta})
        if strategy in ("max_tpr", "max_tnr") and min_rate is None:
            raise ValueError(f"strategy={strategy!r} keeps a rate at min_rate or above, but it is None. Set min_rate.")
        similarity = self._judge(X)
        y = self._read_target(y, len(similarity))
        _check_both_signs(y)
        self.threshold_ = find_threshold(similarity, y, strategy, min_rate=min_rate, beta=beta)
        return self

    def decision_function(self, X) -> np.ndarray:
        """Return by how much the similarity of each pair exceeds the threshold.

        Parameters
        ----------
        X : tuple (firsts, seconds), or sequence of n_pairs pairs
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_pairs,)
            Cosine of the two embeddings minus `threshold_`.

        Raises
        ------
        ValueError
            If X does not hold pairs of samples of the kind seen in fit, or can be read in two ways.
        """
        return self._judge(X) - self.threshold_

    def predict(self, X) -> np.ndarray:
        """Return whether the two samples of each pair belong together.

        Parameters
        ----------
        X : tuple (firsts, seconds), or sequence of n_pairs pairs
            As in `fit`.

        Returns
        -------
        ndarray of int of shape (n_pairs,)
            1 where the similarity is at least `threshold_`, otherwise -1.

        Raises
        ------
        ValueError
            If X does not hold pairs of samples of the kind seen in fit, or can be read in two ways.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def score(self, X, y, sample_weight=None) -> float:
        """Return the area under the ROC curve, regardless of the threshold.

        Parameters
        ----------
        X : tuple (firsts, seconds), or sequence of n_pairs pairs
            As in `fit`.
        y : array-like of int of shape (n_pairs,)
            1 or -1, both at least once.
        sample_weight : array-like of shape (n_pairs,) or None, default=None
            Weight of each pair, >= 0. None: ones.

        Returns
        -------
        float in [0, 1]
            Probability that a pair that belongs together is more similar than one that does not.
        """
        similarity = self._judge(X)
        y = self._read_target(y, len(similarity))
        _check_both_signs(y)
        return float(roc_auc_score(y, similarity, sample_weight=sample_weight))

    def _decide(self, Z, judgments):
        first, second = unit_rows(Z)[judgments[:, :2]].unbind(dim=1)
        return (first * second).sum(dim=1)

    def _read_target(self, y, n_judgments):
        if y is None:
            raise ValueError(
                "PairsEmbedder requires y to be passed, but the target y is None. Call fit(X, y) with 1 for each pair "
                "of samples that belong together and -1 for each pair of samples that do not."
            )
        y = column_or_1d(np.asarray(y))
        if len(y) != n_judgments:
            raise ValueError(f"y must hold one value per pair; got {len(y)} values for {n_judgments} pairs.")
        wrong = np.flatnonzero((y.dtype == bool) | ~np.isin(y, (-1, 1)))
        if len(wrong):
            raise ValueError(
                f"y must hold 1 for pairs that belong together and -1 for others; got {len(wrong)} other values, the "
                f"first of them {y[wrong[0]]!r}. Convert booleans, or 1 and 0, with np.where(y, 1, -1)."
            )
        return y.astype(np.int64)

    def _check_judgments(self, judgments, y):
        _check_both_signs(y)
        if (judgments[:, 0] == judgments[:, 1]).all():
            raise ValueError(
                "All pairs hold two equal samples, which says nothing about others. Check how the pairs were made."
            )

    def _scores(self, Z, judgments, y):
        similarity = self._decide(Z, judgments).double().numpy()
        false, true, _ = roc_curve(y, similarity)
        share = (y > 0).mean()
        return float((share * true + (1 - share) * (1 - false)).max()), float(auc(false, true))

    def _fitted(self, task, history, network, criterion, *, goes_on):
        similarity = self._decide(embed(network, task.data, "cpu"), torch.from_numpy(task.judgments)).numpy()
        attributes = super()._fitted(task, history, network, criterion, goes_on=goes_on)
        return {**attributes, "threshold_": find_threshold(similarity, task.y, "accuracy", weights=task.weights)}


class Calibration:
    """The parameters of `PairsEmbedder.calibrate_threshold`."""

    _parameter_constraints = {
        "strategy": [StrOptions({"accuracy", "f_beta", "max_tpr", "max_tnr"})],
        "min_rate": [Interval(Real, 0, 1, closed="both"), None],
        "beta": [POSITIVE],
    }


def _check_both_signs(y):
    n_same = np.count_nonzero(y > 0)
    if n_same in (0, len(y)):
        raise ValueError(
            f"y must hold pairs of both signs with a weight above 0; got {n_same} pairs with 1 and {len(y) - n_same} "
            "with -1. Pass pairs that belong together and pairs that do not."
        )


def find_threshold(similarity, y, strategy, *, weights=None, min_rate=None, beta=1.0):
    """Return the middle of the range of thresholds that are best for pairs of these similarities.

    Parameters
    ----------
    similarity : ndarray of shape (n_pairs,)
    y : ndarray of shape (n_pairs,), 1 or -1
    strategy, min_rate, beta
        As in `PairsEmbedder.calibrate_threshold`.
    weights : ndarray of shape (n_pairs,) or None
    """
    false, true, thresholds = roc_curve(y, similarity, sample_weight=weights, drop_intermediate=False)  # rising rates
    w = np.ones(len(y)) if weights is None else weights.astype(np.float64)
    n_true, n_false = w[y > 0].sum(), w[y < 0].sum()
    match strategy:
        case "accuracy":
            best = (n_true * true - n_false * false).argmax()
        case "f_beta":
            best = ((1 + beta**2) * n_true * true / (beta**2 * n_true + n_true * true + n_false * false)).argmax()
        case "max_tpr":
            best = np.flatnonzero(1 - false >= min_rate)[-1]
        case "max_tnr":
            best = np.flatnonzero(true >= min_rate)[0]
    thresholds = np.append(thresholds, -1.0)  # no cosine is lower
    highest = min(thresholds[best], 1 + 1e-6)  # at the first place all are rejected, with a threshold of infinity
    return float(highest + thresholds[best + 1]) / 2


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class TripletsEmbedder(ComparisonsEmbedder):
    r"""Learn from triplets of samples: the positive is nearer to the anchor than the negative is.

    For judgments that are relative: users who chose one of two results, annotators who were asked which of two pictures
    is more like a third. With classes, an embedder that takes them learns more, as they form many more triplets.

    Read more in the :ref:`User Guide <judgments>`.

    Parameters
    ----------
    loss : {"triplet", "sst"}, default="triplet"
        The term of a triplet, of squared Euclidean distances. "triplet" [1]_: :math:`[d^2_{ap} - d^2_{an} + m]_+`, with
        the mean over the triplets of a batch where it is above 0. "sst" [2]_:
        :math:`\log(1 + e^{d^2_{ap} - (d^2_{an} + d^2_{pn}) / 2})`, with the mean over all; it also keeps the negative
        away from the positive.
    margin : float, default=0.2
        Margin m by which the negative must be farther away than the positive; >= 0, on the scale of squared distances
        (0 to 4 for unit rows). Used only with ``loss="triplet"``.
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    QuadrupletsEmbedder : Learns which of two pairs of samples is nearer.
    TripletEmbedder : Learns from classes, whose triplets it forms itself.

    References
    ----------
    .. [1] F. Schroff, D. Kalenichenko and J. Philbin, "FaceNet: A Unified Embedding for Face Recognition and
       Clustering", CVPR 2015.
    .. [2] B. Nguyen and B. De Baets, "Improved deep embedding learning based on stochastic symmetric triplet loss and
       local sampling", Neurocomputing 402, 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skdml import TripletsEmbedder
    >>> X, digit = load_digits(return_X_y=True)
    >>> rng = np.random.default_rng(0)
    >>> anchor, positive, negative = rng.integers(len(X), size=(3, 20_000))
    >>> known = (digit[anchor] == digit[positive]) & (anchor != positive) & (digit[anchor] != digit[negative])
    >>> triplets = np.stack([anchor, positive, negative], axis=1)[known]
    >>> embedder = TripletsEmbedder(preprocessor=X / 16, max_epochs=5, random_state=0).fit(triplets[:1000])
    >>> bool(embedder.score(triplets[1000:]) > 0.9)
    True
    """

    loss: str = "triplet"
    margin: float = 0.2

    _parameter_constraints = {
        **ComparisonsEmbedder._parameter_constraints,
        "loss": [StrOptions({"triplet", "sst"})],
        "margin": [NON_NEGATIVE],
    }
    _n_sides = 3

    def _make_loss(self, n_classes, network):
        return GivenOrderLoss(margin=self.margin) if self.loss == "triplet" else GivenTripletsSSTLoss()

    def _decide(self, Z, judgments):
        return _exceeds(Z, judgments[:, [0, 2]], judgments[:, [0, 1]])

    def _check_judgments(self, judgments, y):
        super()._check_judgments(judgments, y)
        anchor, positive, negative = judgments.T
        for what, is_wrong in (
            ("the positive equals the anchor", positive == anchor),
            ("the negative equals the anchor", negative == anchor),
            ("the negative equals the positive", negative == positive),
        ):
            _refuse(is_wrong, "triplets", what)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class QuadrupletsEmbedder(ComparisonsEmbedder):
    """Learn from quadruplets of samples: the first two are nearer to each other than the last two are.

    Read more in the :ref:`User Guide <judgments>`.

    Parameters
    ----------
    margin : float, default=0.2
        Margin m of the term of a quadruplet, :math:`[d^2_{ab} - d^2_{cd} + m]_+` [1]_, by which the last two must be
        farther apart than the first two; >= 0, on the scale of squared Euclidean distances (0 to 4 for unit rows). The
        mean over the quadruplets of a batch where it is above 0 is minimized.
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    TripletsEmbedder : Learns from comparisons of two samples with a third.
    QuadrupletEmbedder : Learns from classes, whose quadruplets it forms itself.

    References
    ----------
    .. [1] M. T. Law, N. Thome and M. Cord, "Quadruplet-wise Image Similarity Learning", ICCV 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skdml import QuadrupletsEmbedder
    >>> X, digit = load_digits(return_X_y=True)
    >>> a, b, c, d = np.random.default_rng(0).integers(len(X), size=(4, 20_000))
    >>> known = (digit[a] == digit[b]) & (a != b) & (digit[c] != digit[d])
    >>> quadruplets = np.stack([a, b, c, d], axis=1)[known]
    >>> embedder = QuadrupletsEmbedder(preprocessor=X / 16, max_epochs=5, random_state=0).fit(quadruplets[:1000])
    >>> bool(embedder.score(quadruplets[1000:]) > 0.9)
    True
    """

    margin: float = 0.2

    _parameter_constraints = {**ComparisonsEmbedder._parameter_constraints, "margin": [NON_NEGATIVE]}
    _n_sides = 4

    def _make_loss(self, n_classes, network):
        return GivenOrderLoss(margin=self.margin)

    def _decide(self, Z, judgments):
        return _exceeds(Z, judgments[:, 2:], judgments[:, :2])

    def _check_judgments(self, judgments, y):
        super()._check_judgments(judgments, y)
        a, b, c, d = judgments.T
        for what, is_wrong in (
            ("the first and the second sample are equal", a == b),
            ("the third and the fourth sample are equal", c == d),
            ("both pairs are the same", (np.sort(judgments[:, :2]) == np.sort(judgments[:, 2:])).all(axis=1)),
        ):
            _refuse(is_wrong, "quadruplets", what)


def _refuse(is_wrong, kind, what):
    if is_wrong.any():
        raise ValueError(
            f"In {np.count_nonzero(is_wrong)} of {len(is_wrong)} {kind}, {what}: this can never hold, or always holds, "
            f"and teaches nothing. Leave these {kind} out."
        )
