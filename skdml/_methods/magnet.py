"""Magnet loss: clusters of each class against the clusters of other classes.

Axes: B samples of a batch, N of the training set, C classes, D components, G clusters of all classes.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from scipy.special import logsumexp
from torch import nn

from .._constraints import POSITIVE, POSITIVE_INT, Interval, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import BaseEmbedder
from .._loss.similarities import distance_similarities, squared_distances
from .._loss.terms import check_batch, in_float32, log_sum_exp, weighted_mean, zero_loss


class MagnetLoss(nn.Module):
    r"""Bring samples nearer to the mean of their own cluster than to those of other classes, relative to the variance.

    .. math::
        \ell = \frac1B \sum_i \Bigl[-\log \frac{e^{-\lVert x_i - \mu_i \rVert^2 / (2 \sigma^2) - \alpha}}
            {\sum_{k : y_k \ne y_i} e^{-\lVert x_i - \mu_k \rVert^2 / (2 \sigma^2)}}\Bigr]_+, \qquad
        \sigma^2 = \frac{1}{B - 1} \sum_i \lVert x_i - \mu_i \rVert^2

    The sum below runs over the clusters k of other classes in the batch; :math:`\mu_k` is the mean of cluster k in the
    batch, :math:`\mu_i` that of the sample's own. This is Eq. (4) of [1]_, within a batch Eq. (5).

    Parameters
    ----------
    alpha : float, default=1.0
        Alpha, how far apart clusters should be, as a difference of log-likelihoods; > 0.

    Raises
    ------
    ValueError
        If ``alpha`` is outside its range, or the shapes of a batch are not (B, D), (B,) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any norm; y (B,) integers; clusters (B,) integers or None;
    returns a scalar, the mean over the B samples. The gradient flows through the means and the variance. All distances
    are divided by the variance, so that neither the length of the rows nor their origin matters. A sample without a
    cluster of another class in the batch contributes 0. The variance is at least the machine epsilon: where all samples
    lie on their means, the value and the gradient remain finite. There is no loop over clusters: a cluster enters the
    sum once for each of its n members, with weight 1 / n, in :math:`O(B^2 D)` time and :math:`O(B^2 + BD)` memory.

    Differences from two public reimplementations: they divide by :math:`2 \sigma^4` instead of :math:`2 \sigma^2` as in
    the paper, and add 1e-8 inside the logarithm.

    References
    ----------
    .. [1] O. Rippel, M. Paluri, P. Dollar and L. Bourdev, "Metric Learning with Adaptive Density Discrimination",
       ICLR 2016, arXiv:1511.05939.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import MagnetLoss
    >>> embeddings = torch.tensor([[0.0], [2.0], [1.0], [3.0]], requires_grad=True)
    >>> loss = MagnetLoss()(embeddings, torch.tensor([0, 0, 1, 1]))  # means 1 and 2, variance 4 / 3
    >>> loss.backward()
    >>> loss.item()
    0.6875
    """

    _one_class = "compares clusters of the classes"

    _parameter_constraints = {"alpha": [POSITIVE]}

    def __init__(self, *, alpha=1.0):
        super().__init__()
        self.alpha = alpha
        check_constraints(self, vars(self))

    @in_float32
    def forward(self, embeddings, y, clusters=None, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,)
            The class of each row.
        clusters : int tensor of shape (B,) or None, default=None
            The cluster of each row within its class. None: each class is one cluster.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each row's term in the mean, >= 0; the means and the variance are those of all rows. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight, loss=self)
        if clusters is not None and (clusters.shape != y.shape or clusters.is_floating_point()):
            raise ValueError(
                f"Got clusters of shape {tuple(clusters.shape)} for {len(y)} rows, of {clusters.dtype}; need (B,) "
                "integers. Pass weights by name, sample_weight=."
            )
        if len(y) == 0:
            return zero_loss(self, embeddings)
        impostor = y[:, None] != y  # (B, B)
        member = ~impostor if clusters is None else ~impostor & (clusters[:, None] == clusters)
        weights = member.to(embeddings.dtype)
        sizes = weights.sum(dim=1)  # (B,)
        centered = embeddings - embeddings[0].detach()  # keeps the digits of rows far from the origin
        means = weights @ centered / sizes[:, None]  # (B, D), of the row's cluster
        own = (centered - means).square().sum(dim=1)  # (B,)
        variance = (own.sum() / max(len(y) - 1, 1)).clamp(min=torch.finfo(embeddings.dtype).eps)
        others = squared_distances(distance_similarities(centered, means))  # (B, B)
        log_sum, _ = log_sum_exp(-others / (2 * variance) - sizes.log(), impostor)
        terms = (own / (2 * variance) + self.alpha + log_sum).relu()
        return weighted_mean(terms.where(impostor.any(dim=1), 0), sample_weight)


class MagnetBatches:
    """Neighborhoods of clusters for the Magnet loss [1]_: a seed cluster and the nearest clusters of other classes.

    At the start of each epoch k-means splits every class into ``n_clusters`` clusters of the current embeddings. A
    batch consists of ``samples_per_cluster`` random samples of a seed cluster, drawn with a probability proportional to
    its mean loss, and of its nearest clusters of other classes, with the numbers of the clusters. A class with fewer
    samples (or distinct embeddings) than clusters has fewer clusters, and a cluster with fewer samples contributes each
    of them once. An epoch has as many batches as are needed to process as many samples as there are.

    The loss of a cluster is the mean that the loss gives its samples against the clusters of the batch it would seed,
    with the means and the variance of the whole training set, by the embeddings at the start of the epoch: the paper
    keeps the losses of the training steps. In the first epoch all clusters are equally likely.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), values 0..C-1, each present
    batch_size : int
        A batch has ``batch_size // samples_per_cluster`` clusters.
    samples_per_cluster : int
    n_clusters : int
    alpha : float
        That of the loss.

    References
    ----------
    .. [1] O. Rippel, M. Paluri, P. Dollar and L. Bourdev, "Metric Learning with Adaptive Density Discrimination",
       ICLR 2016. Section 3.2.
    """

    def __init__(self, y, batch_size, samples_per_cluster, n_clusters, alpha):
        self.y = y
        self.clusters_per_batch = batch_size // samples_per_cluster
        self.samples_per_cluster = samples_per_cluster
        self.n_clusters = n_clusters
        self.alpha = alpha
        self.is_first = True

    def __call__(self, generator, embed):
        embeddings = embed()
        rows = embeddings.cpu().numpy()
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
        rng = np.random.default_rng(seed)
        cluster = class_clusters(rows, self.y, self.n_clusters, rng)
        near, loss = cluster_losses(rows, self.y, cluster, self.clusters_per_batch - 1, self.alpha)
        uniform = self.is_first or loss.sum() == 0
        self.is_first = False
        p = None if uniform else loss / loss.sum()

        members = np.split(cluster.argsort(kind="stable"), np.bincount(cluster).cumsum()[:-1])
        batches = []
        n_missing = len(self.y)
        while n_missing > 0:
            c = rng.choice(len(loss), p=p)
            chosen = [rng.permutation(members[k])[: self.samples_per_cluster] for k in [c, *near[c]] if k >= 0]
            index = np.concatenate(chosen)
            n_missing -= len(index)
            clusters = torch.from_numpy(cluster[index]).to(embeddings.device)
            batches.append((torch.from_numpy(index).to(generator.device), clusters))
        return batches


def class_clusters(rows, y, n_clusters, rng, max_iter=20):
    """Return the cluster 0..G-1 of every row, by k-means within each class; the numbers rise with the class.

    All classes at once: calling scikit-learn's KMeans class by class would take longer than an epoch of a small
    network. The first centers are drawn as in k-means++; Lloyd's steps end when no row changes its cluster.
    """
    order = y.argsort(kind="stable")
    rows, y = rows[order].astype(np.float64), y[order]
    counts = np.bincount(y)
    starts = counts.cumsum() - counts

    def nearest(centers):
        distance = np.stack([np.square(rows - centers[y, k]).sum(axis=1) for k in range(centers.shape[1])], axis=1)
        return distance.min(axis=1), distance.argmin(axis=1)

    first = starts + (rng.random(len(counts)) * counts).astype(int)
    centers = rows[first][:, None]  # (C, k, D)
    for _ in range(1, min(n_clusters, counts.max())):
        # The largest of p / e with e exponential is a draw by p. Where all rows are centers, one occurs twice.
        key = nearest(centers)[0] / np.maximum(rng.exponential(size=len(rows)), 1e-300)
        drawn = np.lexsort((key, y))[starts + counts - 1]
        centers = np.concatenate([centers, rows[drawn][:, None]], axis=1)
    K = centers.shape[1]
    label = nearest(centers)[1]
    for _ in range(max_iter):
        cluster = y * K + label
        sizes = np.bincount(cluster, minlength=len(counts) * K)
        by_cluster = cluster.argsort(kind="stable")
        present = sizes > 0
        begin = (sizes.cumsum() - sizes)[present]
        flat = centers.reshape(-1, rows.shape[1]).copy()  # an empty cluster keeps its center
        flat[present] = np.add.reduceat(rows[by_cluster], begin, axis=0) / sizes[present, None]
        centers = flat.reshape(centers.shape)
        before, label = label, nearest(centers)[1]
        if (label == before).all():
            break
    cluster = np.empty(len(y), dtype=np.int64)
    cluster[order] = np.unique(y * K + label, return_inverse=True)[1]
    return cluster


def cluster_losses(rows, y, cluster, n_nearest, alpha):
    """Return the nearest clusters of other classes of each cluster, and its mean loss against these.

    Parameters
    ----------
    rows : ndarray of shape (N, D)
    y : ndarray of shape (N,)
    cluster : ndarray of shape (N,), values 0..G-1, each present
    n_nearest : int
    alpha : float
        That of the loss.

    Returns
    -------
    near : ndarray of shape (G, min(n_nearest, G - 1)), int
        By rising distance of the means; -1 where there are no more.
    loss : ndarray of shape (G,)
    """
    order = cluster.argsort(kind="stable")
    sizes = np.bincount(cluster)
    starts = sizes.cumsum() - sizes
    rows, own = rows[order].astype(np.float64), cluster[order]
    rows -= rows.mean(axis=0)
    means = np.add.reduceat(rows, starts, axis=0) / sizes[:, None]  # (G, D)
    squares = np.square(means).sum(axis=1)
    distance = squares[:, None] + squares - 2 * means @ means.T  # (G, G)
    classes = y[order][starts]
    distance[classes[:, None] == classes] = np.inf
    G = len(sizes)
    near = np.argpartition(distance, min(n_nearest, G - 1), axis=1)[:, : min(n_nearest, G - 1)]
    near = np.take_along_axis(near, np.take_along_axis(distance, near, axis=1).argsort(axis=1, kind="stable"), axis=1)
    missing = np.isinf(np.take_along_axis(distance, near, axis=1))

    spread = np.square(rows - means[own]).sum(axis=1)  # (N,)
    variance = max(spread.sum() / (len(rows) - 1), np.finfo(np.float32).eps)
    products = np.stack([(rows * means[near[own, k]]).sum(axis=1) for k in range(near.shape[1])], axis=1)
    others = np.square(rows).sum(axis=1)[:, None] + squares[near[own]] - 2 * products  # (N, n_nearest)
    exponent = np.where(missing[own], -np.inf, -others / (2 * variance))
    terms = np.maximum(spread / (2 * variance) + alpha + logsumexp(exponent, axis=1), 0)
    return np.where(missing, -1, near), np.add.reduceat(terms, starts) / sizes


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class MagnetEmbedder(BaseEmbedder):
    """Magnet loss: each class consists of a few clusters, and batches are neighborhoods of overlapping clusters [1]_.

    A class need not form one ball: k-means splits it anew each epoch. A sample is pulled to its own cluster, and pushed
    away from those of other classes. Batches concentrate where the loss is high.

    Read more in the :ref:`User Guide <magnet>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    n_clusters : int, default=2
        K, the number of clusters per class; >= 1.
    samples_per_cluster : int, default=4
        D, the number of samples of each cluster in a batch; >= 2. A batch has ``batch_size // samples_per_cluster``
        clusters. A cluster with fewer samples contributes each of them once.
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    SoftTripleEmbedder : Several learned centers per class.
    SSTEmbedder : Batches are clusters of the samples.
    skdml.losses.MagnetLoss : The loss on its own, for a torch loop.

    Notes
    -----
    The clusters, and the losses by which the seeds are drawn, are those of the embeddings in evaluation mode at the
    start of an epoch; the paper keeps the losses of the training steps. The paper fills up small clusters with repeated
    samples, and it classifies by the nearest clusters; here the embedding is the result.

    References
    ----------
    .. [1] O. Rippel, M. Paluri, P. Dollar and L. Bourdev, "Metric Learning with Adaptive Density Discrimination",
       ICLR 2016, arXiv:1511.05939.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import MagnetEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = MagnetEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = MagnetLoss

    alpha: float = 1.0
    n_clusters: int = 2
    samples_per_cluster: int = 4
    batch_size: int = 48

    _parameter_constraints = {
        **MagnetLoss._parameter_constraints,
        **BaseEmbedder._parameter_constraints,
        "n_clusters": [POSITIVE_INT],
        "samples_per_cluster": [Interval(Integral, 2, None, closed="left")],
    }

    def _check_params(self):
        super()._check_params()
        if self.batch_size < 2 * self.samples_per_cluster:
            raise ValueError(
                f"The 'batch_size' parameter of {type(self).__name__} must be at least 2 * samples_per_cluster = "
                f"{2 * self.samples_per_cluster}, two clusters per batch. Got {self.batch_size} instead."
            )

    def _make_batches(self, y):
        return MagnetBatches(y, self.batch_size, self.samples_per_cluster, self.n_clusters, self.alpha)
