"""Contrastive: positives pulled, negatives beyond a threshold pushed, all alike.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

from dataclasses import dataclass

import torch

from .._constraints import FINITE, POSITIVE, StrOptions, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.similarities import distance_similarities, distances, squared_distances
from .._loss.terms import weighted_mean


@with_shared_docs
class ContrastiveLoss(PairLoss):
    r"""Pull every positive of an anchor, and push every negative that is more similar than a threshold.

    .. math::
        \ell_{\text{cosine}} = \frac1B \sum_i \Bigl\{
            \sum_{k \in N_i} [s_{ik} - \lambda]_+ - \sum_{k \in P_i} s_{ik} \Bigr\}

    .. math::
        \ell_{\text{euclidean}} = \frac1B \sum_i \Bigl\{
            \sum_{k \in P_i} \tfrac12 d_{ik}^2 + \sum_{k \in N_i} \tfrac12 [m - d_{ik}]_+^2 \Bigr\}

    The first is Eq. (5) of [1]_, on similarities; the second is the original [2]_, on Euclidean distances. P_i and N_i
    are the positives and the negatives of anchor i.

    Parameters
    ----------
    threshold : float, default=0.5
        Lambda in Eq. (5) of [1]_, the similarity above which a negative is pushed. Used only with ``metric="cosine"``.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": Eq. (5) of [1]_, on dot products. "euclidean": the original loss [2]_, on Euclidean distances.
    margin : float, default=1.0
        Distance m below which a negative is pushed; > 0, in the units of the embeddings (unit rows lie at most 2
        apart). Used only with ``metric="euclidean"``.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected with "cosine", any with "euclidean"); y (B,)
    integers; returns a scalar: the sum over an anchor's pairs, the mean over all B anchors. A pair of the batch counts
    twice, once from each end. An anchor without positives keeps its negative terms, and vice versa. A batch without
    pairs gives 0 with zero gradient. With "cosine" the value may be negative. At s = lambda or d = m a pair is
    inactive; a negative at d = 0, where d has no slope, gets no push.

    With "cosine" the gradient in s_ij times B is -1 for a positive pair, and 1 for a negative pair with s > lambda,
    the weights of Eq. (6).

    Differences: four functions go by this name in public code.

    - The code of the first author of [1]_, and that of [3]_, sum 1 - s over positives and s over negatives with
      s > lambda, and divide by B. The gradient is that of Eq. (5); the value jumps by lambda where a pair becomes
      active, and lies higher by the number of positives per anchor. Both leave out self pairs by value; here it is done
      by index.
    - The deepml code hinges squared distances, :math:`[m - d^2]_+`, without the halves. For unit rows this is twice
      Eq. (5) with lambda = 1 - m / 2, up to a constant.
    - pytorch-metric-learning hinges plain distances, and averages each side over its terms that are not 0.
    - The original has the two squares of the second formula, for one pair; here their mean is taken over anchors.

    References
    ----------
    .. [1] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Eqs. (5) and (6).
    .. [2] R. Hadsell, S. Chopra and Y. LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.
    .. [3] X. Wang, H. Zhang, W. Huang and M. R. Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import ContrastiveLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], requires_grad=True)
    >>> loss = ContrastiveLoss()(embeddings, torch.tensor([0, 0, 1]))  # s = 0.8; 0.6 and 0.96 are beyond 0.5
    >>> loss.backward()
    >>> round(loss.item(), 4)  # 2 (0.1 + 0.46 - 0.8) / 3
    -0.16
    """

    _parameter_constraints = {
        "threshold": [FINITE],
        "metric": [StrOptions({"cosine", "euclidean"})],
        "margin": [POSITIVE],
        **PairLoss._parameter_constraints,
    }

    def __init__(self, *, threshold=0.5, metric="cosine", margin=1.0, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.threshold = threshold
        self.metric = metric
        self.margin = margin
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the loss over the pairs in two masks."""
        if self.metric == "cosine":
            pull, push = -S, (S - self.threshold).relu()  # (B, M)
        else:
            pull, push = squared_distances(S) / 2, (self.margin - distances(S)).relu().square() / 2  # (B, M)
        losses = torch.where(positive, pull, torch.where(negative, push, 0)).sum(dim=1)  # (B,)
        return weighted_mean(losses, sample_weight)

    def _similarities(self, embeddings, columns=None):
        if self.metric == "cosine":
            return super()._similarities(embeddings, columns)
        return distance_similarities(embeddings, columns)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class ContrastiveEmbedder(PairEmbedder):
    """Contrastive: positive pairs are pulled, negative pairs beyond a threshold pushed, with equal weights [1]_ [2]_.

    The simplest loss over pairs, and the one that the cross-batch memory was designed for (``memory_size``). Batches
    hold several samples of each of several classes, so classes must have several samples.

    Read more in the :ref:`User Guide <contrastive>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Weights pairs by their hardness.
    skdml.losses.ContrastiveLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] "A unified view of deep metric learning via gradient analysis", submission to ICLR 2019. Eqs. (5) and (6).
    .. [2] R. Hadsell, S. Chopra and Y. LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import ContrastiveEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = ContrastiveEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = ContrastiveLoss

    threshold: float = 0.5
    metric: str = "cosine"
    margin: float = 1.0

    _parameter_constraints = {**ContrastiveLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
