"""The histogram loss against its formula in plain loops, its slope, the ends of the range, the limit of many bins."""

import pytest
import torch
from torch.nn.functional import normalize

from skdml._loss.pairs import pair_masks
from skdml.losses import HistogramLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(S, y, n_bins):
    """The formula over unordered pairs, one node at a time."""
    delta = 2 / n_bins
    pairs = [(i, j) for i in range(len(y)) for j in range(i)]
    same = [S[i, j] for i, j in pairs if y[i] == y[j]]
    other = [S[i, j] for i, j in pairs if y[i] != y[j]]
    loss = below = 0
    for r in range(n_bins + 1):
        h_same, h_other = (
            sum((1 - (s - (-1 + r * delta)).abs() / delta).clamp(min=0) for s in kind) / len(kind)
            for kind in (same, other)
        )
        below = below + h_same
        loss = loss + h_other * below
    return loss


@pytest.mark.parametrize("n_bins", [1, 2, 7, 20, 100])
def test_equals_the_formula(batch, n_bins):
    x, y = batch
    expected = in_loops(x @ x.T, y, n_bins)
    value = HistogramLoss(n_bins=n_bins)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_slope_is_the_difference_of_two_nodes(batch):
    """A positive pair of the bin [t_r, t_r+1] weighs -h-_r / (n+ Delta), a negative pair h+_r+1 / (n- Delta)."""
    x, y = batch
    S = (x @ x.T).detach().requires_grad_()
    positive, negative = pair_masks(y)
    loss = HistogramLoss(n_bins=10)
    loss.pair_loss(S, positive, negative).backward()
    nodes = torch.linspace(-1, 1, 11, dtype=S.dtype)
    h = {
        kind: (1 - (S.detach()[mask][:, None] - nodes).abs() / 0.2).clamp(min=0).mean(dim=0)
        for kind, mask in (("positive", positive), ("negative", negative))
    }
    below = ((S.detach() + 1) / 0.2).long().clamp(max=9)
    expected = torch.where(positive, -h["negative"][below] / (positive.sum() * 0.2), 0)
    expected = torch.where(negative, h["positive"][below + 1] / (negative.sum() * 0.2), expected)
    assert (expected != 0).sum() > 20
    torch.testing.assert_close(S.grad, expected)


def test_many_bins_give_the_share_of_wrong_orders(batch):
    x, y = batch
    S = (x @ x.T).detach()
    positive, negative = pair_masks(y)
    wrong = (S[negative][:, None] > S[positive]).double().mean()
    assert 0.1 < wrong < 0.9
    assert HistogramLoss(n_bins=10**6)(x, y).item() == pytest.approx(wrong.item(), abs=1e-3)


def test_ends_of_the_range():
    """s = 1 of equal rows lies in the last bin, what rounding puts beyond counts as 1, and s = -1 in the first."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    apart, mixed = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    for rows in (x, (1 + 1e-9) * x, (1 - 1e-9) * x):
        assert HistogramLoss()(rows, apart).item() == pytest.approx(0, abs=1e-6)  # positives at 1, negatives at -1
        assert HistogramLoss()(rows, mixed).item() == pytest.approx(1, abs=1e-6)  # positives at -1: all wrong


@pytest.mark.parametrize("y", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_without_one_kind_of_pairs_gives_zero(batch, y):
    x = batch[0][:6].detach().requires_grad_()
    value = HistogramLoss()(x, torch.tensor(y))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_selected_pairs_count_by_anchor(batch):
    """One positive with s = 0.3 and, beyond the batch, negatives with s = 0.2, 0.5 and 0.9: two of three are wrong."""
    S = torch.tensor([[1.0, 0.3, 0.2, 0.5, 0.9], [0.3, 1.0, 0.9, 0.9, 0.9]])
    positive = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    negative = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert HistogramLoss(n_bins=200).pair_loss(S, positive, negative).item() == pytest.approx(2 / 3, abs=1e-5)
