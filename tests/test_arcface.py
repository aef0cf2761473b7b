"""ArcFace and sub-center ArcFace against angles in plain loops, and the limits where they are another known loss."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from skdml.losses import ArcFaceLoss, NormSoftmaxLoss, SoftTripleLoss

B, C, K, D = 6, 4, 3, 5


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,)."""
    x = normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 3, 1, 1, 0, 3])


def in_loops(x, y, v, *, scale, margin):
    """The formula for embeddings x (B, D) and centers v (C, K, D), by angles, one scalar at a time."""
    loss, n_beyond = 0, 0
    for x_i, y_i in zip(x, y, strict=True):
        terms = []
        for c in range(len(v)):
            theta = min((torch.arccos(x_i @ w / (x_i.norm() * w.norm())) for w in v[c]), key=torch.Tensor.item)
            cosine = torch.cos(theta)
            if c == y_i and theta < math.pi - margin:
                cosine = torch.cos(theta + margin)
            elif c == y_i:
                cosine = cosine - margin * math.sin(margin)
                n_beyond += 1
            terms.append(torch.exp(scale * x_i.norm() * cosine))
        loss = loss - torch.log(terms[y_i] / sum(terms)) / len(y)
    return loss, n_beyond


@pytest.mark.parametrize("settings", [
    {"scale": 64.0, "margin": 0.5},
    {"scale": 2.0, "margin": 1.8},
    {"scale": 5.0, "margin": 0.0},
])  # fmt: skip
@pytest.mark.parametrize("n_centers", [1, K])
@pytest.mark.parametrize("length", [1.0, 0.3])
def test_equals_the_formula(batch, settings, n_centers, length):
    x, y = batch
    loss = ArcFaceLoss(C, D, n_centers=n_centers, **settings).double()
    inputs = [x, loss.centers]
    value, (expected, n_beyond) = loss(length * x, y), in_loops(length * x, y, loss.centers, **settings)
    assert value.item() == pytest.approx(expected.item(), rel=1e-11)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))
    assert n_beyond > 0 or settings["margin"] < 1


def test_equal_centers_are_one(batch):
    """Sub-center ArcFace whose centers coincide in direction is ArcFace."""
    several, one = ArcFaceLoss(C, D, n_centers=K).double(), ArcFaceLoss(C, D).double()
    one.centers.data = several.centers.data[:, :1].clone()
    several.centers.data = one.centers.data * torch.tensor([0.5, 1.0, 7.0])[:, None]
    torch.testing.assert_close(several(*batch), one(*batch))


def test_without_margin_it_is_normalized_softmax(batch):
    loss, softmax = ArcFaceLoss(C, D, scale=7.0, margin=0.0).double(), NormSoftmaxLoss(C, D, scale=7.0).double()
    softmax.proxies.data = loss.centers.data[:, 0]
    torch.testing.assert_close(loss(*batch), softmax(*batch))


def test_without_margin_it_is_hard_triple(batch):
    settings = {"n_centers": K, "scale": 7.0, "margin": 0.0}
    loss, soft_triple = ArcFaceLoss(C, D, **settings), SoftTripleLoss(C, D, **settings, gamma=1e-6, tau=0.0).double()
    soft_triple.centers.data = loss.double().centers.data
    torch.testing.assert_close(loss(*batch), soft_triple(*batch))


def test_only_the_nearest_center_of_a_class_learns():
    loss = ArcFaceLoss(2, 2, n_centers=2, scale=1.0).double()
    loss.centers.data = torch.tensor([[[1.0, 0.1], [0.7, 0.7]], [[-1.0, 0.2], [0.1, -1.0]]], dtype=torch.float64)
    loss(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])).backward()
    assert [(grad.norm() > 0).item() for grad in loss.centers.grad.flatten(0, 1)] == [True, False, False, True]


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-4, math.pi - 1e-4, math.pi])
def test_slope_is_bounded_near_a_center(angle):
    """Scale 1, opposite centers: |dpsi/dx| is 1, or below 1 + m sin(m) beyond pi - m; that of the other logit is 1."""
    loss = ArcFaceLoss(2, 2, scale=1.0)
    loss.centers.data = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    x = torch.tensor([[math.cos(angle), math.sin(angle)]], requires_grad=True)
    loss(x, torch.tensor([0])).backward()
    assert x.grad.norm() <= 2 + 0.5 * math.sin(0.5)
    assert loss.centers.grad.norm(dim=2).max() <= 1.001


def test_logit_by_hand():
    """x at 60 degrees from its center, a margin of 30: logit cos 90 = 0 against cos 30 of the other class."""
    loss = ArcFaceLoss(2, 2, scale=2.0, margin=math.pi / 6).double()
    loss.centers.data = torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]], dtype=torch.float64)
    x = torch.tensor([[0.5, math.sqrt(0.75)]], dtype=torch.float64)
    expected = math.log1p(math.exp(2 * math.cos(math.pi / 6)))
    assert loss(x, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-12)


def test_margin_is_an_angle_below_pi():
    with pytest.raises(ValueError, match="The 'margin' parameter of ArcFaceLoss must be"):
        ArcFaceLoss(C, D, margin=28.6)
