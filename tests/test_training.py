"""The engine: steps, schedules, stopping, callbacks, failures. SoftTriple stands for every method."""

import gc
import itertools
import threading

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, EpochScoring, GradientNormClipping, LRScheduler
from torch import nn

from skdml import SoftTripleEmbedder, recall_at_k
from skdml._training import hold_out, one_cycle, seeded


def embedder(**params):
    return SoftTripleEmbedder(
        **{"n_centers": 2, "max_epochs": 4, "batch_size": 60, "random_state": 0, "device": "cpu"} | params
    )


class Recorder(Callback):
    """Keeps what it sees in a list of the class, for callbacks are copied at fit."""

    seen = None

    def __init__(self, look):
        self.look = look

    def on_train_begin(self, net, **kwargs):
        type(self).seen = []

    def on_batch_end(self, net, **kwargs):
        self.seen.append(self.look(net))


def test_two_epochs_equal_a_loop_written_by_hand(blobs):
    """Same start, same batches, torch's own AdamW: the weights agree."""
    X, y = blobs
    fitted = embedder(lr_schedule=None, max_epochs=2, batch_size=20).fit(X, y)

    with seeded(np.random.RandomState(0).randint(2**31 - 1), torch.device("cpu")):
        network = nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 64))
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
    ours = fitted.network_.state_dict().values()
    for mine, theirs in zip(ours, network.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


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
    embedder(callbacks=[look], batch_size=20, center_learning_rate=1e-2).fit(*blobs)
    seen = np.array(Recorder.seen)  # (steps, groups: network and centers, lr and momentum)
    expected = np.array([one_cycle(step / 12) for step in range(12)])
    np.testing.assert_allclose(seen[:, 0], expected * [3e-3, 1])
    np.testing.assert_allclose(seen[:, 1], expected * [1e-2, 1])


@pytest.mark.parametrize(
    ("params", "constant"),
    [({}, False), ({"early_stopping": True}, True), ({"warm_start": True}, True), ({"lr_schedule": None}, True)],
)
def test_lr_schedule_auto(blobs, params, constant):
    embedder(callbacks=[Recorder(lambda net: net.optimizer_.param_groups[0]["lr"])], **params).fit(*blobs)
    assert (len(set(Recorder.seen)) == 1) == constant


def test_skorch_lr_scheduler(blobs):
    scheduler = LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    look = Recorder(lambda net: net.optimizer_.param_groups[0]["lr"])
    embedder(callbacks=[("lr", scheduler), look]).fit(*blobs)
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
        ([EpochScoring("accuracy")], TypeError, "EpochScoring scores what a network predicts"),
        ([EarlyStopping], ValueError, "monitors 'valid_loss', which is not recorded"),
        ([Checkpoint(monitor="valid_recall_at_1_best")], ValueError, "early_stopping=True"),
    ],
)
def test_unfit_callbacks(blobs, callbacks, error, message):
    with pytest.raises(error, match=message):
        embedder(callbacks=callbacks).fit(*blobs)


class Overfit(nn.Module):
    """A backbone that is spoilt from its n-th pass in training on."""

    def __init__(self, n_good):
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.n_good = n_good
        self.register_buffer("n_passes", torch.zeros(()))

    def forward(self, x):
        self.n_passes += self.training
        return self.linear(x) * (self.n_passes <= self.n_good)


def test_early_stopping_restores_the_best_epoch(blobs):
    """Two good epochs of one batch; after them all embeddings are equal and the criterion's centers drift."""
    X, y = blobs
    backbone = Overfit(2)
    fitted = embedder(backbone=backbone, early_stopping=True, n_iter_no_change=3, max_epochs=50).fit(X, y)
    recalls = [epoch["validation_recall_at_1"] for epoch in fitted.history_]
    best = int(np.argmax(recalls))
    assert fitted.n_iter_ == best + 1 + 3
    assert best <= 1
    assert fitted.network_.backbone.n_passes == best + 1
    short = embedder(backbone=backbone, early_stopping=True, max_epochs=best + 1).fit(X, y)
    np.testing.assert_array_equal(fitted.transform(X), short.transform(X))
    np.testing.assert_array_equal(fitted.centers_, short.centers_)


def test_early_stopping_scores_the_held_out_rows(blobs):
    X, y = blobs
    fitted = embedder(early_stopping=True, validation_fraction=0.3, max_epochs=1).fit(X, y)
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)  # the seed of the fit is drawn first
    train_rows, valid_rows = hold_out(y, 0.3, rng)
    assert sorted([*train_rows, *valid_rows]) == list(range(60))
    expected = recall_at_k(fitted.transform(X[valid_rows]), y[valid_rows])
    assert fitted.history_[0]["validation_recall_at_1"] == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [[12] * 20, [4, 4, 4], [50, 5, 1, 2, 3], [1000, 2]])
def test_hold_out_leaves_pairs_on_both_sides(sizes):
    y = np.repeat(np.arange(len(sizes)), sizes)
    train_rows, valid_rows = hold_out(y, 0.1, np.random.RandomState(0))
    assert len(valid_rows) == pytest.approx(max(2, 0.1 * len(y)), abs=2)
    held = np.bincount(y[valid_rows], minlength=len(sizes))
    kept = np.bincount(y[train_rows])
    assert ((held == 0) | (held >= 2)).all()
    assert (kept[held > 0] >= 2).all()
    np.testing.assert_array_equal(held + kept, sizes)


def test_early_stopping_with_too_few_samples():
    with pytest.raises(ValueError, match="no class has four samples"):
        embedder(early_stopping=True, batch_size=2).fit(np.eye(6), [0, 0, 1, 1, 2, 2])


class Interrupt(Callback):
    def __init__(self, hook, epoch):
        self.hook = hook
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        self.raise_in("batch", net)

    def on_epoch_end(self, net, **kwargs):
        self.raise_in("epoch", net)

    def raise_in(self, hook, net):
        if hook == self.hook and len(net.history) == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("hook", "epoch", "finished"), [("batch", 1, 0), ("batch", 3, 2), ("epoch", 2, 2)])
def test_keyboard_interrupt_leaves_a_fitted_estimator(blobs, hook, epoch, finished):
    X, y = blobs
    with pytest.warns(UserWarning, match=f"interrupted in epoch {epoch}"):
        fitted = embedder(callbacks=[Interrupt(hook, epoch)]).fit(X, y)
    assert fitted.n_iter_ == len(fitted.history_) == finished
    np.testing.assert_allclose(np.linalg.norm(fitted.transform(X), axis=1), 1, rtol=1e-5)


def test_non_finite_loss_says_what_to_lower(blobs):
    X, y = blobs
    with pytest.raises(ValueError, match=r"not finite.*Lower learning_rate \(now 1e\+30\)"):
        embedder(learning_rate=1e30, normalize=False, optimizer="sgd").fit(X, y)


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
    with pytest.raises(ValueError, match="must have the classes of the fit before"):
        fitted.fit(X, y + 1)
    with pytest.raises(ValueError, match="5 features, but SoftTripleEmbedder is expecting 6"):
        fitted.fit(X[:, :5], y)
    assert fitted.set_params(warm_start=False).fit(X, y).n_iter_ == 2


def test_nothing_but_the_weights_stays_in_memory(blobs):
    X, y = blobs

    def tensors():
        gc.collect()
        return [obj for obj in gc.get_objects() if issubclass(type(obj), torch.Tensor)]

    before = {id(tensor) for tensor in tensors()}
    fitted = embedder(callbacks=[LRScheduler()], early_stopping=True).fit(X, y)
    left = [tensor for tensor in tensors() if id(tensor) not in before]
    weights = {id(p) for module in (fitted.network_, fitted.criterion_) for p in module.parameters()}
    assert {id(obj) for obj in left} == weights
    assert all(p.grad is None and p.device.type == "cpu" for p in left)


def test_weight_decay_and_rates_reach_the_optimizer(blobs):
    look = Recorder(lambda net: [(g["lr"], g["weight_decay"], len(g["params"])) for g in net.optimizer_.param_groups])
    embedder(lr_schedule=None, weight_decay=0.5, center_learning_rate=0.7, callbacks=[look]).fit(*blobs)
    assert Recorder.seen[0] == [(3e-3, 0.5, 4), (0.7, 0.5, 1)]


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


def test_verbose_line_an_epoch(blobs, capsys):
    embedder(verbose=2, early_stopping=True).fit(*blobs)
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
    """Nothing but the epoch's loss is read back: each read of a tensor's value is counted."""
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero"):
        original = getattr(torch.Tensor, name)

        def read(tensor, *args, _original=original, _name=name, **kwargs):
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
