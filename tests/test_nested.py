"""Nested embeddings: the loss of cuts against sums by hand, the start, and what each embedder makes of it."""

import copy
import inspect

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.nn.functional import normalize

import skdml
from skdml import MetricEmbedder, NormSoftmaxEmbedder, RAWEmbedder, SoftTripleEmbedder, losses, recall_at_k
from skdml._engine.embedder import BaseEmbedder
from skdml._engine.nested import NestedLoss
from skdml._loss.memory import CrossBatchMemory

EMBEDDERS = [
    value
    for name in skdml.__all__
    if inspect.isclass(value := getattr(skdml, name)) and issubclass(value, BaseEmbedder)
]
IN_PARTS = (skdml.HDCEmbedder, skdml.BIEREmbedder)  # their losses split the embedding themselves

pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning")


@pytest.fixture
def batch():
    """Unit rows (12, 6) in float64 with gradient, classes and weights."""
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(12, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    return x, torch.arange(12) % 3, torch.rand(12, generator=generator, dtype=torch.float64)


def cut(x, m, unit=True):
    return normalize(x[:, :m]) if unit and m < x.shape[1] else x[:, :m]


# ---- the loss


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_mean_over_cuts_of_a_loss_over_pairs(batch, unit, weighted):
    x, y, w = batch
    weights = {"sample_weight": w} if weighted else {}
    loss = losses.RAWLoss(mining=None)
    expected = (loss(cut(x, 2, unit), y, **weights) + loss(cut(x, 5, unit), y, **weights) + loss(x, y, **weights)) / 3
    value = NestedLoss(loss, (2, 5), unit)(x, y, **weights)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda D: losses.SoftTripleLoss(3, D, n_centers=2), "centers"),
        (lambda D: losses.ArcFaceLoss(3, D, n_centers=2), "centers"),
        (lambda D: losses.NormSoftmaxLoss(3, D), "proxies"),
        (lambda D: losses.ProxyNCALoss(3, D), "proxies"),
        (lambda D: losses.ProxyAnchorLoss(3, D), "proxies"),
    ],
)
def test_proxies_are_cut_with_the_embeddings(batch, make, name, dtype):
    """Against losses of 2, 5 and 6 components whose proxies are the first components of the same ones."""
    x, y, _ = batch
    whole = make(6).to(dtype)
    expected, grad = 0, torch.zeros_like(getattr(whole, name))
    for m in (2, 5, 6):
        part = make(m).to(dtype)
        getattr(part, name).data = getattr(whole, name).detach()[..., :m].clone()
        value = part(cut(x, m), y) / 3
        value.backward()
        grad[..., :m] += getattr(part, name).grad
        expected += value.detach()
    expected_x, x.grad = x.grad, None

    value = NestedLoss(whole, (2, 5), normalize=True)(x, y)
    value.backward()
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(x.grad, expected_x)
    torch.testing.assert_close(getattr(whole, name).grad, grad)


def test_boundaries_of_classes_are_not_cut(batch):
    """Also if there are as many classes as components."""
    x, y, _ = batch
    loss = losses.MarginLoss(6, mining=None)
    nn.init.uniform_(loss.betas)
    expected = (loss(cut(x, 2), y) + loss(x, y)) / 2
    torch.testing.assert_close(NestedLoss(loss, (2,), normalize=True)(x, y), expected)


def test_scores_of_pddm_see_zeros_for_what_is_cut(batch):
    x, y, _ = batch
    loss = losses.PDDMLoss(6, n_hidden=6)
    padded = torch.cat([cut(x, 2), torch.zeros(12, 4, dtype=x.dtype)], dim=1)
    expected = (loss(padded, y) + loss(x, y)) / 2
    torch.testing.assert_close(NestedLoss(loss, (2,), normalize=True)(x, y), expected)


def test_all_components_count_once(batch):
    x, y, _ = batch
    loss = losses.SupConLoss()
    assert NestedLoss(loss, (6,), normalize=True)(x, y) == loss(x, y)
    assert NestedLoss(loss, (2, 6), normalize=True)(x, y) == NestedLoss(loss, (2,), normalize=True)(x, y)


def test_a_batch_is_one_step_of_an_annealing(batch):
    x, y, _ = batch
    loss = losses.LargeMarginSoftmaxLoss(3, 6, annealing_base=10.0, annealing_gamma=1.0, annealing_power=1.0)
    nested = NestedLoss(copy.deepcopy(loss), (2, 5), normalize=False)
    for _ in range(2):
        parts = [copy.deepcopy(loss) for _ in range(3)]
        for m, part in zip((2, 5, 6), parts, strict=True):
            part.proxies.data = part.proxies.data[:, :m]
        expected = sum(part(x[:, :m], y) for m, part in zip((2, 5, 6), parts, strict=True)) / 3
        torch.testing.assert_close(nested(x, y), expected)
        loss(x, y)
        assert nested.loss.n_steps == loss.n_steps


def test_the_memory_holds_whole_embeddings_and_compares_cuts():
    """Like one memory for each size; each batch is remembered once."""
    generator = torch.Generator().manual_seed(0)
    loss = losses.ContrastiveLoss()
    nested = CrossBatchMemory(NestedLoss(loss, (2, 4), normalize=True), 20, memory_start=1)
    memories = [CrossBatchMemory(loss, 20, memory_start=1) for _ in range(3)]
    for n in (8, 8, 3, 8):
        x = normalize(torch.randn(n, 6, generator=generator, dtype=torch.float64)).requires_grad_()
        y = torch.randint(3, (n,), generator=generator)
        expected = sum(memory(cut(x, m), y) for m, memory in zip((2, 4, 6), memories, strict=True)) / 3
        value = nested(x, y)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))
    assert (nested.n_batches, nested.n_rows, nested.embeddings.shape) == (4, 27, (20, 6))


def test_a_miner_sees_each_cut(blobs):
    seen = []

    def miner(embeddings, y):
        seen.append(embeddings.shape[1])

    class Loss(nn.Module):
        def forward(self, embeddings, y, pairs):
            return losses.RAWLoss()(embeddings, y)

    MetricEmbedder(loss=Loss(), miner=miner, nested_components=(3, 5), batch_size=60, max_epochs=1).fit(*blobs)
    assert set(seen) == {3, 5, 64}


# ---- the start


@pytest.mark.parametrize("n_samples", [60, 20])  # more and fewer than columns
@pytest.mark.parametrize("n_components", ["auto", None, 10])
def test_training_starts_at_principal_components(n_samples, n_components):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n_samples, 30)) * rng.permutation(0.6 ** np.arange(30)) + 0.01).astype(np.float32)
    new = rng.normal(size=(15, 30)).astype(np.float32)
    embedder = SoftTripleEmbedder(
        nested_components=(2, 5), n_components=n_components, learning_rate=1e-12, max_epochs=1, random_state=0
    ).fit(X, np.arange(n_samples) % 4)
    components = np.linalg.svd(X.astype(np.float64))[2]
    for rows in (X, new):
        Z = embedder.transform(rows)
        for m in (2, 5):
            check_cosines(Z[:, :m], rows @ components[:m].T)
        check_cosines(Z, rows if n_components != 10 else rows @ components[:10].T)


def check_cosines(Z, expected):
    Z, expected = (normalize(torch.from_numpy(a).double()).numpy() for a in (Z, expected))
    np.testing.assert_allclose(Z @ Z.T, expected @ expected.T, atol=1e-4)


# ---- the embedders


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_every_embedder_is_nested_or_says_why_not(cls, blobs):
    embedder = cls(nested_components=(2, 4), n_components=6, hidden_layer_sizes=(8,), max_epochs=2, random_state=0)
    if cls in IN_PARTS:
        with pytest.raises(ValueError, match=f"of {cls.__name__} would cut embeddings that {cls._loss_class.__name__}"):
            embedder.fit(*blobs)
        return
    embedder.fit(*blobs)
    whole = clone(embedder).set_params(nested_components=(6,)).fit(*blobs)
    assert embedder.transform(blobs[0]).shape == (60, 6)
    assert type(embedder.criterion_) is type(whole.criterion_)
    assert embedder.criterion_.state_dict().keys() == whole.criterion_.state_dict().keys()
    losses = [[epoch["loss"] for epoch in e.history_] for e in (embedder, whole)]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


def test_a_cut_is_better_than_that_of_an_ordinary_embedding(hidden):
    X, y = hidden
    ordinary = RAWEmbedder(n_components=16, random_state=0).fit(X[:140], y[:140])
    nested = clone(ordinary).set_params(nested_components=(4,)).fit(X[:140], y[:140])
    cuts = [recall_at_k(embedder.transform(X[140:])[:, :4], y[140:]) for embedder in (ordinary, nested)]
    assert cuts[1] > cuts[0] + 0.05
    assert nested.score(X[140:], y[140:]) > ordinary.score(X[140:], y[140:]) - 0.1


def test_images_and_new_classes():
    """The default network for images, which has no start, and proxies that grow."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 255, size=(24, 8, 8), dtype=np.uint8), np.arange(24) % 4
    embedder = NormSoftmaxEmbedder(nested_components=(2, 4), n_components=6, random_state=0)
    embedder.partial_fit(X[y < 3], y[y < 3]).partial_fit(X, y)
    assert embedder.criterion_.proxies.shape == (4, 6)
    assert embedder.n_iter_ == 2


def test_saved_and_loaded(blobs, tmp_path):
    X, y = blobs
    embedder = SoftTripleEmbedder(nested_components=(2, 4), n_components=6, max_epochs=1, random_state=0).fit(X, y)
    embedder.save(tmp_path)
    loaded = skdml.load(tmp_path)
    assert loaded.nested_components == (2, 4)
    np.testing.assert_array_equal(loaded.transform(X), embedder.transform(X))
    np.testing.assert_array_equal(copy.deepcopy(embedder).transform(X), embedder.transform(X))


# ---- bad input


@pytest.mark.parametrize("sizes", [(), (0, 4), (4, 4), (8, 4), (2.0, 4), ("2",)])
def test_sizes_that_are_not_rising(sizes, blobs):
    with pytest.raises(ValueError, match="'nested_components' parameter of RAWEmbedder must be None or rising"):
        RAWEmbedder(nested_components=sizes).fit(*blobs)


@pytest.mark.parametrize(("n_components", "D"), [(16, 16), ("auto", 64), (None, 6)])
def test_sizes_beyond_the_embedding(n_components, D, blobs):
    embedder = RAWEmbedder(nested_components=(4, 65), n_components=n_components)
    with pytest.raises(ValueError, match=rf"nested_components=\(4, 65\) of RAWEmbedder .* which has {D} components"):
        embedder.fit(*blobs)
    assert vars(embedder) == vars(clone(embedder))


def test_a_loss_of_unknown_parameters(blobs):
    class OwnProxies(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.randn(64, 4))
            self.scale = nn.Parameter(torch.tensor(5.0))

        def forward(self, embeddings, y):
            return nn.functional.cross_entropy(self.scale * embeddings @ self.W[: embeddings.shape[1]], y)

    embedder = MetricEmbedder(loss=OwnProxies(), nested_components=(4,))
    with pytest.raises(ValueError, match=r"would have to cut W of OwnProxies, of shape \(64, 4\)"):
        embedder.fit(*blobs)
    embedder.set_params(n_components=32, max_epochs=1).fit(*blobs)  # no axis is that of the components
