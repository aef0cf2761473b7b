"""Retrieval measures of the metric-learning papers."""

from numbers import Integral

import numpy as np

from ._ranks import rank_all_matches, rank_matches
from ._recall import nearer_than_best_match
from ._rows import count_matches, mean_over_queries, prepare


def recall_at_k(
    embeddings,
    y,
    k=1,
    *,
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    metric="cosine",
    device=None,
) -> float | np.ndarray:
    """Share of queries with at least one of their k nearest neighbors in their own class.

    This is Recall@K of the metric-learning papers [1]_. Retrieval toolkits call it CMC@K or hit rate. It is not the
    recall of information retrieval (``retrieval_recall`` in torchmetrics), which is the share of all relevant
    items found among the first k.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries, real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,) or (n_queries, n_labels)
        Class of each query: integers, strings or anything else that sorts. Or which of several labels it has, 0 and 1:
        then rows that share a label with it are its class.
    k : int or sequence of int, default=1
        Number of neighbors, >= 1. All values of a sequence share one pass over the data.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows among which neighbors are searched for. None: the queries, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each row of `gallery`, or its labels.
    gallery_index : array-like or torch.Tensor of shape (n_queries,), default=None
        For each query, the row of `gallery` that is the query itself, which is left out; -1 for none.
    groups : array-like or torch.Tensor of shape (n_queries,), default=None
        Group of each query, such as its camera or its product page. Rows of the gallery of the query's class and group
        count neither as right nor as wrong, as if they were not there.
    gallery_groups : array-like or torch.Tensor of shape (n_gallery,), default=None
        Group of each row of `gallery`. Without a gallery, `groups` is used.
    metric : {"cosine", "euclidean"}, default="cosine"
        Whether the nearest row has the largest cosine (0 for rows of zeros) or the smallest Euclidean distance.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float or ndarray of shape (len(k),)
        Recall in [0, 1], one value for each k. Queries without another member of their class in the gallery are left
        out, with a warning that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If k < 1 or k is empty, the shapes do not match, a value is not a finite real number, `gallery_index` holds no
        rows of the gallery, `groups` hold missing values, an argument is given without the other one that it needs, or
        `metric` is unknown.
    TypeError
        If k is not an integer, or the labels or groups cannot be compared with each other.

    See Also
    --------
    map_at_r : Also rewards the order of all members of the class.
    retrieval_report : All measures in one pass.
    RecallAtK : The same as a scorer for grid searches.

    Notes
    -----
    The result is exact, not an approximation. A query succeeds at k if fewer than k rows of other classes are at least
    as near as the nearest row of its own class. A tie between classes thus counts against the query, and embeddings
    that have collapsed to one point have recall 0; the order of the rows, by which a sort would break ties, does not
    matter. Only tiles of similarities are held in memory, which grows with the number of rows, not with its square.

    If the gallery holds the queries themselves, each of them finds itself, unless `gallery_index` says where it is.
    Without `gallery_index`, a warning is given if most queries have an identical row of their class in the gallery; to
    see that, at most 1000 queries are compared, which costs about as much as reading the gallery once. If these rows
    are other samples, a `gallery_index` of -1 for each query says so.

    With `groups`, the rows of the gallery with the query's class and group are left out, which is the protocol of
    re-identification: what the same camera saw is too easy to find. Rows of other classes count in any group.

    With several labels per row, a query has as many matches R as there are rows that share a label with it. A row
    without a label matches nothing: as a query it is left out, for others it is of another class.

    Similarities are matrix products in the precision of the input, at least float32. Those that differ by less than
    the rounding of the product, about 5e-7 for a cosine in float32 and 1e-14 in float64, count as equal.

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

    The last two points search all four, without themselves.

    >>> gallery = {"gallery": points, "gallery_y": labels, "gallery_index": [2, 3]}
    >>> recall_at_k(points[2:], labels[2:], **gallery, metric="euclidean")
    0.5
    """
    ks = check_k(k)
    queries, gallery = prepare(
        embeddings, y, gallery, gallery_y, gallery_index, groups, gallery_groups, metric=metric, device=device
    )
    n_matches = count_matches(queries, gallery)
    n_nearer = nearer_than_best_match(queries, gallery)
    recalls = [mean_over_queries(n_nearer < k, n_matches) for k in ks]
    return np.array(recalls) if np.ndim(k) else recalls[0]


def precision_at_1(
    embeddings,
    y,
    *,
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    metric="cosine",
    device=None,
) -> float:
    r"""Share of queries whose nearest neighbor is of their own class.

    .. math:: \mathrm{P@1} = \frac1Q \sum_{q=1}^{Q} [\, y_{\text{nearest}(q)} = y_q \,]

    For one neighbor, precision and the Recall@1 of the metric-learning papers are the same number: the accuracy of
    leave-one-out classification by the nearest neighbor. Papers report it under both names.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries, real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,) or (n_queries, n_labels)
        Class of each query: integers, strings or anything else that sorts. Or which of several labels it has, 0 and 1:
        then rows that share a label with it are its class.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows among which neighbors are searched for. None: the queries, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each row of `gallery`, or its labels.
    gallery_index : array-like or torch.Tensor of shape (n_queries,), default=None
        For each query, the row of `gallery` that is the query itself, which is left out; -1 for none.
    groups : array-like or torch.Tensor of shape (n_queries,), default=None
        Group of each query, such as its camera or its product page. Rows of the gallery of the query's class and group
        count neither as right nor as wrong, as if they were not there.
    gallery_groups : array-like or torch.Tensor of shape (n_gallery,), default=None
        Group of each row of `gallery`. Without a gallery, `groups` is used.
    metric : {"cosine", "euclidean"}, default="cosine"
        Whether the nearest row has the largest cosine (0 for rows of zeros) or the smallest Euclidean distance.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        Precision in [0, 1]. Queries without another member of their class in the gallery are left out, with
        a warning that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, `gallery_index` holds no rows of the gallery,
        `groups` hold missing values, an argument is given without the other one that it needs, or `metric` is unknown.
    TypeError
        If the labels or groups cannot be compared with each other.

    See Also
    --------
    recall_at_k : The same for k=1, and for more neighbors.
    PrecisionAt1 : The same as a scorer for grid searches.

    Notes
    -----
    A tie with another class counts against the query; :func:`recall_at_k` defines ties.

    Examples
    --------
    On a line, each point of class 1 has the other one next to it; the points of class 0 lie at both ends.

    >>> from skdml.metrics import precision_at_1
    >>> precision_at_1([[0.0], [2.0], [2.5], [7.0]], [0, 1, 1, 0], metric="euclidean")
    0.5
    """
    queries, gallery = prepare(
        embeddings, y, gallery, gallery_y, gallery_index, groups, gallery_groups, metric=metric, device=device
    )
    n_matches = count_matches(queries, gallery)
    return mean_over_queries(nearer_than_best_match(queries, gallery) == 0, n_matches)


def r_precision(
    embeddings,
    y,
    *,
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    metric="cosine",
    device=None,
) -> float:
    r"""Share of the query's class among its first R neighbors, R being the size of the class.

    For a query with R members of its class in the gallery (without its own row),

    .. math:: \mathrm{RP} = \frac{r}{R}, \qquad r = \text{members of the class among the } R \text{ nearest}

    and the result is the mean over the queries [1]_. Precision at a fixed number of neighbors cannot reach 1 if a class
    is smaller than that number; at R, precision equals the share of the class that is found.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries, real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,) or (n_queries, n_labels)
        Class of each query: integers, strings or anything else that sorts. Or which of several labels it has, 0 and 1:
        then rows that share a label with it are its class.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows among which neighbors are searched for. None: the queries, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each row of `gallery`, or its labels.
    gallery_index : array-like or torch.Tensor of shape (n_queries,), default=None
        For each query, the row of `gallery` that is the query itself, which is left out; -1 for none.
    groups : array-like or torch.Tensor of shape (n_queries,), default=None
        Group of each query, such as its camera or its product page. Rows of the gallery of the query's class and group
        count neither as right nor as wrong, as if they were not there.
    gallery_groups : array-like or torch.Tensor of shape (n_gallery,), default=None
        Group of each row of `gallery`. Without a gallery, `groups` is used.
    metric : {"cosine", "euclidean"}, default="cosine"
        Whether the nearest row has the largest cosine (0 for rows of zeros) or the smallest Euclidean distance.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        R-precision in [0, 1]. Queries without another member of their class in the gallery are left out, with
        a warning that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, `gallery_index` holds no rows of the gallery,
        `groups` hold missing values, an argument is given without the other one that it needs, or `metric` is unknown.
    TypeError
        If the labels or groups cannot be compared with each other.

    See Also
    --------
    map_at_r : Also rewards the order of the first R.
    RPrecision : The same as a scorer for grid searches.

    Notes
    -----
    Among rows at the same distance, those of the query's own class come last; :func:`recall_at_k` defines ties. Memory
    use is that of :func:`map_at_r`.

    References
    ----------
    .. [1] K. Musgrave, S. Belongie, S.-N. Lim, "A Metric Learning Reality Check", ECCV 2020, Section 3.2.

    Examples
    --------
    One of the two neighbors of each point of class 0 is of its class. The only match of the point of class 1 would be
    itself, so that query is left out.

    >>> import warnings
    >>> from skdml.metrics import r_precision
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     r_precision([[0.0], [2.0], [3.0], [7.0]], [0, 1, 0, 0], metric="euclidean")
    0.5
    """
    queries, gallery = prepare(
        embeddings, y, gallery, gallery_y, gallery_index, groups, gallery_groups, metric=metric, device=device
    )
    n_matches = count_matches(queries, gallery)
    return mean_over_queries(rank_matches(queries, gallery, n_matches).r_precision, n_matches)


def map_at_r(
    embeddings,
    y,
    *,
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    metric="cosine",
    device=None,
) -> float:
    r"""Mean average precision over the first R neighbors, R being the size of the query's class.

    For a query with R members of its class in the gallery (without its own row),

    .. math:: \mathrm{MAP@R} = \frac{1}{R} \sum_{i=1}^{R} P(i),
       \qquad P(i) = \text{precision at } i \text{ if the } i\text{-th neighbor is correct, else } 0

    and the result is the mean over the queries [1]_. It is 1 only if every class is free of intruders. Average
    precision in the sense of information retrieval (:func:`mean_average_precision`, ``average_precision_score`` in
    scikit-learn) continues to the end of the ranking; this one stops at R.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries, real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,) or (n_queries, n_labels)
        Class of each query: integers, strings or anything else that sorts. Or which of several labels it has, 0 and 1:
        then rows that share a label with it are its class.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows among which neighbors are searched for. None: the queries, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each row of `gallery`, or its labels.
    gallery_index : array-like or torch.Tensor of shape (n_queries,), default=None
        For each query, the row of `gallery` that is the query itself, which is left out; -1 for none.
    groups : array-like or torch.Tensor of shape (n_queries,), default=None
        Group of each query, such as its camera or its product page. Rows of the gallery of the query's class and group
        count neither as right nor as wrong, as if they were not there.
    gallery_groups : array-like or torch.Tensor of shape (n_gallery,), default=None
        Group of each row of `gallery`. Without a gallery, `groups` is used.
    metric : {"cosine", "euclidean"}, default="cosine"
        Whether the nearest row has the largest cosine (0 for rows of zeros) or the smallest Euclidean distance.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        MAP@R in [0, 1]. Queries without another member of their class in the gallery are left out, with a warning
        that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, `gallery_index` holds no rows of the gallery,
        `groups` hold missing values, an argument is given without the other one that it needs, or `metric` is unknown.
    TypeError
        If the labels or groups cannot be compared with each other.

    See Also
    --------
    r_precision : Ignores the order of the first R.
    recall_at_k : Requires only one neighbor of the class.
    MAPAtR : The same as a scorer for grid searches.

    Notes
    -----
    Among rows at the same distance, those of the query's own class come last; :func:`recall_at_k` defines ties. A block
    of queries at a time is compared with the whole gallery: memory grows with the number of rows, not with its square.

    References
    ----------
    .. [1] K. Musgrave, S. Belongie, S.-N. Lim, "A Metric Learning Reality Check", ECCV 2020, Section 3.2.

    Examples
    --------
    With two points in each class, R is 1 and MAP@R is the share of points whose nearest neighbor is of their class.

    >>> from skdml.metrics import map_at_r
    >>> map_at_r([[0.0], [2.0], [2.5], [7.0]], [0, 1, 1, 0], metric="euclidean")
    0.5

    With three correct neighbors, the last of them behind a point of another class, MAP@R is (1/1 + 2/2 + 0) / 3.

    >>> query, gallery = [[0.0]], [[1.0], [2.0], [3.0], [4.0]]
    >>> round(map_at_r(query, [0], gallery=gallery, gallery_y=[0, 0, 1, 0], metric="euclidean"), 4)
    0.6667
    """
    queries, gallery = prepare(
        embeddings, y, gallery, gallery_y, gallery_index, groups, gallery_groups, metric=metric, device=device
    )
    n_matches = count_matches(queries, gallery)
    return mean_over_queries(rank_matches(queries, gallery, n_matches).map_at_r, n_matches)


def mean_average_precision(
    embeddings,
    y,
    *,
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    metric="cosine",
    device=None,
) -> float:
    r"""Mean average precision over the whole ranking of the gallery, as in information retrieval.

    For a query with R members of its class in the gallery (without its own row),

    .. math:: \mathrm{AP} = \frac{1}{R} \sum_{i=1}^{R} \frac{i}{p_i},
       \qquad p_i = \text{rank of the } i \text{-th match}

    and the result is the mean over the queries. Where no distances tie, it is the mean of scikit-learn's
    ``average_precision_score``. Benchmarks of re-identification, such as Market-1501 [1]_, report it as mAP, with the
    cameras as `groups`.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries, real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,) or (n_queries, n_labels)
        Class of each query: integers, strings or anything else that sorts. Or which of several labels it has, 0 and 1:
        then rows that share a label with it are its class.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows among which neighbors are searched for. None: the queries, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each row of `gallery`, or its labels.
    gallery_index : array-like or torch.Tensor of shape (n_queries,), default=None
        For each query, the row of `gallery` that is the query itself, which is left out; -1 for none.
    groups : array-like or torch.Tensor of shape (n_queries,), default=None
        Group of each query, such as its camera or its product page. Rows of the gallery of the query's class and group
        count neither as right nor as wrong, as if they were not there.
    gallery_groups : array-like or torch.Tensor of shape (n_gallery,), default=None
        Group of each row of `gallery`. Without a gallery, `groups` is used.
    metric : {"cosine", "euclidean"}, default="cosine"
        Whether the nearest row has the largest cosine (0 for rows of zeros) or the smallest Euclidean distance.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        Mean average precision in [0, 1]. Queries without another member of their class in the gallery are left out,
        with a warning that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, `gallery_index` holds no rows of the gallery,
        `groups` hold missing values, an argument is given without the other one that it needs, or `metric` is unknown.
    TypeError
        If the labels or groups cannot be compared with each other.

    See Also
    --------
    map_at_r : Stops at the R-th neighbor.
    mean_reciprocal_rank : Only looks at the first match.
    MeanAveragePrecision : The same as a scorer for grid searches.

    Notes
    -----
    Among rows at the same distance, those of the query's own class come last; :func:`recall_at_k` defines ties. A block
    of queries at a time is compared with the whole gallery and sorted: memory grows with the number of rows, not with
    its square.

    References
    ----------
    .. [1] L. Zheng, L. Shen, L. Tian, S. Wang, J. Wang, Q. Tian, "Scalable Person Re-identification: A Benchmark",
       ICCV 2015, Section 3.3.

    Examples
    --------
    The matches of the query are the first and the third neighbor: (1/1 + 2/3) / 2.

    >>> from skdml.metrics import mean_average_precision
    >>> query, gallery = [[0.0]], [[1.0], [2.0], [3.0]]
    >>> round(mean_average_precision(query, [0], gallery=gallery, gallery_y=[0, 1, 0], metric="euclidean"), 4)
    0.8333

    If the first one shows the same scene, finding it is not an achievement. With groups, only the other one counts, and
    the row of another class is before it.

    >>> groups = {"groups": ["scene 1"], "gallery_groups": ["scene 1", "scene 1", "scene 2"]}
    >>> mean_average_precision(query, [0], gallery=gallery, gallery_y=[0, 1, 0], **groups, metric="euclidean")
    0.5
    """
    queries, gallery = prepare(
        embeddings, y, gallery, gallery_y, gallery_index, groups, gallery_groups, metric=metric, device=device
    )
    n_matches = count_matches(queries, gallery)
    return mean_over_queries(rank_all_matches(queries, gallery, n_matches).average_precision, n_matches)


def mean_reciprocal_rank(
    embeddings,
    y,
    *,
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    metric="cosine",
    device=None,
) -> float:
    r"""Mean of 1 / rank of the first neighbor of the query's class.

    .. math:: \mathrm{MRR} = \frac1Q \sum_{q=1}^{Q} \frac{1}{p_q}, \qquad p_q = \text{rank of the nearest match of } q

    It is 1 if the nearest neighbor of each query is of its class, and 1/2 if it is always the second one.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries, real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,) or (n_queries, n_labels)
        Class of each query: integers, strings or anything else that sorts. Or which of several labels it has, 0 and 1:
        then rows that share a label with it are its class.
    gallery : array-like or torch.Tensor of shape (n_gallery, n_components), default=None
        Rows among which neighbors are searched for. None: the queries, each without its own row.
    gallery_y : array-like or torch.Tensor of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each row of `gallery`, or its labels.
    gallery_index : array-like or torch.Tensor of shape (n_queries,), default=None
        For each query, the row of `gallery` that is the query itself, which is left out; -1 for none.
    groups : array-like or torch.Tensor of shape (n_queries,), default=None
        Group of each query, such as its camera or its product page. Rows of the gallery of the query's class and group
        count neither as right nor as wrong, as if they were not there.
    gallery_groups : array-like or torch.Tensor of shape (n_gallery,), default=None
        Group of each row of `gallery`. Without a gallery, `groups` is used.
    metric : {"cosine", "euclidean"}, default="cosine"
        Whether the nearest row has the largest cosine (0 for rows of zeros) or the smallest Euclidean distance.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        Mean reciprocal rank in [0, 1]. Queries without another member of their class in the gallery are left out, with
        a warning that counts them; nan if no query is left.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, `gallery_index` holds no rows of the gallery,
        `groups` hold missing values, an argument is given without the other one that it needs, or `metric` is unknown.
    TypeError
        If the labels or groups cannot be compared with each other.

    See Also
    --------
    recall_at_k : Whether that rank is at most k.
    mean_average_precision : Looks at the ranks of all matches.
    MeanReciprocalRank : The same as a scorer for grid searches.

    Notes
    -----
    A tie with another class counts against the query; :func:`recall_at_k` defines ties.

    Examples
    --------
    The nearest match of the points of class 0 is the third neighbor, that of the points of class 1 the first.

    >>> from skdml.metrics import mean_reciprocal_rank
    >>> round(mean_reciprocal_rank([[0.0], [2.0], [2.5], [7.0]], [0, 1, 1, 0], metric="euclidean"), 4)
    0.6667
    """
    queries, gallery = prepare(
        embeddings, y, gallery, gallery_y, gallery_index, groups, gallery_groups, metric=metric, device=device
    )
    n_matches = count_matches(queries, gallery)
    return mean_over_queries(1 / (1 + nearer_than_best_match(queries, gallery).double()), n_matches)


def check_k(k):
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
