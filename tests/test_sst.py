"""SST against its formula in plain loops, and where triplets are few, tied or far from the origin."""

import math

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch.nn.functional import softplus

from skdml import SSTEmbedder
from skdml._loss.pairs import pair_masks
from skdml._loss.similarities import distance_similarities
from skdml.losses import SSTLoss


@pytest.fixture
def batch():
    """Rows (B, D) of various lengths and labels (B,), one class with a single sample."""
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7, 0])


def triplets_in_loops(x, y, n_targets):
    for a in range(len(y)):
        others = [p for p in range(len(y)) if p != a and y[p] == y[a]]
        for p in sorted(others, key=lambda p: (x[a] - x[p]).norm().item())[:n_targets]:
            for n in range(len(y)):
                if y[n] != y[a]:
                    yield a, p, n


def in_loops(x, triplets):
    terms = []
    for a, p, n in triplets:
        ap, an, pn = (x[a] - x[p]).square().sum(), (x[a] - x[n]).square().sum(), (x[p] - x[n]).square().sum()
        terms.append(softplus(ap - (an + pn) / 2))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("n_targets", [1, 2, 5, 50])
def test_equals_the_formula(batch, n_targets):
    x, y = batch
    value = SSTLoss(n_targets=n_targets)(x, y)
    expected = in_loops(x, list(triplets_in_loops(x, y, n_targets)))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_gradient_of_one_triplet():
    """With g = sig(z) the rows get g (a - 2p + n), g (p - 2a + n), g (a + p - 2n), from (a, p) as from (p, a)."""
    x = torch.tensor([[0.0, 1.0], [1.0, 0.5], [2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    SSTLoss()(x, torch.tensor([3, 3, 5])).backward()
    a, p, n = x.detach()
    z = (a - p).square().sum() - ((a - n).square().sum() + (p - n).square().sum()) / 2
    expected = torch.sigmoid(z) * torch.stack([a - 2 * p + n, p - 2 * a + n, a + p - 2 * n])
    torch.testing.assert_close(x.grad, expected)


def test_is_the_angular_constraint_at_30_degrees():
    a, p, n = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = 0.75 * (a - p).square().sum() - (n - (a + p) / 2).square().sum()
    torch.testing.assert_close(SSTLoss()(torch.stack([a, p, n]), torch.tensor([0, 0, 1])), softplus(z))


def test_ties_go_to_the_lowest_index():
    """Anchor 1 is as far from 0 as from 2; were 2 its target, the loss would be another."""
    x = torch.tensor([[-1.0], [0.0], [1.0], [3.0]])
    y = torch.tensor([0, 0, 0, 1])
    chosen = [(0, 1, 3), (1, 0, 3), (2, 1, 3)]
    other = [(0, 1, 3), (1, 2, 3), (2, 1, 3)]
    value = SSTLoss(n_targets=1)(x, y)
    assert value.item() == pytest.approx(in_loops(x, chosen).item())
    assert value.item() != pytest.approx(in_loops(x, other).item())


def test_single_sample_is_a_negative_but_no_anchor(batch):
    x, y = batch
    assert all(a != 8 for a, _, _ in triplets_in_loops(x, y, 5))
    (grad,) = torch.autograd.grad(SSTLoss()(x, y), x)
    assert grad[8].abs().max() > 1e-3


@pytest.mark.parametrize("y", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_without_triplets_gives_zero(y):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = SSTLoss()(x, torch.tensor(y))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_collapsed_batch_gives_log_2():
    x = torch.ones(6, 3, requires_grad=True)
    value = SSTLoss()(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert x.grad.equal(torch.zeros_like(x))


def test_origin_does_not_matter_even_in_float32(batch):
    """Squared norms of 3e6 would leave no digit of squared distances of 1 in float32."""
    x, y = batch
    expected = SSTLoss(n_targets=2)(x, y)
    x = (x.detach().float() + 1024).requires_grad_()  # 1024: the sum keeps 13 bits behind the point
    value = SSTLoss(n_targets=2)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    (grad,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(grad.sum(dim=0), torch.zeros(3), rtol=0, atol=1e-5)


def test_targets_may_be_given_as_the_positive_mask(batch):
    x, y = batch
    positive, negative = pair_masks(y)
    targets = positive & (torch.arange(len(y)) % 2 == 0)
    triplets = [(a, p, n) for a, p in targets.nonzero().tolist() for n in negative[a].nonzero().flatten().tolist()]
    value = SSTLoss(n_targets=9).pair_loss(distance_similarities(x), targets, negative)
    torch.testing.assert_close(value, in_loops(x, triplets))


def test_embedder_batches_are_clusters_of_its_own_embeddings():
    """The batches follow the network of the epoch: rows that share a batch are nearer than others."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 3)).astype(np.float32), rng.integers(40, size=400)
    seen = []

    class Look(Callback):
        def on_batch_end(self, net, batch=None, **kwargs):
            seen.append(batch[0])

    SSTEmbedder(batch_size=40, max_epochs=1, n_targets=3, callbacks=[Look()], random_state=0).fit(X, y)
    within = np.mean([torch.cdist(rows, rows).mean() for rows in seen])
    assert within < 0.8 * torch.cdist(torch.from_numpy(X), torch.from_numpy(X)).mean()
