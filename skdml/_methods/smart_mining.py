"""Smart mining: triplets from neighbor lists of the whole training set, at a hardness that a controller sets.

Axes: B samples of a batch, T triplets, N samples of the training set, K neighbors in a list, D components.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import nn

from .._constraints import FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_INT, Interval, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import BaseEmbedder
from .._loss.pairs import pair_masks, pair_shares
from .._loss.similarities import distance_similarities, distances, squared_distances
from .._loss.terms import check_batch, in_float32, sums_above, weighted_mean, zero_loss


class SmartMiningLoss(nn.Module):
    r"""The ratio of the two distances of a triplet, and the spread of each of them over all triplets.

    .. math::
        \ell = \frac1T \sum_{(a, p, n)} \Bigl[1 - \frac{d_{an}}{d_{ap} + m}\Bigr]_+
            + \operatorname{var}^+ + \operatorname{var}^- + \lambda \, [\mu^+ - \mu^- + t]_+

    The d are Euclidean distances; :math:`\mu^+` and :math:`\operatorname{var}^+` are mean and variance of
    :math:`d_{ap}^2 / 4` over the T triplets, :math:`\mu^-` and :math:`\operatorname{var}^-` those of
    :math:`d_{an}^2 / 4`. The first part is the triplet loss, the rest the global loss of [1]_.

    Parameters
    ----------
    margin : float, default=0.2
        Margin m, which is added to the distance d_ap of anchor and positive; > 0 (0 to 2 is the range for unit rows).
    mean_weight : float, default=0.8
        Lambda, the weight of the hinge over the means of the squared distances; >= 0.
    mean_margin : float, default=0.01
        Margin t by which the mean of d^2 / 4 over the negatives should exceed that over the positives; >= 0 (0 to 1 is
        the range for unit rows).

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D), (B,) and (T, 3).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; triplets (T, 3) or None;
    returns a scalar. Means and variances (divided by T) run over the triplets, so that a pair counts once for each
    triplet it is in. If no triplets are given, all of the batch count, in :math:`O(B^2 \log B)` time and :math:`O(B^2)`
    memory: for an anchor and a negative, only positives farther than :math:`d_{an} - m` contribute, and sums along the
    sorted row give their total. Without a triplet the loss is 0 with zero gradient. At a distance of 0, where the root
    has no slope, the gradient of the first part is 0.

    No code of the authors is public. As far as could be determined, [1]_ does not state the value of lambda; 0.8 is
    believed, but not confirmed, to be that of [2]_, from which the global loss comes.

    References
    ----------
    .. [1] B. Harwood, V. Kumar B G, G. Carneiro, I. Reid and T. Drummond, "Smart Mining for Deep Metric Learning",
       ICCV 2017, arXiv:1704.01285.
    .. [2] V. Kumar B G, G. Carneiro and I. Reid, "Learning Local Image Descriptors with Deep Siamese and Triplet
       Convolutional Networks by Minimising Global Loss Functions", CVPR 2016.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import SmartMiningLoss
    >>> embeddings = torch.tensor([[0.0], [0.8], [0.6]], requires_grad=True)
    >>> y = torch.tensor([0, 0, 1])
    >>> loss = SmartMiningLoss()(embeddings, y, torch.tensor([[0, 1, 2]]))  # 1 - 0.6 / 1 + 0.8 (0.16 - 0.09 + 0.01)
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.464
    """

    _parameter_constraints = {"margin": [POSITIVE], "mean_weight": [NON_NEGATIVE], "mean_margin": [NON_NEGATIVE]}

    def __init__(self, *, margin=0.2, mean_weight=0.8, mean_margin=0.01):
        super().__init__()
        self.margin = margin
        self.mean_weight = mean_weight
        self.mean_margin = mean_margin
        check_constraints(self, vars(self))

    @in_float32
    def forward(self, embeddings, y, triplets=None, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,) or (B, L)
            The class of each row; or, 0 and 1, which of L labels it has: rows with one in common are a positive pair.
            Not used where the triplets are given.
        triplets : int tensor of shape (T, 3) or None, default=None
            Rows of the batch: anchor, positive, negative. None: all triplets of the batch.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of the triplets of each anchor, >= 0, also in the means and variances. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight)
        if triplets is not None and (triplets.ndim != 2 or triplets.shape[1] != 3):
            raise ValueError(f"Got triplets of shape {tuple(triplets.shape)}; need (T, 3), the rows a, p and n.")
        if len(y) == 0:
            return zero_loss(self, embeddings)
        if triplets is None:
            S = distance_similarities(embeddings)  # (B, B)
            positive, negative = (mask.to(S.dtype) for mask in pair_masks(y))
            positives = negatives = S
            ratios = torch.where(negative > 0, self._ratios(distances(S), positive > 0), 0)  # (B, B)
            # The number of triplets that a pair is in: as many as its anchor has pairs of the other sign.
            n_positive = positive * negative.sum(dim=1, keepdim=True)
            n_negative = negative * positive.sum(dim=1, keepdim=True)
        else:
            anchor, *others = embeddings[triplets.T]  # (T, D) each
            positives, negatives = (1 - (anchor - x).square().sum(dim=1, keepdim=True) / 2 for x in others)  # (T, 1)
            ratios = (1 - distances(negatives) / (distances(positives) + self.margin)).relu()
            n_positive = n_negative = torch.ones_like(positives)
            sample_weight = None if sample_weight is None else sample_weight[triplets[:, 0]]
        ratio = weighted_mean(ratios, sample_weight, n_positive)
        share_positive, share_negative = (pair_shares(n, sample_weight) for n in (n_positive, n_negative))
        mean_positive, variance_positive = _moments(squared_distances(positives) / 4, share_positive)
        mean_negative, variance_negative = _moments(squared_distances(negatives) / 4, share_negative)
        means = (mean_positive - mean_negative + self.mean_margin).relu().where(share_positive.sum() > 0, 0)
        return ratio + variance_positive + variance_negative + self.mean_weight * means

    def _ratios(self, distance, positive):
        """Return for every pair (a, n) the sum of [1 - d_an / (d_ap + m)]+ over the positives p of a, (B, B)."""
        keys = distance.detach()
        number, total = sums_above(1 / (distance + self.margin), keys, positive, keys - self.margin)
        return number - distance * total


def _moments(values, weights):
    """Return the mean and the variance of values under weights that sum to 1; 0 where the weights are 0."""
    mean = (weights * values).sum()
    return mean, (weights * (values - mean).square()).sum()


class SmartBatches:
    r"""Triplets that are hard but not too hard, mined once an epoch from the whole training set: smart mining [1]_.

    Every sample with a positive is an anchor ``n_triplets`` times. In the first two epochs its positives and negatives
    are random. From the third on it has the exact list of its ``n_neighbors`` nearest samples, by the embeddings at the
    start of the epoch. Its negatives are the nearest in the list with :math:`d_{an}^2 > \kappa d_{ap}^2` for its
    nearest positive p, each negative once. The positive for a negative is the nearest one in the list that is farther
    than the negative, so that the triplet is violated; if there is none, it is a random positive outside the list, or,
    where the list holds all, the farthest. Where the list has too few negatives, random triplets fill up.

    The controller sets kappa. For each previous epoch it keeps the share of active triplets, measured by the embeddings
    after the epoch, and kappa (for random triplets the median ratio of the two squared distances); it fits kappa as a
    linear function of the share by least squares and takes the value at ``target_error``. A line that does not fall, as
    when both only follow the training, is not informative: then the last kappa is scaled by the ratio of the last share
    to the target. A step at most halves or doubles kappa.

    A batch holds ``batch_size // 3`` triplets in random order, as the rows of the anchors, then the positives, then the
    negatives, and with them the triplets (T, 3) as rows of the batch. A sample may occur more than once.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), values 0..C-1, each present
    batch_size : int
    n_triplets, n_neighbors : int
    target_error : float
    margin : float
        m of the loss: a triplet is active at :math:`d_{an} < d_{ap} + m`.

    References
    ----------
    .. [1] B. Harwood, V. Kumar B G, G. Carneiro, I. Reid and T. Drummond, "Smart Mining for Deep Metric Learning",
       ICCV 2017. Section 3.
    """

    def __init__(self, y, batch_size, n_triplets, n_neighbors, target_error, margin):
        self.y = torch.from_numpy(y)
        self.n_triplets_per_batch = batch_size // 3
        self.n_triplets = n_triplets
        self.n_neighbors = n_neighbors
        self.target_error = target_error
        self.margin = margin
        self.history = []  # of (share of active triplets, kappa)
        self.last = None  # the triplets of the previous epoch, and their kappa

    def __call__(self, generator, embed):
        embeddings = embed()
        y = self.y.to(generator.device)
        if self.last is not None:
            a, p, n = (embeddings[rows.to(embeddings.device)] for rows in self.last[0].T)
            active = (a - n).norm(dim=1) < (a - p).norm(dim=1) + self.margin
            self.history.append((active.double().mean().item(), self.last[1]))
        triplets = random_triplets(y, self.n_triplets, generator)
        if len(triplets) == 0:  # partial_fit on a single class
            return []
        if len(self.history) < 2:
            kappa = self._kappa_of(embeddings, y, triplets)
        else:
            kappa = fit_kappa(self.history, self.target_error)
            triplets = smart_triplets(embeddings, y, triplets, kappa, self.n_triplets, self.n_neighbors, generator)
        self.last = triplets, kappa

        triplets = triplets[torch.randperm(len(triplets), generator=generator, device=generator.device)]
        batches = []
        for part in triplets.tensor_split(-(-len(triplets) // self.n_triplets_per_batch)):
            places = torch.arange(part.numel(), device=embeddings.device).view(3, -1).T  # (T, 3)
            batches.append((part.T.flatten(), places))
        return batches

    def _kappa_of(self, embeddings, y, triplets):
        """Return the median ratio of the squared distances of an anchor to its negative and to its nearest positive."""
        a, _, n = triplets[: len(triplets) // self.n_triplets].T  # every anchor once
        nearest = torch.cat(
            [
                torch.where((y[rows, None] == y).to(distance.device), distance, torch.inf).amin(dim=1)
                for rows, distance in _blocks(embeddings, a)
            ]
        )
        a, n = a.to(embeddings.device), n.to(embeddings.device)
        ratios = (embeddings[a] - embeddings[n]).square().sum(dim=1) / nearest
        return ratios[ratios.isfinite()].median().nan_to_num(1.0).item()


def fit_kappa(history, target_error):
    """Return the next kappa.

    Parameters
    ----------
    history : list of (float, float)
        Share of active triplets and kappa of each epoch so far.
    target_error : float
        The target of that share.
    """
    error, kappa = np.array(history).T
    deviation = error - error.mean()
    slope = deviation @ kappa / max(deviation @ deviation, 1e-12)
    on_line, scaled = kappa.mean() + slope * (target_error - error.mean()), kappa[-1] * error[-1] / target_error
    wanted = on_line if slope < 0 else scaled
    return float(np.clip(wanted, kappa[-1] / 2, 2 * kappa[-1]))


def random_triplets(y, n_triplets, generator):
    """Return triplets with a random positive and a random negative, (n_triplets * anchors, 3), the anchors in turn."""
    device = y.device
    order = y.argsort(stable=True)
    counts = y.bincount()
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(y), device=device)  # the place of a row in the order by class
    has_both = (counts[y] > 1) & (counts[y] < len(y))  # a positive and a negative
    anchor = has_both.nonzero().flatten().repeat(n_triplets)
    start, count = starts[y[anchor]], counts[y[anchor]]
    u, v = torch.rand(2, len(anchor), generator=generator, device=device, dtype=torch.float64)
    positive = start + (place[anchor] - start + 1 + (u * (count - 1)).long()) % count
    negative = (v * (len(y) - count)).long()
    negative = negative + count * (negative >= start)
    return torch.stack([anchor, order[positive], order[negative]], dim=1)


def smart_triplets(embeddings, y, triplets, kappa, n_triplets, n_neighbors, generator):
    """Return the random triplets (n_triplets * anchors, 3), replaced by those of `SmartBatches` where there are any."""
    device = embeddings.device
    y = y.to(device)
    triplets = triplets.view(n_triplets, -1, 3)
    mined = []
    for rows, distance in _blocks(embeddings, triplets[0, :, 0]):
        rows = rows.to(device)
        nearest, index = distance.topk(min(n_neighbors, len(y) - 1), dim=1, largest=False)  # (b, K), sorted
        same = y[rows, None] == y  # (b, N)
        in_list = torch.zeros_like(same).scatter_(1, index, True)
        distance_of_positive = torch.where(same, distance, torch.inf).amin(dim=1, keepdim=True)
        positive = same.gather(1, index)  # (b, K)
        valid = ~positive & (nearest > kappa * distance_of_positive)

        # The first valid places of the list, and the first positive behind each.
        place = (~valid).to(torch.int8).argsort(dim=1, stable=True)[:, :n_triplets]
        found = valid.gather(1, place)
        places = torch.arange(index.shape[1], device=device)
        behind = torch.where(positive, places, index.shape[1]).flip(1).cummin(dim=1).values.flip(1).gather(1, place)

        same.scatter_(1, rows[:, None], False)
        outside = same & ~in_list
        noise = torch.rand(outside.shape, generator=generator, device=generator.device, dtype=torch.float32).to(device)
        other = torch.where(outside, noise, -1).argmax(dim=1)
        other = other.where(outside.any(dim=1), torch.where(same, distance, -torch.inf).argmax(dim=1))
        has_behind = behind < index.shape[1]
        chosen = index.gather(1, behind.clamp(max=index.shape[1] - 1)).where(has_behind, other[:, None])
        mined.append(torch.stack([index.gather(1, place), chosen, found.long()], dim=2))
    negative, positive, found = torch.cat(mined).to(triplets.device).unbind(2)  # (anchors, <= n_triplets)
    triplets = triplets.clone()
    n = negative.shape[1]
    triplets[:n, :, 1] = triplets[:n, :, 1].where(found.T == 0, positive.T)
    triplets[:n, :, 2] = triplets[:n, :, 2].where(found.T == 0, negative.T)
    return triplets.view(-1, 3)


def _blocks(embeddings, rows):
    """Yield blocks of the rows, and their squared distances (b, N) to all embeddings, infinite to themselves."""
    centered = embeddings - embeddings.mean(dim=0)
    for block in rows.split(max(1, 2**23 // len(embeddings))):
        device_rows = block.to(embeddings.device)
        distance = squared_distances(distance_similarities(centered[device_rows], centered))
        yield block, distance.scatter_(1, device_rows[:, None], torch.inf)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class SmartMiningEmbedder(BaseEmbedder):
    """Smart mining: triplets from neighbor lists of the whole training set, as hard as the training needs [1]_.

    From the third epoch on, a negative is near its anchor, but farther than the nearest positive by a factor kappa. A
    controller sets kappa according to how many triplets were still active in the previous epochs. The loss compares the
    two distances of a triplet, and the distributions of both over all triplets. Classes must have several samples.

    Read more in the :ref:`User Guide <smart_mining>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    n_neighbors : int, default=100
        Length of the neighbor list of a sample; >= 1.
    n_triplets : int, default=1
        Number of triplets per epoch that each sample is the anchor of; >= 1. An epoch sees three samples for each
        triplet.
    target_error : float, default=0.6
        Share of active triplets that the controller aims at; in (0, 1).
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    HTLEmbedder : Looks for near classes instead of near samples.
    skdml.losses.SmartMiningLoss : The loss on its own, for a torch loop.

    Notes
    -----
    The neighbor lists are exact; the paper approximates them by a graph. The share of active triplets is measured on
    the embeddings in evaluation mode after the epoch, not during it. A batch holds ``batch_size // 3`` triplets.

    References
    ----------
    .. [1] B. Harwood, V. Kumar B G, G. Carneiro, I. Reid and T. Drummond, "Smart Mining for Deep Metric Learning",
       ICCV 2017, arXiv:1704.01285.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import SmartMiningEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = SmartMiningEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = SmartMiningLoss
    _one_class = "mines neighbors by class"

    margin: float = 0.2
    mean_weight: float = 0.8
    mean_margin: float = 0.01
    n_neighbors: int = 100
    n_triplets: int = 1
    target_error: float = 0.6
    batch_size: int = 192

    _parameter_constraints = {
        **SmartMiningLoss._parameter_constraints,
        **BaseEmbedder._parameter_constraints,
        "n_neighbors": [POSITIVE_INT],
        "n_triplets": [POSITIVE_INT],
        "target_error": [FRACTION],
        "batch_size": [Interval(Integral, 3, None, closed="left")],
    }
    _pair_based = True

    def _make_batches(self, y):
        return SmartBatches(y, self.batch_size, self.n_triplets, self.n_neighbors, self.target_error, self.margin)
