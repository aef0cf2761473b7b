"""What the losses over pairs share.

Axes: B samples of a batch, D components, M samples the anchors are compared with: the batch, followed by what a memory
holds. Column j < B is sample j of the batch, so self pairs lie on the diagonal. The row of a (B, M) matrix is the
anchor.
"""

import torch
from torch import nn

from .._constraints import NON_NEGATIVE, StrOptions
from .mining import distance_weighted, hard, semihard, vthm
from .similarities import dot_products
from .terms import check_batch, in_float32, zero_loss


class PairLoss(nn.Module):
    """A loss that depends on the embeddings only through their similarities.

    A subclass writes its formula once, as ``pair_loss(S, positive, negative)``, a scalar that autograd differentiates
    in S. This class computes S and the two masks and lets ``mining`` thin the masks, so that every mining rule works
    with every loss, and with a memory of earlier batches. A batch without a pair that counts must give 0, connected to
    the graph, with zero gradient. To be trained with weights it also takes ``sample_weight`` (B,), or None, by name.

    Parameters
    ----------
    mining : {"vthm", "semihard", "hard", "distance_weighted"}, callable or None
        Which pairs of a batch count. "vthm": for each anchor, the negatives more similar than its hardest positive
        minus ``mining_margin``, and the positives less similar than its hardest negative plus ``mining_margin``.
        "semihard": all positives, and for each of them the hardest negative that is still less similar, or the easiest
        negative where there is none. "hard": the least similar positive and the most similar negative of each anchor.
        "distance_weighted": all positives and as many negatives, drawn evenly over the distances (of unit rows). None:
        all pairs. A callable maps ``(S, positive, negative)``, the similarities (B, M) and two boolean masks with one
        row per anchor, to the two masks of the pairs to keep.
    mining_margin : float
        Epsilon of "vthm", the only rule that uses it; >= 0, on the scale of the similarities.
    """

    _parameter_constraints = {
        "mining": [StrOptions({"vthm", "semihard", "hard", "distance_weighted"}), callable, None],
        "mining_margin": [NON_NEGATIVE],
    }

    _generator = None  # of the draws of "distance_weighted"; None: torch's global one. An embedder lends its own.
    n_classes = None  # of a loss that learns something for each class, whose labels have a range
    _component_parameters = ()  # S is all that the loss sees of the components

    def __init__(self, mining, mining_margin):
        super().__init__()
        self.mining = mining
        self.mining_margin = mining_margin

    @in_float32
    def forward(self, embeddings, y, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,) or (B, L)
            The class of each row; or, 0 and 1, which of L labels it has: rows with one in common are a positive pair.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each row's terms as an anchor, >= 0: as if its row of similarities occurred that often, and its
            column once. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight, n_classes=self.n_classes, loss=self)
        if len(y) == 0:
            return zero_loss(self, embeddings)
        return self._compare(self._similarities(embeddings), y, y, embeddings.shape[1], sample_weight)

    def compare_with(self, embeddings, y, columns, columns_y, sample_weight=None):
        """Return the loss between a batch and samples, of which the first are the batch itself.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            The anchors.
        y : int tensor of shape (B,)
            Their classes.
        columns : tensor of shape (M, D), M >= B
            What the anchors are compared with.
        columns_y : int tensor of shape (M,)
            The classes of the columns.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each anchor. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss.
        """
        S = self._similarities(embeddings, columns)  # (B, M)
        return self._compare(S, y, columns_y, embeddings.shape[1], sample_weight)

    def _compare(self, S, y, columns_y, n_components, sample_weight=None):
        """Return the loss from similarities (B, M), the classes (B,) and (M,) of rows and columns, D and weights.

        The classes may also be labels (B, L) and (M, L).
        """
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
                return distance_weighted(S, positive, negative, n_components, generator=self._generator)
            case rule:
                return rule(S, positive, negative)

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the loss as a function of similarities, over the pairs in two masks.

        Parameters
        ----------
        S : tensor of shape (B, M), M >= B
            Similarities: dot products, or 1 - d^2 / 2 for a loss of Euclidean distances d. M is B without a memory.
        positive, negative : bool tensor of shape (B, M)
            Which pairs count; the row is the anchor. There are no self pairs.
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


def pair_masks(y, columns_y=None):
    """Return two boolean masks (B, M): pairs from one class, without the self pairs, and pairs from two classes.

    ``columns_y`` are the classes (M,) of the columns, those of the batch first; by default they are y. With labels
    (B, L) and (M, L), 0 and 1, samples with a label in common count as from one class, others as from two.

    Self pairs are left out by index. Identifying them by a similarity of 1 would also drop duplicates, and keep the
    self pairs that rounding puts below 1.
    """
    columns_y = y if columns_y is None else columns_y
    if y.ndim == 2:
        same = y.to(torch.float32) @ columns_y.to(torch.float32).T > 0  # (B, M)
        same.fill_diagonal_(True)  # a row without a label has none in common with itself
    else:
        same = y[:, None] == columns_y  # (B, M)
    negative = ~same
    return same.fill_diagonal_(False), negative


def pair_shares(mask, sample_weight=None):
    """Return the share of each pair in the sum over the mask (B, M) where a pair has its anchor's weight, (B, M).

    The shares sum to 1, or to 0 where no pair counts. The mask holds floats.
    """
    weights = mask if sample_weight is None else sample_weight[:, None].to(mask.dtype) * mask
    total = weights.sum()
    return weights / total.where(total > 0, 1)
