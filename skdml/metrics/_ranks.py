"""The ranks of each query's matches: R-precision and MAP@R from the nearest rows, average precision from all of them.

Axis letters: Q queries, G gallery rows, K neighbors, R matches, S similarities (Q, G).
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ._rows import below_ties, block_size, leave_out, matches, similarities


@dataclass
class Ranks:
    """What the order of the neighbors says about each query with R matches; queries without a match have no values."""

    n_nearer: torch.Tensor  # (Q,) rows of other classes before the first match; `rank_matches` counts up to K
    r_precision: torch.Tensor  # (Q,) share of matches among the first R neighbors
    map_at_r: torch.Tensor  # (Q,) precision at each of these matches, summed and divided by R
    average_precision: torch.Tensor | None = None  # (Q,) the same for all R matches; only by `rank_all_matches`


@torch.no_grad()
def rank_matches(queries, gallery, n_matches, k_max=1):
    """Return the `Ranks` of all queries, which determine the recall at k up to `k_max`."""
    blocks = []
    for q, buffer in _blocks(queries, gallery):
        r_max = int(n_matches[q].max())
        is_match = _nearest_that_match(queries, gallery, q, min(max(k_max, r_max), len(gallery)), buffer)
        blocks.append(_first_ranks(is_match, n_matches[q], r_max))
    return Ranks(*map(torch.cat, zip(*blocks, strict=True)))


@torch.no_grad()
def rank_all_matches(queries, gallery, n_matches):
    """Return the `Ranks` of all queries, which determine the recall at any k."""
    blocks = []
    for q, buffer in _blocks(queries, gallery):
        r = n_matches[q]
        r_max = int(r.max())
        n_nearer = _others_before_matches(queries, gallery, q, r_max, buffer)  # (Q, R)
        n_found = torch.arange(1, r_max + 1, device=r.device)
        position = n_nearer + n_found
        precision = (n_found.double() / position).masked_fill_(n_found > r[:, None], 0)
        is_match = torch.zeros(len(r), r_max + 1, dtype=torch.bool, device=r.device)
        is_match.scatter_(1, (position - 1).clamp_(max=r_max), True)  # the last column is for those behind R
        _, r_precision, map_at_r = _first_ranks(is_match[:, :r_max], r, r_max)
        blocks.append((n_nearer[:, :1].sum(1), r_precision, map_at_r, precision.sum(1) / r))
    return Ranks(*map(torch.cat, zip(*blocks, strict=True)))


def _first_ranks(is_match, r, r_max):
    """Return the first three of the `Ranks` from which of the nearest rows match (Q, K)."""
    n_found = is_match.cumsum(1, dtype=torch.int32)  # (Q, K)
    position = torch.arange(1, r_max + 1, device=r.device)
    is_hit = is_match[:, :r_max] & (position <= r[:, None])
    precision = (n_found[:, :r_max].double() / position).masked_fill_(~is_hit, 0)
    return (n_found == 0).sum(1), is_hit.sum(1) / r.double(), precision.sum(1) / r


def _blocks(queries, gallery):
    """Yield slices of queries that are compared with the whole gallery at once, and memory for their similarities."""
    size = min(len(queries), block_size(len(gallery)))
    buffer = gallery.points.new_empty(size * len(gallery))
    for start in range(0, len(queries), size):
        yield slice(start, min(start + size, len(queries))), buffer


def _nearest_that_match(queries, gallery, q, k, buffer):
    """Return which of the k nearest rows of each of the queries `q` are of its class (Q, K), from near to far."""
    if queries.labels is not None:
        S, is_match = _ranking_of_labels(queries, gallery, q, buffer)
        return is_match.gather(1, _largest(S, k))
    S, first, end = _ranking(queries, gallery, q, buffer)
    column = _largest(S, k)
    return (column >= first[:, None]) & (column < end[:, None])


def _others_before_matches(queries, gallery, q, r, buffer):
    """Return how many rows of other classes come before each of the first r matches of the queries `q` (Q, R)."""
    if queries.labels is not None:
        S, is_match = _ranking_of_labels(queries, gallery, q, buffer)
        g = slice(0, len(gallery))
    else:
        S, first, end = _ranking(queries, gallery, q, buffer)
        g = slice(int(first[0]), int(end[-1]))
        is_match = matches(queries, gallery, q, g)
    of_matches = _sort_(S[:, g].masked_fill(~is_match, -torch.inf)).flip(1)[:, :r].contiguous()
    S[:, g].masked_fill_(is_match, -torch.inf)
    return len(gallery) - torch.searchsorted(_sort_(S), of_matches, right=True)


def _ranking(queries, gallery, q, buffer):
    """Return the similarities of the queries `q` (Q, G), by which matches come after rows of other classes that tie.

    The rows of each query's class are gallery[first:end], with first and end (Q,). Those left out are at -inf.
    """
    rows = queries[q]
    first = torch.searchsorted(gallery.classes, rows.classes)
    end = torch.searchsorted(gallery.classes, rows.classes, right=True)
    S = similarities(rows, gallery, buffer)
    g = slice(int(first[0]), int(end[-1]))  # all rows of the classes of these queries
    is_of_class = rows.classes[:, None] == gallery.classes[g]
    S[:, g] = torch.where(is_of_class, below_ties(S[:, g], rows), S[:, g])
    leave_out(S, queries, gallery, q, slice(0, len(gallery)))
    return S, first, end


def _ranking_of_labels(queries, gallery, q, buffer):
    """Return the similarities as `_ranking` does, and which rows share a label with each of the queries `q` (Q, G)."""
    g = slice(0, len(gallery))
    rows, is_match = queries[q], matches(queries, gallery, q, g)
    S = similarities(rows, gallery, buffer)
    S[:] = torch.where(is_match, below_ties(S, rows), S)
    leave_out(S, queries, gallery, q, g)
    return S, is_match


def _sort_(S):
    """Sort each row in place, on the CPU by NumPy, which is an order of magnitude faster than torch."""
    if S.device.type != "cpu":
        return S.sort(1).values
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(np.ndarray.sort, np.array_split(S.numpy(), n_threads)))
    return S


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
