"""The network: default backbones, head, normalisation."""

import pytest
import torch
from torch import nn

from skdml._networks import build_network, unit_rows


def build(backbone, sample, **changes):
    options = {"pooling": "avg", "n_components": 5, "hidden_layer_sizes": (8,), "normalize": True} | changes
    return build_network(backbone, sample, **{"precision": "float32"} | options)


@pytest.mark.parametrize("size", [1, 3, 8, 33])
def test_default_cnn_takes_images_of_any_size(size):
    network = build(None, torch.randn(2, 3, size, size))
    z = network(torch.randn(4, 3, size, size))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))


def test_no_hidden_layer_is_a_linear_map():
    network = build(None, torch.randn(2, 4), hidden_layer_sizes=(), normalize=False)
    x = torch.randn(3, 4)
    torch.testing.assert_close(network(2 * x) - network(x), network(x) - network(0 * x))


def test_n_components_none_keeps_the_backbone_output():
    network = build(nn.Linear(4, 7), torch.randn(2, 4), n_components=None)
    assert network.n_components == 7
    assert isinstance(network.head, nn.Identity)


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


def test_bfloat16_gives_float32_unit_rows_close_to_float32(device):
    x = torch.randn(6, 4, device=device)
    network = build(None, x)
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
