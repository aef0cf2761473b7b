"""The terms of a loss: the check of a batch, and sums that stay finite and add in a fixed order.

Axes: B samples of a batch, M samples they are compared with.
"""

import math
from contextlib import nullcontext
from functools import wraps

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from .._labels import one_class_message


def in_float32(forward):
    """Let the forward pass of a loss compute in float32, or in float64 for embeddings in float64.

    Autocast does not lower this, nor do embeddings and parameters of less precision, whose gradients keep their dtypes.
    """

    @wraps(forward)
    def wrapper(self, embeddings, *args, **kwargs):
        device_type = embeddings.device.type
        autocast = _is_autocast(device_type)
        if embeddings.dtype == torch.float32 and not autocast:
            return forward(self, embeddings, *args, **kwargs)
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
            if all(parameter.dtype == dtype for parameter in self.parameters()):
                return forward(self, embeddings.to(dtype), *args, **kwargs)
            parameters = {name: parameter.to(dtype) for name, parameter in self.named_parameters()}
            return functional_call(self, parameters, (embeddings.to(dtype), *args), kwargs)

    return wrapper


def _is_autocast(device_type):
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def own_backward(backward):
    """Let the backward pass of a `LossFunction` compute as its forward pass does, without autocast, and only once."""

    @once_differentiable
    @wraps(backward)
    def wrapper(ctx, *grads):
        if grads[0] is None:  # nothing depends on the output
            return (None,) * len(ctx.needs_input_grad)
        device_type = grads[0].device.type
        if not _is_autocast(device_type):
            return backward(ctx, *grads)
        with torch.autocast(device_type, enabled=False):
            return backward(ctx, *grads)

    return wrapper


class LossFunction(Function):
    """A step of a loss with a backward pass of its own; ``torch.func`` needs the form with ``setup_context``.

    What the backward pass needs and the forward pass has is one more output, which has no gradient.
    """

    @classmethod
    def apply(cls, *args):
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        # torch's own apply reads the signature of forward in each call, which takes longer than the step itself.
        return super(Function, cls).apply(*args)


def check_batch(embeddings, y, sample_weight=None, *, n_classes=None, loss=None):
    """Return the labels as int64, or the indicator of several labels as bool, if a loss can take the batch.

    Parameters
    ----------
    embeddings : tensor of shape (B, D)
    y : tensor of shape (B,) or (B, L), L > 1
        Integers of any width, or booleans; which of L labels a row has, 0 and 1. Labels (B, 1) would broadcast to wrong
        pairs.
    sample_weight : tensor of shape (B,) or None, default=None
    n_classes : int or None, default=None
        Labels must be in [0, n_classes), which is checked on the CPU; elsewhere, each step would wait for the device.
        None: any integers.
    loss : nn.Module or None, default=None
        If it has a ``_one_class``, the reason why it takes one class per row, y must be (B,).

    Returns
    -------
    int64 tensor of shape (B,) or bool tensor of shape (B, L)

    Raises
    ------
    TypeError
        If y is not a tensor.
    ValueError
        If a shape is another one, y does not hold integers, or a label is out of range.
    """
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"Got y of type {type(y).__name__}; need a tensor of integers. Pass torch.as_tensor(y).")
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"Got y of {y.dtype}; need a tensor of integers, the class of each row. Pass y.long().")
    has_several = y.ndim == 2 and y.shape[1] > 1
    if has_several and (reason := getattr(loss, "_one_class", None)):
        raise ValueError(one_class_message(type(loss).__name__, reason, y.shape))
    if embeddings.ndim != 2 or (y.shape[:1] if has_several else y.shape) != embeddings.shape[:1]:
        raise ValueError(
            f"Got embeddings of shape {tuple(embeddings.shape)} and y of shape {tuple(y.shape)}; need (B, D) and (B,). "
            "Give one row of embeddings per sample; flatten y with y.flatten()."
        )
    if sample_weight is not None and sample_weight.shape != y.shape[:1]:
        raise ValueError(
            f"Got sample_weight of shape {tuple(sample_weight.shape)} for {len(y)} rows; need (B,), one weight per row."
        )
    if has_several:
        return _check_indicator(y)
    y = y.long()
    if n_classes is not None and len(y) and y.device.type == "cpu":
        low, high = map(int, y.aminmax())
        if low < 0 or high >= n_classes:
            raise ValueError(
                f"Got labels y from {low} to {high}; need 0 to {n_classes - 1}, as n_classes={n_classes}. Number the "
                "classes from 0, and leave out rows without a class: no label is ignored."
            )
    return y


def _check_indicator(y):
    """Return which labels each row has, (B, L), as booleans; the values are checked on the CPU."""
    if y.dtype == torch.bool:
        return y
    if y.device.type == "cpu" and len(y) and not ((y == 0) | (y == 1)).all():
        raise ValueError(
            f"Got y of shape {tuple(y.shape)} with values from {y.min()} to {y.max()}; need 0 and 1, which of the "
            "labels each row has. Pass y of shape (B,) for one class per row."
        )
    return y != 0


def zero_loss(loss, embeddings):
    """Return 0 that backward takes to zero gradients, in the embeddings and in the parameters of the loss."""
    return sum(tensor.flatten()[:0].sum() for tensor in (embeddings, *loss.parameters()))


def weighted_mean(terms, sample_weight=None, counted=None):
    """Return the mean of the terms of all anchors, each with its anchor's weight.

    Parameters
    ----------
    terms : tensor of shape (B, ...)
        The terms of each anchor, 0 where they do not count.
    sample_weight : tensor of shape (B,) or None, default=None
        None: ones.
    counted : bool or int tensor of shape (B, ...) or None, default=None
        Which terms count, or how many of an anchor; not necessarily of the shape of the terms. None: there is one term
        per anchor, (B,), and all count.

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
    return _Log1pSumExp.apply(S, mask, scale, threshold)[0]


class _Log1pSumExp(LossFunction):
    """A log-softmax over each row, in which the self pair, never in the mask, represents the 1 = e^0."""

    @staticmethod
    def forward(S, mask, scale, threshold):
        z = torch.where(mask, (S - threshold).mul_(scale), -torch.inf).fill_diagonal_(0)  # (B, M)
        log_weights = torch.log_softmax(z, dim=1)  # (B, M)
        return -log_weights.diagonal(), log_weights

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.scale = inputs[2]
        ctx.save_for_backward(outputs[1])
        ctx.mark_non_differentiable(outputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @own_backward
    def backward(ctx, grad, _):
        (log_weights,) = ctx.saved_tensors
        return log_weights.exp().mul_(ctx.scale * grad[:, None]).fill_diagonal_(0), None, None, None


def rows_at(x, index):
    """Return x[index], with a gradient that adds in a fixed order, which that of x[index] does not on the CPU."""
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
    """Return the largest count, at least 1, where reading it does not wait for a device; otherwise the bound."""
    return max(1, int(counts.max())) if counts.device.type == "cpu" else bound


def sums_above(values, keys, mask, thresholds):
    """Count, for every entry of a row, the keys of the row above it, and sum their values.

    Parameters
    ----------
    values : tensor of shape (B, M)
        What is summed; the gradient flows through it.
    keys : tensor of shape (B, M)
        Detached.
    mask : bool tensor of shape (B, M)
        Which keys of a row count.
    thresholds : tensor of shape (B, M)
        Detached.

    Returns
    -------
    number, total : tensors of shape (B, M)
        Over j in row i of the mask with ``keys[i, j] > thresholds[i, k]``: how many there are, and the sum of their
        values, by one sort of each row and the sums along it.
    """
    keys, index = torch.where(mask, keys, -torch.inf).sort(dim=1, descending=True)
    number = torch.searchsorted(-keys, -thresholds)
    sums = torch.where(mask, values, 0).gather(1, index).cumsum(dim=1)
    return number, F.pad(sums, (1, 0)).gather(1, number)


def mean_active_hinge(distance, positive, negative, margin):
    r"""Return the mean of :math:`d_p - d_n + m` over the pairs (p, n) of a row where it is above 0.

    A row's p and n are its positives and negatives, and the mean is one over all rows.

    Parameters
    ----------
    distance : tensor of shape (R, M)
    positive, negative : tensor of shape (R, M)
        Boolean masks, or weights >= 0: a term has the weight of its p times that of its n.
    margin : float

    Returns
    -------
    tensor of shape ()
        0 with zero gradient where nothing is active.
    """
    counts, n_active = active_counts(distance.detach(), positive, negative, margin)
    # The sum of the active terms: each distance times how often it occurs, which is also its gradient.
    shares = counts / n_active.where(n_active > 0, 1)
    return (shares * distance).sum() + margin * (n_active > 0).to(distance.dtype)


def active_counts(distance, positive, negative, margin):
    """Count the active terms of each positive and, with minus, of each negative (R, M), and of all ().

    A term, of p and n of one row, is active if d_p > d_n - margin; given weights, it counts with those of p and n
    multiplied. By sorting the positives, as they are few, in O(R M log M).
    """
    is_positive = positive > 0
    K = most(is_positive.sum(dim=1), distance.shape[1])
    ranked, index = torch.where(is_positive, distance, torch.inf).topk(K, dim=1, largest=False)  # (R, K), rising
    n_inactive = torch.searchsorted(ranked, distance - margin, right=True)  # (R, M), of a negative's positives
    positive, negative = positive.to(distance.dtype), negative.to(distance.dtype)
    # Sums from the active end, small where few are active, so that weights lose no digits to a difference.
    sums = positive.gather(1, index).flip(1).cumsum(dim=1).flip(1)  # (R, K), over the ranks from r on
    farther = F.pad(sums, (0, 1)).gather(1, n_inactive) * negative  # (R, M)
    first = (K + 1) * torch.arange(len(distance), device=distance.device)[:, None]
    histogram = sums_at(first + n_inactive, negative, len(distance) * (K + 1)).view(-1, K + 1)
    # The positive of rank r, from 0, is active with the negatives that have at most r inactive positives.
    nearer = torch.zeros_like(distance).scatter_(1, index, histogram.cumsum(dim=1)[:, :-1]) * positive
    return nearer - farther, farther.sum()
