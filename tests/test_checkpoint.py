"""Resume after a crash: what is resumed equals what was never interrupted, bit for bit."""

import inspect
import multiprocessing
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, Freezer, LoadInitState, LRScheduler, TrainEndCheckpoint
from torch import nn

import skdml
from skdml import (
    FoldEnsembleEmbedder,
    HTLEmbedder,
    MagnetEmbedder,
    PairsEmbedder,
    RAWEmbedder,
    SmartMiningEmbedder,
    SoftTripleEmbedder,
)
from skdml._engine import checkpoint as checkpoint_module
from skdml._engine.embedder import BaseEmbedder
from skdml._saving.states import read_state

EMBEDDERS = [
    value
    for name in skdml.__all__
    if inspect.isclass(value := getattr(skdml, name)) and issubclass(value, BaseEmbedder)
]
RESULT, STATE = checkpoint_module.RESULT, checkpoint_module.STATE

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
def _watch(monkeypatch):
    monkeypatch.setattr(checkpoint_module, "QUICK", np.inf)  # a busy machine writes after each epoch, too
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
    assert os.listdir(folder) == [STATE]
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


class Counted(Callback):
    """Says itself what its state is."""

    def on_train_begin(self, net, **kwargs):
        self.count = self.other = 0

    def on_epoch_end(self, net, **kwargs):
        self.count += 1
        self.other += 1
        net.history.record("count", self.count)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


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
        {"early_stopping": True, "validation_fraction": 0.3, "max_epochs": 9, "n_iter_no_change": 3},
        {"early_stopping": True, "validation_fraction": 0.3, "backbone": Noisy(), "learned_share": 0.5},
        {"memory_size": 40, "memory_start": 2},
        {"mining": "distance_weighted"},
        {"backbone": Noisy(), "warmup_epochs": 3},
        {"backbone": Noisy(), "freeze": "backbone"},
        {"backbone": Noisy(), "freeze": "batchnorm", "precision": "bfloat16"},
        {"optimizer": torch.optim.RMSprop, "lr_schedule": None},
        {"callbacks": [Average(), Counted()]},
        {"callbacks": [LRScheduler("ReduceLROnPlateau", monitor="train_loss", patience=0, threshold=1)]},
        {"callbacks": [LRScheduler("CosineAnnealingLR", T_max=20, step_every="batch")]},
        {"callbacks": [LRScheduler("MultiStepLR", milestones=[1, 3])]},
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


@pytest.mark.parametrize("params", [{}, {"backbone": Noisy(), "early_stopping": True, "validation_fraction": 0.3}])
def test_a_seed_of_its_own_is_kept(params, blobs, tmp_path):
    """With ``random_state=None``, the uninterrupted fit is one that begins with the same state of NumPy's generator."""
    X, y = blobs
    np.random.seed(0)  # noqa: NPY002
    whole = small(random_state=None, **params).fit(X, y)
    np.random.seed(0)  # noqa: NPY002
    crash(small(random_state=None, checkpoint=tmp_path, **params), X, y)
    np.random.seed(1)  # noqa: NPY002
    assert_same(small(random_state=None, checkpoint=tmp_path, **params).fit(X, y), whole)
    assert_same(small(random_state=None, checkpoint=tmp_path, **params).fit(X, y), whole)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_judgments_are_resumed(early_stopping, blobs, tmp_path):
    X, y = blobs
    pairs = np.random.default_rng(0).integers(len(X), size=(80, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    same = np.where(y[pairs[:, 0]] == y[pairs[:, 1]], 1, -1)

    def make(folder):
        return small(PairsEmbedder, checkpoint=folder, early_stopping=early_stopping, validation_fraction=0.3)

    whole = make(None).fit(X[pairs], same)
    crash(make(tmp_path), X[pairs], same)
    for fitted in (make(tmp_path).fit(X[pairs], same), make(tmp_path).fit(X[pairs], same)):
        assert_same(fitted, whole)
        assert fitted.threshold_ == whole.threshold_
    with pytest.raises(ValueError, match="belongs to another fit: y was"):
        make(tmp_path).fit(X[pairs], -same)


def test_a_warm_start_is_resumed(blobs, tmp_path):
    X, y = blobs
    rng = np.random.RandomState(0)
    first, other = (small(cls=SoftTripleEmbedder, warm_start=True, random_state=rng).fit(X, y) for _ in range(2))
    assert first.n_iter_ == 4
    state = rng.get_state()

    def again(estimator, folder):
        fitted = small(cls=SoftTripleEmbedder, warm_start=True, random_state=rng, checkpoint=folder)
        vars(fitted).update(
            {k: v for k, v in vars(estimator).items() if k.endswith("_") or k in ("_input", "_made_with")}
        )
        rng.set_state(state)
        return fitted

    whole = again(first, None).fit(X, y)
    assert whole.n_iter_ == 8
    crash(again(first, tmp_path), X, y)
    with pytest.raises(
        ValueError, match=r"start was the network after 4 epochs, .*, and is the network after 4 epochs"
    ):
        again(other, tmp_path).fit(X, y)
    assert_same(again(first, tmp_path).fit(X, y), whole)


def test_files_in_processes_are_resumed(tmp_path):
    """Augmented batches, decoded in two processes; the files are compared by path, size and time."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    y = np.repeat(np.arange(3), 4)
    folder = tmp_path / "state"
    params = {"resize": 16, "crop_size": 12, "n_jobs": 2, "batch_size": 8, "max_epochs": 3, "augment": "standard"}
    check_resume(lambda checkpoint: small(checkpoint=checkpoint, **params), paths, y, folder)
    os.utime(paths[0], ns=(0, 0))
    with pytest.raises(ValueError, match=r"belongs to another fit: X was 12 files .*, and is 12 files"):
        small(checkpoint=folder, **params).fit(paths, y)


def test_an_augmentation_of_the_user_is_resumed(tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (24, 6, 6), dtype=np.uint8)

    def noise(x):
        return x + 0.1 * torch.randn(x.shape)

    check_resume(lambda f: small(checkpoint=f, augment=noise), X, np.repeat(np.arange(4), 6), tmp_path)


@pytest.mark.parametrize(
    "params",
    [{}, {"memory_size": 40, "memory_start": 2}, {"early_stopping": True, "validation_fraction": 0.3}],
    ids=["plain", "memory", "early stopping"],
)
def test_generators_that_losses_have_are_resumed(params, device, blobs, tmp_path, monkeypatch):
    """Without callbacks, the draws of "distance_weighted" come from a generator of the loss's own."""
    X, y = blobs

    def make(folder):
        fit = small(mining="distance_weighted", checkpoint=folder, **params)
        return fit.set_params(callbacks=None, device=device)

    def write(path, state):
        if len(state.get("history", ())) == 3:
            raise Crash
        write_state(path, state)

    write_state = checkpoint_module.write_state
    whole = make(None).fit(X, y)
    monkeypatch.setattr(checkpoint_module, "write_state", write)
    with pytest.raises(Crash):
        make(tmp_path).fit(X, y)
    monkeypatch.undo()
    resumed = make(tmp_path).fit(X, y)
    if device == "cpu":
        assert_same(resumed, whole)
    np.testing.assert_allclose(resumed.transform(X), whole.transform(X), atol=1e-4)


def test_lists_of_callbacks_are_those_of_the_user(blobs, tmp_path):
    average = Average()
    crash(small(checkpoint=tmp_path, callbacks=[average]), *blobs)
    average = Average()  # as in a new process
    fitted = small(checkpoint=tmp_path, callbacks=[average]).fit(*blobs)
    assert average.losses == [epoch["loss"] for epoch in fitted.history_]


def test_data_of_callbacks_are_not_stored(blobs, tmp_path):
    class Keeps(Callback):
        def __init__(self, X):
            self.X = X

        def on_train_begin(self, net, X, y, **kwargs):
            self.X_ = X

    X, y = blobs
    sizes = []
    for keeps in (Keeps(None), Keeps(np.zeros((1000, 1000)))):
        folder = tmp_path / str(len(sizes))
        crash(small(checkpoint=folder, callbacks=[keeps]), X, y)
        sizes.append(max(path.stat().st_size for path in folder.iterdir()))
    assert sizes[1] < sizes[0] + 1000


# ---- whose folder it is


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_epochs": 5}, "max_epochs was 4, and is 5"),
        ({"learning_rate": 1e-4}, "learning_rate was 0.001, and is 0.0001"),
        ({"cls": SoftTripleEmbedder}, "embedder was skdml._methods.raw.RAWEmbedder, and is skdml.*SoftTriple"),
        ({"backbone": nn.Linear(6, 6)}, "backbone was None, and is torch.nn.modules.linear.Linear [0-9a-f]{32}"),
        ({"random_state": np.random.RandomState(0)}, "random_state was 0, and is a RandomState in the state"),
        ({"callbacks": [Freezer("*", at=9)]}, "callbacks was .*, and is .*Freezer"),
        ({"n_jobs": 2, "verbose": 2}, None),
    ],
)
def test_other_parameters_are_named(change, message, finished, blobs, tmp_path, capsys):
    X, y = blobs
    if finished:
        small(checkpoint=tmp_path, learning_rate=1e-3).fit(X, y)
    else:
        crash(small(checkpoint=tmp_path, learning_rate=1e-3), X, y)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = small(checkpoint=tmp_path, **{"learning_rate": 1e-3} | change)
    if message is None:
        changed.fit(X, y)
        return
    with pytest.raises(ValueError, match=f"belongs to another fit: [^;]*{message}.* delete the folder"):
        changed.fit(X, y)
    assert not hasattr(changed, "network_")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_other_data_are_named(blobs, tmp_path, monkeypatch):
    X, y = blobs
    weights = np.ones(60)
    crash(small(checkpoint=tmp_path), X, y, sample_weight=weights)
    other_X, other_y = X.copy(), y.copy()
    other_X[7, 3] = np.nextafter(other_X[7, 3], 9)
    other_y[0] = 3
    for data, names in (
        ((other_X, y, weights), ["X"]),
        ((X, other_y, weights), ["y"]),
        ((X, y, None), ["sample_weight"]),
        ((other_X, y + 1, 2 * weights), ["X", "y", "sample_weight"]),
        ((X[:-1], y[:-1], weights[:-1]), ["X", "y", "sample_weight"]),
    ):
        with pytest.raises(ValueError, match="belongs to another fit") as error:
            small(checkpoint=tmp_path).fit(*data)
        assert re.findall(r"(\w+) was ", str(error.value)) == names
    before = checkpoint_module.versions()
    monkeypatch.setattr(checkpoint_module, "versions", lambda: before | {"torch": "1.0"})
    with pytest.raises(ValueError, match=f"fit: torch was '?{re.escape(before['torch'])}'?, and is '?1.0"):
        small(checkpoint=tmp_path).fit(X, y, sample_weight=weights)
    monkeypatch.undo()
    small(checkpoint=tmp_path).fit(X.tolist(), y.tolist(), sample_weight=weights)  # the same data in another container
    assert Watch.n_epochs == 2


def test_the_weights_of_modules_are_compared(blobs, tmp_path):
    torch.manual_seed(0)
    backbone = nn.Linear(6, 6)
    crash(small(checkpoint=tmp_path, backbone=backbone), *blobs)
    with torch.no_grad():
        backbone.bias[0] += 1
    with pytest.raises(ValueError, match="fit: backbone was"):
        small(checkpoint=tmp_path, backbone=backbone).fit(*blobs)


def test_searches_are_resumed(blobs, tmp_path):
    """Each candidate and fold has its state: what was finished is not trained again, and the rest goes on."""
    X, y = blobs
    steps = StandardScaler(), small(checkpoint=tmp_path)
    grid = {"rawembedder__learning_rate": [1e-3, 1e-2]}

    def search(estimator):
        return GridSearchCV(estimator, grid, cv=2, error_score="raise")

    whole = search(make_pipeline(StandardScaler(), small())).fit(X, y)
    assert Watch.n_epochs == 5 * 4
    Watch.n_epochs = 0

    class Fourth(Watch):
        """Crashes in the third epoch of the fourth fit."""

        def on_epoch_end(self, net, **kwargs):
            Watch.n_epochs += 1
            if Watch.n_epochs == 3 * 4 + 3 and not Fourth.done:
                Fourth.done = True
                raise Crash

    Fourth.done = False
    steps[1].set_params(callbacks=[Fourth()])
    with pytest.raises(Crash):
        search(make_pipeline(*steps)).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 4
    Watch.n_epochs = 0
    resumed = search(make_pipeline(*steps)).fit(X, y)
    assert Watch.n_epochs == 2 + 4
    assert np.array_equal(resumed.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"])
    assert_same(resumed.best_estimator_[-1], whole.best_estimator_[-1])
    assert all(os.listdir(folder) == [RESULT] for folder in tmp_path.iterdir())

    ensemble = FoldEnsembleEmbedder(steps[1], cv=2).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 5 + 2
    Watch.n_epochs = 0
    again = FoldEnsembleEmbedder(steps[1], cv=2).fit(X, y)
    assert Watch.n_epochs == 0
    assert np.array_equal(again.transform(X), ensemble.transform(X))


def test_a_clone_has_a_subfolder(blobs, tmp_path):
    X, y = blobs
    direct = small(checkpoint=tmp_path).fit(X, y)
    copies = [clone(direct), clone(direct).set_params(max_epochs=2)]
    for copy in copies:
        copy.fit(X, y)
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [RESULT]
    assert_same(copies[0], direct)
    assert vars(clone(small())).keys() == vars(small()).keys()


def test_a_saved_embedder_has_no_folder(blobs, tmp_path):
    fitted = clone(SoftTripleEmbedder(max_epochs=1, checkpoint=tmp_path / "states")).fit(*blobs)
    fitted.save(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "params.json").read_text()
    loaded = skdml.load(tmp_path / "saved")
    assert loaded.checkpoint is None
    assert np.array_equal(loaded.transform(blobs[0]), fitted.transform(blobs[0]))


# ---- how it ends


def test_ctrl_c_leaves_the_state(blobs, tmp_path):
    X, y = blobs
    whole = small().fit(X, y)
    stopped = small(checkpoint=tmp_path)
    crash(stopped, X, y, at=2, error=KeyboardInterrupt)
    assert stopped.n_iter_ == 2
    assert os.listdir(tmp_path) == [STATE]
    assert_same(stopped.fit(X, y), whole)
    assert Watch.n_epochs == 3


def test_what_a_process_killed_at_the_end_left_is_removed(blobs, tmp_path):
    crash(small(checkpoint=tmp_path), *blobs)
    states = {path: path.read_bytes() for path in tmp_path.iterdir()}
    whole = small(checkpoint=tmp_path).fit(*blobs)
    for path, content in [*states.items(), *((tmp_path / f".{name}-{'0' * 32}", b"half") for name in (STATE, RESULT))]:
        path.write_bytes(content)
    assert_same(small(checkpoint=tmp_path).fit(*blobs), whole)
    assert os.listdir(tmp_path) == [RESULT]


def test_an_early_end_is_an_end(blobs, tmp_path):
    params = {"early_stopping": True, "n_iter_no_change": 1, "validation_fraction": 0.3, "max_epochs": 50}
    fitted = small(checkpoint=tmp_path, **params).fit(*blobs)
    assert fitted.n_iter_ < 50
    assert os.listdir(tmp_path) == [RESULT]


def test_a_finished_fit_is_small_and_quick(blobs, tmp_path):
    fitted = small(checkpoint=tmp_path, memory_size=40, early_stopping=True, validation_fraction=0.3).fit(*blobs)
    n_bytes = sum(p.nbytes for p in [*fitted.network_.state_dict().values(), *fitted.criterion_.state_dict().values()])
    assert (tmp_path / RESULT).stat().st_size < n_bytes + 6000


def test_a_damaged_file_is_named(blobs, tmp_path):
    crash(small(checkpoint=tmp_path), *blobs)
    for name in (STATE, RESULT):
        content = (tmp_path / name).read_bytes()
        for damaged in (content[: len(content) // 2], b""):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{name} is damaged: .*Delete it to train anew"):
                small(checkpoint=tmp_path).fit(*blobs)
        (tmp_path / name).write_bytes(content)
        small(checkpoint=tmp_path).fit(*blobs)


def test_what_takes_long_is_written_less_often(blobs, tmp_path, monkeypatch):
    """Each write takes a second of a clock that otherwise advances by a second per epoch."""
    clock = [0.0]
    written = []

    def write(path, state):
        clock[0] += 1
        written.append(len(state.get("history", ())))
        write_state(path, state)

    class Second(Callback):
        def on_epoch_end(self, net, **kwargs):
            clock[0] += 1

    write_state = checkpoint_module.write_state
    monkeypatch.setattr(checkpoint_module, "QUICK", 0.05)
    monkeypatch.setattr(checkpoint_module, "write_state", write)
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: clock[0])
    small(checkpoint=tmp_path, max_epochs=100, callbacks=[Second()]).fit(*blobs)
    assert written == [0, 34, 68, 100]  # the folder, two states and the result


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_killed_processes_are_resumed(blobs, tmp_path):
    """kill -9 at random moments after a few epochs more, again and again."""

    def fitted(folder):
        return small(SoftTripleEmbedder, checkpoint=folder, max_epochs=60, early_stopping=True, n_iter_no_change=99)

    def n_done():
        state = read_state(tmp_path / STATE, torch.device("cpu"))
        return len(state["history"]) if state else 0

    whole = fitted(None).fit(*blobs)
    rng = np.random.default_rng()
    for n_killed in range(5):
        process = multiprocessing.get_context("fork").Process(target=fitted(tmp_path).fit, args=blobs)
        process.start()
        while n_done() < 8 * n_killed + 1:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    Watch.n_epochs = 0
    resumed = fitted(tmp_path).fit(*blobs)
    assert Watch.n_epochs <= 60 - 32
    assert_same(resumed, whole)
    assert os.listdir(tmp_path) == [RESULT]


@pytest.mark.skipif(checkpoint_module.fcntl is None, reason="needs file locks")
def test_equal_fits_at_once_are_one_fit(blobs, tmp_path):
    X, y = blobs
    fits = [small(checkpoint=tmp_path, max_epochs=10) for _ in range(3)]
    threads = [threading.Thread(target=fit.fit, args=(X, y)) for fit in fits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Watch.n_epochs == 10
    assert_same(fits[0], fits[1])
    assert_same(fits[0], fits[2])


# ---- what is refused


def test_what_cannot_be_resumed_is_refused(blobs, tmp_path):
    X, y = blobs
    with pytest.raises(ValueError, match=r"LoadInitState .* Set the parameter checkpoint to a folder"):
        small(callbacks=[LoadInitState(TrainEndCheckpoint(dirname=str(tmp_path)))]).fit(X, y)
    with pytest.raises(ValueError, match="checkpoint='state' keeps the state of a fit, but partial_fit has none"):
        small(checkpoint="state").partial_fit(X, y)
    with pytest.raises(ValueError, match="checkpoint='' names no folder"):
        small(checkpoint="").fit(X, y)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"checkpoint='.*file' is a file or lies in one, but must be a folder"):
        small(checkpoint=tmp_path / "file").fit(X, y)


def test_a_state_that_cannot_be_stored_is_an_error(blobs, tmp_path):
    class Records(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("net", net)

    failed = small(checkpoint=tmp_path, callbacks=[Records()])
    with pytest.raises(TypeError, match=r"cannot be stored in checkpoint=.*EmbeddingNet has no exact form"):
        failed.fit(*blobs)
    assert not hasattr(failed, "network_")


def test_a_full_disk_is_an_error_that_can_be_resumed_from(blobs, tmp_path, monkeypatch):
    X, y = blobs
    whole = small().fit(X, y)
    write = checkpoint_module.write_state

    def full(path, state):
        if len(state.get("history", ())) == 3:
            raise OSError(28, "No space left on device")
        write(path, state)

    monkeypatch.setattr(checkpoint_module, "write_state", full)
    failed = small(checkpoint=tmp_path)
    with pytest.raises(OSError, match=r"No space left on device\. The folder checkpoint=.* cannot be written to"):
        failed.fit(X, y)
    assert not hasattr(failed, "network_")
    monkeypatch.undo()
    assert_same(failed.fit(X, y), whole)
