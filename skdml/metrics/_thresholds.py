"""From which similarity on a row counts as no farther than a match.

Axis letters: Q queries, N gallery rows of the classes of the queries, R matches.
"""

import itertools
import math

import numpy as np
import torch
from torch import nn

from ._rows import similarities, tile_size


def thresholds(values, rounding, offsets):
    """Return the similarity from which on a row counts as no farther than `values` (Q, ...), arrays or tensors.

    Equal rows get similarities that differ by the rounding of a product, which depends on their place in it. Without
    the margin, embeddings that have collapsed to a point would have any recall.
    """
    if offsets is None:
        return values - rounding
    return values * (1 + rounding) - 2 * rounding * offsets.reshape(-1, *[1] * (values.ndim - 1))


def thresholds_of_matches(queries, gallery, n_matches, dtype):
    """Return the thresholds of all matches, falling for each query, and where those of each query start (Q,)."""
    columns_of = columns_of_classes(queries.classes, gallery.classes)
    parts = parts_of_classes(queries.classes, math.ceil(tile_size(queries.points) / 8))
    widths = torch.stack([n_matches[q].max() for q in parts]).clamp(min=1).tolist()
    n_held = [0, *itertools.accumulate((q.stop - q.start) * r for q, r in zip(parts, widths, strict=True))]
    matches = queries.points.new_empty(n_held[-1], dtype=dtype)
    start = torch.empty_like(n_matches)
    index = torch.arange(len(queries), device=start.device)
    for q, r, held in zip(parts, widths, itertools.pairwise(n_held), strict=True):
        columns = columns_of(q)
        rows, near = queries[q], gallery[columns]
        S = similarities(rows, near, near.points.new_empty(len(rows) * len(near))).to(dtype)
        own = index[q] - columns.start if queries is gallery else None
        matches[slice(*held)] = match_thresholds(S, rows, near.classes, own, r).flatten()
        start[q] = held[0] + r * index[: len(rows)]
    return matches, start


def match_thresholds(S, queries, near, own, r):
    """Return the thresholds of the r matches of each query, falling (Q, R); -inf where there are fewer.

    S holds the similarities to all rows of the queries' classes, which are of the classes `near` (N,), and is changed;
    `own` are the columns of the queries themselves, None: they have none.
    """
    if queries.classes[0] != queries.classes[-1]:  # else all the columns are of their class
        S.masked_fill_(queries.classes[:, None] != near, -torch.inf)
    if own is not None:
        S.scatter_(1, own[:, None], -torch.inf)
    return thresholds(largest(S, r), queries.rounding, queries.offsets)


def parts_of_classes(classes, size):
    """Return slices of rows, `size` at most and no part of a class with parts of others, to compare few of these."""
    first = [*torch.searchsorted(classes, classes).tolist(), len(classes)]  # of the class of each row
    edges = [0]
    while edges[-1] < len(classes):
        end = min(edges[-1] + size, len(classes))
        edges.append(first[end] if first[end] > edges[-1] else end)
    return list(itertools.starmap(slice, itertools.pairwise(edges)))


def columns_of_classes(classes, gallery_classes):
    """Return a function from a slice of the queries to that of the gallery rows of their classes."""
    first = torch.searchsorted(gallery_classes, classes).tolist()
    last = torch.searchsorted(gallery_classes, classes, right=True).tolist()
    return lambda q: slice(first[q.start], last[q.stop - 1])


def largest(S, k):
    """Return the k largest values of each row, falling; -inf where there are fewer."""
    k_found = min(k, S.shape[1])
    if S.device.type == "cpu":  # NumPy sorts and partitions many times faster than torch
        values, n_left = S.numpy(), S.shape[1] - k_found
        if k_found < n_left:
            values = np.partition(values, n_left, axis=1)[:, n_left:]
        values = torch.from_numpy(np.sort(values, axis=1)[:, -k_found:]).flip(1)
    else:
        values = S.topk(k_found).values
    return nn.functional.pad(values, (0, k - k_found), value=-torch.inf)
