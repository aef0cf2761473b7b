"""BIER and A-BIER against their formulas in plain loops, the groups and their limit cases."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from skdml import BIEREmbedder, recall_at_k
from skdml._methods.bier import group_sizes
from skdml.losses import BIERLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 7])


def in_loops(x, y, sizes, loss):
    """Pair by pair, group by group, with a boosting weight that is a number."""
    B, D = x.shape
    n_positive = sum(bool(y[i] == y[j]) for i in range(B) for j in range(B) if i != j)
    n_negative = sum(bool(y[i] != y[j]) for i in range(B) for j in range(B))
    total = 0
    for i in range(B):
        for j in range(B):
            if i == j:
                continue
            c, n = (1, n_positive) if y[i] == y[j] else (-loss.negative_cost, n_negative)
            r, b = 0, 1
            for m, (part, size) in enumerate(zip(x.split(sizes, dim=1), sizes, strict=True), start=1):
                z = loss.alpha * c * (D / size * part[i] @ part[j] - loss.threshold)
                total = total + b * torch.log1p(torch.exp(-z)) / n / len(sizes)
                eta = 2 / (m + 1)
                r = (1 - eta) * r + eta * z.item()
                b = 1 / (1 + math.exp(r))
    return total


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [1, 2, 3]),
        ({"group_shares": (1,)}, [6]),
        ({"group_shares": (1, 1, 1, 1), "alpha": 3.0, "threshold": 0.1, "negative_cost": 25.0}, [2, 1, 1, 2]),
    ],
)
def test_equals_the_formula(batch, settings, sizes):
    x, y = batch
    loss = BIERLoss(6, **settings)
    expected = in_loops(x, y, sizes, loss)
    value = loss(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_adversarial_term(batch):
    """Value in loops; the regressors' gradient is that of the value, the embeddings' of the sign turned."""
    x, y = batch
    loss = BIERLoss(6, adversarial=True, diversity_weight=0.3).double()
    for p in loss.parameters():
        nn.init.normal_(p, std=0.3)  # off the bounds on weights and biases
    adversary, penalty, k = 0, 0, 0
    groups = [(6 / size) ** 0.5 * part for part, size in zip(x.split([1, 2, 3], dim=1), [1, 2, 3], strict=True)]
    for f, source in combinations(groups, 2):
        first, _, second = loss.regressors[k]
        told = (source @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
        adversary = adversary - sum((f[b] * told[b]).square().sum() for b in range(len(x))) / f.numel()
        for layer in (first, second):
            columns = [column.square().sum() for column in layer.weight.T]
            penalty = penalty + 100 * sum((c - 1) ** 2 for c in columns) / len(columns)
            penalty = penalty + 100 * max(layer.bias.square().sum() - 1, 0)
        k += 1
    assert k == len(loss.regressors) == 3
    boosted = BIERLoss(6)(x, y)
    value = loss(x, y)
    assert value.item() == pytest.approx((boosted + 0.3 * (adversary + penalty)).item(), rel=1e-12)
    x_expected = torch.autograd.grad(boosted - 0.3 * adversary, x, retain_graph=True)
    expected = torch.autograd.grad(0.3 * (adversary + penalty), [*loss.parameters()])
    grads = torch.autograd.grad(value, [x, *loss.parameters()])
    torch.testing.assert_close(grads, (*x_expected, *expected))


def test_regressors_start_within_their_bounds():
    loss = BIERLoss(6, adversarial=True)
    for g in loss.regressors:
        for layer in (g[0], g[2]):
            torch.testing.assert_close(layer.weight.norm(dim=0), torch.ones(layer.in_features))
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("rows", [torch.zeros(4, 6), torch.ones(4, 6), 1e4 * torch.eye(6)[:4]], ids=["0", "1", "long"])
def test_adversarial_gradient_is_finite(rows):
    loss = BIERLoss(6, adversarial=True)
    x = rows.clone().requires_grad_()
    for grad in torch.autograd.grad(loss(x, torch.tensor([0, 0, 1, 1])), [x, *loss.parameters()]):
        assert grad.isfinite().all()


def test_adversarial_step_waits_for_no_value():
    loss = BIERLoss(6, adversarial=True).to("meta")
    assert loss(torch.zeros(4, 6, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")).is_meta


def test_empty_batch_with_an_adversary_gives_zero():
    loss = BIERLoss(6, adversarial=True)
    x = torch.zeros(0, 6, requires_grad=True)
    grads = torch.autograd.grad(loss(x, torch.zeros(0, dtype=torch.int64)), [x, *loss.parameters()])
    assert all((grad == 0).all() for grad in grads)


def test_what_one_group_knows_weighs_little_in_the_next():
    """Pair (0, 1) of a class has the cosine 1 in group 1, pair (2, 3) the cosine -1; both are orthogonal in group 2."""
    x = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [-1, 0, 0, 1]], requires_grad=True)
    y = torch.tensor([0, 0, 1, 1])
    BIERLoss(4, group_shares=(1, 1), negative_cost=1e-9)(x / 2**0.5, y).backward()
    pull = x.grad[[0, 2], 3]  # of rows 1 and 3, in group 2
    # b = 1 / (1 + e^(alpha (s - threshold))) for s = 1 and -1.
    assert (pull[1] / pull[0]).item() == pytest.approx((1 + math.exp(1)) / (1 + math.exp(-3)), rel=1e-4)


def test_dot_product_is_the_weighted_mean_of_the_cosines(blobs):
    X, y = blobs
    Z = torch.from_numpy(BIEREmbedder(max_epochs=2, batch_size=32, random_state=0).fit(X, y).transform(X))
    sizes = [12, 20, 32]
    cosines = [normalize(part) @ normalize(part).T for part in Z.split(sizes, dim=1)]
    torch.testing.assert_close(
        Z @ Z.T, sum(size / 64 * cosine for size, cosine in zip(sizes, cosines, strict=True)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("n_components", "sizes"),
    [(512, [96, 160, 256]), (64, [12, 20, 32]), (8, [2, 2, 4]), (3, [1, 1, 1]), (2, [1, 1]), (1, [1])],
)
def test_group_sizes(n_components, sizes):
    assert group_sizes(n_components, (3, 5, 8)) == sizes


@pytest.mark.parametrize("y", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_a_side_without_pairs_leaves_the_other(y):
    """Equal rows: cosine 1 in each group, hence z = 2 * 0.5 of positive pairs and -5 of negative ones."""
    x = torch.full((6, 4), 0.5, dtype=torch.float64, requires_grad=True)
    value = BIERLoss(4, group_shares=(1, 1))(x, torch.tensor(y))
    z = 1.0 if y[1] == 0 else -5.0
    expected = math.log1p(math.exp(-z)) * (1 + 1 / (1 + math.exp(z))) / 2
    assert value.item() == pytest.approx(expected)
    value.backward()
    assert x.grad.isfinite().all()


def test_without_pairs_zero_but_for_the_adversary():
    x = torch.ones(1, 4, requires_grad=True)
    value = BIERLoss(4)(x, torch.tensor([0]))
    value.backward()
    assert value == 0
    assert (x.grad == 0).all()
    assert BIERLoss(4, adversarial=True)(x, torch.tensor([0])) != 0


@pytest.mark.parametrize(
    "settings", [{"n_components": None}, {"normalize": False}, {"adversarial": True}, {"group_shares": (1, 2)}]
)
def test_embedder_settings(blobs, settings):
    X, y = blobs
    fitted = BIEREmbedder(**settings, max_epochs=20, batch_size=32, random_state=0).fit(X, y)
    assert len(fitted.criterion_.regressors) == (3 if settings.get("adversarial") else 0)
    assert fitted.transform(X).shape[1] == (6 if "n_components" in settings else 64)
    assert fitted.score(X, y) > 0.9


@pytest.mark.parametrize("n_columns", [6, 14, 40])
def test_every_group_learns(blobs, n_columns):
    """Groups of 12, 20 and 32 components: where X has fewer columns, the later ones have no column to begin at."""
    X, y = blobs
    X = X[:, [0, 1, 2, 3, 4, 5] * 7][:, :n_columns]
    params = {"hidden_layer_sizes": (), "batch_size": 32, "random_state": 0}
    first, later = (BIEREmbedder(max_epochs=n, learning_rate=1e-2, **params).fit(X, y) for n in (1, 40))
    for part, before in zip(*(np.split(e.transform(X), [12, 32], axis=1) for e in (later, first)), strict=True):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), (part.shape[1] / 64) ** 0.5, rtol=1e-5)
        assert np.abs(part - before).max() > 0.05
        assert recall_at_k(part, y) > 0.9
