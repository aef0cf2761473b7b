"""What the losses over proxies share.

Axes: B samples of a batch, D components, C classes, c of them that a training step sees.
"""

import math
from numbers import Real

import torch
from torch import nn

from .._constraints import POSITIVE_INT, Interval
from .terms import LossFunction, check_batch, in_float32, most, own_backward, weighted_mean, zero_loss

CLASS_SAMPLE_RATE = Interval(Real, 0, 1, closed="right")


class ProxyLoss(nn.Module):
    """A loss that compares samples with learned proxies of the classes.

    A subclass makes its proxies, its only parameter, in ``__init__`` and writes its formula once, as
    ``_sample_losses(embeddings, y, proxies)``: the term of each sample, of which this class takes the weighted mean. A
    loss that is more than such a mean has its own ``_batch_loss``. Neither meets an empty batch.

    Parameters
    ----------
    n_classes : int
        C; >= 1.
    n_components : int
        D, the dimension of the embeddings; >= 1.
    class_sample_rate : float, default=1.0
        Share of the classes that the loss sees in a training step; in (0, 1]. Below 1, for many thousand classes: those
        of the batch, and others drawn at random (Partial FC, An et al., CVPR 2022). Only what is learned of these
        classes gets a gradient, a sparse one, and is updated, weight decay included. An embedder then needs an
        optimizer given by name. With 1,200 classes, a share of 0.3 cost 1.1 points of Recall@1 and one of 0.1 cost 2.2,
        see :ref:`many_classes`.
    """

    _one_class: str | None = "learns proxies of the classes"

    _parameter_constraints = {"n_classes": [POSITIVE_INT], "n_components": [POSITIVE_INT]}

    _generator = None  # of the draws of classes; None: torch's global one. An embedder lends its own.

    def __init__(self, n_classes, n_components, class_sample_rate=1.0):
        super().__init__()
        self.n_classes = n_classes
        self.n_components = n_components
        self.class_sample_rate = class_sample_rate

    @property
    def _component_parameters(self):
        """The names of the parameters whose last axis is that of the components: all proxies."""
        return [name for name, _ in self.named_parameters()]

    @in_float32
    def forward(self, embeddings, y, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,)
            The class of each row, in [0, n_classes).
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each row's term in the mean, >= 0: an integer equals repeated rows. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight, n_classes=self.n_classes, loss=self)
        if len(y) == 0:
            return zero_loss(self, embeddings)
        (proxies,) = self.parameters()
        if self.training and self.class_sample_rate < 1:
            classes = self._draw_classes(y)
            proxies, y = _Rows.apply(proxies, classes), torch.searchsorted(classes, y)
        return self._batch_loss(embeddings, y, proxies, sample_weight)

    def _draw_classes(self, y):
        """Return the classes that the step sees, (c,), rising: those of the batch, and as many others as it takes."""
        C = self.n_classes
        is_present = torch.zeros(C, dtype=torch.float32, device=y.device).scatter_(0, y, 1.0)
        n_drawn = max(math.ceil(self.class_sample_rate * C), most(is_present.sum(), min(C, len(y))))
        key = torch.rand(C, generator=self._generator, dtype=torch.float32, device=y.device) + is_present
        return key.topk(n_drawn, sorted=False).indices.sort().values

    def _batch_loss(self, embeddings, y, proxies, sample_weight):
        return weighted_mean(self._sample_losses(embeddings, y, proxies), sample_weight)

    def _sample_losses(self, embeddings, y, proxies):
        """Return the term of each sample, (B,), for embeddings (B, D), their classes (B,) and proxies (C, ..., D).

        In a training step that sees a share of the classes, C counts only these.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _sample_losses(embeddings, y, proxies).")


class _Rows(LossFunction):
    """The rows of a tensor (C, ...) with distinct rising indices (c,).

    Its gradient is sparse if the tensor is a parameter; a step before this one may not take a sparse gradient.
    """

    @staticmethod
    def forward(tensor, index):
        return tensor[index]

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.shape = inputs[0].shape
        ctx.is_sparse = inputs[0].is_leaf
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @own_backward
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        if not ctx.is_sparse:
            return grad.new_zeros(ctx.shape).index_copy_(0, index, grad), None
        options = {"check_invariants": False, "is_coalesced": True}
        return torch.sparse_coo_tensor(index[None], grad, ctx.shape, **options), None


def is_own(y, n_classes):
    """Return whether a class is that of a sample, (B, C)."""
    # Unlike a comparison, a scatter stops on CUDA where a class is out of range, without waiting for the device.
    return y.new_zeros(len(y), n_classes, dtype=torch.bool).scatter_(1, y[:, None], True)
