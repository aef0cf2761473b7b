"""A share of the classes in each step: the loss over what was drawn, the steps of rows, and what fits make of both."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.nn.functional import normalize

import skdml
from skdml import (
    ArcFaceEmbedder,
    MetricEmbedder,
    NormSoftmaxEmbedder,
    ProxyAnchorEmbedder,
    ProxyNCAEmbedder,
    SoftTripleEmbedder,
    losses,
)
from skdml._engine.rows import ROW_OPTIMIZERS

EMBEDDERS = [ArcFaceEmbedder, NormSoftmaxEmbedder, ProxyAnchorEmbedder, ProxyNCAEmbedder, SoftTripleEmbedder]
MAKE = {
    "ArcFace": lambda C, **rate: losses.ArcFaceLoss(C, 5, n_centers=2, **rate),
    "NormSoftmax": lambda C, **rate: losses.NormSoftmaxLoss(C, 5, **rate),
    "ProxyAnchor": lambda C, **rate: losses.ProxyAnchorLoss(C, 5, **rate),
    "ProxyNCA": lambda C, **rate: losses.ProxyNCALoss(C, 5, label_smoothing=0.1, **rate),
    "SoftTriple": lambda C, **rate: losses.SoftTripleLoss(C, 5, n_centers=2, **rate),
}

pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning")


@pytest.fixture
def batch():
    """Unit rows (8, 5) with gradient, and classes, some of 20."""
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(8, 5, generator=generator)).requires_grad_(), torch.tensor([3, 3, 7, 0, 19, 7, 3, 12])


# ---- the loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rate", "n_drawn"), [(0.5, 10), (0.1, 5)])  # at least the five classes of the batch
@pytest.mark.parametrize("name", MAKE)
def test_the_loss_is_that_of_the_classes_drawn(name, rate, n_drawn, dtype, batch):
    x, y = batch[0].detach().to(dtype).requires_grad_(), batch[1]
    loss = MAKE[name](20, class_sample_rate=rate)
    (proxies,) = loss.parameters()
    value = loss(x, y)
    value.backward()
    grad = proxies.grad
    assert grad.is_sparse == (dtype == torch.float32)  # as the proxies are
    drawn = grad.to_dense().flatten(1).any(dim=1).nonzero()[:, 0]
    assert len(drawn) == n_drawn
    assert set(y.tolist()) <= set(drawn.tolist())

    of_drawn = MAKE[name](n_drawn)
    (part,) = of_drawn.parameters()
    part.data = proxies.detach()[drawn]
    z = x.detach().clone().requires_grad_()
    expected = of_drawn(z, torch.searchsorted(drawn, y))
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(grad.to_dense()[drawn], part.grad)


@pytest.mark.parametrize("name", MAKE)
def test_all_classes_outside_of_training(name, batch):
    loss, full = MAKE[name](20, class_sample_rate=0.3).eval(), MAKE[name](20)
    full.load_state_dict(loss.state_dict())
    assert loss(*batch) == full(*batch)
    full(*batch).backward()
    assert not next(full.parameters()).grad.is_sparse


def test_other_classes_are_drawn_evenly_and_from_the_generator_lent(batch):
    y = batch[1]
    loss = losses.NormSoftmaxLoss(20, 5, class_sample_rate=0.5)
    loss._generator = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    draws = [loss._draw_classes(y) for _ in range(600)]
    assert torch.equal(torch.get_rng_state(), before)
    counts = torch.stack(draws).flatten().bincount(minlength=20)
    own = y.unique()
    assert (counts[own] == 600).all()
    others = counts[[c for c in range(20) if c not in own]].double()
    assert (others - 200).abs().max() < 60  # 5 of 15; a standard deviation is 12


# ---- the steps


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3)])
@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_a_row_steps_as_a_parameter_of_its_own(name, shape):
    """As torch's optimizer of dense gradients, which steps where the row has one; the other rows stay as they are."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    table, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    settings = {"lr": 0.1, "weight_decay": 0.1}
    optimizer = ROW_OPTIMIZERS[name]([table, other], **settings)
    kind = type(optimizer).__mro__[2]
    assert kind.__module__.startswith("torch.optim")
    separate = [kind([row], **settings) for row in rows]
    same = kind([dense := torch.nn.Parameter(other.detach().clone())], **settings)
    for step in range(12):
        index = torch.randperm(6, generator=generator)[: 1 + step % 3].sort().values
        grad = torch.randn(len(index), *shape[1:], generator=generator, dtype=torch.float64)
        table.grad = torch.sparse_coo_tensor(index[None], grad, shape, check_invariants=False)
        other.grad, dense.grad = torch.full((2,), 2.0).double(), torch.full((2,), 2.0).double()
        for group in [*optimizer.param_groups, *(o.param_groups[0] for o in (*separate, same))]:
            group["lr"] = 0.1 / (1 + step)
            if "betas" in group:
                group["betas"] = (0.95 - 0.01 * step, 0.999)
        before = table.detach().clone()
        optimizer.step()
        same.step()
        for i, g in zip(index, grad, strict=True):
            rows[i].grad = g
            separate[i].step()
        left = [i for i in range(6) if i not in index]
        assert torch.equal(table.detach()[left], before[left])
        torch.testing.assert_close(table.detach(), torch.stack([row.detach() for row in rows]), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(other, dense)


# ---- the embedders


@pytest.mark.parametrize("cls", EMBEDDERS, ids=lambda cls: cls.__name__)
def test_embedders_learn_from_a_share_of_the_classes(cls, hidden):
    X, y = hidden
    embedder = cls(class_sample_rate=0.3, batch_size=20, max_epochs=10, hidden_layer_sizes=(16,), random_state=0)
    before = torch.get_rng_state()
    embedder.fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    losses = [epoch["loss"] for epoch in embedder.history_]
    assert losses[-1] < losses[0]
    full = clone(embedder).set_params(class_sample_rate=1.0).fit(X, y)
    assert not np.allclose(full.transform(X), embedder.transform(X))
    assert "_generator" not in vars(embedder.criterion_)
    np.testing.assert_array_equal(clone(embedder).fit(X, y).transform(X), embedder.transform(X))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_other_optimizers_and_a_loss_in_a_metric_embedder(optimizer, blobs, tmp_path):
    X, y = blobs
    settings = {"n_components": 5, "max_epochs": 2, "optimizer": optimizer, "random_state": 0}
    embedder = NormSoftmaxEmbedder(class_sample_rate=0.5, **settings).fit(X, y)
    assert np.isfinite(embedder.history_[-1]["loss"])
    embedder.save(tmp_path)
    np.testing.assert_array_equal(skdml.load(tmp_path).transform(X), embedder.transform(X))
    loss = losses.NormSoftmaxLoss(4, 5, class_sample_rate=0.5)
    start = loss.proxies.detach().clone()
    metric = MetricEmbedder(loss=loss, batches="shuffled", **settings).fit(X, y)
    assert not torch.equal(metric.criterion_.proxies, start)


def test_what_does_not_go_with_it(blobs):
    embedder = NormSoftmaxEmbedder(class_sample_rate=0.5, optimizer=torch.optim.RMSprop)
    with pytest.raises(ValueError, match=r"for which NormSoftmaxEmbedder has steps of its own, not those of .*RMSprop"):
        embedder.fit(*blobs)
    embedder.set_params(optimizer="adamw", nested_components=(2,))
    with pytest.raises(ValueError, match=r"NormSoftmaxEmbedder cannot cut the embedding \(nested_components=\(2,\)\)"):
        embedder.fit(*blobs)
    assert vars(embedder) == vars(clone(embedder))
    for rate in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"'class_sample_rate' parameter of .* must be a float in the range"):
            embedder.set_params(class_sample_rate=rate).fit(*blobs)
        with pytest.raises(ValueError, match="'class_sample_rate' parameter of NormSoftmaxLoss must be a float"):
            losses.NormSoftmaxLoss(3, 2, class_sample_rate=rate)
