"""The triplet losses against their formulas triplet by triplet, limit cases, and the memory that all triplets take."""

import math

import pytest
import torch
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skdml._loss.pairs import pair_masks
from skdml._loss.similarities import distance_similarities
from skdml.losses import TripletLoss


@pytest.fixture
def batch():
    """Rows (B, D) of various lengths and labels (B,), one class with a single sample."""
    x = 0.4 * torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def all_in_loops(d, y):
    """All triplets, as (anchor, positive, negative)."""
    B = range(len(y))
    return [(a, p, n) for a in B for p in B for n in B if p != a and y[p] == y[a] != y[n]]


def semihard_in_loops(d, y):
    """For each positive pair the nearest negative that is farther, or the farthest."""
    triplets = []
    for a, p in {(a, p): None for a, p, _ in all_in_loops(d, y)}:
        negatives = [n for n in range(len(y)) if y[n] != y[a]]
        farther = [n for n in negatives if d[a, n] > d[a, p]]
        triplets.append((a, p, min(farther or negatives, key=lambda n: d[a, n] if farther else -d[a, n])))
    return triplets


def hard_in_loops(d, y):
    """The farthest positive and the nearest negative of each anchor."""
    triplets = all_in_loops(d, y)
    by_anchor = {a: [t for t in triplets if t[0] == a] for a, _, _ in triplets}
    return [max(own, key=lambda t: (d[t[0], t[1]] - d[t[0], t[2]]).item()) for own in by_anchor.values()]


RULES = {None: all_in_loops, "semihard": semihard_in_loops, "hard": hard_in_loops}


@pytest.mark.parametrize("soft_margin", [False, True])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("mining", RULES)
def test_equals_the_formula(batch, mining, margin, squared, soft_margin):
    x, y = batch
    d = (x[:, None] - x).square().sum(dim=2)
    if not squared:
        d = torch.where(d > 0, d, 1).sqrt()
    z = torch.stack([d[a, p] - d[a, n] for a, p, n in RULES[mining](d, y)])
    terms = softplus(z) if soft_margin else (z + margin).relu()
    expected = terms.sum() / (len(z) if mining or soft_margin else (terms > 0).sum())
    value = TripletLoss(margin=margin, squared=squared, soft_margin=soft_margin, mining=mining)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("soft_margin", [False, True])
@pytest.mark.parametrize("mining", RULES)
def test_with_a_memory(batch, mining, soft_margin):
    """Columns beyond the batch are pairs as others: (B, M) equals the first B rows of (M, M)."""
    x, y = batch
    loss = TripletLoss(mining=mining, soft_margin=soft_margin)
    S = distance_similarities(x).detach()
    masks = loss.mine(S, *pair_masks(y), 3)
    rows = torch.arange(len(y)) < 4
    expected = loss.pair_loss(S, *(mask & rows[:, None] for mask in masks))
    assert loss.pair_loss(S[:4], *(mask[:4] for mask in masks)).item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss._compare(S[:4], y[:4], y, 3).item() == pytest.approx(expected.item(), rel=1e-12)


def test_one_triplet_by_hand():
    """Rows 0, 1 and 1.5: of anchor 1 the term 1 - 0.25 + 0.2; d/da = 2 (a - p) - 2 (a - n) and so on."""
    x = torch.tensor([[0.0], [1.0], [1.5]], requires_grad=True)
    y = torch.tensor([0, 0, 1])
    value = TripletLoss(mining=None)(x, y)
    value.backward()
    assert value.item() == pytest.approx(0.95)
    torch.testing.assert_close(x.grad, torch.tensor([[-2.0], [3.0], [-1.0]]))
    # Anchor 0 is inactive by more than 1: the means over both positive pairs are half of that.
    assert TripletLoss(mining="semihard")(x, y).item() == pytest.approx(0.475)
    assert TripletLoss(mining="hard")(x, y).item() == pytest.approx(0.475)
    assert TripletLoss(mining="hard", squared=False)(x, y).item() == pytest.approx((1 - 0.5 + 0.2) / 2)


def test_hinge_at_zero_is_inactive():
    """d^2 are 1 and 2.25, exactly a margin of 1.25 apart: no gradient, and no part of the mean."""
    S = 1 - torch.tensor([[0.0, 1.0, 2.25], [0.0, 0.0, 0.0]]) / 2
    S.requires_grad_()
    positive, negative = torch.zeros(2, 2, 3, dtype=torch.bool)
    positive[0, 1] = negative[0, 2] = True
    for mining in RULES:
        value = TripletLoss(margin=1.25, mining=mining).pair_loss(S, positive, negative)
        (grad,) = torch.autograd.grad(value, S)
        assert value == 0
        assert grad.eq(0).all()
    positive[1, 0] = negative[1, 1] = True  # d^2 0 and 0: a term of 1.25
    assert TripletLoss(margin=1.25, mining=None).pair_loss(S, positive, negative) == 1.25
    for mining in ("semihard", "hard"):
        assert TripletLoss(margin=1.25, mining=mining).pair_loss(S, positive, negative) == 1.25 / 2


@pytest.mark.parametrize("mining", RULES)
def test_collapsed_batch_gives_the_margin(mining):
    """All hinges are the margin; all softplus are log 2, and the gradients of plain distances are 0."""
    x, y = torch.ones(6, 3, requires_grad=True), torch.arange(6) % 2
    assert TripletLoss(margin=0.3, mining=mining)(x, y).item() == pytest.approx(0.3)
    value = TripletLoss(soft_margin=True, squared=False, mining=mining)(x, y)
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("soft_margin", [False, True])
@pytest.mark.parametrize("mining", RULES)
def test_batch_without_triplets_gives_zero(mining, soft_margin):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for y in (torch.zeros(6, dtype=torch.int64), torch.arange(6)):
        value = TripletLoss(mining=mining, soft_margin=soft_margin)(x, y)
        (grad,) = torch.autograd.grad(value, x)
        assert value == 0
        assert grad.eq(0).all()


@pytest.mark.parametrize("mining", RULES)
def test_separated_batch_gives_zero_but_not_a_soft_margin(mining):
    x, y = 2 * torch.eye(3).repeat_interleave(2, dim=0), torch.arange(6) // 2
    assert TripletLoss(mining=mining)(x, y) == 0
    assert TripletLoss(mining=mining, soft_margin=True)(x, y).item() == pytest.approx(math.log1p(math.exp(-8)))


class Largest(TorchDispatchMode):
    """Record the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result


def test_large_batch_equals_enumeration_in_memory_of_its_pairs():
    """512 samples in classes of 4 make 780,288 triplets; no tensor is larger than B (B + 1) integers."""
    B = 512
    x = torch.randn(B, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    y = torch.arange(B) // 4
    with Largest() as largest:
        value = TripletLoss(mining=None)(x, y)
        (grad,) = torch.autograd.grad(value, x)
    assert largest.bytes <= 8 * B * (B + 1)

    with torch.no_grad():
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
        positive, negative = pair_masks(y)
        a, p = positive.nonzero().T
        z = d[a, p][:, None] - d[a] + 0.2  # (pairs, B)
        active = (z > 0) & negative[a]
        weights = torch.zeros(B, B, dtype=x.dtype)
        weights[a, p] = active.sum(dim=1).to(x.dtype)
        weights.index_add_(0, a, -active.to(x.dtype))
        weights = (weights + weights.T) / active.sum()
        expected = 2 * (weights.sum(dim=1)[:, None] * x - weights @ x)
    assert value.item() == pytest.approx((z[active].mean()).item(), rel=1e-10)
    torch.testing.assert_close(grad, expected)


def test_soft_margin_keeps_memory_of_its_pairs():
    x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Largest() as largest:
        TripletLoss(soft_margin=True, mining=None)(x, torch.arange(128) // 4).backward()
    assert largest.bytes <= 8 * 4 * 128**2
