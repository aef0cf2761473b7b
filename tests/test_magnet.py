"""The Magnet loss in plain loops, collapsed clusters, k-means of all classes at once and cluster neighborhoods."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from skdml import MagnetEmbedder
from skdml._methods.magnet import MagnetBatches, class_clusters, cluster_losses
from skdml.losses import MagnetLoss


@pytest.fixture
def batch():
    """Rows (B, D), labels (B,) and clusters (B,), whose numbers two classes share."""
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 0]), torch.tensor([0, 0, 4, 1, 0, 1, 5, 3, 0])


def in_loops(x, y, clusters, alpha):
    keys = list(zip(y.tolist(), clusters.tolist(), strict=True))
    means = {key: torch.stack([x[i] for i in range(len(y)) if keys[i] == key]).mean(dim=0) for key in set(keys)}
    variance = sum((x[i] - means[keys[i]]).square().sum() for i in range(len(y))) / (len(y) - 1)
    terms = []
    for i in range(len(y)):
        own = torch.exp(-(x[i] - means[keys[i]]).square().sum() / (2 * variance) - alpha)
        others = sum(torch.exp(-(x[i] - m).square().sum() / (2 * variance)) for k, m in means.items() if k[0] != y[i])
        terms.append((-torch.log(own / others)).relu())
    return sum(terms) / len(terms), terms


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_equals_the_formula(batch, alpha):
    x, y, clusters = batch
    x = (x + 2 * torch.nn.functional.one_hot(y, 3)).detach().requires_grad_()
    expected, terms = in_loops(x, y, clusters, alpha)
    assert any(term > 0 for term in terms)
    assert alpha > 1 or any(term == 0 for term in terms)
    value = MagnetLoss(alpha=alpha)(x, y, clusters)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_without_clusters_each_class_is_one(batch):
    x, y, _ = batch
    expected, _ = in_loops(x, y, y, 1.0)
    assert MagnetLoss()(x, y).item() == pytest.approx(expected.item(), rel=1e-12)


def test_length_and_origin_do_not_matter(batch):
    x, y, clusters = batch
    value = MagnetLoss()(x, y, clusters).item()
    assert value > 0.1
    assert MagnetLoss()(3 * x + 5, y, clusters).item() == pytest.approx(value, rel=1e-10)


def test_one_class_has_no_impostor():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = MagnetLoss()(x, torch.zeros(6, dtype=int), torch.arange(6) % 2)
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_collapsed_batch_counts_the_impostors():
    """All distances are 0, which leaves alpha plus the log of the number of clusters of other classes."""
    x = torch.ones(6, 3, requires_grad=True)
    value = MagnetLoss(alpha=2.0)(x, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 0, 0]))
    value.backward()
    assert value.item() == pytest.approx((2.0 + 2.0 + np.log(3)) / 2)
    assert x.grad.isfinite().all()


def test_clusters_of_one_sample_each_give_zero():
    """The variance is 0, and every sample infinitely many deviations from the others."""
    x = torch.eye(4, requires_grad=True)
    value = MagnetLoss()(x, torch.arange(4))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_clusters_of_the_wrong_shape_are_refused(batch):
    x, y, clusters = batch
    with pytest.raises(ValueError, match=r"clusters of shape \(9, 1\) for 9 rows"):
        MagnetLoss()(x, y, clusters[:, None])


def test_clusters_are_those_of_k_means():
    """Distinct groups within classes are found, and the sum of squares is as low as scikit-learn's."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(20), 12))
    x = rng.normal(size=(240, 4))
    cluster = class_clusters(x, y, 3, np.random.default_rng(1))

    def spread(cluster):
        return sum(np.square(x[cluster == c] - x[cluster == c].mean(axis=0)).sum() for c in np.unique(cluster))

    expected = sum(KMeans(3, n_init=1, random_state=0).fit(x[y == c]).inertia_ for c in range(20))
    assert spread(cluster) < 1.1 * expected
    for c in np.unique(cluster):
        assert len(np.unique(y[cluster == c])) == 1
        np.testing.assert_array_equal(np.unique(cluster), np.arange(cluster.max() + 1))
    group = rng.integers(3, size=240)
    group[:2] = 0, 1
    cluster = class_clusters(np.eye(3)[group], y, 3, np.random.default_rng(1))
    assert all(len(np.unique(group[cluster == c])) == 1 for c in np.unique(cluster))


def test_fewer_samples_or_distinct_rows_than_clusters():
    y = np.array([0, 0, 1, 2, 2, 2, 2])
    x = np.array([[0.0], [1.0], [5.0], [3.0], [3.0], [3.0], [3.0]])
    np.testing.assert_array_equal(np.sort(class_clusters(x, y, 3, np.random.default_rng(0))), [0, 1, 2, 3, 3, 3, 3])


def test_nearest_clusters_and_losses():
    """Where all clusters of other classes are near enough, a cluster's loss is the mean of its terms in the loss."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 6)
    cluster = np.repeat(np.arange(6), 3)
    x = rng.normal(size=(18, 3))
    near, loss = cluster_losses(x, y, cluster, 9, 1.0)
    _, terms = in_loops(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(cluster), 1.0)
    np.testing.assert_allclose(loss, np.reshape(terms, (6, 3)).mean(axis=1))
    means = np.stack([x[cluster == c].mean(axis=0) for c in range(6)])
    for c in range(6):
        others = [k for k in range(6) if k // 2 != c // 2]
        expected = sorted(others, key=lambda k: np.linalg.norm(means[k] - means[c]))
        assert near[c].tolist() == [*expected, -1]


def test_batches_are_neighborhoods_of_clusters_with_a_loss():
    """Ten distant pairs of near classes, five of them spread: later batches gather around those."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 10)
    spread = np.where(y < 10, 0.9, 0.001)[:, None]
    x = 20 * np.eye(10)[y // 2] + 3 * np.eye(10)[(y // 2 + y % 2) % 10] + spread * rng.normal(size=(200, 10))
    rule = MagnetBatches(y, 8, 4, 1, 1.0)
    generator = torch.Generator().manual_seed(0)
    first, second = (rule(generator, lambda: torch.from_numpy(x).float()) for _ in range(2))
    for index, clusters in [*first, *second]:
        assert len(index.unique()) == 8
        np.testing.assert_array_equal(clusters, y[index])
        a, b = np.unique(y[index])
        assert a // 2 == b // 2
    assert len(first) == 25
    assert np.mean([y[index].max() < 10 for index, _ in first]) < 0.8
    assert all(y[index].max() < 10 for index, _ in second)


def test_a_small_cluster_gives_what_it_has():
    y = np.array([0, 0, 0, 0, 0, 1])
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    batches = MagnetBatches(y, 8, 4, 1, 1.0)(torch.Generator().manual_seed(0), lambda: x)
    assert all(np.bincount(y[index]).tolist() == [4, 1] for index, _ in batches)


def test_parameters_of_the_embedder_reach_the_batches(blobs):
    X, y = blobs
    fitted = MagnetEmbedder(alpha=3.0, n_clusters=3, samples_per_cluster=2, batch_size=10, max_epochs=5, random_state=0)
    fitted.fit(X, y)
    rule = fitted._make_batches(y)
    assert (rule.alpha, rule.n_clusters, rule.samples_per_cluster, rule.clusters_per_batch) == (3.0, 3, 2, 5)
    assert fitted.score(X, y) > 0.9


def test_a_batch_holds_two_clusters(blobs):
    with pytest.raises(ValueError, match=r"'batch_size' parameter of MagnetEmbedder must be at least .* = 10"):
        MagnetEmbedder(batch_size=9, samples_per_cluster=5).fit(*blobs)
