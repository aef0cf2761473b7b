"""ProxyNCA and its variants against squared distances in plain loops, and its limit cases."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from skdml.losses import ProxyNCALoss

B, C, D = 6, 4, 5


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,)."""
    x = normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 3, 1, 1, 0, 3])


def in_loops(x, y, v, *, scale=3.0, positive_in_denominator=False, label_smoothing=0.0):
    """The formula for embeddings x (B, D) and proxies v (C, D), one distance at a time."""
    loss = 0
    for x_i, y_i in zip(x, y, strict=True):
        d = [(scale * x_i - scale * v_c / v_c.norm()).square().sum() for v_c in v]
        others = [c for c in range(len(v)) if c != y_i]
        denominator = sum(torch.exp(-d[c]) for c in (range(len(v)) if positive_in_denominator else others))
        mean = sum(d[c] for c in others) / len(others)
        numerator = torch.exp(-(1 - label_smoothing) * d[y_i] - label_smoothing * mean)
        loss = loss - torch.log(numerator / denominator) / len(y)
    return loss


@pytest.mark.parametrize("settings", [
    {},
    {"scale": 1.5, "positive_in_denominator": True},
    {"scale": 2.0, "label_smoothing": 0.3},
    {"positive_in_denominator": True, "label_smoothing": 0.1},
])  # fmt: skip
@pytest.mark.parametrize("length", [1.0, 1.7])
def test_equals_the_formula(batch, settings, length):
    """For samples of another length, too: it cancels in the fraction."""
    x, y = batch
    loss = ProxyNCALoss(C, D, **settings).double()
    inputs = [x, loss.proxies]
    value, expected = loss(length * x, y), in_loops(length * x, y, loss.proxies, **settings)
    assert value.item() == pytest.approx(expected.item(), rel=1e-11)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_label_smoothing_is_cross_entropy_with_less_of_it(batch):
    """torch deals epsilon over all C classes, here the C - 1 others get it."""
    x, y = batch
    loss = ProxyNCALoss(C, D, scale=1.0, positive_in_denominator=True, label_smoothing=0.3).double()
    logits = 2 * x @ normalize(loss.proxies).T
    torch.testing.assert_close(loss(x, y), cross_entropy(logits, y, label_smoothing=0.3 * C / (C - 1)))


def test_two_classes_compare_two_distances():
    """l = d_own - d_other: with x on its proxy and the other at a right angle, 0 - 2 scale^2."""
    loss = ProxyNCALoss(2, 2, scale=3.0).double()
    loss.proxies.data = torch.tensor([[4.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    assert loss(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])).item() == pytest.approx(-18)


@pytest.mark.parametrize("positive_in_denominator", [False, True])
def test_one_class_gives_zero(batch, positive_in_denominator):
    x, y = batch
    loss = ProxyNCALoss(1, D, positive_in_denominator=positive_in_denominator, label_smoothing=0.1).double()
    value = loss(x, torch.zeros_like(y))
    grads = torch.autograd.grad(value, [x, loss.proxies])
    assert [value.item(), *(grad.abs().max().item() for grad in grads)] == [0, 0, 0]


def test_published_form_does_not_fade():
    """At the optimum the own proxy still pulls with 2 scale^2; the probability form has almost no gradient left."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    slope = []
    for positive_in_denominator in (False, True):
        loss = ProxyNCALoss(2, 2, positive_in_denominator=positive_in_denominator).double()
        loss.proxies.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        slope.append(torch.autograd.grad(loss(x, torch.tensor([0])), x)[0][0, 0].item())
    assert slope[0] == pytest.approx(-2 * 2 * 9)
    assert slope[1] == pytest.approx(-36 / (1 + math.exp(36)))


def test_proxies_start_with_an_eighth():
    torch.manual_seed(0)
    assert ProxyNCALoss(200, 64).proxies.std().item() == pytest.approx(1 / 8, rel=0.05)
