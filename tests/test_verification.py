"""Thresholds for pairs: against all pairs in a list, and the estimator around them."""

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

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
    Z, y = make_data(seed, 45, n_classes, spread)
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
    assert np.dot(found["max_accuracy"], weights) == pytest.approx((candidates @ weights).min(), abs=1e-9)
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
        [Z[:30], Z[30:]],
        [Z[:30].tolist(), Z[30:].tolist()],
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


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.ones((4, 6)), r"pairs, as an array of shape \(n_pairs, 2, ...\) or as a tuple .*; got shape \(4, 6\)"),
        (np.ones((4, 3, 6)), r"got shape \(4, 3, 6\)"),
        ((np.ones((4, 6)), np.ones((3, 6))), "Each pair must have two samples; got 4 first and 3 second samples"),
        ((np.full((1, 6), np.nan), np.ones((1, 6))), "NaN"),
    ],
)
def test_pairs_are_checked(pairs, message):
    verifier = PairVerifier(PCA(3)).fit(*make_data())
    with pytest.raises(ValueError, match=message):
        verifier.predict(pairs)


def test_two_pairs_in_a_list_are_pairs():
    Z, y = make_data()
    verifier = PairVerifier(PCA(3)).fit(Z, y)
    pairs = Z[:4].reshape(2, 2, -1)
    assert_array_equal(verifier.decision_function(pairs.tolist()), verifier.decision_function(pairs))


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
    ],
    SAMPLES,
)


@parametrize_with_checks([PairVerifier(PCA(1))], expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
