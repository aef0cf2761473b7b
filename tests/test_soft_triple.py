"""SoftTriple against its formula in plain loops, and in the limits where it is another known loss."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from skdml import SoftTripleEmbedder
from skdml.losses import SoftTripleLoss

B, C, K, D = 6, 4, 3, 5


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,)."""
    x = normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 3, 1, 1, 0, 3])


def make_loss(n_centers=K, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SoftTripleLoss(C, D, n_centers=n_centers, **settings).double()


def in_loops(x, y, v, *, scale, gamma, margin, tau):
    """The formula for embeddings x (B, D) and centers v (C, K, D), one scalar at a time."""
    C, K, _ = v.shape
    w = [[v[c, k] / v[c, k].norm() for k in range(K)] for c in range(C)]
    loss = 0
    for x_i, y_i in zip(x, y, strict=True):
        similarity = []
        for c in range(C):
            s = [x_i @ w[c][k] for k in range(K)]
            total = sum(torch.exp(s_k / gamma) for s_k in s)
            similarity.append(sum(torch.exp(s_k / gamma) / total * s_k for s_k in s))
        own = torch.exp(scale * (similarity[y_i] - margin))
        others = sum(torch.exp(scale * similarity[c]) for c in range(C) if c != y_i)
        loss = loss - torch.log(own / (own + others)) / len(y)
    for c in range(C):
        for t in range(K):
            for u in range(t + 1, K):
                loss = loss + tau * torch.sqrt(2 + 1e-5 - 2 * w[c][t] @ w[c][u]) / (C * K * (K - 1))
    return loss


@pytest.mark.parametrize("settings", [
    {"scale": 20.0, "gamma": 0.1, "margin": 0.01, "tau": 0.2},
    {"scale": 3.0, "gamma": 1.0, "margin": 0.3, "tau": 2.0},
])  # fmt: skip
def test_equals_the_formula(batch, settings):
    loss = make_loss(**settings)
    inputs = [batch[0], loss.centers]
    value, expected = loss(*batch), in_loops(*batch, loss.centers, **settings)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_one_center_without_margin_is_normalized_softmax(batch):
    x, y = batch
    loss = make_loss(n_centers=1, scale=20.0, margin=0.0)
    logits = 20.0 * x @ normalize(loss.centers[:, 0]).T
    torch.testing.assert_close(loss(x, y), cross_entropy(logits, y))


def test_sharp_relaxation_takes_the_nearest_center(batch):
    """Towards gamma = 0 the similarity to a class is that of its nearest center (HardTriple)."""
    x, y = batch
    loss = make_loss(gamma=1e-5, margin=0.0, tau=0.0)
    similarity = (x @ normalize(loss.centers, dim=2).flatten(0, 1).T).unflatten(1, (C, K))
    torch.testing.assert_close(loss(x, y), cross_entropy(20.0 * similarity.amax(dim=2), y))


def test_flat_relaxation_takes_the_mean_of_the_centers(batch):
    x, y = batch
    loss = make_loss(gamma=1e9, margin=0.0, tau=0.0)
    means = normalize(loss.centers, dim=2).mean(dim=1)
    torch.testing.assert_close(loss(x, y), cross_entropy(20.0 * x @ means.T, y))


def test_second_term_is_half_the_mean_distance(batch):
    """Two opposite centers are 2 apart, and coinciding ones sqrt(1e-5): half of that is added, times tau."""
    loss = make_loss(n_centers=2, tau=1.0)
    loss.centers.data[:, 1] = -3 * loss.centers.data[:, 0]
    apart = loss(*batch) - SoftTripleLoss.forward(_with(loss, tau=0.0), *batch)
    assert apart.item() == pytest.approx(math.sqrt(4 + 1e-5) / 2)
    loss.centers.data[:, 1] = 3 * loss.centers.data[:, 0]
    together = _with(loss, tau=1.0)(*batch) - _with(loss, tau=0.0)(*batch)
    assert together.item() == pytest.approx(math.sqrt(1e-5) / 2)


def _with(loss, tau):
    loss.tau = tau
    return loss


def test_length_of_the_centers_does_not_matter(batch):
    loss = make_loss()
    expected = loss(*batch)
    loss.centers.data *= torch.linspace(0.1, 7, C * K).reshape(C, K, 1)
    torch.testing.assert_close(loss(*batch), expected)


def test_gradient_is_orthogonal_to_the_centers(batch):
    loss = make_loss()
    loss(*batch).backward()
    radial = (loss.centers.grad * loss.centers).sum(dim=2)
    torch.testing.assert_close(radial, torch.zeros(C, K, dtype=torch.float64))
    assert loss.centers.grad.abs().max() > 1e-3


def test_distant_center_is_pushed_away_by_its_own_class():
    """dS'/ds_k = q_k (1 + (s_k - S') / gamma) is negative for s_k < S' - gamma: S' is no log-sum-exp."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss = SoftTripleLoss(2, 2, n_centers=2, tau=0.0).double()
    loss.centers.data = torch.tensor([[[1.0, 0.1], [0.7, 0.7]], [[-1.0, 0.0], [0.0, -1.0]]], dtype=torch.float64)
    loss(x, torch.tensor([0])).backward()
    near, distant = loss.centers.grad[0]
    assert near @ x[0] < 0 < distant @ x[0]


def test_zero_center_gets_no_gradient(batch):
    loss = make_loss()
    loss.centers.data[0, 0] = 0
    loss(*batch).backward()
    assert loss.centers.grad[0, 0].abs().max() == 0
    assert loss.centers.grad[0, 1].abs().max() > 0


def test_equal_centers_have_a_bounded_gradient_in_float32():
    loss = SoftTripleLoss(2, 64, n_centers=10, tau=1.0)
    loss.centers.data[:] = loss.centers.data[:, :1]
    loss(torch.zeros(1, 64), torch.tensor([0])).backward()
    # Nothing but the second term acts, and between equal centers its gradient is 0 up to the rounding of the cosines.
    assert loss.centers.grad.norm(dim=2).max() * loss.centers.norm(dim=2).min() < 1e-2


@pytest.mark.parametrize("frozen", ["embeddings", "centers"])
def test_either_side_may_be_frozen(batch, frozen):
    x, y = batch
    loss = make_loss()
    expected = torch.autograd.grad(loss(x, y), [x, loss.centers])
    (x if frozen == "embeddings" else loss.centers).requires_grad_(False)
    loss(x, y).backward()
    if frozen == "embeddings":
        assert x.grad is None
        torch.testing.assert_close(loss.centers.grad, expected[1])
    else:
        assert loss.centers.grad is None
        torch.testing.assert_close(x.grad, expected[0])


def test_centers_start_as_in_the_authors_code():
    """Uniform in +-1/sqrt(C K), whatever the number of components."""
    torch.manual_seed(0)
    centers = SoftTripleLoss(20, 300, n_centers=5).centers
    assert centers.shape == (20, 5, 300)
    assert 0.099 < centers.abs().max() <= 0.1
    assert centers.var().item() == pytest.approx(0.1**2 / 3, rel=0.05)


def test_centers_of_the_embedder_are_unit(blobs):
    X, y = blobs
    fitted = SoftTripleEmbedder(n_centers=3, batch_size=30, max_epochs=1, random_state=0).fit(X, y)
    assert fitted.centers_.shape == (4, 3, 64)
    np.testing.assert_allclose(np.linalg.norm(fitted.centers_, axis=2), 1, rtol=1e-5)


def test_distinct_centers_are_counted_by_single_linkage(blobs):
    """On a circle: steps below the tolerance chain up to one center, a wide gap or the opposite side parts them."""
    X, y = blobs
    fitted = SoftTripleEmbedder(n_centers=4, n_components=2, batch_size=30, max_epochs=1).fit(X, y)
    angles = torch.tensor([[0.0, 0.08, 0.16, 0.24], [0.0, 0.08, 0.3, 0.38], [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 4.0]])
    length = torch.tensor([0.5, 2.0, 1.0, 3.0])[:, None]  # directions count, not lengths
    fitted.criterion_.centers.data = torch.stack([angles.cos(), angles.sin()], dim=2) * length
    np.testing.assert_array_equal(fitted.n_centers_per_class_, [1, 2, 4, 2])


def test_tau_merges_centers(blobs):
    X, y = blobs
    n_centers = [
        SoftTripleEmbedder(n_centers=5, tau=tau, center_learning_rate=0.05, random_state=0, batch_size=30)
        .fit(X, y)
        .n_centers_per_class_.sum()
        for tau in (0.0, 5.0)
    ]
    assert n_centers[0] == 20
    assert n_centers[1] < 20
