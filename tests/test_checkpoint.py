"""Resume after a crash: what is resumed equals what was never interrupted, bit for bit."""

import inspect
import os
import threading

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Freezer, LRScheduler
from torch import nn

import skdml
from skdml import (
    HTLEmbedder,
    MagnetEmbedder,
    RAWEmbedder,
    SmartMiningEmbedder,
    SoftTripleEmbedder,
)
from skdml._engine import checkpoint as checkpoint_module
from skdml._engine.embedder import BaseEmbedder

EMBEDDERS = [
    value
    for name in skdml.__all__
    if inspect.isclass(value := getattr(skdml, name)) and issubclass(value, BaseEmbedder)
]
RESULT, STATES = checkpoint_module.RESULT, set(checkpoint_module.STATES)

pytestmark = [
    pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning"),
    pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning"),
]


class Crash(Exception):
    pass


class Watch(Callback):
    """Counts the epochs of all fits, and crashes at the end of one of them."""

    at = None
    error = Crash
    n_epochs = 0

    def on_epoch_end(self, net, **kwargs):
        Watch.n_epochs += 1
        if len(net.history) == Watch.at:
            raise Watch.error


@pytest.fixture(autouse=True)
def _watch():
    Watch.at, Watch.error, Watch.n_epochs = None, Crash, 0


def small(cls=RAWEmbedder, callbacks=(), **params):
    default = {"max_epochs": 4, "batch_size": 20, "random_state": 0, "device": "cpu", "n_components": 6}
    default["hidden_layer_sizes"] = (8,)
    return cls(callbacks=[Watch(), *callbacks], **default | params)


def crash(embedder, X, y, at=3, error=Crash, **kwargs):
    """Fit until an error at the end of an epoch."""
    Watch.at, Watch.error = at, error
    with pytest.raises(error):
        embedder.fit(X, y, **kwargs)
    Watch.at, Watch.n_epochs = None, 0


def assert_same(one, other):
    for a, b in ((one.network_, other.network_), (one.criterion_, other.criterion_)):
        a, b = a.state_dict(), b.state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    histories = [[epoch | {"duration": 0} for epoch in fitted.history_] for fitted in (one, other)]
    assert histories[0] == histories[1]
    assert all(
        [p.requires_grad for p in a.parameters()] == [p.requires_grad for p in b.parameters()]
        for a, b in ((one.network_, other.network_), (one.criterion_, other.criterion_))
    )


def check_resume(make, X, y, folder, at=3, **kwargs):
    """Crash, resume, and compare with a fit that was never interrupted and has no folder."""
    whole = make(None).fit(X, y, **kwargs)
    crash(make(folder), X, y, at, **kwargs)
    assert set(os.listdir(folder)) <= STATES
    Watch.n_epochs = 0
    resumed = make(folder).fit(X, y, **kwargs)
    assert Watch.n_epochs == whole.n_iter_ - (at - 1)
    assert_same(resumed, whole)
    assert os.listdir(folder) == [RESULT]
    again = make(folder).fit(X, y, **kwargs)
    assert Watch.n_epochs == whole.n_iter_ - (at - 1)
    assert_same(again, whole)
    assert np.array_equal(again.transform(X), whole.transform(X))


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_every_embedder_is_resumed(cls, blobs, tmp_path):
    check_resume(lambda folder: small(cls, checkpoint=folder, batch_size=24), *blobs, tmp_path)


class Noisy(nn.Module):
    """A backbone with dropout, counters of several kinds, a buffer outside of the state dict and a hook's tensor."""

    def __init__(self):
        super().__init__()
        self.linear = nn.utils.spectral_norm(nn.Linear(6, 6))
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("mean", torch.zeros(6), persistent=False)
        self.n_passes = 0
        self.seen = []

    def forward(self, x):
        if self.training:
            self.n_passes += 1
            self.seen.append(len(x))
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return self.dropout(self.norm(self.linear(x - self.mean))) * (1 + 0.01 * self.n_passes + 1e-4 * sum(self.seen))


class Average(Callback):
    """A moving average of the weights, a list, a scheduler and an object that cannot be stored; it decides on noise."""

    def __init__(self):
        self.losses = []
        self.lock = threading.Lock()

    def on_train_begin(self, net, **kwargs):
        self.average_ = [p.detach().clone() for p in net.module_.parameters()]
        self.numbers_ = torch.Generator().manual_seed(0)
        self.scheduler_ = torch.optim.lr_scheduler.ExponentialLR(net.optimizer_, 0.5)

    def on_epoch_end(self, net, **kwargs):
        self.losses.append(net.history[-1, "train_loss"])
        self.scheduler_.step()
        with torch.no_grad():
            for mean, p in zip(self.average_, net.module_.parameters(), strict=True):
                mean.lerp_(p, 0.5)
                p.copy_(mean + 1e-3 * torch.randn(mean.shape, generator=self.numbers_))
        net.history.record("sum", np.float64(sum(self.losses)))


@pytest.mark.parametrize(
    "params",
    [
        {"early_stopping": True, "validation_fraction": 0.3, "max_epochs": 6},
        {"early_stopping": True, "validation_fraction": 0.3, "backbone": Noisy(), "learned_share": 0.5},
        {"memory_size": 40, "memory_start": 2},
        {"mining": "distance_weighted"},
        {"backbone": Noisy(), "warmup_epochs": 3},
        {"backbone": Noisy(), "freeze": "backbone"},
        {"backbone": Noisy(), "freeze": "batchnorm", "precision": "bfloat16"},
        {"optimizer": torch.optim.RMSprop, "lr_schedule": None},
        {"callbacks": [Average()]},
        {"callbacks": [LRScheduler("ReduceLROnPlateau", monitor="train_loss", patience=0, threshold=1)]},
        {"callbacks": [LRScheduler("CosineAnnealingLR", T_max=20, step_every="batch")]},
        {"callbacks": [Freezer("head.linear.*", at=2)]},
        {"cls": SmartMiningEmbedder, "max_epochs": 6, "at": 5},
        {"cls": MagnetEmbedder, "at": 2},
        {"cls": HTLEmbedder, "at": 2, "callbacks": [Average()]},
        {"cls": SoftTripleEmbedder, "sample_weight": np.linspace(0, 1, 60)},
    ],
    ids=lambda params: "-".join(map(str, params)),
)
def test_all_that_a_training_carries_is_resumed(params, blobs, tmp_path):
    params = dict(params)
    options = {"at": params.pop("at", 3)} | {k: params.pop(k) for k in ("sample_weight",) if k in params}
    X, y = blobs
    rows = np.concatenate([np.arange(25), np.arange(30, 60)])  # classes of two sizes, so that batches leave rows out
    rows = rows if not options.get("sample_weight") is not None else np.arange(60)

    def make(folder):
        for callback in params.get("callbacks", ()):
            vars(callback).get("losses", []).clear()
        return small(checkpoint=folder, **params)

    check_resume(make, X[rows], y[rows], tmp_path, **options)
