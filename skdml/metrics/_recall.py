"""Recall@K: how many rows of other classes are as near to each query as its best match.

Axis letters: Q queries, G gallery rows.
"""

import math

import torch

from ._rows import below_ties, differs, leave_out, matches, similarities, tile_size, tiles


@torch.no_grad()
def nearer_than_best_match(queries, gallery):
    """Return how many rows of other classes are at least as near to each query as its best match (Q,).

    Queries and gallery are sorted by class, so that rows of one class meet in few tiles, near the diagonal. A first
    pass over these finds the best matches, with small tiles so that they hold few other rows; a second pass over all
    tiles counts. With several labels per row, both passes take all tiles. Without a separate gallery, a tile serves
    both its rows and its columns, and tiles below the diagonal are not needed.
    """
    symmetric = queries is gallery
    new = queries.points.new_empty
    best = new(len(queries)).fill_(-torch.inf)
    n_nearer = torch.zeros_like(queries.classes)
    size = tile_size(queries.points)
    # The flags have the type of the similarities, as torch compares and sums floats several times faster than booleans.
    buffer, flags = (new(min(size, len(queries)) * min(size, len(gallery))) for _ in range(2))

    for q, g, may_match, _ in tiles(queries, gallery, math.ceil(size / 4)):
        if may_match:
            S = similarities(queries[q], gallery[g], buffer)
            S.masked_fill_(differs(queries, gallery, q, g), -torch.inf)
            leave_out(S, queries, gallery, q, g)
            if symmetric and q != g:
                best[g] = torch.maximum(best[g], S.amax(0))
            best[q] = torch.maximum(best[q], S.amax(1))

    best = below_ties(best[:, None], queries)[:, 0]
    for q, g, may_match, may_differ in tiles(queries, gallery, size):
        if may_differ:
            S = similarities(queries[q], gallery[g], buffer)
            if may_match:
                S.masked_fill_(matches(queries, gallery, q, g), -torch.inf)
            if queries.own is not None:  # a query's own row may be of another class
                leave_out(S, queries, gallery, q, g)
            is_nearer = flags[: S.numel()].view_as(S)
            n_nearer[q] += torch.gt(S, best[q, None], out=is_nearer).sum(1).long()
            if symmetric and q != g:
                n_nearer[g] += torch.gt(S, best[g], out=is_nearer).sum(0).long()
    return n_nearer
