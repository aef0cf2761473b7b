"""N-pairs against its formula in plain loops: which rows form the pairs, the memory, the term of the lengths."""

import math

import numpy as np
import pytest
import torch

from skdml import NPairsEmbedder
from skdml._loss.pairs import pair_masks
from skdml.losses import NPairsLoss


@pytest.fixture
def batch():
    """Rows of any length (B, D) and labels (B,): three pairs, third rows of two classes, a class with one row."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([2, 0, 7, 2, 1, 2, 1, 0, 1])


def in_turn(y):
    """The pairs (anchor, partner): the rows of each class, two by two."""
    rows = [[i for i in range(len(y)) if y[i] == c] for c in y.unique()]
    return [(own[i], own[i + 1]) for own in rows for i in range(0, len(own) - 1, 2)]


def in_loops(x, y, pairs, l2, memory=lambda a: []):
    """The formula, with further negatives ``memory(a)`` of anchor a."""
    loss = 0
    for a, q in pairs:
        others = [x[k] for b, k in pairs if y[b] != y[a]] + list(memory(a))
        loss = loss + torch.log(1 + sum([torch.exp(x[a] @ z - x[a] @ x[q]) for z in others], x.new_zeros(())))
        loss = loss + l2 * (x[a] @ x[a] + x[q] @ x[q])
    return loss / len(pairs)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_equals_the_formula(batch, l2):
    x, y = batch
    pairs = in_turn(y)
    assert pairs == [(1, 7), (4, 6), (0, 3)]
    expected = in_loops(x, y, pairs, l2)
    value = NPairsLoss(l2=l2)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_rows_outside_the_pairs_get_no_gradient(batch):
    x, y = batch
    NPairsLoss()(x, y).backward()
    assert (x.grad == 0).all(dim=1).nonzero().flatten().tolist() == [2, 5, 8]


def test_further_rows_of_a_class_form_further_pairs(batch):
    """They are compared only with the pairs of other classes."""
    x, _ = batch
    y = torch.tensor([0, 1, 0, 1, 0, 0, 2, 0, 1])
    pairs = in_turn(y)
    assert pairs == [(0, 2), (4, 5), (1, 3)]
    torch.testing.assert_close(NPairsLoss(l2=0.1)(x, y), in_loops(x, y, pairs, 0.1))


def test_is_the_cross_entropy_of_the_pairs(batch):
    x, _ = batch
    a, q = x[:4], x[4:8]
    y = torch.arange(4).repeat(2)
    expected = torch.nn.functional.cross_entropy(a @ q.T, torch.arange(4))
    torch.testing.assert_close(NPairsLoss(l2=0)(x[:8], y), expected)


def test_memory_gives_further_negatives(batch):
    """Behind the batch itself the columns hold samples of the classes 0, 1 and 5; an anchor's own class is left out."""
    x, y = batch
    memory = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    memory_y = torch.tensor([0, 1, 5])
    S = x @ torch.cat([x, memory]).T
    value = NPairsLoss().pair_loss(S, *pair_masks(y, torch.cat([y, memory_y])))
    expected = in_loops(x, y, in_turn(y), 0.02, lambda a: memory[memory_y != y[a]])
    torch.testing.assert_close(value, expected)


def test_one_pair_leaves_the_lengths(batch):
    x, _ = batch
    y = torch.tensor([0, 0, 0, 1, 2])
    expected = 0.1 * (x[0].square().sum() + x[1].square().sum())
    torch.testing.assert_close(NPairsLoss(l2=0.1)(x[:5], y), expected)


@pytest.mark.parametrize("length", [1.0, 1e6])
def test_value_of_orthogonal_pairs(length):
    """N pairs on N axes: log(1 + (N - 1) e^(-length^2)); nothing overflows."""
    x = (length * torch.eye(4).repeat(2, 1)).requires_grad_()
    value = NPairsLoss(l2=0)(x, torch.arange(4).repeat(2))
    value.backward()
    assert value.item() == pytest.approx(math.log1p(3 * math.exp(-min(length**2, 700))), rel=1e-5)
    assert x.grad.isfinite().all()


def test_embedder_learns_lengths(blobs):
    X, y = blobs
    fitted = NPairsEmbedder(batch_size=32, max_epochs=10, random_state=0).fit(X, y)
    assert fitted.score(X, y) > 0.9
    assert not np.allclose(np.linalg.norm(fitted.transform(X), axis=1), 1)
