"""Cross-batch memory against a list of all earlier embeddings, and what it leaves behind."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from skdml import RAWEmbedder, SSTEmbedder
from skdml._loss.memory import CrossBatchMemory
from skdml._loss.pairs import PairLoss
from skdml.losses import RAWLoss

pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning")


class SquareLoss(PairLoss):
    """The sum of (1 - s)^2 over positives and s^2 over negatives."""

    def __init__(self, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)

    def pair_loss(self, S, positive, negative):
        return torch.where(positive, (1 - S).square(), 0).sum() + torch.where(negative, S.square(), 0).sum()


def make_batches(sizes, d=5):
    generator = torch.Generator().manual_seed(0)
    for n in sizes:
        x = normalize(torch.randn(n, d, generator=generator, dtype=torch.float64)).requires_grad_()
        yield x, torch.randint(4, (n,), generator=generator)


def in_loops(x, y, memory):
    """Each pair of the batch twice, as seen from either end; then batch against memory, the own copy left out."""
    total = 0
    for i in range(len(y)):
        others = [(x[j], y[j]) for j in range(len(y)) if j != i]
        copies = [(x[j].detach(), y[j]) for j in range(len(y)) if j != i]
        for z, c in others + copies + memory:
            s = x[i] @ z
            total = total + ((1 - s).square() if c == y[i] else s.square())
    return total


@pytest.mark.parametrize("memory_size", [8, 9, 20, 1000])
def test_equals_loops_over_a_list(memory_size):
    """Batches of different sizes; the ring holds the last rows, those of the batch itself included."""
    memory = CrossBatchMemory(SquareLoss(), memory_size, memory_start=0)
    earlier = []
    for x, y in make_batches([8, 8, 3, 8, 7, 8]):
        kept = earlier[len(earlier) - max(0, min(len(earlier), memory_size - len(y))) :]
        expected = in_loops(x, y, kept)
        value = memory(x, y)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))
        earlier += [(row.detach(), c) for row, c in zip(x, y, strict=True)]


def test_memory_waits_for_its_start():
    loss, memory = RAWLoss(), CrossBatchMemory(RAWLoss(), 50, memory_start=2)
    waits = [bool(memory(x, y) == loss(x, y)) for x, y in make_batches([8] * 4)]
    assert waits == [True, True, False, False]


@pytest.mark.parametrize("mining", [None, "vthm", "semihard", "hard", "distance_weighted"])
def test_every_rule_takes_the_memory(blobs, mining):
    X, y = blobs
    settings = {"mining": mining, "max_epochs": 6, "batch_size": 16, "random_state": 0}
    plain = RAWEmbedder(**settings).fit(X, y)
    remembering = RAWEmbedder(**settings, memory_size=48, memory_start=0).fit(X, y)
    assert remembering.score(X, y) > 0.9
    assert not np.allclose(remembering.transform(X), plain.transform(X))


def test_nothing_of_the_memory_outlives_the_fit(blobs):
    X, y = blobs
    plain = RAWEmbedder(max_epochs=2, random_state=0).fit(X, y)
    embedder = RAWEmbedder(max_epochs=2, random_state=0, memory_size=50_000, memory_start=0).fit(X, y)
    assert type(embedder.criterion_) is RAWLoss
    assert len(pickle.dumps(embedder)) < len(pickle.dumps(plain)) + 1000


def test_memory_smaller_than_a_batch_is_refused(blobs):
    with pytest.raises(
        ValueError, match="'memory_size' parameter of SSTEmbedder must be 0 or at least batch_size = 128"
    ):
        SSTEmbedder(memory_size=127).fit(*blobs)
