"""HTL: the triplet sum in plain loops, the class tree by hand, and what its batches hold."""

import numpy as np
import pytest
import torch

from skdml import HTLEmbedder
from skdml._loss.terms import sums_above
from skdml._methods.htl import NeighborhoodBatches, class_distances, class_levels
from skdml.losses import HTLLoss


@pytest.fixture
def batch():
    """Rows (B, D) of various lengths and labels (B,), one class with a single sample."""
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(x, y, margins):
    terms = []
    for a in range(len(y)):
        for p in range(len(y)):
            for n in range(len(y)):
                if p != a and y[p] == y[a] != y[n]:
                    difference = (x[a] - x[p]).square().sum() - (x[a] - x[n]).square().sum()
                    terms.append((difference + margins[a, n]).relu())
    return sum(terms) / (2 * len(terms)), terms


def test_equals_the_formula(batch):
    x, y = batch
    margins = 4 * torch.rand(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    expected, terms = in_loops(x, y, margins)
    assert 0 < sum(term > 0 for term in terms) < len(terms)
    value = HTLLoss()(x, y, margins)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("margin", [0.0, 0.1, 3.0])
def test_without_margins_is_half_the_triplet_loss(batch, margin):
    x, y = batch
    expected, _ = in_loops(x, y, torch.full((9, 9), margin, dtype=torch.float64))
    assert HTLLoss(margin=margin)(x, y).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_triplet_at_the_edge_of_the_hinge_is_inactive():
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64, requires_grad=True)
    margins = torch.zeros(3, 3, dtype=torch.float64)
    margins[0, 2], margins[1, 2] = 8.0, 3.0  # 1 - 9 + 8 and 1 - 4 + 3
    value = HTLLoss()(x, torch.tensor([0, 0, 1]), margins)
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_margins_of_the_wrong_shape_are_refused(batch):
    with pytest.raises(ValueError, match=r"margins of shape \(9, 1\) for 9 rows"):
        HTLLoss()(*batch, torch.zeros(9, 1))


def test_sums_above_counts_strictly():
    values = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    keys = torch.tensor([[1.0, 2.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, True, False]])
    number, total = sums_above(values, keys, mask, torch.tensor([[0.0, 1.0, 2.0, 1.5]]))
    assert number.tolist() == [[3, 2, 0, 2]]
    assert total.tolist() == [[60.0, 50.0, 0.0, 50.0]]


def test_class_distances_are_means_over_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.permutation([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 1])
    distance, within = class_distances(x, y)
    pairs = np.square(x[:, None] - x).sum(axis=2)
    for p in range(4):
        for q in range(4):
            if p != q:
                assert distance[p, q] == pytest.approx(pairs[np.ix_(y == p, y == q)].mean())
    expected = []
    for c in range(3):
        n = (y == c).sum()
        expected.append(pairs[np.ix_(y == c, y == c)].sum() / (n * (n - 1)))
    # The class of one sample gets the mean of the others.
    np.testing.assert_allclose(within, [*expected, np.mean(expected)])


def test_levels_by_hand():
    """d_0 = 1, steps of 1: 0 and 1 merge at 2, met exactly; 2 joins at the mean of 2.4 and 2.8; 3 at the top."""
    distance = np.array([[0, 2.0, 2.4, 3.5], [2.0, 0, 2.8, 3.6], [2.4, 2.8, 0, 3.7], [3.5, 3.6, 3.7, 0]])
    level, thresholds = class_levels(distance, np.ones(4), 3)
    np.testing.assert_allclose(thresholds, [1, 2, 3, 4])
    expected = [[0, 1, 2, 3], [1, 0, 2, 3], [2, 2, 0, 3], [3, 3, 3, 0]]
    np.testing.assert_array_equal(level, expected)
    # Nearer than d_0: one node from the start.
    assert class_levels(distance / 4, np.ones(4), 3)[0].max() == 0


def circle(n_classes, n_samples):
    """Unit rows: classes in turn around a circle, so that the nearest classes are those with the next numbers."""
    y = np.repeat(np.arange(n_classes), n_samples)
    angle = 2 * np.pi * (y + 0.1 * np.random.default_rng(0).random(len(y))) / n_classes
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], axis=1)).float(), y


def test_batches_hold_classes_with_their_nearest_and_margins():
    x, y = circle(24, 6)
    rule = NeighborhoodBatches(y, 24, 4, 2, 16, 0.1)
    generator = torch.Generator().manual_seed(0)
    assert isinstance(rule(generator, None)[0], torch.Tensor)  # the first epoch, without margins
    batches = rule(generator, lambda: x)
    distance, within = class_distances(x.numpy(), y)
    level, thresholds = class_levels(distance, within, 16)
    assert len(batches) == 6
    for index, margins in batches:
        assert len(index) == len(index.unique()) == 24
        classes, counts = np.unique(y[index], return_counts=True)
        assert (counts == 4).all()
        gaps = np.diff([*classes, classes[0] + 24])
        assert (gaps == 1).sum() >= 3  # two neighborhoods of three
        for i, j in [(0, 5), (3, 17), (20, 1)]:
            ya, yn = y[index[i]], y[index[j]]
            assert margins[i, j].item() == pytest.approx(0.1 + thresholds[level[ya, yn]] - within[ya], rel=1e-5)


def test_an_epoch_sees_the_data_evenly():
    x, y = circle(24, 8)
    rule = NeighborhoodBatches(y, 24, 4, 2, 16, 0.1)
    generator = torch.Generator().manual_seed(0)
    rule(generator, None)
    seen = np.bincount(np.concatenate([index for _ in range(10) for index, _ in rule(generator, lambda: x)]))
    assert seen.min() >= 5
    assert seen.max() <= 16


def test_few_and_small_classes():
    """A class with fewer samples than K gives those it has; two classes of two are all there is."""
    for y in (np.array([0, 0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1])):
        rule = NeighborhoodBatches(y, 12, 4, 3, 4, 0.1)
        x = torch.randn(len(y), 2, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for batch in rule(generator, lambda x=x: x):
                index = batch[0] if isinstance(batch, tuple) else batch
                assert len(index.unique()) == len(index)
                assert len(np.unique(y[index])) == len(np.unique(y))
                assert isinstance(batch, torch.Tensor) or batch[1].isfinite().all()


def test_parameters_of_the_embedder_reach_the_batches(blobs):
    X, y = blobs
    fitted = HTLEmbedder(margin=0.3, n_levels=4, n_neighbors=1, batch_size=12, max_epochs=4, random_state=0).fit(X, y)
    rule = fitted._make_batches(y)
    assert (rule.margin, rule.n_levels, rule.n_neighbors) == (0.3, 4, 1)
    assert fitted.score(X, y) > 0.9
