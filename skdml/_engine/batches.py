"""Batch rules, which decide which samples share a batch.

A batch rule is made once per fit, from the labels, and called once per epoch: ``rule(generator, embed)`` returns the
batches of the epoch, a sequence of index tensors on the generator's device. A rule that passes its loss more than the
labels returns tuples of the index tensor and the further arguments of the loss, on the embeddings' device. ``embed()``
returns the embeddings (n_samples, D) of the training set by the current network, for the rules that use them.
"""

from bisect import bisect_right

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from .. import _ambient


class ShuffledBatches:
    """Every row once per epoch, in random order.

    The rows are dealt evenly, so that no batch of one or two rows is left over at the end: sizes differ by at most one.

    Parameters
    ----------
    y : ndarray of shape (n_samples,)
    batch_size : int
        Largest number of rows in a batch.
    """

    def __init__(self, y, batch_size):
        self.n_samples = len(y)
        self.n_batches = -(-self.n_samples // batch_size)

    def __call__(self, generator, embed=None):
        order = torch.randperm(self.n_samples, generator=generator, device=generator.device)
        return order.tensor_split(self.n_batches)


class BalancedBatches:
    """P classes x K samples in each batch, and as many batches per epoch as hold every row once.

    P is ``batch_size // samples_per_class``, or the number of classes if that is smaller; K then grows so that the
    batch keeps its size. Each epoch shuffles every class and cuts it into groups of K; the last group is filled up with
    other rows of the class. No row occurs twice in a batch: a class of fewer than K samples contributes all of them.
    Groups are dealt so that a batch never holds a class twice; classes with few groups contribute additional ones until
    each batch has its P classes. A class with more groups than there are batches contributes one to each: rows of it
    that were in fewer epochs come first in the next one.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), values 0..C-1, each present
    batch_size : int
    samples_per_class : int
    """

    def __init__(self, y, batch_size, samples_per_class):
        counts = np.bincount(y)
        self.n_classes_per_batch = min(batch_size // samples_per_class, len(counts))
        self.samples_per_class = max(samples_per_class, batch_size // len(counts))
        n_groups = -(-counts // self.samples_per_class)
        self.n_batches = -(-n_groups.sum() // self.n_classes_per_batch)
        self.is_cut = n_groups > self.n_batches
        self.n_groups = _fill(
            n_groups.clip(max=self.n_batches), self.n_batches, self.n_batches * self.n_classes_per_batch
        )
        self.counts = counts
        self.y = torch.from_numpy(y)
        self.n_epochs = torch.zeros_like(self.y)  # in which a row of a class that is cut has been
        self.some_are_small = bool((counts < self.samples_per_class).any())

    def __call__(self, generator, embed=None):
        device = generator.device
        counts, n_groups = (torch.from_numpy(a).to(device) for a in (self.counts, self.n_groups))
        P, K = self.n_classes_per_batch, self.samples_per_class
        order = torch.randperm(len(self.y), generator=generator, device=device)
        if self.is_cut.any():
            order = order[self.n_epochs.to(device)[order].argsort(stable=True)]
        order = order[self.y.to(device)[order].argsort(stable=True)]  # rows by class, each class in random order
        starts = counts.cumsum(0) - counts

        class_order = torch.randperm(len(counts), generator=generator, device=device)
        n_groups = n_groups[class_order]
        ends = n_groups.cumsum(0)
        size = self.n_batches * P
        group_class = class_order.repeat_interleave(n_groups, output_size=size)
        number = torch.arange(size, device=device) - (ends - n_groups).repeat_interleave(n_groups, output_size=size)

        within = number[:, None] * K + torch.arange(K, device=device)  # (groups, K): index in the class, wrapped below
        rows = order[starts[group_class, None] + within % counts[group_class, None]]
        if self.is_cut.any():
            is_cut = torch.from_numpy(self.is_cut).to(device)[group_class]
            self.n_epochs[rows[is_cut].flatten().cpu()] += 1
        # The groups of a class follow each other, so dealing them out in turn puts them into different batches.
        rows = rows.view(P, self.n_batches, K).transpose(0, 1)
        batches = rows.reshape(self.n_batches, P * K)
        if not self.some_are_small:
            return batches.unbind()
        kept = torch.arange(K, device=device) < counts[group_class, None]
        kept = kept.view(P, self.n_batches, K).transpose(0, 1).reshape(self.n_batches, P * K)
        return batches[kept].split(kept.sum(1).tolist())


def _fill(n_groups, most, total):
    """Raise the smallest entries evenly, none above ``most``, until the entries sum to ``total``."""
    level = bisect_right(range(most + 1), total, key=lambda level: np.maximum(n_groups, level).sum()) - 1
    filled = np.maximum(n_groups, level)
    filled[np.flatnonzero(filled == level)[: total - filled.sum()]] += 1
    return filled


class MultilabelBatches:
    """P labels x K samples in each batch, where a sample may have several labels.

    In each epoch every row is drawn for one of its labels, with a probability inverse to the number of samples of the
    label, so that a rare label keeps most of its rows; rows without a label are drawn as if they shared one. With these
    labels the batches are those of `BalancedBatches`: they hold every row about once per epoch, and none twice. Where
    fewer than K rows were drawn for a label of a batch, other rows that have it fill up, so that a batch holds at least
    K samples of each of its P labels, or all that there are.

    Parameters
    ----------
    y : bool ndarray of shape (n_samples, n_labels), each label present
    batch_size : int
    samples_per_class : int
    """

    def __init__(self, y, batch_size, samples_per_class):
        self.y = np.column_stack([y, ~y.any(axis=1)])  # the last column is that of the rows without a label
        self.row, self.label = self.y.nonzero()  # by row
        self.first = np.flatnonzero(np.diff(self.row, prepend=-1))  # of each row
        self.counts = self.y.sum(axis=0)
        self.members = np.split(self.row[self.label.argsort(kind="stable")], self.counts.cumsum()[:-1])
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.n_epochs = torch.zeros(len(y), dtype=torch.int64)  # as in BalancedBatches, of which each epoch has its own

    def __call__(self, generator, embed=None):
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
        rng = np.random.default_rng(seed)
        # The least of exponential waiting times is a draw by their rates.
        waiting = rng.exponential(size=len(self.label)) * self.counts[self.label]
        drawn = self.label[np.lexsort((waiting, self.row))[self.first]]
        rule = BalancedBatches(np.unique(drawn, return_inverse=True)[1], self.batch_size, self.samples_per_class)
        rule.n_epochs = self.n_epochs
        return [self._filled(batch, drawn, rule.samples_per_class, rng) for batch in rule(generator)]

    def _filled(self, batch, drawn, K, rng):
        """Return the batch with other rows of the labels that it was drawn for, where it holds fewer than K."""
        rows = batch.cpu().numpy()
        labels = np.unique(drawn[rows])
        is_short = self.y[np.ix_(rows, labels)].sum(axis=0) < np.minimum(K, self.counts[labels])
        for label in labels[is_short]:
            others = np.setdiff1d(self.members[label], rows)
            n_missing = min(K, self.counts[label]) - (len(self.members[label]) - len(others))
            rows = np.append(rows, rng.choice(others, max(0, n_missing), replace=False))
        return torch.from_numpy(rows).to(batch.device)


class LocalBatches:
    """Local sampling of SST [1]_: the batches are clusters of the embeddings, recomputed in each epoch.

    There are ``n_samples // batch_size`` clusters. A cluster of more than ``batch_size`` rows is cut into even parts,
    with the rows of a class kept together up to an eighth of a batch; the authors' code draws ``batch_size`` rows of it
    and drops the others, and many positive pairs with them. A part without a triplet (with only one class, or with no
    class twice) gives no batch. Other differences: scikit-learn's minibatch k-means replaces the full one, and the
    batches come in random order.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), values 0..C-1
    batch_size : int

    References
    ----------
    .. [1] B. Nguyen and B. De Baets, "Improved deep embedding learning based on stochastic symmetric triplet loss and
       local sampling", Neurocomputing 402, 2020.
    """

    def __init__(self, y, batch_size):
        self.y = y
        self.batch_size = batch_size

    def __call__(self, generator, embed):
        from sklearn.cluster import MiniBatchKMeans  # here, since it imports half of scikit-learn

        embeddings = embed().cpu().numpy()
        n_clusters = max(1, len(embeddings) // self.batch_size)
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
        rng = np.random.default_rng(seed)
        kmeans = MiniBatchKMeans(n_clusters, n_init=1, random_state=seed)
        # With several threads, the inertia and thus the end of k-means would depend on the order of the additions. The
        # limits, of which scikit-learn sets one more, belong to the process.
        with _ambient.LOCK, threadpool_limits(1, user_api="openmp"):
            cluster = kmeans.fit(embeddings).labels_
        clusters = np.split(cluster.argsort(kind="stable"), np.bincount(cluster, minlength=n_clusters).cumsum()[:-1])
        parts = [part for rows in clusters for part in self._cut(rows, rng)]
        batches = [part for part in parts if self._has_triplet(self.y[part])]
        return [torch.from_numpy(batches[i]).to(generator.device) for i in rng.permutation(len(batches))]

    def _cut(self, rows, rng):
        n_parts = -(-len(rows) // self.batch_size)
        if n_parts <= 1:
            return [rows]
        rows = rng.permutation(rows)
        rows = rows[self.y[rows].argsort(kind="stable")]
        _, first, c = np.unique(self.y[rows], return_index=True, return_inverse=True)
        number = (np.arange(len(rows)) - first[c]) // max(2, self.batch_size // 8)  # the row's group within its class
        group = np.unique(c * len(rows) + number, return_inverse=True)[1]
        order = rng.permutation(group.max() + 1)[group]
        return np.array_split(rows[order.argsort(kind="stable")], n_parts)

    @staticmethod
    def _has_triplet(y):
        counts = np.unique(y, return_counts=True)[1]
        return len(counts) > 1 and counts.max() > 1
