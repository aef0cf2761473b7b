"""SupCon against its formula in plain loops, and its limit cases."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from skdml._loss.pairs import pair_masks
from skdml.losses import SupConLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(S, positive, negative, T):
    """Eq. (2), one exponential at a time."""
    loss = 0
    for i in range(len(S)):
        P = [j for j in range(S.shape[1]) if positive[i, j]]
        A = [j for j in range(S.shape[1]) if positive[i, j] or negative[i, j]]
        for p in P:
            loss = loss - torch.log(torch.exp(S[i, p] / T) / sum(torch.exp(S[i, a] / T) for a in A)) / len(P)
    return loss / len(S)


@pytest.mark.parametrize(
    ("settings", "T", "factor"), [({}, 0.1, 1), ({"temperature": 0.5, "base_temperature": 2.0}, 0.5, 0.25)]
)
def test_equals_the_formula(batch, settings, T, factor):
    x, y = batch
    value = SupConLoss(**settings)(x, y)
    expected = factor * in_loops(x @ x.T, *pair_masks(y), T)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_mining_thins_the_denominator_too(batch):
    x, y = batch
    loss = SupConLoss(mining="hard")
    masks = loss.mine((x @ x.T).detach(), *pair_masks(y), x.shape[1])
    assert [mask.sum() for mask in masks] == [8, 8]
    torch.testing.assert_close(loss(x, y), in_loops(x @ x.T, *masks, 0.1))


def test_memory_columns_count_as_any_other(batch):
    x, y = batch
    S = x @ torch.cat([x, x.flip(1)]).T
    masks = pair_masks(y, torch.cat([y, y]))
    torch.testing.assert_close(SupConLoss().pair_loss(S, *masks), in_loops(S, *masks, 0.1))


def test_equal_similarities_give_the_log_of_their_number():
    """A softmax over n equal numbers gives each 1 / n; here n is 5, of one class or of three."""
    x = torch.ones(6, 3, dtype=torch.float64)
    for y in ([0] * 6, [0, 0, 1, 1, 2, 2]):
        assert SupConLoss()(x, torch.tensor(y)).item() == pytest.approx(math.log(5))


def test_positive_with_more_than_its_share_is_pushed():
    """Anchor 0 has the positives 1, near, and 2, far: the weight of a pair is (softmax share - 1 / 2) / (B T)."""
    S = torch.tensor([[1.0, 0.9, 0.1]], dtype=torch.float64, requires_grad=True)
    SupConLoss(temperature=1.0).pair_loss(
        S, torch.tensor([[False, True, True]]), torch.tensor([[False, False, False]])
    ).backward()
    share = 1 / (1 + math.exp(-0.8))
    torch.testing.assert_close(S.grad, torch.tensor([[0, share - 0.5, 0.5 - share]], dtype=torch.float64))


def test_anchors_without_positives_count_in_the_mean(batch):
    x, _ = batch
    pair = torch.tensor([0, 1, 1])
    assert SupConLoss()(x[:3], torch.arange(3)) == 0
    single = SupConLoss(temperature=1.0)(x[:3], pair)
    s = (x @ x.T).detach()
    terms = [math.log(1 + math.exp(s[0, i] - s[1, 2])) for i in (1, 2)]
    assert single.item() == pytest.approx(sum(terms) / 3)
