"""Several measures from one pass over the data."""

import re

from ._clustering import Clustering
from ._ranks import rank_all_matches, rank_matches
from ._recall import nearer_than_best_match
from ._retrieval import check_k
from ._rows import count_matches, mean_over_queries, prepare

RETRIEVAL = ("precision_at_1", "r_precision", "map_at_r", "map", "mrr")
CLUSTERING = ("nmi", "ami", "pairwise_f1")


def retrieval_report(
    embeddings,
    y,
    *,
    k=(1, 2, 4, 8),
    gallery=None,
    gallery_y=None,
    gallery_index=None,
    groups=None,
    gallery_groups=None,
    metric="cosine",
    random_state=0,
    device=None,
) -> dict[str, float]:
    """All measures of retrieval and clustering, from one pass over the similarities and one run of k-means.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_queries, n_components)
        Queries, real and finite. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_queries,) or (n_queries, n_labels)
        Class of each query: integers, strings or anything else that sorts. Or which of several labels it has, 0 and 1:
        then rows that share a label with it are its class.
    k : int or sequence of int, default=(1, 2, 4, 8)
        Numbers of neighbors for Recall@K, >= 1.
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
    random_state : int, RandomState instance or None, default=0
        Seeds k-means. No global state is changed.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    dict of str to int or float
        "n_queries" and "n_gallery", the rows given; "n_left_out", how many of the queries have no other member of their
        class in the gallery, so that retrieval leaves them out, with a warning. Then "recall_at_<k>" for each k,
        "precision_at_1", "r_precision", "map_at_r", "map" and "mrr", which are nan if no query is left. Then "nmi",
        "ami" and "pairwise_f1" of all queries, unless these have several labels each; the gallery is not clustered.

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
    RetrievalScorer : Chosen measures as a scorer for grid searches.
    recall_at_k : Also defines when neighbors tie.

    Notes
    -----
    The values are those of the functions that define the measures: :func:`recall_at_k`, :func:`precision_at_1`,
    :func:`r_precision`, :func:`map_at_r`, :func:`mean_average_precision` ("map"), :func:`mean_reciprocal_rank` ("mrr"),
    :func:`nmi_score`, :func:`ami_score` and :func:`pairwise_f1_score`. Recall is computed along with the others, so
    neighbors that are within the rounding of a product from a match may count differently than in :func:`recall_at_k`,
    and with a Euclidean gallery, k-means may round differently.

    Examples
    --------
    On a line, the clusters are the classes, but the third point lies nearer to the second than to the fourth.

    >>> from skdml.metrics import retrieval_report
    >>> report = retrieval_report([[0.0], [1.0], [5.0], [9.5]], [0, 0, 1, 1], k=(1, 2), metric="euclidean")
    >>> for name, value in report.items():
    ...     print(f"{name:15}{value:5}")
    n_queries          4
    n_gallery          4
    n_left_out         0
    recall_at_1     0.75
    recall_at_2      1.0
    precision_at_1  0.75
    r_precision     0.75
    map_at_r        0.75
    map            0.875
    mrr            0.875
    nmi              1.0
    ami              1.0
    pairwise_f1      1.0
    """
    names = [*(f"recall_at_{k}" for k in check_k(k)), *RETRIEVAL]
    queries, gallery = prepare(
        embeddings, y, gallery, gallery_y, gallery_index, groups, gallery_groups, metric=metric, device=device
    )
    if queries.labels is None:
        names += CLUSTERING
    n_matches = count_matches(queries, gallery)
    counts = {"n_queries": len(queries), "n_gallery": len(gallery), "n_left_out": int((n_matches == 0).sum())}
    return counts | measure(names, queries, gallery, n_matches, random_state)


def k_of(name):
    """Return k of "recall_at_<k>"; None for any other name."""
    match = re.fullmatch(r"recall_at_([1-9][0-9]*)", str(name))
    return int(match[1]) if match else None


def measure(names, queries, gallery, n_matches, random_state):
    """Return the measures of these names, computing only once what they share."""
    ks = {name: 1 if name == "precision_at_1" else k_of(name) for name in names}
    ks = {name: k for name, k in ks.items() if k}
    of_first = {"r_precision", "map_at_r"}.intersection(names)
    values = {}  # of each query
    if "map" in names or (of_first and "mrr" in names):
        ranks = rank_all_matches(queries, gallery, n_matches)
    elif of_first:
        ranks = rank_matches(queries, gallery, n_matches, max(ks.values(), default=1))
    else:
        ranks = None
    if ranks:
        n_nearer = ranks.n_nearer
        values = {"r_precision": ranks.r_precision, "map_at_r": ranks.map_at_r, "map": ranks.average_precision}
    elif ks or "mrr" in names:
        n_nearer = nearer_than_best_match(queries, gallery)
    values |= {name: n_nearer < k for name, k in ks.items()}
    if "mrr" in names:
        values["mrr"] = 1 / (1 + n_nearer.double())
    scores = {name: mean_over_queries(values[name], n_matches) for name in names if name in values}
    if not set(names).isdisjoint(CLUSTERING):
        if queries.labels is not None:
            raise ValueError(
                f"{', '.join(CLUSTERING)} compare clusters with classes and need one class per row; got y of shape "
                f"{tuple(queries.labels.shape)}, several labels per row. Leave them out."
            )
        clustering = Clustering(queries, random_state)
        scores |= {name: getattr(clustering, name)() for name in CLUSTERING if name in names}
    return {name: scores[name] for name in names}
