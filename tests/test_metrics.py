"""Retrieval measures: against loops over sorted neighbors, at their limits, and as scorers."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.spatial.distance import cdist, pdist
from scipy.stats import entropy
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    average_precision_score,
    f1_score,
    normalized_mutual_info_score,
)
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline

from skdml.metrics import (
    AMI,
    NMI,
    MAPAtR,
    MeanAveragePrecision,
    MeanReciprocalRank,
    PairwiseF1,
    PrecisionAt1,
    RecallAtK,
    RetrievalScorer,
    RPrecision,
    _clustering,
    _k_means,
    _ranks,
    _report,
    _rows,
    ami_score,
    intra_inter_ratio,
    map_at_r,
    mean_average_precision,
    mean_reciprocal_rank,
    nmi_score,
    pairwise_f1_score,
    precision_at_1,
    r_precision,
    recall_at_k,
    retrieval_report,
    spectral_decay,
    uniformity,
)

METRICS = ["cosine", "euclidean"]
KS = [1, 2, 4, 1000]
RETRIEVAL = [recall_at_k, precision_at_1, r_precision, map_at_r, mean_average_precision, mean_reciprocal_rank]
CLUSTERING = [nmi_score, ami_score, pairwise_f1_score]


@pytest.fixture(params=[2, 5, 16, 1024])
def tile(request, monkeypatch):
    """Size of a tile, from smaller to larger than the data."""
    monkeypatch.setattr(_rows, "CPU_TILE", request.param)
    monkeypatch.setattr(_rows, "GPU_TILE", request.param)
    monkeypatch.setattr(_rows, "_MAX_HELD", request.param**2)


def neighbours_correct(X, y, gallery=None, gallery_y=None, metric="cosine"):
    """For each query, which of its neighbors, from near to far, are of its class: the definition, row by row."""
    own_row = gallery is None
    Z, z = (X, y) if own_row else (gallery, gallery_y)
    correct = []
    for i, (query, label) in enumerate(zip(X, y, strict=True)):
        if metric == "cosine":
            far = -(Z @ query) / np.maximum(np.linalg.norm(Z, axis=1) * np.linalg.norm(query), 1e-300)
        else:
            far = ((Z - query) ** 2).sum(1)
        order = np.argsort(far, kind="stable")
        correct.append(np.asarray(z)[order[order != i] if own_row else order] == label)
    return [c for c in correct if c.any()]


def recall_by_hand(*args, ks=KS, **kwargs):
    return np.array([np.mean([c[:k].any() for c in neighbours_correct(*args, **kwargs)]) for k in ks])


def map_by_hand(*args, **kwargs):
    values = []
    for c in neighbours_correct(*args, **kwargs):
        r = c.sum()
        values.append(sum(c[: i + 1].mean() * c[i] for i in range(min(r, len(c)))) / r)
    return np.mean(values)


def r_precision_by_hand(*args, **kwargs):
    return np.mean([c[: c.sum()].mean() for c in neighbours_correct(*args, **kwargs)])


def make_data(seed, n, n_classes, d=5, spread=0.7):
    """Overlapping classes in float64, at random distances from each other."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    return rng.normal(size=(n, d)) + spread * rng.normal(size=(n_classes, d))[y], y


def quiet(function, *args, **kwargs):
    """Call without the warning about queries left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*queries are left out", category=UserWarning)
        return function(*args, **kwargs)


# Values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_equals_definition(metric, data):
    n_classes = data.draw(st.sampled_from([1, 2, 5, 40]))
    X, y = make_data(data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(2, 70)), n_classes)
    queries = {"embeddings": X, "y": y}
    if data.draw(st.booleans()):
        n_queries = data.draw(st.integers(1, len(X) - 1))
        queries = {"embeddings": X[:n_queries], "y": y[:n_queries]}
        queries |= {"gallery": X[n_queries:], "gallery_y": y[n_queries:]}
    arguments = [*queries.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "CPU_TILE", data.draw(st.sampled_from([1, 2, 7, 16, 1024])))
        recall = quiet(recall_at_k, k=KS, metric=metric, **queries)
        patch.setattr(_rows, "_MAX_HELD", data.draw(st.sampled_from([1, 200, 2**24])))
        precision = quiet(map_at_r, metric=metric, **queries)
        share = quiet(r_precision, metric=metric, **queries)
        report = quiet(retrieval_report, k=KS, metric=metric, **queries)
    assert_array_equal([report[f"recall_at_{k}"] for k in KS], recall)
    assert_array_equal([report["precision_at_1"], report["map_at_r"]], [recall[0], precision])
    assert_array_equal(report["r_precision"], share)
    if neighbours_correct(*arguments):
        assert_array_equal(recall, recall_by_hand(*arguments, metric=metric))
        assert_allclose(precision, map_by_hand(*arguments, metric=metric), rtol=1e-12)
        assert_allclose(share, r_precision_by_hand(*arguments, metric=metric), rtol=1e-12)
    else:
        assert np.isnan(recall).all()
        assert np.isnan(precision)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_classes", [2, 7, 60])
def test_tiles_of_any_size(tile, metric, n_classes):
    X, y = make_data(0, 83, n_classes)
    assert_array_equal(quiet(recall_at_k, X, y, KS, metric=metric), recall_by_hand(X, y, metric=metric))
    assert_allclose(quiet(map_at_r, X, y, metric=metric), map_by_hand(X, y, metric=metric), rtol=1e-12)
    split = X[:30], y[:30], X[30:], y[30:]
    recall = quiet(recall_at_k, *split[:2], KS, gallery=split[2], gallery_y=split[3], metric=metric)
    assert_array_equal(recall, recall_by_hand(*split, metric=metric))
    precision = quiet(map_at_r, *split[:2], gallery=split[2], gallery_y=split[3], metric=metric)
    assert_allclose(precision, map_by_hand(*split, metric=metric), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 65, 131, 1003])
@pytest.mark.parametrize("k", [1, 2, 7, 40, 900])
def test_largest_are_those_of_a_full_sort(n, k):
    S = torch.tensor(np.random.default_rng(k).integers(0, 500, size=(6, n))).float()
    k = min(k, n)
    assert_array_equal(S.gather(1, _ranks._largest(S, k)), S.sort(dim=1, descending=True).values[:, :k])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_per_class", [3, 40, 150])
def test_blocks_of_poor_and_good_embeddings(monkeypatch, metric, n_per_class):
    monkeypatch.setattr(_rows, "_MAX_HELD", 10_000)
    for spread in (0.0, 0.3, 3.0):
        X, y = make_data(0, 300, 300 // n_per_class, d=8, spread=spread)
        y[:3] = range(1000, 1003)  # classes of their own
        report = quiet(retrieval_report, X, y, k=KS, metric=metric)
        assert report["map_at_r"] == pytest.approx(map_by_hand(X, y, metric=metric), rel=1e-12)
        assert report["r_precision"] == pytest.approx(r_precision_by_hand(X, y, metric=metric), rel=1e-12)
        assert_array_equal([report[f"recall_at_{k}"] for k in KS], recall_by_hand(X, y, metric=metric))


def test_map_at_r_by_hand():
    """Correct at 1 and 3 of R = 3: (1/1 + 0 + 2/3) / 3. The third member, at 5, is too late to count."""
    gallery, gallery_y = [[1.0], [2.0], [3.0], [4.0], [5.0]], [0, 1, 0, 1, 0]
    value = map_at_r([[0.0]], [0], gallery=gallery, gallery_y=gallery_y, metric="euclidean")
    assert value == pytest.approx((1 + 2 / 3) / 3, abs=1e-7)


def test_metrics_differ():
    """The nearest by angle is another row than the nearest by distance."""
    X, y = [[1.0, 0.0]], ["a"]
    gallery = {"gallery": [[9.0, 0.1], [1.0, 0.9]], "gallery_y": ["a", "b"]}
    assert recall_at_k(X, y, **gallery) == map_at_r(X, y, **gallery) == 1
    assert recall_at_k(X, y, **gallery, metric="euclidean") == map_at_r(X, y, **gallery, metric="euclidean") == 0


def test_a_gallery_keeps_the_query_itself():
    X, y = make_data(0, 20, 20)
    with pytest.warns(UserWarning, match="identical row of their own class"):
        assert recall_at_k(X, y, gallery=X, gallery_y=y) == 1


def test_k_beyond_the_gallery_finds_every_match():
    X, y = make_data(0, 20, 3)
    assert recall_at_k(X, y, 20) == 1


def test_one_class_and_two_points():
    assert recall_at_k([[1.0], [-1.0]], [3, 3]) == map_at_r([[1.0], [-1.0]], [3, 3]) == 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(7, 32), (130, 37), (127, 128)])
def test_collapsed_embeddings_tie(tile, n, d, dtype, metric):
    """The rounding of a product depends on the place in it: equal rows must tie all the same."""
    X = np.repeat(np.random.default_rng(0).normal(size=(1, d)), n, axis=0).astype(dtype)
    y = np.arange(n) % (n // 2)
    assert recall_at_k(X, y, metric=metric) == map_at_r(X, y, metric=metric) == 0
    assert recall_at_k(X, y, n, metric=metric) == 1


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("d", [512, 4096, 30_000])
def test_equal_rows_of_many_components_tie(d, share):
    """Sums of many numbers of one sign have the largest rounding, which is another for each way to compute them."""
    points = (np.random.default_rng(0).random(size=(100, d)) < share).astype(np.float32)
    X, y = np.repeat(points, 4, axis=0), np.repeat(2 * np.arange(100), 4) + np.tile([0, 1], 200)
    for metric in METRICS:
        assert recall_at_k(X, y, metric=metric) == map_at_r(X, y, metric=metric) == 0
        assert recall_at_k(X, y, 3, metric=metric) == 1


@pytest.mark.parametrize("kind", ["scaled", "noisy"])
@pytest.mark.parametrize("d", [3, 8, 64])
def test_rows_that_differ_by_the_rounding_of_their_components_tie(d, kind):
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(1000, d)), 4, axis=0)
    if kind == "scaled":
        X *= rng.uniform(0.1, 10, size=(4000, 1))
    X = X.astype(np.float32)
    if kind == "noisy":
        X *= 1 + rng.choice([-1, 0, 1], size=X.shape).astype(np.float32) * np.finfo(np.float32).eps / 2
    y = np.repeat(2 * np.arange(1000), 4) + np.tile([0, 1], 2000)
    assert recall_at_k(X, y) == map_at_r(X, y) == r_precision(X, y) == 0


def test_ties_between_classes_count_against_the_query():
    """The match lies at distance 1, as does a row of another class; then the match comes strictly nearer."""
    gallery_y = [1, 0, 1]
    for measure in (recall_at_k, map_at_r):
        for match, expected in ((1.0, 0), (-1.0, 0), (0.999, 1)):
            gallery = [[-1.0], [match], [2.0]]
            assert measure([[0.0]], [0], gallery=gallery, gallery_y=gallery_y, metric="euclidean") == expected
    assert recall_at_k([[0.0]], [0], 2, gallery=[[-1.0], [1.0], [2.0]], gallery_y=gallery_y, metric="euclidean") == 1
    # Both at the origin, where distances have no rounding.
    origin = {"gallery": [[0.0], [0.0]], "gallery_y": [0, 1], "gallery_index": [-1]}
    assert recall_at_k([[0.0]], [0], **origin, metric="euclidean") == 0


def test_rows_of_zeros_have_cosine_zero():
    query, gallery = [[1.0, 0.0]], [[0.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]
    assert recall_at_k(query, [0], gallery=gallery[:2], gallery_y=[0, 1]) == 1
    assert recall_at_k(query, [0], gallery=[*gallery[:1], [1.0, 1.0]], gallery_y=[0, 1]) == 0
    assert recall_at_k([[0.0, 0.0]], [0], [2, 3], gallery=gallery, gallery_y=[1, 0, 1]).tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_ignores_lengths(scale):
    X, y = make_data(0, 60, 6)
    X = X.astype(np.float32)
    lengths = np.random.default_rng(1).uniform(0.5, 2, size=(60, 1)) * scale
    assert_array_equal(recall_at_k((X * lengths).astype(np.float32), y, KS), recall_at_k(X, y, KS))


def test_euclidean_of_data_far_from_the_origin():
    """In float32, |x|^2 + |z|^2 - 2xz alone would lose every digit here."""
    X, y = make_data(0, 60, 6)
    X = np.round(X, 2).astype(np.float32) + np.float32(3000)
    expected = recall_by_hand(X.astype(np.float64), y, metric="euclidean")
    assert_array_equal(recall_at_k(X, y, KS, metric="euclidean"), expected)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e-25), ("float32", 1e-37), ("float64", 1e-200)])
def test_euclidean_of_tiny_data(dtype, scale):
    """The squares of the data would be 0."""
    X, y = make_data(0, 60, 6)
    expected = retrieval_report(X, y, metric="euclidean")
    found = retrieval_report((X * scale).astype(dtype), y, metric="euclidean")
    assert found == pytest.approx(expected, abs=1e-6)
    # Where one row is far from the others, these are too near to each other to be told apart.
    X = np.concatenate([X * scale, np.ones((1, X.shape[1]))]).astype(dtype)
    assert quiet(retrieval_report, X, np.append(y, 6), metric="euclidean")["map_at_r"] == 0


def test_map_at_r_of_pytorch_metric_learning():
    accuracy_calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    X, y = make_data(0, 300, 20)
    X = torch.tensor(X / np.linalg.norm(X, axis=1, keepdims=True))
    peer = accuracy_calculator.AccuracyCalculator(
        include=("mean_average_precision_at_r", "r_precision", "precision_at_1"),
        k="max_bin_count",
        knn_func=ExactNeighbours(),
    ).get_accuracy(X, torch.tensor(y))
    assert map_at_r(X, y) == pytest.approx(peer["mean_average_precision_at_r"], abs=1e-6)
    assert r_precision(X, y) == pytest.approx(peer["r_precision"], abs=1e-6)
    assert precision_at_1(X, y) == pytest.approx(peer["precision_at_1"], abs=1e-6)


class ExactNeighbours:
    """k-NN for pytorch-metric-learning without faiss."""

    def __call__(self, query, k, reference, ref_includes_query):
        far = torch.cdist(query, reference)
        if ref_includes_query:
            far.fill_diagonal_(torch.inf)
        return far.topk(k, largest=False)


def test_r_precision_by_hand():
    """Two of the first R = 3 are correct, in any order."""
    for gallery_y in ([0, 0, 1, 1, 0], [1, 0, 0, 1, 0]):
        gallery = [[1.0], [2.0], [3.0], [4.0], [5.0]]
        value = r_precision([[0.0]], [0], gallery=gallery, gallery_y=gallery_y, metric="euclidean")
        assert value == pytest.approx(2 / 3, abs=1e-7)


def test_precision_at_1_is_recall_at_1():
    X, y = make_data(0, 80, 9)
    assert precision_at_1(X, y) == recall_at_k(X, y, 1)


# What does not count -----------------------------------------------------------------------------------------------


def ranks_by_hand(
    X, y, gallery=None, gallery_y=None, gallery_index=None, groups=None, gallery_groups=None, metric=None
):
    """The ranks of each query's matches, a match after all rows at the same distance: the definition, row by row."""
    own = range(len(X)) if gallery is None else gallery_index
    if gallery is None:
        gallery, gallery_y, gallery_groups = X, y, groups
    for i in range(len(X)):
        counts = np.arange(len(gallery)) != (own[i] if own is not None else -1)
        if groups is not None:
            counts &= (gallery_y != y[i]) | (gallery_groups != groups[i])
        Z, is_match = gallery[counts], gallery_y[counts] == y[i]
        if metric == "cosine":
            far = -(Z @ X[i]) / np.maximum(np.linalg.norm(Z, axis=1) * np.linalg.norm(X[i]), 1e-300)
        else:
            far = ((Z - X[i]) ** 2).sum(1)
        yield 1 + np.flatnonzero(is_match[np.lexsort((is_match, far.round(9)))])


@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_own_rows_and_groups_equal_definition(metric, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n, m = data.draw(st.integers(2, 40)), data.draw(st.integers(2, 60))
    n_classes, n_groups = data.draw(st.sampled_from([1, 2, 5, 30])), data.draw(st.sampled_from([1, 2, 8]))
    has_ties = data.draw(st.booleans())

    def rows(size):
        points = rng.integers(-2, 3, size=(size, 3)).astype(float) if has_ties else rng.normal(size=(size, 3))
        return points, rng.integers(n_classes, size=size), np.array(list("abcdefgh"))[rng.integers(n_groups, size=size)]

    (X, y, groups), (gallery, gallery_y, gallery_groups) = rows(n), rows(m)
    search = {}
    if data.draw(st.booleans()):
        search = {"gallery": gallery, "gallery_y": gallery_y}
        if data.draw(st.booleans()):
            own = search["gallery_index"] = rng.integers(-1, m, size=n)
            is_there = own >= 0
            X[is_there], y[is_there] = gallery[own[is_there]], gallery_y[own[is_there]]
            y[:1] = 0  # perhaps of another class in the gallery
    if data.draw(st.booleans()):
        search |= {"groups": groups} | ({"gallery_groups": gallery_groups} if "gallery" in search else {})

    ranks = [r for r in ranks_by_hand(X, y, **search, metric=metric) if len(r)]
    precision = [np.arange(1, len(r) + 1) / r for r in ranks]
    expected = {f"recall_at_{k}": np.mean([r[0] <= k for r in ranks]) if ranks else np.nan for k in KS}
    expected["precision_at_1"] = expected["recall_at_1"]
    for name, values in (
        ("r_precision", [(r <= len(r)).mean() for r in ranks]),
        ("map_at_r", [p[r <= len(r)].sum() / len(r) for r, p in zip(ranks, precision, strict=True)]),
        ("map", [p.mean() for p in precision]),
        ("mrr", [1 / r[0] for r in ranks]),
    ):
        expected[name] = np.mean(values) if ranks else np.nan
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(_report, "CLUSTERING", ())
        patch.setattr(_rows, "CPU_TILE", data.draw(st.sampled_from([5, 16, 1024])))
        patch.setattr(_rows, "_MAX_HELD", data.draw(st.sampled_from([100, 500, 2**24])))
        report = retrieval_report(X, y, k=KS, **search, metric=metric)
        values = [*recall_at_k(X, y, KS, **search, metric=metric)]
        values += [measure(X, y, **search, metric=metric) for measure in RETRIEVAL[1:]]
    assert report["n_left_out"] == n - len(ranks)
    for (name, value), same in zip(expected.items(), values, strict=True):
        assert_allclose([report[name], same], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_average_precision_is_that_of_scikit_learn(metric, dtype):
    X, y = make_data(0, 120, 9)
    X = X.astype(dtype)
    far = cdist(X.astype(float), X.astype(float), metric)
    others = ~np.eye(len(y), dtype=bool)
    expected = [average_precision_score(y[o] == label, -d[o]) for o, label, d in zip(others, y, far, strict=True)]
    assert mean_average_precision(X, y, metric=metric) == pytest.approx(np.mean(expected), rel=1e-12)


def test_market_1501(device):
    """Rank-1 as in the benchmark's evaluation: junk is what the same camera saw of the same person."""
    rng = np.random.default_rng(0)
    person, camera = rng.integers(12, size=200), rng.integers(6, size=200)
    Z = rng.normal(size=(200, 16)) + 0.4 * rng.normal(size=(12, 16))[person] + 1.5 * rng.normal(size=(6, 16))[camera]
    query, gallery = np.arange(40), np.arange(200)  # the gallery holds the queries
    rank_1 = []
    for i in query:
        order = gallery[np.argsort(cdist(Z[i : i + 1], Z[gallery], "cosine")[0])]
        is_junk = (person[order] == person[i]) & (camera[order] == camera[i])
        rank_1.append(person[order[~is_junk][0]] == person[i])
    cameras = {"groups": camera[query], "gallery_groups": torch.tensor(camera)}
    Z = torch.tensor(Z, device=device)
    search = {"gallery": Z, "gallery_y": person}
    assert recall_at_k(Z[query], person[query], **search, **cameras) == np.mean(rank_1) < 0.5
    with pytest.warns(UserWarning, match="identical row"):
        assert recall_at_k(Z[query], person[query], **search) == 1


@pytest.mark.parametrize("measure", [*RETRIEVAL, retrieval_report])
def test_a_query_in_the_gallery_is_left_out(measure):
    """On noise, what finds itself is right by cheating; with gallery_index, it searches the others."""
    Z, y = torch.randn(200, 8), np.arange(200) % 20
    search = {"gallery": Z, "gallery_y": y}
    with pytest.warns(UserWarning, match="Pass gallery_index") as record:
        flattered = measure(Z[:50], y[:50], **search)
    assert len(record) == 1
    assert record[0].filename == __file__
    fair = measure(Z[:50], y[:50], **search, gallery_index=np.arange(50))
    if measure is retrieval_report:
        flattered, fair = flattered["recall_at_1"], fair["recall_at_1"]
    assert flattered > 0.1
    assert fair < 0.3
    if measure is not retrieval_report:
        assert measure(Z, y, **search, gallery_index=torch.arange(200)) == pytest.approx(measure(Z, y), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("change", "is_warned_of"),
    [
        (lambda X, y: (X[:60], y[:60]), True),
        (lambda X, y: (X[:60].astype(np.float32), y[:60]), True),
        (lambda X, y: (X[:60] * (1 + 1e-7 * np.random.default_rng(0).normal(size=(60, 5))), y[:60]), True),
        (lambda X, y: (np.tile(X, (12, 1)), np.tile(y, 12)), True),  # more than are compared
        (lambda X, y: (X[:60], y[:60] + 100), False),
        (lambda X, y: (np.concatenate([X[:20], 1 + X[:40]]), y[:60]), False),
        (lambda X, y: (X[:60] * (1 + 0.01 * np.random.default_rng(0).normal(size=(60, 5))), y[:60]), False),
    ],
)
def test_queries_in_the_gallery_are_warned_of(metric, change, is_warned_of):
    X, y = make_data(0, 100, 4)
    queries = change(X, y)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        recall_at_k(*queries, gallery=X, gallery_y=y, metric=metric)
    assert any("identical row" in str(w.message) for w in record) == is_warned_of
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Most queries")
        quiet(recall_at_k, *queries, gallery=X, gallery_y=y, gallery_index=np.full(len(queries[0]), -1), metric=metric)


def test_groups_of_any_kind():
    X, y = make_data(0, 60, 6)
    groups = np.arange(60) % 3
    expected = retrieval_report(X, y, k=KS, groups=groups)
    assert expected != retrieval_report(X, y, k=KS)
    text = np.array(["a", "b", "c"])[groups]
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], dtype="datetime64[D]")[groups]
    objects = pd.Series(text, dtype="category"), pd.Series(groups, dtype="Int64"), torch.tensor(groups), days
    for same in (text, text.tolist(), text.astype(object), groups + 2**60, groups * 2.0, *objects):
        assert retrieval_report(X, y, k=KS, groups=same) == expected
    with pytest.warns(UserWarning, match="60 of 60 queries are left out: .* of their class in another group"):
        assert np.isnan(recall_at_k(X, y, groups=np.zeros(60)))


# Clustering --------------------------------------------------------------------------------------------------------


def make_clusters(n_classes=30, n=300, spread=6.0, d=16, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    return rng.normal(size=(n, d)) + spread * rng.normal(size=(n_classes, d))[y], y


@pytest.mark.parametrize("metric", METRICS)
def test_clusters_that_are_the_classes(metric):
    X, y = make_clusters(n_classes=8)
    for measure in CLUSTERING:
        assert measure(X, y, metric=metric) == pytest.approx(1, abs=1e-12)


def test_random_clusters():
    X = np.random.default_rng(0).normal(size=(400, 8))
    y = np.arange(400) % 80
    assert nmi_score(X, y) > 0.5  # not corrected for chance
    assert abs(ami_score(X, y)) < 0.05
    assert pairwise_f1_score(X, y) < 0.05


@pytest.mark.parametrize("sizes", [(2, 2), (1, 5), (4, 1), (7, 30), (40, 40)])
def test_measures_of_clusters_are_those_of_scikit_learn(sizes):
    rng = np.random.default_rng(0)
    clustering = object.__new__(_clustering.Clustering)
    clustering.y, clustering.labels = (rng.integers(size, size=40) for size in sizes)
    clustering.labels[:20] = clustering.y[:20] % sizes[1]
    expected = adjusted_mutual_info_score(clustering.y, clustering.labels)
    assert clustering.ami() == pytest.approx(expected, abs=1e-12)
    assert clustering.nmi() == normalized_mutual_info_score(clustering.y, clustering.labels)


def test_ami_of_partitions_into_single_rows():
    clustering = object.__new__(_clustering.Clustering)
    clustering.y = clustering.labels = np.arange(9)
    assert clustering.ami() == 1
    assert np.isnan(clustering.pairwise_f1())


def test_pairwise_f1_by_hand():
    rng = np.random.default_rng(0)
    clustering = object.__new__(_clustering.Clustering)
    clustering.y, clustering.labels = rng.integers(5, size=(2, 60))
    i, j = np.triu_indices(60, 1)
    of_class = clustering.y[i] == clustering.y[j]
    of_cluster = clustering.labels[i] == clustering.labels[j]
    assert clustering.pairwise_f1() == pytest.approx(f1_score(of_class, of_cluster))


@pytest.mark.parametrize("max_held", [100, 2**24])
def test_k_means_is_lloyd(max_held, monkeypatch):
    """What is left out of an iteration changes nothing: from the same start, scikit-learn ends in the same clusters."""
    monkeypatch.setattr(_rows, "_MAX_HELD", max_held)
    for spread in (0.3, 1.0, 3.0):
        X, y = make_clusters(spread=spread)
        rows, _ = _rows.prepare(X, y, metric="euclidean")
        start = _k_means._first_centers(rows.points, 30, np.random.RandomState(0))
        assert len(start.unique(dim=0)) == 30
        labels = _k_means.k_means(rows.points, 30, np.random.RandomState(0))
        peer = KMeans(30, init=start.numpy(), n_init=1, tol=0).fit(rows.points.numpy())
        assert adjusted_rand_score(labels, peer.labels_) == pytest.approx(1)


@pytest.mark.parametrize("max_sample", [10, 2**14])
def test_more_clusters_than_distinct_rows(max_sample, monkeypatch):
    monkeypatch.setattr(_k_means, "_MAX_SAMPLE", max_sample)
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    labels = _k_means.k_means(rows.repeat(4, 1), 20, np.random.RandomState(0)).view(4, 12)
    assert torch.equal(labels, labels[:1].expand(4, 12))


def test_k_means_ends_when_few_rows_change(monkeypatch):
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(600, 4)))

    def labels(**settings):
        for name, value in settings.items():
            monkeypatch.setattr(_k_means, name, value)
        return _k_means.k_means(points, 20, np.random.RandomState(0))

    end, previous, last = labels(_FEW=0), *(labels(_MAX_ITER=n) for n in (4, 5))
    n_changed = (previous != last).sum().item()
    assert 0 < n_changed < 60
    assert not torch.equal(last, end)
    assert torch.equal(labels(_MAX_ITER=100, _FEW=n_changed / 600), last)


def test_k_means_is_as_good_as_the_mean_of_scikit_learn():
    X, y = make_clusters(spread=1.5)
    rows, _ = _rows.prepare(X, y, metric="euclidean")

    def inertia(labels):
        return sum(((Z - Z.mean(0)) ** 2).sum() for Z in (rows.points.numpy()[labels == c] for c in set(labels)))

    ours = [inertia(_k_means.k_means(rows.points, 30, np.random.RandomState(seed)).numpy()) for seed in range(5)]
    peer = [KMeans(30, n_init=1, random_state=seed).fit(rows.points.numpy()).inertia_ for seed in range(5)]
    assert np.mean(ours) < 1.02 * np.mean(peer)


@pytest.mark.parametrize("measure", CLUSTERING)
def test_clustering_is_seeded(measure):
    X, y = make_clusters(spread=1.0)
    values = [measure(X, y, random_state=seed) for seed in range(4)]
    assert values == [measure(X, y, random_state=seed) for seed in range(4)]
    assert len(set(values)) > 1
    assert measure(X, y, random_state=np.random.RandomState(2)) == values[2]
    assert measure(X, y) == values[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_collapsed_network_has_no_clusters(dtype):
    X = np.repeat(np.random.default_rng(0).normal(size=(1, 37)), 60, axis=0).astype(dtype)
    y = np.arange(60) % 12
    assert nmi_score(X, y) == ami_score(X, y) == 0
    assert pairwise_f1_score(X, y) == pytest.approx(2 * 4 / (4 + 59))  # precision 4 / 59, recall 1


def test_clustering_of_one_class():
    for measure in CLUSTERING:
        assert measure([[1.0], [2.0]], [7, 7]) == 1


@pytest.mark.parametrize("measure", [*CLUSTERING, intra_inter_ratio])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": [0, 0]}, "got 2 labels for 3 rows"),
        ({"embeddings": [[np.nan, 1.0]] * 3}, "NaN or infinity"),
        ({"metric": "manhattan"}, "'cosine' or 'euclidean', got 'manhattan'"),
    ],
)
def test_input_of_clustering_is_checked(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(**{"embeddings": X, "y": Y} | arguments)


# Diagnostics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_intra_inter_ratio_by_hand(tile, metric):
    X, y = make_data(0, 50, 6)
    Z = X / np.linalg.norm(X, axis=1, keepdims=True) if metric == "cosine" else X
    i, j = np.triu_indices(50, 1)
    intra = np.linalg.norm(Z[i] - Z[j], axis=1)[y[i] == y[j]].mean()
    inter = pdist(np.stack([Z[y == c].mean(0) for c in range(6)])).mean()
    assert intra_inter_ratio(X, y, metric=metric) == pytest.approx(intra / inter, rel=1e-9)


def test_intra_inter_ratio_of_a_common_direction():
    """Cosines near 1 in float32 hold few digits of the distances."""
    X, y = make_data(0, 50, 6)
    X = (X + 1e4).astype(np.float32)
    assert intra_inter_ratio(X, y) == pytest.approx(intra_inter_ratio(X.astype(np.float64), y), rel=1e-3)


def test_intra_inter_ratio_at_its_limits():
    assert intra_inter_ratio([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 0, 1]) == 0
    assert np.isnan(intra_inter_ratio([[1.0, 0.0]] * 4, [0, 0, 1, 1]))
    assert intra_inter_ratio([[1.0], [-1.0], [1.0], [-1.0]], [0, 0, 1, 1]) == np.inf
    for y in ([0, 0, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match=r"two or more classes, one of them with two or more rows; got \d classes"):
            intra_inter_ratio(X, y)


@pytest.mark.parametrize("metric", METRICS)
def test_spectral_decay_by_hand(tile, metric):
    X, _ = make_data(0, 50, 6)
    Z = X / np.linalg.norm(X, axis=1, keepdims=True) if metric == "cosine" else X
    s = np.linalg.svd(Z, compute_uv=False)
    assert spectral_decay(X, metric=metric) == pytest.approx(entropy(np.full(5, 0.2), s / s.sum()), rel=1e-9)
    assert spectral_decay((1e25 * X).astype(np.float32), metric=metric) == pytest.approx(
        spectral_decay(X, metric=metric), rel=1e-5
    )


def test_spectral_decay_at_its_limits():
    assert spectral_decay(np.eye(4)) == pytest.approx(0, abs=1e-12)
    assert spectral_decay([[1.0, 2.0], [2.0, 4.0]]) == np.inf
    assert spectral_decay(np.eye(4)[:3]) == np.inf
    with pytest.raises(ValueError, match="not be all zero"):
        spectral_decay([[0.0, 0.0]])
    with pytest.raises(ValueError, match="got 'l1'"):
        spectral_decay([[1.0]], metric="l1")


def test_uniformity_by_hand(tile):
    X, _ = make_data(0, 50, 6)
    squares = pdist(X / np.linalg.norm(X, axis=1, keepdims=True)) ** 2
    for t in (0.5, 2):
        assert uniformity(X, t=t) == pytest.approx(np.log(np.exp(-t * squares).mean()), rel=1e-9)


def test_uniformity_at_its_limits():
    assert uniformity([[1.0, 2.0]] * 5) == 0
    for t in (3, 30.0, 1000):
        assert uniformity([[1.0], [-1.0]], t=t) == pytest.approx(-4 * t)
    for t in (0, -1.0, np.inf, "2"):
        with pytest.raises(ValueError, match="t must be a positive number, got"):
            uniformity(X, t=t)
    with pytest.raises(ValueError, match="two rows or more"):
        uniformity([[1.0]])


# Report ------------------------------------------------------------------------------------------------------------


def test_report_is_what_the_functions_give():
    X, y = make_data(0, 60, 7)
    y[0] = 99
    with pytest.warns(UserWarning, match="1 of 60 queries are left out") as record:
        report = retrieval_report(X, y, k=(1, 3), random_state=5)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert report == {
        "n_queries": 60,
        "n_gallery": 60,
        "n_left_out": 1,
        "recall_at_1": quiet(recall_at_k, X, y, 1),
        "recall_at_3": quiet(recall_at_k, X, y, 3),
        "precision_at_1": quiet(precision_at_1, X, y),
        "r_precision": quiet(r_precision, X, y),
        "map_at_r": quiet(map_at_r, X, y),
        "map": quiet(mean_average_precision, X, y),
        "mrr": quiet(mean_reciprocal_rank, X, y),
        "nmi": nmi_score(X, y, random_state=5),
        "ami": ami_score(X, y, random_state=5),
        "pairwise_f1": pairwise_f1_score(X, y, random_state=5),
    }
    assert all(type(value) in (int, float) for value in report.values())


def test_report_with_a_gallery():
    X, y = make_data(0, 60, 7)
    report = retrieval_report(X[:20], y[:20], k=1, gallery=X[20:], gallery_y=y[20:])
    assert (report["n_queries"], report["n_gallery"]) == (20, 40)
    assert report["map_at_r"] == map_at_r(X[:20], y[:20], gallery=X[20:], gallery_y=y[20:])
    assert report["nmi"] == nmi_score(X[:20], y[:20])


def test_report_without_a_valid_query():
    report = quiet(retrieval_report, [[1.0], [2.0]], ["a", "b"], k=1)
    assert report["n_left_out"] == 2
    assert np.isnan([report[name] for name in ("recall_at_1", "precision_at_1", "r_precision", "map_at_r")]).all()


def test_k_of_the_report_is_checked():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        retrieval_report(X, Y, k=(1, 0))


def test_device(device):
    data, y = make_data(0, 60, 7)
    data, there = data.astype(np.float32), torch.tensor(data, device=device, dtype=torch.float32)
    assert retrieval_report(data, y, device=device) == pytest.approx(retrieval_report(there, y), rel=1e-6)
    assert retrieval_report(there, y, device="cpu") == retrieval_report(data, y)
    for measure in (*RETRIEVAL, *CLUSTERING, intra_inter_ratio):
        assert measure(data, y, device=device) == pytest.approx(measure(there, y), rel=1e-6)
    assert uniformity(data, device=device) == pytest.approx(uniformity(there), rel=1e-6)
    assert spectral_decay(data, device=device) == pytest.approx(spectral_decay(there), rel=1e-6)


# Input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.longdouble])
def test_number_types(dtype, metric):
    X = np.random.default_rng(0).integers(0, 60, size=(50, 12))
    X = (X > 30 if dtype is bool else X).astype(dtype)
    y = np.arange(50) % 9
    exact = X.astype(np.float64)
    assert_array_equal(recall_at_k(X, y, KS, metric=metric), recall_at_k(exact, y, KS, metric=metric))
    assert map_at_r(X, y, metric=metric) == pytest.approx(map_at_r(exact, y, metric=metric), abs=1e-6)


def test_float64_stays_float64():
    """The two candidates differ by 1e-10, which float32 does not see."""
    gallery = {"gallery": [[1 + 1e-10], [1.0]], "gallery_y": [0, 1]}
    assert recall_at_k(np.zeros((1, 1)), [0], **gallery, metric="euclidean") == 0


def test_int64_is_not_rounded():
    X = np.array([[2**24], [2**24 + 2], [2**24 + 1]])
    assert quiet(recall_at_k, X, [0, 0, 1], metric="euclidean") == 0
    assert quiet(recall_at_k, torch.from_numpy(X), [0, 0, 1], metric="euclidean") == 0


@pytest.mark.parametrize(
    "rename",
    [
        lambda y: [f"class {label}" for label in y],
        lambda y: -5 * y,
        lambda y: 2**53 + y,
        lambda y: y.astype(np.uint8),
        lambda y: np.array([f"class {label}" for label in y], dtype=object),
        lambda y: pd.Series(y, index=range(100, 100 + len(y))),
        lambda y: pd.Categorical([f"class {label}" for label in y]),
        lambda y: torch.tensor(2**40 + y),
        lambda y: torch.tensor(y, dtype=torch.float64),
    ],
)
def test_labels_of_any_kind(rename):
    X, y = make_data(0, 50, 7)
    assert_array_equal(recall_at_k(X, rename(y), KS), recall_by_hand(X, y))


def test_boolean_labels():
    X, y = make_data(0, 50, 2)
    assert_array_equal(recall_at_k(X, y == 1, KS), recall_by_hand(X, y))
    assert_array_equal(recall_at_k(X, torch.tensor(y == 1), KS), recall_by_hand(X, y))


def test_labels_of_queries_and_gallery_meet_by_value():
    X, y = make_data(0, 50, 7)
    expected = recall_by_hand(X[:20], y[:20], X[20:], y[20:])
    large = np.int64(2**60) + y
    for gallery_y in (large[20:].astype(np.uint64), torch.tensor(large[20:]), large[20:].astype(object)):
        assert_array_equal(recall_at_k(X[:20], large[:20], KS, gallery=X[20:], gallery_y=gallery_y), expected)


def test_order_of_rows_does_not_matter():
    X, y = make_data(0, 60, 8)
    order = np.random.default_rng(1).permutation(60)
    assert_array_equal(recall_at_k(X[order], y[order], KS), recall_at_k(X, y, KS))
    assert map_at_r(X[order], y[order]) == pytest.approx(map_at_r(X, y), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_tensors(device, dtype, metric):
    X, y = make_data(0, 60, 8)
    X = torch.tensor(X, device=device, dtype=dtype, requires_grad=True)
    kept, exact = X.detach().clone(), X.detach().double().cpu().numpy()
    for labels in (y, torch.tensor(y), torch.tensor(y, device=device)):
        recall = recall_at_k(X, labels, KS, metric=metric)
        assert_array_equal(recall, recall_by_hand(exact, y, metric=metric))
        assert map_at_r(X, labels, metric=metric) == pytest.approx(map_by_hand(exact, y, metric=metric), abs=1e-6)
    assert X.grad is None
    assert torch.equal(X.detach(), kept)
    with pytest.warns(UserWarning, match="identical row"):
        assert_array_equal(recall_at_k(X, y, KS, gallery=exact, gallery_y=y), np.ones(4))


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_does_not_lower_the_precision(device, metric):
    X, y = make_data(0, 200, 8)
    X = torch.tensor(X, device=device, dtype=torch.float32)
    expected = recall_at_k(X, y, KS, metric=metric), map_at_r(X, y, metric=metric)
    rows, _ = _rows.prepare(X, y, metric=metric)
    labels = _k_means.k_means(rows.points, 8, np.random.RandomState(0))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_array_equal(_k_means.k_means(rows.points, 8, np.random.RandomState(0)).cpu(), labels.cpu())
        assert_array_equal(recall_at_k(X, y, KS, metric=metric), expected[0])
        assert map_at_r(X, y, metric=metric) == expected[1]


def test_data_frames_lists_and_views():
    X, y = make_data(0, 40, 5)
    expected = recall_by_hand(X, y)
    read_only = X.copy()
    read_only.setflags(write=False)
    for same in (pd.DataFrame(X), X.tolist(), read_only, np.asfortranarray(X), X[::-1][::-1], X.astype(object)):
        assert_array_equal(recall_at_k(same, y, KS), expected)
    assert_array_equal(recall_at_k(pd.DataFrame(X, dtype="Float64"), pd.Series(y, dtype="Int64"), KS), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_touches_nothing(metric):
    X, y = make_data(0, 40, 5)
    y.setflags(write=False)
    kept = X.copy()
    state = np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()  # noqa: NPY002
    retrieval_report(X, y, metric=metric)
    intra_inter_ratio(X, y, metric=metric)
    spectral_decay(X, metric=metric)
    uniformity(X)
    assert_array_equal(X, kept)
    assert_array_equal(np.random.get_state()[1], state[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == state[2:]


def test_returns_a_float_or_an_array():
    X, y = make_data(0, 40, 5)
    assert type(recall_at_k(X, y)) is type(recall_at_k(X, y, np.int64(2))) is type(map_at_r(X, y)) is float
    for ks in ([1, 4], (1, 4), np.array([1, 4])):
        recall = recall_at_k(X, y, ks)
        assert isinstance(recall, np.ndarray)
        assert recall.tolist() == [recall_at_k(X, y, 1), recall_at_k(X, y, 4)]
    assert recall_at_k(X, y, [4, 1, 4]).tolist() == recall[[1, 0, 1]].tolist()
    assert recall_at_k(X, y, [3]).shape == (1,)


# Queries without a match -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [recall_at_k, map_at_r])
def test_queries_without_a_match_are_left_out(measure):
    X, y = make_data(0, 40, 4)
    alone = np.concatenate([y, [10, 11, 12]])
    X = np.concatenate([X, np.random.default_rng(1).normal(size=(3, 5))])
    by_hand = map_by_hand(X, alone) if measure is map_at_r else recall_by_hand(X, alone, ks=[1])[0]
    with pytest.warns(UserWarning, match="3 of 43 queries are left out") as record:
        assert measure(X, alone) == pytest.approx(by_hand, rel=1e-12)
    assert len(record) == 1
    assert record[0].filename == __file__


@pytest.mark.parametrize("measure", RETRIEVAL)
def test_nan_if_no_query_has_a_match(measure):
    with pytest.warns(UserWarning, match="1 of 1 queries are left out"):
        assert np.isnan(measure([[1.0]], [0]))
    with pytest.warns(UserWarning, match="2 of 2 queries are left out"):
        assert np.isnan(measure([[1.0], [2.0]], ["a", "b"], gallery=[[1.0]], gallery_y=["c"]))
    with pytest.warns(UserWarning, match="2 of 2 queries are left out"):
        assert np.isnan(recall_at_k([[1.0], [2.0]], [0, 1], [1, 5])).all()


# Errors ------------------------------------------------------------------------------------------------------------

X, Y = [[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]], [0, 0, 1]
GALLERY = {"gallery": X, "gallery_y": Y}


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k must be at least 1, got 0"),
        (-3, ValueError, "at least 1, got -3"),
        ([1, 0], ValueError, "at least 1, got 0"),
        ([], ValueError, "at least one integer, got an empty sequence"),
        (1.0, TypeError, "k must be an integer or a sequence of integers, got 1.0"),
        ([1, 2.5], TypeError, "got 2.5"),
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
        ("1", TypeError, "got '1'"),
    ],
)
def test_k_is_checked(k, error, message):
    with pytest.raises(error, match=message):
        recall_at_k(X, Y, k)


@pytest.mark.parametrize("measure", [*RETRIEVAL, retrieval_report])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": []}, ValueError, r"embeddings must be a dense 2-D array.*got shape \(0,\)"),
        ({"embeddings": np.empty((0, 2)), "y": []}, ValueError, r"got shape \(0, 2\): there is nothing"),
        ({"embeddings": np.empty((3, 0))}, ValueError, r"got shape \(3, 0\): there is nothing"),
        ({"embeddings": [1.0, 2.0, 3.0]}, ValueError, r"got shape \(3,\). Reshape"),
        ({"embeddings": np.ones((3, 2, 1))}, ValueError, r"got shape \(3, 2, 1\)"),
        ({"embeddings": torch.ones(3, 2, 1)}, ValueError, r"got shape \(3, 2, 1\)"),
        ({"embeddings": [[1.0, np.nan], [2.0, 1.0], [0.0, 1.0]]}, ValueError, "got NaN or infinity"),
        ({"embeddings": [[1.0, np.inf], [2.0, 1.0], [0.0, 1.0]]}, ValueError, "got NaN or infinity"),
        ({"embeddings": torch.full((3, 2), torch.nan)}, ValueError, "got NaN or infinity"),
        ({"embeddings": np.ones((3, 2), dtype=complex)}, ValueError, "got complex128"),
        ({"embeddings": torch.ones(3, 2, dtype=torch.complex64)}, ValueError, "got complex"),
        ({"embeddings": [["a", "b"]] * 3}, ValueError, "got str"),
        ({"embeddings": np.array([["a", None]] * 3, dtype=object)}, ValueError, "got ndarray of object"),
        ({"embeddings": sparse.csr_array(np.eye(3))}, ValueError, "dense 2-D array.*got csr_array"),
        ({"y": [0, 0]}, ValueError, "y must hold one label per row, got 2 labels for 3 rows"),
        ({"y": [[0, 1], [0, 2], [1, 0]]}, ValueError, r"y must be 1-D.*got shape \(3, 2\)"),
        ({"y": None}, ValueError, r"y must be 1-D.*got a value of type NoneType"),
        ({"y": [0.0, np.nan, 1.0]}, ValueError, "missing values"),
        ({"y": torch.tensor([0.0, torch.nan, 1.0])}, ValueError, "missing values"),
        ({"y": np.array(["a", np.nan, "b"], dtype=object)}, ValueError, "missing values"),
        ({"y": np.array(["a", None, 1], dtype=object)}, ValueError, "missing values: 1 of 3"),
        ({"y": np.array(["a", "b", 1], dtype=object)}, TypeError, "one sortable type, got a mixture"),
        ({"gallery": X}, ValueError, "got only gallery. Pass gallery_y too"),
        ({"gallery_y": Y}, ValueError, "got only gallery_y. Pass gallery too"),
        ({"gallery": [[1.0, 2.0, 3.0]], "gallery_y": [0]}, ValueError, "same number of columns, got 2 and 3"),
        ({"gallery": X, "gallery_y": [0]}, ValueError, "gallery_y must hold one label per row, got 1 labels"),
        ({"gallery": [[np.nan, 1.0]], "gallery_y": [0]}, ValueError, "gallery must be .* got NaN"),
        ({"gallery": [1.0, 2.0], "gallery_y": [0, 1]}, ValueError, r"gallery must be .* got shape \(2,\)"),
        ({"gallery": X, "gallery_y": ["a", "a", "b"]}, TypeError, "one sortable type, got a mixture"),
        ({"gallery_index": [0, 1, 2]}, ValueError, "gallery_index needs a gallery, got none"),
        ({"groups": [0, 0, 1], "gallery_groups": [0, 0, 1]}, ValueError, "gallery_groups needs a gallery, got none"),
        ({**GALLERY, "gallery_groups": [0, 0, 1]}, ValueError, "got no groups. Pass groups too"),
        ({**GALLERY, "groups": [0, 0, 1]}, ValueError, "got no gallery_groups. Pass gallery_groups too"),
        ({"groups": [0, 1]}, ValueError, r"groups must hold one group per row, shape \(3,\), got shape \(2,\)"),
        ({"groups": [[0, 0], [1, 1], [1, 1]]}, ValueError, r"groups must be 1-D .* got shape \(3, 2\)"),
        ({"groups": ["a", None, "b"]}, ValueError, "groups contains NaN .*: 1 of 3"),
        ({"groups": [0.0, np.nan, 1.0]}, ValueError, "groups contains NaN .*: 1 of 3"),
        (
            {"groups": pd.Series([0, None, 1], dtype="Int64")},
            ValueError,
            "groups contains NaN .*: 1 of 3",
        ),
        (
            {**GALLERY, "groups": [0, 1, 1], "gallery_groups": ["0", "1", "1"]},
            TypeError,
            "got a mixture: numbers and strings",
        ),
        ({**GALLERY, "gallery_index": [0, 1]}, ValueError, r"shape \(3,\), got int64 of shape \(2,\)"),
        ({**GALLERY, "gallery_index": [0.0, 1.0, 2.0]}, ValueError, "got float64"),
        ({**GALLERY, "gallery_index": [True, True, False]}, ValueError, "got bool"),
        ({**GALLERY, "gallery_index": [0, 1, 3]}, ValueError, "in 0..2, or -1 for none, got 3"),
        ({**GALLERY, "gallery_index": [0, 1, -2]}, ValueError, "got -2"),
        ({"metric": "manhattan"}, ValueError, "'cosine' or 'euclidean', got 'manhattan'"),
        (
            {"embeddings": np.float32([[1e30, 0], [0, 0], [0, 0]]), "metric": "euclidean"},
            ValueError,
            "overflow float32. Scale",
        ),
    ],
)
def test_input_is_checked(measure, arguments, error, message):
    with pytest.raises(error, match=message):
        measure(**{"embeddings": X, "y": Y} | arguments)


# Scorers -----------------------------------------------------------------------------------------------------------

SCORERS = [
    RecallAtK(),
    RecallAtK(4),
    PrecisionAt1(),
    RPrecision(),
    MAPAtR(),
    MeanAveragePrecision(),
    MeanReciprocalRank(),
    NMI(),
    NMI(random_state=1),
    AMI(),
    PairwiseF1(),
    RetrievalScorer(("recall_at_1", "map_at_r")),
]


class CountingPCA(PCA):
    """PCA that counts its transforms."""

    n_transforms = 0

    def transform(self, X):
        self.n_transforms += 1
        return super().transform(X)


def test_scorers_score_the_embedding(blobs):
    pca = CountingPCA(2).fit(blobs[0])
    Z = PCA(2).fit(blobs[0]).transform(blobs[0])
    assert RecallAtK(3)(pca, *blobs) == recall_at_k(Z, blobs[1], 3)
    assert MAPAtR()(pca, *blobs) == map_at_r(Z, blobs[1])
    assert pca.n_transforms == 2
    scores = RetrievalScorer(("map_at_r", "recall_at_10", "recall_at_1"))(pca, *blobs)
    assert pca.n_transforms == 3
    assert list(scores) == ["map_at_r", "recall_at_10", "recall_at_1"]
    assert all(type(score) is float for score in scores.values())
    assert scores["map_at_r"] == map_at_r(Z, blobs[1])
    assert [scores["recall_at_1"], scores["recall_at_10"]] == recall_at_k(Z, blobs[1], [1, 10]).tolist()
    assert RetrievalScorer(["map_at_r"])(pca, *blobs) == {"map_at_r": map_at_r(Z, blobs[1])}
    names = ["precision_at_1", "r_precision", "map_at_r", "map", "mrr", "nmi", "ami", "pairwise_f1"]
    report = retrieval_report(Z, blobs[1])
    scores = RetrievalScorer(names)(pca, *blobs)
    assert scores == {name: report[name] for name in names}
    single = PrecisionAt1(), RPrecision(), MAPAtR(), MeanAveragePrecision(), MeanReciprocalRank()
    single += NMI(), AMI(), PairwiseF1()
    assert [scorer(pca, *blobs) for scorer in single] == list(scores.values())


def test_retrieval_scorer_warns_once(blobs):
    X, y = blobs
    y = np.where(np.arange(60) < 2, 10 + np.arange(60), y)
    with pytest.warns(UserWarning, match="2 of 60 queries are left out") as record:
        RetrievalScorer(("recall_at_1", "recall_at_2", "map_at_r"))(PCA(2).fit(X), X, y)
    assert len(record) == 1


@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_scorers_pickle_compare_and_print(scorer):
    assert pickle.loads(pickle.dumps(scorer)) == scorer
    assert eval(repr(scorer)) == scorer
    assert [other == scorer for other in SCORERS].count(True) == 1
    assert hash(scorer) == hash(eval(repr(scorer)))


def test_repr_of_scorers():
    assert repr(RecallAtK(2)) == "RecallAtK(k=2)"
    assert repr(MAPAtR()) == "MAPAtR()"
    assert repr(RetrievalScorer(["map_at_r"])) == "RetrievalScorer(metrics=('map_at_r',), random_state=0)"


@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_scorers_take_pipelines_and_data_frames(scorer, blobs):
    X, y = blobs
    frame = pd.DataFrame(X, columns=list("abcdef"))
    pipeline = make_pipeline(PCA(4), PCA(2)).fit(X)
    expected = scorer(pipeline, X, y)
    assert (
        scorer(make_pipeline(PCA(4), PCA(2)).set_output(transform="pandas").fit(frame), frame, pd.Series(y)) == expected
    )
    if not isinstance(expected, dict):
        assert 0.5 < expected <= 1


@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_scorers_need_transform(scorer, blobs):
    pipeline = make_pipeline(PCA(2), LogisticRegression()).fit(*blobs)
    with pytest.raises(TypeError, match=r"needs an estimator with transform, got Pipeline.*pipeline\[:-1\]"):
        scorer(pipeline, *blobs)
    scorer(pipeline[:-1], *blobs)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RecallAtK(0), ValueError, "at least 1, got 0"),
        (lambda: RecallAtK(1.5), TypeError, "integer.* got 1.5"),
        (lambda: RecallAtK([1, 2]), TypeError, "one integer.*RetrievalScorer"),
        (
            lambda: RetrievalScorer(("nmi", "f1")),
            ValueError,
            r"'recall_at_<k>'.*'map_at_r', 'map', 'mrr', 'nmi', .*got \['f1'\]",
        ),
        (lambda: RetrievalScorer(("recall_at_0",)), ValueError, "recall_at_0"),
        (lambda: RetrievalScorer((1,)), ValueError, r"got \[1\]"),
        (lambda: RetrievalScorer(()), ValueError, r"got \(\)"),
        (lambda: RetrievalScorer("map_at_r"), TypeError, r"Pass \('map_at_r',\)"),
    ],
)
def test_scorers_are_checked_when_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


class TwoColumns(TransformerMixin, BaseEstimator):
    """Keep the given column of X and the last one."""

    def __init__(self, column=0):
        self.column = column

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X[:, [self.column, -1]]


def test_grid_search_finds_the_informative_column():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 6
    X = np.column_stack([rng.normal(size=60), y + 0.05 * rng.normal(size=60), rng.normal(size=60), np.ones(60)])
    grid = {"column": [0, 1, 2]}
    assert GridSearchCV(TwoColumns(), grid, scoring=RecallAtK(1), cv=3).fit(X, y).best_params_ == {"column": 1}
    scorer = RetrievalScorer(("recall_at_1", "recall_at_10", "map_at_r"))
    search = GridSearchCV(TwoColumns(), grid, scoring=scorer, refit="recall_at_1", cv=3).fit(X, y)
    assert search.best_params_ == {"column": 1}
    assert search.cv_results_["mean_test_recall_at_10"][1] == 1
    assert search.cv_results_["rank_test_map_at_r"][1] == 1


def test_cross_validation_in_two_processes(blobs):
    scoring = {"r1": RecallAtK(1), "r4": RecallAtK(4)}
    scores = cross_validate(PCA(2), *blobs, scoring=scoring, cv=3, n_jobs=2)
    assert_array_equal(scores["test_r1"], cross_val_score(PCA(2), *blobs, scoring=RecallAtK(1), cv=3))
    assert (scores["test_r4"] >= scores["test_r1"]).all()
    search = GridSearchCV(PCA(), {"n_components": [1, 2]}, scoring=RecallAtK(1), cv=3, n_jobs=2).fit(*blobs)
    assert search.score(*blobs) == RecallAtK(1)(search.best_estimator_, *blobs)


GALLERY_SCORERS = [RecallAtK, PrecisionAt1, RPrecision, MAPAtR, MeanAveragePrecision, MeanReciprocalRank]


@pytest.mark.parametrize(("scorer", "measure"), [*zip(GALLERY_SCORERS, RETRIEVAL, strict=True)])
def test_scorers_with_a_gallery(scorer, measure, blobs):
    X, y = blobs
    pca = CountingPCA(2).fit(X)
    Z = pca.transform(X)
    held = scorer(gallery=pd.DataFrame(X[20:]), gallery_y=y[20:].tolist())
    search = {"gallery": Z[20:], "gallery_y": y[20:]}
    assert quiet(held, pca, X[:20], y[:20]) == quiet(measure, Z[:20], y[:20], **search)
    assert pca.n_transforms == 3
    groups, gallery_groups = {"groups": np.arange(20) % 3}, {"gallery_groups": np.arange(40) % 3}
    in_groups = scorer(gallery=X[20:], gallery_y=y[20:], **gallery_groups)
    expected = quiet(measure, Z[:20], y[:20], **search, **groups, **gallery_groups)
    assert quiet(in_groups, pca, X[:20], y[:20], **groups) == expected
    with pytest.raises(ValueError, match="got no groups"):
        in_groups(pca, X[:20], y[:20])
    assert scorer()(pca, X, y, groups=np.arange(60) % 3) == measure(Z, y, groups=np.arange(60) % 3)
    with pytest.warns(UserWarning, match="identical row"):
        held(pca, X[20:40], y[20:40])
    own = {"gallery_index": np.arange(20)}
    assert held(pca, X[20:40], y[20:40], **own) == measure(Z[20:40], y[20:40], **search, **own)
    name = {RecallAtK: "recall_at_1", MeanAveragePrecision: "map", MeanReciprocalRank: "mrr"}.get(scorer)
    name = name or measure.__name__
    several = RetrievalScorer((name, "nmi"), gallery=X[20:], gallery_y=y[20:])(pca, X[20:40], y[20:40], **own)
    assert several[name] == held(pca, X[20:40], y[20:40], **own)
    assert several["nmi"] == nmi_score(Z[20:40], y[20:40])


def test_scorers_with_a_gallery_are_values(blobs):
    X, y = blobs
    scorer = RecallAtK(2, gallery=X, gallery_y=y)
    assert repr(scorer) == "RecallAtK(k=2, gallery=<ndarray>, gallery_y=<ndarray>)"
    assert scorer == RecallAtK(2, gallery=X, gallery_y=y) != RecallAtK(2, gallery=X.copy(), gallery_y=y)
    assert scorer != RecallAtK(2)
    assert hash(scorer) == hash(RecallAtK(2, gallery=X, gallery_y=y))
    copied = pickle.loads(pickle.dumps(scorer))
    assert_array_equal(copied.gallery, X)
    for scorer in (*GALLERY_SCORERS, RetrievalScorer):
        with pytest.raises(ValueError, match="Pass gallery_y too"):
            scorer(gallery=X)
        with pytest.raises(ValueError, match="gallery_groups needs a gallery"):
            scorer(gallery_groups=y)


def test_groups_reach_scorers_in_searches(blobs):
    X, y = blobs
    groups, rows = np.arange(60) % 3, np.arange(60)
    scorer = RecallAtK(1, gallery=X, gallery_y=y, gallery_groups=groups)
    with pytest.raises(RuntimeError, match="enable_metadata_routing=True"):
        scorer.set_score_request(groups=True)
    cv = KFold(3, shuffle=True, random_state=0)
    with config_context(enable_metadata_routing=True):
        with pytest.raises(UnsetMetadataPassedError, match="RecallAtK"):
            cross_validate(PCA(2), X, y, params={"groups": groups}, scoring=scorer, cv=cv)
        requests = {"groups": True, "gallery_index": "rows"}
        assert scorer.set_score_request(**requests) is scorer
        copied = pickle.loads(pickle.dumps(scorer))
        given = {"groups": groups, "rows": rows}
        scores = cross_validate(PCA(2), X, y, params=given, scoring=copied, cv=cv)["test_score"]
        one = RetrievalScorer(("map",)).set_score_request(groups=True)
        found = GridSearchCV(PCA(), {"n_components": [2]}, scoring=one, refit=False, cv=cv).fit(X, y, groups=groups)
        several = {"map": MeanAveragePrecision().set_score_request(groups=True), "recall": RecallAtK()}
        several["recall"].set_score_request(groups=False)
        both = cross_validate(PCA(2), X, y, params={"groups": groups}, scoring=several, cv=cv)
    for i, (train, test) in enumerate(cv.split(X)):
        pca = PCA(2).fit(X[train])
        assert scores[i] == scorer(pca, X[test], y[test], groups=groups[test], gallery_index=rows[test])
        by_group = MeanAveragePrecision()(pca, X[test], y[test], groups=groups[test])
        assert found.cv_results_[f"split{i}_test_map"] == both["test_map"][i] == by_group
        assert both["test_recall"][i] == RecallAtK()(pca, X[test], y[test])
