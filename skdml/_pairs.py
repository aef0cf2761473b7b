"""Which pairs of a batch count, and what the losses over pairs share.

Axes: B samples of a batch, D components. The row of a (B, B) matrix is the anchor.
"""

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._constraints import NON_NEGATIVE, StrOptions


class PairLoss(nn.Module):
    """A loss that sees the embeddings through their similarities alone.

    A subclass writes its formula once, as ``pair_loss(S, positive, negative)``, a scalar that autograd differentiates
    in S. This class makes S and the two masks and lets ``mining`` thin the masks, so that every mining rule goes with
    every loss. A batch without a pair that counts must give 0, connected to the graph, with a zero gradient.

    Attributes
    ----------
    mining : str, callable or None
        A name in `MINING_RULES`, called with ``mining_margin`` as its last argument; a callable
        ``(S, positive, negative) -> (positive, negative)``; or None, all pairs.
    """

    mining = None

    def forward(self, embeddings, y):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalised here.
        y : int tensor of shape (B,)
            The class of each row.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        check_batch(embeddings, y)
        if len(y) == 0:
            return embeddings.sum()
        S = self._similarities(embeddings)  # (B, B)
        return self.pair_loss(S, *self.mine(S.detach(), *pair_masks(y)))

    def mine(self, S, positive, negative):
        """Select the pairs that count.

        Parameters
        ----------
        S : tensor of shape (B, B)
            Similarities, detached: no gradient flows through the choice.
        positive, negative : bool tensor of shape (B, B)
            The pairs to select from.

        Returns
        -------
        tuple of two bool tensors of shape (B, B)
            The pairs selected, positive and negative.
        """
        if self.mining is None:
            return positive, negative
        if callable(self.mining):
            return self.mining(S, positive, negative)
        return MINING_RULES[self.mining](S, positive, negative, self.mining_margin)

    def pair_loss(self, S, positive, negative):
        """Return the loss as a function of similarities, over the pairs in two masks.

        Parameters
        ----------
        S : tensor of shape (B, B)
            Dot products of the embeddings.
        positive, negative : bool tensor of shape (B, B)
            Which pairs count, the row being the anchor. No self pairs.

        Returns
        -------
        tensor of shape ()
            The loss.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pair_loss(S, positive, negative).")

    def _similarities(self, embeddings):
        return similarities(embeddings)


def check_batch(embeddings, y):
    """Raise a ValueError unless the shapes are (B, D) and (B,): labels (B, 1) would broadcast to wrong pairs."""
    if embeddings.ndim != 2 or y.shape != embeddings.shape[:1]:
        raise ValueError(
            f"Got embeddings of shape {tuple(embeddings.shape)} and y of shape {tuple(y.shape)}; need (B, D) and (B,). "
            "Give one row of embeddings a sample; flatten y with y.flatten()."
        )


def pair_masks(y):
    """Return two boolean masks (B, B): pairs of one class without the self pairs, and pairs of two classes.

    Self pairs are left out by index. To tell them by a similarity of 1 would drop duplicates too, and keep those self
    pairs that rounding puts below 1.
    """
    same = y[:, None] == y  # (B, B)
    negative = ~same
    return same.fill_diagonal_(False), negative


def similarities(embeddings):
    """Return the dot products X X^T, (B, B), of the rows of X, (B, D)."""
    return _Similarities.apply(embeddings)


class _Similarities(Function):
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


def vthm(S, positive, negative, margin=0.1):
    """Keep the pairs that break the order of a triplet, or would within a margin: valid triplet based hard mining.

    A negative counts if it is more similar to the anchor than the least similar positive less the margin, a positive
    if it is less similar than the most similar negative plus the margin. Both inequalities are strict. An anchor
    without positives or without negatives selects nothing.

    Parameters
    ----------
    S : tensor of shape (B, B)
        Similarities.
    positive, negative : bool tensor of shape (B, B)
        The pairs to select from.
    margin : float, default=0.1
        Epsilon of the paper; >= 0, on the scale of S.

    Returns
    -------
    positive, negative : bool tensor of shape (B, B)
        The pairs selected, by the anchor of the row: not symmetric.

    References
    ----------
    .. [1] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Section 5.1.
    """
    hardest_positive = torch.where(positive, S, torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
    hardest_negative = torch.where(negative, S, -torch.inf).amax(dim=1, keepdim=True)  # (B, 1)
    return positive & (hardest_negative + margin > S), negative & (hardest_positive - margin < S)


# Each is called as rule(S, positive, negative, margin) and returns the two masks, thinned.
MINING_RULES = {"vthm": vthm}

MINING_CONSTRAINTS = {"mining": [StrOptions(set(MINING_RULES)), callable, None], "mining_margin": [NON_NEGATIVE]}
