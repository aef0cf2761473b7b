"""Which samples share a batch, as properties of any labels."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skdml._engine.batches import BalancedBatches, LocalBatches, ShuffledBatches


def encode(labels):
    return np.unique(labels, return_inverse=True)[1]


def epoch(rule, seed=0, device="cpu", embed=None):
    batches = rule(torch.Generator(device).manual_seed(seed), embed)
    assert all(batch.device.type == device for batch in batches)
    return [batch.cpu().numpy() for batch in batches]


labels = st.lists(st.integers(0, 12), min_size=2, max_size=150).map(encode).filter(lambda y: y.max() > 0)


@given(n=st.integers(1, 300), batch_size=st.integers(1, 320), seed=st.integers(0, 99))
def test_shuffled_batches_hold_every_row_once_in_even_sizes(n, batch_size, seed):
    batches = epoch(ShuffledBatches(np.zeros(n, dtype=int), batch_size), seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(y=labels, K=st.integers(2, 6), P=st.integers(2, 8), seed=st.integers(0, 99))
def test_balanced_batches_hold_p_classes_of_k_samples(y, K, P, seed):
    counts = np.bincount(y)
    batches = epoch(BalancedBatches(y, P * K, K), seed)
    classes = min(P, len(counts))
    samples = max(K, P * K // len(counts))
    for batch in batches:
        assert len(np.unique(batch)) == len(batch), "a row stands twice in a batch"
        present, held = np.unique(y[batch], return_counts=True)
        assert len(present) == classes
        # A class smaller than K, a singleton for instance, gives what it has.
        np.testing.assert_array_equal(held, np.minimum(samples, counts[present]))
    groups = -(-counts // samples)
    assert len(batches) == -(-groups.sum() // classes)
    if groups.max() <= len(batches):
        assert set(np.concatenate(batches)) == set(range(len(y))), "a row is in no batch of the epoch"


@pytest.mark.parametrize(
    ("sizes", "largest", "K", "P"),
    [([3], 50, 4, 4), ([8, 1, 2], 100, 3, 2), ([5] * 6, 101, 2, 8), ([40, 41], 60, 4, 3)],
)
def test_balanced_batches_of_a_long_tail_go_through_all_rows_in_turn(sizes, largest, K, P):
    """The epochs are short; before a row of the large class occurs again, the others have."""
    y = np.repeat(np.arange(len(sizes) + 1), [*sizes, largest])
    rule = BalancedBatches(y, P * K, K)
    large = np.flatnonzero(y == y.max())
    seen = np.zeros(len(y), dtype=int)
    for number in range(20):
        batches = epoch(rule, number)
        for batch in batches:
            assert len(np.unique(batch)) == len(batch)
        seen += np.bincount(np.concatenate(batches), minlength=len(y))
        assert np.ptp(seen[large]) <= 1
    assert (seen > 0).all()


def test_one_large_class_does_not_set_the_number_of_batches(device):
    y = np.repeat(np.arange(51), [10_000] + [10] * 50)
    rule = BalancedBatches(y, 64, 4)
    batches = epoch(rule, device=device)
    assert len(batches) == pytest.approx(len(y) / 64, rel=0.02)
    assert all(len(batch) == 64 for batch in batches)
    first, second = (np.concatenate(part)[y[np.concatenate(part)] == 0] for part in (batches, epoch(rule, 1, device)))
    assert len(np.unique(first)) == len(first) == 4 * len(batches)
    assert not np.isin(first, second).any()


def test_batches_of_many_classes_are_made_at_once():
    """100,000 classes of many sizes."""
    counts = 1 + np.random.default_rng(0).zipf(2.5, 100_000).clip(max=3000)
    rule = BalancedBatches(np.repeat(np.arange(100_000), counts), 64, 4)
    start = time.perf_counter()
    assert len(rule(torch.Generator().manual_seed(0))) == rule.n_batches
    assert time.perf_counter() - start < 5


def test_balanced_batches_of_a_balanced_set_hold_every_row_once():
    y = np.repeat(np.arange(10), 12)
    batches = epoch(BalancedBatches(y, 20, 4))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(120))


@pytest.mark.parametrize("rule", [ShuffledBatches, lambda y, size: BalancedBatches(y, size, 4)])
def test_epochs_differ_and_a_seed_repeats_them(rule, device):
    rule = rule(np.repeat(np.arange(10), 12), 20)
    generator = torch.Generator(device).manual_seed(3)
    first, second = (torch.cat(list(rule(generator))).cpu().numpy() for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(np.concatenate(epoch(rule, 3, device)), first)


def test_local_batches_are_the_clusters():
    """Six tight groups of 20 around distant points: a batch is a group, though classes run across the groups."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 20)
    embeddings = torch.from_numpy(10 * np.eye(6)[group] + 0.01 * rng.normal(size=(120, 6))).float()
    batches = epoch(LocalBatches(np.arange(120) % 4, 20), seed=1, embed=lambda: embeddings)
    assert len(batches) > 1
    mixed = [len(np.unique(group[batch])) for batch in batches]
    assert np.mean(mixed) < 2  # of 6: one start of k-means may merge two groups and cut one
    assert max(len(batch) for batch in batches) <= 20


@settings(deadline=None, max_examples=30)
@given(y=labels, batch_size=st.integers(2, 40), seed=st.integers(0, 99))
def test_local_batches_hold_a_row_once_and_all_with_triplets(y, batch_size, seed):
    embeddings = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(y), 2))).float()
    batches = epoch(LocalBatches(y, batch_size), seed, embed=lambda: embeddings)
    rows = np.concatenate([[], *batches])
    assert len(np.unique(rows)) == len(rows)
    for batch in batches:
        counts = np.unique(y[batch], return_counts=True)[1]
        assert len(counts) > 1
        assert counts.max() > 1
        assert len(batch) <= batch_size


def test_one_large_cluster_is_cut_with_the_rows_of_a_class_together():
    """Equal embeddings are one cluster. Of 60 classes of four, each of the six parts holds ten, whole."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(60), 4))
    batches = epoch(LocalBatches(y, 40), embed=lambda: torch.zeros(240, 3))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(240))
    assert all((np.unique(y[batch], return_counts=True)[1] == 4).all() for batch in batches)


def test_one_large_cluster_of_two_classes_keeps_both_in_its_parts():
    y = np.arange(400) % 2
    batches = epoch(LocalBatches(y, 40), embed=lambda: torch.zeros(400, 3))
    assert sum(map(len, batches)) > 350


def test_local_batches_without_a_triplet_are_left_out():
    """One cluster of a single class, and one where no class stands twice."""
    embeddings = torch.tensor([[0.0, 0.0]] * 8 + [[9.0, 9.0]] * 8)
    y = encode([0] * 8 + list(range(1, 9)))
    assert epoch(LocalBatches(y, 8), embed=lambda: embeddings) == []


def test_local_batches_survive_collapsed_embeddings():
    y = np.arange(40) % 2
    batches = epoch(LocalBatches(y, 10), embed=lambda: torch.ones(40, 3))
    assert all(len(batch) <= 10 for batch in batches)
    assert batches
