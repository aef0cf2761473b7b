"""What the losses over proxies share.

Axes: B samples of a batch, D components, C classes.
"""

import torch
from torch import nn

from .._constraints import POSITIVE_INT
from .terms import check_batch, in_float32, weighted_mean, zero_loss


class ProxyLoss(nn.Module):
    """A loss that compares samples with learned proxies of the classes.

    A subclass makes its proxies in ``__init__`` and writes its formula once, as ``_sample_losses(embeddings, y)``: the
    term of each sample, of which this class takes the weighted mean. A loss that is more than such a mean has its own
    ``_batch_loss``. Neither meets an empty batch.

    Parameters
    ----------
    n_classes : int
        C; >= 1.
    n_components : int
        D, the dimension of the embeddings; >= 1.
    """

    _one_class: str | None = "learns proxies of the classes"

    _parameter_constraints = {"n_classes": [POSITIVE_INT], "n_components": [POSITIVE_INT]}

    def __init__(self, n_classes, n_components):
        super().__init__()
        self.n_classes = n_classes
        self.n_components = n_components

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
        return self._batch_loss(embeddings, y, sample_weight)

    def _batch_loss(self, embeddings, y, sample_weight):
        return weighted_mean(self._sample_losses(embeddings, y), sample_weight)

    def _sample_losses(self, embeddings, y):
        """Return the term of each sample, (B,), for embeddings (B, D) and their classes (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define _sample_losses(embeddings, y).")

    def _is_own(self, y):
        """Return whether a class is that of a sample, (B, C)."""
        # Unlike a comparison, a scatter stops on CUDA where a class is out of range, without waiting for the device.
        return y.new_zeros(len(y), self.n_classes, dtype=torch.bool).scatter_(1, y[:, None], True)
