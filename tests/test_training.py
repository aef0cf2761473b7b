"""The engine: steps, schedules, stopping, callbacks, failures. SoftTriple stands for every method."""

import gc
import itertools
import pickle
import re
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from skorch import callbacks as skorch_callbacks
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from torch import nn

import skdml
from skdml import (
    FoldEnsembleEmbedder,
    NormSoftmaxEmbedder,
    RAWEmbedder,
    RecallSurrogateEmbedder,
    SmartMiningEmbedder,
    SoftTripleEmbedder,
    SSTEmbedder,
    TripletEmbedder,
    map_at_r,
    recall_at_k,
)
from skdml._engine.callbacks import SHARES, one_cycle
from skdml._engine.embedder import BaseEmbedder
from skdml._engine.parameters import LEARNING_RATE, TOTAL_MOVE, WIDTH_MOVE
from skdml._engine.training import hold_out
from skdml._network.random import seeded


def embedder(cls=SoftTripleEmbedder, **params):
    params = {"max_epochs": 4, "batch_size": 60, "random_state": 0, "device": "cpu"} | params
    return cls(**({"n_centers": 2} if cls is SoftTripleEmbedder else {}) | params)


class Recorder(Callback):
    """Keeps what it sees in a list of the class, for callbacks are copied at fit."""

    seen = None

    def __init__(self, look):
        self.look = look

    def on_train_begin(self, net, **kwargs):
        type(self).seen = []

    def on_batch_end(self, net, **kwargs):
        self.seen.append(self.look(net))


class Residual(nn.Module):
    """The default network over blobs before its normalization, written by hand; X is divided by ``unit``."""

    def __init__(self, unit):
        super().__init__()
        self.linear = nn.Linear(6, 64)
        self.hidden = nn.Sequential(nn.Linear(6, 256), nn.ReLU())
        self.output = nn.Linear(256, 64, bias=False)
        for parameter in [*self.linear.parameters(), *self.output.parameters()]:
            nn.init.zeros_(parameter)
        self.unit = unit

    def forward(self, x, strength=1.0):
        x = x / self.unit
        return nn.functional.pad(x, (0, 58)) + strength * (self.linear(x) + self.output(self.hidden(x)))


def test_two_epochs_equal_a_loop_written_by_hand(blobs):
    """Same start, same batches, torch's own AdamW: the weights and the embeddings agree."""
    X, y = blobs
    fitted = embedder(lr_schedule=None, max_epochs=2, batch_size=20, learning_rate=3e-3).fit(X, y)

    with seeded(np.random.RandomState(0).randint(2**31 - 1), torch.device("cpu")):
        network = Residual(float((X**2).mean() ** 0.5))
        criterion = fitted._make_loss(4, fitted.network_)
    optimizer = torch.optim.AdamW(
        [{"params": network.parameters(), "lr": 3e-3}, {"params": criterion.parameters(), "lr": 3e-3}],
        weight_decay=1e-4,
    )
    generator = torch.Generator().manual_seed(int(np.random.RandomState(0).randint(2**31 - 1)))
    losses = []
    for _ in range(2):
        for index in torch.randperm(60, generator=generator).split(20):
            optimizer.zero_grad()
            z = nn.functional.normalize(network(torch.from_numpy(X)[index]))
            loss = criterion(z, torch.from_numpy(y)[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose([e["loss"] for e in fitted.history_], np.reshape(losses, (2, 3)).mean(1), rtol=1e-4)
    ours, hand = dict(fitted.network_.head.named_parameters()), dict(network.named_parameters())
    assert ours.keys() == hand.keys()
    for name, mine in ours.items():
        torch.testing.assert_close(mine, hand[name], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        Z = nn.functional.normalize(network(torch.from_numpy(X), strength=0.5))
    np.testing.assert_allclose(fitted.transform(X), Z, atol=1e-4)


def test_one_cycle_is_the_policy_of_torch():
    """OneCycleLR takes its last step at the end of the descent; ours comes one step short of it."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=2001, pct_start=300.0001 / 2000)
    expected = []
    for _ in range(2000):
        expected.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose([one_cycle(step / 2000) for step in range(2000)], expected, atol=5e-3)


def test_one_cycle_moves_every_group_each_batch(blobs):
    look = Recorder(lambda net: [(group["lr"], group["betas"][0]) for group in net.optimizer_.param_groups])
    embedder(callbacks=[look], batch_size=20, learning_rate=3e-3, center_learning_rate=1e-2).fit(*blobs)
    seen = np.array(Recorder.seen)  # (steps, groups: network and centers, lr and momentum)
    expected = np.array([one_cycle(step / 12) for step in range(12)])
    np.testing.assert_allclose(seen[:, 0], expected * [3e-3, 1])
    np.testing.assert_allclose(seen[:, 1], expected * [1e-2, 1])


@pytest.mark.parametrize(
    ("params", "constant"),
    [({}, False), ({"early_stopping": True}, True), ({"warm_start": True}, True), ({"lr_schedule": None}, True)],
)
def test_lr_schedule_auto(hidden, params, constant):
    look = Recorder(lambda net: net.optimizer_.param_groups[0]["lr"])
    embedder(callbacks=[look], learning_rate=1e-2, **params).fit(*hidden)
    assert (len(set(Recorder.seen)) == 1) == constant


def rate(X, y, cls=SoftTripleEmbedder, **params):
    """Return the network's learning rate at its highest, from the first two epochs of a training."""
    stop = EarlyStopping("train_loss", patience=1, threshold=1e9, threshold_mode="abs")
    look = Recorder(lambda net: net.lr)
    fitted = embedder(cls, callbacks=[look, stop], **params).fit(X, y)
    assert fitted.n_iter_ <= 2
    (lr,) = set(Recorder.seen)
    return lr


@pytest.mark.parametrize("lr_schedule", ["one_cycle", None])
def test_learning_rate_auto_moves_long_and_short_trainings_equally_far(blobs, lr_schedule):
    """60 rows in batches of 20 are 3 steps an epoch; a constant rate is half of the highest of a cycle, its mean."""
    params = {"batch_size": 20, "lr_schedule": lr_schedule}
    rates = [rate(*blobs, max_epochs=n, **params) for n in (5000, 50000)]
    share = 1 if lr_schedule else 0.5
    np.testing.assert_allclose(rates, [share * TOTAL_MOVE / (3 * n) for n in (5000, 50000)])
    assert rate(*blobs, max_epochs=5000, **params | {"batch_size": 30}) == pytest.approx(rates[0] * 3 / 2)


def test_learning_rate_auto_of_a_short_training_falls_with_the_columns():
    y = np.arange(60) % 4
    tables = {n: np.random.default_rng(0).normal(size=(60, n)) for n in (1, 2, 8, 128, 640)}
    rates = {n: rate(X, y) for n, X in tables.items()}
    assert rates[128] == pytest.approx(WIDTH_MOVE / 128)
    assert rates[640] == pytest.approx(WIDTH_MOVE / 640)
    assert rates[1] == rates[2] == rates[8]  # few are counted as some more
    assert rates[128] < rates[8] < 0.1
    assert rate(tables[128], y, lr_schedule=None) == pytest.approx(rates[128] / 2)
    assert rate(tables[128], y, RAWEmbedder) == rates[128]


def test_learning_rate_auto_elsewhere(blobs, hidden):
    """Of the rows that early stopping leaves, of one epoch in partial_fit, and of other networks."""
    X, y = blobs
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    assert rate(images, y) == LEARNING_RATE
    assert rate(X, y, backbone=nn.Linear(6, 8)) == LEARNING_RATE
    assert rate(X, y, backbone=nn.Linear(6, 128), freeze="backbone") == pytest.approx(WIDTH_MOVE / 128)
    # 140 of 200 rows are 7 batches of 20, at a constant rate
    stopped = {"batch_size": 20, "early_stopping": True, "validation_fraction": 0.3}
    look = Recorder(lambda net: net.lr)
    embedder(callbacks=[look], max_epochs=10**6, n_iter_no_change=1, **stopped).fit(*hidden)
    np.testing.assert_allclose(Recorder.seen, 0.5 * TOTAL_MOVE / 7e6)
    embedder(callbacks=[look], batch_size=20, max_epochs=10**6).partial_fit(X, y)
    np.testing.assert_allclose(Recorder.seen, 0.5 * TOTAL_MOVE / 3e6)


@pytest.mark.parametrize("learning_rate", [1e-5, 0.7])
def test_learning_rate_is_taken_as_it_is(blobs, learning_rate):
    for params in ({}, {"max_epochs": 5000}, {"lr_schedule": None}, {"backbone": nn.Linear(6, 8)}):
        assert rate(*blobs, learning_rate=learning_rate, **params) == learning_rate


def test_skorch_lr_scheduler(blobs):
    scheduler = LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    look = Recorder(lambda net: net.optimizer_.param_groups[0]["lr"])
    embedder(callbacks=[("lr", scheduler), look], learning_rate=3e-3).fit(*blobs)
    np.testing.assert_allclose(Recorder.seen, 3e-3 * 0.5 ** np.arange(4))
    with pytest.raises(ValueError, match="lr_schedule=None"):
        embedder(callbacks=[scheduler], lr_schedule="one_cycle").fit(*blobs)


def test_skorch_early_stopping(blobs):
    fitted = embedder(
        callbacks=[EarlyStopping("train_loss", patience=2, threshold=9.0, threshold_mode="abs")], max_epochs=9
    )
    assert fitted.fit(*blobs).n_iter_ == 3


def test_skorch_checkpoint(blobs, tmp_path):
    checkpoint = Checkpoint(monitor="train_loss_best", dirname=tmp_path)
    fitted = embedder(callbacks=[checkpoint, GradientNormClipping(1.0)]).fit(*blobs)
    assert fitted.history_[-1]["loss"] == min(e["loss"] for e in fitted.history_)
    saved = torch.load(tmp_path / "params.pt")
    for name, value in fitted.network_.state_dict().items():
        torch.testing.assert_close(saved[name], value)
    torch.testing.assert_close(torch.load(tmp_path / "criterion.pt")["centers"], fitted.criterion_.centers.detach())


@pytest.mark.parametrize(
    "options",
    [
        {"f_pickle": "net.pkl"},
        {"f_pickle": "net_{last_epoch[epoch]}.pkl", "fn_prefix": "a-", "monitor": None},
        {"f_pickle": "net.pkl", "monitor": lambda net: True, "load_best": True, "sink": print},
        {"use_safetensors": True, "f_optimizer": None, "load_best": True},
    ],
    ids=["pickle", "epochs", "best", "safetensors"],
)
def test_options_of_checkpoints(options, blobs, tmp_path):
    X, y = blobs
    checkpoint = Checkpoint(**{"monitor": "train_loss_best", "dirname": str(tmp_path), **options})
    fitted = embedder(callbacks=[checkpoint], early_stopping=True, validation_fraction=0.3, verbose=1).fit(X, y)
    assert len(list(tmp_path.iterdir())) >= 3
    for file in tmp_path.glob("*.pkl"):
        net = pickle.loads(file.read_bytes())
        assert net.module_(torch.from_numpy(X)).shape == fitted.transform(X).shape
        assert net.history[-1, "train_loss"] > 0
        assert net.valid_set is None


@pytest.mark.parametrize("named", [False, True])
def test_callbacks_are_copied_and_can_record(blobs, named):
    class Norm(Callback):
        def __init__(self):
            self.epochs = []
            self.file = threading.Lock()  # such as a SummaryWriter holds; no deep copy can be made of it

        def on_epoch_end(self, net, **kwargs):
            self.touched_ = True
            self.epochs.append(len(net.history))
            net.history.record("norm", 2.0)

    callback = Norm()
    fitted = embedder(callbacks=[("norm", callback) if named else callback]).fit(*blobs)
    assert not hasattr(callback, "touched_")
    assert callback.epochs == [1, 2, 3, 4]
    assert [epoch["norm"] for epoch in fitted.history_] == [2.0] * 4


@pytest.mark.parametrize(
    ("callbacks", "error", "message"),
    [
        ([print], TypeError, "skorch callbacks"),
        ([EpochScoring("accuracy")], TypeError, "EpochScoring scores predictions"),
        ([skorch_callbacks.BatchScoring("accuracy")], TypeError, "BatchScoring scores predictions"),
        (
            [LRScheduler("ReduceLROnPlateau", step_every="batch")],
            ValueError,
            "'train_loss' after each batch, but it is",
        ),
        ([EarlyStopping], ValueError, "monitors 'valid_loss', which is not recorded"),
        ([Checkpoint(monitor="valid_recall_at_1_best")], ValueError, "early_stopping=True"),
    ],
)
def test_unfit_callbacks(blobs, callbacks, error, message):
    with pytest.raises(error, match=message):
        embedder(callbacks=callbacks).fit(*blobs)


def test_callbacks_get_what_skorch_gives_them(blobs):
    """X and y as they were given; loss and embeddings of each step without a graph, of the rows of the batch."""
    X, y = blobs
    seen = {"begin": [], "end": [], "grad": [], "loss": [], "train end": []}

    class Contract(Callback):
        def on_train_begin(self, net, X, y, **kwargs):
            seen["begin"].append((X, y))

        def on_train_end(self, net, X, y, **kwargs):
            seen["train end"].append((X, y))

        def on_grad_computed(self, net, named_parameters, batch=None, training=None, **kwargs):
            seen["grad"].append((dict(named_parameters), batch, training))

        def on_batch_end(self, net, batch, training, loss, y_pred, **kwargs):
            inputs, labels = batch
            assert training
            assert loss.shape == ()
            assert not loss.requires_grad
            assert not y_pred.requires_grad
            assert y_pred.shape == (20, 64)
            assert inputs.shape == (20, 6)
            assert labels.shape == (20,)
            seen["loss"].append(loss.item())

    for cls in (SoftTripleEmbedder, SSTEmbedder, SmartMiningEmbedder):
        params = {"batch_size": 20 if cls is SoftTripleEmbedder else 60, "max_epochs": 1}
        if cls is SoftTripleEmbedder:
            fitted = embedder(callbacks=[Contract()], **params).fit(X, y)
            assert fitted.history_[0]["loss"] == pytest.approx(np.mean(seen["loss"]))
        else:  # batches of a tuple of more than the labels
            embedder(cls, callbacks=[ThroughBatches()], **params).fit(X, y)
    for begun in seen["begin"] + seen["train end"]:
        assert begun[0] is X
        assert begun[1] is y
    names, batch, training = seen["grad"][0]
    assert {"head.linear.weight", "centers"} <= set(names)
    assert len(batch) == 2
    assert training


class ThroughBatches(Callback):
    def on_batch_end(self, net, batch, training, loss, y_pred, **kwargs):
        inputs, labels = batch
        assert len(inputs) == len(labels) == len(y_pred)


def freezing(net):
    return len(net.history) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: skorch_callbacks.InputShapeSetter(),
        lambda folder: ("shape", skorch_callbacks.InputShapeSetter(param_name="n_in")),
        lambda folder: skorch_callbacks.InputShapeSetter,
        lambda folder: skorch_callbacks.ProgressBar(),
        lambda folder: skorch_callbacks.ProgressBar(batches_per_epoch="count"),
        lambda folder: skorch_callbacks.PrintLog(),
        lambda folder: skorch_callbacks.EpochTimer(),
        lambda folder: skorch_callbacks.PassthroughScoring("event_lr", on_train=True),
        lambda folder: LRScheduler("StepLR", step_size=2, step_every="batch"),
        lambda folder: LRScheduler("ReduceLROnPlateau", monitor=lambda net: 1.0, step_every="batch"),
        lambda folder: LRScheduler("ReduceLROnPlateau", monitor="train_loss"),
        lambda folder: GradientNormClipping(0.1),
        lambda folder: EarlyStopping("train_loss", load_best=True),
        lambda folder: skorch_callbacks.Freezer("head.linear.*"),
        lambda folder: skorch_callbacks.Unfreezer("*", at=freezing),
        lambda folder: skorch_callbacks.Initializer("head.linear.bias", fn=nn.init.ones_),
        lambda folder: Checkpoint("train_loss_best", dirname=folder, load_best=True),
        lambda folder: skorch_callbacks.TrainEndCheckpoint(dirname=folder),
    ],
)
def test_callbacks_of_skorch_work(blobs, tmp_path, make, capsys):
    fitted = embedder(callbacks=[make(str(tmp_path))], max_epochs=2, batch_size=20).fit(*blobs)
    assert fitted.n_iter_ == 2
    assert set(fitted.history_[0]) <= {"epoch", "loss", "duration", "event_lr", "event_cp"}
    if (tmp_path / "train_end_params.pt").exists():
        saved = torch.load(tmp_path / "train_end_params.pt")
        assert all(value.equal(saved[name]) for name, value in fitted.network_.state_dict().items())


def test_a_callback_does_not_replace_the_network(blobs):
    class Wider(Callback):
        def on_train_begin(self, net, X, y, **kwargs):
            net.set_params(module__input_dim=X.shape[-1])

    with pytest.raises(ValueError, match="sets 'module__input_dim', but the network"):
        embedder(callbacks=[Wider()]).fit(*blobs)


class Overfit(nn.Module):
    """A backbone that is spoilt from its n-th pass in training on."""

    def __init__(self, n_good):
        super().__init__()
        self.linear = nn.Linear(30, 30)
        nn.init.eye_(self.linear.weight)
        self.n_good = n_good
        self.register_buffer("n_passes", torch.zeros(()))

    def forward(self, x):
        self.n_passes += self.training
        return self.linear(x) * (self.n_passes <= self.n_good)


def stopping(**params):
    """An embedder with early stopping that becomes better over `hidden`, with a third of the samples held out."""
    params = {"learning_rate": 3e-2, "batch_size": 20, "validation_fraction": 0.3} | params
    return embedder(early_stopping=True, **params)


def scores(epoch):
    return epoch["validation_recall_at_1"], epoch["validation_map_at_r"]


def held_out(y, split, fraction):
    """Return the rows that a fit of seed 0 trains on, and those that it holds out."""
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)  # the seed of the fit is drawn first
    return hold_out(y, split, fraction, rng)


def test_early_stopping_restores_the_best_epoch(hidden):
    """Two good epochs of 7 batches; after them all embeddings are equal and the criterion's centers drift."""
    X, y = hidden
    backbone = Overfit(14)
    params = {"backbone": backbone, "learning_rate": 3e-3}
    fitted = stopping(n_iter_no_change=3, max_epochs=50, **params).fit(X, y)
    best = int(max(range(fitted.n_iter_), key=lambda epoch: scores(fitted.history_[epoch])))
    assert fitted.n_iter_ == best + 1 + 3
    assert best == 1
    assert fitted.network_.backbone.n_passes == 7 * (best + 1)
    short = stopping(max_epochs=best + 1, **params).fit(X, y)
    np.testing.assert_array_equal(fitted.transform(X), short.transform(X))
    np.testing.assert_array_equal(fitted.centers_, short.centers_)


@pytest.mark.parametrize("split", ["samples", "classes"])
def test_early_stopping_scores_the_held_out_rows(hidden, split):
    X, y = hidden
    fitted = stopping(validation_split=split, max_epochs=5).fit(X, y)
    train_rows, valid_rows = held_out(y, split, 0.3)
    assert sorted([*train_rows, *valid_rows]) == list(range(200))
    fitted.network_.head.strength.fill_(0.5)  # as in the epochs; it was chosen after them
    Z = fitted.transform(X[valid_rows])
    best = max(map(scores, fitted.history_))
    assert best == (pytest.approx(recall_at_k(Z, y[valid_rows])), pytest.approx(map_at_r(Z, y[valid_rows])))


def test_equal_recall_is_decided_by_the_mean_average_precision(hidden):
    """Held-out classes are found at once by Recall@1, which from then on cannot rise."""
    X, y = hidden
    fitted = stopping(validation_split="classes", validation_fraction=0.1, max_epochs=10).fit(X, y)
    recalls, maps = np.transpose([scores(epoch) for epoch in fitted.history_])
    (tied,) = np.nonzero(recalls == recalls.max())
    assert recalls.max() == 1
    assert len(np.unique(maps[tied])) > 1
    best = tied[maps[tied].argmax()]
    assert best > tied[0]
    short = stopping(validation_split="classes", validation_fraction=0.1, max_epochs=best + 1).fit(X, y)
    np.testing.assert_array_equal(fitted.centers_, short.centers_)


@pytest.mark.parametrize("split", ["samples", "classes"])
def test_the_start_is_kept_where_every_epoch_is_worse(hidden, split):
    X, y = hidden
    embedder = stopping(validation_split=split, learning_rate=1e3, n_iter_no_change=2, max_epochs=20)
    _, rows = held_out(y, split, 0.3)
    start = recall_at_k(X[rows], y[rows]), map_at_r(X[rows], y[rows])
    message = r"start \(Recall@1 {:.3f}, MAP@R {:.3f}\), .*\. Lower learning_rate, or hold out more".format(*start)
    with pytest.warns(ConvergenceWarning, match=message):
        embedder.fit(X, y)
    assert embedder.n_iter_ == 2
    assert all(scores(epoch) < start for epoch in embedder.history_)
    assert embedder.network_.head.strength == 0.5
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.transform(X), np.pad(Z, [(0, 0), (0, 34)]), atol=1e-6)


def test_an_epoch_that_is_as_good_as_the_start_counts_more(blobs):
    """Classes that are apart from the start: what was learned is kept, that of the first epoch, without a warning."""
    X, y = blobs
    fitted = embedder(early_stopping=True, learning_rate=1e-3, n_iter_no_change=2, max_epochs=20).fit(X, y)
    assert [scores(epoch) for epoch in fitted.history_] == [(1, 1)] * 3
    one = embedder(early_stopping=True, learning_rate=1e-3, max_epochs=1).fit(X, y)
    np.testing.assert_array_equal(fitted.transform(X), one.transform(X))
    np.testing.assert_array_equal(fitted.centers_, one.centers_)
    assert (fitted.network_.head.linear.weight != 0).any()
    assert fitted.network_.head.strength == 0.5


@pytest.mark.parametrize("split", ["samples", "classes"])
@pytest.mark.parametrize("learning_rate", [1e-2, 3e-2])
def test_strength_is_chosen_on_the_held_out_rows(hidden, split, learning_rate):
    X, y = hidden
    fitted = stopping(validation_split=split, learning_rate=learning_rate).fit(X, y)
    _, rows = held_out(y, split, 0.3)
    strength = fitted.network_.head.strength.item()
    results = {}
    for candidate in (0.0, *SHARES):
        fitted.network_.head.strength.fill_(candidate)
        Z = fitted.transform(X[rows])
        results[candidate] = float(recall_at_k(Z, y[rows])), float(map_at_r(Z, y[rows]))
    assert len(set(results.values())) > 3
    assert results[strength] == max(results.values())
    assert strength != 0.5  # the choice made a difference
    assert strength in SHARES


def test_strength_stays_where_nothing_is_held_out(hidden):
    assert embedder(learning_rate=3e-2).fit(*hidden).network_.head.strength == 0.5


@pytest.mark.parametrize("early_stopping", [False, True])
def test_learned_share_over_vectors(hidden, early_stopping):
    X, y = hidden
    params = {"learning_rate": 3e-2, "early_stopping": early_stopping, "n_components": None}
    none, some, full = (embedder(**params, learned_share=share).fit(X, y) for share in (0, 0.3, 1))
    assert [e.network_.head.strength.item() for e in (none, some, full)] == [0, pytest.approx(0.3), 1]
    np.testing.assert_allclose(none.transform(X), X / np.linalg.norm(X, axis=1, keepdims=True), atol=1e-6)
    weights = [e.network_.head.linear.weight for e in (none, some, full)]
    assert early_stopping or (weights[0].equal(weights[1]) and weights[1].equal(weights[2]))


def backbone():
    with seeded(1, torch.device("cpu")):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def float_tensors(fitted):
    return {k: v for k, v in fitted.network_.state_dict().items() if v.is_floating_point()}


@pytest.mark.parametrize("params", [{}, {"n_components": 3}, {"freeze": "batchnorm"}, {"warmup_epochs": 1}])
def test_weights_of_a_backbone_lie_between_the_start_and_the_end(blobs, params):
    X, y = blobs
    fits = [embedder(backbone=backbone(), learned_share=share, **params).fit(X, y) for share in (0, 0.25, 1, "auto")]
    start, between, end, default = map(float_tensors, fits)
    for name, tensor in backbone().state_dict().items():
        assert start[f"backbone.{name}"].equal(tensor) if f"backbone.{name}" in start else tensor.dtype == torch.int64
    assert any(not start[name].equal(end[name]) for name in start)
    for name in start:
        torch.testing.assert_close(between[name], torch.lerp(start[name], end[name], 0.25))
        torch.testing.assert_close(default[name], end[name])  # nobody knows whether a module is pretrained


@pytest.fixture
def named_backbone(monkeypatch):
    """The name of a backbone that no library is needed for."""
    monkeypatch.setattr("skdml._engine.estimator.load_backbone", lambda *args: (backbone(), None))
    return "timm/small"


def test_half_of_what_a_pretrained_backbone_learns_is_kept(blobs, named_backbone):
    X, y = blobs
    fits = [embedder(backbone=named_backbone, learned_share=share).fit(X, y) for share in ("auto", 0.5, 1)]
    auto, half, full = map(float_tensors, fits)
    assert all(auto[name].equal(half[name]) for name in auto)
    assert not auto["backbone.0.weight"].equal(full["backbone.0.weight"])


def test_a_share_of_random_weights_is_refused(blobs, named_backbone):
    X, y = blobs
    for case, X_fit in [
        ({"backbone": named_backbone, "backbone_weights": None}, X),
        ({}, np.zeros((60, 8, 8), dtype=np.uint8)),
    ]:
        with pytest.raises(ValueError, match=r"learned_share=0\.5 keeps a part .* random.*Set learned_share to 'auto'"):
            embedder(**case, learned_share=0.5).fit(X_fit, y)
        embedder(**case, max_epochs=1).fit(X_fit, y)


def test_a_warm_start_goes_on_from_all_that_was_learned(blobs):
    X, y = blobs
    fitted = embedder(backbone=backbone(), learned_share=0.5, warm_start=True).fit(X, y)
    middle = float_tensors(fitted)["backbone.0.weight"].clone()
    again = embedder(backbone=backbone(), learned_share=0.5, warm_start=True).fit(X, y)
    again.set_params(learned_share=1).fit(X, y)
    fitted.fit(X, y)
    assert not float_tensors(fitted)["backbone.0.weight"].equal(middle)
    torch.testing.assert_close(float_tensors(fitted), float_tensors(again))


def test_share_of_a_trained_backbone_is_chosen_on_held_out_rows(hidden):
    X, y = hidden
    with seeded(0, torch.device("cpu")):
        network = nn.Sequential(nn.Linear(30, 30))
        nn.init.eye_(network[0].weight)
    params = {"backbone": network, "validation_split": "classes", "learning_rate": 3e-2, "max_epochs": 12}
    chosen = stopping(**params).fit(X, y)
    _, rows = held_out(y, "classes", 0.3)

    def result(fitted):
        Z = fitted.transform(X[rows])
        return float(recall_at_k(Z, y[rows])), float(map_at_r(Z, y[rows]))

    fits = {share: stopping(**params, learned_share=share).fit(X, y) for share in SHARES}
    results = {share: result(fitted) for share, fitted in fits.items()}
    assert len(set(results.values())) > 2
    assert result(chosen) == max(results.values())
    assert result(chosen) != results[1.0]  # the choice made a difference


@pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("size", [6, 32, 45])
def test_raw_input_that_is_better_is_named(size):
    """The default network over images starts at random; their pixels, averaged to 32 x 32, tell the classes apart."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 5)
    X = (128 + 20 * rng.normal(size=(20, size, size))[y] + 20 * rng.normal(size=(100, size, size))).astype(np.uint8)
    _, rows = held_out(y, "classes", 0.3)
    raw = (torch.from_numpy(X[rows])[:, None] - 127.0) / 128
    raw = nn.functional.adaptive_avg_pool2d(raw, min(size, 32)).flatten(1)
    expected = recall_at_k(raw, y[rows]), map_at_r(raw, y[rows])
    message = r"untrained input reaches Recall@1 {:.3f} and MAP@R {:.3f}, and the best epoch (0\.\d+) and (0\.\d+)\."
    message = message.format(*expected)
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        fitted = stopping(validation_split="classes", learning_rate=1e-9, max_epochs=1).fit(X, y)
    (best,) = [found.groups() for warning in caught if (found := re.search(message, str(warning.message)))]
    Z = fitted.transform(X[rows])
    np.testing.assert_allclose(np.float64(best), [recall_at_k(Z, y[rows]), map_at_r(Z, y[rows])], atol=6e-4)
    assert recall_at_k(Z, y[rows]) < expected[0]


@pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning")
def test_raw_input_is_not_compared_with_on_samples_of_the_training_classes(hidden):
    """Other warnings are errors: for these classes a network that starts at random learns more than for others."""
    X, y = hidden
    pixels = np.clip(128 + 20 * X[:, :6], 0, 255).astype(np.uint8).reshape(200, 2, 3)
    fitted = stopping(learning_rate=1e-9, max_epochs=1).fit(pixels, y)
    _, rows = held_out(y, "samples", 0.3)
    assert recall_at_k(fitted.transform(pixels[rows]), y[rows]) < recall_at_k(
        pixels[rows].reshape(60, 6) - 127.0, y[rows]
    )


def test_no_warning_where_learning_helps(hidden):
    """Warnings are errors: neither a network that starts at the input nor one behind a trained backbone warns."""
    for backbone in (None, Overfit(np.inf)):
        fitted = stopping(backbone=backbone, max_epochs=4, learning_rate=1e-2).fit(*hidden)
        assert scores(fitted.history_[-1]) > scores(fitted.history_[0])


@pytest.mark.parametrize("sizes", [[12] * 20, [4, 4, 4], [50, 5, 1, 2, 3], [1000, 2]])
def test_hold_out_leaves_pairs_on_both_sides(sizes):
    y = np.repeat(np.arange(len(sizes)), sizes)
    train_rows, valid_rows = hold_out(y, "samples", 0.1, np.random.RandomState(0))
    assert len(valid_rows) == pytest.approx(max(2, 0.1 * len(y)), abs=2)
    held = np.bincount(y[valid_rows], minlength=len(sizes))
    kept = np.bincount(y[train_rows])
    assert ((held == 0) | (held >= 2)).all()
    assert (kept[held > 0] >= 2).all()
    np.testing.assert_array_equal(held + kept, sizes)


@pytest.mark.parametrize(
    ("sizes", "fraction", "n_held_out"),
    [([12] * 20, 0.1, 2), ([12] * 20, 0.25, 5), ([3] * 4, 0.1, 2), ([2, 1, 1, 2, 1], 0.1, 2), ([9, 1] * 10, 0.5, 10)],
)
def test_hold_out_of_classes(sizes, fraction, n_held_out):
    """Whole ones of two or more samples, others in each fit; those of one sample stay in training."""
    order = np.random.default_rng(0).permutation(sum(sizes))
    y = np.repeat(np.arange(len(sizes)), sizes)[order]
    seen = set()
    for seed in range(5):
        train_rows, valid_rows = hold_out(y, "classes", fraction, np.random.RandomState(seed))
        assert sorted([*train_rows, *valid_rows]) == list(range(len(y)))
        assert (np.diff(train_rows) > 0).all()
        assert (np.diff(valid_rows) > 0).all()
        held = np.unique(y[valid_rows])
        assert len(held) == n_held_out
        assert not np.isin(y[train_rows], held).any()
        assert (np.array(sizes)[held] >= 2).all()
        seen.add(tuple(held))
    assert len(seen) > 1 or sum(np.array(sizes) >= 2) == n_held_out


@pytest.mark.parametrize(
    ("sizes", "fraction", "message"),
    [
        ([5, 5, 5], 0.1, "holds out 2 classes .* y has 3 classes, 3 of them"),
        ([5, 5], 0.1, "holds out 2 classes .* y has 2 classes, 2 of them"),
        ([5, 1, 1, 1, 1, 1], 0.1, "holds out 2 classes .* y has 6 classes, 1 of them"),
        ([5] * 10, 0.9, "validation_fraction=0.9 holds out 9 classes .* y has 10 classes, 10 of them"),
    ],
)
def test_hold_out_of_too_few_classes(sizes, fraction, message):
    y = np.repeat(np.arange(len(sizes)), sizes)
    X = np.random.default_rng(0).normal(size=(len(y), 3))
    message = f"validation_split='classes'.*{message}.*Set validation_split='samples'"
    with pytest.raises(ValueError, match=message):
        embedder(early_stopping=True, validation_split="classes", validation_fraction=fraction, batch_size=4).fit(X, y)


@pytest.mark.parametrize("split", ["samples", "classes"])
def test_hold_out_of_many_classes_takes_one_sort(split):
    """A pass over the labels for each of the 100,000 classes takes minutes."""
    start = time.perf_counter()
    hold_out(np.repeat(np.arange(100_000), 5), split, 0.1, np.random.RandomState(0))
    assert time.perf_counter() - start < 5


def test_early_stopping_with_too_few_samples():
    with pytest.raises(ValueError, match="no class has four samples"):
        embedder(early_stopping=True, batch_size=2).fit(np.eye(6), [0, 0, 1, 1, 2, 2])


@pytest.fixture(autouse=True)
def _interruptible():
    """Processes in the background may have been started with interrupts ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


class Interrupt(Callback):
    """Ctrl-C in a hook of the n-th epoch."""

    def __init__(self, hook, epoch):
        self.hook = hook
        self.epoch = epoch

    def on_train_begin(self, net, **kwargs):
        self.raise_in("train begin", net)

    def on_batch_end(self, net, **kwargs):
        self.raise_in("batch", net)

    def on_epoch_end(self, net, **kwargs):
        self.raise_in("epoch", net)

    def on_train_end(self, net, **kwargs):
        self.raise_in("train end", net)

    def raise_in(self, hook, net):
        if hook == self.hook and len(net.history) == self.epoch:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("hook", "epoch"), [("train begin", 0), ("batch", 1)])
def test_an_interrupt_before_the_first_whole_epoch_changes_nothing(blobs, method, hook, epoch):
    X, y = blobs
    fitted = embedder(callbacks=[Interrupt(hook, epoch)])
    with pytest.raises(KeyboardInterrupt):
        getattr(fitted, method)(X, y)
    assert not [name for name in vars(fitted) if name.endswith("_")]
    fitted.set_params(callbacks=None).fit(X, y)
    before = dict(vars(fitted))
    fitted.set_params(callbacks=[Interrupt(hook, epoch)])
    with pytest.raises(KeyboardInterrupt):
        getattr(fitted, method)(X, y)
    assert {**vars(fitted), "callbacks": None} == before


@pytest.mark.parametrize(
    ("hook", "epoch", "finished"), [("batch", 3, 2), ("epoch", 2, 2), ("epoch", 4, 4), ("train end", 4, 4)]
)
def test_an_interrupt_after_a_whole_epoch_leaves_a_fitted_estimator(blobs, hook, epoch, finished):
    X, y = blobs
    fitted = embedder(callbacks=[Interrupt(hook, epoch)])
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X, y)
    assert fitted.n_iter_ == len(fitted.history_) == finished
    assert all({"loss", "duration"} <= set(entry) for entry in fitted.history_)
    np.testing.assert_allclose(np.linalg.norm(fitted.transform(X), axis=1), 1, rtol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        embedder(callbacks=[Interrupt("epoch", 1)]).partial_fit(X, y)


@pytest.mark.parametrize("hook", ["batch", "epoch", "train end"])
def test_an_interrupt_restores_the_best_epoch_and_the_share(hidden, hook):
    """Two good epochs of 7 batches; the third is spoilt. The learned share is that of the whole fit."""
    X, y = hidden
    params = {"backbone": Overfit(14), "learning_rate": 3e-3, "learned_share": 0.5, "max_epochs": 3}
    fitted = stopping(**params, callbacks=[Interrupt(hook, 3)])
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X, y)
    assert fitted.n_iter_ == (2 if hook == "batch" else 3)
    np.testing.assert_array_equal(fitted.transform(X), stopping(**params).fit(X, y).transform(X))


def test_an_interrupt_in_validation_or_while_the_share_is_chosen(hidden, monkeypatch):
    """A fit of 3 epochs validates the start, each epoch, and the shares 0.5, 0.25, 0.75 and 1."""
    X, y = hidden
    original = skdml._engine.callbacks.validate
    calls = itertools.count(1)

    def validate(*args):
        if next(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr("skdml._engine.callbacks.validate", validate)
    monkeypatch.setattr("skdml._engine.net.validate", validate)
    for stop, n_iter in [(1, None), (2, None), (4, 2), (6, 3), (8, 3)]:
        calls = itertools.count(1)
        fitted = stopping(max_epochs=3)
        with pytest.raises(KeyboardInterrupt):
            fitted.fit(X, y)
        assert getattr(fitted, "n_iter_", None) == n_iter
        if n_iter:
            assert all("validation_recall_at_1" in epoch for epoch in fitted.history_)
        if stop >= 6:  # the best of the shares tried so far, not the one just tried
            assert fitted.network_.head.strength in ([0.5] if stop == 6 else [0.5, 0.25, 0.75])


def test_an_interrupt_ends_what_is_around_the_fit(blobs):
    """A search and an ensemble would go on with what an interrupted fit left."""
    X, y = blobs
    one = embedder(batch_size=20, callbacks=[Interrupt("epoch", 2)])
    search = GridSearchCV(one, {"tau": [0.1, 0.2]}, cv=2, error_score=0.0)
    for estimator in (search, FoldEnsembleEmbedder(one, cv=2), make_pipeline(StandardScaler(), one)):
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(X, y)
    with pytest.raises(NotFittedError):
        check_is_fitted(search, "cv_results_")


def test_an_interrupt_of_a_diverged_training_is_no_error_of_the_training(blobs):
    """A search with error_score would go on after a ValueError."""
    X, y = blobs
    fitted = embedder(callbacks=[Interrupt("epoch", 1), Spoil()])
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X, y)
    assert not hasattr(fitted, "network_")


class Spoil(Callback):
    def on_train_end(self, net, **kwargs):
        for parameter in net.module_.parameters():
            parameter.data.fill_(torch.nan)


def test_non_finite_loss_says_what_to_lower(blobs):
    X, y = blobs
    with pytest.raises(ValueError, match=r"not finite.*Lower learning_rate \(now 1e\+30\)"):
        embedder(learning_rate=1e30, normalize=False, optimizer="sgd").fit(X, y)


def linear(bias=True):
    with seeded(0, torch.device("cpu")):
        return nn.Linear(6, 8, bias=bias)


@pytest.mark.parametrize(
    "name",
    [name for name in skdml.__all__ if name.endswith("Embedder") and issubclass(getattr(skdml, name), BaseEmbedder)],
)
def test_embeddings_whose_length_overflows_are_an_error(name, blobs):
    """Over vectors the network starts by scaling them."""
    X, y = blobs
    if name == "MetricEmbedder":
        return
    params = {"max_epochs": 1, "batch_size": 60, "random_state": 0, "device": "cpu"}
    with pytest.raises(ValueError, match=r"not finite .*Scale X"):
        getattr(skdml, name)(**params, backbone=linear()).fit(1e20 * X, y)


@pytest.mark.parametrize("factor", [1e20, 1e37, 1e-30])
@pytest.mark.parametrize("params", [{}, {"backbone": linear(bias=False), "freeze": "backbone"}], ids=["", "frozen"])
def test_the_scale_of_vectors_does_not_matter(blobs, params, factor):
    X, y = blobs
    fitted = embedder(max_epochs=1, **params).fit(X, y)
    scaled = embedder(max_epochs=1, **params).fit(factor * X.astype(float), y)
    np.testing.assert_allclose(scaled.transform(factor * X.astype(float)), fitted.transform(X), atol=1e-3)
    X = 1e-40 * X.astype(float)  # float32 has no number to scale it by
    np.testing.assert_allclose(np.linalg.norm(scaled.fit(X, y).transform(X), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "params", [{}, {"backbone": linear(), "freeze": "backbone"}, {"normalize": False}, {"backbone": nn.Flatten()}]
)
def test_overflow_in_transform_is_an_error(blobs, params):
    """Of the length of two rows; without normalization, of their components."""
    X, y = blobs
    X = X if "freeze" in params or "backbone" not in params else X.reshape(60, 1, 2, 3)
    fitted = embedder(max_epochs=1, **params).fit(X, y)
    X = X.astype(float)
    X[:2] *= 1e20
    if "normalize" in params:
        fitted.network_.head.scale.fill_(1e25)
    with pytest.raises(ValueError, match=r"not finite for 2 of 60 rows of X.*Scale X"):
        fitted.transform(X)


def test_zero_embeddings_are_named(blobs):
    X, y = blobs
    fitted = embedder(max_epochs=1, backbone=linear(bias=False), n_components=None).fit(X, y)
    with pytest.warns(UserWarning, match="All embeddings are zero"):
        fitted.transform(1e-30 * X.astype(float))


@pytest.mark.parametrize("factor", [1e20, 1e37])
def test_statistics_that_overflow_are_an_error(factor):
    """Of BatchNorm: in training the rows are all alike, in transform they are divided by infinity."""
    images = factor * np.random.default_rng(0).normal(size=(40, 1, 8, 8))
    with pytest.raises(ValueError, match="not finite"):
        embedder(max_epochs=1, batch_size=20).fit(images, np.arange(40) % 4)


def test_a_mask_of_infinity_is_not_a_diverged_weight(blobs):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.register_buffer("mask", torch.tensor([0, 0, 0, -torch.inf]))

        def forward(self, x):
            return (self.linear(x) + self.mask).softmax(dim=1)

    assert embedder(max_epochs=1, backbone=Masked()).fit(*blobs).n_iter_ == 1


def noise():
    rng = np.random.default_rng(0)
    return rng.normal(size=(120, 6)).astype(np.float32), rng.permutation(np.arange(120) % 10)


def test_a_collapse_is_named_once():
    """Labels of noise, and the hardest triplets at a high rate: all rows go to one point."""
    X, y = noise()
    params = {"mining": "hard", "learning_rate": 3e-2, "max_epochs": 8, "learned_share": 1, "batch_size": 60}
    with pytest.warns(ConvergenceWarning, match="mean cosine of two training samples is 0.99.*'semihard'") as caught:
        fitted = embedder(TripletEmbedder, **params).fit(X, y)
    assert len(caught) == 1
    Z = fitted.transform(X)
    assert (Z @ Z.T).mean() > 0.99
    embedder(TripletEmbedder, **params | {"mining": "semihard"}).fit(X, y)  # warnings are errors


def test_equal_rows_are_no_collapse():
    embedder(max_epochs=1, batch_size=20).fit(np.ones((20, 8, 8), dtype=np.uint8), np.arange(20) % 2)


@pytest.mark.parametrize("cls", [SoftTripleEmbedder, NormSoftmaxEmbedder])
def test_proxies_that_draw_all_classes_one_way_at_first_are_no_collapse(cls):
    """Iris after two epochs: the mean cosine has risen from 0.93 to 0.99, on its way down."""
    X, y = load_iris(return_X_y=True)
    cls(max_epochs=2, random_state=0, device="cpu").fit(X, y)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"batch_size": 1}, "Batch 1 of epoch 1 has one row.*raise batch_size"),
        ({"batch_size": 2, "rows": 5}, "Batch 3 of epoch 1 has one row"),
        ({"rows": 1}, "Batch 1 of epoch 1 has one row.*pass more rows at a time"),
    ],
)
def test_one_row_under_batchnorm_is_named(blobs, case, message):
    X, y = blobs
    n = case.get("rows", 60)
    one = embedder(backbone=backbone(), batch_size=case.get("batch_size", 1))
    with pytest.raises(ValueError, match=message) as caught:
        one.partial_fit(X[:n], y[:n], classes=[0, 1, 2, 3])
    assert "more than 1 value per channel" in str(caught.value)
    one.set_params(freeze="batchnorm").partial_fit(X[:n], y[:n], classes=[0, 1, 2, 3])


def test_no_chunk_of_one_row_is_left(blobs):
    X, y = blobs
    params = {"backbone": backbone(), "batch_size": 60, "samples_per_class": 4, "max_epochs": 1}
    embedder(RecallSurrogateEmbedder, chunk_size=59, **params).fit(X, y)


def test_failed_fit_leaves_the_earlier_one(blobs):
    X, y = blobs
    fitted = embedder(warm_start=True).fit(X, y)
    before = fitted.transform(X)
    with pytest.raises(ValueError, match="not finite"):
        fitted.set_params(learning_rate=1e30, normalize=False, optimizer="sgd").fit(1e15 * X, y)
    np.testing.assert_array_equal(fitted.transform(X), before)


def test_warm_start_goes_on(blobs):
    X, y = blobs
    fitted = embedder(warm_start=True, max_epochs=2).fit(X, y)
    first = fitted.history_[-1]["loss"]
    fitted.fit(X, y)
    assert [epoch["epoch"] for epoch in fitted.history_] == [1, 2, 3, 4]
    assert fitted.n_iter_ == 4
    assert fitted.history_[2]["loss"] < first
    with pytest.raises(ValueError, match="must have the classes of the previous fit"):
        fitted.fit(X, y + 1)
    with pytest.raises(ValueError, match="5 features, but SoftTripleEmbedder is expecting 6"):
        fitted.fit(X[:, :5], y)
    assert fitted.set_params(warm_start=False).fit(X, y).n_iter_ == 2


def test_nothing_but_the_weights_stays_in_memory(hidden):
    X, y = hidden

    def tensors():
        gc.collect()
        return [obj for obj in gc.get_objects() if issubclass(type(obj), torch.Tensor)]

    before = {id(tensor) for tensor in tensors()}
    fitted = stopping(callbacks=[LRScheduler()]).fit(X, y)
    left = [tensor for tensor in tensors() if id(tensor) not in before]
    modules = fitted.network_, fitted.criterion_
    weights = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
    assert {id(obj) for obj in left} == weights
    assert all(p.grad is None and p.device.type == "cpu" for p in left)


def test_weight_decay_and_rates_reach_the_optimizer(blobs):
    look = Recorder(lambda net: [(g["lr"], g["weight_decay"], len(g["params"])) for g in net.optimizer_.param_groups])
    params = {"learning_rate": 3e-3, "weight_decay": 0.5, "center_learning_rate": 0.7}
    embedder(lr_schedule=None, callbacks=[look], **params).fit(*blobs)
    assert Recorder.seen[0] == [(3e-3, 0.5, 5), (0.7, 0.5, 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", torch.optim.RMSprop])
def test_optimizers(blobs, optimizer):
    fitted = embedder(optimizer=optimizer, max_epochs=20, learning_rate=1e-3).fit(*blobs)
    assert fitted.history_[-1]["loss"] < fitted.history_[0]["loss"]


def test_frozen_parameters_stay(blobs):
    backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    backbone[0].requires_grad_(False)
    fitted = embedder(backbone=backbone).fit(*blobs)
    torch.testing.assert_close(fitted.network_.backbone[0].weight, backbone[0].weight)
    assert (fitted.network_.backbone[2].weight != backbone[2].weight).any()


def test_verbose_line_an_epoch(hidden, capsys):
    stopping(verbose=2).fit(*hidden)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("epoch 3/4  loss ")
    assert "validation Recall@1" in lines[2]


def test_silent_by_default_and_no_bar_without_a_terminal(blobs, capsys):
    embedder().fit(*blobs)
    embedder(verbose=1).fit(*blobs)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("sample_weight", [None, np.arange(60)], ids=["", "weighted"])
def test_one_synchronisation_an_epoch(blobs, monkeypatch, sample_weight):
    """Nothing but the epoch's loss is read back: each read of a tensor's value is counted.

    The check of the labels reads them, but on the CPU only.
    """
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero"):
        original = getattr(torch.Tensor, name)

        def read(tensor, *args, _original=original, _name=name, **kwargs):
            if sys._getframe(1).f_code.co_name != "check_batch":
                reads.append(_name)
            return _original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    counts = []
    for epochs in (2, 6):
        reads.clear()
        embedder(max_epochs=epochs, batch_size=10).fit(*blobs, sample_weight)
        counts.append(len(reads))
    assert counts[1] - counts[0] == 4, reads


def test_streamed_rows_train_like_resident_ones(blobs):
    """Read-only memory cannot be wrapped by torch, so its rows are fetched batch by batch."""
    X, y = blobs
    read_only = X.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(embedder().fit(X, y).transform(X), embedder().fit(read_only, y).transform(read_only))


def test_seeded_restores_the_generators(device):
    draw = lambda: (torch.rand(3), torch.rand(3, device=device).cpu())  # noqa: E731
    torch.manual_seed(1)
    expected = [draw(), draw()]
    torch.manual_seed(1)
    got = [draw()]
    with seeded(5, torch.device(device)):
        inside = draw()
    got.append(draw())
    for a, b in zip(itertools.chain(*expected), itertools.chain(*got), strict=True):
        torch.testing.assert_close(a, b)
    with seeded(5, torch.device(device)):
        torch.testing.assert_close(inside, draw())
