"""Where the matches of each query stand among its neighbours.

Axis letters: Q queries, G gallery rows, R matches, K values of k.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ._rows import blocks, similarities, thresholds, tile_size, tiles

_GROUP = 16  # gallery rows of a tile that are looked at one by one only if one of them is near enough
_FIRST = 64  # gallery rows after which it is first reckoned which matches may still be hits
_MAX_HELD = 2**27  # matches of all queries that are held at once, in about 16 bytes each, 24 in float64


def recalls_of(n_nearer, n_matches, ks):
    """Recall at each of `ks`, of queries with a match."""
    n_nearer = n_nearer[n_matches > 0]
    if len(n_nearer) == 0:
        return np.full(len(ks), np.nan)
    hits = n_nearer[:, None] < torch.tensor(ks, device=n_nearer.device)  # (Q, K)
    return hits.sum(0).cpu().numpy() / len(n_nearer)


@torch.no_grad()
def nearer_than_best_match(queries, gallery):
    """How many rows of other classes are as near as the best match of each query, or nearer, (Q,).

    Both are sorted by class, so that rows of one class meet in few tiles, near the diagonal. A first pass over these
    finds the best matches, with small tiles to hold few other rows; a second one over all tiles counts. Without a
    separate gallery a tile serves its rows and its columns, and those below the diagonal are not needed.
    """
    symmetric = queries is gallery
    new = queries.points.new_empty
    best = new(len(queries)).fill_(-torch.inf)
    ranks = torch.zeros_like(queries.classes)
    size = tile_size(queries.points)
    # The flags have the type of the similarities, as torch compares and sums floats several times faster than booleans.
    buffer, flags = (new(min(size, len(queries)) * min(size, len(gallery))) for _ in range(2))

    for q, g, may_match, _ in tiles(queries, gallery, math.ceil(size / 4)):
        if may_match:
            S = similarities(queries[q], gallery[g], buffer)
            S.masked_fill_(queries.classes[q, None] != gallery.classes[g], -torch.inf)
            if symmetric and q == g:
                S.fill_diagonal_(-torch.inf)
            elif symmetric:
                best[g] = torch.maximum(best[g], S.amax(0))
            best[q] = torch.maximum(best[q], S.amax(1))

    best = thresholds(best, queries)
    for q, g, may_match, may_differ in tiles(queries, gallery, size):
        if may_differ:
            S = similarities(queries[q], gallery[g], buffer)
            if may_match:
                S.masked_fill_(queries.classes[q, None] == gallery.classes[g], -torch.inf)
            nearer = flags[: S.numel()].view_as(S)
            ranks[q] += torch.ge(S, best[q, None], out=nearer).sum(1).long()
            if symmetric and q != g:
                ranks[g] += torch.ge(S, best[g], out=nearer).sum(0).long()
    return ranks


@dataclass
class Matches:
    """Where the matches of each query stand among its neighbours; of equally near rows, other classes come first."""

    n_matches: torch.Tensor  # (Q,) R
    n_nearer: torch.Tensor  # (Q,) rows of other classes as near as the nearest match, or nearer
    n_hits: torch.Tensor  # (Q,) matches among the first R neighbours
    precision: torch.Tensor  # (Q,) sum over these matches of the precision at their position

    def recalls(self, ks):
        return recalls_of(self.n_nearer, self.n_matches, ks)

    def r_precision(self):
        return self._mean_of_shares(self.n_hits)

    def map_at_r(self):
        return self._mean_of_shares(self.precision)

    def _mean_of_shares(self, values):
        valid = self.n_matches > 0
        return (values[valid] / self.n_matches[valid].to(self.precision.dtype)).mean().item()


@torch.no_grad()
def find_matches(queries, gallery, n_matches):
    """Return the `Matches` of all queries."""
    find = _find_in_tiles if len(n_matches) * int(n_matches.max()) <= _MAX_HELD else _find_in_strips
    parts = find(queries, gallery, n_matches, _columns_of_classes(queries, gallery))
    return Matches(n_matches, *map(torch.cat, zip(*parts, strict=True)))


def _find_in_tiles(queries, gallery, n_matches, columns_of):
    """Return n_nearer, n_hits and precision of one block of queries after another, from one pass over the tiles.

    As in `nearer_than_best_match`, a tile serves its rows and its columns where the queries are the gallery.
    """
    size = tile_size(queries.points)
    query_blocks = [q for q, *_ in blocks(queries, size)]
    rankings = {}
    for q, r in zip(query_blocks, _largest_r(n_matches, query_blocks), strict=True):
        parts = []
        for part in _split(q, math.ceil(size / 16)):  # small, to compare few rows of other classes
            near = gallery[columns_of(part)]
            S = similarities(queries[part], near, near.points.new_empty((part.stop - part.start) * len(near)))
            parts.append(_match_thresholds(S, queries, gallery, part, columns_of(part), r))
        rankings[q.start] = _Ranking(torch.cat(parts), n_matches[q])

    buffer, flags = (queries.points.new_empty(min(size, len(queries)) * min(size, len(gallery))) for _ in range(2))
    for q, g, may_match, may_differ in tiles(queries, gallery, size):
        if may_differ:
            S = similarities(queries[q], gallery[g], buffer)
            if may_match:
                S.masked_fill_(queries.classes[q, None] == gallery.classes[g], -torch.inf)
            nearer = flags[: S.numel()].view_as(S)
            rankings[q.start].add(S, nearer, axis=1)
            if queries is gallery and q != g:
                rankings[g.start].add(S, nearer, axis=0)
    return [ranking.finish() for ranking in rankings.values()]


class _Ranking:
    """How many rows of other classes come before the matches of a block of queries.

    The i-th match is a hit while at most R - i of them do. Of each tile only those rows are looked at that come before
    the last match that may still be a hit. Where no match may, those before the best one are only counted.
    """

    def __init__(self, matches, n_matches):
        self.matches = matches
        self.n_matches = n_matches
        # [q, i]: rows of other classes behind i matches of the query and before the next one
        self.n_between = torch.zeros_like(self.matches, dtype=torch.int32)
        self.n_lost = torch.zeros_like(n_matches)  # before the best match, since no match can be a hit
        self.rows, self.groups = [], []  # not yet tallied
        self.n_columns = matches.shape[1]  # beyond them no match can be a hit
        self.is_new = True
        self._set_bar()

    def add(self, S, flags, axis):
        """Take in similarities, -inf for rows of the own class, to gallery rows along the axis; flags are scratch."""
        # The bar is far too low for the first rows, so it is raised after a few of them.
        length = _FIRST if self.is_new else S.shape[axis]
        start = 0
        while start < S.shape[axis]:
            length = min(length, S.shape[axis] - start)
            self._add(S.narrow(axis, start, length), flags.narrow(axis, start, length), axis)
            start += length
            length = start  # as many as so far
            if self.is_new:
                self._raise_bar()
        self.is_new = False

    def _add(self, S, flags, axis):
        size = math.gcd(S.shape[axis], _GROUP)
        bar = self.bar if axis else self.bar.T
        counts = torch.ge(S, bar, out=flags).unflatten(axis, (size, -1)).sum(axis)
        counts = counts if axis else counts.T  # (Q, groups)
        if self.any_is_lost:
            self.n_lost += (counts.sum(1) * self.is_lost).long()
            counts = counts * ~self.is_lost[:, None]
        row, group = _where(counts > 0)
        S = S.unflatten(axis, (size, -1))
        values = S[row, :, group] if axis else S[:, group, row].T
        self.rows.append(row)
        self.groups.append(nn.functional.pad(values, (0, _GROUP - size), value=-torch.inf) if size < _GROUP else values)
        self.n_new += len(row)
        if self.n_new * _GROUP > self.n_between.numel():  # as many values wait as matches are held
            self._raise_bar()

    def _tally(self, row, values):
        """Count values by the matches between which they lie."""
        # Binary search: the matches before the value are those before `place`, and some of the `n_left` from there on.
        n_left = self.matches.shape[1]
        place = row * n_left
        while n_left:
            half = (n_left + 1) // 2
            place.add_(self.matches.take(place + (half - 1)) > values, alpha=half)
            n_left //= 2
        self.n_between.view(-1).index_add_(0, place, torch.ones_like(row, dtype=torch.int32))

    def _raise_bar(self):
        if self.rows:
            row, values = torch.cat(self.rows), torch.cat(self.groups)
            self.rows, self.groups = [], []
            near, column = _where(values >= self.bar[row])
            self._tally(row[near], values[near, column])
        self._set_bar()

    def _set_bar(self):
        position = self.n_between[:, : self.n_columns].cumsum(1, dtype=torch.int32)
        position += torch.arange(1, self.n_columns + 1, dtype=torch.int32, device=position.device)
        n_hits = torch.searchsorted(position, self.n_matches[:, None].int(), right=True)[:, 0]
        self.n_columns = max(1, int(n_hits.max()))
        self.is_lost = n_hits == 0
        self.any_is_lost = bool(self.is_lost.any())
        self.bar = _threshold(self.matches, (n_hits - 1).clamp(min=0)[:, None])
        self.n_new = 0  # groups since then

    def finish(self):
        self._raise_bar()
        n_before = self.n_between[:, : self.n_columns].cumsum(1, dtype=torch.int32)
        return self.n_lost + n_before[:, 0], *_hits(n_before, self.n_matches, self.matches.dtype)


def _find_in_strips(queries, gallery, n_matches, columns_of):
    """Return the same from rows of similarities to the whole gallery: for classes that are a fair share of it."""
    n_rows = min(len(queries), math.ceil(16 * tile_size(gallery.points) ** 2 / len(gallery)))
    buffer = gallery.points.new_empty(n_rows * len(gallery))
    strips = _split(slice(0, len(queries)), n_rows)
    parts = []
    for q, r in zip(strips, _largest_r(n_matches, strips), strict=True):
        S = similarities(queries[q], gallery, buffer)
        columns = columns_of(q)
        matches = _match_thresholds(S[:, columns], queries, gallery, q, columns, r)
        S[:, columns].masked_fill_(queries.classes[q, None] == gallery.classes[columns], -torch.inf)
        n_nearer = torch.ge(S, _threshold(matches, n_matches.new_zeros(len(S), 1))).sum(1)
        n_before = torch.searchsorted(-_largest(S, r), -matches, right=True)
        parts.append((n_nearer, *_hits(n_before, n_matches[q], matches.dtype)))
    return parts


def _where(mask):
    """Return the indices of the rows and of the columns where the mask is True."""
    if mask.device.type != "cpu":
        return mask.nonzero(as_tuple=True)
    place = torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than torch
    row = place // mask.shape[1]
    return row, place - row * mask.shape[1]


def _columns_of_classes(queries, gallery):
    """Return a function from a slice of queries to the slice of the gallery that holds their classes."""
    first = torch.searchsorted(gallery.classes, queries.classes).tolist()
    last = torch.searchsorted(gallery.classes, queries.classes, right=True).tolist()
    return lambda q: slice(first[q.start], last[q.stop - 1])


def _split(block, size):
    return [slice(start, min(start + size, block.stop)) for start in range(block.start, block.stop, size)]


def _largest_r(n_matches, slices):
    """List the largest R of each slice, at least 1; they leave the device at once."""
    return torch.stack([n_matches[q].max() for q in slices]).clamp(min=1).tolist()


def _match_thresholds(S, queries, gallery, q, columns, r):
    """Return from which similarity on a row is as near as each of r matches, falling (Q, R); -inf beyond the matches.

    S holds the similarities of the slices q and columns.
    """
    S = S.masked_fill(queries.classes[q, None] != gallery.classes[columns], -torch.inf)
    if queries is gallery:
        S.diagonal(q.start - columns.start).fill_(-torch.inf)
    return thresholds(_largest(S, r), queries[q])


def _threshold(matches, index):
    """Return the thresholds at an index (Q, 1), inf for queries without a match: nothing counts as nearer."""
    values = matches.gather(1, index)
    return values.masked_fill(values == -torch.inf, torch.inf)


def _hits(n_before, n_matches, dtype):
    """Return how many matches are among the first R (Q,) and the sum of the precision at them (Q,).

    n_before (Q, R) says how many rows of other classes come before each match: as near as it, or nearer.
    """
    i = torch.arange(1, n_before.shape[1] + 1, dtype=dtype, device=n_before.device)
    position = i + n_before
    is_hit = position <= n_matches[:, None]
    return is_hit.sum(1), (i / position * is_hit).sum(1)


def _largest(S, k):
    """Return the k largest values of each row, falling; -inf where there are fewer."""
    k_found = min(k, S.shape[1])
    if S.device.type == "cpu":  # NumPy sorts and partitions many times faster than torch
        values = np.partition(S.numpy(), S.shape[1] - k_found, axis=1)[:, S.shape[1] - k_found :]
        values.sort(axis=1)
        values = torch.from_numpy(values).flip(1)
    else:
        values = S.topk(k_found).values
    return nn.functional.pad(values, (0, k - k_found), value=-torch.inf)
