"""Large-margin softmax against angles in plain loops, its annealing, and its limit cases."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from skdml import LargeMarginSoftmaxEmbedder
from skdml._methods.large_margin_softmax import _psi
from skdml.losses import LargeMarginSoftmaxLoss

B, C, D = 8, 4, 5


@pytest.fixture
def batch():
    """Rows (B, D) of any length and labels (B,)."""
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 3, 1, 1, 0, 3, 2, 0])


def in_loops(x, y, w, margin, annealing):
    """The formula for embeddings x (B, D) and proxies w (C, D), by angles, one scalar at a time."""
    loss = 0
    for x_i, y_i in zip(x, y, strict=True):
        terms = []
        for c, w_c in enumerate(w):
            length = x_i.norm() * w_c.norm()
            theta = torch.arccos(x_i @ w_c / length)
            phi = torch.cos(theta)
            if c == y_i:
                k = math.floor(theta.item() * margin / math.pi)
                phi = (annealing * phi + (-1) ** k * torch.cos(margin * theta) - 2 * k) / (1 + annealing)
            terms.append(torch.exp(length * phi))
        loss = loss - torch.log(terms[y_i] / sum(terms)) / len(y)
    return loss


@pytest.mark.parametrize("margin", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("annealing", [0.0, 2.5])
def test_equals_the_formula(batch, margin, annealing):
    loss = LargeMarginSoftmaxLoss(C, D, margin=margin, annealing_base=annealing).double()
    inputs = [batch[0], loss.proxies]
    value, expected = loss(*batch), in_loops(*batch, loss.proxies, margin, annealing)
    assert value.item() == pytest.approx(expected.item(), rel=1e-11)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("annealing_base", [0.0, 1000.0])
def test_margin_of_one_is_a_linear_layer_with_softmax(batch, annealing_base):
    x, y = batch
    loss = LargeMarginSoftmaxLoss(C, D, margin=1, annealing_base=annealing_base).double()
    torch.testing.assert_close(loss(x, y), cross_entropy(x @ loss.proxies.T, y))


@pytest.mark.parametrize("m", [2, 3, 4])
def test_psi_falls_from_1_to_1_minus_2m_without_a_jump(m):
    theta = torch.linspace(0, math.pi, 10001, dtype=torch.float64)
    psi = _psi(torch.cos(theta), m)
    assert psi[0].item() == pytest.approx(1)
    assert psi[-1].item() == pytest.approx(1 - 2 * m)
    assert (psi.diff() <= 1e-12).all()
    assert psi.diff().min() > -1.01 * m * math.pi / 10000
    assert (psi <= torch.cos(theta) + 1e-12).all()


def test_annealing_counts_the_steps_of_training_only(batch):
    """Lambda at step t is max(3, 40 (1 + t)^-2): 40, 10, 40 / 9, 3, 3."""
    x, y = batch
    schedule = {"annealing_base": 40.0, "annealing_gamma": 1.0, "annealing_power": 2.0, "annealing_minimum": 3.0}
    loss = LargeMarginSoftmaxLoss(C, D, margin=2, **schedule).double()
    for step, annealing in enumerate([40, 10, 40 / 9, 3, 3]):
        expected = in_loops(x, y, loss.proxies, 2, annealing).item()
        loss.eval()
        assert [loss(x, y).item() for _ in range(2)] == pytest.approx([expected] * 2, rel=1e-11)
        assert loss.n_steps == step
        loss.train()
        assert loss(x, y).item() == pytest.approx(expected, rel=1e-11)
    loss(x[:0], y[:0])
    assert loss.n_steps == 5
    copied = LargeMarginSoftmaxLoss(C, D)
    copied.load_state_dict(loss.state_dict())
    assert copied.n_steps == 5


def test_default_annealing_leaves_the_plain_softmax_within_a_few_hundred_steps():
    annealing = LargeMarginSoftmaxLoss(C, D)
    weights = []
    for step in (0, 100, 219, 400):
        annealing.n_steps.fill_(step)
        weights.append(annealing._annealing(torch.float64).item())
    assert weights[0] == 1000
    assert weights[1] > 30
    assert weights[2] < 1
    assert weights[3] < 0.01


def test_gradient_with_annealing_is_that_of_the_value(batch):
    x, y = batch
    loss = LargeMarginSoftmaxLoss(C, D, annealing_base=2.0).double().eval()
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_on_the_proxy_and_opposite_to_it(sign):
    """theta = 0 and pi: psi is 1 and 1 - 2 m, with lengths 3 and 2."""
    loss = LargeMarginSoftmaxLoss(2, 2, annealing_base=0.0)
    loss.proxies.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[3 * sign, 0.0]], requires_grad=True)
    value = loss(x, torch.tensor([0]))
    value.backward()
    assert value.item() == pytest.approx(math.log1p(math.exp(-6 * (1 if sign > 0 else 1 - 2 * 4))), rel=1e-4)
    assert x.grad.isfinite().all()


def test_embedder_learns_lengths_and_counts_its_steps(blobs):
    X, y = blobs
    embedder = LargeMarginSoftmaxEmbedder(batch_size=30, max_epochs=4, warm_start=True).fit(X, y)
    assert embedder.criterion_.n_steps == 8
    assert np.ptp(np.linalg.norm(embedder.transform(X), axis=1)) > 0.1
    assert embedder.fit(X, y).criterion_.n_steps == 16
