"""The rules that choose pairs, against plain loops, on the similarities of a batch and with the columns of a memory.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize

from skdml import losses
from skdml._loss.mining import distance_log_probabilities, distance_weighted, hard, semihard, semihard_negatives
from skdml._loss.pairs import PairLoss, pair_masks

RULES = [None, "vthm", "semihard", "hard", "distance_weighted"]
PAIR_LOSSES = [name for name in losses.__all__ if issubclass(getattr(losses, name), PairLoss)]


@pytest.fixture(params=[9, 14], ids=["batch", "memory"])
def pairs(request):
    """Similarities of 9 unit rows to M, and the masks; one class has a single sample, in the batch as in all."""
    x = normalize(torch.randn(14, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[: request.param]
    y = torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7, 0, 1, 2, 3, 3])[: request.param]
    return x[:9] @ x.T, *pair_masks(y[:9], y)


@pytest.fixture
def ties():
    """Similarities 0, 0.5 and 1 in every row, so that nearly every comparison is one of equal numbers."""
    S = torch.randint(3, (8, 12), generator=torch.Generator().manual_seed(1)) / 2
    return S, *pair_masks(torch.arange(8) % 3, torch.arange(12) % 3)


@pytest.fixture
def circle():
    """Rows at angles from row 0, the first two of one class: the similarities of row 0 alone, (1, M)."""
    angle = torch.tensor([0.0, 0.3, 0.1, 0.4, 0.8, 1.2, 1.5, 2.0, 3.0, math.pi], dtype=torch.float64)
    y = torch.tensor([0, 0, *range(1, 9)])
    positive, negative = pair_masks(y[:1], y)
    return angle.cos()[None], positive, negative


def members(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


def chosen_in_loops(row, p, negatives):
    """The similarity of the hardest negative less similar than p, or of the easiest."""
    farther = [row[n].item() for n in negatives if row[n] < row[p]]
    return max(farther) if farther else min(row[n].item() for n in negatives)


# ---- semihard


def test_semihard_is_that_of_plain_loops(pairs):
    S, positive, negative = pairs
    kept_positive, kept_negative = semihard(S, positive, negative)
    n_without = 0
    for i, (P, N) in enumerate(zip(members(positive), members(negative), strict=True)):
        expected = {N[[S[i, n].item() for n in N].index(chosen_in_loops(S[i], p, N))] for p in P}
        assert members(kept_positive)[i] == P
        assert members(kept_negative)[i] == sorted(expected)
        n_without += sum(not any(S[i, n] < S[i, p] for n in N) for p in P)
    assert n_without > 0  # the easiest was needed


def test_semihard_is_strict(ties):
    """A negative as similar as the positive is not less similar; the index among equals is free."""
    S, positive, negative = ties
    index = semihard_negatives(S, S, negative)
    assert negative.gather(1, index).all()
    chosen = S.gather(1, index)
    n_equal = 0
    for i, (P, N) in enumerate(zip(members(positive), members(negative), strict=True)):
        for p in P:
            assert chosen[i, p] == chosen_in_loops(S[i], p, N)
            n_equal += sum(S[i, n] == S[i, p] for n in N)
    assert n_equal > 10


def test_semihard_of_the_masks_it_made_is_itself(pairs):
    S, *masks = pairs
    once = semihard(S, *masks)
    for mask, again in zip(once, semihard(S, *once), strict=True):
        assert mask.equal(again)
    everywhere = semihard_negatives(S, S, masks[1])[masks[0] & masks[1].any(dim=1, keepdim=True)]
    assert semihard_negatives(S, S, once[1])[once[0]].equal(everywhere)


# ---- hard


def test_hard_is_that_of_plain_loops(pairs):
    S, positive, negative = pairs
    kept_positive, kept_negative = hard(S, positive, negative)
    for i, (P, N) in enumerate(zip(members(positive), members(negative), strict=True)):
        assert members(kept_positive)[i] == ([min(P, key=lambda p: S[i, p])] if P and N else [])
        assert members(kept_negative)[i] == ([max(N, key=lambda n: S[i, n])] if P and N else [])


def test_hard_keeps_one_of_equals(ties):
    S, positive, negative = ties
    kept_positive, kept_negative = hard(S, positive, negative)
    for i, (P, N) in enumerate(zip(members(positive), members(negative), strict=True)):
        assert members(kept_positive)[i] == [min(P, key=lambda p: S[i, p])]  # min and max: the first of equals
        assert members(kept_negative)[i] == [max(N, key=lambda n: S[i, n])]


# ---- distance weighted


def log_q(d, n_components):
    return (n_components - 2) * math.log(d) + (n_components - 3) / 2 * math.log(1 - d * d / 4)


@pytest.mark.parametrize("n_components", [2, 3, 4, 512])
@pytest.mark.parametrize(("cutoff", "max_distance"), [(0.5, 1.4), (0.1, 1.0), (0.8, math.inf)])
def test_probabilities_are_those_of_the_formula(circle, n_components, cutoff, max_distance):
    """1 / q(d), of max(d, cutoff), up to d = 2, where q is 0, which counts as 2 - 1e-3."""
    S, _, negative = circle
    p = distance_log_probabilities(S, negative, n_components, cutoff=cutoff, max_distance=max_distance).exp()[0]
    d = (2 - 2 * S[0]).sqrt().tolist()
    near = [n for n in members(negative)[0] if d[n] < max_distance]
    logs = torch.tensor([-log_q(min(max(d[n], cutoff), 2 - 1e-3), n_components) for n in near], dtype=torch.float64)
    expected = torch.zeros_like(p)
    expected[near] = torch.softmax(logs, dim=0)
    assert len(near) >= 3
    torch.testing.assert_close(p, expected)


def test_distance_weighted_keeps_positives_and_as_many_negatives(pairs):
    S, positive, negative = pairs
    torch.manual_seed(0)
    d = (2 - 2 * S).clamp(min=0).sqrt()
    for _ in range(20):
        kept_positive, kept_negative = distance_weighted(S, positive, negative, 4)
        assert kept_positive.equal(positive)  # each anchor has a negative
        assert not (kept_negative & ~negative).any()
        near = (negative & (d < 1.4)).sum(dim=1)
        available = near.where(near > 0, negative.sum(dim=1))
        assert kept_negative.sum(dim=1).equal(positive.sum(dim=1).minimum(available))
        assert not (kept_negative & (d >= 1.4))[near > 0].any()
    assert (positive.sum(dim=1) < available).any()  # so that there was a choice


def test_distance_weighted_draws_by_the_probabilities(circle):
    """20,000 draws of one negative: Pearson's chi-square of 5 degrees of freedom, of which 0.1 % are above 20.5."""
    S, positive, negative = circle
    p = distance_log_probabilities(S, negative, 3).exp()[0]
    torch.manual_seed(0)
    rows = torch.ones(20_000, 1, dtype=torch.bool)
    _, drawn = distance_weighted(S.expand(20_000, -1), positive & rows, negative & rows, 3)
    possible = p > 0
    assert drawn.sum(dim=1).eq(1).all()
    assert not drawn[:, ~possible].any()
    expected = 20_000 * p[possible]
    assert len(expected) == 5
    assert ((drawn.sum(dim=0)[possible] - expected).square() / expected).sum() < 20.5


def test_distance_weighted_draws_evenly_over_the_distances():
    """Of uniform points on a sphere: the distances drawn spread evenly between cut-offs, those there are do not."""
    generator = torch.Generator().manual_seed(0)
    points = normalize(torch.randn(200_000, 8, generator=generator, dtype=torch.float64))
    S = points[None, :, 0]  # similarities to a pole
    d = (2 - 2 * S[0]).sqrt()
    p = distance_log_probabilities(S, torch.ones_like(S, dtype=torch.bool), 8, cutoff=0.5, max_distance=1.3).exp()[0]
    edges = torch.linspace(0.5, 1.3, 5, dtype=torch.float64)
    share = torch.stack([p[(d >= a) & (d < b)].sum() for a, b in pairwise(edges)])
    share /= share.sum()
    torch.testing.assert_close(share, torch.full_like(share, 0.25), rtol=0.1, atol=0)
    there = torch.stack([((d >= a) & (d < b)).sum() for a, b in pairwise(edges)])
    assert there[-1] > 10 * there[0]


def test_distance_weighted_falls_back_to_an_even_draw(circle):
    """Where no negative is nearer than the cut-off, all negatives are drawn alike, and never a positive."""
    S, positive, negative = circle
    p = distance_log_probabilities(S, negative, 64, max_distance=0.05).exp()
    torch.testing.assert_close(p, negative / 8.0, check_dtype=False)
    torch.manual_seed(0)
    drawn = torch.stack([distance_weighted(S - 2, positive, negative, 64)[1][0] for _ in range(300)])
    assert drawn.sum(dim=1).eq(1).all()
    assert drawn.any(dim=0).equal(negative[0])


def test_distance_weighted_is_repeated_by_a_seed(pairs):
    S, *masks = pairs

    def draw(seed):
        torch.manual_seed(seed)
        return torch.stack(distance_weighted(S, *masks, 4))

    assert draw(0).equal(draw(0))
    assert any(not draw(0).equal(draw(seed)) for seed in (1, 2, 3))


# ---- all rules


@pytest.mark.parametrize("mining", RULES[1:])
def test_rules_only_thin(pairs, mining):
    S, positive, negative = pairs
    before = S.clone(), positive.clone(), negative.clone()
    kept_positive, kept_negative = losses.RAWLoss(mining=mining).mine(S, positive, negative, 4)
    assert kept_positive.dtype == kept_negative.dtype == torch.bool
    assert not (kept_positive & ~positive).any()
    assert not (kept_negative & ~negative).any()
    assert kept_negative.any()
    assert kept_negative.sum() < negative.sum()
    for tensor, same in zip((S, positive, negative), before, strict=True):
        assert tensor.equal(same)


@pytest.mark.parametrize("mining", RULES[1:])
def test_anchor_without_positives_or_negatives_selects_nothing(pairs, mining):
    S, positive, negative = pairs
    positive[0] = negative[1] = False
    kept = losses.RAWLoss(mining=mining).mine(S, positive, negative, 4)
    assert not torch.stack(kept)[:, [0, 1, 8]].any()  # row 8 is the class of a single sample
    assert all(mask.any() for mask in kept)
    for mask in losses.RAWLoss(mining=mining).mine(S, positive & False, negative & False, 4):
        assert not mask.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mining", RULES, ids=str)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_every_rule_goes_with_every_loss(name, mining, dtype):
    """Value and gradient are finite, of a batch and with a memory, for spread, equal, long and single samples."""
    cls = getattr(losses, name)
    sizes = {"n_classes": 5, "n_components": 4}
    sizes = {size: sizes[size] for size in sizes if size in inspect.signature(cls).parameters}
    loss = cls(**sizes, mining=mining).to(dtype=dtype)
    x = normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    y = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2, 3, 0, 4])
    torch.manual_seed(0)
    for rows in (x, x[:1].expand(12, 4), 100 * x, 0 * x):
        for n, m in ((12, 12), (8, 12), (1, 12), (1, 1)):
            batch = rows[:n].clone().requires_grad_()
            S = loss._similarities(batch, rows[:m])
            values = [loss._compare(S, y[:n], y[:m], 4)] + [loss(batch, y[:n])] * (m == n)
            for value in values:
                (grad,) = torch.autograd.grad(value, batch, retain_graph=True)
                assert value.isfinite()
                assert grad.isfinite().all()
