"""HDC against its formula in plain loops, the cascade, and the levels of the network."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from skdml import HDCEmbedder
from skdml._methods.hdc import build_level_network
from skdml.losses import HDCLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(x, y, sizes, loss):
    """The cascade with lists of pairs."""
    pairs = [(i, j) for i in range(len(y)) for j in range(i + 1, len(y))]
    P, N = [p for p in pairs if y[p[0]] == y[p[1]]], [p for p in pairs if y[p[0]] != y[p[1]]]
    total, kept = 0, []
    for part, h in zip(x.split(sizes, dim=1), loss.hard_fractions, strict=True):

        def d2(pair, part=part):
            return len(sizes) * (part[pair[0]] - part[pair[1]]).square().sum()

        P = sorted(P, key=lambda p: -d2(p).item())[: max(1, math.ceil(round(h * len(P), 9)))]
        N = sorted(N, key=lambda p: d2(p).item())[: max(1, math.ceil(round(h * len(N), 9)))]
        terms = [d2(p) for p in P] + [loss.negative_factor * (loss.margin - d2(p)).clamp(min=0) for p in N]
        total = total + sum(terms) / max(1, sum(term.item() > 0 for term in terms))
        kept.append((len(P), len(N)))
    return total, kept


@pytest.mark.parametrize(
    ("settings", "sizes", "kept"),
    [
        ({}, [3, 2, 2], [(7, 29), (4, 15), (1, 3)]),
        ({"margin": 2.0, "negative_factor": 10.0, "hard_fractions": (0.5, 0.5)}, [4, 3], [(4, 15), (2, 8)]),
        ({"hard_fractions": (0.6, 0.1), "level_sizes": (1, 6)}, [1, 6], [(5, 18), (1, 2)]),
    ],
)
def test_equals_the_formula(batch, settings, sizes, kept):
    x, y = batch
    loss = HDCLoss(**settings)
    expected, expected_kept = in_loops(x, y, sizes, loss)
    assert expected_kept == kept
    value = loss(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_a_level_sees_only_what_the_level_before_has_kept():
    """Pair (0, 1) is the harder at level 1; (2, 3), which is the harder at level 2, does not reach it."""
    x = torch.tensor([[0.0, 0.0], [3.0, 1.0], [100.0, 0.0], [101.0, 9.0]], requires_grad=True)
    y = torch.tensor([0, 0, 1, 1])
    loss = HDCLoss(hard_fractions=(0.5, 1.0), margin=1e-9)
    torch.testing.assert_close(loss(x, y), torch.tensor(2 * 9.0 + 2 * 1.0))
    loss(x, y).backward()
    assert x.grad[2:].abs().max() == 0


def test_ties_are_kept():
    """Both positive pairs are equally hard, so the order of the batch decides nothing."""
    x = torch.tensor([[0.0], [2.0], [100.0], [102.0]], requires_grad=True)
    HDCLoss(hard_fractions=(0.5,), margin=1e-9)(x, torch.tensor([0, 0, 1, 1])).backward()
    assert x.grad.flatten().tolist() == [-2.0, 2.0, -2.0, 2.0]


@pytest.mark.parametrize(
    ("y", "expected"),
    [([0, 0, 0], (1 + 4 + 1) / 3), ([0, 1, 2], (4 + 1 + 4) / 3), ([0, 0, 1], (1 + 1 + 4) / 3)],
    ids=["one class", "all different", "both"],
)
def test_a_side_without_pairs_leaves_the_other(y, expected):
    """Distances 1, 2 and 1 on a line; the terms are d^2, and 5 - d^2 of a negative pair."""
    x = torch.tensor([[0.0], [1.0], [2.0]])
    value = HDCLoss(hard_fractions=(1.0,), margin=5.0)(x, torch.tensor(y))
    assert value.item() == pytest.approx(expected)


def test_separated_classes_give_zero():
    x = torch.eye(3).repeat_interleave(2, dim=0).requires_grad_()
    value = HDCLoss(hard_fractions=(1.0,))(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


@pytest.mark.parametrize("settings", [{}, {"level_sizes": (1, 1, 1)}])
def test_levels_that_do_not_fit_are_refused(settings):
    with pytest.raises(ValueError, match="do not split into 3 levels"):
        HDCLoss(**settings)(torch.zeros(4, 2), torch.arange(4))


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 0), (1, 2, 2.5)])
def test_level_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="'level_sizes' parameter of HDCLoss must be None or 3 integers"):
        HDCLoss(level_sizes=sizes)


# ---- the network


class Pyramid(nn.Module):
    """A backbone that gives features of two depths."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x):
        x = self.first(x).relu()
        return x, self.second(x)


def build(backbone, sample, **changes):
    options = {
        "n_levels": 3, "n_components": 8, "hidden_layer_sizes": (15, 16, 17, 19),
        "normalize": True, "precision": "float32", "frozen_backbone": False,
    }  # fmt: skip
    return build_level_network(backbone, sample, **(options | changes))


@pytest.mark.parametrize(
    ("backbone", "changes", "sizes"),
    [
        (None, {}, [3, 3, 2]),
        (None, {"n_components": None}, [16, 17, 19]),
        (None, {"n_components": 2}, [1, 1]),
        (None, {"hidden_layer_sizes": ()}, [8]),
        (None, {"hidden_layer_sizes": (15,)}, [8]),
        (None, {"hidden_layer_sizes": (), "n_components": None}, [6]),
        (None, {"hidden_layer_sizes": (), "n_components": "auto"}, [64]),
        (None, {"n_components": "auto"}, [22, 21, 21]),
        (None, {"hidden_layer_sizes": (5, 4)}, [4, 4]),
        (Pyramid(), {}, [4, 4]),
        (Pyramid(), {"n_components": None}, [9, 4]),
        (Pyramid(), {"n_levels": 1}, [8]),
        (nn.Linear(6, 4), {}, [8]),
        (nn.Linear(6, 4), {"frozen_backbone": True}, [8]),
    ],
)
def test_levels_of_vectors(backbone, changes, sizes):
    x = torch.randn(5, 6)
    network = build(backbone, x[:2], **changes).eval()
    assert network.sizes == sizes
    assert network.n_components == sum(sizes)
    parts = network(x).split(sizes, dim=1)
    for part in parts:
        torch.testing.assert_close(part.norm(dim=1), torch.full((5,), len(sizes) ** -0.5))
    plain = build(backbone, x[:2], **changes, normalize=False)
    assert plain(x).norm(dim=1).std() > 1e-3


def test_each_level_is_a_head_on_its_hidden_layer():
    x = torch.randn(5, 6)
    network = build(None, x[:2], n_levels=2, hidden_layer_sizes=(5, 3), normalize=False)
    (first, _, second, _), (shallow, deep) = network.backbone.layers, network.head.heads
    h = first(x).relu()
    torch.testing.assert_close(network(x), torch.cat([shallow(h), deep(second(h).relu())], dim=1))


@pytest.mark.parametrize(
    ("backbone", "changes", "n_hidden"),
    [
        (None, {"hidden_layer_sizes": ()}, 0),
        (None, {"hidden_layer_sizes": (5,)}, 1),
        (nn.Linear(6, 4), {"hidden_layer_sizes": (5, 3), "frozen_backbone": True}, 2),
    ],
)
def test_a_single_level_begins_at_its_features(backbone, changes, n_hidden):
    x = torch.randn(5, 6)
    network = build(backbone, x[:2], **changes).eval()
    features = x if backbone is None else backbone(x)
    torch.testing.assert_close(network(x), normalize(nn.functional.pad(features, (0, 8 - features.shape[1]))))
    hidden = network.head.hidden or []
    assert sum(isinstance(layer, nn.Linear) for layer in hidden) == n_hidden


@pytest.mark.parametrize("size", [1, 8, 33])
def test_levels_of_images(size):
    x = torch.randn(5, 3, size, size)
    network = build(None, x[:2])
    assert [head.in_features for head in network.head.heads] == [16 * 64, 16 * 128, 16 * 128]
    torch.testing.assert_close(network(x).norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Linear(3, 7), r"does not take a batch of shape \(2, 6\)"),
        (nn.LSTM(6, 3), r"must map a batch .* \(B, f\).* gave tuple"),
        (nn.Unflatten(1, (2, 3)), r"gave \(2, 2, 3\)"),
    ],
)
def test_unfit_backbone_is_named(backbone, message):
    with pytest.raises(ValueError, match=message):
        build(backbone, torch.randn(2, 6))


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter to train"):
        build(nn.Identity(), torch.randn(2, 6), n_components=None)


@pytest.mark.parametrize("n_components", [8, None])
def test_embedder_with_a_backbone_of_two_features(blobs, n_components):
    X, y = blobs
    backbone = Pyramid()
    fitted = HDCEmbedder(backbone=backbone, n_components=n_components, max_epochs=20, batch_size=32).fit(X, y)
    assert fitted.criterion_.hard_fractions == (1.0, 0.5)
    assert fitted.criterion_.level_sizes == ((4, 4) if n_components else (9, 4))
    assert fitted.score(X, y) > 0.9
    before = backbone.first.weight.clone()
    fitted.set_params(warm_start=True).fit(X, y)
    torch.testing.assert_close(backbone.first.weight, before, rtol=0, atol=0)
