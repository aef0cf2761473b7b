"""The contrastive loss against its two formulas in plain loops, its weights and where pairs become active."""

import pytest
import torch
from torch.nn.functional import normalize

from skdml._loss.pairs import pair_masks
from skdml.losses import ContrastiveLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(x, y, *, threshold, metric, margin):
    loss = 0
    for i in range(len(y)):
        for j in range(len(y)):
            if i == j:
                continue
            if metric == "cosine":
                s = x[i] @ x[j]
                loss = loss + (-s if y[i] == y[j] else (s - threshold).clamp(min=0))
            else:
                d = (x[i] - x[j]).norm()
                loss = loss + (d**2 / 2 if y[i] == y[j] else (margin - d).clamp(min=0) ** 2 / 2)
    return loss / len(y)


@pytest.mark.parametrize(
    "settings",
    [{}, {"threshold": -0.2}, {"metric": "euclidean"}, {"metric": "euclidean", "margin": 1.3}],
)
@pytest.mark.parametrize("length", [1.0, 0.6])
def test_equals_the_formula(batch, settings, length):
    x, y = batch
    loss = ContrastiveLoss(**settings)
    value = loss(length * x, y)
    expected = in_loops(length * x, y, threshold=loss.threshold, metric=loss.metric, margin=loss.margin)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_weights_are_those_of_the_paper(batch):
    """Eq. (6): 1 for every positive pair and every negative pair above the threshold, 0 for the other negatives."""
    x, y = batch
    S = (x @ x.T).detach().requires_grad_()
    positive, negative = pair_masks(y)
    ContrastiveLoss(threshold=0.1).pair_loss(S, positive, negative).backward()
    active = negative & (S.detach() > 0.1)
    assert 0 < active.sum() < negative.sum()
    torch.testing.assert_close(len(y) * S.grad, active.double() - positive.double())


def test_a_tie_is_not_active():
    """s = 0.5 and d = 1 are exact."""
    y = torch.tensor([0, 1])
    cosine = torch.tensor([[1.0, 0.0], [0.5, 2.0]], requires_grad=True)
    euclidean = torch.tensor([[0.0], [1.0]], requires_grad=True)
    for value, x in [
        (ContrastiveLoss()(cosine, y), cosine),
        (ContrastiveLoss(metric="euclidean")(euclidean, y), euclidean),
    ]:
        assert value == 0
        assert not torch.autograd.grad(value, x)[0].any()


def test_one_side_is_kept_where_the_other_is_empty(batch):
    x, _ = batch
    S = (x @ x.T).detach().fill_diagonal_(0)
    one_class, all_different = torch.zeros(9, dtype=torch.long), torch.arange(9)
    assert ContrastiveLoss()(x, one_class).item() == pytest.approx(-S.sum().item() / 9)
    assert ContrastiveLoss()(x, all_different).item() == pytest.approx((S - 0.5).clamp(min=0).sum().item() / 9)


def test_squared_distances_are_eq_5(batch):
    """For unit rows d^2 = 2 - 2 s, so sums of d^2 and [m - d^2]+ are twice Eq. (5) with lambda = 1 - m / 2."""
    x, y = batch
    positive, negative = pair_masks(y)
    squares = torch.cdist(x, x).square()
    expected = (squares[positive].sum() + (1.4 - squares[negative]).clamp(min=0).sum()) / len(y)
    value = 2 * ContrastiveLoss(threshold=0.3)(x, y) + 2 * positive.sum().item() / len(y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
