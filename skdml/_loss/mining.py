"""Which pairs of a batch count.

Axes: B anchors, M samples they are compared with, D components.
"""

import torch

from .similarities import squared_distances
from .terms import log_sum_exp, most


def vthm(S, positive, negative, margin=0.1):
    """Keep the pairs that violate the order of a triplet, or nearly do: valid triplet based hard mining.

    A negative counts if it is more similar to the anchor than the least similar positive minus the margin, a positive
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
    The usual form of [1]_ for batches; [1]_ requires 0 < d_an - d_ap < margin. See `semihard_negatives`.

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

    Strictly less similar. Where there is none, it is the index of the easiest negative, in a row without negatives any.
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
        One pair per row in each, the one of lowest index among equals; none for an anchor without positives or without
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


def distance_weighted(S, positive, negative, n_components, *, cutoff=0.5, max_distance=1.4, generator=None):
    """Keep all positives of an anchor, and draw as many negatives by `distance_log_probabilities` [1]_.

    The draws are without replacement.

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
    generator : torch.Generator or None, default=None
        Where the draws come from, on the device. None: torch's global generator.

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
    # The largest values of log p plus Gumbel noise are a draw without replacement.
    key = log_p - torch.empty_like(S).exponential_(generator=generator).log()
    n_drawn = positive.sum(dim=1, keepdim=True)
    least = key.topk(most(n_drawn, S.shape[1]), dim=1).values.gather(1, (n_drawn - 1).clamp_(min=0))  # (B, 1)
    return positive, (key >= least) & (n_drawn > 0) & (log_p > -torch.inf)


def distance_log_probabilities(S, negative, n_components, *, cutoff=0.5, max_distance=1.4):
    r"""Return the log probability of drawing each negative of an anchor, so that all distances are equally likely.

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
        Distances below this one count as this one, which bounds the weight of the nearest.
    max_distance : float, default=1.4
        Negatives at this distance or farther are not drawn unless an anchor has no nearer one: then all its negatives
        are equally likely.

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
    evenly = torch.where(negative, torch.zeros_like(log_q), -torch.inf)
    weights = torch.where(near, -log_q, -torch.inf).where(admissible, evenly)
    return weights - log_sum_exp(weights, weights > -torch.inf)[0][:, None]
