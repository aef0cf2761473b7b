"""Where the matches of each query stand among its neighbours.

Axis letters: Q queries, G gallery rows, R matches.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ._candidates import deal, memory_for, pairs_before_bars, round_sides
from ._ranking import Ranking
from ._recall import recalls_of
from ._rows import similarities, thresholds, tile_size

_MAX_HELD = 2**27  # matches of all queries that are held at once, in about 12 bytes each, 18 in float64


@dataclass
class Matches:
    """Where the matches of each query stand among its neighbours; of equally near rows, other classes come first."""

    n_matches: torch.Tensor  # (Q,) R
    n_nearer: torch.Tensor  # (Q,) rows of other classes as near as the nearest match, or nearer; or enough of them
    n_hits: torch.Tensor  # (Q,) matches among the first R neighbours
    precision: torch.Tensor  # (Q,) float64: sum over these matches of the precision at their position

    def recalls(self, ks):
        return recalls_of(self.n_nearer, self.n_matches, ks)

    def r_precision(self):
        return self._mean_of_shares(self.n_hits)

    def map_at_r(self):
        return self._mean_of_shares(self.precision)

    def _mean_of_shares(self, values):
        valid = self.n_matches > 0
        return (values[valid].double() / self.n_matches[valid]).mean().item()


@torch.no_grad()
def find_matches(queries, gallery, n_matches, k_max=1):
    """Return the `Matches` of all queries, which tell the recall at k up to `k_max`."""
    if int(n_matches.sum()) <= _MAX_HELD:
        return Matches(n_matches, *_find_in_tiles(queries, gallery, n_matches, k_max))
    everyone = torch.arange(len(queries), device=n_matches.device)
    return Matches(n_matches, *_find_in_strips(queries, gallery, n_matches, everyone))


def _find_in_tiles(queries, gallery, n_matches, k_max):
    """Return n_nearer, n_hits and precision of each query, from one pass over the tiles.

    The rows are dealt to the tiles like cards, so that each tile holds a fair sample of the gallery. As in
    `nearer_than_best_match`, a tile serves its rows and its columns where the queries are the gallery.
    """
    symmetric = queries is gallery
    dtype = queries.points.dtype
    (queries, rounded), (gallery, rounded_gallery) = round_sides(queries, gallery)
    query_blocks = deal(queries, rounded, rounded_gallery)
    gallery_blocks = query_blocks if symmetric else deal(gallery, rounded_gallery, rounded)
    matches, start = _thresholds_of_matches(queries, gallery, n_matches, dtype)
    n_held = [int(n_matches[block.index].sum()) for block in query_blocks]
    sums = torch.zeros(max(n_held) + 1, dtype=torch.int32, device=start.device)
    rankings = [
        Ranking(matches, start[block.index], n_matches[block.index], k_max, len(gallery), sums[: n + 1])
        for block, n in zip(query_blocks, n_held, strict=True)
    ]

    memory = memory_for(query_blocks[0], gallery_blocks[0])
    for i, left in enumerate(query_blocks):
        for j, right in enumerate(gallery_blocks):
            if symmetric and j < i:
                continue
            column_ranking = rankings[j] if symmetric and i != j else None
            row, column, values = pairs_before_bars(left, right, rankings[i], column_ranking, memory)
            rankings[i].add(row, values, len(right))
            if column_ranking is not None:
                column_ranking.add(column, values, len(left))

    found = *(torch.empty_like(n_matches) for _ in range(2)), torch.empty_like(n_matches, dtype=torch.float64)
    is_wrong = torch.empty_like(n_matches, dtype=torch.bool)
    for block, ranking in zip(query_blocks, rankings, strict=True):
        *parts, is_wrong[block.index] = ranking.finish()
        for values, part in zip(found, parts, strict=True):
            values[block.index] = part
    wrong = is_wrong.nonzero()[:, 0]
    if len(wrong):
        for values, part in zip(found, _find_in_strips(queries, gallery, n_matches, wrong), strict=True):
            values[wrong] = part
    return found


def _thresholds_of_matches(queries, gallery, n_matches, dtype):
    """Return the thresholds of all matches, falling for each query, and where those of each query start (Q,)."""
    columns_of = _columns_of_classes(queries, gallery)
    parts = _parts_of_classes(queries)
    widths = torch.stack([n_matches[q].max() for q in parts]).clamp(min=1).tolist()
    matches = queries.points.new_empty(sum(len(q) * r for q, r in zip(parts, widths, strict=True)), dtype=dtype)
    start = torch.empty_like(n_matches)
    first = n_held = 0
    for q, r in zip(parts, widths, strict=True):
        columns = columns_of(first, first + len(q) - 1)
        near = gallery[columns]
        S = similarities(queries[q], near, near.points.new_empty(len(q) * len(near))).to(dtype)
        matches[n_held : n_held + len(q) * r] = _match_thresholds(S, queries, gallery, q, columns, r).flatten()
        start[q] = n_held + r * (q - first)
        first, n_held = first + len(q), n_held + len(q) * r
    return matches, start


def _parts_of_classes(queries):
    """Return indices of queries, few at once and no part of a class with parts of others, to compare few of these."""
    size = math.ceil(tile_size(queries.points) / 16)
    first = [*torch.searchsorted(queries.classes, queries.classes).tolist(), len(queries)]  # of the class of each query
    edges = [0]
    while edges[-1] < len(queries):
        end = min(edges[-1] + size, len(queries))
        edges.append(first[end] if first[end] > edges[-1] else end)
    index = torch.arange(len(queries), device=queries.classes.device)
    return [index[start:end] for start, end in itertools.pairwise(edges)]


def _find_in_strips(queries, gallery, n_matches, index):
    """Return n_nearer, n_hits and precision of the queries of a rising index, from whole rows of similarities."""
    n_rows = min(len(index), math.ceil(16 * tile_size(gallery.points) ** 2 / len(gallery)))
    buffer = gallery.points.new_empty(n_rows * len(gallery))
    columns_of = _columns_of_classes(queries, gallery)
    parts = []
    for q in index.split(n_rows):
        rows, columns = queries[q], columns_of(int(q[0]), int(q[-1]))
        S = similarities(rows, gallery, buffer)
        r = int(n_matches[q].max().clamp(min=1))
        matches = _match_thresholds(S[:, columns].clone(), queries, gallery, q, columns, r)
        S[:, columns].masked_fill_(rows.classes[:, None] == gallery.classes[columns], -torch.inf)

        best = matches[:, :1]
        n_nearer = torch.ge(S, best.masked_fill(best == -torch.inf, torch.inf)).sum(1)  # none before no match
        i = torch.arange(1, matches.shape[1] + 1, dtype=torch.float64, device=q.device)
        position = i + torch.searchsorted(-_largest(S, len(i)), -matches, right=True)
        is_hit = position <= n_matches[q, None]
        parts.append((n_nearer, is_hit.sum(1), (i / position * is_hit).sum(1)))
    return map(torch.cat, zip(*parts, strict=True))


def _columns_of_classes(queries, gallery):
    """Return a function from the first and the last of some queries to the slice of the gallery with their classes."""
    first = torch.searchsorted(gallery.classes, queries.classes).tolist()
    last = torch.searchsorted(gallery.classes, queries.classes, right=True).tolist()
    return lambda a, b: slice(first[a], last[b])


def _match_thresholds(S, queries, gallery, q, columns, r):
    """Return from which similarity on a row is as near as each of r matches, falling (Q, R); -inf beyond the matches.

    S holds the similarities of the queries q, an index, and of a slice of the gallery; it is changed.
    """
    if not torch.equal(queries.classes[q[:1]], queries.classes[q[-1:]]):  # else all the columns are of their class
        S.masked_fill_(queries.classes[q, None] != gallery.classes[columns], -torch.inf)
    if queries is gallery:
        S.scatter_(1, q[:, None] - columns.start, -torch.inf)
    return thresholds(_largest(S, r), queries[q])


def _largest(S, k):
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
