"""Retrieval measures of the metric-learning papers, as functions and as scikit-learn scorers.

Axis letters: Q queries, G gallery rows, D components, R matches, K values of k.
"""

import math
import re
import warnings
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch

__all__ = ["MAPAtR", "RecallAtK", "RetrievalScorer", "map_at_r", "recall_at_k"]

_CPU_TILE = 1024  # rows and columns of a tile of similarities: small enough for the cache,
_GPU_TILE = 4096  # and large enough to fill a GPU
_MARGIN = {torch.float32: 4, torch.float64: 64}  # rounding of a similarity, in units of eps, with room to spare


def recall_at_k(embeddings, y, k=1, *, gallery=None, gallery_y=None, metric="cosine"):
    """Share of queries with at least one of their k nearest neighbours in their own class.

    This is Recall@K of the metric-learning papers [1]_. Retrieval toolkits call it CMC@K or hit rate. It is not the
    recall of information retrieval (``retrieval_recall`` in torchmetrics), which is the share of all relevant
    items found among the first k.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries: real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,)
        Class of each query: integers, strings or anything else that sorts.
    k : int or sequence of int, default=1
        Number of neighbours, >= 1. All values of a sequence share one pass over the data.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows in which the neighbours are looked up. None: the queries themselves, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,), default=None
        Class of each row of `gallery`.
    metric : {"cosine", "euclidean"}, default="cosine"
        Nearest is the largest cosine (a row of zeros has cosine 0 to every row) or the smallest Euclidean distance.

    Returns
    -------
    float or ndarray of shape (len(k),)
        Recall in [0, 1], one value for each k. Queries without another member of their class in the gallery are left
        out, with a warning that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If k < 1 or there is none, the shapes do not fit together, a value is not a finite real number, only one of
        `gallery` and `gallery_y` is given, or `metric` is unknown.
    TypeError
        If k is not an integer, or the labels cannot be compared with each other.

    See Also
    --------
    map_at_r : Also rewards the order of all members of the class.
    RecallAtK : The same as a scorer for grid searches.

    Notes
    -----
    Exact: neighbours are counted, not approximated. A query succeeds at k if fewer than k rows of other classes are as
    near as its nearest row of its own class, or nearer. So a tie between classes counts against the query, and
    embeddings that have collapsed to one point have recall 0; the order of the rows, by which a sort breaks ties, does
    not matter. Only tiles of similarities are held: memory grows with the number of rows, not with its square.

    Similarities are matrix products in the precision of the input, at least float32. Those that differ by less than
    the rounding of the product, about 5e-7 of a cosine in float32 and 1e-14 in float64, count as equal.

    References
    ----------
    .. [1] H. Oh Song, Y. Xiang, S. Jegelka, S. Savarese, "Deep Metric Learning via Lifted Structured Feature
       Embedding", CVPR 2016, Section 5.

    Examples
    --------
    On a line, each point of class 1 has the other one next to it; the points of class 0 lie at both ends.

    >>> from skdml.metrics import recall_at_k
    >>> points, labels = [[0.0], [2.0], [2.5], [7.0]], [0, 1, 1, 0]
    >>> recall_at_k(points, labels, metric="euclidean")
    0.5
    >>> recall_at_k(points, labels, k=[1, 2, 3], metric="euclidean")
    array([0.5, 0.5, 1. ])
    """
    ks = _check_k(k)
    recalls = _recalls(*_prepare(embeddings, y, gallery, gallery_y, metric), ks)
    return recalls if np.ndim(k) else float(recalls[0])


def map_at_r(embeddings, y, *, gallery=None, gallery_y=None, metric="cosine"):
    r"""Mean average precision over the first R neighbours, R being the size of the query's class.

    For a query with R members of its class in the gallery (without its own row),

    .. math:: \mathrm{MAP@R} = \frac{1}{R} \sum_{i=1}^{R} P(i),
       \qquad P(i) = \text{precision at } i \text{ if the } i\text{-th neighbour is correct, else } 0

    and the result is the mean over the queries [1]_. It is 1 only if every class is free of intruders. Average
    precision in the sense of information retrieval goes on to the end of the ranking; this one stops at R.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries: real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,)
        Class of each query: integers, strings or anything else that sorts.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows in which the neighbours are looked up. None: the queries themselves, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,), default=None
        Class of each row of `gallery`.
    metric : {"cosine", "euclidean"}, default="cosine"
        Nearest is the largest cosine (a row of zeros has cosine 0 to every row) or the smallest Euclidean distance.

    Returns
    -------
    float
        MAP@R in [0, 1]. Queries without another member of their class in the gallery are left out, with a warning
        that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If the shapes do not fit together, a value is not a finite real number, only one of `gallery` and `gallery_y`
        is given, or `metric` is unknown.
    TypeError
        If the labels cannot be compared with each other.

    See Also
    --------
    recall_at_k : Asks for one neighbour of the class only.
    MAPAtR : The same as a scorer for grid searches.

    Notes
    -----
    Of rows at the same distance, those of the query's own class come last; :func:`recall_at_k` says what is the
    same. The gallery is compared with a block of queries at a time.

    References
    ----------
    .. [1] K. Musgrave, S. Belongie, S.-N. Lim, "A Metric Learning Reality Check", ECCV 2020, Section 3.2.

    Examples
    --------
    With two points in each class R is 1, and MAP@R the share of points whose nearest neighbour is of their class.

    >>> from skdml.metrics import map_at_r
    >>> map_at_r([[0.0], [2.0], [2.5], [7.0]], [0, 1, 1, 0], metric="euclidean")
    0.5

    Three correct neighbours, the last of them behind one point of another class: (1/1 + 2/2 + 0) / 3.

    >>> query, gallery = [[0.0]], [[1.0], [2.0], [3.0], [4.0]]
    >>> round(map_at_r(query, [0], gallery=gallery, gallery_y=[0, 0, 1, 0], metric="euclidean"), 4)
    0.6667
    """
    return _map_at_r(*_prepare(embeddings, y, gallery, gallery_y, metric))


@dataclass(frozen=True)
class RecallAtK:
    """Scorer: :func:`recall_at_k` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    k : int, default=1
        Number of neighbours, >= 1.

    Raises
    ------
    ValueError
        If k < 1.
    TypeError
        If k is not an integer, or, when called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skdml.metrics import RecallAtK
    >>> from skdml.model_selection import ClassKFold
    >>> X, y = load_digits(return_X_y=True)
    >>> search = GridSearchCV(PCA(), {"n_components": [2, 16]}, scoring=RecallAtK(k=1), cv=ClassKFold(2))
    >>> search.fit(X, y).best_params_
    {'n_components': 16}
    """

    k: int = 1

    def __post_init__(self):
        if np.ndim(self.k):
            raise TypeError(f"k must be one integer, got {self.k!r}. Use RetrievalScorer for several values.")
        _check_k(self.k)

    def __call__(self, estimator, X, y):
        """Return Recall@k of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            Recall@k in [0, 1].
        """
        return recall_at_k(_embed(estimator, X), y, self.k)


@dataclass(frozen=True)
class MAPAtR:
    """Scorer: :func:`map_at_r` of an estimator's embeddings, by cosine.

    Raises
    ------
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import MAPAtR
    >>> X, y = load_iris(return_X_y=True)
    >>> round(MAPAtR()(PCA(2).fit(X), X, y), 2)
    0.59
    """

    def __call__(self, estimator, X, y):
        """Return MAP@R of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            MAP@R in [0, 1].
        """
        return map_at_r(_embed(estimator, X), y)


@dataclass(frozen=True)
class RetrievalScorer:
    """Scorer of several measures that embeds the data once.

    Parameters
    ----------
    metrics : sequence of str, default=("recall_at_1", "map_at_r")
        Names of the measures: "recall_at_<k>" with k >= 1, and "map_at_r".

    Raises
    ------
    ValueError
        If a name is unknown or there is none.
    TypeError
        If `metrics` is a single string, or, when called, if the estimator has no `transform`.

    See Also
    --------
    recall_at_k : Definition of "recall_at_<k>".
    map_at_r : Definition of "map_at_r".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skdml.metrics import RetrievalScorer
    >>> X, y = load_digits(return_X_y=True)
    >>> scorer = RetrievalScorer(("recall_at_1", "recall_at_10", "map_at_r"))
    >>> search = GridSearchCV(PCA(), {"n_components": [2, 16]}, scoring=scorer, refit="recall_at_1").fit(X, y)
    >>> search.best_params_
    {'n_components': 16}
    """

    metrics: tuple[str, ...] = ("recall_at_1", "map_at_r")

    def __post_init__(self):
        if isinstance(self.metrics, str):
            raise TypeError(f"metrics must be a sequence of names, got one string. Pass ({self.metrics!r},).")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        unknown = [name for name in self.metrics if name != "map_at_r" and not self._recall_k(name)]
        if unknown or not self.metrics:
            raise ValueError(
                f"metrics must name one or more of 'recall_at_<k>' (such as 'recall_at_1') and 'map_at_r', "
                f"got {unknown or self.metrics!r}."
            )

    @staticmethod
    def _recall_k(name):
        match = re.fullmatch(r"recall_at_([1-9][0-9]*)", str(name))
        return int(match[1]) if match else None

    def __call__(self, estimator, X, y):
        """Return the measures of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored; its `transform` is called once.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        dict of str to float
            One value in [0, 1] for each name, in the order of `metrics`.
        """
        prepared = _prepare(_embed(estimator, X), y)
        ks = {name: k for name in self.metrics if (k := self._recall_k(name))}
        scores = dict(zip(ks, _recalls(*prepared, list(ks.values())).tolist(), strict=True)) if ks else {}
        if "map_at_r" in self.metrics:
            scores["map_at_r"] = _map_at_r(*prepared)
        return {name: scores[name] for name in self.metrics}


def _embed(estimator, X):
    if not hasattr(estimator, "transform"):
        raise TypeError(
            f"A retrieval scorer needs an estimator with transform, got {type(estimator).__name__}. "
            "Of a pipeline that ends in a classifier, score the steps before it: pipeline[:-1]."
        )
    return estimator.transform(X)


@dataclass
class _Rows:
    """Embeddings in the order of their classes."""

    points: torch.Tensor  # (n, D)
    offsets: torch.Tensor | None  # (n,) |x|^2 / 2, only for Euclidean distances
    classes: torch.Tensor  # (n,) 0..C-1, rising

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, index):
        return _Rows(self.points[index], None if self.offsets is None else self.offsets[index], self.classes[index])


def _similarities(rows, columns, buffer):
    """Similarities of two sets of rows, in `buffer`: the larger, the nearer."""
    S = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
    # With out=, a surrounding autocast does not lower the precision.
    if rows.offsets is None:
        return torch.mm(rows.points, columns.points.T, out=S)
    # -|x - z|^2 / 2, in an order of operations that is symmetric in x and z.
    torch.add(rows.offsets[:, None], columns.offsets, out=S)
    return torch.addmm(S, rows.points, columns.points.T, beta=-1, out=S)


def _thresholds(values, queries):
    """Return the similarity from which on a row counts as no farther than `values` (Q, ...).

    Equal rows get similarities that differ by the rounding of a product, which depends on their place in it. Without
    the margin, embeddings that have collapsed to a point would have any recall.
    """
    margin = _MARGIN[values.dtype] * torch.finfo(values.dtype).eps
    if queries.offsets is None:
        return values - margin
    return values * (1 + margin) - 2 * margin * queries.offsets.view(-1, *[1] * (values.ndim - 1))


def _recalls(queries, gallery, n_matches, ks):
    """Recall at each of `ks`, of queries with a match."""
    if not n_matches.any():
        return np.full(len(ks), np.nan)
    ranks = _ranks(queries, gallery)[n_matches > 0]
    hits = ranks[:, None] < torch.tensor(ks, device=ranks.device)  # (Q, K)
    return hits.sum(0).cpu().numpy() / len(ranks)


@torch.no_grad()
def _ranks(queries, gallery):
    """How many rows of other classes are as near as the best match of each query, or nearer, (Q,).

    Both are sorted by class, so that rows of one class meet in few tiles, near the diagonal. A first pass over these
    finds the best matches, with small tiles to hold few other rows; a second one over all tiles counts. Without a
    separate gallery a tile serves its rows and its columns, and those below the diagonal are not needed.
    """
    symmetric = queries is gallery
    new = queries.points.new_empty
    best = new(len(queries)).fill_(-torch.inf)
    ranks = torch.zeros_like(queries.classes)
    size = _tile_size(queries)
    # The flags have the type of the similarities, as torch compares and sums floats several times faster than booleans.
    buffer, flags = (new(min(size, len(queries)) * min(size, len(gallery))) for _ in range(2))

    for q, g, may_match, _ in _tiles(queries, gallery, math.ceil(size / 4)):
        if may_match:
            S = _similarities(queries[q], gallery[g], buffer)
            S.masked_fill_(queries.classes[q, None] != gallery.classes[g], -torch.inf)
            if symmetric and q == g:
                S.fill_diagonal_(-torch.inf)
            elif symmetric:
                best[g] = torch.maximum(best[g], S.amax(0))
            best[q] = torch.maximum(best[q], S.amax(1))

    best = _thresholds(best, queries)
    for q, g, may_match, may_differ in _tiles(queries, gallery, size):
        if may_differ:
            S = _similarities(queries[q], gallery[g], buffer)
            if may_match:
                S.masked_fill_(queries.classes[q, None] == gallery.classes[g], -torch.inf)
            nearer = flags[: S.numel()].view_as(S)
            ranks[q] += torch.ge(S, best[q, None], out=nearer).sum(1).long()
            if symmetric and q != g:
                ranks[g] += torch.ge(S, best[g], out=nearer).sum(0).long()
    return ranks


def _tiles(queries, gallery, size):
    """Yield (query slice, gallery slice, may hold rows of one class, may hold rows of different classes)."""
    query_blocks, gallery_blocks = _blocks(queries, size), _blocks(gallery, size)
    for i, (q, q_first, q_last) in enumerate(query_blocks):
        for g, g_first, g_last in gallery_blocks[i if queries is gallery else 0 :]:
            yield q, g, q_first <= g_last and g_first <= q_last, not q_first == q_last == g_first == g_last


def _blocks(rows, size):
    """List (slice, first class, last class) of blocks of nearly equal length, `size` at most."""
    edges = np.linspace(0, len(rows), math.ceil(len(rows) / size) + 1).astype(int).tolist()
    first, last = rows.classes[edges[:-1]].tolist(), rows.classes[[edge - 1 for edge in edges[1:]]].tolist()
    return list(zip(map(slice, edges[:-1], edges[1:]), first, last, strict=True))


def _tile_size(rows):
    return _CPU_TILE if rows.points.device.type == "cpu" else _GPU_TILE


@torch.no_grad()
def _map_at_r(queries, gallery, n_matches):
    """MAP@R of queries with a match."""
    if not n_matches.any():
        return math.nan
    n_rows = min(len(queries), math.ceil(16 * _tile_size(gallery) ** 2 / len(gallery)))
    buffer = gallery.points.new_empty(n_rows * len(gallery))
    blocks = [slice(start, start + n_rows) for start in range(0, len(queries), n_rows)]
    # Everything that shapes a block leaves the device at once.
    largest_r = torch.stack([n_matches[q].max() for q in blocks]).tolist()
    first = torch.searchsorted(gallery.classes, queries.classes).tolist()
    last = torch.searchsorted(gallery.classes, queries.classes, right=True).tolist()

    total = n_matches.new_zeros((), dtype=gallery.points.dtype)
    for q, r in zip(blocks, largest_r, strict=True):
        if r == 0:
            continue
        S = _similarities(queries[q], gallery, buffer)
        near = slice(first[q.start], last[q.start + len(S) - 1])  # the gallery rows of this block's classes
        same = queries.classes[q, None] == gallery.classes[near]
        matches = S[:, near].masked_fill(~same, -torch.inf)
        if queries is gallery:
            matches.diagonal(q.start - near.start).fill_(-torch.inf)
        matches = matches.topk(r).values  # (Q, R), falling
        S[:, near].masked_fill_(same, -torch.inf)
        others = _largest(S, r)  # (Q, R), falling
        i = torch.arange(1, r + 1, dtype=S.dtype, device=S.device)
        # The i-th match stands behind i - 1 matches and the other rows that are as near or nearer.
        position = i + torch.searchsorted(others.neg_(), _thresholds(matches, queries[q]).neg_(), right=True)
        counts = n_matches[q, None]
        total += (i / position * (position <= counts) / counts.clamp(min=1)).sum()
    return total.item() / int((n_matches > 0).sum())


def _largest(S, k):
    """Return the k largest values of each row, falling.

    They lie in the k groups of columns with the largest maxima: that leaves far fewer values to sort.
    """
    size = math.isqrt(S.shape[1] // k)
    if size > 2:
        n_groups = S.shape[1] // size
        groups, rest = S[:, : size * n_groups].unflatten(1, (size, n_groups)), S[:, size * n_groups :]
        top = groups.amax(1).topk(k, sorted=False).indices  # (Q, k)
        S = torch.cat([groups.gather(2, top[:, None].expand(-1, size, -1)).flatten(1), rest], dim=1)
    return S.topk(k).values


def _prepare(embeddings, y, gallery=None, gallery_y=None, metric="cosine"):
    """Check the input; return the queries, the gallery (the same object if there is none) and R of each query."""
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}.")
    if (gallery is None) != (gallery_y is None):
        given, missing = ("gallery_y", "gallery") if gallery is None else ("gallery", "gallery_y")
        raise ValueError(f"gallery and gallery_y belong together, got only {given}. Pass {missing} too.")
    points, labels = [_check_points(embeddings, "embeddings")], [_check_labels(y, "y")]
    if gallery is not None:
        points.append(_check_points(gallery, "gallery"))
        labels.append(_check_labels(gallery_y, "gallery_y"))
        if points[0].shape[1] != points[1].shape[1]:
            raise ValueError(
                f"embeddings and gallery must have the same number of columns, got {points[0].shape[1]} and "
                f"{points[1].shape[1]}. Embed both with the same model."
            )
        dtype = torch.promote_types(points[0].dtype, points[1].dtype)
        points = [p.to(points[0].device, dtype) for p in points]
    for p, label, name in zip(points, labels, ("y", "gallery_y"), strict=False):
        if len(p) != len(label):
            raise ValueError(f"{name} must hold a label for each row, got {len(label)} labels for {len(p)} rows.")
    classes = _encode(labels).to(points[0].device).split([len(p) for p in points])

    # Queries without a match are misses of the data, not of the embedding.
    sizes = torch.bincount(classes[-1], minlength=int(classes[0].max()) + 1)
    sorted_rows = []
    for p, c in zip(points, classes, strict=True):
        c, order = c.sort()
        sorted_rows.append(_Rows(p[order], None, c))
    _to_metric(sorted_rows, metric)
    queries, gallery = sorted_rows[0], sorted_rows[-1]
    n_matches = sizes[queries.classes] - int(queries is gallery)
    n_left_out = int((n_matches == 0).sum())
    if n_left_out:
        warnings.warn(
            f"{n_left_out} of {len(queries)} queries are left out: the gallery has no other member of their class.",
            UserWarning,
            stacklevel=3,
        )
    return queries, gallery, n_matches


@torch.no_grad()
def _to_metric(sorted_rows, metric):
    """Change the points in place, so that `_similarities` orders by `metric`."""
    if metric == "cosine":
        for rows in sorted_rows:
            for order in (torch.inf, 2):  # the largest entry first: squares neither overflow nor vanish
                norms = torch.linalg.vector_norm(rows.points, order, dim=1, keepdim=True)
                rows.points.div_(norms.masked_fill_(norms == 0, 1))
        return
    # Distances do not depend on the origin, their rounding does: move it into the data. A median is one of the
    # values given, so that differences on a grid stay exact.
    gallery = sorted_rows[-1].points
    center = gallery[:: 1 + len(gallery) // 1000].median(0).values
    for rows in sorted_rows:
        rows.points.sub_(center)
        rows.offsets = rows.points.square().sum(1).div_(2)
        if not rows.offsets.isfinite().all():
            raise ValueError(
                f"Squared distances overflow {str(rows.points.dtype).removeprefix('torch.')}. "
                "Scale the embeddings down or pass them as float64."
            )


def _check_k(k):
    """Return k as a list of integers >= 1."""
    ks = list(k) if np.ndim(k) else [k]
    if not ks:
        raise ValueError("k must hold at least one integer, got an empty sequence.")
    for value in ks:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"k must be an integer or a sequence of integers, got {value!r}.")
        if value < 1:
            raise ValueError(f"k must be at least 1, got {value}.")
    return [int(value) for value in ks]


def _check_points(X, name):
    """Return X as a 2-D tensor of float32 or float64 on its device; may share the memory of X."""
    needed = f"{name} must be a dense 2-D array of finite real numbers, a row for each sample"
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
    if not X.isfinite().all():
        raise ValueError(f"{needed}, got NaN or infinity. Look for a diverged training or missing values.")
    return X


def _check_labels(y, name):
    """Return y as a 1-D tensor or array."""
    if isinstance(y, torch.Tensor):
        y = y.detach()
        if y.is_floating_point():
            y = y.cpu().numpy()
    else:
        y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"{name} must be 1-D, a label for each row, got shape {tuple(y.shape)}. Pass {name}.ravel().")
    return y


def _encode(labels):
    """Return the numbers of the classes of one or two sets of labels together, as one int64 tensor."""
    if all(isinstance(y, torch.Tensor) for y in labels):
        return torch.unique(torch.cat([y.to(labels[0].device) for y in labels]), return_inverse=True)[1]
    labels = [y.cpu().numpy() if isinstance(y, torch.Tensor) else y for y in labels]
    if len({y.dtype.kind for y in labels}) > 1:  # a common type could merge labels, such as 1 and "1"
        labels = [y.astype(object) for y in labels]
    labels = np.concatenate(labels)
    try:
        if (labels != labels).any():
            raise ValueError("The labels contain missing values. Leave these rows out, or give them a class.")
        return torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    except TypeError as error:
        raise TypeError(f"The labels must be of one sortable type, got a mixture: {error}. Convert them.") from error
