"""What is saved comes back to the last bit; what is no saved embedder is refused; exports compute the same."""

import copy
import datetime
import errno
import hashlib
import inspect
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import safetensors.torch
import skops.io
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Checkpoint, EpochTimer, LRScheduler
from torch import nn

import skdml
from skdml import (
    BIEREmbedder,
    ClassKFold,
    FoldEnsembleEmbedder,
    HDCEmbedder,
    MetricEmbedder,
    PairVerifier,
    RAWEmbedder,
    RecallAtK,
    SoftTripleEmbedder,
)
from skdml._engine.embedder import BaseEmbedder
from skdml._network.copies import tensors_in
from skdml._saving.exports import versions
from skdml._saving.json import decode, encode
from skdml.io import TRUSTED_TYPES

EMBEDDERS = [
    value
    for name in skdml.__all__
    if inspect.isclass(value := getattr(skdml, name)) and issubclass(value, BaseEmbedder)
]
FILES = ["params.json", "network.safetensors", "criterion.safetensors", "SHA256SUMS"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # torch's own
]


@pytest.fixture
def images():
    """uint8 images of four classes."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(32, 10, 9), dtype=np.uint8), np.repeat(np.arange(4), 8)


@pytest.fixture
def saved(blobs, tmp_path):
    """A fitted embedder, and the folder it was saved to."""
    embedder = fast(SoftTripleEmbedder).fit(*blobs)
    embedder.save(tmp_path / "saved")
    return embedder, tmp_path / "saved"


def fast(cls, **params):
    return cls(**{"max_epochs": 2, "random_state": 0, "device": "cpu", **params})


class Backbone(nn.Module):
    """Everything that is hard to store: tied, transposed, frozen and 0-dimensional tensors, and BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.transposed = nn.Parameter(torch.randn(3, 6).T)
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("scale", torch.rand(()) + 1)

    def forward(self, x):
        return self.norm(self.second(self.first(x))) @ self.transposed * self.scale + self.frozen


class ProxyLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(4, 64))

    def forward(self, embeddings, y):
        return nn.functional.cross_entropy(embeddings @ self.proxies.T, y)


class OwnEmbedder(RAWEmbedder):
    pass


def spread(embeddings, y):
    return (embeddings - embeddings.mean(dim=0)).square().mean()


def keep_all(S, positive, negative):
    return positive, negative


class NoMiner:
    def __call__(self, embeddings, y):
        return None


class MinedLoss(nn.Module):
    def forward(self, embeddings, y, pairs):
        return embeddings.square().mean()


def check_equal(a, b, X):
    """Same class, parameters, fitted attributes and weights, and the same embeddings to the last bit."""
    assert type(a) is type(b)
    np.testing.assert_array_equal(a.transform(X), b.transform(X), strict=True)
    assert vars(a).keys() == vars(b).keys()
    for name, value in vars(a).items():
        other = vars(b)[name]
        if isinstance(value, nn.Module):
            continue
        assert type(other) is type(value)
        if name == "_made_with":
            value, other = ({k: repr(v) for k, v in params.items()} for params in (value, other))
        np.testing.assert_equal(other, value)
    for module, other in ((a.network_, b.network_), (a.criterion_, b.criterion_)):
        assert not other.training
        assert repr(module) == repr(other)
        states = module.state_dict(), other.state_dict()
        assert states[0].keys() == states[1].keys()
        for name, tensor in states[0].items():
            torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=0)
        assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in other.parameters()]


# ---- round trips


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_every_way_of_saving(cls, blobs, tmp_path):
    X, y = blobs
    embedder = fast(cls).fit(X, y)
    embedder.save(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {*FILES, "README.md"}
    joblib.dump(embedder, tmp_path / "joblib")
    skops.io.dump(embedder, tmp_path / "skops")
    for copied in [
        skdml.load(tmp_path / "saved"),
        pickle.loads(pickle.dumps(embedder)),
        copy.deepcopy(embedder),
        joblib.load(tmp_path / "joblib"),
        skops.io.load(tmp_path / "skops", trusted=TRUSTED_TYPES),
    ]:
        check_equal(embedder, copied, X)
    mapped = joblib.load(tmp_path / "joblib", mmap_mode="r")
    np.testing.assert_array_equal(mapped.transform(X), embedder.transform(X))


@pytest.mark.filterwarnings("ignore:Column 5 of X:UserWarning")
@pytest.mark.parametrize(
    ("largest", "params"),
    [(1, {"n_components": 3}), (1000, {}), (1000, {"n_components": 6, "hidden_layer_sizes": ()})],
    ids=str,
)
def test_start_and_strength(largest, params, blobs, tmp_path):
    """Columns as they are and standardized, components, and another strength than that of a new network."""
    X, y = blobs
    X = X * np.float32([1, 1, 1, 1, 1, largest])
    embedder = fast(SoftTripleEmbedder, **params).fit(X, y)
    assert (embedder.network_.head.shift != 0).all() == (largest > 1)
    half = embedder.transform(X)
    embedder.network_.head.strength.fill_(1.0)
    Z = embedder.transform(X)
    assert np.abs(Z - half).max() > 1e-3
    embedder.save(tmp_path / "saved")
    embedder.to_onnx(tmp_path / "model.onnx")
    for copied in (
        skdml.load(tmp_path / "saved"),
        pickle.loads(pickle.dumps(embedder)),
        skops.io.loads(skops.io.dumps(embedder), TRUSTED_TYPES),
    ):
        check_equal(embedder, copied, X)
        copied.set_params(warm_start=True).fit(X, y)
        assert copied.n_iter_ == 4
        assert copied.network_.head.strength == 1
    np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", torch.from_numpy(X)), Z, rtol=0, atol=1e-5)
    x = torch.from_numpy(X)
    program = torch.export.export(embedder.to_torch(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    np.testing.assert_allclose(program.module()(x).detach(), Z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", [RAWEmbedder, HDCEmbedder, BIEREmbedder])
def test_images(cls, images, tmp_path):
    X, y = images
    params = {"adversarial": True} if cls is BIEREmbedder else {}
    embedder = fast(cls, normalize=False, n_components=None if cls is HDCEmbedder else 5, **params).fit(X, y)
    embedder.save(tmp_path / "saved")
    check_equal(embedder, skdml.load(tmp_path / "saved"), X)
    for copied in (pickle.loads(pickle.dumps(embedder)), skops.io.loads(skops.io.dumps(embedder), TRUSTED_TYPES)):
        check_equal(embedder, copied, X)


def test_feature_names_and_output(blobs, tmp_path):
    X, y = blobs
    frame = pd.DataFrame(X, columns=list("abcdef"))
    embedder = fast(RAWEmbedder, early_stopping=True).set_output(transform="pandas").fit(frame, y)
    embedder.save(tmp_path / "saved")
    loaded = skdml.load(tmp_path / "saved")
    check_equal(embedder, loaded, frame)
    assert isinstance(loaded.transform(frame), pd.DataFrame)
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.transform(frame[list("fedcba")])


LABELS = [
    np.array(["a", "bb", "c", "d"]),
    np.array(["a", "\u00fc\U0001f600", "c\n", "d"], dtype=object),
    np.array([2**60, 2**60 + 1, -5, 0]),
    np.array([2**64 - 1, 2**63, 1, 0], dtype=np.uint64),
    np.array([1, 2, 3, 4], dtype=">i2"),
    np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32),
    np.array([False, True]),
    np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[D]"),
    np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[ns]"),
]


@pytest.mark.parametrize("labels", LABELS, ids=lambda labels: f"{labels.dtype}-{labels[0]}")
def test_labels(labels, blobs, tmp_path):
    X, y = blobs
    y = labels[y % len(labels)]
    embedder = fast(RAWEmbedder, max_epochs=1).fit(X, y)
    embedder.save(tmp_path / "saved")
    loaded = skdml.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.classes_, embedder.classes_, strict=True)
    assert loaded.classes_.dtype == embedder.classes_.dtype
    loaded.set_params(warm_start=True).fit(X, y)


def test_training_goes_on_alike(blobs, tmp_path):
    """The random state, the steps counted by the loss and which weights train come back, too."""
    X, y = blobs
    for embedder in [
        fast(skdml.LargeMarginSoftmaxEmbedder, random_state=np.random.RandomState(3), warm_start=True),
        fast(RAWEmbedder, random_state=np.random.RandomState(3), warm_start=True, backbone=Backbone()),
    ]:
        passed = {} if embedder.backbone is None else {"backbone": Backbone}
        embedder.fit(X, y).save(tmp_path / "saved")
        loaded = skdml.load(tmp_path / "saved", **passed)
        np.testing.assert_array_equal(loaded.fit(X, y).transform(X), embedder.fit(X, y).transform(X))
        assert loaded.n_iter_ == embedder.n_iter_ == 4


def test_device(blobs, tmp_path, device):
    """Saved on a GPU or not, the files know no device but the parameter."""
    X, y = blobs
    embedder = fast(SoftTripleEmbedder, device=torch.device(device)).fit(X, y)
    embedder.save(tmp_path / "saved")
    loaded = skdml.load(tmp_path / "saved")
    assert loaded.device == torch.device(device)
    np.testing.assert_array_equal(loaded.transform(X), embedder.transform(X))
    trusted = skops.io.loads(skops.io.dumps(embedder), TRUSTED_TYPES)
    np.testing.assert_array_equal(trusted.transform(X), embedder.transform(X))
    np.testing.assert_allclose(loaded.set_params(device="cpu").transform(X), embedder.transform(X), atol=1e-5)


# ---- what a file cannot hold


@pytest.mark.parametrize("backbone", [Backbone, lambda: Backbone()], ids=["class", "module"])
def test_backbone(backbone, blobs, tmp_path):
    X, y = blobs
    embedder = fast(SoftTripleEmbedder, backbone=Backbone()).fit(X, y)
    embedder.save(tmp_path / "saved")
    backbone = backbone if isinstance(backbone, type) else backbone()
    loaded = skdml.load(tmp_path / "saved", backbone=backbone)
    assert type(loaded.backbone) is Backbone
    embedder.set_params(backbone=loaded.backbone)
    check_equal(embedder, loaded, X)
    assert loaded.network_.backbone.second.weight is loaded.network_.backbone.first.weight
    assert not loaded.network_.backbone.frozen.requires_grad
    check_equal(embedder, pickle.loads(pickle.dumps(embedder)).set_params(backbone=loaded.backbone), X)


def test_loss_miner_and_callbacks(blobs, tmp_path):
    X, y = blobs
    embedder = fast(MetricEmbedder, loss=ProxyLoss(), batches="shuffled").fit(X, y)
    embedder.save(tmp_path / "module")
    for loss in (ProxyLoss, ProxyLoss()):
        loaded = skdml.load(tmp_path / "module", loss=loss)
        torch.testing.assert_close(loaded.criterion_.proxies, embedder.criterion_.proxies, rtol=0, atol=0)
        np.testing.assert_array_equal(loaded.transform(X), embedder.transform(X))
    own = {
        "loss": spread,
        "callbacks": [("timer", EpochTimer()), LRScheduler("StepLR", step_size=1)],
    }
    embedder = fast(MetricEmbedder, **own).fit(X, y)
    embedder.save(tmp_path / "functions")
    loaded = skdml.load(tmp_path / "functions", **own)
    assert all(loaded.get_params()[name] is value for name, value in own.items())
    check_equal(embedder, loaded, X)
    with pytest.raises(ValueError, match=r"callbacks \(it was .*LRScheduler.*loss \(it was .*\.spread\)\. Call load"):
        skdml.load(tmp_path / "functions")
    assert skdml.load(tmp_path / "functions", loss=spread, callbacks=None).callbacks is None
    own = {"loss": MinedLoss(), "miner": NoMiner()}
    embedder = fast(MetricEmbedder, **own).fit(X, y)
    embedder.save(tmp_path / "mined")
    check_equal(embedder, skdml.load(tmp_path / "mined", **own), X)


def test_mining_and_optimizer(blobs, tmp_path):
    X, y = blobs
    embedder = fast(RAWEmbedder, mining=keep_all, optimizer=torch.optim.RMSprop).fit(X, y)
    embedder.save(tmp_path / "saved")
    loaded = skdml.load(tmp_path / "saved", mining=keep_all)
    assert loaded.optimizer is torch.optim.RMSprop
    assert loaded.criterion_.mining is keep_all
    trusted = [*TRUSTED_TYPES, f"{__name__}.keep_all"]
    embedder.set_params(mining=None).fit(X, y)
    assert skops.io.loads(skops.io.dumps(embedder), trusted).optimizer is torch.optim.RMSprop


def test_what_is_passed_is_checked(saved, blobs, tmp_path):
    X, y = blobs
    _, path = saved
    with pytest.raises(ValueError, match=r"^device must not be passed: .*set_params"):
        skdml.load(path, device="cpu")
    with pytest.raises(ValueError, match="n_center must not be passed"):
        skdml.load(path, n_center=3)
    path = tmp_path / "own"
    fast(RAWEmbedder, backbone=Backbone()).fit(X, y).save(path)
    with pytest.raises(ValueError, match=r"backbone \(it was .*Backbone\)\. Call load\('.*own', backbone=\.\.\.\)"):
        skdml.load(path)
    with pytest.raises(ValueError, match=r"network.safetensors does not fit .*backbone.bias is missing"):
        skdml.load(path, backbone=nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"The backbone does not take a batch of shape \(2, 6\)"):
        skdml.load(path, backbone=nn.Linear(7, 3))
    with pytest.raises(TypeError, match=r"backbone=Linear cannot be called without arguments.*Pass a module"):
        skdml.load(path, backbone=nn.Linear)
    with pytest.raises(ValueError, match="backbone"):
        skdml.load(path, backbone="Backbone")
    path = tmp_path / "loss"
    fast(MetricEmbedder, loss=ProxyLoss()).fit(X, y).save(path)
    with pytest.raises(
        ValueError, match=r"criterion.safetensors .*proxies is \(4, 64\) float32, not \(4, 64\) float64"
    ):
        skdml.load(path, loss=ProxyLoss().double())


EXACT = [
    None,
    True,
    2**80,
    -0.0,
    5e-324,
    0.1,
    math.inf,
    "\u00fc\ud800\0",
    [1, (2, [3.5, ()])],
    {"a": {"b": (1,)}, "": None},
    np.float32(0.1),
    np.float64(0.1),
    np.int8(-3),
    np.bool_(True),
    np.str_("a"),
    np.datetime64("2024-01-01T12", "h"),
    np.datetime64("NaT"),
    np.timedelta64(3, "D"),
    np.array(3.0),
    np.array([[1.5, -np.inf], [-0.0, 2]], dtype=np.float16),
    np.zeros((0, 3), dtype=np.uint8),
    np.array(["a", None, (1, 2)], dtype=object),
    np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    torch.device("cuda:1"),
    torch.optim.RMSprop,
    Path("folder") / "file",
    b"\0\xff",
    np.array([b"a", b"bc"]),
    datetime.date(2024, 2, 29),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
    np.array([datetime.date(2024, 1, 1), datetime.date(2023, 1, 1)], dtype=object),
]


@pytest.mark.parametrize("value", EXACT, ids=str)
def test_values_come_back(value):
    read = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert type(read) is type(value)
    np.testing.assert_equal(read, value)
    assert repr(read) == repr(value)
    if isinstance(value, np.ndarray | np.generic):
        assert read.dtype == value.dtype


def test_random_state_comes_back():
    rng = np.random.RandomState(0)
    rng.normal(size=3)
    read = decode(json.loads(json.dumps(encode(rng))))
    np.testing.assert_array_equal(read.normal(size=1000), rng.normal(size=1000))


@pytest.mark.parametrize(
    "value",
    [
        nn.ReLU(),
        keep_all,
        dict,
        nn.Linear,
        {1: 2},
        {"__type__": "tuple"},
        1j,
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        torch.ones(2),
        np.ones(2, dtype=np.longdouble),
        np.longdouble(1),
        np.array([nn.ReLU()], dtype=object),
        np.zeros(2, dtype=[("a", int)]),
        np.random.RandomState(np.random.PCG64(0)),
        np.ma.masked_array([1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_without_a_form(value):
    with pytest.raises(TypeError, match="has no exact form in JSON"):
        encode(value)


@pytest.mark.parametrize(
    "names",
    [[datetime.date(2024, 1, 1 + i) for i in range(4)], [b"a", b"b", b"c", b"d"], np.array([b"a", b"bc", b"d", b"e"])],
)
def test_classes_that_are_no_numbers_or_strings(blobs, tmp_path, names):
    X, y = blobs
    embedder = RAWEmbedder(max_epochs=1).fit(X, [names[c] for c in y] if isinstance(names, list) else names[y])
    embedder.save(tmp_path / "model")
    classes = skdml.load(tmp_path / "model").classes_
    assert classes.dtype == embedder.classes_.dtype
    assert classes.tolist() == list(names)


# ---- what cannot be saved


def test_not_fitted(tmp_path):
    for method in ("save", "to_onnx"):
        with pytest.raises(NotFittedError, match="not fitted"):
            getattr(RAWEmbedder(), method)(tmp_path / "saved")
    with pytest.raises(NotFittedError, match="not fitted"):
        RAWEmbedder().to_torch()
    assert not list(tmp_path.iterdir())


def test_own_class(blobs, tmp_path):
    embedder = fast(OwnEmbedder).fit(*blobs)
    with pytest.raises(TypeError, match=r"OwnEmbedder is not a class of skdml.*pickle"):
        embedder.save(tmp_path / "saved")
    embedder.criterion_.seen = 3
    copied = pickle.loads(pickle.dumps(embedder))
    check_equal(embedder, copied, blobs[0])
    assert copied.criterion_.seen == 3


def test_attributes_that_are_no_data(saved, tmp_path):
    embedder, _ = saved
    embedder.history_[0]["gradient"] = torch.ones(2)
    with pytest.raises(TypeError, match=r"history_ of the SoftTripleEmbedder cannot be saved: torch\.Tensor has no"):
        embedder.save(tmp_path / "other")
    embedder.history_[0].pop("gradient")
    embedder.network_.to_sparse = nn.Module()
    embedder.network_.to_sparse.register_buffer("matrix", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"to_sparse.matrix of network_ is \(3, 3\) float32, but was missing in fit"):
        embedder.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_tensor_that_is_not_dense(blobs, tmp_path):
    backbone = nn.Linear(6, 3)
    backbone.register_buffer("matrix", torch.eye(3).to_sparse())
    embedder = fast(RAWEmbedder, backbone=backbone).fit(*blobs)
    with pytest.raises(
        TypeError, match=r"backbone.matrix in network_ of the RAWEmbedder cannot be saved: it is not a dense"
    ):
        embedder.save(tmp_path / "saved")


@pytest.mark.parametrize(
    "params",
    [
        {"normalize": False},
        {"n_components": 9},
        {"n_components": 3, "random_state": np.random.RandomState(0)},
        {"hidden_layer_sizes": ()},
        {"threshold": 0.25},
        {"mining": keep_all},
    ],
    ids=["network", "shape", "projection", "hidden", "loss", "function"],
)
def test_parameters_set_after_the_fit(params, blobs, tmp_path):
    """The next fit takes them; the fitted network and loss stay those of the fit."""
    embedder = fast(RAWEmbedder).fit(*blobs)
    Z = embedder.transform(blobs[0])
    embedder.set_params(**params)
    embedder.save(tmp_path / "saved")
    passed = {"mining": keep_all} if params.get("mining") is keep_all else {}
    for copied in (pickle.loads(pickle.dumps(embedder)), skdml.load(tmp_path / "saved", **passed)):
        np.testing.assert_array_equal(copied.transform(blobs[0]), Z)
        assert (copied.criterion_.threshold, copied.criterion_.mining) == (0.5, "vthm")
        assert {name: str(copied.get_params()[name]) for name in params} == {k: str(v) for k, v in params.items()}
        copied.save(tmp_path / "again")
        np.testing.assert_array_equal(skdml.load(tmp_path / "again", **passed).transform(blobs[0]), Z)


def test_invalid_parameter_set_after_the_fit(blobs, tmp_path):
    embedder = fast(RAWEmbedder).fit(*blobs).set_params(batch_size=0)
    with pytest.raises(ValueError, match="The 'batch_size' parameter"):
        embedder.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_backbone_exchanged_after_the_fit(blobs, tmp_path):
    embedder = fast(RAWEmbedder, backbone=nn.Linear(6, 3)).fit(*blobs)
    Z = embedder.transform(blobs[0])
    embedder.set_params(backbone=nn.Linear(6, 2))
    with pytest.raises(ValueError, match="its backbone was changed since the fit"):
        embedder.save(tmp_path / "saved")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).transform(blobs[0]), Z)
    embedder.set_params(backbone=None)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).transform(blobs[0]), Z)


class KeepAll:
    """A mining rule whose text holds its address."""

    def __call__(self, S, positive, negative):
        return positive, negative


@pytest.mark.parametrize("params", [{}, {"backbone": nn.Linear(6, 3)}], ids=["default", "module"])
def test_a_copy_of_an_own_rule_is_not_a_change(params, blobs, tmp_path):
    embedder = fast(RAWEmbedder, mining=KeepAll(), **params).fit(*blobs)
    copied = pickle.loads(pickle.dumps(embedder))
    assert repr(copied.mining) != repr(embedder.mining)
    copied.save(tmp_path / "saved")
    loaded = skdml.load(tmp_path / "saved", mining=KeepAll(), **params)
    Z = embedder.transform(blobs[0])
    np.testing.assert_array_equal(copied.transform(blobs[0]), Z)
    np.testing.assert_array_equal(loaded.transform(blobs[0]), Z)


def test_nothing_is_built_to_save(blobs, tmp_path, monkeypatch):
    embedder = fast(RAWEmbedder).fit(*blobs)

    def build(*args):
        raise AssertionError("a network was built")

    monkeypatch.setattr(RAWEmbedder, "_make_network", build)
    monkeypatch.setattr(RAWEmbedder, "_make_loss", build)
    embedder.save(tmp_path / "saved")
    pickle.dumps(embedder)
    assert joblib.hash(embedder) == joblib.hash(embedder)


def test_network_changed_by_hand(blobs, tmp_path):
    embedder = fast(RAWEmbedder).fit(*blobs)
    embedder.network_.head = nn.Sequential(embedder.network_.head, nn.Tanh())
    with pytest.raises(ValueError, match=r"head.* of network_ is .*, but was .* in fit"):
        embedder.save(tmp_path / "saved")
    check_equal(embedder, pickle.loads(pickle.dumps(embedder)), blobs[0])
    embedder = fast(RAWEmbedder).fit(*blobs)
    embedder.network_.head.hidden[1] = nn.GELU()
    with pytest.raises(ValueError, match=r"hidden\.1\.type of network_ is torch.*GELU, but was torch.*ReLU"):
        embedder.save(tmp_path / "saved")
    check_equal(embedder, pickle.loads(pickle.dumps(embedder)), blobs[0])
    embedder = fast(RAWEmbedder).fit(*blobs)
    embedder.network_.head.hidden.requires_grad_(False)
    embedder.save(tmp_path / "saved")
    check_equal(embedder, skdml.load(tmp_path / "saved"), blobs[0])
    check_equal(embedder, pickle.loads(pickle.dumps(embedder)), blobs[0])


# ---- writing


def test_what_is_replaced(saved, blobs, tmp_path):
    embedder, path = saved
    other = fast(RAWEmbedder).fit(*blobs)
    path.chmod(0o700)
    other.save(str(path))
    assert path.stat().st_mode & 0o777 == 0o700
    assert type(skdml.load(path)) is RAWEmbedder
    (tmp_path / "empty").mkdir()
    other.save(tmp_path / "empty")
    other.save(tmp_path / "new" / "folder")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds \['notes.txt'\], but save replaces only a folder"):
        embedder.save(path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file, but save writes a folder"):
        embedder.save(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "params.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"holds \['params.json'\]"):
        embedder.save(tmp_path / "folder")
    assert type(skdml.load(path)) is RAWEmbedder
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "file", "folder", "new", "saved"]


def test_link_is_followed(saved, tmp_path):
    embedder, path = saved
    (tmp_path / "link").symlink_to(path)
    embedder.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    check_equal(embedder, skdml.load(tmp_path / "link"), np.zeros((2, 6)))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}


def save_in_a_process(embedder, path, stop, n):
    """Save in a forked process and call ``stop`` before its n-th operation on files; return the exit status."""
    process = os.fork()
    if process == 0:
        done = 0

        def count(event, args):
            nonlocal done
            if event in OPERATIONS and any(str(path) in str(arg) for arg in args):
                done += 1
                if done == n:
                    stop()

        sync = os.fsync
        os.fsync = lambda fd: (count("open", (path,)), sync(fd))
        sys.addaudithook(count)
        try:
            embedder.save(path)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt():
    raise KeyboardInterrupt


def kill():
    os._exit(9)


@needs_fork
@pytest.mark.parametrize(
    ("stop", "old"), [(kill, "missing"), (kill, "saved"), (no_space, "saved"), (interrupt, "empty")]
)
def test_save_that_ends_anywhere(stop, old, saved, blobs, tmp_path):
    """The old or the new embedder is whole wherever the process ends, and the next save leaves nothing else."""
    embedder, before = saved
    other = fast(RAWEmbedder, max_epochs=1).fit(*blobs)
    path, status, n = tmp_path / "folder", None, 0
    while status != 0:
        n += 1
        shutil.rmtree(path, ignore_errors=True)
        if old != "missing":
            path.mkdir()
        if old == "saved":
            shutil.copytree(before, path, dirs_exist_ok=True)
        status = save_in_a_process(other, path, stop, n)
        if old == "saved" or (path / "unfinished-save").exists() or (path / "params.json").exists():
            names = {"RAWEmbedder"} if status == 0 or old != "saved" else {"RAWEmbedder", "SoftTripleEmbedder"}
            assert type(skdml.load(path)).__name__ in names
        elif status == 1:  # it ended by itself, and has tidied up
            assert not path.exists() if old == "missing" else not list(path.iterdir())
        embedder.save(path)
        assert type(skdml.load(path)) is SoftTripleEmbedder
        assert {entry.name for entry in path.iterdir()} == {*FILES, "README.md"}
        assert {entry.name for entry in tmp_path.iterdir()} == {"saved", "folder"}
    assert n > 20


@needs_fork
@pytest.mark.parametrize("is_new", [True, False])
def test_several_saves_and_loads_at_once(is_new, saved, blobs, tmp_path):
    embedder, _ = saved
    embedders = embedder, fast(RAWEmbedder, max_epochs=1).fit(*blobs)
    path = tmp_path / "folder"
    if not is_new:
        embedder.save(path)
    processes = []
    for embedder in embedders:
        processes.append(os.fork())
        if processes[-1] == 0:
            status = 1
            try:
                with ThreadPoolExecutor(2) as threads:
                    list(threads.map(embedder.save, [path] * 4))
                status = 0
            finally:
                os._exit(status)
    n_loaded = 0
    while processes:
        if (path / "params.json").exists():
            assert type(skdml.load(path)) in (SoftTripleEmbedder, RAWEmbedder)
            n_loaded += 1
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            processes.remove(ended)
            assert status == 0
    assert n_loaded
    assert {entry.name for entry in path.iterdir()} == {*FILES, "README.md"}
    skdml.load(path)


def test_folder_stays(saved, blobs, tmp_path, monkeypatch):
    """One may stand in it, and a mounted one cannot be moved."""
    embedder, path = saved
    (tmp_path / "empty").mkdir()
    for folder in (path, tmp_path / "empty"):
        monkeypatch.chdir(folder)
        before = folder.stat().st_ino
        embedder.save(".")
        check_equal(embedder, skdml.load("."), blobs[0])
        assert folder.stat().st_ino == before
        assert {entry.name for entry in folder.iterdir()} == {*FILES, "README.md"}


def test_global_state_is_untouched(blobs, tmp_path):
    def state():
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    embedder = fast(MetricEmbedder, loss=ProxyLoss()).fit(*blobs)
    other = fast(RAWEmbedder).fit(*blobs)
    before = state()
    embedder.save(tmp_path / "saved")
    skdml.load(tmp_path / "saved", loss=ProxyLoss)
    pickle.loads(pickle.dumps(other))
    other.to_onnx(tmp_path / "model.onnx")
    assert state() == before


# ---- reading


@pytest.mark.parametrize("file", FILES)
def test_missing_file(file, saved):
    _, path = saved
    (path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        skdml.load(path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("size", [0, 100, -3])
def test_truncated_file(file, size, saved):
    _, path = saved
    (path / file).write_bytes((path / file).read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        skdml.load(path)


@pytest.mark.parametrize("file", FILES[:3])
@pytest.mark.parametrize("place", [-2, -100, 300])
def test_one_changed_bit(file, place, saved):
    _, path = saved
    content = bytearray((path / file).read_bytes())
    content[place] ^= 1
    (path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        skdml.load(path)


def test_swapped_files(saved):
    _, path = saved
    network, criterion = path / "network.safetensors", path / "criterion.safetensors"
    content = network.read_bytes()
    network.write_bytes(criterion.read_bytes())
    criterion.write_bytes(content)
    with pytest.raises(ValueError, match=r"network.safetensors is damaged or was changed: its SHA-256"):
        skdml.load(path)


def test_model_card_may_be_changed(saved):
    _, path = saved
    (path / "README.md").write_text("Mine.")
    skdml.load(path)


def test_what_is_no_saved_embedder(saved, tmp_path):
    embedder, _ = saved
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        skdml.load(tmp_path / "nowhere")
    joblib.dump(embedder, tmp_path / "file.joblib")
    with pytest.raises(ValueError, match=r"file.joblib is a file, not a folder .*pickle or joblib"):
        skdml.load(tmp_path / "file.joblib")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"params.json is missing: .*empty is not a complete saved embedder"):
        skdml.load(tmp_path / "empty")
    for content in ("[1]", "{}", '{"format": "1"}', "3"):
        (tmp_path / "empty" / "params.json").write_text(content)
        with pytest.raises(ValueError, match=r"params.json was not written by an embedder's save: it has no format"):
            skdml.load(tmp_path / "empty")


def rewrite(path, file="params.json", **changes):
    """Change params.json, or write tensors to the file, and make the sums agree."""
    if file == "params.json":
        about = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({**about, **changes}))
    else:
        safetensors.torch.save_file(changes, path / file)
    write_sums(path)


def write_sums(path):
    lines = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}" for name in FILES[:3]]
    (path / "SHA256SUMS").write_text("\n".join(lines))


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None])
def test_no_format(version, saved):
    _, path = saved
    rewrite(path, format=version)
    with pytest.raises(ValueError, match=r"has format (0|-1), .* start at 1|it has no format"):
        skdml.load(path)


def test_folder_of_an_earlier_version(blobs, tmp_path):
    """A folder of format 1 that was saved when paths of the machine were still written."""
    shutil.copytree(Path(__file__).parent / "golden" / "saved", tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "params.json").read_text())
    rewrite(
        tmp_path / "saved",
        params={**about["params"], "cache": "/home/somebody", "backbone_weights": "/home/somebody/weights.pt"},
        versions=versions(),
    )
    loaded = skdml.load(tmp_path / "saved")
    assert (loaded.cache, loaded.backbone_weights) == (None, "weights.pt")
    Z = [[0.7460542, 0.6596670, 0.0907885], [0.8927829, 0.4477594, 0.0495003]]
    np.testing.assert_allclose(loaded.transform(blobs[0][:2]), Z, atol=1e-5)


def test_newer_format(saved):
    _, path = saved
    (path / "params.json").write_text('{"format": 2, "anything": "else"}')
    (path / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"params.json has format 2, but skdml 0.* reads formats up to 1. Update"):
        skdml.load(path)


def test_other_versions(saved, blobs):
    embedder, path = saved
    versions = json.loads((path / "params.json").read_text())["versions"]
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert versions.keys() == {"skdml", "torch", "scikit-learn", "numpy"}
    rewrite(path, versions={**versions, "torch": "1.13.0", "numpy": "1.0"})
    with pytest.warns(UserWarning, match=r"was saved with torch 1\.13\.0 \(now .*\), numpy 1\.0 \(now") as caught:
        loaded = skdml.load(path)
    assert caught[0].filename == __file__
    check_equal(embedder, loaded, blobs[0])


NAMES = ["RAW", "io", "losses", "load", "BaseEmbedder", "os.system", "", None, ["RAWEmbedder"]]


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_only_embedders_are_looked_up(name, saved):
    _, path = saved
    rewrite(path, embedder=name)
    with pytest.raises(ValueError, match=r"params.json names the embedder .* does not have"):
        skdml.load(path)


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "builtins.eval", "value": "1 / 0"},
        {"__type__": "torch.optim", "value": "lr_scheduler"},
        {"__type__": "torch.optim", "value": 3},
        {"__type__": "tuple"},
        {"__type__": "ndarray", "value": ["a"], "dtype": "<i8", "shape": [1]},
        {"__type__": "torch.device", "value": "nowhere"},
        {"__type__": ["tuple"], "value": []},
    ],
    ids=str,
)
def test_values_that_were_not_written(value, saved):
    _, path = saved
    rewrite(path, params={"n_components": value})
    with pytest.raises(ValueError, match=r"params.json was not written by an embedder's save"):
        skdml.load(path)


def test_changed_by_hand(saved):
    _, path = saved
    about = json.loads((path / "params.json").read_text())
    rewrite(path, params={**about["params"], "n_center": 3})
    with pytest.raises(ValueError, match=r"params.json holds parameters that .* does not have: n_center"):
        skdml.load(path)
    rewrite(path, params={**about["params"], "n_centers": -3})
    with pytest.raises(ValueError, match="The 'n_centers' parameter of SoftTripleEmbedder must be"):
        skdml.load(path)
    rewrite(path, params={**about["params"], "n_centers": 3})
    with pytest.raises(ValueError, match=r"criterion.safetensors does not fit .*centers is \(4, 10, 64\)"):
        skdml.load(path)
    rewrite(path, params=about["params"], extra=1)
    with pytest.raises(ValueError, match=r"params.json has the keys \[.*'extra'"):
        skdml.load(path)


def test_other_tensors(saved):
    _, path = saved
    tensors = safetensors.torch.load_file(path / "network.safetensors")
    tensors["head.linear.weight"] = tensors["head.linear.weight"].double()
    rewrite(path, "network.safetensors", **tensors)
    with pytest.raises(
        ValueError, match=r"network.safetensors does not .*head.linear.weight is .* float64, not .* float32"
    ):
        skdml.load(path)
    tensors.pop("head.linear.weight")
    rewrite(path, "network.safetensors", **tensors)
    with pytest.raises(ValueError, match=r"network.safetensors does not .*head.linear.weight is missing"):
        skdml.load(path)
    (path / "network.safetensors").write_bytes(b"no safetensors")
    rewrite(path)
    with pytest.raises(ValueError, match=r"network.safetensors is not a safetensors file"):
        skdml.load(path)


def places(value, keys=()):
    """Yield where values are in a value of JSON, as tuples of keys and indices."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value[:2]):
        yield (*keys, key)
        if isinstance(item, dict | list):
            yield from places(item, (*keys, key))


def changed(about, keys, change):
    about = copy.deepcopy(about)
    *above, last = keys
    value = about
    for key in above:
        value = value[key]
    change(value, last)
    return about


NEW_VALUES = [
    None, True, -1, 0, 3, 10**12, 10**400, 1.5, "", "x" * 10**5, [], {}, [1, "a"], {"transform": "x"},
    {"__type__": "tuple", "value": [10**9] * 3},
    {"__type__": "float", "value": "nan"},
    {"__type__": "ndarray", "value": ["a"], "dtype": "<U500000000", "shape": [1]},
    {"__type__": "ndarray", "value": [], "dtype": "|V8", "shape": [0]},
    {"__type__": "scalar", "value": [1], "dtype": "<i8", "shape": []},
]  # fmt: skip


def peak_memory():
    """Return the bytes that the process has had in memory at most, or 0 where they are not known."""
    if sys.platform != "linux":
        return 0
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("seed", range(3))
def test_any_change_of_the_parameters(seed, saved, blobs):
    """A changed value is refused with the name of a file, or makes an embedder that works."""
    _, path = saved
    about = json.loads((path / "params.json").read_text())
    rng = random.Random(seed)
    everywhere = list(places(about))
    peak = peak_memory()
    texts = []
    for keys in rng.sample(everywhere, 40):
        value = rng.choice(NEW_VALUES)
        changes = [lambda parent, key: parent.pop(key), lambda parent, key, value=value: parent.__setitem__(key, value)]
        (path / "params.json").write_text(json.dumps(changed(about, keys, rng.choice(changes))))
        write_sums(path)
        try:
            loaded = skdml.load(path)
        except ValueError as error:
            texts.append(str(error))
        else:
            assert loaded.transform(blobs[0]).shape == (60, 64)
    assert all(str(path) in text and len(text) < 3000 for text in texts)
    assert len(texts) > 20
    assert peak_memory() < peak + 2**28


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5, "[" * 10**5 + "]" * 10**5, '{"format": ' + "1" * 5000 + "}", '{"format": NaN}',
        '{"format": 1, "format": 1}', '{"format": 1, "embedder": ' + "[" * 300 + "]" * 300 + "}",
    ],
)  # fmt: skip
def test_params_that_are_no_json(text, saved):
    _, path = saved
    (path / "params.json").write_text(text)
    write_sums(path)
    with pytest.raises(ValueError, match=r"params.json (is damaged: it is not valid JSON|has the keys)"):
        skdml.load(path)


SIZES = {
    "n_components": 10**11,
    "n_centers": 10**11,
    "hidden_layer_sizes": {"__type__": "tuple", "value": [10**6, 10**6]},
    "network_shape": 10**11,
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("backbone", [None, nn.Linear(6, 6), "timm/resnet"], ids=["default", "module", "name"])
def test_no_size_asks_for_memory(name, backbone, blobs, tmp_path, monkeypatch):
    """Nothing is made before the sizes are compared with those of the tensors."""

    def load_backbone(*args):
        return nn.Linear(6, 6), None

    monkeypatch.setattr("skdml._engine.estimator.load_backbone", load_backbone)
    monkeypatch.setattr("skdml._saving.modules.load_backbone", load_backbone)
    path = tmp_path / "saved"
    embedder = fast(SoftTripleEmbedder, backbone=backbone, max_epochs=1).fit(*blobs)
    embedder.save(path)
    passed = {"backbone": backbone} if isinstance(backbone, nn.Module) else {}
    np.testing.assert_array_equal(skdml.load(path, **passed).transform(blobs[0]), embedder.transform(blobs[0]))
    about = json.loads((path / "params.json").read_text())
    if name == "network_shape":
        shape = {"__type__": "tuple", "value": [SIZES[name]]}
        about["fitted"]["_input"] |= {"shape": shape, "network_shape": shape}
        about["fitted"]["n_features_in_"] = SIZES[name]
    else:
        about["params"][name] = SIZES[name]
    rewrite(path, **about)
    if name == "hidden_layer_sizes" and backbone is not None:  # not used
        skdml.load(path, **passed)
        return
    peak = peak_memory()
    with pytest.raises(ValueError, match=r"safetensors does not fit|does not take a batch|cannot be used"):
        skdml.load(path, **passed)
    assert peak_memory() < peak + 2**28


@pytest.mark.parametrize("key", ["transform", "fit", "__class__", "_sklearn_tags", "network_", "note", "max_epochs"])
def test_no_other_attribute(key, saved, tmp_path):
    embedder, path = saved
    about = json.loads((path / "params.json").read_text())
    rewrite(path, fitted={**about["fitted"], key: "x"})
    with pytest.raises(ValueError, match=rf"params.json was not written by .*{key}"):
        skdml.load(path)
    if key == "note":
        embedder.note = "mine"
        with pytest.raises(TypeError, match=r"note of the SoftTripleEmbedder cannot be saved: .* Remove it, or use"):
            embedder.save(tmp_path / "other")


@pytest.mark.parametrize("position", [-1, 625, 10**6])
def test_random_state_outside_of_its_key(position):
    state = encode(np.random.RandomState(0))
    state["value"]["state"]["pos"] = position
    with pytest.raises(ValueError, match="a random state"):
        decode(state)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("file", FILES[1:3])
def test_weights_that_are_not_finite(value, file, saved, tmp_path):
    embedder, path = saved
    tensors = safetensors.torch.load_file(path / file)
    name = max(tensors)
    tensors[name].view(-1)[0] = value
    rewrite(path, file, **tensors)
    with pytest.raises(ValueError, match=f"{file} is damaged: {name} holds NaN or infinity"):
        skdml.load(path)
    embedder.criterion_.centers.data[0] = value
    with pytest.raises(ValueError, match="cannot be saved: centers of criterion_ holds NaN or infinity"):
        embedder.save(tmp_path / "other")
    torch.testing.assert_close(
        pickle.loads(pickle.dumps(embedder)).criterion_.centers, embedder.criterion_.centers, equal_nan=True
    )


@pytest.mark.parametrize("seed", range(2))
def test_any_change_of_the_weights(seed, saved):
    """Headers that were cut, extended or changed; the sums agree."""
    _, path = saved
    file = path / FILES[1 + seed]
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(seed)
    lengths = [(2**63).to_bytes(8, "little"), bytes(8), (10**8).to_bytes(8, "little")]
    changes = [content[:n] for n in (0, 7, 8, end, -1)] + [content + b"x"] + [n + content[8:] for n in lengths]
    for place in rng.sample(range(end), 30):
        changes.append(content[:place] + rng.choice([b"}", b"9", b"\xff", b"["]) + content[place + 1 :])
    for change in changes:
        file.write_bytes(change)
        write_sums(path)
        if change != content and change[8:end].rstrip() != content[8:end].rstrip():
            with pytest.raises(ValueError, match=rf"{file.name} (is not a safetensors file|does not fit|is damaged)"):
                skdml.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO here")
def test_files_that_are_no_files(saved):
    _, path = saved
    (path / FILES[1]).unlink()
    os.mkfifo(path / FILES[1])
    with pytest.raises(ValueError, match=r"network.safetensors is damaged: it is not a regular file"):
        skdml.load(path)
    (path / FILES[1]).unlink()
    (path / FILES[1]).mkdir()
    with pytest.raises(ValueError, match=r"network.safetensors is damaged: it is not a regular file"):
        skdml.load(path)


def test_no_path_of_the_machine(images, tmp_path):
    """They say who has trained, and would be written to or read from by whoever loads."""
    X, y = images
    weights = tmp_path / "secret" / "weights.pt"
    embedder = fast(
        RAWEmbedder, backbone_weights=weights, callbacks=[Checkpoint(monitor=None, dirname=str(weights.parent))]
    )
    embedder.fit(X, y).set_params(cache=str(weights.parent))
    embedder._made_with |= {"cache": weights.parent, "backbone_weights": str(weights.parent / "other.pt")}
    embedder.save(tmp_path / "saved")
    for file in (tmp_path / "saved").iterdir():
        assert b"secret" not in file.read_bytes()
    loaded = skdml.load(tmp_path / "saved", callbacks=None)
    assert (loaded.cache, loaded.backbone_weights) == (None, "weights.pt")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "callbacks=[skorch.callbacks.training.Checkpoint]" in card


class NeedsValues(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (1 if x.abs().sum().item() >= 0 else 2)


class Maps(nn.Conv2d):
    def forward(self, x):
        return super().forward(x[:, :, None, None])


OTHER_BACKBONES = {
    "values": lambda: NeedsValues(6, 5),
    "maps": lambda: Maps(6, 5, 1),
    "maps of values": lambda: nn.Sequential(NeedsValues(6, 6), Maps(6, 5, 1)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(5)),
}


@pytest.mark.parametrize("make", OTHER_BACKBONES.values(), ids=OTHER_BACKBONES)
def test_backbones_that_cannot_run_without_memory(make, blobs, tmp_path):
    embedder = fast(RAWEmbedder, backbone=make(), max_epochs=1).fit(*blobs)
    embedder.save(tmp_path / "saved")
    loaded = skdml.load(tmp_path / "saved", backbone=make())
    np.testing.assert_array_equal(loaded.transform(blobs[0]), embedder.transform(blobs[0]))
    loaded.save(tmp_path / "again")


# ---- tensors that are part of a graph


class Recorder:
    """A hook that keeps what passes."""

    def __call__(self, module, inputs, output):
        self.seen = {"outputs": [output]}

    def see(self, module, inputs, output):
        module.kept = (output,)
        self(module, inputs, output)


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        self.last = self.linear(x)
        self.mean = self.last.mean(dim=0)
        return self.last


def with_hook(hook):
    module = nn.Sequential(nn.Linear(6, 5))
    module[0].register_forward_hook(hook)
    return module


def used():
    module = Keeps()
    module(torch.zeros(2, 6))
    return module


KEEPING = {
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 5)),
    "hook": lambda: with_hook(Recorder()),
    "method": lambda: with_hook(Recorder().see),
    "module": Keeps,
    "used": used,
}


@pytest.mark.parametrize("make", KEEPING.values(), ids=KEEPING)
def test_modules_that_keep_a_graph(make, blobs, tmp_path):
    X, y = blobs
    embedder = fast(RAWEmbedder, backbone=make(), max_epochs=1).fit(X, y)
    assert all(tensor.is_leaf for tensor in tensors_in((embedder.network_, embedder.criterion_)))
    Z = embedder.transform(X)
    np.testing.assert_array_equal(embedder.to_torch()(torch.from_numpy(X)).detach().numpy(), Z)
    embedder.save(tmp_path / "saved")
    for copied in (
        skdml.load(tmp_path / "saved", backbone=make()),
        copy.deepcopy(embedder),
        pickle.loads(pickle.dumps(embedder)),
    ):
        np.testing.assert_array_equal(copied.transform(X), Z)
        copied.partial_fit(X, y)
        copied.set_params(warm_start=True).fit(X, y)


class KeepingLoss(ProxyLoss):
    def forward(self, embeddings, y):
        self.logits = embeddings @ self.proxies.T
        return nn.functional.cross_entropy(self.logits, y)


class KeepingRule:
    def __call__(self, S, positive, negative):
        self.S = S
        return positive, negative


@pytest.mark.parametrize(
    "make",
    [lambda: fast(MetricEmbedder, loss=KeepingLoss()), lambda: fast(RAWEmbedder, mining=KeepingRule())],
    ids=["loss", "rule"],
)
def test_losses_that_keep_a_graph(make, blobs):
    embedder = make().fit(*blobs).partial_fit(*blobs)
    assert all(tensor.is_leaf for tensor in tensors_in((embedder.network_, embedder.criterion_)))
    pickle.loads(pickle.dumps(embedder)).partial_fit(*blobs)


# ---- equal hashes


HASHED = {
    "module": {"backbone": nn.Linear(6, 5)},
    "tied": {"backbone": Backbone()},
    "bfloat16": {"backbone": nn.Conv2d(3, 4, 3).to(torch.bfloat16, memory_format=torch.channels_last)},
    "callbacks": {
        "backbone": nn.Linear(6, 5),
        "callbacks": [EpochTimer, ("rate", LRScheduler("StepLR", step_size=1)), Checkpoint()],
    },
    "function": {"mining": keep_all, "random_state": np.random.RandomState(0), "optimizer": torch.optim.RMSprop},
}


@pytest.mark.parametrize("params", HASHED.values(), ids=HASHED)
def test_equal_embedders_have_equal_hashes(params):
    embedder = RAWEmbedder(**params)
    copies = [clone(embedder), clone(clone(embedder)), copy.deepcopy(embedder), pickle.loads(pickle.dumps(embedder))]
    assert {joblib.hash(copied) for copied in copies} == {joblib.hash(embedder)}
    assert joblib.hash(clone(embedder).set_params(max_epochs=3)) != joblib.hash(embedder)
    backbone = copies[-1].backbone
    if backbone is not None:
        assert repr(backbone) == repr(embedder.backbone)
        for name, tensor in backbone.state_dict().items():
            other = embedder.backbone.state_dict()[name]
            assert tensor.stride() == other.stride()
            torch.testing.assert_close(tensor, other, rtol=0, atol=0)
        with torch.no_grad():
            next(backbone.parameters()).add_(1)
        assert joblib.hash(copies[-1]) != joblib.hash(embedder)
    assert copy.copy(embedder).backbone is embedder.backbone


def test_hash_in_another_process():
    code = (
        "import joblib, torch, skdml; torch.zeros(3); torch.manual_seed(0); "
        "print(joblib.hash(skdml.RAWEmbedder(backbone=torch.nn.Linear(6, 5))))"
    )
    torch.manual_seed(0)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == joblib.hash(RAWEmbedder(backbone=nn.Linear(6, 5)))


def test_a_search_of_later_steps_trains_once_per_fold(blobs, tmp_path, monkeypatch):
    fits = []
    fit = RAWEmbedder.fit
    monkeypatch.setattr(RAWEmbedder, "fit", lambda self, *args: fits.append(1) or fit(self, *args))
    embedder = fast(RAWEmbedder, backbone=nn.Linear(6, 5), max_epochs=1)
    pipeline = make_pipeline(embedder, KNeighborsClassifier(), memory=str(tmp_path))
    GridSearchCV(pipeline, {"kneighborsclassifier__n_neighbors": [1, 2, 3, 4]}, cv=3, refit=False).fit(*blobs)
    assert len(fits) == 3


# ---- the model card


@pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_model_card(cls, blobs, tmp_path):
    X, y = blobs
    embedder = fast(cls, n_components=3, normalize=True, early_stopping=True).fit(X, np.array(list("abcd"))[y])
    embedder.save(tmp_path / "saved", measures={"recall_at_1": 0.25, "map_at_r": np.float32(0.125)}, license="mit")
    card = (tmp_path / "saved" / "README.md").read_text()
    metadata, _, text = card.removeprefix("---\n").partition("---\n")
    assert "\nlicense: mit\n" in metadata
    assert '\n    - type: "recall_at_1"\n      value: 0.250000\n' in metadata
    assert text.startswith(f"\n# {cls.__name__}\n\n{cls.__doc__.splitlines()[0].replace(']_', ']')}\n")
    assert "was fitted on shape (n, 6)." in card
    assert "3 components, of unit length" in card
    assert "4 classes (a, b, c, d), 2 epochs" in card
    assert f"torch {torch.__version__.split('+')[0]}" in card
    assert "- recall_at_1: 0.25\n- map_at_r: 0.125\n" in card
    best = max(epoch["validation_recall_at_1"] for epoch in embedder.history_)
    assert f"best epoch: {best:.4g}" in card
    assert "n_components=3" in card
    assert "\n## Paper\n\n- [1] " in card
    assert "Examples" not in card


@pytest.mark.parametrize("license", ["MIT license", "mit\ntags: []", "", 3])
def test_license_is_an_identifier(saved, tmp_path, license):
    embedder, _ = saved
    with pytest.raises(ValueError, match="license must be an identifier"):
        embedder.save(tmp_path / "other", license=license)
    assert not (tmp_path / "other").exists()


def test_download_of_the_hub_loads(saved, tmp_path):
    """It is a folder of links to files elsewhere, next to what the Hub adds."""
    embedder, path = saved
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in path.iterdir():
        (snapshot / file.name).symlink_to(file)
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs")
    X = np.zeros((2, embedder.n_features_in_), dtype=np.float32)
    np.testing.assert_array_equal(skdml.load(snapshot).transform(X), embedder.transform(X))


def test_measures(saved, tmp_path):
    embedder, path = saved
    assert "Measures" not in (path / "README.md").read_text()
    with pytest.raises(TypeError, match="measures must map names to numbers; got 'high' for 'recall'"):
        embedder.save(tmp_path / "other", measures={"recall": "high"})
    assert not (tmp_path / "other").exists()


# ---- exports


def test_to_torch(blobs):
    X, y = blobs
    embedder = fast(BIEREmbedder).fit(X, y)
    Z = embedder.transform(X)
    network = embedder.to_torch()
    assert not network.training
    with torch.no_grad():
        np.testing.assert_array_equal(network(torch.from_numpy(X)).numpy(), Z)
        network.head.linear.weight.zero_()
        network.head.scale.zero_()
    np.testing.assert_array_equal(embedder.transform(X), Z)


@pytest.mark.parametrize(
    ("cls", "kind"),
    [(RAWEmbedder, "images"), (HDCEmbedder, "vectors"), (HDCEmbedder, "images"), (BIEREmbedder, "vectors")],
)
def test_torch_export(cls, kind, blobs, images):
    X, y = blobs if kind == "vectors" else images
    network = fast(cls).fit(X, y).to_torch()
    x = network_rows(X)
    program = torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    for n in (1, 2, 32):
        torch.testing.assert_close(program.module()(x[:n]), network(x[:n]), rtol=0, atol=1e-6)


def network_rows(X):
    """Return X as the network gets it."""
    return torch.from_numpy(X if X.dtype == np.float32 else ((X.astype(np.float32) - 127) / 128)[:, None])


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(path)
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    assert (inputs.name, outputs.name) == ("X", "embeddings")
    assert inputs.shape == ["n", *x.shape[1:]]
    return session.run(["embeddings"], {"X": x.numpy()})[0]


ONNX = [
    (RAWEmbedder, "images", {}),
    (HDCEmbedder, "images", {}),
    (BIEREmbedder, "vectors", {"normalize": False}),
]


@pytest.mark.parametrize(("cls", "kind", "params"), ONNX, ids=str)
def test_to_onnx(cls, kind, params, blobs, images, tmp_path):
    X, y = blobs if kind == "vectors" else images
    embedder = fast(cls, **params).fit(X, y)
    embedder.to_onnx(tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    x = network_rows(X)
    Z = embedder.transform(X)
    for n in (1, 2, len(X)):
        np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", x[:n]), Z[:n], rtol=0, atol=1e-5)


def test_to_onnx_of_zero_rows(blobs, tmp_path):
    """A row that the layers map to zero stays zero."""
    X, y = blobs
    embedder = fast(RAWEmbedder, precision="bfloat16").fit(sparse.csr_array(X), y)
    for name, parameter in embedder.network_.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    embedder.to_onnx(tmp_path / "model.onnx")
    assert embedder.network_.precision == "bfloat16"
    Z = run_onnx(tmp_path / "model.onnx", torch.cat([torch.zeros(1, 6), torch.from_numpy(X)]))
    np.testing.assert_array_equal(Z[0], 0)
    embedder.network_.precision = "float32"
    np.testing.assert_allclose(Z[1:], embedder.transform(X), rtol=0, atol=1e-5)


def test_to_onnx_needs_packages(blobs, tmp_path, monkeypatch):
    embedder = fast(RAWEmbedder, max_epochs=1).fit(*blobs)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'skdml\[onnx\]'"):
        embedder.to_onnx(tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


# ---- skops


def test_pipeline(blobs):
    X, y = blobs
    pipeline = make_pipeline(StandardScaler(), fast(RAWEmbedder), KNeighborsClassifier(3)).fit(X, y)
    read = skops.io.loads(skops.io.dumps(pipeline), trusted=TRUSTED_TYPES)
    np.testing.assert_array_equal(read.predict_proba(X), pipeline.predict_proba(X))


def test_what_stands_around_an_embedder(blobs):
    X, y = blobs
    search = GridSearchCV(fast(RAWEmbedder), {"normalize": [True]}, scoring=RecallAtK(1), cv=ClassKFold(2)).fit(X, y)
    verifier = PairVerifier(search.best_estimator_).fit(X, y)
    ensemble = FoldEnsembleEmbedder(fast(RAWEmbedder), cv=ClassKFold(2)).fit(X, y)
    types = set(skops.io.get_untrusted_types(data=skops.io.dumps([search, verifier, ensemble])))
    assert {name for name in types if name.startswith("skdml.")} <= set(TRUSTED_TYPES)
    read = skops.io.loads(skops.io.dumps(verifier), trusted=TRUSTED_TYPES)
    np.testing.assert_array_equal(read.decision_function((X, X[::-1])), verifier.decision_function((X, X[::-1])))


def test_trusted_types_are_data():
    """Only what holds data when it is built: the estimators, scorers, splitters, devices and classes of optimizers."""
    embedders = {f"{cls.__module__}.{cls.__name__}" for cls in EMBEDDERS}
    assert embedders <= set(TRUSTED_TYPES)
    public = [
        getattr(module, name) for module in (skdml, skdml.metrics, skdml.model_selection) for name in module.__all__
    ]
    ours = {f"{cls.__module__}.{cls.__name__}" for cls in public if inspect.isclass(cls)}
    others = set(TRUSTED_TYPES) - ours
    assert ours <= set(TRUSTED_TYPES)
    assert all(name.startswith("torch.optim.") or name == "torch.device" for name in others)


def test_nothing_else_needs_trust(saved):
    embedder, _ = saved
    file = skops.io.dumps(embedder)
    assert skops.io.get_untrusted_types(data=file) == ["skdml._methods.soft_triple.SoftTripleEmbedder"]
    with pytest.raises(skops.io.exceptions.UntrustedTypesFoundException):
        skops.io.loads(file)
