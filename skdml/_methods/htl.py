"""HTL: the hierarchical triplet loss.

Axes: B samples of a batch, N of the training set, C classes, D components, L levels of the class tree.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import squareform
from torch import nn

from .._constraints import NON_NEGATIVE, POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.batches import BalancedBatches
from .._engine.embedder import BalancedEmbedder
from .._loss.pairs import pair_masks
from .._loss.similarities import distance_similarities, squared_distances
from .._loss.terms import check_batch, in_float32, sums_above, weighted_mean, zero_loss


class HTLLoss(nn.Module):
    r"""Triplets of a batch under a hinge, with a margin for every pair of an anchor and a negative.

    .. math::
        \ell = \frac{1}{2Z} \sum_{(a, p, n)} \bigl[d^2_{ap} - d^2_{an} + \alpha_{an}\bigr]_+

    The d are Euclidean distances. The Z triplets are all triplets of the batch: two samples of one class and one of
    another.

    Parameters
    ----------
    margin : float, default=0.1
        Beta, the constant part of the margins; >= 0, in squared distance (0 to 4 for unit rows). Where no margins are
        given, as in the first epoch of the embedder, it is the margin of all triplets.

    Raises
    ------
    ValueError
        If ``margin`` is outside its range, or the shapes of a batch are not (B, D), (B,) and (B, B).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any norm; y (B,) integers; margins (B, B) or None; returns a
    scalar, half the mean over all triplets, the inactive ones included. A batch without a triplet, and one without an
    active triplet, give 0 with zero gradient. A class with a single sample provides no anchor, but a negative to all
    others.

    For an anchor and a negative, only positives farther than :math:`d_{an}^2 - \alpha_{an}` contribute, and sums along
    the sorted row give their total: all triplets cost :math:`O(B^2 \log B)` time and :math:`O(B^2)` memory.

    Relations: with one margin for all, this is half the plain triplet loss over squared distances. `HTLEmbedder`
    provides the margins of the hierarchical triplet loss, :math:`\alpha_{an} = \beta + d_{H(y_a, y_n)} - s_{y_a}`. No
    code of the authors is public.

    References
    ----------
    .. [1] W. Ge, W. Huang, D. Dong and M. R. Scott, "Deep Metric Learning with Hierarchical Triplet Loss", ECCV 2018,
       arXiv:1810.06951.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import HTLLoss
    >>> embeddings = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    >>> y = torch.tensor([0, 0, 1])
    >>> loss = HTLLoss(margin=0.5)(embeddings, y)  # ([1 - 4 + 0.5]+ + [1 - 1 + 0.5]+) / (2 * 2)
    >>> loss.backward()
    >>> loss.item()
    0.125
    >>> HTLLoss()(embeddings, y, torch.full((3, 3), 4.0)).item()
    1.25
    """

    _parameter_constraints = {"margin": [NON_NEGATIVE]}

    def __init__(self, *, margin=0.1):
        super().__init__()
        self.margin = margin
        check_constraints(self, vars(self))

    @in_float32
    def forward(self, embeddings, y, margins=None, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,) or (B, L)
            The class of each row; or, 0 and 1, which of L labels it has: rows with one in common are a positive pair.
        margins : tensor of shape (B, B) or None, default=None
            Alpha, the margin of each anchor (row) and negative (column), of any sign. Other entries do not count. None:
            ``margin`` for all.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each anchor's triplets, >= 0. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight)
        if margins is not None and margins.shape != (len(y), len(y)):
            raise ValueError(f"Got margins of shape {tuple(margins.shape)} for {len(y)} rows; need (B, B).")
        if len(y) == 0:
            return zero_loss(self, embeddings)
        distance = squared_distances(distance_similarities(embeddings))  # (B, B)
        positive, negative = pair_masks(y)
        threshold = distance - (self.margin if margins is None else margins)
        number, total = sums_above(distance, distance.detach(), positive, threshold.detach())
        n_triplets = positive.sum(dim=1) * negative.sum(dim=1)  # (B,)
        return weighted_mean(torch.where(negative, total - number * threshold, 0), sample_weight, n_triplets) / 2


class NeighborhoodBatches:
    """Anchor neighborhoods of HTL [1]_: a batch holds random classes, each with its nearest, and their margins.

    The first epoch has P x K batches without margins, for the plain triplet loss. Every later epoch measures the
    distances between the classes again, by the embeddings at its start, and builds the class tree (`class_levels`); its
    batches are tuples of the row indices and the margins (B, B).

    A batch has ``batch_size // samples_per_class`` classes, or all if there are fewer; it then takes more samples of
    each. Classes become anchors in random order, each once before any is repeated, and bring along their
    ``n_neighbors`` nearest classes that the batch does not hold yet. The rows of a class are dealt in random order,
    each once before any is repeated. A class with fewer than ``samples_per_class`` samples contributes all it has. An
    epoch has as many batches as P x K batches without repetition.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), values 0..C-1, each present
    batch_size : int
    samples_per_class : int
    n_neighbors : int
        Classes that an anchor class brings.
    n_levels : int
        L, of the tree.
    margin : float
        Beta.

    References
    ----------
    .. [1] W. Ge, W. Huang, D. Dong and M. R. Scott, "Deep Metric Learning with Hierarchical Triplet Loss", ECCV 2018.
    """

    def __init__(self, y, batch_size, samples_per_class, n_neighbors, n_levels, margin):
        self.first = BalancedBatches(y, batch_size, samples_per_class)
        self.y = y
        self.n_neighbors = n_neighbors
        self.n_levels = n_levels
        self.margin = margin
        self.is_first = True

    def __call__(self, generator, embed):
        if self.is_first:
            self.is_first = False
            return self.first(generator)
        embeddings = embed()
        distance, within = class_distances(embeddings.cpu().numpy(), self.y)
        level, thresholds = class_levels(distance, within, self.n_levels)
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
        batches = []
        for rows in self._rows(distance, np.random.default_rng(seed)):
            c = self.y[rows]
            margins = self.margin + thresholds[level[np.ix_(c, c)]] - within[c, None]  # (B, B)
            margins = torch.from_numpy(margins).to(embeddings.device, embeddings.dtype)
            batches.append((torch.from_numpy(rows).to(generator.device), margins))
        return batches

    def _rows(self, distance, rng):
        """Yield the rows of each batch."""
        C, K = len(distance), self.first.samples_per_class
        P = self.first.n_classes_per_batch
        # P nearest are enough: a batch holds fewer than P classes when it looks for others.
        distance = distance + np.diag(np.full(C, np.inf))
        near = np.argpartition(distance, min(P, C - 1), axis=1)[:, :P]
        near = np.take_along_axis(
            near, np.take_along_axis(distance, near, axis=1).argsort(axis=1, kind="stable"), axis=1
        )
        counts = np.bincount(self.y)
        order = rng.permutation(len(self.y))
        members = np.split(order[self.y[order].argsort(kind="stable")], counts.cumsum()[:-1])
        dealt = np.zeros(C, dtype=int)
        anchors = iter(())
        for _ in range(-(-len(self.y) // (P * K))):
            classes = []
            while len(classes) < P:
                anchor = next(anchors, None)
                if anchor is None:
                    anchors = iter(rng.permutation(C))
                elif anchor not in classes:
                    others = [c for c in near[anchor] if c not in classes and c != anchor][: self.n_neighbors]
                    classes += [anchor, *others][: P - len(classes)]
            rows = []
            for c in classes:
                rows.append(members[c][(dealt[c] + np.arange(min(K, counts[c]))) % counts[c]])
                dealt[c] += len(rows[-1])
            yield np.concatenate(rows)


def class_distances(embeddings, y):
    """Return the mean squared distances between and within classes, from sums over each class.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
    y : ndarray of shape (N,), values 0..C-1, each present

    Returns
    -------
    distance : ndarray of shape (C, C), float64
        Mean over the pairs across two classes.
    within : ndarray of shape (C,), float64
        Mean over the pairs of two samples of a class; for a class of one sample, which is not an anchor, the mean of
        the others.
    """
    counts = np.bincount(y)[:, None]
    rows = embeddings[y.argsort(kind="stable")].astype(np.float64)
    rows -= rows.mean(axis=0)
    starts = counts.cumsum() - counts[:, 0]
    mean = np.add.reduceat(rows, starts, axis=0) / counts  # (C, D)
    square = np.add.reduceat(np.square(rows).sum(axis=1), starts) / counts[:, 0]
    distance = np.maximum(square[:, None] + square - 2 * mean @ mean.T, 0)
    several = counts[:, 0] > 1
    within = np.maximum(2 * (square - np.square(mean).sum(axis=1)), 0)
    within *= counts[:, 0] / np.where(several, counts[:, 0] - 1, 1)
    return distance, np.where(several, within, within[several].mean())


def class_levels(distance, within, n_levels):
    """Return the level of the class tree at which each two classes are one node, (C, C), and the thresholds (L + 1,).

    The thresholds rise in equal steps from d_0, the mean distance within a class, to 4, the largest between unit rows
    (or the largest there is, for others). Level l is the clustering of the classes by average linkage, cut at d_l:
    nodes at a distance of d_l or less have merged, where the distance of two nodes is the mean over their classes.
    """
    from scipy.cluster.hierarchy import average, cophenet  # here, since it is slow to import

    thresholds = np.linspace(within.mean(), max(4, within.mean(), distance.max()), n_levels + 1)
    merged = squareform(cophenet(average(squareform(distance, checks=False))))  # (C, C)
    return np.searchsorted(thresholds, merged).clip(max=n_levels), thresholds


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class HTLEmbedder(BalancedEmbedder):
    """Hierarchical triplet loss: similar classes share batches, and margins follow a tree of classes [1]_.

    From the second epoch on, each epoch measures the distances between the classes, merges near classes level by level,
    and requires a margin of a triplet that grows with the level at which its two classes meet. A batch holds random
    classes, each with its nearest ones. Classes must have several samples.

    Read more in the :ref:`User Guide <htl>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    n_levels : int, default=16
        L, the number of steps of the class tree; >= 1.
    n_neighbors : int, default=3
        How many of its nearest classes each random class of a batch brings along; >= 1.
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    SSTEmbedder : Batches are clusters of the samples.
    skdml.losses.HTLLoss : The loss on its own, for a torch loop.

    Notes
    -----
    The loss of an epoch is measured with its own margins, so that it may rise while the embedding improves. The tree is
    built from the embeddings in evaluation mode at the start of an epoch. Every fit, including a warm start, begins
    with an epoch of the plain triplet loss. A margin requires a little more distance between two classes than there is,
    so that with a handful of classes, which are as far apart as they can be, it is never met: the method needs many
    classes.

    References
    ----------
    .. [1] W. Ge, W. Huang, D. Dong and M. R. Scott, "Deep Metric Learning with Hierarchical Triplet Loss", ECCV 2018,
       arXiv:1810.06951.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import HTLEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = HTLEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.8)
    True
    """

    _loss_class = HTLLoss
    _one_class = "builds a tree of the classes"

    margin: float = 0.1
    n_levels: int = 16
    n_neighbors: int = 3

    _parameter_constraints = {
        **HTLLoss._parameter_constraints,
        **BalancedEmbedder._parameter_constraints,
        "n_levels": [POSITIVE_INT],
        "n_neighbors": [POSITIVE_INT],
    }

    def _make_batches(self, y):
        return NeighborhoodBatches(
            y, self.batch_size, self.samples_per_class, self.n_neighbors, self.n_levels, self.margin
        )
