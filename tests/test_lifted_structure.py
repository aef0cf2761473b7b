"""The lifted structure loss, in both forms, against plain loops, its weights, empty sides, mining and a memory."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from skdml._loss.memory import CrossBatchMemory
from skdml._loss.mining import vthm
from skdml._loss.pairs import pair_masks
from skdml.losses import LiftedStructureLoss

SETTINGS = [
    {"form": form, "metric": metric, "margin": margin}
    for form in ("generalized", "original")
    for metric in ("euclidean", "cosine")
    for margin in (1.0, -2.0)
]


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(x, columns, positive, negative, *, margin, metric, form):
    """The formulas, one exponential at a time; positive (B, B), negative (B, M)."""

    def d(i, j):
        return (x[i] - columns[j]).norm() if metric == "euclidean" else 1 - x[i] @ columns[j]

    B, loss, n_pairs = len(x), 0, 0
    push = [[torch.exp(margin - d(i, k)) for k in range(len(columns)) if negative[i, k]] for i in range(B)]
    for i in range(B):
        P = [k for k in range(B) if positive[i, k]]
        n_pairs += len(P)
        if form == "generalized" and P and push[i]:
            pull = sum(torch.exp(d(i, k)) for k in P)
            loss = loss + (pull.log() + sum(push[i]).log()).clamp(min=0) / B
        if form == "original":
            for j in P:
                if push[i] or push[j]:
                    loss = loss + (d(i, j) + sum(push[i] + push[j]).log()).clamp(min=0) ** 2 / 2
    return loss / n_pairs if form == "original" else loss


@pytest.mark.parametrize("mining", [None, "vthm"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_formula(batch, settings, mining):
    x, y = batch
    masks = pair_masks(y)
    if mining:
        masks = vthm((x @ x.T).detach(), *masks, 0.1)
    expected = in_loops(x, x, *masks, **settings)
    value = LiftedStructureLoss(**settings, mining=mining)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_weights_are_those_of_the_paper(batch):
    """Eqs. (10) and (11), the last with the sign that its gradient has; they sum to 1 on either side."""
    x, y = batch
    S = (x @ x.T).detach().requires_grad_()
    positive, negative = pair_masks(y)
    LiftedStructureLoss(metric="cosine").pair_loss(S, positive, negative).backward()
    expected = torch.zeros_like(S)
    for i in range(8):  # row 8 has no positive
        for j in positive[i].nonzero().flatten():
            expected[i, j] = -1 / sum(torch.exp(S[i, j] - S[i, k]) for k in positive[i].nonzero().flatten())
        for j in negative[i].nonzero().flatten():
            expected[i, j] = 1 / sum(torch.exp(S[i, k] - S[i, j]) for k in negative[i].nonzero().flatten())
    torch.testing.assert_close(len(y) * S.grad, expected.detach())
    hardest = torch.where(negative, S.detach(), -torch.inf).argmax(dim=1)[:8]
    assert S.grad.argmax(dim=1)[:8].equal(hardest)


def test_one_positive_and_one_negative_are_a_triplet():
    """Rows 0, 1 and 3: generalized hinges m + d_p - d_n, the original the two negatives at once."""
    x, y = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    assert LiftedStructureLoss(margin=2.5, mining=None)(x, y).item() == pytest.approx((0.5 + 1.5) / 3)
    J = 1 + math.log(math.exp(2.5 - 3) + math.exp(2.5 - 2))
    assert LiftedStructureLoss(margin=2.5, form="original", mining=None)(x, y).item() == pytest.approx(J**2 / 2)


def test_far_negatives_are_inactive():
    x = torch.tensor([[0.0], [1.0], [90.0], [91.0]], requires_grad=True)
    for form in ("generalized", "original"):
        value = LiftedStructureLoss(form=form, mining=None)(x, torch.tensor([0, 0, 1, 1]))
        assert value == 0
        assert not torch.autograd.grad(value, x)[0].any()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("y", [[0] * 9, list(range(9))], ids=["one class", "all different"])
def test_an_empty_side_gives_zero(batch, settings, y):
    x, _ = batch
    value = LiftedStructureLoss(**settings, mining=None)(x, torch.tensor(y))
    assert value == 0
    assert not torch.autograd.grad(value, x)[0].any()


def test_original_where_one_end_has_no_negatives():
    """Row 0 lost its negative to mining: the sum over both ends is that of row 1, and no gradient reaches row 0's."""
    S = torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]], requires_grad=True)  # d = 1
    positive, negative = pair_masks(torch.tensor([0, 0, 1]))
    value = LiftedStructureLoss(form="original").pair_loss(S, positive, negative & (torch.arange(3)[:, None] > 0))
    value.backward()
    assert value.item() == pytest.approx(0.5)  # J = 1 + log e^0
    assert S.grad.isfinite().all()
    assert S.grad[0, 2] == 0
    assert S.grad[1, 2] != 0


@pytest.mark.parametrize("form", ["generalized", "original"])
def test_memory_gives_negatives(batch, form):
    """Columns beyond the batch: no positives here, so both forms compare with the loops over the wide mask."""
    x, y = batch
    loss = LiftedStructureLoss(form=form, mining=None)
    memory = CrossBatchMemory(loss, memory_size=13, memory_start=0)
    earlier = normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    memory(earlier, torch.tensor([8, 9, 10, 11]))
    columns = torch.cat([x.detach(), earlier])
    positive, negative = pair_masks(y, torch.cat([y, torch.tensor([8, 9, 10, 11])]))
    expected = in_loops(x, columns, positive[:, :9], negative, margin=1.0, metric="euclidean", form=form)
    value = memory.memory_loss(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))
