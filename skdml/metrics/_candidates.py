"""Similarities of the pairs that may count, found in tiles that are computed in bfloat16 where that is faster.

Such pairs are computed again in float64, in which all ways to sum a product agree within the rounding of the input. In
float32 they would not, and rows equal to a match would not tie with it.
"""

import math
from dataclasses import dataclass, replace

import torch

from ._bfloat16 import Rounded, round_rows
from ._rows import Rows, compare, matrix_in, reaching, similarities_of, tile_size

_GROUP = 32  # columns of a tile that are looked at one by one only if one of them is near enough
_SAMPLED = 4  # one of so many columns of the first tile is in the sample that tells where to begin
_MAX_GROUPS = 1 / 4  # of a tile: if more than that are near enough, all columns are looked at
_MAX_ROUGH = 1 / 8  # of the similarities of a tile: if more than that are to be computed again, all of them are


@dataclass
class Block:
    """Some rows of the queries or of the gallery: the rows of a tile, or its columns."""

    index: torch.Tensor  # (n,)
    rows: Rows
    rounded: Rounded | None  # in bfloat16; None: their similarities are computed exactly
    margin: torch.Tensor  # (n,) by how much these are off then

    def __len__(self):
        return len(self.rows)

    def exact(self):
        # The bars are of the input's type, in which less than the margin may have become 0.
        return replace(self, rounded=None, margin=torch.full_like(self.margin, torch.finfo(torch.float32).tiny))

    @property
    def is_rounded_last(self):
        """Whether the similarities were rounded to bfloat16 once more, after the margin."""
        return self.rounded is not None and self.rows.offsets is None

    def at_least(self, S):
        """Return lower bounds of the similarities of the rows (n, columns) of which S are computed."""
        if self.is_rounded_last:
            S = S - S.abs() * (torch.finfo(torch.bfloat16).eps / 2)
        return S - self.margin[:, None]

    def lowered(self, bar):
        """Return from which computed similarity on (n,) that of the rows may reach `bar`."""
        bar = bar - self.margin
        return bar.bfloat16().to(bar.dtype) if self.is_rounded_last else bar


def round_sides(queries, gallery):
    """Return (rows, the same in bfloat16) of the queries and of the gallery.

    The rows are in float64 then; they stay as they are, with None beside, where bfloat16 does not pay.
    """
    sides = [queries] if queries is gallery else [queries, gallery]
    rounded = [round_rows(rows.points) for rows in sides]
    if any(points is None for points in rounded):
        sides = [(rows, None) for rows in sides]
    else:
        sides = [(rows.double(), points) for rows, points in zip(sides, rounded, strict=True)]
    return sides[0], sides[-1]


def deal(rows, rounded, others):
    """Return every n-th row as a block, as cards are dealt, for as few n as leave no more than a tile has.

    `rounded` and `others` are the rows and those of the other side in bfloat16, or None.
    """
    if rounded is None:
        margin = torch.zeros_like(rows.points[:, 0])
    else:
        margin = rounded.margin_of_sum(others) if rows.offsets is None else rounded.margin(others)
    blocks = []
    n = math.ceil(len(rows) / tile_size(rows.points))
    for start in range(n):
        # Copied, so that the rows of a block are near each other in memory.
        q = torch.arange(start, len(rows), n, device=margin.device)
        blocks.append(Block(q, rows[q], None if rounded is None else rounded[q], margin[q]))
    return blocks


def memory_for(left, right):
    """Return the memory of a tile of two blocks, for `pairs_before_bars`."""
    return left.rows.points.new_empty(len(left) * _padded(len(right)))


def pairs_before_bars(left, right, row_ranking, column_ranking, memory):
    """Return row, column and similarity of the pairs of two blocks that may come before the bar of a query.

    The rows are queries, ranked by `row_ranking`; so are the columns if they have a ranking. The rows rise.
    """
    S = _compare(left, right, memory)
    row_bar = _bar_in(S, left, row_ranking)
    column_bar = S.new_full((S.shape[1],), torch.inf)
    if column_ranking is not None:
        column_bar[: len(right)] = _bar_in(S.T[: len(right)], right, column_ranking)
    place = _places_reaching(S, row_bar, column_bar)
    row, column = place // S.shape[1], place % S.shape[1]
    if left.rounded is None:
        return row, column, S.take(place)
    if len(place) <= _MAX_ROUGH * S.numel():
        return row, column, similarities_of(left.rows, right.rows, row, column)
    return pairs_before_bars(left.exact(), right.exact(), row_ranking, column_ranking, memory)


def _bar_in(S, block, ranking):
    if ranking.n_seen == 0:
        ranking.guess(block.at_least(S[:, ::_SAMPLED]))
    return block.lowered(ranking.bar).to(S.dtype)


def _compare(left, right, memory):
    """Return the similarities of two blocks: -inf for rows of one class, and in columns beyond those of `right`."""
    shape = len(left), _padded(len(right))
    rows, columns = left.rows, right.rows
    if left.rounded is None:
        S = matrix_in(memory, *shape)
        compare(rows, columns, S[:, : len(right)])
    else:
        for_sums, for_products = memory.chunk(2)
        S = matrix_in(for_sums.view(torch.float32), *shape)
        part = left.rounded.multiply(right.rounded, S[:, : len(right)], for_products.view(torch.bfloat16))
        if rows.offsets is not None:
            part.sub_(rows.offsets[:, None]).sub_(columns.offsets)
    S[:, len(right) :] = -torch.inf
    _leave_out_matches(S, rows.classes, columns.classes)
    return S


def _padded(n):
    return math.ceil(n / _GROUP) * _GROUP


def _leave_out_matches(S, row_classes, column_classes):
    """Write -inf where row and column, both in the order of their classes, are of one class."""
    row_classes, column_classes = row_classes.contiguous(), column_classes.contiguous()
    first = torch.searchsorted(column_classes, row_classes)
    n = torch.searchsorted(column_classes, row_classes, right=True) - first
    place = (torch.arange(len(S), device=n.device) * S.shape[1] + first - (n.cumsum(0) - n)).repeat_interleave(n)
    place += torch.arange(len(place), device=n.device)
    S.view(-1).index_fill_(0, place, -torch.inf)


def _places_reaching(S, row_bar, column_bar):
    """Return the places in S, rising, of the values that reach the bar of their row or that of their column."""
    groups, column_bars = S.view(-1, _GROUP), column_bar.view(-1, _GROUP)
    bar = torch.minimum(row_bar[:, None], column_bars.amin(1))  # of all columns of a group
    group = reaching(groups.amax(1), bar.flatten())
    if len(group) > _MAX_GROUPS * len(groups):
        return reaching(S, torch.minimum(row_bar[:, None], column_bar))
    bars = column_bars.index_select(0, group % len(column_bars))
    torch.minimum(bars, row_bar.index_select(0, group // len(column_bars))[:, None], out=bars)
    values = groups.index_select(0, group)  # twice as fast as an index in brackets
    place = reaching(values, bars)
    return group.index_select(0, place // _GROUP) * _GROUP + place % _GROUP
