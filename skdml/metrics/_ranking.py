"""How many rows of other classes come before the matches of each query, counted tile by tile.

Axis letters: Q queries, R matches.
"""

import math

import torch

from ._rows import reaching, tile_size

_SAFETY = 1.5  # of a guess how many rows come before a match: three standard deviations of the root of a Poisson count


class Ranking:
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
        self.n_seen, self.n_next = 0, 1  # gallery rows: so far, and when the bar is set again
        self._place_bar()

    def add(self, row, values, n_new):
        """Take in similarities of queries `row` that may come before the bar, from so many more gallery rows."""
        values = values.to(self.matches.dtype)
        above = reaching(values, self.bar.index_select(0, row))
        self._wait(row.index_select(0, above), values.index_select(0, above))
        self.n_seen += n_new
        if self.n_seen >= self.n_next or self.n_waiting > len(self.n_between) / 2:
            self._tally()
            self._set_bar(self.n_seen)
            self.n_next = 4 * self.n_seen  # a guess gets better by the root of the rows seen

    def guess(self, sample):
        """Set the first bar by lower bounds of the similarities to some gallery rows, -inf for rows of the own class.

        They are taken in afterwards, too: without a guess, the first bar would be too low for all of a tile.
        """
        for some in (sample[:, ::8], sample):
            place = reaching(some, self.bar[:, None])
            self._wait(place // some.shape[1], some.flatten()[place].to(self.matches.dtype))
            self._tally()
            self._set_bar(some.shape[1])
            self.n_between.zero_()

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
        # Positions in int32 and index_select are twice as fast as int64 and brackets.
        place = self.start.int().index_select(0, row)
        last = (self.start + self.n_kept - 1).int().index_select(0, row) if n_left > int(self.n_matches.min()) else None
        while n_left:
            half = (n_left + 1) // 2
            middle = place + (half - 1)
            if last is not None:
                torch.minimum(middle, last, out=middle)
            place.add_(self.matches.index_select(0, middle) > values, alpha=half)
            n_left //= 2
        place += (self.first - self.start).int().index_select(0, row)
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
            precision.append((i.double() / position).masked_fill(i > n_hits[q, None], 0).sum(1))
        n_nearer = torch.where(self.n_kept > 0, self._rows_before(i[0]), self.n_enough)
        return n_nearer, n_hits, torch.cat(precision), is_wrong
