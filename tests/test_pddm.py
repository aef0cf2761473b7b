"""PDDM against its formula in plain loops, its quadruplets against a search, and batches without one."""

import pytest
import torch
from torch.nn.functional import linear

from skdml.losses import PDDMLoss

D = 4
SETTINGS = {"score_margin": 0.3, "distance_margin": 0.8, "distance_weight": 0.7, "n_hidden": 6}


@pytest.fixture
def batch():
    """Rows (B, D) of various lengths and labels (B,), one class with a single sample."""
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def make_loss(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return PDDMLoss(D, **settings).double()


def score(loss, a, b):
    """The score of one pair, layer by layer."""
    u = linear((a - b).abs(), loss.difference_layer.weight, loss.difference_layer.bias).clamp(min=0)
    v = linear((a + b) / 2, loss.mean_layer.weight, loss.mean_layer.bias).clamp(min=0)
    joint = torch.cat([z / z.norm().clamp(min=1e-12) for z in (u, v)])
    c = linear(joint, loss.joint_layer.weight, loss.joint_layer.bias).clamp(min=0)
    return (loss.score_layer.weight @ c + loss.score_layer.bias)[0]


def quadruplets(loss, x, y, n):
    """The n positive pairs of the lowest scores, with the most similar negatives of both ends."""
    indices = range(len(y))
    pairs = [(i, j) for i in indices for j in indices if i < j and y[i] == y[j]]
    for i, j in sorted(pairs, key=lambda pair: score(loss, x[pair[0]], x[pair[1]]).item())[:n]:
        k = max((k for k in indices if y[k] != y[i]), key=lambda k: score(loss, x[i], x[k]).item())
        l = max((l for l in indices if y[l] != y[j]), key=lambda l: score(loss, x[j], x[l]).item())
        yield i, j, k, l


def in_loops(loss, x, chosen):
    terms = []
    for i, j, k, l in chosen:
        for anchor, other in ((i, k), (j, l)):
            by_score = loss.score_margin + score(loss, x[anchor], x[other]) - score(loss, x[i], x[j])
            by_distance = loss.distance_margin + (x[i] - x[j]).norm() - (x[anchor] - x[other]).norm()
            terms.append(by_score.clamp(min=0) + loss.distance_weight * by_distance.clamp(min=0))
    return 2 * sum(terms) / len(terms)


@pytest.mark.parametrize(
    "settings", [{}, {"n_quadruplets": 1}, {"n_quadruplets": 50}, {**SETTINGS, "n_quadruplets": 3}]
)
def test_equals_the_formula(batch, settings):
    x, y = batch
    loss = make_loss(**settings)
    chosen = list(quadruplets(loss, x, y, loss.n_quadruplets))
    assert len(chosen) == min(loss.n_quadruplets or 7, 7)
    value, expected = loss(x, y), in_loops(loss, x, chosen)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    leaves = [x, *loss.parameters()]
    torch.testing.assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))


def test_one_quadruplet_moves_four_samples(batch):
    x, y = batch
    loss = make_loss(n_quadruplets=1)
    ((i, j, k, l),) = quadruplets(loss, x, y, 1)
    loss(x, y).backward()
    assert set(x.grad.abs().sum(dim=1).nonzero().flatten().tolist()) == {i, j, k, l}


def test_score_depends_on_the_position_and_not_on_the_order(batch):
    x, _ = batch
    loss = make_loss()
    torch.testing.assert_close(loss.scores(x[:4], x[4:8]), loss.scores(x[4:8], x[:4]))
    moved = loss.scores(x[:4] + 1, x[4:8] + 1)
    assert (moved - loss.scores(x[:4], x[4:8])).abs().max() > 1e-3


def test_without_distances_only_the_scores_count(batch):
    x, y = batch
    values = [make_loss(distance_weight=0.0, distance_margin=margin)(x, y) for margin in (0.0, 5.0)]
    torch.testing.assert_close(*values)


def test_collapsed_batch_gives_the_margins():
    """All scores and all distances are equal, so each of the four hinges is its margin."""
    x = torch.ones(6, D, dtype=torch.float64, requires_grad=True)
    value = make_loss(**SETTINGS)(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(2 * 0.3 + 0.7 * 2 * 0.8)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("y", [[5] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_without_quadruplets_gives_zero(y):
    loss = make_loss()
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    value = loss(x, torch.tensor(y))
    value.backward()
    assert value == 0
    for leaf in (x, *loss.parameters()):
        assert leaf.grad.equal(torch.zeros_like(leaf))


def test_hidden_units_default_to_the_components():
    assert PDDMLoss(5).joint_layer.weight.shape == (5, 10)
    assert PDDMLoss(5, n_hidden=3).joint_layer.weight.shape == (3, 6)
