"""k-means of the embeddings, for the clustering measures.

Axis letters: N rows, D components, K clusters.
"""

import itertools
import math

import numpy as np
import torch

from ._bfloat16 import lengths, round_rows, whole_numbers
from ._rows import matrix_in, reaching, rounding, tile_size

_MAX_ITER = 100  # Lloyd's iterations
_FEW = 1e-3  # share of the rows: when no more change their cluster, NMI is within 0.002 of its end
_MANY = 64  # centers from which on bfloat16 pays
_MIN_MEAN = 16  # of what rounding adds to squared distances on average: if the mean is less, centers get worse
_MAX_SAMPLE = 16384  # rows from which the first centers are drawn, if there are no more clusters


@torch.no_grad()
def k_means(points, n_clusters, rng):
    """Return the cluster of each row (N,): Lloyd's iterations from a k-means++ start.

    A row is compared with the centers that moved; with all others too only if it is now farther from its own one than
    another may be. Many centers are compared in bfloat16 where the processor multiplies that faster, and exactly where
    its rounding leaves in doubt which one is nearest. Neither leaves out anything that could be the nearest. The rows
    from which the centers were drawn start in the clusters of which they were nearest to the center there.
    """
    order = torch.from_numpy(rng.permutation(len(points))).to(points.device)
    points = points[order]
    n_sampled = min(len(points), max(n_clusters, min(4 * n_clusters, _MAX_SAMPLE)))
    chosen, labels_of_sample = _k_means_plus_plus(points[:n_sampled], n_clusters, rng)
    centers = points[chosen]
    half_squares = _half_squares(centers)
    size = tile_size(points)
    n_rows = min(len(points), max(math.ceil(size / 2), size**2 // len(centers)))  # compared with all centers at once
    buffer = points.new_empty(n_rows * len(centers))
    rounded = round_rows(points) if len(centers) >= _MANY else None
    products = points.new_empty(len(buffer) if rounded else 0, dtype=torch.bfloat16)

    sums = torch.zeros_like(centers, dtype=torch.float64)
    labels = torch.zeros_like(order)
    labels[:n_sampled] = labels_of_sample
    nearest, runner_up = points.new_full((2, len(points)), -torch.inf)  # closeness: at least, and at most of all others
    has_moved = torch.ones(len(centers), dtype=torch.bool, device=points.device)
    for iteration in range(_MAX_ITER + 1):
        moved, position = has_moved.nonzero()[:, 0], (has_moved.cumsum(0) - 1).clamp(min=0)
        moved_centers = centers[moved], half_squares[moved]
        rounded_centers = round_rows(moved_centers[0]) if rounded and len(moved) >= _MANY else None
        margin = rounded.margin(rounded_centers) if rounded_centers else torch.zeros_like(nearest)
        before, labels = labels, labels.clone()
        n_block = len(buffer) // len(moved)
        for start in range(0 if iteration else n_sampled, len(points), n_block):
            b = slice(start, start + n_block)
            own = labels[b]
            if rounded_centers:
                S = matrix_in(buffer, len(own), len(moved))
                rounded[b].multiply(rounded_centers, S, products).sub_(half_squares[moved])
            else:
                S = _closeness(points[b], *moved_centers, buffer)
            place, own_moved = position[own, None], has_moved[own]
            now = S.gather(1, place)
            S.scatter_(1, place, now.masked_fill(own_moved[:, None], -torch.inf))
            now = torch.where(own_moved, now[:, 0] - margin[b], nearest[b])
            other = S.amax(1)
            new = (other - margin[b] > now).nonzero()[:, 0]
            first, label, second = _two_largest(S.index_select(0, new))
            labels[start + new] = moved[label]
            other[new] = torch.maximum(second, now[new] + margin[start + new])
            now[new] = first - margin[start + new]
            nearest[b] = now
            runner_up[b] = torch.maximum(runner_up[b], other + margin[b])
        for index in (nearest < runner_up).nonzero()[:, 0].split(n_rows):
            S, own = _closeness(points[index], centers, half_squares, buffer), labels[index]
            now = S.gather(1, own[:, None])[:, 0]
            nearest[index], label, runner_up[index] = _two_largest(S)
            labels[index] = torch.where(nearest[index] > now, label, own)

        changed = (labels != before).nonzero()[:, 0] if iteration else torch.arange(len(points), device=labels.device)
        if len(changed) <= _FEW * len(points) or iteration == _MAX_ITER:
            return torch.empty_like(labels).index_copy_(0, order, labels)
        for index in changed.split(tile_size(points)):  # few, so that their copies stay in the cache
            X = points[index].double()
            sums.index_add_(0, labels[index], X)
            if iteration:
                sums.index_add_(0, before[index], X, alpha=-1)
        counts = torch.bincount(labels, minlength=len(centers))  # (K,)
        has_moved.zero_()
        has_moved[labels[changed]] = has_moved[before[changed]] = True
        has_moved &= counts > 0  # an empty cluster keeps its center
        centers[has_moved] = (sums[has_moved] / counts[has_moved, None]).to(points.dtype)
        half_squares[has_moved] = _half_squares(centers[has_moved])


def _k_means_plus_plus(sample, n_clusters, rng):
    """Return which rows greedy k-means++ draws as centers, and which of these is the nearest of each row (N,).

    Of several rows drawn with a chance in proportion to their squared distance from the centers so far, it takes the
    one that lowers the sum of these most.
    """
    n_drawn = 2 + int(np.log(n_clusters))
    draws = torch.from_numpy(rng.random_sample((n_clusters, n_drawn))).to(sample.device)
    if n_clusters >= _MANY:
        distances = _rounded_distances(sample)
        chosen, labels, mean = _draw(distances, draws)
        if mean > _MIN_MEAN * sample.shape[1] / 6:
            return chosen, labels
    return _draw(_half_squared_distances(sample), draws)[:2]


def _draw(distances, draws):
    """Return which rows are the centers, which of these is the nearest of each row, and the mean distance to that.

    There are as many centers as draws or distinct rows. The distances are squared, times any number; the rows are in
    random order.
    """
    nearest = distances[0].to(torch.promote_types(distances.dtype, torch.float32), copy=True)
    chosen, total = [torch.zeros_like(nearest[0], dtype=torch.int64)], float(nearest.sum())
    # The same memory in every turn stays in the cache; the nearest so far are in that of the turn before.
    rows = distances.new_empty(draws.shape[1], len(distances))
    both = nearest.new_empty(2, *rows.shape)
    for candidates, draw in zip(itertools.cycle(both), draws[1:]):
        if total == 0:
            break
        weights = nearest.cumsum(0, dtype=torch.float64)
        drawn = torch.searchsorted(weights, draw * weights[-1], right=True).clamp_(max=len(distances) - 1)
        candidates.copy_(torch.index_select(distances, 0, drawn, out=rows))
        torch.minimum(candidates, nearest, out=candidates)
        totals = candidates.sum(1).tolist()
        total = min(totals)
        best = totals.index(total)
        chosen.append(drawn[best])
        nearest = candidates[best]
    chosen = torch.stack(chosen)

    labels = torch.full((len(distances),), len(chosen), device=distances.device)
    for some in torch.arange(len(chosen), device=chosen.device).split(64):
        place = reaching(nearest, distances.index_select(0, chosen[some]).to(nearest.dtype))
        labels.scatter_reduce_(0, place % len(labels), some[place // len(labels)], "amin")  # of equals the first
    return chosen, labels, float(nearest.mean())


def _rounded_distances(points):
    """Return squared distances of all pairs of rows (N, N), in a unit of their own.

    They are in bfloat16 and in the unit in which the rows are whole numbers up to 256. So are the digits of their
    squares to the base of 256. Unless these squares pass 2^23, the distances are then products without rounding before
    the last, in whatever order they are summed, so that the same rows are drawn on processors that multiply bfloat16
    fast and on others. Rounding both rows adds a sixth for each component to them, on average.
    """
    points = points - points.mean(0, dtype=torch.float64).to(points.dtype)
    grid = points.div_(points.abs().max().clamp(min=torch.finfo(points.dtype).tiny)).mul_(256).round_()
    squares = grid.square().sum(1, keepdim=True)
    digits = torch.cat([squares // 2**16, squares // 2**8 % 2**8, squares % 2**8], 1)
    bases = digits.new_tensor([2**16, 2**8, 1]).expand_as(digits)
    grid, digits, bases = map(whole_numbers, (grid, digits, bases))
    left = torch.cat([-2 * grid, digits, bases], 1)  # |x|^2 + |z|^2 - 2 x z is their product
    right = torch.cat([grid, bases, digits], 1)
    distances = left.new_empty(len(left), len(left), dtype=torch.bfloat16)
    size = math.ceil(tile_size(points) / 2)
    products = left.new_empty(size**2)
    blocks = [slice(start, start + size) for start in range(0, len(left), size)]
    for i, rows in enumerate(blocks):
        for columns in blocks[: i + 1]:
            part = distances[rows, columns]
            out = matrix_in(products, *part.shape)
            part.copy_(torch.mm(left[rows], right[columns].T, out=out).clamp_(min=0))
            if rows != columns:
                # torch copies the transpose of a matrix in one piece four times as fast, within one type.
                distances[columns, rows] = out.bfloat16().T.contiguous()
    return distances.fill_diagonal_(0)


def _half_squared_distances(points):
    """Return |x - z|^2 / 2 of all pairs of rows (N, N), 0 if it is no larger than its rounding; each computed once."""
    half_squares = _half_squares(points) * (1 - 2 * rounding(points.dtype))
    distances = points.new_empty(len(points), len(points))
    size = math.ceil(tile_size(points) / 2)
    blocks = [slice(start, start + size) for start in range(0, len(points), size)]
    for i, rows in enumerate(blocks):
        for columns in blocks[: i + 1]:
            part = torch.mm(points[rows], points[columns].T, out=distances[rows, columns])
            torch.sub(half_squares[columns], part, out=part).add_(half_squares[rows, None]).clamp_(min=0)
            if rows != columns:
                distances[columns, rows] = part.T
    return distances


def _closeness(points, centers, half_squares, buffer):
    """Return x c - |c|^2 / 2 of each row x and center c, in `buffer`: the larger, the nearer."""
    S = matrix_in(buffer, len(points), len(centers))
    return torch.mm(points, centers.T, out=S).sub_(half_squares)  # with out=, autocast does not lower the precision


def _two_largest(S):
    """Return the largest value of each row (N,), its index (N,) and the second largest value (N,); S is changed."""
    first, index = S.max(1)
    return first, index, S.scatter_(1, index[:, None], -torch.inf).amax(1)


def _half_squares(points):
    return lengths(points).square() / 2
