"""Where the matches of queries stand among their neighbours, from whole rows of similarities.

Axis letters: Q queries, G gallery rows, N gallery rows of the classes of the queries, R matches.
"""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from ._rows import compare, matrix_in, tile_size
from ._thresholds import columns_of_classes, largest, match_thresholds, parts_of_classes, thresholds

_MAX_KEPT = 2**28  # similarities kept for the strips of their columns: 1 GiB, 2 in float64
_MAX_PART = 2**20  # similarities that a thread looks through at once, so that they stay in the cache,
_MAX_PART_QUERIES = 32
_SAFETY = 2  # of a guess which similarity enough rows reach: in standard deviations of their number in the sample


@torch.no_grad()
def find_in_strips(queries, gallery, n_matches, k_max, own=None):
    """Return n_nearer, n_hits and precision of each query, as in `Matches`.

    `own` are the gallery rows that are the queries themselves, None: these are all of the gallery, or none of it.
    """
    if queries is gallery:
        own = torch.arange(len(queries), device=n_matches.device)
    rank = _rank_in_threads if n_matches.device.type == "cpu" else _rank
    n_enough = n_matches.clamp(min=k_max)
    found = [
        rank(S, queries[q], gallery, n_matches[q], n_enough[q], None if own is None else own[q])
        for q, S in _strips(queries, gallery)
    ]
    return map(torch.cat, zip(*found, strict=True))


def _strips(queries, gallery):
    """Yield slices of the queries and their similarities to the gallery (n, G), all in one memory, to be changed.

    Where the queries are the gallery, those of a pair are computed once, if there is room to keep them for the strip of
    the column.
    """
    size = math.ceil(16 * tile_size(gallery.points) ** 2 / len(gallery))
    parts = [slice(start, start + size) for start in range(0, len(queries), size)]
    buffer = gallery.points.new_empty(min(size, len(queries)) * len(gallery))
    kept, room = {}, _MAX_KEPT
    for i, q in enumerate(parts):
        rows = queries[q]
        S = matrix_in(buffer, len(rows), len(gallery))
        for j, g in enumerate(parts if queries is gallery else [slice(None)]):
            if (j, i) in kept:
                S[:, g] = kept.pop((j, i))
                room += S[:, g].numel()
                continue
            compare(rows, gallery[g], S[:, g])
            if j > i and S[:, g].numel() <= room:
                kept[i, j] = S[:, g].T.clone(memory_format=torch.contiguous_format)
                room -= kept[i, j].numel()
        yield q, S


def _rank_in_threads(S, queries, gallery, n_matches, n_enough, own):
    """Return what `find_in_strips` does, of queries with these similarities, which are changed.

    NumPy sorts and searches on the CPU many times faster than torch, but in one thread: each is given some queries.
    """
    S, n_matches, n_enough, classes, gallery_classes = (
        values.numpy() for values in (S, n_matches, n_enough, queries.classes, gallery.classes)
    )
    offsets = None if queries.offsets is None else queries.offsets.numpy()
    columns_of = columns_of_classes(queries.classes, gallery.classes)

    def rank(q):
        others, columns = S[q], columns_of(q)
        guesses = _Guesses(others, n_enough[q])
        near = others[:, columns]
        is_match = classes[q, None] == gallery_classes[columns]
        matches = thresholds(near, queries.rounding, None if offsets is None else offsets[q])
        np.copyto(near, -np.inf, where=is_match)
        if own is not None:
            np.put_along_axis(is_match, own.numpy()[q, None] - columns.start, False, axis=1)
        worst = np.where(is_match, matches, np.inf).min(axis=1, initial=np.inf)
        np.copyto(matches, -np.inf, where=~is_match)

        bar = np.maximum(guesses.next(), worst)
        found = _places(others, matches, bar, n_matches[q])
        while len(again := ((found[0] < n_enough[q]) & (bar > worst)).nonzero()[0]):
            bar[again] = np.maximum(guesses.next()[again], worst[again])
            new = _places(others[again], matches[again], bar[again], n_matches[q][again])
            for values, part in zip(found, new, strict=True):
                values[again] = part
        return np.minimum(found[1], n_enough[q]), *found[2:]

    size = max(1, min(_MAX_PART_QUERIES, _MAX_PART // len(gallery_classes)))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(rank, parts_of_classes(queries.classes, size)))
    return [torch.from_numpy(np.concatenate(values)) for values in zip(*found, strict=True)]


class _Guesses:
    """Falling guesses, from every n-th column, which similarity enough rows reach; -inf in the end."""

    def __init__(self, S, n_enough):
        # As many columns as cost about as much to sort as it costs to sort the rows beyond enough.
        step = max(1, round((S.shape[1] ** 2 / n_enough.max()) ** (1 / 3) / 2))
        self.sample = np.sort(S[:, ::step], axis=1)
        self.n = np.ceil((n_enough + _SAFETY * np.sqrt(step * n_enough)) / step).astype(int)

    def next(self):
        place = np.maximum(self.sample.shape[1] - self.n, 0)
        values = np.take_along_axis(self.sample, place[:, None], axis=1)[:, 0]
        values[self.n > self.sample.shape[1]] = -np.inf
        self.n *= 2
        return values


def _places(others, matches, bar, n_matches):
    """Return how many rows were found, n_nearer, n_hits and precision of each query, from what reaches its bar.

    All similarities are -inf but those of rows of other classes, in `others`, and of the matches.
    """
    best, bar = others.max(axis=1)[:, None], bar[:, None]
    n_first = np.count_nonzero(matches > best, axis=1)  # of the matches, before all rows of other classes
    keys, n_found = _sorted_keys((matches, (matches >= bar) & (matches <= best)), (others, others >= bar))
    is_match = (keys.view(f"i{keys.itemsize}") & 1 == 0) & (keys < np.inf)
    n_nearer = np.where(is_match.any(axis=1), is_match.argmax(axis=1), n_found)
    n_nearer[n_first > 0] = 0

    # Small types: what follows takes longer than the search otherwise.
    n_first, n_left = n_first.astype(np.int32), (n_matches - n_first).astype(np.int32)
    width = min(keys.shape[1], max(1, n_left.max()))
    is_hit = is_match[:, :width] & (np.arange(width, dtype=np.int32) < n_left[:, None])
    i = (is_hit.cumsum(axis=1, dtype=np.int32) + n_first[:, None]) * is_hit
    inverse = 1 / np.arange(1, n_first.max() + width + 1)  # of positions
    precision = n_first + (i * sliding_window_view(inverse, width)[n_first]).sum(axis=1)
    return n_first + n_found, n_nearer, n_first + np.count_nonzero(is_hit, axis=1), precision


def _sorted_keys(*kinds):
    """Return the values of the pairs (values, which of them) of each row, from the largest, and how many they are.

    They are negated, and their last bit is 0 for values of the first pair and 1 for those of the second. That may turn
    values that differ by their rounding, for which thresholds leave room. Inf follows where a row has fewer.
    """
    chosen, edges = [], []
    for bit, (values, is_one) in enumerate(kinds):
        place = np.flatnonzero(is_one)
        edges.append(np.searchsorted(place, np.arange(len(values) + 1) * values.shape[1]))
        chosen.append(-values.ravel()[place])
        bits = chosen[-1].view(f"i{values.itemsize}")
        np.bitwise_or(bits & ~1, bit, out=bits)
    n_found = sum(map(np.diff, edges))
    keys = np.full((len(n_found), max(1, n_found.max())), np.inf, dtype=chosen[0].dtype)
    for row, n, *ends in zip(keys, n_found, *map(itertools.pairwise, edges), strict=True):
        np.concatenate([values[slice(*end)] for values, end in zip(chosen, ends, strict=True)], out=row[:n])
    keys.sort(axis=1)
    return keys, n_found


def _rank(S, queries, gallery, n_matches, n_enough, own):
    """Return what `find_in_strips` does, of queries with these similarities, which are changed."""
    columns = columns_of_classes(queries.classes[[0, -1]], gallery.classes)(slice(0, 2))
    near, r = gallery.classes[columns], int(n_matches.max().clamp(min=1))
    matches = match_thresholds(S[:, columns].clone(), queries, near, None if own is None else own - columns.start, r)
    S[:, columns].masked_fill_(queries.classes[:, None] == near, -torch.inf)

    best = matches[:, :1]
    n_nearer = torch.ge(S, best.masked_fill(best == -torch.inf, torch.inf)).sum(1)  # none before no match
    i = torch.arange(1, r + 1, dtype=torch.float64, device=S.device)
    position = i + torch.searchsorted(-largest(S, r), -matches, right=True)
    is_hit = position <= n_matches[:, None]
    return n_nearer, is_hit.sum(1), (i / position * is_hit).sum(1)
