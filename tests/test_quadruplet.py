"""The quadruplet loss against its formula, quadruplet by quadruplet, and limit cases."""

import pytest
import torch

from skdml._loss.mining import hard
from skdml._loss.pairs import pair_masks
from skdml._loss.similarities import distance_similarities
from skdml.losses import QuadrupletLoss, TripletLoss


@pytest.fixture
def batch():
    """Rows (B, D) of various lengths and labels (B,), one class with a single sample."""
    x = 0.4 * torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(x, positive, negative, margin):
    terms = []
    for i, j in positive.nonzero().tolist():
        for k, l in negative.nonzero().tolist():
            terms.append((margin + (x[i] - x[j]).square().sum() - (x[k] - x[l]).square().sum()).relu())
    terms = torch.stack(terms)
    return terms.sum() / (terms > 0).sum(), len(terms)


@pytest.mark.parametrize("mining", [None, "hard"])
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_equals_the_formula(batch, margin, mining):
    x, y = batch
    masks = pair_masks(y)
    if mining:
        masks = hard(distance_similarities(x).detach(), *masks)
    expected, n_terms = in_loops(x, *masks, margin)
    assert n_terms == (8**2 if mining else 14 * 58)
    value = QuadrupletLoss(margin=margin, mining=mining)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_pairs_need_not_share_a_sample():
    """A wide pair, far from all others, and a near negative pair: no triplet is active, but their quadruplet is."""
    x = torch.tensor([[0.0, 0.0], [0.0, 3.0], [0.0, 50.0], [0.0, 51.0]])
    S, y = distance_similarities(x), torch.tensor([0, 0, 1, 2])
    assert TripletLoss(mining=None).pair_loss(S, *pair_masks(y)) == 0
    # d^2 of 9 against 1, counted from both ends.
    assert QuadrupletLoss(margin=0.5)(x, y).item() == pytest.approx(9 - 1 + 0.5)


def test_hinge_at_zero_is_inactive():
    S = 1 - torch.tensor([[0.0, 1.0, 2.0, 1.5]]) / 2
    S.requires_grad_()
    positive = torch.tensor([[False, True, False, False]])
    negative = torch.tensor([[False, False, True, True]])
    QuadrupletLoss(margin=1.0).pair_loss(S, positive, negative).backward()
    torch.testing.assert_close(S.grad, torch.tensor([[0.0, -2.0, 0.0, 2.0]]))


@pytest.mark.parametrize("y", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_without_quadruplets_gives_zero(y):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = QuadrupletLoss()(x, torch.tensor(y))
    value.backward()
    assert value == 0
    assert x.grad.eq(0).all()


def test_collapsed_batch_gives_the_margin():
    assert QuadrupletLoss(margin=0.7)(torch.ones(6, 3), torch.arange(6) % 2).item() == pytest.approx(0.7)
