"""The margin loss against its formula in plain loops, its learned boundaries, and which negatives it draws."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from skdml import MarginEmbedder
from skdml._loss.pairs import pair_masks
from skdml._loss.similarities import distance_similarities
from skdml.losses import MarginLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 3])


def make_loss(**params):
    loss = MarginLoss(5, **{"mining": None, **params}).double()
    loss.betas.data = torch.tensor([1.1, 0.9, 1.3, 1.2, 1.0], dtype=torch.float64)
    return loss


def in_loops(x, y, betas, margin, nu):
    terms, boundaries = [], []
    for a in range(len(y)):
        for j in range(len(y)):
            if j != a:
                d = (x[a] - x[j]).norm()
                terms.append((margin + (d - betas[y[a]]) * (1 if y[j] == y[a] else -1)).relu())
                boundaries.append(betas[y[a]])
    terms = torch.stack(terms)
    return terms.sum() / (terms > 0).sum() + nu * torch.stack(boundaries).mean()


@pytest.mark.parametrize("nu", [0.0, 0.3])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_equals_the_formula(batch, margin, nu):
    x, y = batch
    loss = make_loss(margin=margin, nu=nu)
    value, expected = loss(x, y), in_loops(x, y, loss.betas, margin, nu)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    leaves = [x, loss.betas]
    torch.testing.assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))


def test_boundary_is_that_of_the_anchor():
    """d = 1 between classes 0 and 1 with boundaries 0.5 and 1.5: only anchor 1 has an active term, 0.2 + 1.5 - 1."""
    loss = MarginLoss(2, mining=None)
    loss.betas.data = torch.tensor([0.5, 1.5])
    value = loss(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    value.backward()
    assert value.item() == pytest.approx(0.7)
    torch.testing.assert_close(loss.betas.grad, torch.tensor([0.0, 1.0]))


def test_boundaries_start_at_beta():
    loss = MarginLoss(3, beta=0.8)
    assert loss.beta == 0.8
    torch.testing.assert_close(loss.betas.detach(), torch.full((3,), 0.8))
    S, masks = distance_similarities(torch.tensor([[0.0], [1.0], [1.5]])), pair_masks(torch.tensor([0, 0, 2]))
    loss = MarginLoss(3, beta=0.8, mining=None)
    assert loss.pair_loss(S, *masks) == loss.pair_loss(S, *masks, torch.full((3,), 0.8))


def test_nothing_active_gives_zero():
    """Classes at one point each, far apart; and hinges at exactly 0."""
    for x in (10 * torch.eye(3).repeat_interleave(2, dim=0), torch.tensor([[0.0], [0.0], [2.0], [2.0]])):
        x.requires_grad_()
        loss = MarginLoss(3, margin=0.5, beta=1.5 if x.shape[1] == 1 else 1.2, mining=None)
        value = loss(x, torch.arange(len(x)) // 2)
        value.backward()
        assert value == 0
        assert x.grad.eq(0).all()
        assert loss.betas.grad.eq(0).all()


def test_one_class_pulls_and_single_samples_push(batch):
    x, _ = batch
    loss = make_loss()
    d = torch.cdist(x, x).detach() + 10 * torch.eye(9)
    pull = (0.2 + d - 0.9)[d < 9].relu()
    assert loss(x, torch.full((9,), 1)).item() == pytest.approx((pull.sum() / (pull > 0).sum()).item(), rel=1e-12)
    push = (0.2 + 0.9 - d[:2, :2]).relu()
    push[1] = (0.2 + 1.3 - d[1, :2]).relu()
    assert loss(x[:2], torch.tensor([1, 2])).item() == pytest.approx((push.sum() / (push > 0).sum()).item(), rel=1e-12)


def test_limits_reach_the_draw():
    """On a circle, rows at growing angles from row 0; of those with d < max_distance one is drawn, none beyond."""
    angle = torch.tensor([0.0, 0.05, 0.6, 1.0, 1.4, 2.0, 2.8])
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    S, masks = distance_similarities(x), pair_masks(torch.tensor([0, 0, 1, 2, 3, 4, 5]))
    torch.manual_seed(0)
    for max_distance, n_near in {0.7: 1, 1.1: 2, 2.01: 5}.items():
        loss = MarginLoss(6, max_distance=max_distance)
        drawn = torch.stack([loss.mine(S, *masks, 2)[1][0] for _ in range(100)])
        assert drawn.sum(dim=1).eq(1).all()
        assert drawn.any(dim=0).tolist() == [False, False] + [k < n_near for k in range(5)]
    # In 60 dimensions 1 / q falls so steeply that only the nearest is drawn, unless all three count as equally far.
    share = {}
    for cutoff in (0.1, 1.39):
        loss = MarginLoss(6, cutoff=cutoff, max_distance=1.4)
        share[cutoff] = np.mean([loss.mine(S, *masks, 60)[1][0, 2].item() for _ in range(200)])
    assert share[0.1] > 0.99
    assert 0.2 < share[1.39] < 0.5


def test_embedder_learns_boundaries(blobs):
    X, y = blobs
    embedder = MarginEmbedder(beta=1.0, beta_learning_rate=0.05, batch_size=32, max_epochs=10, random_state=0)
    fitted = embedder.fit(X, y)
    assert fitted.score(X, y) > 0.9
    assert fitted.betas_.shape == (4,)
    moved = np.abs(fitted.betas_ - 1.0)
    assert moved.min() > 0.01
    slow = embedder.set_params(beta_learning_rate=1e-6).fit(X, y)
    assert np.abs(slow.betas_ - 1.0).max() < 1e-3
