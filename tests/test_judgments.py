"""Embedders that learn from pairs, triplets and quadruplets."""

import hashlib
import inspect
import json
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, fbeta_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn

import skdml
from skdml import PairsEmbedder, QuadrupletsEmbedder, TripletsEmbedder
from skdml._data.arrays import Rows
from skdml._data.sides import join, number_rows, split
from skdml._engine.judgments import JudgmentsEmbedder, JudgmentSet
from skdml._methods.judgments import (
    GivenOrderLoss,
    GivenPairsBinomialDevianceLoss,
    GivenPairsContrastiveLoss,
    GivenTripletsSSTLoss,
    find_threshold,
)
from skdml.losses import BinomialDevianceLoss, ContrastiveLoss, SSTLoss, TripletLoss

KINDS = (PairsEmbedder, TripletsEmbedder, QuadrupletsEmbedder)
FAST = {"max_epochs": 3, "batch_size": 32, "random_state": 0, "device": "cpu"}

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


def drawn(cls, y, n=200, seed=0):
    """Return n judgments of samples with the classes y, as rows (n, n_sides), and the arguments after X of fit."""
    rng = np.random.default_rng(seed)
    a, b, c, d = rng.integers(len(y), size=(4, 100 * n))
    if cls is PairsEmbedder:
        is_same = y[a] == y[b]
        rows = np.stack([a, b], axis=1)[a != b]
        is_same = is_same[a != b]
        chosen = np.r_[np.flatnonzero(is_same)[: n // 2], np.flatnonzero(~is_same)[: n // 2]]
        chosen = rng.permutation(chosen)
        return rows[chosen], [np.where(is_same[chosen], 1, -1)]
    right = (y[a] == y[b]) & (a != b)
    if cls is TripletsEmbedder:
        return np.stack([a, b, c], axis=1)[right & (y[a] != y[c])][:n], []
    return np.stack([a, b, c, d], axis=1)[right & (y[c] != y[d])][:n], []


@pytest.fixture(params=KINDS, ids=lambda cls: cls.__name__)
def kind(request):
    return request.param


@pytest.fixture
def task(kind, hidden):
    """An embedder, samples, judgments of them (n, n_sides, f), and the arguments after X of fit."""
    X, y = hidden
    rows, args = drawn(kind, y)
    return kind(**FAST), X, X[rows], args


# What is learned -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (PairsEmbedder, {}),
        (PairsEmbedder, {"loss": "binomial_deviance"}),
        (TripletsEmbedder, {}),
        (TripletsEmbedder, {"loss": "sst"}),
        (QuadrupletsEmbedder, {}),
    ],
    ids=str,
)
def test_new_samples_are_judged_better_than_untrained(cls, params, hidden):
    X, y = hidden
    is_new = np.arange(200) % 10 > 6
    rows, args = drawn(cls, y[~is_new], 500)
    new, new_args = drawn(cls, y[is_new], 1000, seed=1)
    embedder = cls(**params, max_epochs=12, random_state=0, device="cpu").fit(X[~is_new][rows], *args)
    untrained = clone(embedder).set_params(learned_share=0.0, max_epochs=1).fit(X[~is_new][rows], *args)
    before, after = (e.score(X[is_new][new], *new_args) for e in (untrained, embedder))
    assert after > before + 0.03
    assert embedder.history_[-1]["loss"] < embedder.history_[0]["loss"]


def test_decisions_follow_from_the_embeddings(task):
    embedder, X, judgments, args = task
    embedder.fit(judgments, *args)
    sides = [embedder.transform(judgments[:, i]).astype(np.float64) for i in range(judgments.shape[1])]
    if len(sides) == 2:
        expected = (sides[0] * sides[1]).sum(axis=1) - embedder.threshold_
        right = args[0] == 1
        assert embedder.score(judgments, *args) == pytest.approx(roc_auc_score(args[0], expected), abs=1e-4)
    else:
        pairs = (sides[0], sides[2]) if len(sides) == 3 else sides[2:]
        expected = np.linalg.norm(pairs[0] - pairs[1], axis=1) - np.linalg.norm(sides[0] - sides[1], axis=1)
        right = np.ones(len(judgments), dtype=bool)
        assert embedder.score(judgments) == (expected > 0).mean()
    np.testing.assert_allclose(embedder.decision_function(judgments), expected, atol=1e-5)
    predicted = embedder.predict(judgments)
    assert set(predicted) == {-1, 1}
    assert ((predicted == 1) == right).mean() > 0.7
    assert embedder.transform(X).shape == (200, 64)


# The losses ----------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_classes():
    """On a batch of one class of two and one sample of another, the judgments that the classes form."""
    Z = nn.functional.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    y = torch.tensor([0, 0, 1])
    pairs = torch.tensor([[0, 1, 1], [0, 2, -1], [1, 2, -1]])
    triplets = torch.tensor([[0, 1, 2], [1, 0, 2]])
    # The losses of classes take the mean over 3 anchors, each pair from both ends.
    of_pairs, of_classes = GivenPairsContrastiveLoss()(Z, pairs), ContrastiveLoss()(Z, y)
    torch.testing.assert_close(of_pairs * 3, of_classes * 3 / 2)
    terms = [GivenPairsBinomialDevianceLoss()(Z, pair[None]) for pair in pairs]
    of_classes = 3 * BinomialDevianceLoss()(Z, y)
    torch.testing.assert_close(2 * terms[0] + terms[1] + terms[2] + (terms[1] + terms[2]) / 2, of_classes)
    torch.testing.assert_close(GivenTripletsSSTLoss()(Z, triplets), SSTLoss()(Z, y))
    order = GivenOrderLoss(margin=3.0)
    torch.testing.assert_close(order(Z, triplets), TripletLoss(margin=3.0, mining=None)(Z, y))
    d = torch.cdist(Z, Z, compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(order(Z, triplets[:1]), d[0, 1] - d[0, 2] + 3)
    torch.testing.assert_close(order(Z, torch.tensor([[1, 2, 0, 1]])), d[1, 2] - d[0, 1] + 3)
    symmetric = nn.functional.softplus(d[0, 1] - (d[0, 2] + d[1, 2]) / 2)
    torch.testing.assert_close(GivenTripletsSSTLoss()(Z, triplets[:1]), symmetric)


@pytest.mark.parametrize(
    ("loss", "n_sides"),
    [
        (GivenPairsContrastiveLoss(), 2),
        (GivenPairsBinomialDevianceLoss(), 2),
        (GivenOrderLoss(margin=1.0), 3),
        (GivenOrderLoss(margin=1.0), 4),
        (GivenTripletsSSTLoss(), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_weight_counts_as_repetition(loss, n_sides):
    generator = torch.Generator().manual_seed(0)
    Z = nn.functional.normalize(torch.randn(20, 4, generator=generator), dim=1).requires_grad_()
    judgments = torch.stack([torch.randperm(20, generator=generator)[:n_sides] for _ in range(6)])
    if n_sides == 2:
        judgments = torch.cat([judgments, torch.tensor([1, -1] * 3)[:, None]], dim=1)
    weights = torch.tensor([1.0, 0.0, 3.0, 2.0, 1.0, 1.0])
    weighted, repeated = (
        loss(Z, judgments, sample_weight=weights),
        loss(Z, judgments.repeat_interleave(weights.int(), 0)),
    )
    torch.testing.assert_close(weighted, repeated)
    for a, b in zip(torch.autograd.grad(weighted, Z), torch.autograd.grad(repeated, Z), strict=True):
        torch.testing.assert_close(a, b)
    assert loss(Z, judgments, sample_weight=torch.zeros(6)) == 0


def test_samples_that_judgments_share_are_embedded_once_per_batch(hidden):
    X, y = hidden
    rows, args = drawn(PairsEmbedder, y[:30], 300)
    seen = []

    class Counter(Callback):
        def on_batch_begin(self, net, batch, training, **kwargs):
            seen.append((len(batch[0]), len(np.unique(batch[0], axis=0)), batch[1]))

    embedder = PairsEmbedder(**FAST | {"max_epochs": 1, "batch_size": 150}, callbacks=[Counter()])
    embedder.fit(X[rows], *args)
    assert len(seen) == 2
    for n_rows, n_distinct, judgments in seen:
        assert n_rows == n_distinct <= 30
        assert judgments.shape == (150, 3)


def test_pairs_in_any_form(hidden):
    X, y = hidden
    rows, args = drawn(PairsEmbedder, y)
    forms = {
        "array": X[rows],
        "sides": (X[rows[:, 0]], X[rows[:, 1]]),
        "list": [(X[i], X[j]) for i, j in rows],
        "sparse": (sparse.csr_array(X[rows[:, 0]]), sparse.csr_matrix(X[rows[:, 1]])),
        "tensor": torch.from_numpy(X[rows]),
        "frames": tuple(pd.DataFrame(X[column]).add_prefix("c") for column in rows.T),
    }
    embedded = {name: PairsEmbedder(**FAST).fit(pairs, *args) for name, pairs in forms.items()}
    expected = embedded["array"].transform(X)
    for name in ("sides", "list", "tensor"):
        np.testing.assert_array_equal(embedded[name].transform(X), expected)
    np.testing.assert_allclose(embedded["sparse"].transform(X), expected, atol=1e-5)
    frames = embedded["frames"]
    assert frames.feature_names_in_[0] == "c0"
    np.testing.assert_array_equal(frames.transform(pd.DataFrame(X).add_prefix("c")), expected)
    np.testing.assert_allclose(
        frames.decision_function(forms["frames"]), embedded["list"].decision_function(forms["list"]), atol=1e-6
    )


# Early stopping, weights, goes on ------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_weights(task):
    embedder, _, judgments, args = task
    embedder.set_params(early_stopping=True, validation_fraction=0.3, max_epochs=8, n_iter_no_change=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the start may be the best
        embedder.fit(judgments, *args)
    accuracies = [epoch["validation_accuracy"] for epoch in embedder.history_]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert ("validation_roc_auc" in embedder.history_[0]) == (len(args) == 1)
    task_ = embedder._read(judgments, *(args or [None]), None, np.random.RandomState(0), False, False, None, None)
    valid = task_.split(task_.data)[1]
    assert len(valid) == 60
    if args:
        assert sorted(valid.y.tolist()) == [-1] * 30 + [1] * 30
    assert valid.scores(embedder.network_)[0] >= max(accuracies) - 1e-9


def test_scores_of_pairs_are_those_of_the_best_threshold():
    rng = np.random.default_rng(0)
    y, Z = rng.choice([-1, 1], 50), torch.from_numpy(rng.normal(size=(100, 3)))
    judgments = torch.arange(100).reshape(50, 2)
    similarity = nn.functional.cosine_similarity(Z[::2], Z[1::2]).numpy()
    accuracy, auc = PairsEmbedder()._scores(Z, judgments, y)
    assert accuracy == pytest.approx(max(((similarity >= t) == (y > 0)).mean() for t in [*similarity, 2]))
    assert auc == pytest.approx(roc_auc_score(y, similarity))


def test_weight_zero_is_as_if_left_out(kind, hidden):
    """Of judgments whose terms would pull the embedding elsewhere."""
    X, y = hidden
    rows, args = drawn(kind, y, 300)
    weights = np.r_[np.ones(200), np.zeros(100)]
    params = FAST | {"max_epochs": 30, "batch_size": 300}
    weighted = kind(**params).fit(X[rows], *args, sample_weight=weights)
    without = kind(**params).fit(X[rows[:200]], *(arg[:200] for arg in args))
    np.testing.assert_allclose(weighted.transform(X), without.transform(X), atol=0.02)
    if args:
        assert weighted.threshold_ == pytest.approx(without.threshold_, abs=0.05)


def test_fit_is_reproducible_and_goes_on(task):
    embedder, X, judgments, args = task
    Z = embedder.fit(judgments, *args).transform(X)
    np.testing.assert_array_equal(clone(embedder).fit(judgments, *args).transform(X), Z)
    embedder.set_params(warm_start=True).fit(judgments, *args)
    assert embedder.n_iter_ == 6
    assert np.abs(embedder.transform(X) - Z).max() > 1e-3
    assert not hasattr(embedder, "fit_transform")
    assert not hasattr(embedder, "classes_")
    assert not hasattr(embedder, "partial_fit")


def test_an_exception_leaves_the_embedder_as_it_was(task):
    embedder, X, judgments, args = task
    Z = embedder.fit(judgments, *args).transform(X)
    state = {name: value for name, value in vars(embedder).items() if name.endswith("_")}
    bad = judgments.copy()
    bad[3, 1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        embedder.fit(bad, *args)
    assert all(getattr(embedder, name) is value for name, value in state.items())
    np.testing.assert_array_equal(embedder.transform(X), Z)


# Saving and scikit-learn's conventions -------------------------------------------------------------------------------


def test_save_pickle_and_export(task, tmp_path):
    embedder, X, judgments, args = task
    embedder.fit(judgments, *args)
    embedder.save(tmp_path / "saved", measures={"accuracy": 0.9})
    for copied in (skdml.load(tmp_path / "saved"), pickle.loads(pickle.dumps(embedder))):
        np.testing.assert_array_equal(copied.decision_function(judgments), embedder.decision_function(judgments))
        assert copied.get_params() == embedder.get_params()
    assert vars(skdml.load(tmp_path / "saved")).keys() == vars(embedder).keys()
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "Training: 3 epochs" in card
    Z = embedder.to_torch()(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(Z, embedder.transform(X), atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("threshold_", None), ("threshold_", "inf"), ("classes_", 3)])
def test_a_forged_folder_is_refused(hidden, tmp_path, name, value):
    X, y = hidden
    rows, args = drawn(PairsEmbedder, y)
    embedder = PairsEmbedder(**FAST).fit(X[rows], *args)
    embedder.save(tmp_path)
    about = json.loads((tmp_path / "params.json").read_text())
    about["fitted"][name] = value
    content = json.dumps(about).encode()
    (tmp_path / "params.json").write_bytes(content)
    sums = (tmp_path / "SHA256SUMS").read_text()
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(re.sub(r"\w{64}(?= +\*?params.json)", digest, sums))
    with pytest.raises(ValueError, match=name):
        skdml.load(tmp_path)


def test_a_preprocessor_is_not_saved(hidden, tmp_path):
    X, y = hidden
    rows, args = drawn(PairsEmbedder, y)
    embedder = PairsEmbedder(**FAST, preprocessor=X).fit(rows, *args)
    embedder.save(tmp_path)
    assert (tmp_path / "params.json").stat().st_size < 10_000
    with pytest.raises(ValueError, match="preprocessor"):
        skdml.load(tmp_path)
    loaded = skdml.load(tmp_path, preprocessor=X)
    np.testing.assert_array_equal(loaded.decision_function(rows), embedder.decision_function(rows))
    embedder.set_params(preprocessor=None).save(tmp_path)
    np.testing.assert_array_equal(skdml.load(tmp_path).transform(X), embedder.transform(X))


@pytest.mark.parametrize("form", ["array", "frame", "sparse", "list", "callable"])
def test_an_array_as_preprocessor_gives_what_its_rows_give(kind, hidden, form):
    X, y = hidden
    rows, args = drawn(kind, y)
    expected = kind(**FAST).fit(X[rows], *args)
    forms = {
        "array": X,
        "frame": pd.DataFrame(X),
        "sparse": sparse.csr_array(X),
        "list": X.tolist(),
        "callable": X.__getitem__,
    }
    embedder = kind(**FAST, preprocessor=forms[form]).fit(rows, *args)
    np.testing.assert_allclose(embedder.transform(np.arange(200)), expected.transform(X), atol=1e-5)
    np.testing.assert_allclose(
        embedder.decision_function(tuple(rows.T)), expected.decision_function(X[rows]), atol=1e-5
    )
    if form != "callable":
        np.testing.assert_array_equal(embedder.transform(X), embedder.transform(np.arange(200)))


def test_a_fitted_transformer_as_preprocessor(hidden):
    X, y = hidden
    rows, args = drawn(PairsEmbedder, y)
    scaler = StandardScaler().fit(X)
    embedder = PairsEmbedder(**FAST, preprocessor=scaler.transform).fit(X[rows], *args)
    expected = PairsEmbedder(**FAST).fit(scaler.transform(X)[rows], *args)
    np.testing.assert_array_equal(embedder.transform(X), expected.transform(scaler.transform(X)))
    np.testing.assert_array_equal(clone(embedder).fit(X[rows], *args).transform(X), embedder.transform(X))


def test_grid_search_and_output_containers(task):
    embedder, X, judgments, args = task
    search = GridSearchCV(embedder, {"learned_share": [0.0, 0.5]}, cv=2).fit(judgments, *args)
    assert search.best_score_ > 0.5
    frame = search.best_estimator_.set_output(transform="pandas").transform(X[:3])
    assert list(frame.columns) == [f"{type(embedder).__name__.lower()}{i}" for i in range(64)]
    np.testing.assert_array_equal(search.predict(judgments[:5]), search.best_estimator_.predict(judgments[:5]))
    assert type(embedder).__name__ in repr(embedder)
    assert "validation_split" not in embedder.get_params()
    assert "mining" not in embedder.get_params()


def test_parameters_have_constraints(kind):
    assert set(kind._parameter_constraints) == set(kind().get_params())
    assert "fit_transform" not in [name for name, _ in inspect.getmembers(kind, inspect.isfunction)]
    with pytest.raises(NotFittedError):
        kind().decision_function(np.ones((3, kind._n_sides, 4)))


# The threshold -------------------------------------------------------------------------------------------------------


def test_thresholds_are_the_best_of_all():
    rng = np.random.default_rng(0)
    y = rng.choice([-1, 1], 80)
    s = np.clip(0.2 * y + rng.normal(scale=0.3, size=80), -1, 1).round(2)  # with ties
    candidates = [-1.0, *(np.unique(s)[:-1] + np.diff(np.unique(s)) / 2), 1.1]
    rates = {t: ((s[y > 0] >= t).mean(), (s[y < 0] < t).mean()) for t in candidates}

    def found(strategy, **params):
        t = find_threshold(s, y, strategy, **params)
        return np.where(s >= t, 1, -1), ((s[y > 0] >= t).mean(), (s[y < 0] < t).mean())

    best = max(accuracy_score(y, np.where(s >= t, 1, -1)) for t in candidates)
    assert accuracy_score(y, found("accuracy")[0]) == best
    for beta in (0.3, 1, 3):
        best = max(fbeta_score(y, np.where(s >= t, 1, -1), beta=beta, zero_division=0) for t in candidates)
        assert fbeta_score(y, found("f_beta", beta=beta)[0], beta=beta) == pytest.approx(best)
    for rate in (0.0, 0.5, 0.9, 1.0):
        assert found("max_tpr", min_rate=rate)[1][0] == max(tpr for tpr, tnr in rates.values() if tnr >= rate)
        assert found("max_tnr", min_rate=rate)[1][1] == max(tnr for tpr, tnr in rates.values() if tpr >= rate)


def test_threshold_with_weights_and_at_the_ends():
    s, y = np.array([0.9, 0.5, 0.1]), np.array([1, -1, 1])
    assert find_threshold(s, y, "accuracy", weights=np.array([1.0, 5.0, 1.0])) == pytest.approx(0.7)
    assert find_threshold(s, y, "accuracy", weights=np.array([1.0, 1.0, 5.0])) < 0.1
    assert find_threshold(s, -y, "accuracy", weights=np.array([9.0, 1.0, 9.0])) > 0.9
    assert find_threshold(np.array([1.0, 1.0, 1.0]), -y, "accuracy") > 1


def test_calibrate_threshold(hidden):
    X, y = hidden
    rows, (same,) = drawn(PairsEmbedder, y)
    embedder = PairsEmbedder(**FAST).fit(X[rows], same)
    s = embedder.decision_function(X[rows]) + embedder.threshold_
    assert embedder.threshold_ == find_threshold(s.astype(np.float32), same, "accuracy")
    assert embedder.calibrate_threshold(X[rows], same, strategy="max_tpr", min_rate=0.95) is embedder
    assert (embedder.predict(X[rows])[same < 0] < 0).mean() >= 0.95
    before = embedder.threshold_
    for params, error in [
        ({"strategy": "max_tpr"}, "min_rate"),
        ({"strategy": "eer"}, "strategy"),
        ({"strategy": "max_tnr", "min_rate": 1.5}, "min_rate"),
        ({"beta": 0}, "beta"),
    ]:
        with pytest.raises(ValueError, match=error):
            embedder.calibrate_threshold(X[rows], same, **params)
    with pytest.raises(ValueError, match="both signs"):
        embedder.calibrate_threshold(X[rows][same > 0], same[same > 0])
    assert embedder.threshold_ == before


# Images and files ----------------------------------------------------------------------------------------------------


def test_paths_and_images(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (12, 16, 16, 3), dtype=np.uint8)
    images[::2, :8] += 100
    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    paths = np.array(paths)
    rows, args = drawn(PairsEmbedder, np.arange(12) % 2, 40)
    params = FAST | {"max_epochs": 1, "augment": None}
    embedder = PairsEmbedder(**params, resize=None, crop_size=None).fit(paths[rows], *args)
    frame = pd.DataFrame(paths[rows], columns=["one", "other"])
    np.testing.assert_array_equal(embedder.decision_function(frame), embedder.decision_function(paths[rows]))
    np.testing.assert_allclose(
        embedder.decision_function(images[rows]), embedder.decision_function(paths[rows]), atol=1e-5
    )
    broken = np.r_[paths, [str(tmp_path / "none.png")]]
    rows = np.r_[rows, [[12, 1], [2, 12]]]
    same = np.r_[args[0], 1, -1]
    skips = PairsEmbedder(**params, resize=None, crop_size=None, on_error="skip")
    with pytest.warns(UserWarning, match="1 of 13 files"):
        skips.fit(broken[rows], same, sample_weight=np.ones(42))
    np.testing.assert_allclose(skips.transform(paths), embedder.transform(paths), atol=1e-4)


# Bad input -----------------------------------------------------------------------------------------------------------

P = np.random.default_rng(0).normal(size=(20, 2, 4))
SAME = np.tile([1, -1], 10)
T = np.random.default_rng(0).normal(size=(20, 3, 4))
Q = np.random.default_rng(0).normal(size=(20, 4, 4))


def with_equal(X, i, j):
    X = X.copy()
    X[5, i] = X[5, j]
    return X


@pytest.mark.parametrize(
    ("cls", "X", "args", "message"),
    [
        (PairsEmbedder, np.repeat(P[:, :1], 2, axis=1), [SAME], "All pairs hold two equal samples"),
        (PairsEmbedder, P, [np.ones(20)], "both signs.*got 20 pairs with 1 and 0"),
        (PairsEmbedder, P, [None], "requires y to be passed"),
        (PairsEmbedder, P, [SAME == 1], r"Convert booleans, or 1 and 0, with np.where\(y, 1, -1\)"),
        (PairsEmbedder, P, [(SAME + 1) / 2], "10 other values, the first of them"),
        (PairsEmbedder, P, [["same"] * 20], "20 other values"),
        (PairsEmbedder, P, [SAME[:19]], "19 values for 20 pairs"),
        (PairsEmbedder, T, [SAME], r"n_pairs, 2, ...\).*got shape \(20, 3, 4\)"),
        (PairsEmbedder, P[:0], [SAME[:0]], "got no pairs"),
        (PairsEmbedder, P, [SAME, np.where(SAME == 1, 0, 1)], "both signs with a weight above 0"),
        (PairsEmbedder, (P[:, 0], P[:19, 1]), [SAME], "20, 19 samples"),
        (PairsEmbedder, (P[:, 0], P[:, 1, :3]), [SAME], r"different kinds.*shape \(4,\).*shape \(3,\)"),
        (PairsEmbedder, (P[:, 0], ["a.png"] * 20), [SAME], "different kinds.*paths"),
        (PairsEmbedder, (P[:, 0], sparse.csr_array(P[:, 1])), [SAME], "different kinds.*sparse"),
        (PairsEmbedder, (np.zeros((20, 8, 8), np.uint8), np.zeros((20, 8, 8))), [SAME], "of uint8.*of float64"),
        (PairsEmbedder, (pd.DataFrame(P[:, 0]), pd.DataFrame(P[:, 1]).add_prefix("c")), [SAME], "columns c0"),
        (TripletsEmbedder, with_equal(T, 1, 0), [], "In 1 of 20 triplets, the positive equals the anchor"),
        (TripletsEmbedder, with_equal(T, 2, 0), [], "the negative equals the anchor"),
        (TripletsEmbedder, with_equal(T, 2, 1), [], "the negative equals the positive"),
        (TripletsEmbedder, T, [SAME], "takes no y"),
        (TripletsEmbedder, (*T.transpose(1, 0, 2)[:2], ["a.png"] * 20), [], "negatives: paths"),
        (TripletsEmbedder, tuple(T[0]), [], "Write one triplet as"),
        (QuadrupletsEmbedder, with_equal(Q, 1, 0), [], "first and the second sample are equal"),
        (QuadrupletsEmbedder, with_equal(Q, 3, 2), [], "third and the fourth sample are equal"),
        (QuadrupletsEmbedder, Q[:, [0, 1, 1, 0]], [], "In 20 of 20 quadruplets, both pairs are the same"),
    ],
)
def test_bad_judgments_are_refused(cls, X, args, message):
    embedder = cls(**FAST)
    with pytest.raises(ValueError, match=message):
        embedder.fit(X, *args)
    assert not hasattr(embedder, "network_")


@pytest.mark.parametrize(
    ("params", "X", "message"),
    [
        ({"preprocessor": P[:, 0]}, np.full((20, 2), 20), "integers from 0 to 19; got 20"),
        ({"preprocessor": P[:, 0]}, np.full((20, 2), 0.5), "integers from 0 to 19; got values of type float64"),
        ({"preprocessor": P[:, 0]}, np.full((20, 2), -1), "integers from 0 to 19; got -1"),
        ({"preprocessor": lambda X: X[:3]}, P, "made 3 samples of 40 elements"),
        ({"early_stopping": True, "validation_fraction": 0.99}, P, "holds out 10 of 10 judgments"),
        ({"warmup_epochs": 1}, P, "warmup_epochs=1"),
        ({"loss": "triplet"}, P, "'loss' parameter of PairsEmbedder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_parameters_are_refused(params, X, message):
    with pytest.raises(ValueError, match=message):
        PairsEmbedder(**FAST | params).fit(X, SAME)


# Sides ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_sides", [2, 3, 4])
def test_equal_rows_have_one_number(n_sides):
    X = np.random.default_rng(0).integers(3, size=(30, n_sides, 2)).astype(float)
    for form in (X, torch.from_numpy(X), [tuple(map(sparse.csr_array, group)) for group in X]):
        first, number = number_rows(join(split(form, n_sides)))
        joined = np.concatenate(list(X.transpose(1, 0, 2)))
        np.testing.assert_array_equal(joined[first][number], joined)
        assert len(first) == len(np.unique(joined, axis=0))


def test_judgments_of_a_batch_refer_to_its_rows():
    data = Rows(np.arange(10, dtype=np.float32)[:, None]).place(torch.device("cpu"))
    judgments = np.array([[7, 3], [3, 9], [1, 7]])
    judged = JudgmentSet(data, judgments, np.array([1, -1, 1]), None, {}, None)
    index = torch.tensor([2, 0])
    (X,) = judged.batches([index])
    labels = judged.labels(index)
    np.testing.assert_array_equal(X[labels[:, :2], 0], judgments[index])
    assert labels[:, 2].tolist() == [1, 1]
    assert len(X) == 3
    assert issubclass(PairsEmbedder, JudgmentsEmbedder)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("skdml._engine.judgments.n_processes", lambda: 2)
    with pytest.raises(ValueError, match="trains in one process, but there is a process group of 2"):
        PairsEmbedder(**FAST).fit(P, SAME)
