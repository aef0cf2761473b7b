"""R-precision and MAP@R: which of the nearest rows of each query are of its class.

Axis letters: Q queries, G gallery rows, K neighbors, S similarities (Q, G).
"""

import math
from dataclasses import dataclass

import torch

from ._rows import below_ties, block_size, similarities


@dataclass
class Ranks:
    """What the order of the neighbors says about each query with R matches; queries without a match have no values."""

    n_nearer: torch.Tensor  # (Q,) rows of other classes before the first match, counted up to K
    r_precision: torch.Tensor  # (Q,) share of matches among the first R neighbors
    map_at_r: torch.Tensor  # (Q,) precision at each of these matches, summed and divided by R


@torch.no_grad()
def rank_matches(queries, gallery, n_matches, k_max=1):
    """Return the `Ranks` of all queries, which determine the recall at k up to `k_max`.

    A block of queries is compared with the whole gallery at once.
    """
    size = min(len(queries), block_size(len(gallery)))
    buffer = gallery.points.new_empty(size * len(gallery))
    blocks = []
    for start in range(0, len(queries), size):
        q = slice(start, min(start + size, len(queries)))
        r = n_matches[q]
        r_max = int(r.max())
        is_match = _nearest_that_match(queries, gallery, q, min(max(k_max, r_max), len(gallery)), buffer)
        n_found = is_match.cumsum(1, dtype=torch.int32)  # (Q, K)
        position = torch.arange(1, r_max + 1, device=r.device)
        is_hit = is_match[:, :r_max] & (position <= r[:, None])
        precision = (n_found[:, :r_max].double() / position).masked_fill_(~is_hit, 0)
        blocks.append(((n_found == 0).sum(1), is_hit.sum(1) / r.double(), precision.sum(1) / r))
    return Ranks(*map(torch.cat, zip(*blocks, strict=True)))


def _nearest_that_match(queries, gallery, q, k, buffer):
    """Return which of the k nearest rows of each of the queries `q` are of its class (Q, K), from near to far."""
    rows = queries[q]
    first = torch.searchsorted(gallery.classes, rows.classes)  # the rows of a class are gallery[first:end]
    end = torch.searchsorted(gallery.classes, rows.classes, right=True)
    S = similarities(rows, gallery, buffer)
    g = slice(int(first[0]), int(end[-1]))  # all rows of the classes of these queries
    is_of_class = rows.classes[:, None] == gallery.classes[g]
    S[:, g] = torch.where(is_of_class, below_ties(S[:, g], rows), S[:, g])
    if queries is gallery:
        S[:, q].fill_diagonal_(-torch.inf)
    column = _largest(S, k)
    return (column >= first[:, None]) & (column < end[:, None])


def _largest(S, k):
    """Return the columns of the k largest values of each row (Q, K), in descending order.

    They lie in the k groups of columns with the largest maxima, and these are found faster if k is small.
    """
    size = math.isqrt(S.shape[1] // k)  # of a group: k groups hold as many columns as there are groups
    if size < 4:
        return S.topk(k).indices
    n_groups = S.shape[1] // size
    n_grouped = size * n_groups
    maxima = S[:, :n_grouped].unflatten(1, (size, n_groups)).amax(1)  # of every n-th column
    group = maxima.topk(k, sorted=False).indices
    members = group[:, None] + n_groups * torch.arange(size, device=S.device)[:, None]  # (Q, size, K)
    others = torch.arange(n_grouped, S.shape[1], device=S.device).expand(len(S), -1)
    column = torch.cat([members.flatten(1), others], 1)
    return column.gather(1, S.gather(1, column).topk(k).indices)
