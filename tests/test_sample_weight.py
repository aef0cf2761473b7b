"""What a weight means to each loss, by plain loops, and how weights get from fit to the loss.

Axes: B samples of a batch, D components, M samples the anchors are compared with.
"""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import normalize, softplus

import skdml
from skdml import ContrastiveEmbedder, MetricEmbedder, RecallAtK, RecallSurrogateEmbedder, losses
from skdml._engine.embedder import BaseEmbedder
from skdml._engine.training import hold_out
from skdml._loss.memory import CrossBatchMemory
from skdml._loss.pairs import PairLoss, pair_masks

# A few dozen rows.
pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning")

EMBEDDERS = [
    name for name in skdml.__all__ if name.endswith("Embedder") and issubclass(getattr(skdml, name), BaseEmbedder)
]
WITH_PROXIES = ["ArcFace", "LargeMarginSoftmax", "NormSoftmax", "ProxyAnchor", "ProxyNCA", "SoftTriple"]

Y = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 0])
W = torch.tensor([2.0, 0.0, 1.0, 3.0, 1.0, 0.0, 1.0, 4.0, 0.0], dtype=torch.float64)


@pytest.fixture
def x():
    """Unit rows (B, D) with the classes Y, one of which has one row."""
    generator = torch.Generator().manual_seed(3)
    return normalize(torch.randn(len(Y), 3, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.fixture
def sample_weight():
    """Weights of the samples of ``blobs``, integers from 0 to 4."""
    return np.random.default_rng(1).integers(0, 5, size=60)


# ---- what the losses do with weights


@pytest.mark.parametrize("method", WITH_PROXIES)
def test_losses_with_proxies_take_integers_as_repeated_rows(method, x):
    loss = getattr(losses, f"{method}Loss")(n_classes=5, n_components=3).double().eval()  # no annealing goes on
    repeats = W.long()
    weighted, repeated = loss(x, Y, W), loss(x.repeat_interleave(repeats, dim=0), Y.repeat_interleave(repeats))
    torch.testing.assert_close(weighted, repeated)
    leaves = [x, *loss.parameters()]
    torch.testing.assert_close(torch.autograd.grad(weighted, leaves), torch.autograd.grad(repeated, leaves))


@pytest.mark.parametrize(
    "loss",
    [
        losses.ContrastiveLoss(),
        losses.ContrastiveLoss(metric="euclidean", margin=1.5),
        losses.BinomialDevianceLoss(),
        losses.CircleLoss(),
        losses.SupConLoss(),
        losses.LiftedStructureLoss(mining=None),
        losses.MarginLoss(4, mining=None),
        losses.TripletLoss(),
        losses.TripletLoss(mining="hard", squared=False),
        losses.TripletLoss(mining=None),
        losses.TripletLoss(mining=None, soft_margin=True),
        losses.QuadrupletLoss(),
        losses.HistogramLoss(n_bins=20),
    ],
    ids=repr,
)
def test_losses_over_pairs_take_integers_as_repeated_anchors(loss, x):
    """Rows of the similarities stand as often as the weight says, columns once."""
    S = loss._similarities(x).detach().requires_grad_()
    arguments = S, *pair_masks(Y)
    weighted = loss.pair_loss(*arguments, sample_weight=W)
    repeated = loss.pair_loss(*(matrix.repeat_interleave(W.long(), dim=0) for matrix in arguments))
    torch.testing.assert_close(weighted, repeated)
    (grad,) = torch.autograd.grad(weighted, S)
    torch.testing.assert_close(grad, torch.autograd.grad(repeated, S)[0])
    assert grad[W == 0].abs().sum() == 0
    assert grad[W > 0].abs().sum() > 0


@pytest.mark.parametrize("loss", [losses.RAWLoss(mining=None), losses.RecallSurrogateLoss(ks=(1, 2))], ids=repr)
def test_means_over_anchors(loss, x):
    """The weighted mean of what single anchors give; an anchor's term depends on its own row alone."""
    S = loss._similarities(x).detach().requires_grad_()
    masks = pair_masks(Y)
    is_anchor = masks[0].any(dim=1) if isinstance(loss, losses.RecallSurrogateLoss) else torch.ones_like(Y) > 0
    terms = []
    for one in torch.eye(len(Y), dtype=S.dtype):
        terms.append(loss.pair_loss(S, *masks, one))
        (grad,) = torch.autograd.grad(terms[-1], S)
        assert grad[one == 0].abs().sum() == 0
    expected = (W * torch.stack(terms)).sum() / W[is_anchor].sum()
    torch.testing.assert_close(loss.pair_loss(S, *masks, W), expected)


def n_pairs(x, y):
    """Yield anchors and their terms, as the next functions do."""
    rows = [(y == c).nonzero().flatten().tolist() for c in range(4)]
    pairs = [pair for r in rows for pair in zip(r[::2], r[1::2], strict=False)]
    for i, partner in pairs:
        others = [q for _, q in pairs if y[q] != y[i]]
        yield i, torch.log1p(sum(torch.exp(x[i] @ x[q] - x[i] @ x[partner]) for q in others))


def pairs_of_one_class(y):
    return [(a, p) for a, p in permutations(range(len(y)), 2) if y[a] == y[p]]


def others(a, y):
    return [n for n in range(len(y)) if y[n] != y[a]]


def squared(a, b):
    return (a - b).square().sum()


def angular(x, y):
    for a, p in pairs_of_one_class(y):
        f = [4 * (x[a] + x[p]) @ x[n] - 4 * x[a] @ x[p] for n in others(a, y)]
        yield a, torch.log1p(torch.stack(f).exp().sum())


def sst(x, y):
    for a, p in pairs_of_one_class(y):
        for n in others(a, y):
            yield a, softplus(squared(x[a], x[p]) - (squared(x[a], x[n]) + squared(x[p], x[n])) / 2)


def lifted(x, y):
    for a, p in pairs_of_one_class(y):
        push = sum(torch.exp(1 - squared(x[e], x[n]).sqrt()) for e in (a, p) for n in others(a, y))
        yield a, (squared(x[a], x[p]).sqrt() + push.log()).relu().square() / 2


def htl(x, y):
    for a, p in pairs_of_one_class(y):
        for n in others(a, y):
            yield a, (squared(x[a], x[p]) - squared(x[a], x[n]) + 0.1).relu() / 2


def hdc(x, y):
    for a, b in permutations(range(len(y)), 2):
        term = squared(x[a], x[b]) if y[a] == y[b] else (1.2 - squared(x[a], x[b])).relu()
        if term > 0:
            yield a, term


def pddm(x, y, loss):
    for a, p in pairs_of_one_class(y):
        n = max(others(a, y), key=lambda n: loss.scores(x[a], x[n]).item())
        scores = (0.5 + loss.scores(x[a], x[n]) - loss.scores(x[a], x[p])).relu()
        distances = (1 + squared(x[a], x[p]).sqrt() - squared(x[a], x[n]).sqrt()).relu()
        yield a, 2 * (scores + 0.5 * distances)  # of the two ends of a pair


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        (losses.NPairsLoss(l2=0), n_pairs),
        (losses.AngularLoss(), angular),
        (losses.SSTLoss(), sst),
        (losses.LiftedStructureLoss(form="original", mining=None), lifted),
        (losses.HTLLoss(), htl),
        (losses.HDCLoss(hard_fractions=(1.0,), margin=1.2), hdc),
        (losses.PDDMLoss(3).double(), pddm),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("w", [torch.ones_like(W), W], ids=["ones", "weights"])
def test_weighted_mean_of_the_anchors_terms(loss, terms, w, x):
    anchors, values = zip(*(terms(x, Y, loss) if terms is pddm else terms(x, Y)), strict=True)
    w_terms = w[list(anchors)]
    expected = (w_terms * torch.stack(values)).sum() / w_terms.sum()
    value = loss(x, Y, sample_weight=w)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_magnet_weighs_samples_not_means(x):
    """Of one cluster a class; the single sample of class 2 lies on its mean."""
    means = torch.stack([x[c == Y].mean(dim=0) for c in range(4)])
    own = [squared(x[i], means[Y[i]]) for i in range(len(Y))]
    variance = sum(own) / (len(Y) - 1)
    terms = []
    for i in range(len(Y)):
        log_sum = torch.stack([-squared(x[i], means[c]) / (2 * variance) for c in range(4) if c != Y[i]]).logsumexp(0)
        terms.append((own[i] / (2 * variance) + 1 + log_sum).relu())
    torch.testing.assert_close(losses.MagnetLoss()(x, Y, sample_weight=W), (W * torch.stack(terms)).sum() / W.sum())


def test_bier_weighs_both_means_and_the_adversary(x):
    def deviance(a, b):
        return softplus(-2 * (1 if Y[a] == Y[b] else -5) * (x[a] @ x[b] - 0.5))

    expected = 0
    for same in (True, False):
        pairs = [(a, b) for a, b in permutations(range(len(Y)), 2) if (Y[a] == Y[b]) == same]
        expected = expected + sum(W[a] * deviance(a, b) for a, b in pairs) / sum(W[a] for a, _ in pairs)
    torch.testing.assert_close(losses.BIERLoss(3, group_shares=(1,))(x, Y, W), expected)

    adversarial = losses.BIERLoss(3, group_shares=(1, 2), adversarial=True).double()
    groups = [3**0.5 * x[:, :1], 1.5**0.5 * x[:, 1:]]
    repeated = [group.repeat_interleave(W.long(), dim=0) for group in groups]
    torch.testing.assert_close(adversarial._dependence(groups, W), adversarial._dependence(repeated, None))


def test_smart_mining_takes_integers_as_repeated_triplets(x):
    loss = losses.SmartMiningLoss()
    triplets = torch.tensor([(a, p, n) for a, p in pairs_of_one_class(Y) for n in others(a, Y)])
    repeated = loss(x, Y, triplets.repeat_interleave(W[triplets[:, 0]].long(), dim=0))
    torch.testing.assert_close(loss(x, Y, triplets, W), repeated)
    torch.testing.assert_close(loss(x, Y, sample_weight=W), repeated)


def test_clustering_weighs_the_distances():
    """The best of all pairs of medoids; a sample of weight 0 has no part in F, but is a sample to cluster."""
    x = torch.tensor([[0.0], [2.0], [3.0], [6.0], [6.5]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 1, 1, 1])
    w = torch.tensor([1.0, 3.0, 0.0, 2.0, 4.0], dtype=torch.float64)

    def value(w):
        distance = (x.detach() - x.detach().T).abs().numpy()
        w = (w / w.mean()).numpy()
        best = -np.inf
        for medoids in combinations(range(5), 2):
            nearest = distance[:, medoids].argmin(axis=1)
            error = 1 - normalized_mutual_info_score(y, nearest, average_method="geometric")
            best = max(best, -(w * distance[:, medoids].min(axis=1)).sum() + error)
        of_classes = [(w[rows, None] * distance[np.ix_(rows, rows)]).sum(axis=0).min() for rows in ([0, 1], [2, 3, 4])]
        return best + sum(of_classes)

    loss = losses.ClusteringLoss()
    for weights in (torch.ones_like(w), w, 10 * w):
        assert loss(x, y, weights).item() == pytest.approx(value(weights))
    assert value(w) != pytest.approx(value(torch.ones_like(w)))


def test_magnet_refuses_weights_as_clusters(x):
    with pytest.raises(ValueError, match=r"need \(B,\) integers\. Pass weights by name, sample_weight="):
        losses.MagnetLoss()(x, Y, W)


def test_memory_weighs_the_batch(x):
    memory = CrossBatchMemory(losses.ContrastiveLoss(), 30, memory_start=0)
    memory(x.detach().flip(0), Y)
    ones = [memory.memory_loss(x, Y, one) for one in torch.eye(len(Y), dtype=x.dtype)]
    expected = losses.ContrastiveLoss()(x, Y, W) + (W * torch.stack(ones)).sum() / W.sum()
    assert len({round(one.item(), 6) for one in ones}) == len(Y)
    torch.testing.assert_close(memory(x, Y, W), expected)


# ---- how weights get from fit to the loss


def make(name, **params):
    return getattr(skdml, name)(**{"max_epochs": 3, "random_state": 0, "device": "cpu"} | params)


def rounding(name):
    """How far two fits may differ by rounding, which in these can turn a choice among pairs."""
    return 5e-3 if name in ("BinomialDevianceEmbedder", "HDCEmbedder", "RecallSurrogateEmbedder") else 1e-4


@pytest.mark.parametrize("name", EMBEDDERS)
def test_every_embedder_trains_with_weights(name, blobs, sample_weight, device):
    X, y = blobs
    embedder = make(name, device=device, batch_size=24)
    plain = embedder.fit(X, y).transform(X)
    Z = embedder.fit(X, y, sample_weight).transform(X)
    assert np.isfinite([epoch["loss"] for epoch in embedder.history_]).all()
    assert np.abs(Z - plain).max() > 1e-3
    np.testing.assert_array_equal(embedder.fit(X, y, sample_weight=sample_weight).transform(X), Z)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_equal_weights_are_no_weights(name, blobs):
    X, y = blobs
    plain = make(name).fit(X, y)
    weighted = make(name).fit(X, y, sample_weight=np.ones(60))
    np.testing.assert_allclose(weighted.transform(X), plain.transform(X), atol=rounding(name))
    np.testing.assert_allclose(*([e["loss"] for e in fitted.history_] for fitted in (weighted, plain)), rtol=1e-3)


@pytest.mark.filterwarnings("ignore:Column 5 of X:UserWarning")
@pytest.mark.parametrize("method", WITH_PROXIES)
@pytest.mark.parametrize(
    ("params", "largest"), [({}, 1), ({}, 1000), ({"n_components": 3}, 1)], ids=["", "standardized", "components"]
)
def test_one_batch_of_all_equals_repeated_and_removed_rows(method, params, largest, blobs, sample_weight):
    """To the rounding of float32; scikit-learn's check of this asks for more, see test_common.py."""
    X, y = blobs
    embedder = make(f"{method}Embedder", batch_size=1000, max_epochs=5, **params)
    X = X * np.float32([1, 1, 1, 1, 1, largest])
    repeated = embedder.fit(X.repeat(sample_weight, axis=0), y.repeat(sample_weight)).transform(X)
    np.testing.assert_allclose(embedder.fit(X, y, sample_weight).transform(X), repeated, atol=1e-5)
    assert np.abs(embedder.fit(X, y).transform(X) - repeated).max() > 1e-3


def test_kinds_of_weights_agree(blobs, sample_weight, tmp_path):
    X, y = blobs
    embedder = make("SoftTripleEmbedder", batch_size=20)
    expected = embedder.fit(X, y, sample_weight.astype(float)).transform(X)
    np.save(tmp_path / "w.npy", sample_weight.astype(np.float32))
    for kind in [
        sample_weight.tolist(),
        torch.from_numpy(sample_weight),
        pd.Series(sample_weight, index=np.arange(60)[::-1]),
        np.load(tmp_path / "w.npy", mmap_mode="r"),
        np.stack([sample_weight, sample_weight], axis=1)[:, 0],
    ]:
        np.testing.assert_array_equal(embedder.fit(X, y, sample_weight=kind).transform(X), expected)
    np.testing.assert_array_equal(
        embedder.fit(X, y, sample_weight=2.5).transform(X), embedder.fit(X, y, np.full(60, 2.5)).transform(X)
    )
    np.testing.assert_array_equal(
        embedder.fit(X, y, sample_weight > 1).transform(X), embedder.fit(X, y, (sample_weight > 1) * 1.0).transform(X)
    )


@pytest.mark.parametrize("name", [name for name in EMBEDDERS if name != "ProxyAnchorEmbedder"])
def test_only_ratios_of_weights_matter(name, blobs, sample_weight):
    """Powers of two, so that the ratios are the same to the last bit."""
    X, y = blobs
    embedder = make(name, batch_size=20, max_epochs=1)
    expected = embedder.fit(X, y, 0.25 * sample_weight).transform(X)
    for factor in (2.0**-1000, 2.0**-140, 2.0**1000):
        np.testing.assert_array_equal(embedder.fit(X, y, factor * sample_weight).transform(X), expected)


@pytest.mark.parametrize("weight", [1e37, 1e300, 1e-42, np.float32(1e-42), 1e-300])
def test_equal_weights_of_any_size_are_none(blobs, weight):
    X, y = blobs
    embedder = make("ProxyAnchorEmbedder", batch_size=20, max_epochs=1)
    assert embedder.fit(X, y, np.full(60, weight)).transform(X).any()
    embedder = make("SoftTripleEmbedder", batch_size=20, max_epochs=1)
    expected = embedder.fit(X, y).transform(X)
    np.testing.assert_allclose(embedder.fit(X, y, np.full(60, weight)).transform(X), expected, atol=1e-5)


def test_a_tiny_weight_next_to_others_is_none(blobs):
    X, y = blobs
    embedder = make("RAWEmbedder", batch_size=20, max_epochs=1)
    zero, tiny = (embedder.fit(X, y, np.r_[w, np.ones(59)]).transform(X) for w in (0, 1e-300))
    np.testing.assert_array_equal(zero, tiny)


@pytest.mark.parametrize("held_out", [0.0, 1e-300, 1e300])
def test_the_weights_of_held_out_rows_do_not_matter(blobs, held_out):
    X, y = blobs
    embedder = make("SoftTripleEmbedder", batch_size=20, max_epochs=1, early_stopping=True)
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)
    _, rows = hold_out(y, "samples", 0.1, rng)
    weights = np.full(60, 2.0**-50)
    weights[rows] = held_out
    expected = embedder.fit(X, y, np.full(60, 0.5)).transform(X)
    np.testing.assert_array_equal(embedder.fit(X, y, weights).transform(X), expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(59), r"one weight per sample, shape \(60,\), or be a number; got shape \(59,\)"),
        (np.ones((60, 1)), r"got shape \(60, 1\)"),
        (np.r_[np.ones(59), -0.5], r"must be >= 0; its smallest value is -0\.5"),
        (-1.0, "must be >= 0"),
        (np.r_[np.ones(59), np.nan], "sample_weight contains NaN"),
        (np.r_[np.ones(59), np.inf], "sample_weight contains infinity"),
        (np.r_[np.ones(59), 1e300], r"sample_weight contains infinity or a value too large for dtype\('float32'\)"),
        (np.ones(60) * 1j, "Complex data not supported"),
        (["heavy"] * 60, "could not convert string to float"),
        (np.zeros(60), "sample_weight is zero for all samples. Give other samples a weight > 0"),
        (0, "sample_weight is zero for all samples"),
    ],
)
@pytest.mark.parametrize("name", ["NormSoftmaxEmbedder", "RAWEmbedder", "MetricEmbedder"])
def test_bad_weights(name, blobs, weights, message):
    with pytest.raises(ValueError, match=message):
        make(name).fit(*blobs, sample_weight=weights)


def test_weights_are_not_changed(blobs, sample_weight):
    weights = sample_weight.astype(np.float32)
    make("NormSoftmaxEmbedder").fit(*blobs, sample_weight=weights)
    np.testing.assert_array_equal(weights, sample_weight)


@pytest.mark.parametrize("name", ["NormSoftmaxEmbedder", "ContrastiveEmbedder"])
def test_history_is_the_mean_by_weights(name, blobs):
    """With a learning rate of nothing: over one batch, and over batches whose weights differ."""
    X, y = blobs
    w = np.random.default_rng(0).random(60) * (np.arange(60) < 20)
    for batch_size in (60, 7 if name == "NormSoftmaxEmbedder" else 60):
        embedder = make(name, learning_rate=1e-12, max_epochs=1, weight_decay=0.0, batch_size=batch_size)
        if name == "NormSoftmaxEmbedder":
            embedder.set_params(proxy_learning_rate=1e-12)
        Z, w_tensor = torch.from_numpy(embedder.fit(X, y, w).transform(X)), torch.from_numpy(w)
        expected = embedder.criterion_(Z, torch.from_numpy(y), w_tensor).item()
        assert embedder.history_[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("split", ["samples", "classes"])
def test_early_stopping_weighs_the_training_rows_alone(hidden, split):
    X, y = hidden
    sample_weight = np.random.default_rng(1).integers(0, 5, size=200)
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)  # the seed of the training
    train_rows, valid_rows = hold_out(y, split, 0.3, rng)
    stopping = {"early_stopping": True, "validation_split": split, "validation_fraction": 0.3}
    embedder = make("SoftTripleEmbedder", batch_size=20, learning_rate=1e-2, max_epochs=30, **stopping)
    Z = embedder.fit(X, y, sample_weight).transform(X)
    other = sample_weight.copy()
    other[valid_rows] = 100
    np.testing.assert_array_equal(embedder.fit(X, y, other).transform(X), Z)
    other[train_rows[0]] += 1
    assert not np.array_equal(embedder.fit(X, y, other).transform(X), Z)
    other[train_rows] = 0
    with pytest.raises(ValueError, match="zero for all samples except those that early_stopping holds out"):
        embedder.fit(X, y, other)


def test_chunks_take_the_weights_of_their_batch(blobs, sample_weight):
    X, y = blobs
    whole = RecallSurrogateEmbedder(max_epochs=3, random_state=0).fit(X, y, sample_weight)
    chunked = RecallSurrogateEmbedder(max_epochs=3, random_state=0, chunk_size=7).fit(X, y, sample_weight)
    np.testing.assert_allclose(chunked.transform(X), whole.transform(X), atol=1e-4)
    np.testing.assert_allclose(chunked.history_[0]["loss"], whole.history_[0]["loss"], rtol=1e-5)


def test_memory_takes_weights(blobs, sample_weight):
    X, y = blobs
    embedder = ContrastiveEmbedder(max_epochs=3, batch_size=20, random_state=0, memory_size=40, memory_start=0)
    Z = embedder.fit(X, y, sample_weight).transform(X)
    assert not np.allclose(embedder.fit(X, y).transform(X), Z)
    assert not np.allclose(embedder.set_params(memory_size=0).fit(X, y, sample_weight).transform(X), Z)


def test_warm_start_takes_new_weights(blobs, sample_weight):
    X, y = blobs
    embedder = make("SoftTripleEmbedder", warm_start=True, batch_size=20)
    first = embedder.fit(X, y, sample_weight).transform(X)
    np.testing.assert_array_equal(
        first, make("SoftTripleEmbedder", lr_schedule=None, batch_size=20).fit(X, y, sample_weight).transform(X)
    )
    assert not np.allclose(embedder.fit(X, y).transform(X), first)
    assert embedder.n_iter_ == 6


# ---- losses of the user's own


def weighted_contrast(embeddings, y, sample_weight=None):
    w = torch.ones_like(embeddings[:, 0]) if sample_weight is None else sample_weight
    terms = (torch.where(y[:, None] == y, -1, 1) * (embeddings @ embeddings.T)).mean(dim=1)
    return (w * terms).sum() / w.sum().clamp(min=1)


def contrast(embeddings, y):
    return weighted_contrast(embeddings, y)


class Weighted(nn.Module):
    def forward(self, embeddings, y, pairs=None, sample_weight=None):
        return weighted_contrast(embeddings, y, sample_weight)


class UnweightedPairs(PairLoss):
    def __init__(self):
        super().__init__(mining=None, mining_margin=0.1)

    def pair_loss(self, S, positive, negative):
        return torch.where(negative, S, 0).mean() - torch.where(positive, S, 0).mean()


@pytest.mark.parametrize(
    "settings",
    [{"loss": weighted_contrast}, {"loss": Weighted()}, {"loss": Weighted(), "miner": lambda embeddings, y: None}],
    ids=["function", "module", "miner"],
)
def test_a_loss_with_the_parameter_gets_the_weights(settings, blobs, sample_weight):
    X, y = blobs
    embedder = MetricEmbedder(max_epochs=3, random_state=0, **settings)
    Z = embedder.fit(X, y, sample_weight).transform(X)
    expected = MetricEmbedder(max_epochs=3, random_state=0, loss=weighted_contrast).fit(X, y, sample_weight)
    np.testing.assert_array_equal(Z, expected.transform(X))
    assert not np.allclose(embedder.fit(X, y).transform(X), Z)


@pytest.mark.parametrize(
    "loss", [contrast, nn.CosineEmbeddingLoss(), UnweightedPairs()], ids=["function", "module", "pairs"]
)
def test_a_loss_without_the_parameter_refuses_weights(loss, blobs, sample_weight):
    with pytest.raises(ValueError, match=r"sample_weight goes to the loss, but .* has no parameter of that name"):
        MetricEmbedder(loss=loss).fit(*blobs, sample_weight=sample_weight)


@pytest.mark.parametrize("loss", [contrast, UnweightedPairs()], ids=["function", "pairs"])
def test_a_loss_without_the_parameter_trains_without_weights(loss, blobs):
    embedder = MetricEmbedder(loss=loss, max_epochs=10, random_state=0).fit(*blobs)
    assert embedder.score(*blobs) > 0.9


# ---- composition


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_fit_transform(blobs, sample_weight):
    X, y = blobs
    embedder = make("RAWEmbedder")
    np.testing.assert_array_equal(
        make("RAWEmbedder").fit_transform(X, y, sample_weight=sample_weight),
        embedder.fit(X, y, sample_weight).transform(X),
    )


def test_pipeline_without_routing(blobs, sample_weight):
    X, y = blobs
    pipeline = make_pipeline(StandardScaler(), make("RAWEmbedder"))
    expected = make("RAWEmbedder").fit(StandardScaler().fit_transform(X), y, sample_weight)
    pipeline.fit(X, y, rawembedder__sample_weight=sample_weight)
    np.testing.assert_array_equal(pipeline.transform(X), expected.transform(StandardScaler().fit_transform(X)))


@pytest.mark.usefixtures("routing")
def test_pipeline_routes_weights(blobs, sample_weight):
    X, y = blobs
    scaler = StandardScaler().set_fit_request(sample_weight=False)
    expected = make("RAWEmbedder").fit(StandardScaler().fit_transform(X), y, sample_weight)
    pipeline = make_pipeline(scaler, make("RAWEmbedder").set_fit_request(sample_weight=True))
    pipeline.fit(X, y, sample_weight=sample_weight)
    np.testing.assert_array_equal(pipeline.transform(X), expected.transform(StandardScaler().fit_transform(X)))
    with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
        make_pipeline(scaler, make("RAWEmbedder")).fit(X, y, sample_weight=sample_weight)


def search(blobs, sample_weight, embedder):
    X, y = blobs
    grid = GridSearchCV(embedder, {"n_components": [2, 8]}, scoring=RecallAtK(1), cv=2, error_score="raise")
    found = grid.fit(X, y, sample_weight=sample_weight)
    expected = make("SoftTripleEmbedder", n_components=found.best_params_["n_components"]).fit(X, y, sample_weight)
    np.testing.assert_array_equal(found.transform(X), expected.transform(X))


@pytest.mark.filterwarnings("ignore:The scoring .* does not support sample_weight:UserWarning")  # the fits do
def test_grid_search_without_routing(blobs, sample_weight):
    search(blobs, sample_weight, make("SoftTripleEmbedder"))


@pytest.mark.usefixtures("routing")
def test_grid_search_routes_weights(blobs, sample_weight):
    search(blobs, sample_weight, make("SoftTripleEmbedder").set_fit_request(sample_weight=True))
