"""Which pairs of a batch count, and what the losses over pairs share.

Axes: B samples of a batch, D components, M samples the anchors are compared with: the batch, and behind it what a
memory holds. Column j < B is sample j of the batch, so self pairs lie on the diagonal. The row of a (B, M) matrix is
the anchor.
"""

import inspect
import math
import textwrap

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ._constraints import NON_NEGATIVE, StrOptions

MINING_CONSTRAINTS = {
    "mining": [StrOptions({"vthm", "semihard", "hard", "distance_weighted"}), callable, None],
    "mining_margin": [NON_NEGATIVE],
}

# Stands once here; the docstrings of losses and embedders hold the marker MINING_PARAMETERS in its place.
MINING_DOC = """\
mining : {"vthm", "semihard", "hard", "distance_weighted"}, callable or None, default={mining}
    Which pairs of a batch count. "vthm": for each anchor the negatives more similar than its hardest positive less
    ``mining_margin``, and the positives less similar than its hardest negative plus it. "semihard": all positives, and
    for each of them the hardest negative that is still less similar, or the easiest where none is. "hard": the least
    similar positive and the most similar negative of each anchor. "distance_weighted": all positives, and as many
    negatives, drawn evenly over the distances (of unit rows). None: all pairs. A callable maps ``(S, positive,
    negative)``, the similarities (B, M) and two boolean masks with a row for each anchor, to the two masks thinned.
mining_margin : float, default=0.1
    Epsilon of "vthm", which alone uses it; >= 0, on the scale of the similarities.
"""


class PairLoss(nn.Module):
    """A loss that sees the embeddings through their similarities alone.

    A subclass writes its formula once, as ``pair_loss(S, positive, negative)``, a scalar that autograd differentiates
    in S. This class makes S and the two masks and lets ``mining`` thin the masks, so that every mining rule goes with
    every loss, and with a memory of earlier batches. A batch without a pair that counts must give 0, connected to the
    graph, with a zero gradient. To be trained with weights it also takes ``sample_weight`` (B,), or None, by name.

    Parameters
    ----------
    mining : str, callable or None
    mining_margin : float
    """

    def __init__(self, mining, mining_margin):
        super().__init__()
        self.mining = mining
        self.mining_margin = mining_margin

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        default = inspect.signature(cls).parameters.get("mining")
        if default is not None and cls.__doc__:
            shown = f'"{default.default}"' if isinstance(default.default, str) else repr(default.default)
            text = textwrap.indent(MINING_DOC.replace("{mining}", shown), "    ").strip()
            cls.__doc__ = cls.__doc__.replace("MINING_PARAMETERS", text)

    def forward(self, embeddings, y, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalised here.
        y : int tensor of shape (B,)
            The class of each row.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each row's terms as an anchor, >= 0: as if its row of similarities stood there so often, and its
            column once. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        check_batch(embeddings, y, sample_weight)
        if len(y) == 0:
            return embeddings.sum() + sum(0 * p.sum() for p in self.parameters())
        return self._compare(self._similarities(embeddings), y, y, embeddings.shape[1], sample_weight)

    def _compare(self, S, y, columns_y, n_components, sample_weight=None):
        """Return the loss from similarities (B, M), the classes (B,) and (M,) of rows and columns, D and weights."""
        selected = self.mine(S.detach(), *pair_masks(y, columns_y), n_components)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return self.pair_loss(S, *selected, **weights)

    def mine(self, S, positive, negative, n_components):
        """Select the pairs that count.

        Parameters
        ----------
        S : tensor of shape (B, M)
            Similarities, detached: no gradient flows through the choice.
        positive, negative : bool tensor of shape (B, M)
            The pairs to select from.
        n_components : int
            D, which "distance_weighted" depends on.

        Returns
        -------
        tuple of two bool tensors of shape (B, M)
            The pairs selected, positive and negative.
        """
        match self.mining:
            case None:
                return positive, negative
            case "vthm":
                return vthm(S, positive, negative, self.mining_margin)
            case "semihard":
                return semihard(S, positive, negative)
            case "hard":
                return hard(S, positive, negative)
            case "distance_weighted":
                return distance_weighted(S, positive, negative, n_components)
            case rule:
                return rule(S, positive, negative)

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the loss as a function of similarities, over the pairs in two masks.

        Parameters
        ----------
        S : tensor of shape (B, M), M >= B
            Similarities, see ``_similarities``. Of a batch alone M is B.
        positive, negative : bool tensor of shape (B, M)
            Which pairs count, the row being the anchor. No self pairs.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each anchor, >= 0. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pair_loss(S, positive, negative).")

    def _similarities(self, embeddings, columns=None):
        """Return the similarities S of the embeddings (B, D) to the columns (M, D), by default the embeddings.

        Dot products, or `distance_similarities` for a loss of distances.
        """
        return dot_products(embeddings, columns)


def check_batch(embeddings, y, sample_weight=None):
    """Raise a ValueError unless the shapes are (B, D), (B,) and (B,): labels (B, 1) would broadcast to wrong pairs."""
    if embeddings.ndim != 2 or y.shape != embeddings.shape[:1]:
        raise ValueError(
            f"Got embeddings of shape {tuple(embeddings.shape)} and y of shape {tuple(y.shape)}; need (B, D) and (B,). "
            "Give one row of embeddings a sample; flatten y with y.flatten()."
        )
    if sample_weight is not None and sample_weight.shape != y.shape:
        raise ValueError(
            f"Got sample_weight of shape {tuple(sample_weight.shape)} for {len(y)} rows; need (B,), one weight a row."
        )


def weighted_mean(terms, sample_weight=None, counted=None):
    """Return the mean of the terms of all anchors, each with its anchor's weight.

    Parameters
    ----------
    terms : tensor of shape (B, ...)
        The terms of each anchor, 0 where they do not count.
    sample_weight : tensor of shape (B,) or None, default=None
        None: ones.
    counted : bool or int tensor of shape (B, ...) or None, default=None
        Which terms count, or how many of an anchor; not necessarily of the shape of the terms. None: the terms are one
        an anchor, (B,), and all count.

    Returns
    -------
    tensor of shape ()
        0 with zero gradient where nothing counts, or only with weight 0.
    """
    if sample_weight is None:
        return terms.mean() if counted is None else terms.sum() / counted.sum().clamp(min=1)
    w = sample_weight.to(terms.dtype)
    total = w.sum() if counted is None else w @ _row_sums(counted).to(terms.dtype)
    return w @ _row_sums(terms) / total.where(total > 0, 1)


def _row_sums(terms):
    return terms.reshape(len(terms), -1).sum(dim=1)


def pair_shares(mask, sample_weight=None):
    """Return the share of each pair in the sum over the mask (B, M) where a pair has its anchor's weight, (B, M).

    The shares sum to 1, or to 0 where no pair counts. The mask holds floats.
    """
    weights = mask if sample_weight is None else sample_weight[:, None].to(mask.dtype) * mask
    total = weights.sum()
    return weights / total.where(total > 0, 1)


def pair_masks(y, columns_y=None):
    """Return two boolean masks (B, M): pairs of one class without the self pairs, and pairs of two classes.

    ``columns_y`` are the classes (M,) of the columns, the batch's own first; by default they are y. Self pairs are left
    out by index. To tell them by a similarity of 1 would drop duplicates too, and keep those self pairs that rounding
    puts below 1.
    """
    same = y[:, None] == (y if columns_y is None else columns_y)  # (B, M)
    negative = ~same
    return same.fill_diagonal_(False), negative


def dot_products(embeddings, columns=None):
    """Return the dot products (B, M) of the rows of embeddings (B, D) and columns (M, D), by default the embeddings."""
    return _Gram.apply(embeddings) if columns is None else embeddings @ columns.T


def distance_similarities(embeddings, columns=None):
    """Return 1 - d^2 / 2 for the Euclidean distances d, (B, M): for unit rows the dot products, and no diagonal needed.

    So a loss of distances is a function of similarities, for rows of any length: d^2 = 2 - 2 s.
    """
    # Distances do not depend on the origin; with one among the samples, cancellation costs fewer of their digits.
    origin = embeddings[0].detach()
    rows = embeddings - origin  # (B, D)
    if columns is None:
        S, norms = dot_products(rows), rows.square().sum(dim=1)
        half_norms = (norms[:, None] + norms) / 2
    else:
        columns = columns - origin
        S = dot_products(rows, columns)
        half_norms = (rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)) / 2
    return (1 + (S - half_norms)).clamp(max=1)


def squared_distances(S):
    """Return d^2 = 2 - 2 s, at least 0."""
    return (2 - 2 * S).clamp(min=0)


def distances(S):
    """Return d = sqrt(2 - 2 s); at d = 0, where the root has no slope, the gradient is 0."""
    squares = squared_distances(S)
    return torch.where(squares > 0, squares, 1).sqrt().where(squares > 0, 0)


class _Gram(Function):
    """X X^T, whose backward pass is one product; autograd, not knowing that the factors are one, takes two."""

    @staticmethod
    def forward(ctx, X):
        ctx.save_for_backward(X)
        return X @ X.T

    @staticmethod
    @once_differentiable
    def backward(ctx, G):
        (X,) = ctx.saved_tensors
        # A transposed copy first: the plain sum G + G.T walks along the columns and takes three times as long.
        return G.T.contiguous().add_(G) @ X


def log1p_sum_exp(S, mask, scale, threshold):
    r"""Return :math:`\log(1 + \sum_{j \in M_i} e^{a (s_{ij} - \lambda)})` for every row i.

    Parameters
    ----------
    S : tensor of shape (B, M), M >= B
        Similarities of B anchors to M samples, of which the first B are the anchors themselves.
    mask : bool tensor of shape (B, M)
        Row i is the set M_i, without i itself. An empty set gives 0 with zero gradient.
    scale : float
        a, of any sign.
    threshold : float
        Lambda.

    Returns
    -------
    tensor of shape (B,)
        Finite however large the exponents.
    """
    return _Log1pSumExp.apply(S, mask, scale, threshold)


class _Log1pSumExp(Function):
    """A log-softmax over each row in which the self pair, never in the mask, takes the place of the 1 = e^0."""

    @staticmethod
    def forward(ctx, S, mask, scale, threshold):
        z = torch.where(mask, (S - threshold).mul_(scale), -torch.inf).fill_diagonal_(0)  # (B, M)
        log_weights = torch.log_softmax(z, dim=1)  # (B, M)
        ctx.scale = scale
        ctx.save_for_backward(log_weights)
        return -log_weights.diagonal()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (log_weights,) = ctx.saved_tensors
        return log_weights.exp().mul_(ctx.scale * grad[:, None]).fill_diagonal_(0), None, None, None


def rows_at(x, index):
    """Return x[index], with a gradient that adds in a fixed order: that of an index in brackets does not on the CPU."""
    rows = F.embedding(index, x.reshape(len(x), math.prod(x.shape[1:])))
    return rows.reshape(*index.shape, *x.shape[1:])


def sums_at(index, values, size):
    """Return the sums (size,) of the values with each index, added in a fixed order on the CPU and on CUDA."""
    index, values = index.flatten(), values.flatten()
    sums = values.new_zeros(size)
    if values.device.type == "cpu":
        return sums.scatter_add(0, index, values)  # on CUDA in any order
    return sums.index_put((index,), values, accumulate=True)  # on the CPU in any order


def most(counts, bound):
    """Return the largest of the counts, at least 1, where it can be read without waiting for a device; else a bound."""
    return max(1, int(counts.max())) if counts.device.type == "cpu" else bound


def log_sum_exp(z, mask):
    r"""Return :math:`\log \sum_{j \in M_i} e^{z_{ij}}` for every row i, and which rows have a nonempty set M_i.

    Parameters
    ----------
    z : tensor of shape (B, M)
        Exponents, finite.
    mask : bool tensor of shape (B, M)
        Row i is the set M_i.

    Returns
    -------
    value : tensor of shape (B,)
        0 with zero gradient for an empty set.
    nonempty : bool tensor of shape (B,)
    """
    nonempty = mask.any(dim=1)
    z = torch.where(mask, z, -torch.inf)
    return torch.where(nonempty[:, None], z, 0).logsumexp(dim=1).where(nonempty, 0), nonempty


def vthm(S, positive, negative, margin=0.1):
    """Keep the pairs that break the order of a triplet, or would within a margin: valid triplet based hard mining.

    A negative counts if it is more similar to the anchor than the least similar positive less the margin, a positive
    if it is less similar than the most similar negative plus the margin. Both inequalities are strict. An anchor
    without positives or without negatives selects nothing.

    Parameters
    ----------
    S : tensor of shape (B, M)
        Similarities.
    positive, negative : bool tensor of shape (B, M)
        The pairs to select from.
    margin : float, default=0.1
        Epsilon of the paper; >= 0, on the scale of S.

    Returns
    -------
    positive, negative : bool tensor of shape (B, M)
        The pairs selected, by the anchor of the row: not symmetric.

    References
    ----------
    .. [1] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Section 5.1.
    """
    hardest_positive = torch.where(positive, S, torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
    hardest_negative = torch.where(negative, S, -torch.inf).amax(dim=1, keepdim=True)  # (B, 1)
    return positive & (hardest_negative + margin > S), negative & (hardest_positive - margin < S)


def semihard(S, positive, negative):
    """Keep all positives, and of the negatives those that are semi-hard for one of them.

    Parameters
    ----------
    S : tensor of shape (B, M)
        Similarities.
    positive, negative : bool tensor of shape (B, M)
        The pairs to select from.

    Returns
    -------
    positive, negative : bool tensor of shape (B, M)
        The pairs selected. An anchor without positives or without negatives selects nothing.

    Notes
    -----
    The batch form in general use of [1]_, which wants 0 < d_an - d_ap < margin: see `semihard_negatives`.

    References
    ----------
    .. [1] F. Schroff, D. Kalenichenko and J. Philbin, "FaceNet: A Unified Embedding for Face Recognition and
       Clustering", CVPR 2015. Section 3.2.
    """
    positive = positive & negative.any(dim=1, keepdim=True)
    s = torch.where(positive, S, -torch.inf).topk(most(positive.sum(dim=1), S.shape[1]), dim=1).values  # (B, K)
    chosen = torch.zeros_like(S).scatter_add_(1, semihard_negatives(s, S, negative), (s > -torch.inf).to(S.dtype))
    return positive, chosen > 0


def semihard_negatives(s, S, negative):
    """Return for similarities s (B, K) the index of the hardest negative of the row that is less similar, (B, K).

    Strictly less; where there is none, the index of the easiest negative, and in a row without negatives any index.
    """
    distance, index = torch.where(negative, -S, torch.inf).sort(dim=1)  # nearest negative first
    place = torch.searchsorted(distance, -s, right=True)
    last = negative.sum(dim=1, keepdim=True) - 1
    return index.gather(1, place.minimum(last).clamp_(min=0))


def hard(S, positive, negative):
    """Keep the least similar positive and the most similar negative of each anchor: batch hard [1]_.

    Parameters
    ----------
    S : tensor of shape (B, M)
        Similarities.
    positive, negative : bool tensor of shape (B, M)
        The pairs to select from.

    Returns
    -------
    positive, negative : bool tensor of shape (B, M)
        One pair a row in each, of equals that of lowest index; none for an anchor without positives or without
        negatives.

    References
    ----------
    .. [1] A. Hermans, L. Beyer and B. Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017,
       arXiv:1703.07737. Eq. (5).
    """
    both = positive.any(dim=1, keepdim=True) & negative.any(dim=1, keepdim=True)
    hardest_positive = torch.where(positive, S, torch.inf).argmin(dim=1, keepdim=True)  # (B, 1)
    hardest_negative = torch.where(negative, S, -torch.inf).argmax(dim=1, keepdim=True)  # (B, 1)
    none = torch.zeros_like(positive)
    return none.scatter(1, hardest_positive, both), none.scatter(1, hardest_negative, both)


def distance_weighted(S, positive, negative, n_components, *, cutoff=0.5, max_distance=1.4):
    """Keep all positives of an anchor, and draw as many of its negatives by `distance_log_probabilities` [1]_.

    The draws come from torch's generator of the device, without replacement.

    Parameters
    ----------
    S : tensor of shape (B, M)
        Similarities of unit rows.
    positive, negative : bool tensor of shape (B, M)
        The pairs to select from.
    n_components : int
        D, the dimension of the embeddings.
    cutoff, max_distance : float
        As in `distance_log_probabilities`.

    Returns
    -------
    positive, negative : bool tensor of shape (B, M)
        The pairs selected. An anchor without positives or without negatives selects nothing.

    Notes
    -----
    The authors' code draws with replacement, one negative for each positive pair.

    References
    ----------
    .. [1] C.-Y. Wu, R. Manmatha, A. J. Smola and P. Kraehenbuehl, "Sampling Matters in Deep Embedding Learning",
       ICCV 2017. Section 4.1.
    """
    positive = positive & negative.any(dim=1, keepdim=True)
    log_p = distance_log_probabilities(S, negative, n_components, cutoff=cutoff, max_distance=max_distance)
    # The largest of log p plus Gumbel noise are a draw without replacement.
    key = log_p - torch.empty_like(S).exponential_().log()
    n_drawn = positive.sum(dim=1, keepdim=True)
    least = key.topk(most(n_drawn, S.shape[1]), dim=1).values.gather(1, (n_drawn - 1).clamp_(min=0))  # (B, 1)
    return positive, (key >= least) & (n_drawn > 0) & (log_p > -torch.inf)


def distance_log_probabilities(S, negative, n_components, *, cutoff=0.5, max_distance=1.4):
    r"""Return the log probability to draw each negative of an anchor, so that all distances are drawn alike.

    Proportional to :math:`1 / q(d)`, the density of the distance of two random points on the sphere,
    :math:`q(d) = d^{D-2} (1 - d^2 / 4)^{(D-3)/2}`.

    Parameters
    ----------
    S : tensor of shape (B, M)
        Similarities of unit rows.
    negative : bool tensor of shape (B, M)
        The pairs to draw from.
    n_components : int
        D.
    cutoff : float, default=0.5
        Distances below count as this one, which bounds the weight of the nearest.
    max_distance : float, default=1.4
        Negatives this far or farther are not drawn, unless an anchor has no nearer one: then all its negatives are
        drawn alike.

    Returns
    -------
    tensor of shape (B, M)
        Each row with a negative is the log of probabilities that sum to 1; -inf where none can be drawn.
    """
    d = squared_distances(S).sqrt()  # (B, M)
    clipped = d.clamp(min=cutoff, max=max(cutoff, min(max_distance, 2 - 1e-3)))
    log_q = (n_components - 2) * clipped.log() + (n_components - 3) / 2 * torch.log1p(-clipped.square() / 4)
    near = negative & (d < max_distance)
    admissible = near.any(dim=1, keepdim=True)
    weights = torch.where(near, -log_q, -torch.inf).where(admissible, torch.where(negative, 0.0, -torch.inf))
    return weights - log_sum_exp(weights, weights > -torch.inf)[0][:, None]
