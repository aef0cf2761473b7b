"""The angular loss against its formula in plain loops and against triplets of distances, mining and long rows."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from skdml._loss.pairs import pair_masks
from skdml.losses import AngularLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(S, positive, negative, angle):
    """The formula, one exponential at a time; the mean over the positive pairs of the batch."""
    t = math.tan(math.radians(angle)) ** 2
    values = []
    for a, p in positive[:, : len(S)].nonzero().tolist():
        exponents = [4 * t * (S[a, n] + S[p, n]) - 2 * (1 + t) * S[a, p] for n in negative[a].nonzero().flatten()]
        values.append(torch.log1p(sum((f.exp() for f in exponents), S.new_zeros(()))))
    return sum(values) / len(values)


@pytest.mark.parametrize("angle", [10.0, 36.0, 45.0, 55.0, 65.0])
def test_equals_the_formula(batch, angle):
    x, y = batch
    expected = in_loops(x @ x.T, *pair_masks(y), angle)
    value = AngularLoss(angle=angle)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_memory_and_mined_masks(batch):
    """Masks that are not symmetric, columns beyond the batch, an anchor with positives but without negatives."""
    x, y = batch
    generator = torch.Generator().manual_seed(1)
    memory = normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    S = (x @ torch.cat([x, memory]).T).detach().requires_grad_()
    positive, negative = pair_masks(y, torch.cat([y, torch.tensor([0, 1, 2, 3, 7, 0])]))
    positive = positive & (torch.rand(S.shape, generator=generator) < 0.7)
    negative = negative & (torch.rand(S.shape, generator=generator) < 0.4)
    negative[4] = False
    assert positive[4, :9].any()
    assert positive[:, 9:].any()
    expected = in_loops(S, positive, negative, 45.0)
    value = AngularLoss().pair_loss(S, positive, negative)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, S), torch.autograd.grad(expected, S))


def test_one_triplet_is_the_bound_on_the_angle(batch):
    """For unit rows f is d_ap^2 - 4 tan^2(alpha) |n - c|^2, less 2 - 6 tan^2(alpha)."""
    x = batch[0].detach()[:3]
    t = math.tan(math.radians(40)) ** 2
    center = (x[0] + x[1]) / 2
    z = (x[0] - x[1]).square().sum() - 4 * t * (x[2] - center).square().sum()
    expected = torch.nn.functional.softplus(z - (2 - 6 * t))
    torch.testing.assert_close(AngularLoss(angle=40)(x, torch.tensor([0, 0, 1])), expected)


def test_float32_is_as_good_for_unit_rows_at_65_degrees():
    """The hardest case: rows that agree on no near negative, with exponents that span 8 tan^2(alpha) = 37 each."""
    x = normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.01], [-1.0, 0.0], [1.0, 0.02]], dtype=torch.float64))
    y = torch.tensor([0, 0, 1, 2])
    expected = in_loops(x @ x.T, *pair_masks(y), 65.0)
    assert AngularLoss(angle=65)(x.float(), y).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("length", [1e2, 1e6])
def test_long_rows_give_the_largest_exponent(length):
    """Rows that agree on their nearest negative: f of 4 (0.6 + 0.6) - 4 times the squared length, and no overflow."""
    x = length * torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    value = AngularLoss()(x.requires_grad_(), torch.tensor([0, 0, 1, 2]))
    assert value.item() == pytest.approx(0.8 * length**2, rel=1e-4)
    assert torch.autograd.grad(value, x)[0].isfinite().all()


def test_long_rows_that_agree_on_no_negative_stay_finite():
    x = 1e2 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    value = AngularLoss()(x.requires_grad_(), torch.tensor([0, 0, 1, 2]))
    (grad,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("y", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_without_triplets_gives_zero(batch, y):
    x = batch[0][:6].detach().requires_grad_()
    value = AngularLoss()(x, torch.tensor(y))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


@pytest.mark.parametrize("angle", [0, 90, -45.0])
def test_angles_of_a_triangle_only(angle):
    with pytest.raises(ValueError, match=r"'angle' parameter of AngularLoss must be a float in the range \(0.*, 90"):
        AngularLoss(angle=angle)
