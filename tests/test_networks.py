"""The network: default backbones, head, normalization."""

import numpy as np
import pytest
import torch
from torch import nn

from skdml._network.networks import ResidualHead, build_network, unit_rows


def build(backbone, sample, **changes):
    options = {
        "pooling": "avg", "n_components": 5, "hidden_layer_sizes": (8,), "normalize": True, "precision": "float32",
        "frozen_backbone": False,
    }  # fmt: skip
    return build_network(backbone, sample, **(options | changes))


def randomized(head):
    """Give what is learned, which begins at zero, other values."""
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head


@pytest.mark.parametrize("size", [1, 3, 8, 33])
def test_default_cnn_takes_images_of_any_size(size):
    network = build(None, torch.randn(2, 3, size, size))
    z = network(torch.randn(4, 3, size, size))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(("sizes", "is_linear"), [((), True), ((8,), False)])
def test_no_hidden_layer_is_a_linear_map(sizes, is_linear):
    network = build(None, torch.randn(2, 4), hidden_layer_sizes=sizes, normalize=False)
    randomized(network.head)
    x = torch.randn(3, 4)
    same = torch.allclose(network(2 * x) - network(x), network(x) - network(0 * x), atol=1e-5)
    assert same == is_linear


def test_n_components_none_keeps_the_backbone_output():
    network = build(nn.Linear(4, 7), torch.randn(2, 4), n_components=None)
    assert network.n_components == 7
    assert isinstance(network.head, nn.Identity)


IMAGE = torch.zeros(2, 3, 9, 9)
NARROW, WIDE, WIDEST = torch.zeros(2, 4), torch.zeros(2, 100), torch.zeros(2, 2049)


@pytest.mark.parametrize(
    ("backbone", "sample", "n_components", "expected"),
    [
        (None, NARROW, "auto", 64),
        (None, WIDE, "auto", 100),
        (None, torch.zeros(2, 2048), "auto", 2048),
        (None, WIDEST, "auto", 512),
        (None, NARROW, None, 4),
        (None, WIDEST, None, 2049),
        (None, WIDE, 7, 7),
        (None, IMAGE, "auto", 64),
        (None, IMAGE, 7, 7),
        (None, IMAGE, None, 128),
        (nn.Linear(4, 6), NARROW, "auto", 64),
        (nn.Linear(4, 90), NARROW, "auto", 90),
        (nn.Linear(4, 3000), NARROW, "auto", 512),
        (nn.Linear(4, 90), NARROW, None, 90),
        (nn.Flatten(), IMAGE, "auto", 243),
    ],
)
@pytest.mark.parametrize("frozen_backbone", [False, True])
def test_dimension(backbone, sample, n_components, expected, frozen_backbone):
    if isinstance(backbone, nn.Flatten) and n_components is None and not frozen_backbone:
        pytest.skip("nothing to train")
    options = {"n_components": n_components, "hidden_layer_sizes": (), "frozen_backbone": frozen_backbone}
    network = build(backbone, sample, **options)
    assert network.n_components == expected
    with torch.no_grad():
        assert network.eval()(sample).shape == (2, expected)


@pytest.mark.parametrize(
    ("backbone", "frozen_backbone", "n_components", "kind", "strength", "has_hidden"),
    [
        (None, False, "auto", ResidualHead, 0.5, True),
        (None, False, None, ResidualHead, 0.5, True),
        (nn.Linear(4, 7), True, "auto", ResidualHead, 0.5, True),
        (nn.Linear(4, 7), True, None, ResidualHead, 0.5, True),
        (nn.Linear(4, 7), False, "auto", ResidualHead, 1.0, False),
        (nn.Linear(4, 7), False, None, nn.Identity, None, False),
        ("cnn", False, "auto", nn.Linear, None, False),
        ("cnn", False, None, nn.Identity, None, False),
    ],
)
def test_head(backbone, frozen_backbone, n_components, kind, strength, has_hidden):
    backbone, sample = (None, IMAGE) if backbone == "cnn" else (backbone, NARROW)
    head = build(backbone, sample, n_components=n_components, frozen_backbone=frozen_backbone).head
    assert type(head) is kind
    if kind is ResidualHead:
        assert head.strength == strength
        assert head.rescale == has_hidden  # both for features that stay as they are
        assert (head.hidden is not None) == has_hidden


# ---- the residual head


@pytest.mark.parametrize("n_components", [3, 4, 9])
@pytest.mark.parametrize("sizes", [(), (8,), (8, 7)])
@pytest.mark.parametrize("rescale", [False, True])
def test_residual_head_equals_its_formula(n_components, sizes, rescale):
    """Written out in NumPy: P x + s (W x + b + V h(x)), over sqrt(f) where the features were rescaled."""
    head = randomized(ResidualHead(4, n_components, sizes, strength=0.3, rescale=rescale))
    features = torch.randn(20, 4) + 1
    head.start_at(features.numpy(), None, 0)
    tensors = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    x = (features.numpy() - tensors["shift"]) * tensors["scale"]
    if rescale:
        assert (x**2).mean() == pytest.approx(1, rel=1e-5)
    else:
        np.testing.assert_array_equal(x, features)
    start = x @ tensors["projection"].T if n_components < 4 else np.pad(x, [(0, 0), (0, n_components - 4)])
    learned = x @ tensors["linear.weight"].T + tensors["linear.bias"]
    if sizes:
        h = x
        for k in range(len(sizes)):
            h = np.maximum(h @ tensors[f"hidden.{2 * k}.weight"].T + tensors[f"hidden.{2 * k}.bias"], 0)
        learned = learned + h @ tensors["output.weight"].T
    for strength, training in ((1, True), (0.3, False)):
        expected = (start + strength * learned) / (2 if rescale else 1)
        with torch.no_grad():
            np.testing.assert_allclose(head.train(training)(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n_components", "sizes"), [(3, (8,)), (4, ()), (9, (8, 7))])
def test_residual_head_learns_from_its_start(n_components, sizes):
    """All that is learned begins at zero, and nevertheless every tensor moves: those behind h in the second step."""
    head = ResidualHead(4, n_components, sizes, strength=0.5, rescale=False)
    features = torch.randn(20, 4)
    head.start_at(features.numpy(), None, 0)
    start = head(features).detach()
    assert all((p == 0).all() for name, p in head.named_parameters() if not name.startswith("hidden"))
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (head(features) - torch.ones(n_components)).square().mean().backward()
        optimizer.step()
    assert all((p != before[name]).any() for name, p in head.named_parameters())
    assert not torch.allclose(head(features), start)
    assert "projection" not in before


@pytest.mark.parametrize("n_components", [2, 5, 9, 15])
def test_projection_holds_the_uncentered_principal_components(n_components):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(50, 20)) * np.linspace(2, 0.5, 20) + 0.5).astype(np.float32)
    head = ResidualHead(20, n_components, (), strength=1, rescale=True)
    head.start_at(features, None, 0)
    V = np.linalg.svd(features)[2][:n_components]
    P = head.projection.numpy()
    np.testing.assert_allclose(P @ P.T, np.eye(n_components), atol=1e-5)
    np.testing.assert_allclose(P.T @ P, V.T @ V, atol=1e-3)


def test_projection_of_fewer_rows_than_components():
    """Three rows span three directions; the other rows of P stay zero and lose nothing of these."""
    features = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    head = ResidualHead(20, 7, (), strength=1, rescale=False).eval()
    head.start_at(features, None, 0)
    assert (head.projection[3:] == 0).all()
    with torch.no_grad():
        z = head(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(z @ z.T, features @ features.T, atol=1e-4)


@pytest.mark.parametrize(
    ("largest", "others", "n_features", "rules"),
    [
        (1, 1, 1, False),
        (1, 1, 2, False),
        (2, 1, 2, False),
        (9, 1, 2, True),
        (1, 1, 30, False),
        (5, 1, 30, False),  # half of the squared length
        (9, 1, 30, True),
        (1000, 0, 30, True),
    ],
)
def test_a_column_that_rules_the_length_has_the_columns_standardized(largest, others, n_features, rules):
    features = np.random.default_rng(0).normal(size=(500, n_features)) + 1
    features *= np.array([others] * (n_features - 1) + [largest])
    head = ResidualHead(n_features, n_features, (), strength=1, rescale=True).eval()
    ruling = head.start_at(features.astype(np.float32), None, 0)
    x = (torch.from_numpy(features).float() - head.shift) * head.scale
    assert x.square().mean() == pytest.approx(1 if others or not rules else 1 / n_features, rel=1e-4)
    if rules:
        shares = (features**2).mean(axis=0) / (features**2).mean(axis=0).sum()
        assert ruling == (n_features - 1, pytest.approx(shares[-1], rel=1e-4))
        torch.testing.assert_close(x.mean(dim=0), torch.zeros(n_features), atol=1e-5, rtol=0)
        torch.testing.assert_close(x[:, -1].std(correction=0), torch.tensor(1.0))
    else:
        assert ruling is None
        assert (head.shift == 0).all()
        assert len(head.scale.unique()) == 1


@pytest.mark.parametrize("largest", [1, 100])
@pytest.mark.parametrize("n_components", [3, 6])
def test_weights_of_rows_count_as_repeated_rows(n_components, largest):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(30, 6)) * [3, 2, 1.5, 1, 0.5, largest] + 1).astype(np.float32)
    weights = rng.integers(0, 4, size=30)
    heads = [ResidualHead(6, n_components, (), strength=1, rescale=True) for _ in range(3)]
    rulings = [
        heads[0].start_at(features, weights.astype(np.float32), 0),
        heads[1].start_at(features.repeat(weights, axis=0), None, 0),
        heads[2].start_at(features, None, 0),
    ]
    assert [ruling is not None for ruling in rulings] == [largest > 1] * 3
    with torch.no_grad():
        weighted, repeated, plain = (head.eval()(torch.from_numpy(features)) for head in heads)
    torch.testing.assert_close(weighted @ weighted.T, repeated @ repeated.T, rtol=1e-4, atol=1e-4)
    assert (weighted @ weighted.T - plain @ plain.T).abs().max() > 1e-2


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
@pytest.mark.parametrize("n_components", [2, 6, 9])
def test_a_head_over_equal_rows_is_finite(value, n_components):
    head = ResidualHead(6, n_components, (8,), strength=0.5, rescale=True)
    features = np.full((10, 6), value, dtype=np.float32)
    assert head.start_at(features, None, 0) is None
    with torch.no_grad():
        z = head(torch.from_numpy(features))
    assert z.isfinite().all()
    torch.testing.assert_close(z.norm(dim=1), torch.full((10,), float(value > 0)))


# ---- bad backbones and normalization


def test_lazy_backbone_stays_lazy():
    backbone = nn.LazyLinear(7)
    build(backbone, torch.randn(2, 4))
    assert isinstance(backbone.weight, nn.UninitializedParameter)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Linear(3, 7), r"does not take a batch of shape \(2, 4\)"),
        (nn.Unflatten(1, (2, 2)), r"must map a batch .* \(B, f\).* gave \(2, 2, 2\)"),
        (nn.LSTM(4, 3), r"gave tuple"),
        (nn.Flatten(0), r"gave \(8,\)"),
    ],
)
def test_unfit_backbone_is_named(backbone, message):
    with pytest.raises(ValueError, match=message):
        build(backbone, torch.randn(2, 4))


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter to train"):
        build(nn.Identity(), torch.randn(2, 4), n_components=None)


@pytest.mark.parametrize("n_components", [3, 5])
def test_bfloat16_gives_float32_unit_rows_close_to_float32(n_components, device):
    x = torch.randn(6, 4, device=device)
    network = build(None, x, n_components=n_components)
    if network.head.needs_features:
        network.head.start_at(x.cpu().numpy(), None, 0)
    randomized(network.head)
    full = network(x)
    network.precision = "bfloat16"
    half = network(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=1), torch.ones(6, device=device))
    assert 0 < (half - full).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_of_zeros_and_tiny_rows(dtype):
    z = torch.tensor([[0.0, 0.0], [3e-5, 4e-5], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    unit = unit_rows(z)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8]], dtype=dtype))
    unit.sum().backward()
    assert (z.grad[0] == 0).all()
    assert z.grad.isfinite().all()


def test_unit_rows_gradient():
    assert torch.autograd.gradcheck(unit_rows, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))
