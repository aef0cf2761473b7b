"""Several processes train one network: two and three of them, on gloo, compared with a single one.

Each function of `CASES` is a fit, or a few, and returns what it has made. It runs here as the only process, and in each
process of the two groups, which are started once and go through all cases in turn.
"""

import multiprocessing
import os
import pickle
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from scipy import sparse
from skorch.callbacks import Callback, Checkpoint, PrintLog
from torch import nn

import skdml
from skdml._data import files as files_module
from skdml._engine import distributed
from skdml._engine.embedder import BaseEmbedder

GROUPS = (2, 3)
EMBEDDERS = [
    cls for name in skdml.__all__ if isinstance(cls := getattr(skdml, name), type) and issubclass(cls, BaseEmbedder)
]
CASES = {}

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
]


def case(function):
    CASES[function.__name__] = function
    return function


def blobs(n_classes=6, n_samples=8):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(n_classes), n_samples)
    return rng.normal(size=(len(y), 6)).astype(np.float32) + rng.normal(size=(n_classes, 6)).astype(np.float32)[y], y


class Double(nn.Module):
    """A network in float64; of several levels for HDC."""

    def __init__(self, *, levels=False, seed=0):
        super().__init__()
        self.levels = levels
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second, self.unused = (nn.Linear(*size).double() for size in ((6, 16), (16, 8), (3, 3)))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)

    def forward(self, x):
        hidden = self.first(x.double()).tanh()
        z = self.second(hidden)
        return (hidden, z) if self.levels else z


class Float(nn.Module):
    def forward(self, x):
        return x.float()


def make(cls, **params):
    backbone = Double(levels=cls is skdml.HDCEmbedder)
    defaults = {"backbone": backbone, "n_components": None, "batch_size": 25, "max_epochs": 5, "random_state": 0}
    return cls(**{**defaults, **params})


def weights(embedder):
    """The weights of the network and of the loss, and the history, by name."""
    parts = {"network": embedder.network_, "criterion": embedder.criterion_}
    found = {f"{part}.{name}": t.numpy() for part, m in parts.items() for name, t in m.state_dict().items()}
    history = [{k: v for k, v in epoch.items() if k != "duration"} for epoch in embedder.history_]
    return found, history


def error_of(function):
    """The error of a function, as its type and message."""
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


# ---- cases


def every_embedder(**params):
    X, y = blobs()
    return {cls.__name__: weights(make(cls, **params).fit(X, y)) for cls in EMBEDDERS}


@case
def five_epochs(rank, folder):
    return every_embedder()


@case
def one_step(rank, folder):
    """The weights move by the gradient of a batch that holds all rows."""
    return every_embedder(
        optimizer="sgd", learning_rate=1.0, lr_schedule=None, weight_decay=0, max_epochs=1, batch_size=48
    )


@case
def other_ways(rank, folder):
    X, y = blobs()
    few = slice(None, None, 8)  # one of each class
    found = {
        "chunks": weights(make(skdml.RecallSurrogateEmbedder, batch_size=40, chunk_size=7).fit(X, y)),
        "small batches": weights(make(skdml.NormSoftmaxEmbedder, batch_size=2).fit(X[few], y[few])),
        "batches of one": weights(make(skdml.ProxyNCAEmbedder, batch_size=1, max_epochs=2).fit(X[few], y[few])),
        "warm-up": weights(make(skdml.SoftTripleEmbedder, warmup_epochs=2).fit(X, y)),
        "weights of samples": weights(make(skdml.RAWEmbedder).fit(X, y, sample_weight=1 + y % 3)),
        "memory": weights(make(skdml.ContrastiveEmbedder, memory_size=50, memory_start=2).fit(X, y)),
        "semihard": weights(make(skdml.TripletEmbedder, mining="semihard").fit(X, y)),
        "sparse": weights(make(skdml.RAWEmbedder).fit(sparse.csr_matrix(X), y)),
        "ensemble": [
            weights(embedder)
            for embedder in skdml.FoldEnsembleEmbedder(make(skdml.RAWEmbedder, max_epochs=2), cv=2)
            .fit(X, y)
            .estimators_
        ],
    }
    for split in ("samples", "classes"):
        embedder = make(
            skdml.RAWEmbedder,
            early_stopping=True,
            validation_split=split,
            validation_fraction=0.3,
            n_iter_no_change=2,
            learned_share="auto",
            max_epochs=8,
        )
        found[f"early stopping on {split}"] = weights(embedder.fit(X, y))
    embedder = make(skdml.SoftTripleEmbedder, max_epochs=2, warm_start=True, lr_schedule=None)
    found["warm start"] = weights(embedder.fit(X, y).fit(X, y))
    embedder = make(skdml.SoftTripleEmbedder, lr_schedule=None)
    embedder.partial_fit(X[y < 4], y[y < 4])
    found["partial fit"] = weights(embedder.partial_fit(X, y))
    return found


@case
def in_float32(rank, folder):
    """What starts at its input, or at features, has a head in float32."""
    X, y = blobs()
    backbone = nn.Sequential(Double(), Float())
    return {
        "vectors": skdml.RAWEmbedder(max_epochs=3, random_state=0).fit(X, y).transform(X),
        "components": skdml.RAWEmbedder(max_epochs=3, n_components=4, random_state=0).fit(X, y).transform(X),
        "frozen": skdml.RAWEmbedder(backbone=backbone, freeze="backbone", max_epochs=3, random_state=0)
        .fit(X, y)
        .transform(X),
        "head": skdml.RAWEmbedder(backbone=backbone, n_components=4, warmup_epochs=1, max_epochs=3, random_state=0)
        .fit(X, y)
        .transform(X),
    }


@case
def batchnorm(rank, folder):
    """Each process normalizes by its own rows, of which there are two at least."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 8)
    X = rng.integers(0, 100, size=(32, 10, 9), dtype=np.uint8)
    X[np.arange(32), y, y] = 255
    fits = [{"batch_size": 16}, {"batch_size": 4, "max_epochs": 1}, {"batch_size": 32, "early_stopping": True}]
    fits = [{"max_epochs": 3, "random_state": 0, **fit} for fit in fits]
    return [weights(skdml.SoftTripleEmbedder(**fit).fit(X, y)) for fit in fits]


@case
def image_files(rank, folder):
    """How often each file is decoded, without and with a cache, and the embeddings."""
    images = folder / "images"
    rng = np.random.default_rng(0)
    if rank == 0:
        images.mkdir(parents=True)
        for i in range(24):
            Image.fromarray(rng.integers(0, 255, size=(12, 12, 3), dtype=np.uint8)).save(images / f"{i}.png")
    distributed.of_all(None)  # after the first process has written
    X, y = [images / f"{i}.png" for i in range(24)], np.repeat(np.arange(4), 6)
    decode, decoded = files_module.decode, []

    def spy(path, resize):
        decoded.append(os.path.basename(path))
        return decode(path, resize)

    files_module.decode = spy
    found = {}
    try:
        for name, cache in (("files", None), ("cached files", images / "cache")):
            embedder = skdml.NormSoftmaxEmbedder(
                backbone=nn.Flatten(), resize=12, crop_size=8, augment=None, cache=cache, batch_size=8, max_epochs=3,
                n_components=8, random_state=0,
            ).fit(X, y)  # fmt: skip
            found[f"{name}, decoded"] = decoded[:]
            found[name] = embedder.transform(X)
            decoded.clear()
    finally:
        files_module.decode = decode
    return found


class Draws(nn.Module):
    """Note what torch's generator gives in the passes of a training."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn = drawn
        self.layer = nn.Linear(6, 4)

    def __deepcopy__(self, memo):
        copy = Draws(self.drawn)
        copy.load_state_dict(self.state_dict())
        return copy

    def forward(self, x):
        if self.training:
            self.drawn.append(torch.rand(()).item())
        return self.layer(x)


@case
def random_numbers(rank, folder):
    X, y = blobs()
    of_network, of_loss = [], []

    def loss(embeddings, y):
        of_loss.append(torch.rand(()).item())
        return embeddings.square().mean()

    torch.manual_seed(rank)  # a backbone of other weights in each process
    backbone = Draws(of_network)
    np.random.seed(rank)  # noqa: NPY002
    fitted = weights(skdml.MetricEmbedder(loss=loss, backbone=backbone, max_epochs=2, batch_size=24).fit(X, y))
    unseeded = [weights(skdml.RAWEmbedder(max_epochs=1).fit(X, y)) for _ in range(2)]
    return {"fitted": fitted, "of_network": of_network, "of_loss": of_loss, "unseeded": unseeded}


class EndAt(Callback):
    def __init__(self, epoch, error):
        self.epoch, self.error = epoch, error

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise self.error


class Observer:
    """A callback of scikit-learn that stops after two epochs."""

    n_epochs = 0

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        if context.task_name == "epoch":
            fitted_estimator.score(X, y)
            self.n_epochs += 1
        return self.n_epochs == 2


@case
def callbacks(rank, folder):
    """The last process ends the training, and the first one writes."""
    X, y = blobs()
    found = {}
    is_last = rank == distributed.n_processes() - 1
    for name, error in (("planned", skdml._engine.callbacks.EndOfTraining), ("interrupt", KeyboardInterrupt)):
        ending = [EndAt(2, error)] if is_last else []
        embedder = make(skdml.SoftTripleEmbedder, callbacks=ending, early_stopping=True, validation_fraction=0.3)
        try:
            embedder.fit(X, y)
            found[f"{name}, raised"] = False
        except KeyboardInterrupt:
            found[f"{name}, raised"] = True
        found[name] = weights(embedder)
    lines = []
    writers = [Checkpoint(monitor=None, dirname=folder / f"checkpoint{rank}"), ("log", PrintLog(sink=lines.append))]
    make(skdml.RAWEmbedder, callbacks=writers, max_epochs=2).fit(X, y)
    if hasattr(skdml.RAWEmbedder, "set_callbacks"):  # scikit-learn 1.9
        observer = Observer()
        embedder = make(skdml.RAWEmbedder).set_callbacks(observer).fit(X, y)
        found["observed"] = observer.n_epochs, embedder.n_iter_
    found["written"] = (folder / f"checkpoint{rank}").exists(), len(lines) > 0
    return found


@case
def errors(rank, folder):
    """Of a fit where one process, or each, gets something else; and whether a later fit works."""
    n = distributed.n_processes()
    X, y = blobs()
    is_last = rank == n - 1
    other = np.where(is_last, X + 1e-6 * (np.arange(len(X)) == 30)[:, None], X)
    embedder = make(skdml.RAWEmbedder, max_epochs=1)
    missing = y.astype(float)
    if is_last:
        missing[3] = np.nan
    found = {
        "shard": error_of(lambda: embedder.fit(X[rank::n], y[rank::n])),
        "shuffled": error_of(lambda: embedder.fit(X[:: -1 if is_last else 1], y)),
        "one value of X": error_of(lambda: embedder.fit(other, y)),
        "names of classes": error_of(lambda: embedder.fit(X, y + 100 * is_last)),
        "y": error_of(lambda: embedder.fit(X, y[::-1] if is_last else y)),
        "missing": error_of(lambda: embedder.fit(X, missing)),
        "weights": error_of(lambda: embedder.fit(X, y, sample_weight=1 + is_last * np.arange(len(y)))),
        "parameter": error_of(lambda: make(skdml.RAWEmbedder, max_epochs=1 + is_last).fit(X, y)),
        "bad parameter": error_of(lambda: make(skdml.RAWEmbedder, max_epochs=-1 if is_last else 1).fit(X, y)),
        "class": error_of(lambda: make([skdml.SSTEmbedder, skdml.RAWEmbedder][is_last], max_epochs=1).fit(X, y)),
    }
    untouched = not hasattr(embedder, "network_")
    embedder.fit(X, y)
    # A score is local: the others do not take part.
    score = embedder.score(X, y) if rank == 0 else None
    return {"errors": found, "untouched": untouched, "score": score, "fitted": weights(embedder)}


class Crash(Callback):
    """Raises at the end of an epoch."""

    at = None

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == Crash.at:
            raise ArithmeticError


@case
def resumed(rank, folder):
    X, y = blobs()

    def fit(checkpoint):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = nn.Sequential(nn.Linear(6, 8), nn.Dropout())
        embedder = skdml.RAWEmbedder(
            backbone=backbone, max_epochs=4, batch_size=24, memory_size=30, memory_start=1, random_state=0
        )
        return weights(embedder.set_params(callbacks=[Crash()], checkpoint=checkpoint).fit(X, y))

    found = {"whole": fit(None)}
    Crash.at = 3
    found["error"] = error_of(lambda: fit(folder))
    Crash.at = None
    found["state"] = os.listdir(folder)
    found |= {"resumed": fit(folder), "again": fit(folder)}
    return found | {"result": os.listdir(folder)}


@case
def gradients(rank, folder):
    """The sum of those of all processes, and none where there is none in any."""
    first, second, third, fixed = parameters = [nn.Parameter(torch.zeros(2, 2), requires_grad=i < 3) for i in range(4)]
    second.data = second.data.double()
    first.grad = torch.full((2, 2), 1.0 + rank).T
    if rank == 0:
        second.grad = torch.arange(4.0, dtype=torch.float64).view(2, 2)
    distributed.add_up_gradients(parameters)
    return [None if p.grad is None else p.grad.numpy() for p in (first, second, third, fixed)]


# ---- running them


def run(rank, n, folder):
    """Run all cases in one process of a group, or in this one."""
    found = {}
    for name, function in CASES.items():
        try:
            with warnings.catch_warnings(action="ignore"):
                found[name] = function(rank, Path(folder) / f"{name}-{n}")
        except Exception:
            found[name] = traceback.format_exc()
    return found


def work(rank, n, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group{n}", rank=rank, world_size=n, timeout=timedelta(seconds=100)
    )
    (Path(folder) / f"{n}-{rank}").write_bytes(pickle.dumps(run(rank, n, folder)))
    dist.destroy_process_group()


def start(folder):
    """Fork the processes of all groups, which share the modules that this one has imported."""
    torch.set_num_threads(1)
    make(skdml.RAWEmbedder, max_epochs=1).fit(*blobs())  # imports what torch imports late
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=work, args=(r, n, folder)) for n in GROUPS for r in range(n)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


@pytest.fixture(scope="session")
def found(tmp_path_factory, worker_id):
    """The results of each number of processes, 1 included, as a list of those of each process."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "distributed"  # one for all processes of pytest-xdist
    try:
        folder.mkdir()
    except FileExistsError:
        while not (folder / "done").exists():
            time.sleep(0.1)
        return pickle.loads((folder / "done").read_bytes())
    starter = multiprocessing.get_context("spawn").Process(target=start, args=(str(folder),))
    starter.start()
    results = {1: [run(0, 1, folder)]}
    starter.join()
    for n in GROUPS:
        paths = [folder / f"{n}-{r}" for r in range(n)]
        results[n] = [pickle.loads(path.read_bytes()) if path.exists() else {} for path in paths]
    (folder / "unfinished").write_bytes(pickle.dumps(results))
    (folder / "unfinished").rename(folder / "done")
    return results


def of_case(found, name):
    """The results of a case: of one process, and of the processes of each group, with their number first."""
    for results in found.values():
        for rank, result in enumerate(results):
            value = result.get(name, "The process has not come to an end.")
            assert not isinstance(value, str), f"Process {rank} of {len(results)}: {value}"
    return found[1][0][name], [(n, [result[name] for result in found[n]]) for n in GROUPS]


def check_equal(actual, expected, atol=1e-12):
    """Compare what `weights` has returned."""
    (tensors, history), (expected_tensors, expected_history) = actual, expected
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, expected_tensors[name], rtol=0, atol=atol, err_msg=name)
    assert len(history) == len(expected_history)
    for epoch, expected_epoch in zip(history, expected_history, strict=True):
        assert epoch.keys() == expected_epoch.keys()
        np.testing.assert_allclose(list(epoch.values()), list(expected_epoch.values()), rtol=1e-5)


def check_same(found):
    """Compare what `weights` has returned in the processes of a group, to the last bit."""
    for other in found[1:]:
        check_equal(other, found[0], atol=0)


# ---- the same as one process


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_weights_after_five_epochs_are_those_of_one_process(found, cls):
    expected, groups = of_case(found, "five_epochs")
    start = Double(levels=cls is skdml.HDCEmbedder).first.weight.detach().numpy()
    trained = next(t for name, t in expected[cls.__name__][0].items() if name.endswith("first.weight"))
    assert trained.dtype == np.float64
    assert np.abs(trained - start).max() > 1e-3
    for _, results in groups:
        check_same([result[cls.__name__] for result in results])
        check_equal(results[0][cls.__name__], expected[cls.__name__])


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_a_step_is_the_gradient_of_the_whole_batch(found, cls):
    expected, groups = of_case(found, "one_step")
    for _, results in groups:
        for result in results:
            check_equal(result[cls.__name__], expected[cls.__name__])


@pytest.mark.parametrize("name", ["NormSoftmaxEmbedder", "RAWEmbedder"])
def test_a_step_is_as_long_as_that_of_one_process(found, name):
    """A mean over processes of the gradients of parts, or a sum of those of the whole, is off by their number."""
    start = Double().first.weight.detach().numpy()

    def moved(result):
        return np.linalg.norm(next(t for k, t in result[name][0].items() if k.endswith("first.weight")) - start)

    expected, groups = of_case(found, "one_step")
    assert moved(expected) > 0.01
    for _, results in groups:
        np.testing.assert_allclose([moved(result) for result in results], moved(expected), rtol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "chunks",
        "small batches",
        "batches of one",
        "warm-up",
        "weights of samples",
        "memory",
        "semihard",
        "sparse",
        "early stopping on samples",
        "early stopping on classes",
        "warm start",
        "partial fit",
    ],
)
def test_other_ways_to_train_equal_one_process(found, name):
    expected, groups = of_case(found, "other_ways")
    for _, results in groups:
        for result in results:
            check_equal(result[name], expected[name])


def test_early_stopping_stops_early(found):
    expected, _ = of_case(found, "other_ways")
    assert 2 < len(expected["early stopping on classes"][1]) < 8


def test_ensemble_equals_that_of_one_process(found):
    expected, groups = of_case(found, "other_ways")
    for _, results in groups:
        for result in results:
            for actual, wanted in zip(result["ensemble"], expected["ensemble"], strict=True):
                check_equal(actual, wanted)


def test_parameters_out_of_use_stay_as_they_are(found):
    _, groups = of_case(found, "five_epochs")
    for _, results in groups:
        unused = next(t for k, t in results[0]["RAWEmbedder"][0].items() if k.endswith("unused.weight"))
        np.testing.assert_array_equal(unused, Double().unused.weight.detach().numpy())  # no weight decay either


@pytest.mark.parametrize("name", ["vectors", "components", "frozen", "head"])
def test_embeddings_in_float32_agree(found, name):
    expected, groups = of_case(found, "in_float32")
    for _, results in groups:
        for result in results:
            np.testing.assert_allclose(result[name], expected[name], atol=1e-5)
            np.testing.assert_array_equal(result[name], results[0][name])


def test_a_crash_is_resumed_by_all(found):
    """Each process goes on with its own random numbers, which the first one has written."""
    expected, groups = of_case(found, "resumed")
    for results in ([expected], *(results for _, results in groups)):
        for result in results:
            assert result["error"] == ("ArithmeticError", "")
            assert (result["state"], result["result"]) == (["state.safetensors"], ["result.safetensors"])
            check_equal(result["resumed"], result["whole"], atol=0)
            check_equal(result["again"], result["whole"], atol=0)
        check_same([result["resumed"] for result in results])


def test_gradients_are_added_up(found):
    _, groups = of_case(found, "gradients")
    for n, results in groups:
        for first, second, third, fixed in results:
            np.testing.assert_array_equal(first, np.full((2, 2), n * (n + 1) / 2))
            np.testing.assert_array_equal(second, [[0, 1], [2, 3]])
            assert third is None
            assert fixed is None


# ---- what is each process's own


def test_batchnorm_is_the_same_in_all_processes_at_the_end(found):
    expected, groups = of_case(found, "batchnorm")
    for _, results in groups:
        for k, (tensors, history) in enumerate(expected):
            check_same([result[k] for result in results])
            assert results[0][k][0].keys() == tensors.keys()
            losses = [epoch["loss"] for epoch in results[0][k][1]]
            assert len(losses) == len(history)
            assert len(losses) == 1 or losses[-1] < losses[0]


def test_each_process_decodes_its_own_rows(found):
    expected, groups = of_case(found, "image_files")
    names = sorted(f"{i}.png" for i in range(24))
    for _, results in groups:
        # Each also decodes two files to see what the backbone gives for them.
        n_decoded = sum(len(result["files, decoded"]) for result in results)
        assert n_decoded == len(expected["files, decoded"]) + 2 * (len(results) - 1)
        assert sorted(name for result in results for name in result["cached files, decoded"]) == names
        for result in results:
            assert len(result["files, decoded"]) < len(expected["files, decoded"]) * 2 / 3
            assert len(result["cached files, decoded"]) == 24 / len(results)
            for name in ("files", "cached files"):
                np.testing.assert_allclose(result[name], expected["files"], atol=1e-5)


def test_random_numbers(found):
    _, groups = of_case(found, "random_numbers")
    for _, results in groups:
        check_same([result["fitted"] for result in results])
        first, second = results[:2]
        assert first["of_loss"] == second["of_loss"]
        assert len(set(first["of_loss"])) == len(first["of_loss"]) == 4
        assert not set(first["of_network"]) & set(second["of_network"])
        for fits in zip(*(result["unseeded"] for result in results), strict=True):
            check_same(fits)
        one, other = first["unseeded"]
        assert any((one[0][name] != other[0][name]).any() for name in one[0])


@pytest.mark.parametrize("name", ["planned", "interrupt"])
def test_the_end_in_one_process_is_that_of_all(found, name):
    expected, groups = of_case(found, "callbacks")
    for n, results in [(1, [expected]), *groups]:
        assert [len(result[name][1]) for result in results] == [2] * n
        assert [result[f"{name}, raised"] for result in results] == [name == "interrupt"] * n
        check_same([result[name] for result in results])


@pytest.mark.skipif(not hasattr(skdml.RAWEmbedder, "set_callbacks"), reason="needs scikit-learn 1.9")
def test_callbacks_of_scikit_learn_are_those_of_the_first_process(found):
    expected, groups = of_case(found, "callbacks")
    assert expected["observed"] == (2, 2)
    for n, results in groups:
        assert [result["observed"] for result in results] == [(2, 2)] + [(0, 2)] * (n - 1)


class InterruptAt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("n", [1, 2])
def test_an_interrupt_in_an_epoch_of_several_processes_leaves_all_as_it_was(monkeypatch, n):
    """What follows the last epoch would wait for the others, which are in the middle of theirs."""
    monkeypatch.setattr("skdml._engine.net.n_processes", lambda: n)
    embedder = make(skdml.RAWEmbedder, callbacks=[InterruptAt(epoch=2)])
    with pytest.raises(KeyboardInterrupt):
        embedder.fit(*blobs())
    assert hasattr(embedder, "network_") == (n == 1)


def test_only_the_first_process_writes(found):
    expected, groups = of_case(found, "callbacks")
    assert expected["written"] == (True, True)
    for n, results in groups:
        assert [result["written"] for result in results] == [(True, True)] + [(False, False)] * (n - 1)


# ---- on a GPU


def test_device_of_a_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert skdml.RAWEmbedder()._find_device() == torch.device("cuda")  # there is no group
    monkeypatch.setattr("skdml._engine.parameters.n_processes", lambda: 8)
    assert skdml.RAWEmbedder()._find_device() == torch.device("cuda:2")
    assert skdml.RAWEmbedder(device="cpu")._find_device() == torch.device("cpu")


def test_common_batchnorm_trains_the_same_tensors(monkeypatch):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert distributed.with_common_batchnorm(network) is network
    monkeypatch.setattr(distributed, "n_processes", lambda: 2)
    assert distributed.with_common_batchnorm(network) is network  # on the CPU
    monkeypatch.setattr(nn.Parameter, "is_cuda", True)
    common = distributed.with_common_batchnorm(network)
    assert isinstance(common[1], nn.SyncBatchNorm)
    assert isinstance(network[1], nn.BatchNorm2d)
    tensors, common_tensors = ([*m.named_parameters(), *m.named_buffers()] for m in (network, common))
    for (name, tensor), (common_name, common_tensor) in zip(tensors, common_tensors, strict=True):
        assert name == common_name
        assert tensor is common_tensor


# ---- errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shard", "Pass all of X to each process"),
        ("shuffled", "differ in X. Pass"),
        ("one value of X", "differ in X. Pass"),
        ("names of classes", "differ in y. Pass"),
        ("y", "differ in y. Pass"),
        ("weights", "differ in sample_weight. Pass"),
        ("parameter", "differ in max_epochs. Pass"),
        ("class", "differ in the class of the embedder"),
    ],
)
def test_other_data_in_one_process_is_an_error_in_all(found, name, message):
    alone, groups = of_case(found, "errors")
    assert alone["errors"][name] is None
    for _, results in groups:
        for result in results:
            kind, text = result["errors"][name]
            assert kind == "ValueError"
            assert message in text


@pytest.mark.parametrize(("name", "message"), [("missing", "y contains NaN"), ("bad parameter", "'max_epochs'")])
def test_an_error_in_one_process_is_one_in_all(found, name, message):
    _, groups = of_case(found, "errors")
    for n, results in groups:
        for rank, result in enumerate(results):
            kind, text = result["errors"][name]
            assert kind.endswith(("ValueError", "InvalidParameterError"))
            assert message in text
            assert text.startswith(f"In process {n - 1} of the {n}") == (rank < n - 1)


def test_after_an_error(found):
    expected, groups = of_case(found, "errors")
    for _, results in groups:
        assert all(result["untouched"] for result in results)
        for result in results:
            check_equal(result["fitted"], expected["fitted"])
        assert [result["score"] for result in results] == [expected["score"]] + [None] * (len(results) - 1)


def test_one_process_has_no_messages(monkeypatch):
    """Without a group, nothing else of torch.distributed is called."""
    monkeypatch.setattr(distributed, "dist", SimpleNamespace(is_available=lambda: False))
    X, y = blobs()
    skdml.SSTEmbedder(early_stopping=True, validation_fraction=0.3, max_epochs=3, batch_size=20).fit(X, y)
