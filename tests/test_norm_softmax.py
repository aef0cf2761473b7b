"""The normalized softmax against its formula in plain loops, and as a limit of other losses."""

import pytest
import torch
from torch.nn.functional import normalize

from skdml.losses import NormSoftmaxLoss, ProxyNCALoss, SoftTripleLoss

B, C, D = 6, 4, 5


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,)."""
    x = normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 3, 1, 1, 0, 3])


def in_loops(x, y, v, scale):
    """The formula for embeddings x (B, D) and proxies v (C, D), one scalar at a time."""
    loss = 0
    for x_i, y_i in zip(x, y, strict=True):
        terms = [torch.exp(scale * x_i @ v_c / v_c.norm()) for v_c in v]
        loss = loss - torch.log(terms[y_i] / sum(terms)) / len(y)
    return loss


@pytest.mark.parametrize("scale", [20.0, 1.5])
def test_equals_the_formula(batch, scale):
    loss = NormSoftmaxLoss(C, D, scale=scale).double()
    inputs = [batch[0], loss.proxies]
    value, expected = loss(*batch), in_loops(*batch, loss.proxies, scale)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_is_soft_triple_of_one_center_and_proxy_nca_with_the_positive(batch):
    loss = NormSoftmaxLoss(C, D, scale=8.0).double()
    soft_triple = SoftTripleLoss(C, D, n_centers=1, scale=8.0, margin=0.0).double()
    soft_triple.centers.data = loss.proxies.data[:, None]
    proxy_nca = ProxyNCALoss(C, D, scale=2.0, positive_in_denominator=True).double()
    proxy_nca.proxies.data = loss.proxies.data
    torch.testing.assert_close(soft_triple(*batch), loss(*batch))
    torch.testing.assert_close(proxy_nca(*batch), loss(*batch))


def test_length_of_the_proxies_does_not_matter_and_gets_no_gradient(batch):
    loss = NormSoftmaxLoss(C, D).double()
    expected = loss(*batch)
    expected.backward()
    torch.testing.assert_close((loss.proxies.grad * loss.proxies).sum(dim=1), torch.zeros(C, dtype=torch.float64))
    assert loss.proxies.grad.abs().max() > 1e-3
    loss.proxies.data *= torch.tensor([[0.1], [1.0], [3.0], [70.0]])
    torch.testing.assert_close(loss(*batch), expected)


def test_proxies_start_as_the_centers_of_soft_triple():
    torch.manual_seed(0)
    proxies = NormSoftmaxLoss(100, 300).proxies
    assert 0.099 < proxies.abs().max() <= 0.1
    assert proxies.var().item() == pytest.approx(0.1**2 / 3, rel=0.05)
