"""Proxy-Anchor against its formula in plain loops, with two classes, absent classes and large exponents."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from skdml.losses import ProxyAnchorLoss

B, C, D = 7, 5, 4


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,); classes 2 and 4 are absent."""
    x = normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 3, 1, 1, 0, 3, 1])


def in_loops(x, y, v, *, alpha, margin):
    """The formula for embeddings x (B, D) and proxies v (C, D), one proxy at a time."""
    pull, push, n_present = 0, 0, 0
    for c, v_c in enumerate(v):
        s = [x_i @ v_c / v_c.norm() for x_i in x]
        own = [torch.exp(-alpha * (s_i - margin)) for s_i, y_i in zip(s, y, strict=True) if y_i == c]
        others = [torch.exp(alpha * (s_i + margin)) for s_i, y_i in zip(s, y, strict=True) if y_i != c]
        n_present += bool(own)
        pull = pull + (torch.log(1 + sum(own)) if own else 0)
        push = push + (torch.log(1 + sum(others)) if others else 0)
    return pull / n_present + push / len(v)


@pytest.mark.parametrize("settings", [{"alpha": 32.0, "margin": 0.1}, {"alpha": 3.0, "margin": 0.4}])
@pytest.mark.parametrize("case", ["all", "one class", "one sample", "two classes"])
def test_equals_the_formula(batch, settings, case):
    x, y = batch
    y = {"one class": torch.full_like(y, 2), "two classes": y % 2}.get(case, y)
    rows = slice(1) if case == "one sample" else slice(None)
    loss = ProxyAnchorLoss(2 if case == "two classes" else C, D, **settings).double()
    inputs = [x, loss.proxies]
    value, expected = loss(x[rows], y[rows]), in_loops(x[rows], y[rows], loss.proxies, **settings)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_two_classes_by_hand():
    """Each sample on its proxy, the proxies at a right angle: two equal terms of each kind."""
    loss = ProxyAnchorLoss(2, 2, alpha=10.0, margin=0.3).double()
    loss.proxies.data = torch.tensor([[2.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    expected = math.log1p(math.exp(-10 * 0.7)) + math.log1p(math.exp(10 * 0.3))
    assert loss(torch.eye(2, dtype=torch.float64), torch.arange(2)).item() == pytest.approx(expected, rel=1e-12)


def test_proxy_of_an_absent_class_is_only_pushed(batch):
    x, y = batch
    loss = ProxyAnchorLoss(C, D).double()
    loss(x, y).backward()
    for c in (2, 4):
        nearest = (x.detach() @ loss.proxies.data[c]).argmax()
        assert loss.proxies.grad[c] @ x.detach()[nearest] > 0


def test_one_class_has_no_negatives(batch):
    x, y = batch
    loss = ProxyAnchorLoss(1, D, alpha=1.0, margin=0.0).double()
    s = x @ normalize(loss.proxies)[0]
    torch.testing.assert_close(loss(x, torch.zeros_like(y)), torch.log1p(torch.exp(-s).sum()))


def test_large_alpha_does_not_overflow_in_float32():
    """Towards infinity of alpha, over alpha: the worst positive's and the worst negative's margin violation."""
    loss = ProxyAnchorLoss(2, 2, alpha=1e6, margin=0.1)
    loss.proxies.data = torch.eye(2)
    x = torch.tensor([[0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    value = loss(x, torch.tensor([1, 1]))
    value.backward()
    # Positives of proxy 1: s = 0.8, 1 are above the margin. Negatives of proxy 0: s = 0.6; proxy 1 has none.
    assert value.item() / 1e6 == pytest.approx((0.6 + 0.1) / 2, rel=1e-5)
    assert x.grad.isfinite().all()


def test_proxies_start_as_in_the_authors_code():
    torch.manual_seed(0)
    assert ProxyAnchorLoss(50, 200).proxies.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.05)
