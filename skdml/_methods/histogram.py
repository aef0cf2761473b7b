"""Histogram: the overlap of the similarities of positive and of negative pairs.

Axes: B samples of a batch, M samples the anchors are compared with, R nodes of a histogram.
"""

from dataclasses import dataclass

from torch.nn import functional as F

from .._constraints import POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss, pair_shares
from .._loss.terms import sums_at


@with_shared_docs
class HistogramLoss(PairLoss):
    r"""Lower the probability that a random negative pair is more similar than a random positive pair.

    .. math::
        \ell = \sum_{r=1}^{R} h^-_r \sum_{q=1}^{r} h^+_q, \qquad
        h_r = \frac1n \sum_{(i, j)} \Bigl[1 - \frac{|s_{ij} - t_r|}{\Delta}\Bigr]_+, \qquad t_r = -1 + (r - 1) \Delta

    The histograms of the n+ positive and the n- negative pairs have R = ``n_bins`` + 1 nodes, Delta = 2 / ``n_bins``
    apart; a pair counts at the two nodes around it, in proportion to its nearness, which makes the histograms
    differentiable.

    Parameters
    ----------
    n_bins : int, default=100
        R - 1, the number of bins that the range [-1, 1] is cut into; >= 1. The result depends little on it.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; returns a scalar in [0, 1],
    a sum over all combinations of a positive and a negative pair, not only those with a common anchor. Each pair occurs
    twice in S, which does not change a histogram; with weights, mining or a memory the pairs (anchor, sample) count.
    Without positives or without negatives the loss is 0 with zero gradient, as it is when all positives are at least
    one bin above all negatives.

    Similarities beyond [-1, 1] count as -1 or 1, without gradient. The loss is linear in a similarity between two
    nodes. The gradient of a pair is the difference between two nodes of the other histogram, which is 0 where that
    histogram is empty.

    Differences from pytorch-metric-learning: equal unit rows (s = 1) fall into the last bin, whereas they make it fail;
    bins are found in the precision of the input, not always in float32; no list of triplets is made for the pairs.

    Relations: for large R the loss is 1 minus the area under the ROC curve of the pairs.

    References
    ----------
    .. [1] E. Ustinova and V. Lempitsky, "Learning Deep Embeddings with Histogram Loss", NIPS 2016. Eqs. (1)-(4).

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import HistogramLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    >>> loss = HistogramLoss()(embeddings, torch.tensor([0, 0, 1]))  # one of two negative pairs has s = 0.8 > 0.6
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.5
    """

    _parameter_constraints = {"n_bins": [POSITIVE_INT], **PairLoss._parameter_constraints}

    def __init__(self, *, n_bins=100, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.n_bins = n_bins
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the overlap of the histograms of two sets of pairs."""
        place = (S.clamp(min=-1, max=1) + 1) * (self.n_bins / 2)  # (B, M), from 0 to R - 1
        node = place.detach().long().clamp(0, self.n_bins - 1)  # (B, M), the node below; s = 1 is in the last bin
        share = place - node  # (B, M), of the node above
        positive, negative = positive.to(S.dtype), negative.to(S.dtype)
        weight = pair_shares(positive, sample_weight) + pair_shares(negative, sample_weight)  # (B, M)
        node = node + self.n_bins * negative.long()  # (B, M), of two histograms, one behind the other
        below, above = (
            sums_at(node, values * weight, 2 * self.n_bins).view(2, self.n_bins) for values in (1 - share, share)
        )
        h_positive, h_negative = F.pad(below, (0, 1)) + F.pad(above, (1, 0))  # (R,)
        return (h_negative * h_positive.cumsum(dim=0)).sum()


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class HistogramEmbedder(PairEmbedder):
    """Histogram: separates the similarities of positive pairs from those of negative pairs, with nothing to tune [1]_.

    Lowers the probability that a random negative pair is more similar than a random positive one, estimated from soft
    histograms of the batch.

    Read more in the :ref:`User Guide <histogram>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Compares the pairs of one anchor, as a nearest neighbor search does.
    skdml.losses.HistogramLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] E. Ustinova and V. Lempitsky, "Learning Deep Embeddings with Histogram Loss", NIPS 2016, arXiv:1611.00822.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import HistogramEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = HistogramEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = HistogramLoss

    n_bins: int = 100

    _parameter_constraints = {**HistogramLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
