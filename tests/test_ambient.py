"""What torch is set to around a call must not matter, nor what other threads do at the same time."""

import inspect
import pickle
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, Initializer
from torch import nn
from torch.nn.functional import normalize

import skdml
from skdml import losses, metrics
from skdml._ambient import own_filters, warn
from skdml._engine.embedder import BaseEmbedder
from skdml._engine.net import EmbeddingNet
from skdml._network.random import NO_DRAWS, may_draw, seeded
from skdml.inspection import pair_weights
from skdml.verification import PairVerifier, calibrate_threshold


@contextmanager
def setting(set_value, value, usual):
    set_value(value)
    try:
        yield
    finally:
        set_value(usual)


MODES = {
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "device": lambda: setting(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
}
WITHOUT_GRADIENT = ("no_grad", "inference_mode")
USUAL = ("float64", "device", "no_grad", "inference_mode", "autocast")
EMBEDDERS = [
    cls
    for name in skdml.__all__
    if inspect.isclass(cls := getattr(skdml, name)) and issubclass(cls, BaseEmbedder)
]  # fmt: skip
y = np.repeat(np.arange(4), 6)
X = (np.random.default_rng(0).normal(size=(24, 5)) + 3 * np.eye(5)[y]).astype(np.float32)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 9, 9), dtype=np.uint8)

pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning")


@pytest.fixture(params=USUAL)
def mode(request):
    return MODES[request.param]


def fitted(embedder, X=X):
    """Return all numbers of a fit: the weights, the history, the embeddings and their score."""
    embedder.fit(X, y)
    state = {
        f"{key}.{name}": value.numpy()
        for key in ("network_", "criterion_")
        for name, value in getattr(embedder, key).state_dict().items()
    }
    history = [epoch["loss"] for epoch in embedder.history_]
    return {**state, "history": history, "Z": embedder.transform(X), "score": embedder.score(X, y)}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert np.asarray(got[name]).dtype == np.asarray(value).dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def dropout_backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3))


def small(cls=skdml.RAWEmbedder, **params):
    return cls(max_epochs=1, batch_size=12, random_state=0, device="cpu", **params)


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_embedder_in_each_mode(cls):
    expected = fitted(small(cls))
    for name in USUAL:
        with MODES[name]():
            got = fitted(small(cls))
        assert_same(got, expected)


@pytest.mark.parametrize(
    ("data", "params"),
    [
        (IMAGES, {}),
        (IMAGES, {"augment": "standard", "crop_size": 7}),
        (X, {"backbone": dropout_backbone()}),
        (X, {"backbone": dropout_backbone(), "freeze": "backbone"}),
        (X, {"precision": "bfloat16"}),
        (X, {"n_components": 3, "hidden_layer_sizes": ()}),
        (X, {"mining": "distance_weighted", "memory_size": 16, "memory_start": 1}),
    ],
    ids=["images", "augmented", "backbone", "frozen", "precision", "narrow", "memory"],
)
def test_fit_with_options_in_each_mode(mode, data, params):
    expected = fitted(small(**params), data)
    with mode():
        got = fitted(small(**params), data)
    assert_same(got, expected)


def test_files_and_pickles_in_each_mode(mode, tmp_path):
    embedder = small(skdml.PDDMEmbedder).fit(X, y)
    Z = embedder.transform(X)
    with mode():
        embedder.save(tmp_path / "model")
        copies = [skdml.load(tmp_path / "model"), pickle.loads(pickle.dumps(embedder))]
        modules = [embedder.to_torch(), *(copy.network_ for copy in copies)]
        inside = [copy.transform(X) for copy in copies]
    for got in [*inside, *(copy.transform(X) for copy in copies)]:
        np.testing.assert_array_equal(got, Z)
    for module in modules:
        for parameter in module.parameters():
            assert (parameter.device.type, parameter.dtype) == ("cpu", torch.float32)
            assert not parameter.is_inference()


def test_backbone_in_float64_keeps_its_dtype(tmp_path):
    with MODES["float64"]():
        torch.manual_seed(0)
        backbone = nn.Linear(5, 8)
        embedder = small(backbone=backbone).fit(X, y)
    assert embedder.network_.backbone.backbone.weight.dtype == torch.float64
    assert not torch.equal(embedder.network_.backbone.backbone.weight, backbone.weight)  # it has been trained
    assert embedder.transform(X).dtype == np.float32
    embedder.save(tmp_path / "model")
    loaded = skdml.load(tmp_path / "model", backbone=nn.Linear(5, 8).double())
    np.testing.assert_array_equal(loaded.transform(X), embedder.transform(X))


def test_levels_of_a_backbone_in_bfloat16():
    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 6).bfloat16(), nn.Linear(6, 7).bfloat16()

        def forward(self, x):
            x = self.first(x).relu()
            return x, self.second(x)

    embedder = small(skdml.HDCEmbedder, backbone=Levels()).fit(X, y)
    assert np.isfinite(embedder.transform(X)).all()


Z = normalize(torch.from_numpy(X))
MEASURES = {name: getattr(metrics, name) for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
SECOND = {"recall_at_k": {"k": 2}}


@pytest.mark.parametrize("name", MEASURES)
def test_measure_in_each_mode(name):
    measure, options = MEASURES[name], SECOND.get(name, {})
    parameters = inspect.signature(measure).parameters
    kinds = [Z, Z.numpy(), Z.double().numpy(), Z.numpy().tolist()]

    def values(kinds):
        needs_labels = "y" in parameters
        return [measure(kind, *([y] if needs_labels else []), **options) for kind in kinds]

    with torch.inference_mode():
        kinds.append(Z.clone())
    expected = values(kinds)
    for name in USUAL:
        with MODES[name]():
            np.testing.assert_equal(values(kinds), expected)


def test_weights_of_pairs_and_verification_in_each_mode(mode):
    def results():
        embedder = small().fit(X, y)
        verifier = PairVerifier(embedder).fit(X, y)
        return [
            pair_weights(losses.TripletLoss(), Z.numpy(), y),
            pair_weights(losses.RAWLoss(), Z.tolist(), y),
            calibrate_threshold(embedder, X, y),
            verifier.threshold_,
            verifier.roc_auc(X, y),
            skdml.RetrievalScorer()(embedder, X, y),
        ]

    expected = results()
    with mode():
        got = results()
    np.testing.assert_equal(got, expected)


def make_loss(cls):
    torch.manual_seed(1)
    sizes = {"n_classes": 4, "n_components": 5}
    return cls(**{name: value for name, value in sizes.items() if name in inspect.signature(cls).parameters})


def value_and_gradients(loss, mode, z=Z, *, dtype=None, backward=True, inside=False, weight=None):
    z = (z if dtype is None else z.to(dtype)).clone().requires_grad_()
    torch.manual_seed(2)
    labels = torch.from_numpy(y)
    with mode():
        value = loss(z, labels, sample_weight=weight)
        if backward and inside:
            value.backward()
    if backward and not inside:
        value.backward()
    gradients = [tensor.grad for tensor in (z, *loss.parameters())] if backward else []
    return [value.detach().clone(), *gradients]


def assert_same_tensors(got, expected):
    for a, b in zip(got, expected, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


plain = torch.enable_grad
LOSSES = [getattr(losses, name) for name in losses.__all__]
weights = torch.from_numpy(np.random.default_rng(1).random(len(y)).astype(np.float32))


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
def test_loss_in_each_mode(cls):
    for name, mode in MODES.items():
        backward = name not in WITHOUT_GRADIENT
        expected = value_and_gradients(make_loss(cls), plain, weight=weights, backward=backward)
        assert_same_tensors(value_and_gradients(make_loss(cls), mode, weight=weights, backward=backward), expected)
        if "device" not in name and backward:  # a loss of one's own is made where torch makes a module
            with mode():
                loss = make_loss(cls)
            assert_same_tensors(value_and_gradients(loss, mode, weight=weights, inside=name != "autocast"), expected)


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
def test_backward_under_autocast(cls):
    """torch advises against it: its own products are then less precise, but nothing fails."""
    expected = value_and_gradients(make_loss(cls), plain)
    got = value_and_gradients(make_loss(cls), MODES["autocast"], inside=True)
    for a, b in zip(got, expected, strict=True):
        if b is not None:
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.05 * float(b.abs().max()))


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_loss_computes_in_float32_or_higher(cls, dtype):
    computed = torch.promote_types(dtype, torch.float32)
    expected = value_and_gradients(make_loss(cls).to(computed), plain, Z.to(dtype).to(computed))
    got = value_and_gradients(make_loss(cls), plain, dtype=dtype)  # the parameters in float32
    assert (got[0].dtype, got[1].dtype) == (computed, dtype)
    assert all(gradient.dtype == torch.float32 for gradient in got[2:] if gradient is not None)
    assert_same_tensors(got[:2], [expected[0], expected[1].to(dtype)])
    both = value_and_gradients(make_loss(cls).to(dtype), MODES["autocast"], dtype=dtype)
    assert both[0].dtype == computed
    assert all(gradient.dtype == dtype for gradient in both[1:] if gradient is not None)


class Noise(nn.Module):
    """A backbone of one's own that draws, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 8)

    def forward(self, x):
        return self.layer(x) + 0.1 * torch.randn(len(x), 8)


class Draws(Callback):
    def on_grad_computed(self, net, **kwargs):
        for parameter in net.module_.parameters():
            parameter.grad.add_(torch.randn_like(parameter.grad), alpha=1e-3)


def noisy(images):
    return (images + 0.1 * torch.rand_like(images)).clamp(0, 1)


def weights_of(embedder):
    return [value.numpy() for key in ("network_", "criterion_") for value in vars(embedder)[key].state_dict().values()]


def in_threads(embedder, data, n=4):
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda one: one.fit(data, y), [clone(embedder) for _ in range(n)]))


@pytest.fixture
def busy():
    """Let the threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(
    ("embedder", "data"),
    [
        (small(), X),
        (small(skdml.MarginEmbedder), X),
        (small(skdml.SoftTripleEmbedder, early_stopping=True, validation_fraction=0.3), X),
        (small(skdml.SSTEmbedder), X),
        (small(backbone=dropout_backbone()), X),
        (small(skdml.MarginEmbedder, backbone=dropout_backbone(), early_stopping=True, validation_fraction=0.3), X),
        (small(skdml.RecallSurrogateEmbedder, chunk_size=4, backbone=dropout_backbone()), X),
        (small(backbone=Noise(), freeze="backbone"), X),
        (small(augment=noisy), IMAGES),
        (small(callbacks=[Draws()]), X),
        (small(callbacks=[Initializer("*weight", nn.init.normal_)]), X),
        (small(mining=lambda S, positive, negative: (positive, negative & (torch.rand_like(S) < 0.5))), X),
    ],
    ids=[
        "default",
        "distance_weighted",
        "early_stopping",
        "clusters",
        "dropout",
        "dropout_and_early_stopping",
        "chunks",
        "drawing_backbone",
        "augment",
        "callback",
        "initializer",
        "mining",
    ],
)
@pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning")
def test_fits_in_threads_are_those_in_turn(embedder, data):
    expected = weights_of(clone(embedder).fit(data, y))
    torch.manual_seed(3)
    numpy_state, state = pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    for got in in_threads(embedder, data):
        for a, b in zip(weights_of(got), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert pickle.dumps(np.random.get_state()) == numpy_state  # noqa: NPY002


@pytest.mark.usefixtures("busy")
def test_search_with_threads_is_that_in_turn():
    def scores(n_jobs):
        grid = {"learning_rate": [1e-3, 1e-2], "backbone": [None, dropout_backbone()]}
        search = GridSearchCV(small(skdml.MarginEmbedder), grid, scoring=skdml.RecallAtK(1), cv=2, n_jobs=n_jobs)
        with joblib.parallel_config(backend="threading"):
            return search.fit(X, y).cv_results_["mean_test_score"]

    np.testing.assert_array_equal(scores(3), scores(1))


def test_numbers_go_on_in_the_next_block(device):
    device = torch.device(device)
    numbers = seeded(5, device)
    with numbers:
        first = torch.rand(3, device=device)
        with numbers:
            second = torch.rand(3, device=device)
    third = torch.rand(3, generator=numbers.generator(), device=device)
    with numbers:
        fourth = numbers(torch.rand)(3, device=device)
    torch.testing.assert_close(fourth, third)
    with seeded(5, device):
        torch.testing.assert_close([torch.rand(3, device=device) for _ in range(3)], [first, second, third])


def test_a_callback_may_fit_another_embedder():
    class Fits(Callback):
        def on_epoch_end(self, net, **kwargs):
            small(backbone=dropout_backbone()).fit(X, y)

    expected = weights_of(small(backbone=dropout_backbone()).fit(X, y))
    got = weights_of(small(backbone=dropout_backbone(), callbacks=[Fits()]).fit(X, y))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("module", "draws"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten()), False),
        (dropout_backbone(), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.1), True),
        (nn.RReLU(), True),
        (Noise(), True),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), True),
        (losses.RAWLoss(), False),
        (losses.RAWLoss(mining=noisy), True),
    ],
    ids=[
        "convolutions",
        "dropout",
        "attention",
        "lstm",
        "rrelu",
        "unknown",
        "parametrized",
        "loss",
        "loss_with_function",
    ],
)
def test_what_may_draw(module, draws):
    assert may_draw(module) is draws


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_default_networks_and_losses_do_not_wait_for_other_threads(cls, monkeypatch):
    seen = []
    epoch = EmbeddingNet.run_single_epoch
    monkeypatch.setattr(
        EmbeddingNet,
        "run_single_epoch",
        lambda self, *args, **kwargs: seen.append(self.draws) or epoch(self, *args, **kwargs),
    )
    small(cls).fit(X, y)
    assert all(draws is NO_DRAWS for draws in seen)


@pytest.mark.usefixtures("busy")
def test_warning_filters_after_fits_in_threads(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(y))]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: (time.sleep(1e-4), opened(*args, **kwargs))[1])
    embedder = small(resize=None)
    embedder.fit(paths, y)  # imports what adds filters of its own
    before = list(warnings.filters)
    in_threads(embedder, paths, n=3)
    in_threads(small(skdml.SSTEmbedder), X, n=3)
    assert warnings.filters == before


def test_no_warning_is_lost_to_the_filters_of_another_thread():
    inside, done = threading.Event(), threading.Event()

    def hide():
        with own_filters():
            warnings.simplefilter("ignore")
            inside.set()
            done.wait(5)

    def warn_while_hidden():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(hide)
            assert inside.wait(30)
            threading.Timer(0.05, done.set).start()
            warn("here")

    with pytest.warns(UserWarning, match="here"):
        warn_while_hidden()
