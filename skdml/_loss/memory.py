"""Cross-batch memory: the pairs of a batch with the embeddings of earlier batches.

Axes: B samples of a batch, D components, M samples the anchors are compared with.
"""

import torch
from torch import nn


class CrossBatchMemory(nn.Module):
    r"""Add to a loss over pairs the same loss between the batch and a memory of the last embeddings.

    The memory is a ring that holds the batch itself and the embeddings of earlier batches, without their gradient. The
    copy of a sample of the batch is left out by index.

    Parameters
    ----------
    loss : PairLoss, or NestedLoss of one
    memory_size : int
        Number of embeddings in the memory, those of the batch included.
    memory_start : int
        Number of batches before the memory takes part.

    Notes
    -----
    Differences from the authors' code: the memory is a ring, whereas theirs overwrites the last rows; the copy of a
    sample is left out by index, whereas theirs drops positives more similar than 1 - 1e-5.

    References
    ----------
    .. [1] X. Wang, H. Zhang, W. Huang and M. R. Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020.
       Section 3.3.
    """

    def __init__(self, loss, memory_size, memory_start):
        super().__init__()
        self.loss = loss
        self.memory_size = memory_size
        self.memory_start = memory_start
        self.n_batches = 0
        self.n_rows = 0  # seen in total; the next place in the ring is this modulo its size
        self.embeddings = self.y = None

    def forward(self, embeddings, y, sample_weight=None):
        """Return the loss of a batch (B, D) with labels (B,) or (B, L) and weights (B,), with itself and the memory."""
        loss = self.loss(embeddings, y, sample_weight)
        if self.n_batches >= self.memory_start and len(y):
            loss = loss + self.memory_loss(embeddings, y, sample_weight)
        self._remember(embeddings.detach(), y)
        return loss

    def memory_loss(self, embeddings, y, sample_weight=None):
        """Return the loss between a batch and the memory, which is the batch and what earlier ones left.

        The weights are those of the batch, whose samples are the anchors.
        """
        n_kept = min(self.n_rows, max(0, self.memory_size - len(y)))
        columns, columns_y = embeddings.detach(), y
        if n_kept:
            place = torch.arange(self.n_rows - n_kept, self.n_rows, device=y.device) % self.memory_size
            columns = torch.cat([columns, self.embeddings[place]])  # (M, D), the batch first
            columns_y = torch.cat([columns_y, self.y[place]])  # (M,) or (M, L)
        return self.loss.compare_with(embeddings, y, columns, columns_y, sample_weight)

    def _remember(self, embeddings, y):
        if self.embeddings is None:
            self.embeddings = embeddings.new_empty(self.memory_size, embeddings.shape[1])
            self.y = y.new_empty(self.memory_size, *y.shape[1:])
        embeddings, y = embeddings[-self.memory_size :], y[-self.memory_size :]
        place = torch.arange(self.n_rows, self.n_rows + len(y), device=y.device) % self.memory_size
        self.embeddings[place] = embeddings
        self.y[place] = y
        self.n_rows += len(y)
        self.n_batches += 1
