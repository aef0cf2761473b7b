"""Where the matches of each query stand among its neighbours.

Axis letters: Q queries, G gallery rows, R matches, K values of k.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ._bfloat16 import Rounded, round_rows
from ._rows import Rows, compare, matrix_in, similarities, similarities_of, thresholds, tile_size, tiles

_GROUP = 32  # columns of a tile that are looked at one by one only if one of them is near enough
_SAFETY = 1.5  # of a guess how many rows come before a match: three standard deviations of the root of a Poisson count
_MAX_ROUGH = 1 / 8  # of the similarities of a tile: if more than that are to be computed again, all of them are
_MAX_HELD = 2**27  # matches of all queries that are held at once, in about 12 bytes each, 18 in float64


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
    n_nearer: torch.Tensor  # (Q,) rows of other classes as near as the nearest match, or nearer; or enough of them
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

    A tile is computed in bfloat16 where that is faster, and of it in float64 only what may come before the bar of a
    query; all of it, if that is much. In float64, since float32 rounds the sums of two ways to multiply differently, so
    that rows equal to a match would not tie with it.
    """
    symmetric = queries is gallery
    rounded = round_rows(queries.points)
    rounded_gallery = rounded if symmetric else round_rows(gallery.points)
    is_rounded = rounded is not None and rounded_gallery is not None
    if is_rounded:
        queries = queries.double()
        gallery = queries if symmetric else gallery.double()
    query_blocks = _deal(queries, rounded if is_rounded else None, rounded_gallery)
    gallery_blocks = query_blocks if symmetric else _deal(gallery, rounded_gallery if is_rounded else None, rounded)
    matches, start = _thresholds_of_matches(queries, gallery, n_matches)
    n_held = [int(n_matches[block.index].sum()) for block in query_blocks]
    sums = torch.zeros(max(n_held) + 1, dtype=torch.int32, device=start.device)
    rankings = [
        _Ranking(matches, start[block.index], n_matches[block.index], k_max, len(gallery), sums[: n + 1])
        for block, n in zip(query_blocks, n_held, strict=True)
    ]

    buffer = queries.points.new_empty(len(query_blocks[0].rows) * _padded(len(gallery_blocks[0].rows)))
    products = buffer.new_empty(len(buffer) if is_rounded else 0, dtype=torch.bfloat16)
    for i, left in enumerate(query_blocks):
        for j in range(i if symmetric else 0, len(gallery_blocks)):
            right = gallery_blocks[j]
            for_columns = symmetric and i != j
            for is_rough in (True, False) if is_rounded else (False,):
                memory = buffer.view(torch.float32) if is_rough else buffer
                S = matrix_in(memory, len(left.rows), _padded(len(right.rows)))
                column_bar = S.new_full((S.shape[1],), torch.inf)
                _compare_blocks(left, right, S, products if is_rough else None)
                row_bar = rankings[i].bar_in(S, left.margin * is_rough)
                if for_columns:
                    column_bar[: len(right.rows)] = rankings[j].bar_in(S.T[: len(right.rows)], right.margin * is_rough)
                place = _places_before(S, row_bar, column_bar)
                if len(place) <= _MAX_ROUGH * S.numel():
                    break
            row, column = place // S.shape[1], place % S.shape[1]
            values = similarities_of(left.rows, right.rows, row, column) if is_rough else S.take(place)
            rankings[i].add(row, values, len(right.rows))
            if for_columns:
                rankings[j].add(column, values, len(left.rows))

    found = torch.empty_like(n_matches), torch.empty_like(n_matches), queries.points.new_empty(len(queries))
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


@dataclass
class _Block:
    """Some rows of the queries or of the gallery."""

    index: slice
    rows: Rows
    rounded: Rounded | None  # in bfloat16
    margin: torch.Tensor  # (n,) by how much their products with the other side are off then


def _deal(rows, rounded, others):
    """Return every n-th row as a block, for as few n as leave no more than a tile has."""
    margin = rounded.margin(others) if rounded else torch.zeros_like(rows.points[:, 0])
    blocks = []
    n = math.ceil(len(rows) / tile_size(rows.points))
    for start in range(n):
        q = slice(start, None, n)
        # Copied, so that the rows of a block are near each other in memory.
        block = rows[torch.arange(start, len(rows), n, device=margin.device)]
        blocks.append(_Block(q, block, rounded and rounded[q], margin[q]))
    return blocks


def _compare_blocks(left, right, S, products=None):
    """Write the similarities of two blocks into S, -inf for rows of one class and for columns beyond.

    With memory for the products, these are computed in bfloat16.
    """
    rows, columns = left.rows, right.rows
    part = S[:, : len(columns)]
    if products is None:
        compare(rows, columns, part)
    else:
        left.rounded.multiply(right.rounded, part, products)
        if rows.offsets is not None:
            part.sub_(rows.offsets[:, None]).sub_(columns.offsets)
    S[:, len(columns) :] = -torch.inf
    _leave_out_matches(S, rows.classes, columns.classes)


def _places_before(S, row_bar, column_bar):
    """Return the places in S, rising, of the values that come before the bar of their row or that of their column."""
    groups, column_bars = S.view(-1, _GROUP), column_bar.view(-1, _GROUP)
    bar = torch.minimum(row_bar[:, None], column_bars.amin(1))  # of all columns of a group
    group = _where(groups.amax(1) >= bar.flatten())
    bars = column_bars.index_select(0, group % len(column_bars))
    torch.minimum(bars, row_bar.index_select(0, group // len(column_bars))[:, None], out=bars)
    values = groups.index_select(0, group)  # twice as fast as an index in brackets
    place = _where((values >= bars).flatten())
    return group.index_select(0, place // _GROUP) * _GROUP + place % _GROUP


class _Ranking:
    """How many rows of other classes come before the matches of a block of queries.

    The i-th match is a hit while at most R - i of them do. Of each tile only those rows are looked at that come before
    the first match that seems to be no hit, as guessed from the rows seen so far, or before the best match. Queries of
    which the guess was wrong are held against the whole gallery at the end.
    """

    def __init__(self, matches, start, n_matches, k_max, n_gallery, sums):
        self.matches = matches  # thresholds of one query after another, falling for each
        self.start = start  # those of each query start here
        self.n_matches = n_matches
        self.n_enough = n_matches.clamp(min=k_max)  # rows before the best match: more need not be told apart
        self.n_gallery = n_gallery
        self.n_possible = n_matches  # matches that may be hits
        self.n_kept = n_matches  # those of them up to the first that seems to be no hit
        # Rows of other classes that come before a match but not before the previous one, each query's from `first` on;
        # and their sums, of which only differences are used, so that they may wrap. All blocks use this memory in turn.
        self.n_between = torch.zeros_like(sums[1:])
        self.first = n_matches.cumsum(0) - n_matches
        self.n_before = sums
        self.rows, self.values, self.n_waiting = [], [], 0  # not yet tallied
        self.n_seen, self.n_next = 0, 0  # gallery rows: so far, and when the bar is set again
        self._place_bar()

    def bar_in(self, S, margin):
        """Return from which similarity in S (Q, gallery rows) on, off by `margin` (Q,), a row may come before the bar.

        S is -inf for rows of the own class.
        """
        if self.n_next == 0:
            self._make_first_guess(S, margin)
        return (self.bar - margin).to(S.dtype)

    def add(self, row, values, n_new):
        """Take in similarities of queries `row` that may come before the bar, from so many more gallery rows."""
        above = _where(values >= self.bar.index_select(0, row))
        self._wait(row.index_select(0, above), values.index_select(0, above))
        self.n_seen += n_new
        if self.n_seen >= self.n_next or self.n_waiting > len(self.n_between) / 2:
            self._tally()
            self._set_bar(self.n_seen)
            self.n_next = 4 * self.n_seen  # a guess gets better by the root of the rows seen

    def _make_first_guess(self, S, margin):
        """Set the bar by two samples of a tile, taken in afterwards: the first bar is too low for all of it."""
        for step in (32, 4):
            sample = S[:, ::step] - margin[:, None]
            place = _where((sample >= self.bar[:, None]).flatten())
            self._wait(place // sample.shape[1], sample.flatten()[place])
            self._tally()
            self._set_bar(sample.shape[1])
            self.n_between.zero_()
        self.n_next = 1

    def _wait(self, row, values):
        self.rows.append(row)
        self.values.append(values)
        self.n_waiting += len(row)

    def _tally(self):
        """Count the values waiting by the matches between which they lie."""
        row, values = torch.cat(self.rows), torch.cat(self.values)
        self.rows, self.values, self.n_waiting = [], [], 0
        # Binary search: the matches before the value are those before `place`, and some of the `n_left` from there on,
        # never the last one kept.
        n_left = int(self.n_kept.max())
        place = self.start[row]
        last = place + (self.n_kept[row] - 1) if n_left > int(self.n_matches.min()) else None
        while n_left:
            half = (n_left + 1) // 2
            middle = place + (half - 1)
            if last is not None:
                torch.minimum(middle, last, out=middle)
            place.add_(self.matches.take(middle) > values, alpha=half)
            n_left //= 2
        place += (self.first - self.start)[row]
        self.n_between.index_add_(0, place, torch.ones_like(row, dtype=torch.int32))

    def _set_bar(self, n_seen):
        """Leave out the matches that are no hits, or seem to be none after so many gallery rows.

        The best match is kept until `n_enough` rows come before it.
        """
        n_hits = self._count_hits(self.n_gallery / n_seen)
        i = n_hits + 1
        is_certain = (i <= self.n_kept) & (i + self._rows_before(i) > self.n_matches)
        self.n_possible = torch.where(is_certain, n_hits, self.n_possible)
        is_lost = self._rows_before(torch.ones_like(i)) >= self.n_enough
        n_kept = torch.where(is_certain, n_hits.clamp(min=1), torch.minimum(i, self.n_kept))
        self.n_kept = n_kept.masked_fill(is_lost, 0)
        self._place_bar()

    def _place_bar(self):
        """Set from which similarity on a row is noted; inf: none is."""
        last = self.matches[(self.start + self.n_kept - 1).clamp(min=0)]
        self.bar = last.masked_fill(self.n_kept == 0, torch.inf)

    def _count_hits(self, times):
        """Return how many of the matches kept are hits if there are so many times the rows counted before them."""
        torch.cumsum(self.n_between, 0, dtype=torch.int32, out=self.n_before[1:])
        n_hits = torch.zeros_like(self.n_matches)
        step = 1 << int(self.n_kept.max()).bit_length() >> 1
        while step:
            i = n_hits + step
            n = self._rows_before(i)
            if times > 1:
                n = torch.maximum(n, (n.sqrt() - _SAFETY).clamp(min=0).square() * times)
            n_hits = torch.where((i <= self.n_kept) & (i + n <= self.n_matches), i, n_hits)
            step //= 2
        return n_hits

    def _rows_before(self, i, q=slice(None)):
        """Return how many rows of other classes were counted before the i-th match, or the last one kept."""
        i = torch.minimum(i, self.n_kept[q])
        return self.n_before[self.first[q] + i] - self.n_before[self.first[q]]

    def finish(self):
        """Return n_nearer, n_hits and precision of each query, and whether a guess was wrong."""
        if self.rows:
            self._tally()
        n_hits = self._count_hits(1)
        is_wrong = (n_hits == self.n_kept) & (self.n_kept < self.n_possible)

        i = torch.arange(1, int(n_hits.max().clamp(min=1)) + 1, device=n_hits.device)
        precision = []
        few = math.ceil(tile_size(i) ** 2 / 16 / len(i))  # queries, so that they stay in the cache
        for q in torch.arange(len(n_hits), device=i.device).split(few):
            position = i + self._rows_before(i, q[:, None])
            precision.append((i.to(self.matches.dtype) / position).masked_fill(i > n_hits[q, None], 0).sum(1))
        n_nearer = torch.where(self.n_kept > 0, self._rows_before(i[0]), self.n_enough)
        return n_nearer, n_hits, torch.cat(precision), is_wrong


def _padded(n):
    return math.ceil(n / _GROUP) * _GROUP


def _thresholds_of_matches(queries, gallery, n_matches):
    """Return the thresholds of all matches, falling for each query, and where those of each query start (Q,)."""
    columns_of = _columns_of_classes(queries, gallery)
    # Few queries at once, to compare few rows of other classes.
    parts = torch.arange(len(queries), device=n_matches.device).split(math.ceil(tile_size(queries.points) / 16))
    widths = torch.stack([n_matches[q].max() for q in parts]).clamp(min=1).tolist()
    matches = queries.points.new_empty(sum(len(q) * r for q, r in zip(parts, widths, strict=True)))
    start = torch.empty_like(n_matches)
    first = n_held = 0
    for q, r in zip(parts, widths, strict=True):
        columns = columns_of(first, first + len(q) - 1)
        near = gallery[columns]
        S = similarities(queries[q], near, near.points.new_empty(len(q) * len(near)))
        matches[n_held : n_held + len(q) * r] = _match_thresholds(S, queries, gallery, q, columns, r).flatten()
        start[q] = n_held + r * (q - first)
        first, n_held = first + len(q), n_held + len(q) * r
    return matches, start


def _leave_out_matches(S, row_classes, column_classes):
    """Write -inf where row and column, both in the order of their classes, are of one class."""
    row_classes, column_classes = row_classes.contiguous(), column_classes.contiguous()
    first = torch.searchsorted(column_classes, row_classes)
    n = torch.searchsorted(column_classes, row_classes, right=True) - first
    place = (torch.arange(len(S), device=n.device) * S.shape[1] + first - (n.cumsum(0) - n)).repeat_interleave(n)
    place += torch.arange(len(place), device=n.device)
    S.view(-1).index_fill_(0, place, -torch.inf)


def _find_in_strips(queries, gallery, n_matches, index):
    """Return n_nearer, n_hits and precision of the queries of a rising index, from whole rows of similarities."""
    n_rows = min(len(index), math.ceil(16 * tile_size(gallery.points) ** 2 / len(gallery)))
    buffer = gallery.points.new_empty(n_rows * len(gallery))
    columns_of = _columns_of_classes(queries, gallery)
    parts = []
    for q in index.split(n_rows):
        rows, columns = queries[q], columns_of(int(q[0]), int(q[-1]))
        S = similarities(rows, gallery, buffer)
        matches = _match_thresholds(S[:, columns], queries, gallery, q, columns, int(n_matches[q].max().clamp(min=1)))
        S[:, columns].masked_fill_(rows.classes[:, None] == gallery.classes[columns], -torch.inf)

        best = matches[:, :1]
        n_nearer = torch.ge(S, best.masked_fill(best == -torch.inf, torch.inf)).sum(1)  # none before no match
        i = torch.arange(1, matches.shape[1] + 1, dtype=matches.dtype, device=q.device)
        position = i + torch.searchsorted(-_largest(S, len(i)), -matches, right=True)
        is_hit = position <= n_matches[q, None]
        parts.append((n_nearer, is_hit.sum(1), (i / position * is_hit).sum(1)))
    return map(torch.cat, zip(*parts, strict=True))


def _where(mask):
    """Return the indices at which a mask of one axis is True."""
    if mask.device.type != "cpu":
        return mask.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than torch


def _columns_of_classes(queries, gallery):
    """Return a function from the first and the last of some queries to the slice of the gallery with their classes."""
    first = torch.searchsorted(gallery.classes, queries.classes).tolist()
    last = torch.searchsorted(gallery.classes, queries.classes, right=True).tolist()
    return lambda a, b: slice(first[a], last[b])


def _match_thresholds(S, queries, gallery, q, columns, r):
    """Return from which similarity on a row is as near as each of r matches, falling (Q, R); -inf beyond the matches.

    S holds the similarities of the queries q, an index, and of a slice of the gallery.
    """
    S = S.masked_fill(queries.classes[q, None] != gallery.classes[columns], -torch.inf)
    if queries is gallery:
        S.scatter_(1, q[:, None] - columns.start, -torch.inf)
    return thresholds(_largest(S, r), queries[q])


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
