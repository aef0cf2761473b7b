"""Over vectors and frozen features the embedding begins at its input: rankings, rows that are bad, unseen classes."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn

import skdml
from skdml import (
    BIEREmbedder,
    HDCEmbedder,
    ProxyAnchorEmbedder,
    RAWEmbedder,
    SoftTripleEmbedder,
    map_at_r,
    recall_at_k,
)
from skdml._engine.embedder import BaseEmbedder
from skdml._engine.training import hold_out

# Those whose embedding has several parts, each with a length of its own, begin elsewhere.
IN_PARTS = (BIEREmbedder, HDCEmbedder)
EMBEDDERS = [
    value
    for name in skdml.__all__
    if inspect.isclass(value := getattr(skdml, name)) and issubclass(value, BaseEmbedder) and value not in IN_PARTS
]

pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning")


@pytest.fixture
def table():
    """Six classes of 10 samples in 12 columns of different means and variances: (X, y)."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 10)
    X = (rng.normal(size=(6, 12))[y] + rng.normal(size=(60, 12)) + 0.5) * np.linspace(1, 3, 12)
    return X.astype(np.float32), y


def untrained(cls=SoftTripleEmbedder, **params):
    """An embedder whose training moves nothing; a small network, for it is the start that counts."""
    settings = {"max_epochs": 1, "learning_rate": 1e-12, "hidden_layer_sizes": (8,), "random_state": 0, "device": "cpu"}
    return cls(**settings | params)


def unit(X):
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norm, norm, 1)


def cosines(X):
    X = unit(np.asarray(X, dtype=np.float64))
    return X @ X.T


def check_cosines(Z, X, atol=1e-5):
    np.testing.assert_allclose(cosines(Z), cosines(X), atol=atol)


# ---- before the first step


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_an_embedding_begins_as_its_input(cls, table):
    """By cosine, of these rows and of others; in no other length either where rows are not normalized."""
    X, y = table
    new = np.random.default_rng(1).normal(size=(20, 12)).astype(np.float32)
    for n_components, expected in [("auto", 64), (None, 12)]:
        fitted = untrained(cls, n_components=n_components).fit(X, y)
        Z = fitted.transform(X)
        assert Z.shape == (60, expected)
        check_cosines(Z, X)
        check_cosines(fitted.transform(new), new)
        assert fitted.score(X, y) == recall_at_k(unit(X), y)
    lengths = np.linalg.norm(untrained(cls, normalize=False).fit(X, y).transform(X), axis=1)
    np.testing.assert_allclose(
        lengths / lengths.mean(), np.linalg.norm(X, axis=1) / np.linalg.norm(X, axis=1).mean(), rtol=1e-5
    )
    assert (lengths**2).mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_fewer_components_begin_as_the_principal_ones(cls, table):
    X, y = table
    V = np.linalg.svd(X, full_matrices=False)[2]
    for n_components in (5, 11):
        Z = untrained(cls, n_components=n_components).fit(X, y).transform(X)
        assert Z.shape == (60, n_components)
        check_cosines(Z, X @ V[:n_components].T)


@pytest.mark.parametrize("n_components", ["auto", 12, 5])
@pytest.mark.parametrize("kind", ["sparse", "frame", "frozen", "frozen maps", "memmap"])
@pytest.mark.parametrize("cls", [SoftTripleEmbedder, RAWEmbedder])
def test_every_kind_of_input_begins_as_itself(cls, kind, n_components, table, tmp_path):
    X, y = table
    X = np.where(X > 0, X, 0)
    data, params, features = X, {}, X
    if kind == "sparse":
        data = sparse.csr_array(X)
    elif kind == "frame":
        data = pd.DataFrame(X, columns=list("abcdefghijkl"))
    elif kind == "memmap":
        np.save(tmp_path / "X.npy", X)
        data = np.load(tmp_path / "X.npy", mmap_mode="r")
    elif kind == "frozen":
        backbone = nn.Linear(12, 12)
        params = {"backbone": backbone, "freeze": "backbone"}
        features = backbone(torch.from_numpy(X)).detach().numpy()
    else:
        data = X.reshape(60, 3, 2, 2)
        backbone = nn.Conv2d(3, 12, 1)
        params = {"backbone": backbone, "freeze": "backbone"}
        features = backbone(torch.from_numpy(data)).mean(dim=(2, 3)).detach().numpy()
    Z = untrained(cls, n_components=n_components, **params).fit(data, y).transform(data)
    if n_components == 5:
        features = features @ np.linalg.svd(features, full_matrices=False)[2][:5].T
    check_cosines(Z, features)


@pytest.mark.parametrize("n_components", ["auto", None, 15])
def test_a_trained_backbone_begins_with_its_features(n_components, table):
    X, y = table
    backbone = nn.Linear(12, 20)
    Z = untrained(backbone=backbone, n_components=n_components).fit(X, y).transform(X)
    features = backbone(torch.from_numpy(X)).detach().numpy()
    if n_components == 15:
        features = features @ np.linalg.svd(features, full_matrices=False)[2][:15].T
    check_cosines(Z, features, atol=1e-4)


@pytest.mark.parametrize(("n_components", "expected"), [("auto", 512), (None, 2100), (3, 3), (3000, 3000)])
def test_more_than_2048_columns(n_components, expected):
    """Of 30 rows 30 principal components hold everything, however many are asked for; 3 of them are found, too."""
    rng = np.random.default_rng(0)
    X = 2 * rng.normal(size=(30, 3)) @ rng.normal(size=(3, 2100)) + rng.normal(size=(30, 2100))
    X *= rng.random(2100) < 0.2
    kind = sparse.csr_array if n_components == "auto" else np.asarray
    Z = untrained(n_components=n_components, batch_size=15).fit(kind(X), np.arange(30) % 5).transform(kind(X))
    assert Z.shape == (30, expected)
    check_cosines(Z, X @ np.linalg.svd(X, full_matrices=False)[2][:3].T if expected == 3 else X, atol=1e-4)


def held_out(y, split, fraction):
    """Return the rows that a fit of seed 0 trains on, and those that it holds out."""
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)  # the seed of the fit is drawn first
    return hold_out(y, split, fraction, rng)


@pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("split", ["samples", "classes"])
def test_held_out_rows_have_no_part_in_the_start(hidden, split):
    """Neither in the scale nor in the principal components: here they are a thousand times larger."""
    X, y = hidden
    train_rows, valid_rows = held_out(y, split, 0.3)
    X[:, 6:] /= 10
    X[valid_rows] *= 1000
    params = {"n_components": 4, "early_stopping": True, "validation_split": split, "validation_fraction": 0.3}
    head = untrained(**params).fit(X, y).network_.head
    x = X[train_rows] * head.scale.numpy()
    assert (x**2).mean() == pytest.approx(1, rel=1e-5)
    V = np.linalg.svd(x, full_matrices=False)[2][:4]
    np.testing.assert_allclose(head.projection.T @ head.projection, V.T @ V, atol=1e-3)


def test_a_large_table_begins_at_a_sample_of_its_rows():
    """So large that not all rows are looked at; in all chunks of the table the columns are alike."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20000, 3)).astype(np.float32)
    X[::100] += 5
    head = untrained(batch_size=10000, hidden_layer_sizes=(), n_components=2).fit(X, np.arange(20000) % 2).network_.head
    assert (X**2).mean() * head.scale[0] ** 2 == pytest.approx(1, rel=0.1)
    assert (X**2).mean() * head.scale[0] ** 2 != pytest.approx(1, rel=1e-6)


# ---- afterwards


@pytest.mark.parametrize("params", [{}, {"n_components": 5}, {"hidden_layer_sizes": ()}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("largest", [1, 100])
@pytest.mark.filterwarnings("ignore:Column 11 of X:UserWarning")
def test_transform_is_the_start_and_half_of_what_is_learned(table, params, largest):
    X, y = table
    X = X * np.float32([1] * 11 + [largest])
    settings = {"hidden_layer_sizes": (16,), "max_epochs": 20, "learning_rate": 1e-2, "random_state": 0}
    fitted = SoftTripleEmbedder(**settings | params).fit(X, y)
    tensors = {name: tensor.numpy() for name, tensor in fitted.network_.head.state_dict().items()}
    x = (X - tensors["shift"]) * tensors["scale"]
    start = x @ tensors["projection"].T if "projection" in tensors else np.pad(x, [(0, 0), (0, 52)])
    learned = x @ tensors["linear.weight"].T + tensors["linear.bias"]
    if "output.weight" in tensors:
        h = np.maximum(x @ tensors["hidden.0.weight"].T + tensors["hidden.0.bias"], 0)
        learned = learned + h @ tensors["output.weight"].T
    assert tensors["strength"] == 0.5
    assert np.abs(learned).mean() > 0.1 * np.abs(start).mean()
    for strength in (0.5, 1, 0):
        fitted.network_.head.strength.fill_(strength)
        z = (start + strength * learned) / 12**0.5
        expected = unit(z) if fitted.normalize else z
        np.testing.assert_allclose(fitted.transform(X), expected, atol=1e-5)


def test_the_loss_is_that_of_all_that_is_learned(table):
    """One batch holds all rows, and with a second epoch that moves nothing, its loss is that of the first one's end."""
    X, y = table
    params = {"batch_size": 60, "max_epochs": 30, "learning_rate": 1e-2, "random_state": 0}
    fitted = SoftTripleEmbedder(**params).fit(X, y)
    fitted.set_params(warm_start=True, learning_rate=1e-12, center_learning_rate=1e-12, max_epochs=1).fit(X, y)
    losses = []
    for strength in (0.5, 1):
        fitted.network_.head.strength.fill_(strength)
        Z = torch.from_numpy(fitted.transform(X))
        losses.append(fitted.criterion_(Z, torch.from_numpy(y)).item())
    assert fitted.history_[-1]["loss"] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 1.01 * losses[1]


@pytest.fixture(scope="module")
def many_classes():
    """60 classes to train on and 60 others, whose means span 64 of 256 columns: (X, y, X_unseen, y_unseen)."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(120), 8)
    means = rng.normal(size=(120, 64)) @ np.linalg.qr(rng.normal(size=(256, 64)))[0].T
    X = (means[y] + 1.05 * rng.normal(size=(len(y), 256))).astype(np.float32)
    seen = y < 60
    return X[seen], y[seen], X[~seen], y[~seen]


STOPPING = {"early_stopping": True, "validation_split": "classes", "n_iter_no_change": 5}


@pytest.mark.parametrize(
    ("cls", "params", "loss", "gain"),
    [
        (SoftTripleEmbedder, {}, 0.01, 0.005),
        (RAWEmbedder, {}, 0.01, 0.005),
        (ProxyAnchorEmbedder, {}, 0.01, 0.005),
        (SoftTripleEmbedder, STOPPING, 0.02, 0),
    ],
)
def test_unseen_classes_are_found_better_than_by_the_input(cls, params, loss, gain, many_classes):
    """Of informative features, with the defaults; early stopping takes a tenth of the classes from the training."""
    X, y, X_unseen, y_unseen = many_classes
    Z = cls(random_state=0, device="cpu", **params).fit(X, y).transform(X_unseen)
    raw = recall_at_k(X_unseen, y_unseen), map_at_r(X_unseen, y_unseen)
    assert 0.5 < raw[0] < 0.95
    assert recall_at_k(Z, y_unseen) > raw[0] - loss
    assert map_at_r(Z, y_unseen) > raw[1] + gain


# ---- classes that are held out


class Seen(Callback):
    """Keeps the numbers of the training rows and their labels; the class holds them, since callbacks are copied."""

    rows, labels = [], []

    def on_train_begin(self, net, **kwargs):
        Seen.rows.clear()
        Seen.labels.clear()

    def on_batch_begin(self, net, batch, training, **kwargs):
        Seen.rows.extend((batch[0][:, -1] * 1000).round().int().tolist())
        Seen.labels.extend(batch[1].tolist())


@pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("cls", [*EMBEDDERS, *IN_PARTS], ids=lambda cls: cls.__name__)
def test_held_out_classes_have_no_part_in_the_training(cls, hidden):
    X, y = hidden
    X = np.column_stack([X, np.arange(200) / 1000])  # a column that tells the rows apart
    labels = np.array([f"class {c:02}" for c in range(20)])[y]
    params = {"early_stopping": True, "validation_split": "classes", "validation_fraction": 0.25, "max_epochs": 2}
    fitted = cls(random_state=0, device="cpu", callbacks=[Seen()], **params).fit(X, labels)
    train_rows, valid_rows = held_out(y, "classes", 0.25)
    held = np.unique(y[valid_rows])
    assert len(held) == 5
    assert len(valid_rows) == 50
    assert not np.isin(y[Seen.rows], held).any()
    np.testing.assert_array_equal(Seen.labels, y[Seen.rows])
    assert len(np.unique(y[Seen.rows])) == 15
    assert len(set(Seen.rows)) > 0.5 * len(train_rows)
    np.testing.assert_array_equal(fitted.classes_, np.unique(labels))
    for epoch in fitted.history_:
        assert set(epoch) == {"epoch", "loss", "duration", "validation_recall_at_1", "validation_map_at_r"}
        assert 0 < epoch["validation_map_at_r"] <= epoch["validation_recall_at_1"] <= 1


# ---- bad input


def check_rows(fitted, X):
    """Unit rows; those of zeros may stay zero."""
    Z = fitted.transform(X)
    lengths = np.linalg.norm(Z, axis=1)
    assert np.isfinite(Z).all()
    zero = ~np.asarray(X).any(axis=1)
    np.testing.assert_allclose(lengths[~zero], 1, rtol=1e-5)
    assert np.isclose(lengths[zero], 1).all() or (lengths[zero] == 0).all()
    return Z


SPOILT = {
    "constant columns": lambda X: np.column_stack([X[:, :6], np.full((60, 6), 3.0)]),
    "zero columns": lambda X: np.column_stack([X[:, :6], np.zeros((60, 6))]),
    "duplicate columns": lambda X: np.column_stack([X[:, :6], X[:, :6]]),
    "one column": lambda X: X[:, [0] * 12],
    "zero rows": lambda X: X * (np.arange(60) % 3 > 0)[:, None],
    "tiny": lambda X: X * 1e-20,
    "huge": lambda X: X * 1e15,
    "equal rows": lambda X: np.repeat(X[:1], 60, axis=0),
    "zeros": lambda X: np.zeros((60, 12)),
    "ones": lambda X: np.ones((60, 12)) * 1e6,
}


@pytest.mark.filterwarnings("ignore:All embeddings are zero")
@pytest.mark.parametrize("n_components", ["auto", None, 5])
@pytest.mark.parametrize("cls", [SoftTripleEmbedder, RAWEmbedder])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_bad_tables_give_finite_unit_rows(table, cls, spoil, n_components):
    """All other warnings are errors."""
    X, y = table
    X = spoil(X).astype(np.float32)
    for settings in ({"learning_rate": 1e-12}, {}):
        fitted = cls(n_components=n_components, max_epochs=2, random_state=0, **settings).fit(X, y)
        check_rows(fitted, X)
        assert np.isfinite([epoch["loss"] for epoch in fitted.history_]).all()


@pytest.mark.parametrize("n_samples", [4, 8])
@pytest.mark.parametrize("n_components", [6, 15, 19, 20, 64])
def test_more_components_than_samples(n_samples, n_components):
    X = np.random.default_rng(0).normal(size=(n_samples, 20)).astype(np.float32)
    y = np.arange(n_samples) % 2
    start = untrained(n_components=n_components).fit(X, y)
    Z = check_rows(start, X)
    if n_components >= n_samples:
        check_cosines(Z, X)
    fitted = SoftTripleEmbedder(n_components=n_components, max_epochs=10, learning_rate=1e-2, random_state=0).fit(X, y)
    assert check_rows(fitted, X).shape == (n_samples, n_components)
    assert fitted.history_[-1]["loss"] < fitted.history_[0]["loss"]


def test_one_column_that_rules_is_named_and_standardized(many_classes):
    """A column of a million times the size, which says nothing of the classes, costs next to nothing."""
    X, y, X_unseen, y_unseen = (a.copy() for a in many_classes)
    ruling = np.random.default_rng(1)
    for table in (X, X_unseen):
        table[:, 7] = 1e6 * ruling.normal(size=len(table))
    assert recall_at_k(X_unseen, y_unseen) < 0.1
    params = {"random_state": 0, "max_epochs": 5}
    message = r"Column 7 of X, counted from 0, makes up 100\.0% of the squared length .* standardizes .* StandardScaler"
    with pytest.warns(UserWarning, match=message) as caught:
        fitted = SoftTripleEmbedder(**params).fit(X, y)
    assert len(caught) == 1
    scaler = StandardScaler().fit(X)
    by_hand = SoftTripleEmbedder(**params).fit(scaler.transform(X), y)
    scores = fitted.score(X_unseen, y_unseen), by_hand.score(scaler.transform(X_unseen), y_unseen)
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert scores[0] > 0.5
    check_rows(fitted, X_unseen)


@pytest.mark.parametrize("cls", [SoftTripleEmbedder, RAWEmbedder])
def test_one_constant_column_that_rules_has_no_part(cls, table):
    X, y = table
    X = np.column_stack([np.full(60, 1e6), X]).astype(np.float32)
    with pytest.warns(UserWarning, match=r"Column 0 of X, counted from 0, makes up 100\.0%"):
        fitted = untrained(cls).fit(X, y)
    check_cosines(check_rows(fitted, X), StandardScaler().fit_transform(X[:, 1:]), atol=1e-4)
    X[0, 0] = 0  # another value in a new row counts nothing
    np.testing.assert_allclose(fitted.transform(X), fitted.transform(np.column_stack([np.full(60, 1e6), X[:, 1:]])))


def test_a_feature_that_rules_is_one_of_the_backbone(table):
    X, y = table
    backbone = nn.Linear(12, 6)
    with torch.no_grad():
        backbone.weight[4] *= 1000
    with pytest.warns(UserWarning, match=r"Feature 4 of the backbone, counted from 0, .* variance 1\.$"):
        fitted = untrained(backbone=backbone, freeze="backbone").fit(X, y)
    features = backbone(torch.from_numpy(X)).detach().numpy()
    check_cosines(fitted.transform(X), StandardScaler().fit_transform(features), atol=1e-4)


@pytest.mark.parametrize("cls", [SoftTripleEmbedder, RAWEmbedder])
def test_sparse_table_that_a_column_rules(cls, table):
    X, y = table
    X = np.where(X > 1, X, 0) * np.float32([1] * 5 + [1000] + [1] * 6)
    results = []
    for kind in (X, sparse.csr_array(X)):
        with pytest.warns(UserWarning, match="Column 5 of X"):
            results.append(cls(max_epochs=2, random_state=0).fit(kind, y).transform(kind))
    np.testing.assert_array_equal(*results)


def test_a_warm_start_keeps_the_scale(table):
    """The start is that of the first fit, also over rows of another size."""
    X, y = table
    fitted = untrained(warm_start=True, n_components=5).fit(X, y)
    before = {name: tensor.clone() for name, tensor in fitted.network_.head.named_buffers()}
    fitted.fit(100 * X[:, ::-1], y)
    for call in (lambda: fitted.fit(X, y), lambda: fitted.partial_fit(100 * X[:, ::-1], y)):
        call()
        for name, tensor in fitted.network_.head.named_buffers():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_partial_fit_begins_at_the_first_rows(table):
    X, y = table
    fitted = untrained().partial_fit(X[:30], y[:30], classes=np.arange(6))
    check_cosines(fitted.transform(X), X)
    assert (X[:30] ** 2).mean() * fitted.network_.head.scale[0] ** 2 == pytest.approx(1, rel=1e-5)
