"""k-means of the embeddings, for the clustering measures.

Axis letters: N rows, D components, K clusters, S similarities of rows to centers.
"""

import math

import torch

from ._rows import block_size, rounding, tile_size

_MAX_ITER = 100  # Lloyd's iterations
_FEW = 1e-3  # share of the rows: when no more change their cluster, NMI is within 0.002 of its final value
_MAX_SAMPLE = 2**14  # rows from which the initial centers are drawn, unless there are more clusters


@torch.no_grad()
def k_means(points, n_clusters, rng):
    """Return the cluster of each row (N,): Lloyd's iterations from a k-means++ start."""
    centers = _first_centers(points, n_clusters, rng)  # (K, D)
    every = torch.arange(len(centers), device=points.device)
    has_moved = torch.ones_like(every, dtype=torch.bool)
    labels = every.new_full((len(points),), -1)
    closeness = points.new_empty(len(points))  # of the row to its center
    for _ in range(_MAX_ITER + 1):
        before, is_open = labels.clone(), has_moved[labels]
        closeness[is_open] = -torch.inf
        _assign(points, centers, is_open, every, labels, closeness)
        # If the center of a row did not move, only a center that moved can be nearer.
        _assign(points, centers, ~is_open, has_moved.nonzero()[:, 0], labels, closeness)
        changed = labels != before
        if changed.sum() <= _FEW * len(points):
            break
        centers = _means(points, labels, centers)
        has_moved.zero_()
        has_moved[before[changed]] = has_moved[labels[changed]] = True
    return labels


def _assign(points, centers, is_open, candidates, labels, closeness):
    """Update the labels and the closeness of the open rows that are nearer to one of the candidates."""
    centers = centers[candidates]
    half_squares = centers.square().sum(1) / 2
    size = block_size(len(candidates))
    buffer = points.new_empty(min(size, len(points)), len(candidates))
    for rows in is_open.nonzero()[:, 0].split(size):
        # x c - |c|^2 / 2; with out=, a surrounding autocast does not lower the precision.
        S = torch.mm(points[rows], centers.T, out=buffer[: len(rows)]).sub_(half_squares)
        largest, index = S.max(1)
        is_nearer = largest > closeness[rows]
        rows = rows[is_nearer]
        closeness[rows] = largest[is_nearer]
        labels[rows] = candidates[index[is_nearer]]


def _means(points, labels, centers):
    """Return the means of the clusters (K, D); an empty one keeps its center."""
    sums = torch.zeros_like(centers, dtype=torch.float64)
    size = tile_size(points)
    for X, label in zip(points.split(size), labels.split(size), strict=True):
        sums.index_add_(0, label, X.double())
    counts = torch.bincount(labels, minlength=len(centers))[:, None]
    return torch.where(counts > 0, (sums / counts).to(points.dtype), centers)


def _first_centers(points, n_clusters, rng):
    """Draw some of the distinct rows as centers (K, D), by greedy k-means++ from a sample.

    It draws several rows with probability proportional to their squared distance from the centers so far, and takes the
    one that lowers the sum of these distances most.
    """
    n_sampled = max(n_clusters, min(4 * n_clusters, _MAX_SAMPLE))
    sample = points[torch.from_numpy(rng.permutation(len(points))[:n_sampled]).to(points.device)]
    if n_clusters == n_sampled:
        return sample.unique(dim=0)
    half_squares = sample.square().sum(1) * ((1 - 2 * rounding(sample.dtype)) / 2)
    distances = torch.mm(sample, sample.T, out=sample.new_empty(len(sample), len(sample)))
    # Half the squared distances, which are 0 where they are within rounding.
    distances.neg_().add_(half_squares).add_(half_squares[:, None]).clamp_(min=0)
    draws = torch.from_numpy(rng.random_sample((n_clusters, 2 + int(math.log(n_clusters))))).to(sample.device)
    chosen, nearest = [0], distances[0]
    for draw in draws[1:]:
        weights = nearest.cumsum(0, dtype=torch.float64)
        if weights[-1] == 0:  # no distinct row is left
            break
        drawn = torch.searchsorted(weights, draw * weights[-1], right=True).clamp_(max=len(sample) - 1)
        candidates = torch.minimum(distances.index_select(0, drawn), nearest)
        best = int(candidates.sum(1).argmin())
        chosen.append(int(drawn[best]))
        nearest = candidates[best]
    return sample[chosen]
