"""The binomial deviance loss against its formula in plain loops, its weights, mining and empty sides."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from skdml._loss.mining import vthm
from skdml._loss.pairs import pair_masks
from skdml.losses import BinomialDevianceLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(S, positive, negative, *, alpha, beta, threshold):
    """Eq. (12) / B, one logarithm at a time."""
    loss = 0
    for i in range(len(S)):
        P, N = positive[i].nonzero().flatten().tolist(), negative[i].nonzero().flatten().tolist()
        for k in P:
            loss = loss + torch.log1p(torch.exp(alpha * (threshold - S[i, k]))) / len(P)
        for k in N:
            loss = loss + torch.log1p(torch.exp(beta * (S[i, k] - threshold))) / len(N)
    return loss / len(S)


@pytest.mark.parametrize("mining", [None, "vthm"])
@pytest.mark.parametrize("settings", [{}, {"alpha": 5.0, "beta": 8.0, "threshold": 0.1}])
def test_equals_the_formula(batch, settings, mining):
    x, y = batch
    loss = BinomialDevianceLoss(**settings, mining=mining)
    S = x @ x.T
    masks = pair_masks(y)
    if mining:
        everything = [mask.sum() for mask in masks]
        masks = vthm(S.detach(), *masks, 0.1)
        assert [mask.sum() for mask in masks] < everything
    expected = in_loops(S, *masks, alpha=loss.alpha, beta=loss.beta, threshold=loss.threshold)
    value = loss(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_weights_are_those_of_the_paper(batch):
    """Eqs. (13) and (14) are the gradient in S times B, less for positive pairs."""
    x, y = batch
    S = (x @ x.T).detach().requires_grad_()
    positive, negative = pair_masks(y)
    BinomialDevianceLoss().pair_loss(S, positive, negative).backward()
    expected = torch.zeros_like(S)
    for i, j in positive.nonzero().tolist():
        expected[i, j] = -2 / (positive[i].sum() * (1 + torch.exp(2 * (S[i, j] - 0.5))))
    for i, j in negative.nonzero().tolist():
        expected[i, j] = 50 / (negative[i].sum() * (1 + torch.exp(-50 * (S[i, j] - 0.5))))
    torch.testing.assert_close(len(y) * S.grad, expected.detach(), rtol=1e-6, atol=1e-8)


def test_sharp_pairs_are_hinges(batch):
    """Towards infinity log(1 + e^(a z)) / a is [z]+."""
    x, y = batch
    S = (x @ x.T).detach()
    positive, negative = pair_masks(y)
    hinges = torch.where(positive, (0.1 - S).relu(), 0).sum(1) / positive.sum(1).clamp(min=1)
    hinges += torch.where(negative, (S - 0.1).relu(), 0).sum(1) / negative.sum(1)
    value = BinomialDevianceLoss(alpha=1e6, beta=1e6, threshold=0.1)(x, y)
    assert value.item() / 1e6 == pytest.approx(hinges.mean().item(), rel=1e-5)


def test_all_pairs_at_the_threshold():
    """log 2 a side, whatever the number of pairs; where a side is empty, it gives 0."""
    S = torch.full((5, 5), 0.5)
    loss = BinomialDevianceLoss()
    both = loss.pair_loss(S, *pair_masks(torch.tensor([0, 0, 1, 1, 1])))
    single = loss.pair_loss(S, *pair_masks(torch.tensor([0, 1, 2, 2, 2])))
    positives = loss.pair_loss(S, *pair_masks(torch.zeros(5)))
    negatives = loss.pair_loss(S, *pair_masks(torch.arange(5)))
    values = [value.item() / math.log(2) for value in (both, single, positives, negatives)]
    assert values == pytest.approx([2, 8 / 5, 1, 1])
