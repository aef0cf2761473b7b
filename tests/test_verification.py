"""Thresholds for pairs: against all pairs in a list, and the estimator around them."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_param_validation, parametrize_with_checks

from skdml import PairVerifier, RAWEmbedder, calibrate_threshold
from skdml.metrics import _rows

IDENTITY = FunctionTransformer()


def make_data(seed=0, n=60, n_classes=8, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=n - n_classes)])
    return rng.normal(size=(n, 6)) + spread * rng.normal(size=(n_classes, 6))[y], y


def all_pairs(Z, y):
    """List the cosine of every pair, and whether it is of one class: the definition."""
    Z = np.asarray(Z, dtype=np.float64)
    Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    i, j = np.triu_indices(len(Z), 1)
    return (Z[i] * Z[j]).sum(1), np.asarray(y)[i] == np.asarray(y)[j]


def rates(similarity, same, threshold):
    """Return the false accept rate and the false reject rate."""
    return (similarity[~same] >= threshold).mean(), (similarity[same] < threshold).mean()


def gaps(similarity):
    """Return a threshold between each two neighboring similarities, and one beyond either end."""
    s = np.unique(similarity)
    return np.concatenate([[-1.1], (s[1:] + s[:-1]) / 2, [1.1]])


@pytest.fixture(params=[3, 16, 1024])
def tile(request, monkeypatch):
    monkeypatch.setattr(_rows, "CPU_TILE", request.param)


# The threshold -----------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    n_classes=st.sampled_from([2, 5, 20]),
    spread=st.sampled_from([0.0, 0.5, 1.0, 5.0]),
    far=st.sampled_from([0.0, 1e-3, 0.02, 0.3]),
    tile_size=st.sampled_from([16, 1024]),
)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_threshold_is_the_best_of_all(seed, n_classes, spread, far, tile_size):
    Z, y = make_data(seed, 25, n_classes, spread)
    similarity, same = all_pairs(Z, y)
    candidates = np.array([rates(similarity, same, t) for t in gaps(similarity)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "CPU_TILE", tile_size)
        thresholds = {
            s: calibrate_threshold(IDENTITY, Z, y, strategy=s, far=far) for s in ("eer", "max_accuracy", "far")
        }
    found = {strategy: rates(similarity, same, t) for strategy, t in thresholds.items()}

    assert abs(np.subtract(*found["eer"])) == pytest.approx(np.abs(np.subtract(*candidates.T)).min(), abs=1e-12)
    weights = (~same).sum(), same.sum()
    assert np.dot(found["max_accuracy"], weights) == pytest.approx((candidates @ weights).min(), abs=1e-6)
    assert found["far"][0] <= far
    assert found["far"][1] == candidates[candidates[:, 0] <= far, 1].min()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_rows_are_not_split_by_their_rounding(dtype):
    """Their cosine is 1, and half of a bin from any threshold."""
    Z = np.random.default_rng(69).normal(size=(12, 8)).astype(dtype)
    Z, y = np.concatenate([Z, Z]), np.concatenate([np.arange(12), np.arange(4), np.arange(12, 20)])
    i, j = np.triu_indices(len(Z), 1)
    accepted = PairVerifier(IDENTITY, strategy="far", far=0.01).fit(Z, y).predict((Z[i], Z[j]))
    assert accepted[y[i] != y[j]].mean() <= 0.01


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codes_are_not_split_by_their_rounding(dtype):
    rng = np.random.default_rng(1)
    y, classes = np.repeat(np.arange(20), 6), rng.choice([-1, 1], size=(20, 10))
    codes = np.where(rng.random((120, 10)) < 0.3, -classes[y], classes[y]).astype(dtype)
    similarity, same = all_pairs(codes, y)
    similarity = similarity.round(6)
    threshold = calibrate_threshold(IDENTITY, codes, y, strategy="max_accuracy")
    best = min(np.sum((similarity >= t) != same) for t in gaps(similarity))
    assert np.sum((similarity >= threshold) != same) == best


def test_tiles_of_any_size(tile):
    Z, y = make_data(1, 50)
    assert calibrate_threshold(IDENTITY, Z, y) == pytest.approx(0.328, abs=0.5)
    similarity, same = all_pairs(Z, y)
    verifier = PairVerifier(IDENTITY).fit(Z, y)
    assert verifier.roc_auc(Z, y) == pytest.approx(roc_auc_score(same, similarity), abs=1e-5)


def test_threshold_lies_between_the_pairs():
    """Cosines 0.8 in the class; 0 and 0.6 between classes: every strategy separates them, at the same distance."""
    Z, y = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], ["a", "a", "b"]
    for strategy in ("eer", "max_accuracy", "far"):
        assert calibrate_threshold(IDENTITY, Z, y, strategy=strategy) == pytest.approx(0.7, abs=2e-6)


def test_nothing_is_accepted_if_a_negative_is_nearest():
    """Equal rows of two classes: no threshold up to 1 keeps them apart."""
    Z, y = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 1, 0]
    threshold = calibrate_threshold(IDENTITY, Z, y, strategy="far", far=0)
    assert threshold > 1
    assert not PairVerifier(IDENTITY, strategy="far", far=0).fit(Z, y).predict((Z, Z)).any()


def test_thresholds_rise_as_the_rate_falls():
    Z, y = make_data()
    thresholds = [calibrate_threshold(IDENTITY, Z, y, strategy="far", far=far) for far in (0.5, 0.1, 0.01, 0)]
    assert thresholds == sorted(thresholds)
    assert len(set(thresholds)) == 4


def test_lengths_do_not_matter():
    Z, y = make_data()
    scaled = Z * np.random.default_rng(0).uniform(0.1, 10, size=(len(Z), 1))
    assert calibrate_threshold(IDENTITY, scaled, y) == pytest.approx(calibrate_threshold(IDENTITY, Z, y), abs=4e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strategy": "best"}, ValueError, "'strategy' parameter of PairVerifier must be a str among.*Got 'best'"),
        ({"far": 1.0}, ValueError, r"'far' parameter .* range \[0.0, 1.0\).*Got 1.0"),
        ({"far": -0.1}, ValueError, "Got -0.1"),
        ({"y": [0, 0, 0]}, ValueError, "pairs from one class and pairs from two, got 3 and 0. Pass two or more"),
        ({"y": [0, 1, 2]}, ValueError, "pairs from one class and pairs from two, got 0 and 3"),
        ({"y": [0, 1]}, ValueError, "got 2 labels for 3 rows"),
        ({"y": [0, 1, np.nan]}, ValueError, "missing values"),
        ({"X": [[1.0, np.nan]] * 3}, ValueError, "got NaN or infinity"),
        ({"embedder": LogisticRegression()}, TypeError, "must be a transformer.*got LogisticRegression"),
    ],
)
def test_input_is_checked(arguments, error, message):
    arguments = {"embedder": IDENTITY, "X": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], "y": [0, 0, 1]} | arguments
    with pytest.raises(error, match=message):
        calibrate_threshold(**arguments)
    parameters = {name: arguments.pop(name) for name in ("strategy", "far") if name in arguments}
    X, y, embedder = arguments["X"], arguments["y"], arguments["embedder"]
    if error is ValueError:
        with pytest.raises(error, match=message):
            PairVerifier(embedder, **parameters).fit(X, y)


# The estimator -----------------------------------------------------------------------------------------------------


def test_predict_is_the_sign_of_the_similarity_less_the_threshold():
    Z, y = make_data()
    verifier = PairVerifier(IDENTITY).fit(Z, y)
    i, j = np.triu_indices(len(Z), 1)
    similarity, same = all_pairs(Z, y)
    decision = verifier.decision_function((Z[i], Z[j]))
    assert_allclose(decision, similarity - verifier.threshold_, atol=1e-12)
    assert_array_equal(verifier.predict((Z[i], Z[j])), decision >= 0)
    assert verifier.predict((Z[i], Z[j])).dtype == bool
    assert (verifier.predict((Z[i], Z[j])) == same).mean() > 0.7
    assert_array_equal(verifier.decision_function((Z[j], Z[i])), decision)


def test_pairs_in_one_array_or_two():
    Z, y = make_data()
    pca = PCA(3).fit(Z)
    verifier = PairVerifier(pca).fit(Z, y)
    expected = verifier.decision_function((Z[:30], Z[30:]))
    for pairs in (
        np.stack([Z[:30], Z[30:]], axis=1),
        np.stack([Z[:30], Z[30:]], axis=1).tolist(),
        list(zip(Z[:30], Z[30:], strict=True)),
        (Z[:30].tolist(), Z[30:].tolist()),
    ):
        assert_allclose(verifier.decision_function(pairs), expected, atol=1e-12)


def test_pairs_of_frames_sparse_matrices_and_images():
    Z, y = make_data()
    frame = pd.DataFrame(Z, columns=list("abcdef"))
    verifier = PairVerifier(PCA(3).fit(frame)).fit(frame, pd.Series(y))
    assert_array_equal(verifier.feature_names_in_, list("abcdef"))
    assert verifier.n_features_in_ == 6
    assert verifier.predict((frame[:5], frame[5:10])).shape == (5,)
    X = sparse.csr_array(np.where(Z > 0, Z, 0))
    assert PairVerifier(TruncatedSVD(3).fit(X)).fit(X, y).predict((X[:5], X[5:10])).shape == (5,)
    images = np.random.default_rng(0).integers(0, 256, size=(60, 16, 16), dtype=np.uint8)
    embedder = RAWEmbedder(max_epochs=1, batch_size=32, n_components=4, random_state=0, device="cpu").fit(images, y)
    verifier = PairVerifier(embedder).fit(images, y)
    pairs = np.stack([images[:5], images[5:10]], axis=1)
    assert_allclose(
        verifier.decision_function(pairs), verifier.decision_function((images[:5], images[5:10])), atol=1e-6
    )


def test_a_fitted_embedder_is_used_as_it_is():
    Z, y = make_data()
    pca = PCA(3).fit(Z)
    components = pca.components_.copy()
    verifier = PairVerifier(pca).fit(Z + 1, y)
    assert verifier.embedder_ is pca
    assert_array_equal(pca.components_, components)


def test_an_embedder_that_is_not_fitted_stays_so():
    Z, y = make_data()
    pca = PCA(3)
    verifier = PairVerifier(pca).fit(Z, y)
    assert not hasattr(pca, "components_")
    assert verifier.threshold_ == PairVerifier(PCA(3).fit(Z)).fit(Z, y).threshold_


def test_a_frozen_embedder_survives_clones():
    Z, y = make_data(n=80)
    frozen = FrozenEstimator(make_pipeline(StandardScaler(), PCA(3)).fit(Z))
    search = GridSearchCV(
        PairVerifier(frozen, strategy="far"),
        {"far": [0.01, 0.1]},
        scoring=lambda verifier, X, y: verifier.roc_auc(X, y),
        cv=2,
    ).fit(Z, y)
    assert_array_equal(search.best_estimator_.embedder_.transform(Z), frozen.transform(Z))
    assert len(set(search.cv_results_["mean_test_score"])) == 1


def test_pickles_prints_and_must_be_fitted():
    Z, y = make_data()
    verifier = PairVerifier(PCA(3), strategy="far", far=0.01)
    assert repr(verifier) == "PairVerifier(embedder=PCA(n_components=3), far=0.01, strategy='far')"
    for method in (verifier.predict, verifier.decision_function):
        with pytest.raises(NotFittedError):
            method((Z, Z))
    with pytest.raises(NotFittedError):
        verifier.roc_auc(Z, y)
    same = pickle.loads(pickle.dumps(verifier.fit(Z, y)))
    assert_array_equal(same.decision_function((Z[:9], Z[9:18])), verifier.decision_function((Z[:9], Z[9:18])))
    assert not hasattr(clone(verifier), "threshold_")


# Pairs as they come --------------------------------------------------------------------------------------------------

SIDES = np.random.default_rng(3).normal(size=(2, 7, 6))

FORMS = {
    "tuple of sides": lambda a, b: (a, b),
    "tuple of lists": lambda a, b: (list(a), list(b)),
    "array": lambda a, b: np.stack([a, b], axis=1),
    "tensor": lambda a, b: torch.from_numpy(np.stack([a, b], axis=1)),
    "nested lists": lambda a, b: np.stack([a, b], axis=1).tolist(),
    "list of tuples": lambda a, b: list(zip(a, b, strict=True)),
    "list of lists": lambda a, b: [[x, z] for x, z in zip(a, b, strict=True)],
    "list of tuples of tensors": lambda a, b: list(zip(torch.from_numpy(a), torch.from_numpy(b), strict=True)),
    "list of tuples of sparse rows": lambda a, b: [
        (sparse.csr_array(x[None]), sparse.csr_array(z[None])) for x, z in zip(a, b, strict=True)
    ],
    "column of tuples": lambda a, b: pd.Series(list(zip(a, b, strict=True)), index=range(9, 9 + len(a))),
    "columns of vectors": lambda a, b: pd.DataFrame({"a": list(a), "b": list(b)}, index=range(9, 9 + len(a))),
}


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("form", FORMS)
def test_pairs_in_any_form_and_number(form, n):
    """Two pairs are read as three are."""
    verifier = PairVerifier(IDENTITY).fit(*make_data())
    firsts, seconds = SIDES[:, :n]
    if "sparse" in form:
        verifier.embedder_ = FunctionTransformer(lambda X: X.toarray(), accept_sparse=True)
    expected = all_pairs(SIDES.reshape(14, 6), np.zeros(14))[0]
    i, j = np.triu_indices(14, 1)
    expected = expected[(i < n) & (j == i + 7)] - verifier.threshold_
    assert_allclose(verifier.decision_function(FORMS[form](firsts, seconds)), expected, atol=1e-6)


@pytest.fixture(scope="module")
def of_files(tmp_path_factory):
    """A verifier over image files, and the paths of eight files."""
    folder = tmp_path_factory.mktemp("files")
    images = np.random.default_rng(0).integers(0, 256, size=(8, 8, 8, 3), dtype=np.uint8)
    paths = [str(folder / f"{i}.png") for i in range(8)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    y = np.repeat([0, 1], 4)
    embedder = RAWEmbedder(
        max_epochs=1, batch_size=8, resize=8, crop_size=8, n_components=4, augment=None, device="cpu"
    )
    return PairVerifier(embedder.fit(paths, y)).fit(paths, y), paths, images


@pytest.mark.parametrize("n", [1, 2, 3])
def test_pairs_of_paths(of_files, n):
    verifier, paths, images = of_files
    firsts, seconds = paths[:n], paths[3 : 3 + n]
    expected = verifier.decision_function((images[:n], images[3 : 3 + n]))
    rows = [list(row) for row in zip(firsts, seconds, strict=True)]
    for pairs in (
        (firsts, seconds),
        (tuple(firsts), seconds),
        (pd.Series(firsts), pd.Series(seconds)),
        rows,
        [tuple(map(Path, row)) for row in rows],
        np.array(rows),
        np.array(rows, dtype=object),
        pd.DataFrame(rows, columns=["a", "b"], index=range(5, 5 + n)),
        polars.DataFrame(rows, schema=["a", "b"], orient="row"),
        np.stack([images[:n], images[3 : 3 + n]], axis=1),
    ):
        assert_allclose(verifier.decision_function(pairs), expected, atol=1e-6)
        same = np.arange(n) % 2 == 0
        assert verifier.score(pairs, same) == np.mean((expected >= 0) == same)


A, B = SIDES
BAD_PAIRS = [
    (np.ones((4, 6)), r"pairs, as an array of shape \(n_pairs, 2, ...\) or as a tuple .*; got shape \(4, 6\)"),
    (np.ones((4, 3, 6)), r"got shape \(4, 3, 6\)"),
    (np.ones((4, 2)), r"got samples of single values, such as .*1\.0"),
    (pd.DataFrame(np.ones((4, 2))), r"got samples of single values, such as .*1\.0"),
    (pd.DataFrame({"a": ["x"], "b": ["y"], "same": [True]}), r"got shape \(1, 3\)"),
    (np.stack([A, B]), r"got shape \(2, 7, 6\)"),
    ((A[:4], B[:3]), "Each pair must have two samples; got 4 first and 3 second samples"),
    ((np.full((1, 6), np.nan), np.ones((1, 6))), "NaN"),
    ([A, B], r"or as a tuple \(firsts, seconds\).* whose element 0 is not a pair, but a ndarray of shape \(7, 6\)"),
    ([(A[0], B[0]), (A[1],)], "whose element 1 is not a pair, but a tuple"),
    (["ab", "cd"], "element 0 is not a pair, but a str"),
    ([(A[0], B[0]), (A[1], B[1, :4])], r"got samples of shape \(4,\) and shape \(6,\)"),
    (((A[0], B[0]), (A[1], B[1])), r"Write list\(X\) for two pairs, or tuple\(map\(list, X\)\) for the first"),
    ((("a", "b"), ("c", "d")), "could be two pairs, or the first and the second samples"),
    ([A[:2], B[:2]], r"Write list\(map\(tuple, X\)\) for two pairs, or tuple\(X\) for the first"),
    ([torch.ones(2, 6), torch.ones(2, 6)], "a list of two Tensors of two rows"),
    ((A[0], B[0]), r"Write one pair as \[\(first, second\)\]"),
    (("a.png", "b.png"), r"Write one pair as \[\(first, second\)\]"),
    ([("a.png", None)], "got samples of single values, such as None"),
    ([], "got no pairs"),
    (np.ones((0, 2, 6)), "got no pairs"),
    (sparse.csr_array(A), "got a csr_array"),
    ([sparse.csr_array(A), sparse.csr_array(B)], "element 0 is not a pair"),
    ({"a": A, "b": B}, "got a dict"),
    (zip(A, B, strict=True), "got a zip"),
    ("a.png", "got a str"),
    (None, "got a NoneType"),
]


@pytest.mark.parametrize(("pairs", "message"), BAD_PAIRS, ids=[message for _, message in BAD_PAIRS])
def test_pairs_are_checked(pairs, message):
    verifier = PairVerifier(PCA(3)).fit(*make_data())
    with pytest.raises(ValueError, match=message):
        verifier.predict(pairs)


# Pairs that are given -------------------------------------------------------------------------------------------------


def given_pairs(seed=0, n=80):
    """Pairs (n, 2, 6), and whether they are of one class: what fit_pairs takes."""
    Z, y = make_data(seed)
    rows = np.random.default_rng(seed).integers(len(Z), size=(n, 2))
    rows = rows[rows[:, 0] != rows[:, 1]]
    return Z[rows], y[rows[:, 0]] == y[rows[:, 1]]


def cosines(pairs):
    pairs = pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)
    return (pairs[:, 0] * pairs[:, 1]).sum(1)


@pytest.mark.parametrize("weighted", [False, True])
def test_given_pairs_by_definition(weighted):
    pairs, same = given_pairs()
    w = np.random.default_rng(1).random(len(same)) if weighted else np.ones(len(same))
    similarity = cosines(pairs)
    thresholds = gaps(similarity)
    fa = np.array([w[~same & (similarity >= t)].sum() / w[~same].sum() for t in thresholds])
    fr = np.array([w[same & (similarity < t)].sum() / w[same].sum() for t in thresholds])
    errors = fa * w[~same].sum() + fr * w[same].sum()
    weights = w if weighted else None
    for strategy, value, best in (
        ("eer", np.abs(fa - fr), np.abs(fa - fr).min()),
        ("max_accuracy", errors, errors.min()),
        ("far", np.where(fa <= 0.1, fr, np.inf), fr[fa <= 0.1].min()),
    ):
        verifier = PairVerifier(IDENTITY, strategy=strategy, far=0.1).fit_pairs(pairs, same, weights)
        (k,) = np.flatnonzero([((similarity >= t) == verifier.predict(pairs)).all() for t in thresholds])
        assert value[k] == pytest.approx(best, abs=1e-6)
        assert verifier.score(pairs, same, weights) == pytest.approx(1 - errors[k] / w.sum(), abs=1e-6)
        assert verifier.true_accept_rate(pairs, same, sample_weight=weights) == pytest.approx(
            1 - fr[fa <= 0.1].min(), abs=1e-6
        )
    assert verifier.roc_auc(pairs, same, weights) == pytest.approx(
        roc_auc_score(same, similarity, sample_weight=weights), abs=1e-5
    )
    assert verifier.true_accept_rate(pairs, same, far=0.0, sample_weight=weights) == pytest.approx(
        w[same & (similarity > similarity[~same].max())].sum() / w[same].sum()
    )


def test_given_pairs_that_are_all_pairs_of_samples():
    Z, y = make_data()
    i, j = np.triu_indices(len(Z), 1)
    of_samples, of_pairs = (
        PairVerifier(IDENTITY).fit(Z, y),
        PairVerifier(IDENTITY).fit_pairs((Z[i], Z[j]), y[i] == y[j]),
    )
    assert of_samples.threshold_ == of_pairs.threshold_
    for measure in ("score", "roc_auc", "true_accept_rate"):
        value = getattr(of_samples, measure)(Z, y)
        assert value == pytest.approx(getattr(of_samples, measure)((Z[i], Z[j]), y[i] == y[j]), abs=1e-12)


@pytest.mark.parametrize("strategy", ["eer", "max_accuracy", "far"])
def test_sample_weights_weight_pairs_by_their_product(strategy, monkeypatch):
    monkeypatch.setattr(_rows, "CPU_TILE", 8)
    Z, y = make_data(n=30)
    w = np.random.default_rng(1).random(len(Z))
    i, j = np.triu_indices(len(Z), 1)
    parameters = {"strategy": strategy, "far": 0.05}
    verifier = PairVerifier(IDENTITY, **parameters).fit(Z, y, sample_weight=w)
    of_pairs = PairVerifier(IDENTITY, **parameters).fit_pairs((Z[i], Z[j]), y[i] == y[j], w[i] * w[j])
    assert verifier.threshold_ == pytest.approx(of_pairs.threshold_, abs=4e-6)
    assert verifier.threshold_ == calibrate_threshold(IDENTITY, Z, y, sample_weight=w, **parameters)
    assert verifier.score(Z, y, w) == pytest.approx(of_pairs.score((Z[i], Z[j]), y[i] == y[j], w[i] * w[j]), abs=1e-6)
    assert PairVerifier(IDENTITY, **parameters).fit(Z, y, np.ones(len(Z))).threshold_ == (
        PairVerifier(IDENTITY, **parameters).fit(Z, y).threshold_
    )
    kept = w > 0.3
    assert PairVerifier(IDENTITY, **parameters).fit(Z, y, kept).threshold_ == (
        PairVerifier(IDENTITY, **parameters).fit(Z[kept], y[kept]).threshold_
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda same: same.tolist(),
        lambda same: same.astype(int),
        lambda same: same.astype(float),
        lambda same: same.astype(object),
        lambda same: pd.Series(same, dtype="boolean", index=range(5, 5 + len(same))),
        lambda same: torch.from_numpy(same),
    ],
)
def test_labels_of_pairs(make):
    pairs, same = given_pairs()
    assert PairVerifier(IDENTITY).fit_pairs(pairs, make(same)).threshold_ == (
        PairVerifier(IDENTITY).fit_pairs(pairs, same).threshold_
    )


def test_labels_of_pairs_in_a_column():
    pairs, same = given_pairs()
    with pytest.warns(DataConversionWarning):
        PairVerifier(IDENTITY).fit_pairs(pairs, same[:, None])


@pytest.mark.parametrize(
    ("same", "message"),
    [
        ([1, -1, 1], r"True or 1 .* got 1 other values, the first of them .*-1.*, for example with same == 1"),
        ([0, 1, np.nan], "got 1 other values, the first of them .*nan"),
        ([True, None, False], "got 1 other values, the first of them None"),
        (pd.Series([True, pd.NA, False], dtype="boolean"), "the first of them <NA>"),
        (["same", "same", "other"], "got 3 other values, the first of them .*same"),
        ([[True, False]] * 3, r"got shape \(3, 2\)"),
        ([True, False], "got 2 values for 3 pairs"),
        ([True, True, True], "pairs of one class and pairs of two, got 3 and 0"),
    ],
)
def test_labels_of_pairs_are_checked(same, message):
    with pytest.raises(ValueError, match=message):
        PairVerifier(IDENTITY).fit_pairs(SIDES[:, :3].swapaxes(0, 1), same)


def test_weights_of_pairs_are_checked():
    pairs, same = given_pairs()
    with pytest.raises(ValueError, match="sample_weight"):
        PairVerifier(IDENTITY).fit_pairs(pairs, same, np.ones(3))
    with pytest.raises(ValueError, match=r"got 0 and .*, by weight"):
        PairVerifier(IDENTITY).fit_pairs(pairs, same, ~same)
    with pytest.raises(ValueError, match="'far' parameter"):
        PairVerifier(IDENTITY).fit_pairs(pairs, same).true_accept_rate(pairs, same, far=1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda pairs: pairs,
        lambda pairs: pairs.tolist(),
        lambda pairs: [(a, b) for a, b in pairs],
        lambda pairs: pd.DataFrame({"a": list(pairs[:, 0]), "b": list(pairs[:, 1])}),
    ],
)
def test_cross_validation_over_pairs(make):
    pairs, same = given_pairs()[0][:12], np.arange(12) % 2 == 0
    verifier = PairVerifier(FrozenEstimator(PCA(4).fit(make_data(7)[0])))
    scores = cross_val_score(verifier, make(pairs), same, cv=KFold(6))  # folds of two pairs
    for k, (train, test) in enumerate(KFold(6).split(pairs)):
        fold = PairVerifier(verifier.embedder).fit_pairs(pairs[train], same[train])
        assert scores[k] == (fold.predict(pairs[test]) == same[test]).mean()
    search = GridSearchCV(verifier, {"strategy": ["eer", "max_accuracy"]}, cv=2).fit(make(pairs), same.astype(int))
    assert search.predict(make(pairs)).shape == same.shape


def test_cross_validation_over_pairs_of_paths(of_files):
    verifier, paths, _ = of_files
    pairs = pd.DataFrame({"a": paths * 2, "b": paths[3:] + paths + paths[:3]})
    same = np.arange(16) % 2
    verifier = PairVerifier(FrozenEstimator(verifier.embedder_), strategy="max_accuracy")
    scores = cross_val_score(verifier, pairs, same, cv=2)
    np.testing.assert_array_equal(scores, cross_val_score(verifier, pairs.to_numpy().tolist(), same, cv=2))


def test_cross_validation_over_samples():
    Z, y = make_data(n=80)
    scores = cross_val_score(PairVerifier(PCA(3)), Z, y, cv=2)
    fold = PairVerifier(PCA(3)).fit(Z[40:], y[40:])
    similarity, same = all_pairs(fold.embedder_.transform(Z[:40]), y[:40])
    assert scores[0] == pytest.approx(((similarity >= fold.threshold_) == same).mean(), abs=1e-6)


def test_samples_of_two_rows_are_samples():
    """A row of X is what the embedder was fitted on."""
    X, y = make_data()
    flat = FunctionTransformer(lambda X: np.reshape(X, (len(X), -1)))
    flat.n_features_in_ = 6
    pixels = X.reshape(-1, 2, 3)
    assert PairVerifier(flat).fit(pixels, y).threshold_ == PairVerifier(IDENTITY).fit(X, y).threshold_
    two_columns = X[:, :2]
    assert PairVerifier(IDENTITY).fit(two_columns.tolist(), y).threshold_ == calibrate_threshold(
        IDENTITY, two_columns, y
    )
    names = pd.DataFrame({"a": ["x", "y", "x", "z"], "b": ["u", "u", "v", "v"]})
    encoder = OneHotEncoder(sparse_output=False)
    for verifier in (PairVerifier(encoder), PairVerifier(encoder.fit(names))):
        verifier.fit(names, ["a", "a", "b", "b"])
    verifier.fit(names, [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"could be pairs or samples, .* OneHotEncoder is not fitted"):
        PairVerifier(clone(encoder)).fit(names, [0, 0, 1, 1])


def test_pairs_cannot_train():
    pairs, same = given_pairs()
    with pytest.raises(NotFittedError, match="PCA is not fitted, and pairs cannot train it"):
        PairVerifier(PCA(2)).fit_pairs(pairs, same)
    with pytest.raises(ValueError, match=r"PCA is not fitted, which pairs cannot train. .*FrozenEstimator"):
        PairVerifier(PCA(2)).fit(pairs, same)


def test_roc_auc_is_that_of_all_pairs():
    for spread in (0.0, 1.0, 3.0):
        Z, y = make_data(2, 70, spread=spread)
        similarity, same = all_pairs(Z, y)
        value = PairVerifier(IDENTITY).fit(Z, y).roc_auc(Z, y)
        assert value == pytest.approx(roc_auc_score(same, similarity), abs=1e-5)
    collapsed = np.ones((70, 6))
    assert PairVerifier(IDENTITY).fit(Z, y).roc_auc(collapsed, y) == 0.5


# scikit-learn's checks give predict what fit took, samples where it takes pairs.
SAMPLES = "predict takes pairs, fit samples"
EXPECTED = dict.fromkeys(
    [
        "check_dict_unchanged",
        "check_dtype_object",
        "check_estimator_sparse_array",
        "check_estimator_sparse_matrix",
        "check_estimators_dtypes",
        "check_estimators_nan_inf",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit2d_predict1d",
        "check_fit_idempotent",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in_after_fitting",
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    ],
    SAMPLES,
)


@parametrize_with_checks([PairVerifier(PCA(1))], expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_constraints_are_those_of_the_parameters():
    check_param_validation("PairVerifier", PairVerifier(PCA(1)))
