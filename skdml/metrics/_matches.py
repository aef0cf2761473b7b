"""Where the matches of each query stand among its neighbours.

Axis letters: Q queries, G gallery rows, R matches.
"""

from dataclasses import dataclass

import torch

from ._candidates import deal, memory_for, pairs_before_bars, round_sides
from ._ranking import Ranking
from ._recall import recalls_of
from ._strips import find_in_strips
from ._thresholds import thresholds_of_matches

_MAX_HELD = 2**27  # matches of all queries that are held at once, in about 12 bytes each, 18 in float64
_MANY = 1000  # matches of a query, on average, beyond which the CPU is faster with whole rows


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
    n_held, is_on_cpu = int(n_matches.sum()), n_matches.device.type == "cpu"
    use_strips = n_held > _MAX_HELD or (is_on_cpu and n_held > _MANY * len(queries))
    find = find_in_strips if use_strips else _find_in_tiles
    return Matches(n_matches, *find(queries, gallery, n_matches, k_max))


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
    matches, start = thresholds_of_matches(queries, gallery, n_matches, dtype)
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
        own = wrong if symmetric else None
        ranked = find_in_strips(queries[wrong], gallery, n_matches[wrong], k_max, own)
        for values, part in zip(found, ranked, strict=True):
            values[wrong] = part
    return found
