"""Circle loss against its formula in plain loops, and its limit cases."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from skdml._loss.pairs import pair_masks
from skdml.losses import CircleLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(S, positive, negative, m, gamma):
    """The double sum over a negative and a positive of each anchor, the weights as numbers."""
    loss = 0
    for i in range(len(S)):
        total = 1
        for n in [j for j in range(S.shape[1]) if negative[i, j]]:
            for p in [j for j in range(S.shape[1]) if positive[i, j]]:
                a_n, a_p = max(S[i, n].item() + m, 0), max(1 + m - S[i, p].item(), 0)
                total = total + torch.exp(gamma * (a_n * (S[i, n] - m) - a_p * (S[i, p] - (1 - m))))
        loss = loss + torch.log(torch.as_tensor(total))
    return loss / len(S)


@pytest.mark.parametrize(("m", "gamma"), [(0.4, 80.0), (0.25, 20.0), (0.0, 1.0)])
def test_equals_the_formula(batch, m, gamma):
    x, y = batch
    value = CircleLoss(margin=m, scale=gamma)(x, y)
    expected = in_loops(x @ x.T, *pair_masks(y), m, gamma)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_only_selected_pairs_and_memory_columns_count(batch):
    x, y = batch
    loss = CircleLoss()
    S = x @ torch.cat([x, x.flip(1)]).T
    masks = pair_masks(y, torch.cat([y, y]))
    torch.testing.assert_close(loss.pair_loss(S, *masks), in_loops(S, *masks, 0.4, 80.0))
    mined = CircleLoss(mining="hard").mine(S.detach(), *masks, 4)
    torch.testing.assert_close(loss.pair_loss(S, *mined), in_loops(S, *mined, 0.4, 80.0))


def test_gradient_falls_towards_the_optimum():
    """One positive and one negative: the gradients are gamma a_n z and -gamma a_p z, z the same for both."""
    S = torch.tensor([[1.0, 0.7, 0.1]], dtype=torch.float64, requires_grad=True)
    loss = CircleLoss(margin=0.2, scale=3.0)
    value = loss.pair_loss(S, torch.tensor([[False, True, False]]), torch.tensor([[False, False, True]]))
    value.backward()
    exponent = 3 * (0.3 * (0.1 - 0.2) - 0.5 * (0.7 - 0.8))
    z = 1 / (1 + math.exp(-exponent))
    assert value.item() == pytest.approx(math.log1p(math.exp(exponent)))
    torch.testing.assert_close(S.grad, torch.tensor([[0, -3 * 0.5 * z, 3 * 0.3 * z]], dtype=torch.float64))


def test_pair_beyond_its_optimum_gets_no_gradient():
    S = torch.tensor([[1.0, 0.9, 0.3, -0.5]], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[False, True, False, False]])
    CircleLoss().pair_loss(S, positive, torch.tensor([[False, False, True, True]])).backward()
    assert S.grad[0, 3] == 0
    assert S.grad[0, 2] > 0


def test_large_scale_leaves_the_hardest_pairs(batch):
    x, y = batch
    S = (x @ x.T).detach()
    positive, negative = pair_masks(y)
    z_n = torch.where(negative, (S + 0.25).clamp(min=0) * (S - 0.25), -torch.inf).amax(dim=1)
    z_p = torch.where(positive, (1.25 - S).clamp(min=0) * (0.75 - S), -torch.inf).amax(dim=1)
    expected = (z_n + z_p).clamp(min=0).mean()
    torch.testing.assert_close(CircleLoss(margin=0.25, scale=1e9)(x, y) / 1e9, expected)


@pytest.mark.parametrize("y", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_lacking_a_side_gives_zero(batch, y):
    x = batch[0][:6].detach().requires_grad_()
    value = CircleLoss()(x, torch.tensor(y))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))
