"""Smart mining: its loss in plain loops, its triplets against a plain search, and its controller."""

import numpy as np
import pytest
import torch

from skdml import SmartMiningEmbedder
from skdml._methods.smart_mining import SmartBatches, fit_kappa, random_triplets, smart_triplets
from skdml.losses import SmartMiningLoss


@pytest.fixture
def batch():
    """Rows (B, D) of various lengths and labels (B,), one class with a single sample."""
    x = 0.5 * torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def all_triplets(y):
    rows = range(len(y))
    return [(a, p, n) for a in rows for p in rows for n in rows if p != a and y[p] == y[a] != y[n]]


def in_loops(x, triplets, margin, weight, mean_margin):
    ratio, positives, negatives = [], [], []
    for a, p, n in triplets:
        ap, an = (x[a] - x[p]).square().sum(), (x[a] - x[n]).square().sum()
        ratio.append((1 - an.sqrt() / (ap.sqrt() + margin)).relu())
        positives.append(ap / 4)
        negatives.append(an / 4)
    positives, negatives = torch.stack(positives), torch.stack(negatives)
    means = (positives.mean() - negatives.mean() + mean_margin).relu()
    spread = positives.var(correction=0) + negatives.var(correction=0)
    return sum(ratio) / len(ratio) + spread + weight * means, ratio, means


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("settings", [(0.2, 0.8, 0.01), (0.5, 2.0, 0.5)])
def test_equals_the_formula(batch, given, settings):
    x, y = batch
    if settings[2] == 0.01:
        x = (x + 0.5 * y[:, None]).detach().requires_grad_()  # classes apart: the hinge over the means is 0
    triplets = all_triplets(y)
    if given:
        triplets = [*triplets[::3], triplets[0]]  # one of them twice
    expected, ratio, means = in_loops(x, triplets, *settings)
    assert 0 < sum(term > 0 for term in ratio) < len(ratio)
    assert (means > 0) == (settings[2] == 0.5)
    loss = SmartMiningLoss(margin=settings[0], mean_weight=settings[1], mean_margin=settings[2])
    value = loss(x, y, torch.tensor(triplets)) if given else loss(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_no_triplets_give_zero(batch):
    x, y = batch
    for value in (
        SmartMiningLoss()(x, torch.arange(9)),
        SmartMiningLoss()(x, torch.zeros(9, dtype=int)),
        SmartMiningLoss()(x, y, torch.empty(0, 3, dtype=int)),
    ):
        assert value == 0
        assert torch.autograd.grad(value, x)[0].equal(torch.zeros_like(x))


def test_equal_rows_of_a_triplet():
    """All distances are 0: the ratio is 1, the means differ by their margin, and no gradient is infinite."""
    x = torch.ones(3, 2, requires_grad=True)
    for triplets in (None, torch.tensor([[0, 1, 2]])):
        value = SmartMiningLoss()(x, torch.tensor([0, 0, 1]), triplets)
        assert value.item() == pytest.approx(1 + 0.8 * 0.01)
        assert torch.autograd.grad(value, x)[0].equal(torch.zeros_like(x))


def test_triplets_of_the_wrong_shape_are_refused(batch):
    with pytest.raises(ValueError, match=r"triplets of shape \(3, 5\); need \(T, 3\)"):
        SmartMiningLoss()(*batch, torch.zeros(3, 5, dtype=int))


def test_random_triplets_are_triplets_of_all_kinds():
    y = torch.tensor([2, 0, 1, 0, 2, 3, 0, 2])
    drawn = random_triplets(y, 300, torch.Generator().manual_seed(0)).tolist()
    assert {tuple(triplet) for triplet in drawn} == set(all_triplets(y))
    assert [a for a, _, _ in drawn] == 300 * [0, 1, 3, 4, 6, 7]


def search(x, y, anchor, kappa, n_triplets, n_neighbors):
    """The mined (positives allowed, negative) of an anchor, in plain loops."""
    d = [(x[anchor] - x[j]).square().sum().item() for j in range(len(y))]
    near = sorted((j for j in range(len(y)) if j != anchor), key=lambda j: d[j])
    positives = [j for j in near if y[j] == y[anchor]]
    near = near[:n_neighbors]
    negatives = [j for j in near if y[j] != y[anchor] and d[j] > kappa * d[positives[0]]]
    found = []
    for n in negatives[:n_triplets]:
        behind = [p for p in positives if p in near and d[p] > d[n]]
        outside = [p for p in positives if p not in near]
        found.append((behind[:1] or outside or positives[-1:], n))
    return found


@pytest.mark.parametrize("n_neighbors", [3, 10, 99])
@pytest.mark.parametrize("kappa", [0.0, 1.0, 3.0])
def test_smart_triplets_are_those_of_a_plain_search(kappa, n_neighbors):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    y = torch.arange(40) % 6
    y[:2] = torch.tensor([6, 6])
    base = random_triplets(y, 2, generator)
    mined = smart_triplets(x, y, base, kappa, 2, n_neighbors, generator)
    kinds = set()
    for i, (a, p, n) in enumerate(mined.view(2, -1, 3).transpose(0, 1).reshape(-1, 3).tolist()):
        found = search(x, y, a, kappa, 2, n_neighbors)
        if i % 2 < len(found):
            positives, negative = found[i % 2]
            assert n == negative
            assert p in positives
            kinds.add("smart")
        else:
            assert [a, p, n] in base.tolist()
            kinds.add("random")
    assert "smart" in kinds
    assert n_neighbors == 99 or kappa == 0 or "random" in kinds


def test_controller_by_hand():
    """kappa = 5 - 4 e through both points: 2.6 at 0.6. A rising line: kappa scaled by the last share, 3 * 0.3 / 0.6."""
    assert fit_kappa([(0.25, 4.0), (0.75, 2.0)], 0.6) == pytest.approx(2.6)
    assert fit_kappa([(0.5, 4.0), (0.3, 3.0)], 0.6) == pytest.approx(1.5)
    assert fit_kappa([(0.3, 3.0), (0.3, 3.0)], 0.6) == pytest.approx(1.5)
    # Least squares through three points: mean share 0.5, mean kappa 4, slope -8.
    assert fit_kappa([(0.25, 6.5), (0.5, 3.0), (0.75, 2.5)], 0.6) == pytest.approx(4 - 8 * 0.1)
    # One step at most halves or doubles.
    assert fit_kappa([(0.2, 9.0), (0.3, 4.0)], 0.6) == 2.0
    assert fit_kappa([(0.8, 1.2), (0.9, 0.8)], 0.1) == 1.6


def test_epochs_of_the_rule():
    """Two random epochs, then mined triplets of the kappa that the shares measured so far give."""
    generator = torch.Generator().manual_seed(0)
    y = np.arange(60) % 6
    base = torch.randn(60, 4, generator=generator)
    rule = SmartBatches(y, 32, 2, 59, 0.6, 0.2)
    violated = []
    for epoch in range(4):
        x = torch.nn.functional.normalize(base + 0.1 * torch.randn(60, 4, generator=generator))
        before = rule.last
        batches = rule(generator, lambda x=x: x)
        if epoch:
            a, p, n = before[0].T
            active = (x[a] - x[n]).norm(dim=1) < (x[a] - x[p]).norm(dim=1) + 0.2
            assert rule.history[-1] == (pytest.approx(active.double().mean().item()), before[1])
        if epoch >= 2:
            assert rule.last[1] == fit_kappa(rule.history, 0.6)
        seen = []
        for index, triplets in batches:
            assert len(index) <= 30
            triplets = index[triplets]
            assert (y[triplets[:, 0]] == y[triplets[:, 1]]).all()
            assert (y[triplets[:, 0]] != y[triplets[:, 2]]).all()
            seen.append(triplets)
        seen = torch.cat(seen)
        assert seen[:, 0].bincount().tolist() == 60 * [2]
        a, p, n = seen.T
        violated.append(((x[a] - x[n]).norm(dim=1) < (x[a] - x[p]).norm(dim=1)).double().mean().item())
    assert max(violated[:2]) < 0.6
    assert min(violated[2:]) > 0.7


def test_single_samples_are_negatives_only():
    y = np.array([0, 0, 0, 1, 2, 2])
    rule = SmartBatches(y, 9, 1, 100, 0.6, 0.2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, generator=generator)
    for _ in range(4):
        triplets = torch.cat([index[places] for index, places in rule(generator, lambda: x)])
        assert triplets[:, 0].sort().values.tolist() == [0, 1, 2, 4, 5]
        assert 3 not in triplets[:, :2]


def test_collapsed_embeddings_are_survived():
    rule = SmartBatches(np.arange(20) % 4, 30, 1, 5, 0.6, 0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert sum(len(places) for _, places in rule(generator, lambda: torch.ones(20, 3))) == 20
        assert np.isfinite(rule.last[1])


def test_parameters_of_the_embedder_reach_the_batches(blobs):
    X, y = blobs
    settings = {"margin": 0.3, "n_neighbors": 20, "n_triplets": 2, "target_error": 0.5}
    fitted = SmartMiningEmbedder(**settings, batch_size=30, max_epochs=5, random_state=0).fit(X, y)
    rule = fitted._make_batches(y)
    assert {name: getattr(rule, name) for name in settings} == settings
    assert rule.n_triplets_per_batch == 10
    assert fitted.score(X, y) > 0.9
