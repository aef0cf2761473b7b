"""Clustering against a search of all medoids, scikit-learn's mutual information and batches without a choice."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import normalized_mutual_info_score

from skdml._methods.clustering import _MedoidSearch
from skdml.losses import ClusteringLoss


def make_batch(seed, n=7, spread=1.0):
    """Rows (B, D) around their class's center, and labels (B,) of three classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor([4, 2, 9, 2, 4, 9, 4, 2, 9, 4][:n])
    centers = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    x = spread * torch.randn(n, 3, generator=generator, dtype=torch.float64) + centers[y]
    return x.requires_grad_(), y


def clusters_of(x, medoids):
    """The medoid of each sample, and F."""
    nearest, F = [], 0
    for i in range(len(x)):
        j = i if i in medoids else min(medoids, key=lambda j: (x[i] - x[j]).norm().item())
        nearest.append(j)
        F = F - ((x[i] - x[j]).norm() if i != j else 0)
    return nearest, F


def value_of(x, y, medoids, gamma):
    nearest, F = clusters_of(x, medoids)
    return F + gamma * (1 - normalized_mutual_info_score(y, nearest, average_method="geometric"))


def F_of_classes(x, y):
    F = 0
    for c in y.unique():
        rows = x[y == c]
        F = F + max(-sum((a - b).norm() for a in rows if a is not b) for b in rows)
    return F


def exhaustive(x, y, gamma):
    sets = combinations(range(len(y)), len(y.unique()))
    return max((value_of(x, y, medoids, gamma) for medoids in sets), key=lambda value: value.item())


def search_of(x, y):
    x = x.detach().numpy()
    return _MedoidSearch(cdist(x, x), np.unique(y, return_inverse=True)[1])


@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_maximum_is_nearly_that_of_all_medoid_sets(gamma):
    """Never above, as it is the value of a set; and mostly the same, which greedy alone does not reach as often."""
    equal = {0: 0, 5: 0}
    for seed in range(6):
        x, y = make_batch(seed)
        best = exhaustive(x.detach(), y, gamma) - F_of_classes(x.detach(), y)
        for rounds in equal:
            value = ClusteringLoss(gamma=gamma, max_swap_rounds=rounds)(x, y)
            assert value <= best + 1e-9
            equal[rounds] += value.item() == pytest.approx(best.item(), abs=1e-9)
    assert equal[5] >= max(equal[0], 4)


@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_are_those_of_the_medoids(seed):
    x, y = make_batch(seed, n=10)
    gamma = 2.0
    medoids = search_of(x, y).best_medoids(gamma, 5)
    assert len(set(medoids)) == 3
    expected = (value_of(x, y, medoids, gamma) - F_of_classes(x, y)).clamp(min=0)
    assert expected > 0.1
    value = ClusteringLoss(gamma=gamma)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def greedy_in_loops(x, y, gamma):
    medoids = []
    while len(medoids) < len(y.unique()):
        left = [j for j in range(len(y)) if j not in medoids]
        medoids.append(max(left, key=lambda j: value_of(x, y, [*medoids, j], gamma).item()))
    return medoids


@pytest.mark.parametrize("gamma", [0.3, 30.0])
def test_greedy_choice_equals_the_plain_one(gamma):
    """One candidate after the other, without a bound and with the mutual information from scratch."""
    for seed in range(3):
        x, y = make_batch(seed, n=10)
        assert search_of(x, y).best_medoids(gamma, 0).tolist() == greedy_in_loops(x.detach(), y, gamma)


def test_swaps_never_lower_the_value():
    for seed in range(5):
        x, y = make_batch(seed, n=10)
        values = [value_of(x, y, search_of(x, y).best_medoids(1.0, rounds), 1.0).item() for rounds in range(4)]
        assert values == sorted(values)


def test_error_is_one_less_mutual_information():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2))
    y = rng.integers(5, size=30)
    search = _MedoidSearch(cdist(x, x), y)
    for size in (1, 2, 5, 30):
        medoids = rng.permutation(30)[:size]
        expected = 1 - normalized_mutual_info_score(y, search.assign(medoids), average_method="geometric")
        assert search.error(medoids) == pytest.approx(expected, abs=1e-12)
    one_class = _MedoidSearch(cdist(x, x), np.zeros(30, dtype=int))
    assert [one_class.error(np.arange(size)) for size in (1, 2)] == [0, 1]


def test_errors_of_all_candidates_equal_those_of_each():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 2))
    search = _MedoidSearch(cdist(x, x), rng.permutation(np.arange(20) % 4))
    for size in (0, 1, 3, 6):
        medoids = np.arange(size)
        candidates = np.arange(size, 20)
        nearest = search.assign(medoids) if size else np.zeros(20, dtype=int)
        reach = search.distance[np.arange(20), nearest] if size else np.full(20, np.inf)
        moves = search.distance[:, candidates] < reach[:, None]
        errors = search._errors(nearest, moves)
        np.testing.assert_allclose(errors, [search.error(np.append(medoids, j)) for j in candidates], atol=1e-12)


@pytest.mark.parametrize("y", [[3] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_without_a_choice_gives_zero(y):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    value = ClusteringLoss(gamma=10.0)(x, torch.tensor(y))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_distant_classes_give_zero():
    x, y = make_batch(0, spread=0.01)
    value = ClusteringLoss()(x, y)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert x.grad.abs().max() < 1e-12


def test_medoid_belongs_to_itself():
    """Rows 0 and 1 coincide, with different labels; chosen both, each has its own cluster."""
    x = torch.tensor([[0.0], [0.0], [5.0], [5.5]], requires_grad=True)
    search = search_of(x, torch.tensor([0, 1, 2, 2]))
    assert search.assign(np.array([0, 1, 2])).tolist() == [0, 1, 2, 2]
    assert search.error(np.array([0, 1, 2])) == pytest.approx(0, abs=1e-12)
    value = ClusteringLoss()(x, torch.tensor([0, 1, 2, 2]))
    value.backward()
    assert x.grad.isfinite().all()


def test_margin_grows_with_gamma():
    x, y = make_batch(3)
    values = [ClusteringLoss(gamma=gamma)(x, y).item() for gamma in (0.0, 0.5, 1.0, 5.0)]
    assert values == sorted(values)
    assert values[-1] > values[0]
