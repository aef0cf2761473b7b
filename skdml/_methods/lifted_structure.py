"""Lifted structure: the soft hardest positive of an anchor against its soft hardest negative.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .._constraints import FINITE, StrOptions, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.similarities import distance_similarities, distances
from .._loss.terms import log_sum_exp, weighted_mean


@with_shared_docs
class LiftedStructureLoss(PairLoss):
    r"""Bring the positives of an anchor closer than its negatives by a margin, both weighted by a softmax.

    .. math::
        \ell_{\text{generalized}} = \frac1B \sum_i \Bigl[
            \log \sum_{k \in P_i} e^{d_{ik}} + \log \sum_{k \in N_i} e^{m - d_{ik}} \Bigr]_+

    .. math::
        \ell_{\text{original}} = \frac1{|P|} \sum_{(i, j) \in P} \tfrac12 \Bigl[
            d_{ij} + \log \Bigl( \sum_{k \in N_i} e^{m - d_{ik}} + \sum_{k \in N_j} e^{m - d_{jk}} \Bigr) \Bigr]_+^2

    The first is the form of [2]_, with Euclidean distances d; with 1 - s in place of d it is Eq. (9) of [3]_. The
    second is that of the paper [1]_. P_i and N_i are the positives and the negatives of anchor i that ``mining``
    selects, P are all positive pairs that it selects.

    Parameters
    ----------
    margin : float, default=1.0
        Margin m by which negatives should be farther away than positives, in units of the distance d. Lambda in Eq. (9)
        of [3]_, alpha in [1]_.
    metric : {"euclidean", "cosine"}, default="euclidean"
        What the distance d is: the Euclidean distance, or 1 - s for dot products s, as in Eq. (9) of [3]_.
    form : {"generalized", "original"}, default="generalized"
        "generalized": a hinge for each anchor [2]_. "original": a squared hinge for each positive pair, with the
        negatives of both ends [1]_.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (of any length; unit rows expected with "cosine"); y (B,)
    integers; returns a scalar. "generalized": the mean over all B anchors; an anchor without positives or without
    negatives contributes 0. "original": the mean over ordered positive pairs, which equals that over unordered ones; a
    pair whose ends have no negatives contributes 0. A batch without positive or without negative pairs gives 0 with
    zero gradient. At d = 0, where the distance has no slope, a pair gets no gradient from it. Time and memory grow as
    B^2 in either form.

    With a memory of earlier batches, "original" takes positive pairs within the batch, as it needs the negatives of
    both ends; the negatives come from all columns.

    With "generalized" and "cosine" the gradient in s_ij times B, for an anchor with a positive bracket, is :math:`-1 /
    \sum_{k \in P_i} e^{s_{ij} - s_{ik}}` for a positive pair and :math:`1 / \sum_{k \in N_i} e^{s_{ik} - s_{ij}}` for a
    negative one: the weights of Eqs. (10) and (11), where the exponents of (11) are printed with the other sign. So is
    the negative term of Eq. (9), :math:`-\log \sum_k e^{\lambda - s_{ik}}`, which would give the easiest negatives the
    most weight; here it is :math:`\log \sum_k e^{s_{ik}}`.

    Differences: [2]_ and [3]_ take all pairs, ``mining=None``. Unit rows lie at most 2 apart, so that the softmax then
    weights all pairs nearly equally and the hinge never closes; on the bundled characters such a network was worse than
    raw pixels. Hard pairs are therefore selected by default. The code of [1]_ draws positive pairs and adds hard
    negatives of both ends to a batch; here batches are drawn by class. pytorch-metric-learning keeps one side of an
    anchor whose other side is empty. The code of the first author of [3]_ uses temperatures, 2 for positives and 40 for
    negatives, and neither hinge nor margin.

    References
    ----------
    .. [1] H. Oh Song, Y. Xiang, S. Jegelka and S. Savarese, "Deep Metric Learning via Lifted Structured Feature
       Embedding", CVPR 2016.
    .. [2] A. Hermans, L. Beyer and B. Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017,
       arXiv:1703.07737.
    .. [3] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Eqs. (9)-(11).

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import LiftedStructureLoss
    >>> embeddings = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    >>> loss = LiftedStructureLoss(margin=2.0, mining=None)(embeddings, torch.tensor([0, 0, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 4)  # anchor 0: [1 + 2 - 3]+, anchor 1: [1 + 2 - 2]+, anchor 2 has no positive
    0.3333
    """

    _parameter_constraints = {
        "margin": [FINITE],
        "metric": [StrOptions({"euclidean", "cosine"})],
        "form": [StrOptions({"generalized", "original"})],
        **PairLoss._parameter_constraints,
    }

    def __init__(self, *, margin=1.0, metric="euclidean", form="generalized", mining="vthm", mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.margin = margin
        self.metric = metric
        self.form = form
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the loss over the pairs in two masks."""
        d = distances(S) if self.metric == "euclidean" else 1 - S  # (B, M)
        push, has_negative = log_sum_exp(self.margin - d, negative)  # (B,)
        if self.form == "generalized":
            pull, has_positive = log_sum_exp(d, positive)  # (B,)
            return weighted_mean(torch.where(has_positive & has_negative, (pull + push).relu(), 0), sample_weight)
        positive, d = positive[:, : len(S)], d[:, : len(S)]  # (B, B)
        # The least number for the log of 0: infinity would be subtracted from itself where neither end has negatives.
        push = push.where(has_negative, torch.finfo(push.dtype).min)
        J = d + torch.logaddexp(push[:, None], push)  # (B, B)
        return weighted_mean(torch.where(positive, J.relu().square() / 2, 0), sample_weight, positive)

    def _similarities(self, embeddings, columns=None):
        if self.metric == "cosine":
            return super()._similarities(embeddings, columns)
        return distance_similarities(embeddings, columns)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class LiftedStructureEmbedder(PairEmbedder):
    """Lifted structure: the soft hardest positive of an anchor against its soft hardest negative [1]_ [2]_.

    The hard pairs of the batch are weighted by a softmax over the positives and one over the negatives of an anchor.
    Batches hold several samples of each of several classes, so classes must have several samples.

    Read more in the :ref:`User Guide <lifted_structure>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Its softmax also compares each pair with a threshold, and is sharper.
    skdml.losses.LiftedStructureLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] H. Oh Song, Y. Xiang, S. Jegelka and S. Savarese, "Deep metric learning via lifted structured feature
       embedding", CVPR 2016.
    .. [2] A. Hermans, L. Beyer and B. Leibe, "In defense of the triplet loss for person re-identification", 2017,
       arXiv:1703.07737.
    .. [3] "A unified view of deep metric learning via gradient analysis", submission to ICLR 2019. Eqs. (9)-(11).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import LiftedStructureEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = LiftedStructureEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = LiftedStructureLoss

    margin: float = 1.0
    metric: str = "euclidean"
    form: str = "generalized"
    mining: str | Callable | None = "vthm"

    _parameter_constraints = {**LiftedStructureLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
