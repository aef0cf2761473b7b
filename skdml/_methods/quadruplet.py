"""Quadruplet: every positive pair closer than every negative pair, by a margin.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

from dataclasses import dataclass

from .._constraints import NON_NEGATIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.similarities import distance_similarities, squared_distances
from .._loss.terms import mean_active_hinge


@with_shared_docs
class QuadrupletLoss(PairLoss):
    r"""Bring the samples of each positive pair closer together than those of every negative pair, by a margin.

    .. math::
        \ell = \frac1Q \sum_{(i, j) \in P} \sum_{(k, l) \in N} [d^2_{ij} - d^2_{kl} + \delta]_+

    The d are Euclidean distances, P and N the positive and the negative pairs of the batch, which need not share a
    sample. Q counts the active quadruplets, those with a term above 0.

    Parameters
    ----------
    margin : float, default=1.0
        Delta, by which negative pairs must be farther apart than positive pairs; >= 0, on the scale of squared
        distances (0 to 4 for unit rows). The authors use 1 for strict comparisons and 0 for others.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any norm; y (B,) integers; returns a scalar, the mean over the
    active quadruplets, which keeps its scale as training succeeds. A batch without a positive pair, without a negative
    pair or without an active quadruplet gives 0 with zero gradient. A hinge at exactly 0 is inactive.

    A quadruplet has the weight of the anchor of one pair times that of the other.

    Which quadruplets are active follows from the sorted distances, so all of them cost O(B^2 log B) time and O(B^2)
    memory, where an enumeration costs O(B^4).

    Differences from [1]_: there the metric is linear, the problem is convex with a quadratic regularizer, and a
    weighted sum replaces the mean; the quadruplets may come from other information than classes.

    Relations: a triplet is a quadruplet whose pairs share the anchor. This is not the "quadruplet loss" of Chen et al.,
    CVPR 2017, which adds a second negative pair to a triplet.

    References
    ----------
    .. [1] M. T. Law, N. Thome and M. Cord, "Quadruplet-wise Image Similarity Learning", ICCV 2013.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import QuadrupletLoss
    >>> embeddings = torch.tensor([[0.0], [1.0], [2.5]], requires_grad=True)
    >>> loss = QuadrupletLoss(margin=2.0)(embeddings, torch.tensor([0, 0, 1]))  # d^2 1 against 2.25 and 6.25
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.75
    """

    _parameter_constraints = {"margin": [NON_NEGATIVE], **PairLoss._parameter_constraints}

    _similarities = staticmethod(distance_similarities)

    def __init__(self, *, margin=1.0, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.margin = margin
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the mean over active quadruplets as a function of similarities."""
        if sample_weight is not None:
            positive, negative = sample_weight[:, None] * positive, sample_weight[:, None] * negative
        # With all pairs in one row, as if they had one anchor, this is a triplet loss.
        distance, positive, negative = (t.reshape(1, -1) for t in (squared_distances(S), positive, negative))
        return mean_active_hinge(distance, positive, negative, self.margin)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class QuadrupletEmbedder(PairEmbedder):
    """Quadruplet: every positive pair of a batch closer than every negative pair, by a margin [1]_.

    The compared pairs need not share a sample, so that all classes get one scale of distances. Batches hold several
    samples of each of several classes, so classes must have several samples.

    Read more in the :ref:`User Guide <quadruplet>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    TripletEmbedder : Compares pairs that share an anchor.
    skdml.losses.QuadrupletLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] M. T. Law, N. Thome and M. Cord, "Quadruplet-wise Image Similarity Learning", ICCV 2013.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import QuadrupletEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = QuadrupletEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = QuadrupletLoss

    margin: float = 1.0

    _parameter_constraints = {**QuadrupletLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
