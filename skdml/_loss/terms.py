"""The terms of a loss: the check of a batch, and sums that stay finite and add in a fixed order.

Axes: B samples of a batch, M samples they are compared with.
"""

import math

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


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
