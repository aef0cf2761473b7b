"""Shared parts of the measures: validated rows sorted by class, and tiles of their similarities.

Axis letters: Q queries, G gallery rows, D components.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from .._ambient import warn
from .._labels import label_names, number_labels, read_labels, read_targets

CPU_TILE = 1024  # rows and columns of a tile of similarities: small enough for the cache,
GPU_TILE = 4096  # and large enough to fill a GPU
_ALIGNMENT = 32  # tiles are cut at multiples of it, unless they are smaller
_MAX_HELD = 2**24  # similarities of rows to all columns that are in memory at once: 64 MiB in float32
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MARGIN = {torch.float32: 4, torch.float64: 64}  # rounding of a similarity, in units of eps, with a safety margin
_SAME = 1e-5  # relative difference of the embeddings of one sample that was embedded in different batches
_MAX_COMPARED = 1000  # queries that are searched for in the gallery, to see whether it holds the queries


@dataclass
class Rows:
    """Embeddings sorted by class or, where rows have several labels, by the set of their labels."""

    points: torch.Tensor  # (n, D)
    offsets: torch.Tensor | None  # (n,) |x|^2 / 2, only for Euclidean distances
    classes: torch.Tensor  # (n,) 0..C-1, ascending, of a class or a set of labels
    rounding: float  # similarities of unit vectors that differ by less count as equal
    parts: torch.Tensor | None = None  # (n,) one number for each class and group: a query ignores rows of its part
    own: torch.Tensor | None = None  # (n,) where each query is in the sorted gallery, -1 for none
    labels: torch.Tensor | None = None  # (n, L) float32, 0 and 1, of several labels; parts are then those of the groups

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, index):
        others = self.parts, self.own, self.labels
        offsets, *others = (None if x is None else x[index] for x in (self.offsets, *others))
        return Rows(self.points[index], offsets, self.classes[index], self.rounding, *others)


def similarities(rows, columns, buffer):
    """Return the similarities of two sets of rows, in the memory of `buffer`; larger means nearer."""
    S = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
    # With out=, a surrounding autocast does not lower the precision.
    if rows.offsets is None:
        return torch.mm(rows.points, columns.points.T, out=S)
    # -|x - z|^2 / 2, in an order of operations that is symmetric in x and z.
    torch.add(rows.offsets[:, None], columns.offsets, out=S)
    return torch.addmm(S, rows.points, columns.points.T, beta=-1, out=S)


def below_ties(S, rows):
    """Return the similarities of the rows (Q, G), each lowered until all that tie with it are larger.

    Equal rows get similarities that differ by the rounding of a product, which depends on their position in it. Without
    this margin, embeddings that have collapsed to a point could have any recall.
    """
    if rows.offsets is None:
        lowered = S - rows.rounding
    else:
        lowered = S * (1 + rows.rounding) - 2 * rows.rounding * rows.offsets[:, None]
    return lowered.nextafter(lowered.new_tensor(-torch.inf))


def matches(queries, gallery, q, g):
    """Return which rows `g` of the gallery are of the class of each of the queries `q`, or share a label with it."""
    if queries.labels is None:
        return queries.classes[q, None] == gallery.classes[g]
    return queries.labels[q] @ gallery.labels[g].T > 0


def differs(queries, gallery, q, g):
    """Return the opposite of `matches`."""
    if queries.labels is None:
        return queries.classes[q, None] != gallery.classes[g]
    return queries.labels[q] @ gallery.labels[g].T == 0


def leave_out(S, queries, gallery, q, g):
    """Set the similarities of the queries `q` to those rows `g` of the gallery that do not count for them to -inf."""
    if queries is gallery and g.start <= q.start < g.stop:
        S[:, q.start - g.start : q.stop - g.start].fill_diagonal_(-torch.inf)
    elif queries.own is not None:
        column = queries.own[q, None] - g.start
        is_here = (column >= 0) & (column < S.shape[1])
        column = column.clamp(0, S.shape[1] - 1)
        S.scatter_(1, column, S.gather(1, column).masked_fill_(is_here, -torch.inf))
    if queries.parts is not None:
        is_left_out = queries.parts[q, None] == gallery.parts[g]
        if queries.labels is not None:
            is_left_out &= matches(queries, gallery, q, g)
        S.masked_fill_(is_left_out, -torch.inf)


def rounding(dtype):
    """Return the rounding of the similarity of two unit vectors."""
    return _MARGIN[dtype] * torch.finfo(dtype).eps


def tiles(queries, gallery, size):
    """Yield (query slice, gallery slice, may hold rows of one class, may hold rows of different classes)."""
    query_blocks, gallery_blocks = blocks(queries, size), blocks(gallery, size)
    for i, (q, q_first, q_last) in enumerate(query_blocks):
        for g, g_first, g_last in gallery_blocks[i if queries is gallery else 0 :]:
            if queries.labels is not None:
                yield q, g, True, True
                continue
            yield q, g, q_first <= g_last and g_first <= q_last, not q_first == q_last == g_first == g_last


def blocks(rows, size):
    """List (slice, first class, last class) of blocks of nearly equal length, at most `size`."""
    length = math.ceil(len(rows) / math.ceil(len(rows) / size))
    if size % _ALIGNMENT == 0:
        length += -length % _ALIGNMENT
    edges = [*range(0, len(rows), length), len(rows)]
    first, last = rows.classes[edges[:-1]].tolist(), rows.classes[[edge - 1 for edge in edges[1:]]].tolist()
    return list(zip(map(slice, edges[:-1], edges[1:]), first, last, strict=True))


def tile_size(points):
    return CPU_TILE if points.device.type == "cpu" else GPU_TILE


def block_size(n_columns):
    """Return how many rows to compare with all columns at once."""
    return max(1, _MAX_HELD // n_columns)


def prepare(
    embeddings,
    y,
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    *,
    metric="cosine",
    device=None,
    several_labels=True,
):
    """Check the input; return queries and gallery (the same object if there is no gallery) for `similarities`.

    y may be the indicator of several labels, unless ``several_labels=False``.
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}.")
    check_gallery(gallery, gallery_y, gallery_index=gallery_index, gallery_groups=gallery_groups)
    read = _check_labels if several_labels else read_labels
    points, labels = [check_points(embeddings, "embeddings", device)], [read(y, "y")]
    if gallery is not None:
        points.append(check_points(gallery, "gallery", points[0].device))
        labels.append(read(gallery_y, "gallery_y"))
        if points[0].shape[1] != points[1].shape[1]:
            raise ValueError(
                f"embeddings and gallery must have the same number of columns, got {points[0].shape[1]} and "
                f"{points[1].shape[1]}. Embed both with the same model."
            )
        dtype = torch.promote_types(points[0].dtype, points[1].dtype)
        points = [p.to(dtype) for p in points]
    for p, label, name in zip(points, labels, ("y", "gallery_y"), strict=False):
        if len(p) != len(label):
            raise ValueError(f"{name} must hold one label per row, got {len(label)} labels for {len(p)} rows.")
    sizes = [len(p) for p in points]
    has_several = any(label.ndim == 2 for label in labels)
    if has_several:
        _check_columns(y, gallery_y, labels)
    codes = _number_sets(np.concatenate(labels)) if has_several else _encode(labels)
    classes = codes.to(points[0].device).split(sizes)
    orders = [c.argsort(stable=True) for c in classes]
    sorted_rows = [Rows(p[o], None, c[o], rounding(p.dtype)) for p, c, o in zip(points, classes, orders, strict=True)]
    if has_several:
        for rows, label, order in zip(sorted_rows, labels, orders, strict=True):
            rows.labels = torch.from_numpy(label).to(order.device)[order].float()
    if groups is not None or gallery_groups is not None:
        numbers = _check_groups(groups, gallery_groups, sizes).to(points[0].device)
        for rows, number, order in zip(sorted_rows, numbers.split(sizes), orders, strict=True):
            rows.parts = number[order] if has_several else rows.classes * (numbers.max() + 1) + number[order]
    if gallery_index is not None:
        index = check_index(gallery_index, sizes).to(points[0].device)[orders[0]]
        place = torch.empty_like(orders[-1])
        place[orders[-1]] = torch.arange(len(place), device=place.device)
        sorted_rows[0].own = torch.where(index < 0, -1, place[index])
    _to_metric(sorted_rows, metric)
    return sorted_rows[0], sorted_rows[-1]


def count_matches(queries, gallery):
    """Return R, the number of gallery rows that each query should find.

    Warn about queries with R = 0, and if most of the queries would find themselves.
    """
    if queries is not gallery and queries.own is None and _are_in_gallery(queries, gallery):
        warn(
            "Most queries have an identical row of their own class in the gallery. Pass gallery_index, the row of each "
            "query in the gallery, so that no query finds itself, or -1 where the gallery does not hold the query."
        )
    n_matches = _count_of_labels(queries, gallery) if queries.labels is not None else _count_of_class(queries, gallery)
    n_left_out = int((n_matches == 0).sum())
    if n_left_out:  # the data, not the embedding, make these queries fail
        what = "member of their class" if queries.labels is None else "row with one of their labels"
        where = "" if queries.parts is None else " in another group"
        warn(f"{n_left_out} of {len(queries)} queries are left out: the gallery has no other {what}{where}.")
    return n_matches


def _count_of_class(queries, gallery):
    sizes = torch.bincount(gallery.classes, minlength=int(queries.classes[-1]) + 1)
    n_matches = sizes[queries.classes]
    if queries.parts is not None:
        parts = gallery.parts.sort().values
        n_matches -= torch.searchsorted(parts, queries.parts, right=True) - torch.searchsorted(parts, queries.parts)
    elif queries is gallery:
        n_matches -= 1
    if queries.own is not None:
        is_lost = (queries.own >= 0) & (gallery.classes[queries.own] == queries.classes)
        if queries.parts is not None:
            is_lost &= gallery.parts[queries.own] != queries.parts
        n_matches -= is_lost.long()
    return n_matches


@torch.no_grad()
def _count_of_labels(queries, gallery):
    size = block_size(len(gallery))
    counts = []
    for start in range(0, len(queries), size):
        q, g = slice(start, min(start + size, len(queries))), slice(0, len(gallery))
        n_common = queries.labels[q] @ gallery.labels.T  # (Q, G)
        leave_out(n_common, queries, gallery, q, g)
        counts.append((n_common > 0).sum(1))
    return torch.cat(counts)


@torch.no_grad()
def _are_in_gallery(queries, gallery):
    """Return whether most queries equal, up to rounding, a row of the gallery that is of their class.

    Equal rows have the same place on any line, so each query is compared with its neighbors on one line. The cost is
    that of reading the gallery once.
    """
    rows = queries[:: math.ceil(len(queries) / _MAX_COMPARED)]
    line = torch.arange(1, rows.points.shape[1] + 1, device=rows.points.device).to(rows.points).sin_()
    places = [torch.mv(r.points, line, out=r.points.new_empty(len(r))).double() for r in (rows, gallery)]
    length = 1 + 4 * float(torch.cat(places).abs().max())  # of a class on the line, so that classes do not overlap
    rows_place, place = (p + length * r.classes for p, r in zip(places, (rows, gallery), strict=True))
    order = place.argsort()
    first = torch.searchsorted(place[order], rows_place)
    is_equal = torch.zeros_like(rows.classes, dtype=torch.bool)
    for i in (first - 1, first):
        found = gallery[order[i.clamp(0, len(gallery) - 1)]]
        difference = (found.points - rows.points).abs_().amax(1)
        is_found = (difference <= _SAME * rows.points.abs().amax(1)) & (found.classes == rows.classes)
        if rows.labels is not None:
            is_found &= rows.labels.any(1)  # those without a label do not match
        is_equal |= is_found if rows.parts is None else is_found & (found.parts != rows.parts)
    return bool(is_equal.double().mean() > 0.5)


def mean_over_queries(values, n_matches):
    """Return the mean of the values (Q,) of the queries that have a match; nan if none has."""
    values = values[n_matches > 0].double()
    return float(values.sum() / len(values))


@torch.no_grad()
def _to_metric(sorted_rows, metric):
    """Transform the points in place, so that `similarities` orders by `metric`."""
    if metric == "cosine":
        for rows in sorted_rows:
            normalize_(rows.points)
        return
    # Distances do not depend on the origin, but their rounding does: move it into the data. A median is one of the
    # given values, so that differences on a grid stay exact.
    gallery = sorted_rows[-1].points
    center = gallery[:: 1 + len(gallery) // 1000].median(0).values
    for rows in sorted_rows:
        rows.points.sub_(center)
    # The squares of small values would underflow; a power of two scales them without rounding.
    largest = max(float(torch.linalg.vector_norm(rows.points, torch.inf)) for rows in sorted_rows)
    most = int(math.log2(torch.finfo(gallery.dtype).max)) - 1
    scale = 2.0 ** max(0, min(most, -math.frexp(largest)[1]))
    for rows in sorted_rows:
        rows.points.mul_(scale)
        rows.offsets = rows.points.square().sum(1).div_(2)
        if not rows.offsets.isfinite().all():
            raise ValueError(
                f"Squared distances overflow {str(rows.points.dtype).removeprefix('torch.')}. "
                "Scale the embeddings down or pass them as float64."
            )


def normalize_(points):
    """Scale each row to unit length in place; a row of zeros stays unchanged."""
    for order in (torch.inf, 2):  # scaling by the largest entry first: squares neither overflow nor underflow
        norms = torch.linalg.vector_norm(points, order, dim=1, keepdim=True)
        points.div_(norms.masked_fill_(norms == 0, 1))
    return points


def check_points(X, name, device=None):
    """Return X as a 2-D float32 or float64 tensor on the device (None: its own), possibly sharing the memory of X."""
    needed = f"{name} must be a dense 2-D array of finite real numbers, with one row per sample"
    if isinstance(X, torch.Tensor):
        X = X.detach()
        kind = "complex" if X.is_complex() else None
        if kind is None:
            X = X.to(torch.float64 if X.dtype in (torch.float64, torch.int32, torch.int64) else torch.float32)
    else:
        got = type(X).__name__
        X = np.asarray(X)
        kind = X.dtype.name if X.dtype.kind not in "fiubO" else None
        if kind is None:
            try:
                dtype = np.float32 if np.can_cast(X.dtype, np.float32) else np.float64
                X = torch.from_numpy(np.require(X, dtype, ["C", "W"]))
            except (TypeError, ValueError):
                kind = f"{got} of {X.dtype.name}s"
    if kind is not None:
        raise ValueError(f"{needed}, got {kind}. Convert it to real numbers first.")
    if X.ndim != 2:
        raise ValueError(f"{needed}, got shape {tuple(X.shape)}. Reshape it to (n_samples, n_components).")
    if X.numel() == 0:
        raise ValueError(f"{needed}, got shape {tuple(X.shape)}: there is nothing to evaluate.")
    X = X.to(X.device if device is None else device)
    if not X.isfinite().all():
        raise ValueError(f"{needed}, got NaN or infinity. Look for diverged training or missing values.")
    return X


def _check_labels(y, name):
    """Return y as an array or, so that integers stay on their device, as an int64 tensor."""
    if isinstance(y, torch.Tensor) and y.ndim == 1 and y.dtype in _INTEGERS:
        return y.detach().long()
    return read_targets(y, name)


def _check_columns(y, gallery_y, labels):
    """Check that the indicators of queries and gallery have the same columns."""
    shapes = [tuple(label.shape) for label in labels]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"y and gallery_y must both hold one class per row, or the same labels as columns of 0 and 1; got shapes "
            f"{shapes[0]} and {shapes[1]}."
        )
    if hasattr(y, "columns") and hasattr(gallery_y, "columns"):
        names = [label_names(given, shapes[0][1]) for given in (y, gallery_y)]
        if not np.array_equal(*names):
            raise ValueError(
                f"y and gallery_y must have the same columns in the same order; got {names[0][:5]} and {names[1][:5]}. "
                "Pass gallery_y[y.columns]."
            )


def _number_sets(labels):
    """Return a number for the set of labels of each row (n, L), as an int64 tensor (n,)."""
    packed = np.ascontiguousarray(np.packbits(labels, axis=1))
    rows = packed.view(np.dtype((np.void, packed.shape[1])))[:, 0]  # twenty times faster than unique with an axis
    return torch.from_numpy(np.unique(rows, return_inverse=True)[1])


def _encode(labels):
    """Return the class numbers of one or two sets of labels, numbered together, as one int64 tensor."""
    if all(isinstance(y, torch.Tensor) for y in labels):
        return torch.unique(torch.cat([y.to(labels[0].device) for y in labels]), return_inverse=True)[1]
    return torch.from_numpy(np.concatenate(number_labels(*map(read_labels, labels))[1]))


def check_gallery(gallery, gallery_y, **of_gallery):
    """Check that gallery and gallery_y are given together, and nothing that describes a gallery without one."""
    if (gallery is None) != (gallery_y is None):
        given, missing = ("gallery_y", "gallery") if gallery is None else ("gallery", "gallery_y")
        raise ValueError(f"gallery and gallery_y belong together, got only {given}. Pass {missing} too.")
    for name, value in of_gallery.items():
        if gallery is None and value is not None:
            raise ValueError(
                f"{name} needs a gallery, got none. Pass gallery and gallery_y too; without them, the queries are the "
                f"gallery, each without its own row, and {name} is not needed."
            )


def _check_groups(groups, gallery_groups, sizes):
    """Return the groups of the queries and of the gallery, if there is one, numbered together, as one int64 tensor."""
    given = {"groups": groups, "gallery_groups": gallery_groups} if len(sizes) == 2 else {"groups": groups}
    values = []
    for (name, value), size in zip(given.items(), sizes, strict=True):
        if value is None:
            raise ValueError(f"groups and gallery_groups belong together, got no {name}. Pass {name} too.")
        values.append(read_labels(value, name))
        if len(values[-1]) != size:
            raise ValueError(f"{name} must hold one group per row, shape ({size},), got shape {values[-1].shape}.")
    return torch.from_numpy(np.concatenate(number_labels(*values)[1]))


def check_index(index, sizes):
    """Return gallery_index as an int64 tensor; the sizes are those of the queries and of the gallery."""
    needed = f"gallery_index must hold one row of the gallery per query, integers of shape ({sizes[0]},)"
    index = index.detach().cpu().numpy() if isinstance(index, torch.Tensor) else np.asarray(index)
    if index.dtype.kind not in "iu" or index.shape != (sizes[0],):
        raise ValueError(f"{needed}, got {index.dtype} of shape {index.shape}.")
    wrong = index[(index < -1) | (index >= sizes[1])]
    if len(wrong):
        raise ValueError(f"{needed} in 0..{sizes[1] - 1}, or -1 for none, got {wrong[0]}.")
    return torch.from_numpy(index.astype(np.int64))
