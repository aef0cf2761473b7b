"""Nested embeddings: a loss of the first components as well as of all of them.

Axes: B samples of a batch, D components, M samples the anchors are compared with.
"""

from torch import nn
from torch.func import functional_call

from .._network.networks import unit_rows


class NestedLoss(nn.Module):
    r"""The mean of the losses of cuts of the embeddings [1]_: of the first m components for each size m, and of all D.

    .. math:: L = \frac{1}{|M|} \sum_{m \in M} \ell(z_{1:m} / |z_{1:m}|, y), \qquad D \in M

    What the loss has learned for each component is cut with the embeddings. What it counts, such as the steps so far,
    it counts once per batch. What a batch rule found by the embeddings (margins, clusters, triplets) holds for all
    cuts.

    Parameters
    ----------
    loss : nn.Module
        Its ``_component_parameters`` are the names of the parameters whose last axis is that of the components; without
        them it has no such parameters.
    sizes : sequence of int
        The sizes m, each at most D; D need not be among them.
    normalize : bool
        Whether cuts are scaled to unit length, as the embeddings are.

    References
    ----------
    .. [1] A. Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, arXiv:2205.13147. Section 3. The
       paper takes the sum, with a weight for each size.
    """

    def __init__(self, loss, sizes, normalize):
        super().__init__()
        self.loss = loss
        self.sizes = tuple(sizes)
        self.normalize = normalize

    def forward(self, embeddings, y, *others, **weights):
        """Return the loss of a batch; the arguments are those of the loss."""
        names = getattr(self.loss, "_component_parameters", ())
        losses = []
        for m in self._cuts(embeddings):
            state = {name: buffer.clone() for name, buffer in self.loss.named_buffers()}  # no cut changes them
            state |= {name: self.loss.get_parameter(name)[..., :m] for name in names}
            losses.append(functional_call(self.loss, state, (self._first(embeddings, m), y, *others), weights))
        losses.append(self.loss(embeddings, y, *others, **weights))
        return sum(losses) / len(losses)

    def compare_with(self, embeddings, y, columns, columns_y, sample_weight=None):
        """Return the loss between a batch (B, D) and samples (M, D); see `PairLoss.compare_with`."""
        pairs = [(self._first(embeddings, m), self._first(columns, m)) for m in self._cuts(embeddings)]
        pairs.append((embeddings, columns))
        return sum(self.loss.compare_with(x, y, z, columns_y, sample_weight) for x, z in pairs) / len(pairs)

    def _cuts(self, embeddings):
        return [m for m in self.sizes if m < embeddings.shape[1]]

    def _first(self, rows, m):
        return unit_rows(rows[:, :m]) if self.normalize else rows[:, :m]


def check_nested(embedder, loss, n_components):
    """Raise a ValueError if the embedder cannot nest embeddings of this size with its loss."""
    sizes = embedder.nested_components
    name, of_loss = type(embedder).__name__, type(loss).__name__
    if sizes[-1] > n_components:
        raise ValueError(
            f"nested_components={sizes!r} of {name} goes beyond the embedding, which has {n_components} components. "
            "Leave out the larger sizes, or raise n_components."
        )
    cut = getattr(loss, "_component_parameters", ())
    if cut is None:
        raise ValueError(
            f"nested_components={sizes!r} of {name} would cut embeddings that {of_loss} splits into parts itself. Set "
            "nested_components=None, or use an embedder whose loss takes the embedding as a whole, such as RAWEmbedder."
        )
    if hasattr(loss, "_component_parameters"):
        return
    for parameter, value in loss.named_parameters():
        if n_components in value.shape:
            raise ValueError(
                f"nested_components={sizes!r} of {name} would have to cut {parameter} of {of_loss}, of shape "
                f"{tuple(value.shape)}, but it is not known which of its axes are components. Set "
                "nested_components=None, and let the loss itself compare the first components, embeddings[:, :m]."
            )
