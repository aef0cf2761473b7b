"""The weights of pairs against the equations of the RAW paper, the gradient of the embeddings, and their picture."""

import inspect
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from skdml import losses
from skdml._loss.pairs import PairLoss, pair_masks
from skdml.inspection import PairWeightDisplay, pair_weights
from skdml.inspection._pair_weights import _around_an_anchor
from skdml.losses import BinomialDevianceLoss, ContrastiveLoss, LiftedStructureLoss, PDDMLoss, RAWLoss, TripletLoss

GOLDEN = Path(__file__).parent / "golden"
ALPHA, BETA, THRESHOLD = 2.0, 10.0, 0.3
N_CLASSES = 4


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x, torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 3, 2])


@pytest.fixture(autouse=True)
def _agg():
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def weights_in_loops(S, y, rule):
    """``rule(s, same)`` gives the weight from a pair's similarity and those of the anchor's pairs of its kind."""
    weights = torch.zeros_like(S)
    for mask in pair_masks(y):
        for i, j in mask.nonzero().tolist():
            weights[i, j] = rule(S[i, j], S[i, mask[i]], bool(y[i] == y[j]))
    return weights


# ---- the equations of the paper


def test_raw(batch):
    """Eqs. (15) and (16)."""

    def rule(s, same, is_positive):
        a = ALPHA if is_positive else -BETA
        return 1 / (torch.exp(a * (s - THRESHOLD)) + torch.exp(a * (s - same)).sum())

    x, y = batch
    weights = pair_weights(RAWLoss(alpha=ALPHA, beta=BETA, threshold=THRESHOLD, mining=None), x, y)
    torch.testing.assert_close(weights, weights_in_loops(x @ x.T, y, rule), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("raw_vthm__ms_official__*.npz")), ids=lambda path: path.stem)
def test_raw_of_the_official_code(path):
    with np.load(path) as archive:
        file = dict(archive)
    if file["quirk_matters"]:
        pytest.skip("the stored weights hold the bug of the reference")
    hp = json.loads(str(file["hyperparameters"]))
    loss = RAWLoss(alpha=hp["alpha"], beta=hp["beta"], threshold=hp["lam"], mining_margin=hp["epsilon"])
    weights = pair_weights(loss, file["embeddings"], file["labels"])
    np.testing.assert_allclose(weights, file["weights_anchor"], rtol=1e-10, atol=1e-10)


def test_contrastive(batch):
    """Eq. (6)."""
    x, y = batch
    weights = pair_weights(ContrastiveLoss(threshold=THRESHOLD), x, y)
    expected = weights_in_loops(x @ x.T, y, lambda s, same, is_positive: float(is_positive or s > THRESHOLD))
    torch.testing.assert_close(weights, expected)


def test_triplet(batch):
    """Eq. (8): the active triplets that a pair is in, times a constant of the loss, 2 B over the number of all."""
    x, y = batch
    S = x @ x.T
    margin = 0.4
    count, n_active = torch.zeros_like(S), 0
    for i in range(len(y)):
        for p in range(len(y)):
            for n in range(len(y)):
                if p != i and y[p] == y[i] != y[n] and S[i, n] - S[i, p] + margin / 2 > 0:
                    count[i, p] += 1
                    count[i, n] += 1
                    n_active += 1
    weights = pair_weights(TripletLoss(margin=margin, mining=None), x, y)
    torch.testing.assert_close(weights, 2 * len(y) / n_active * count)


def test_lifted_structure(batch):
    """Eqs. (10) and (11), the exponent of the latter with its right sign."""

    def rule(s, same, is_positive):
        return 1 / torch.exp((s - same) if is_positive else (same - s)).sum()

    x, y = batch
    weights = pair_weights(LiftedStructureLoss(metric="cosine", margin=2.0, mining=None), x, y)
    expected = weights_in_loops(x @ x.T, y, rule)
    expected[8] = 0  # the anchor without positives
    torch.testing.assert_close(weights, expected)


def test_binomial_deviance(batch):
    """Eqs. (13) and (14)."""

    def rule(s, same, is_positive):
        a = ALPHA if is_positive else -BETA
        return abs(a) / len(same) / (1 + torch.exp(a * (s - THRESHOLD)))

    x, y = batch
    weights = pair_weights(BinomialDevianceLoss(alpha=ALPHA, beta=BETA, threshold=THRESHOLD), x, y)
    torch.testing.assert_close(weights, weights_in_loops(x @ x.T, y, rule))


# ---- what holds for all losses

PAIR_LOSSES = [name for name in losses.__all__ if issubclass(getattr(losses, name), PairLoss)]


def check_theorem(loss, x, y):
    """The gradient of the embeddings, on the sphere, is that of the weighted sum of similarities."""
    x = x.clone().requires_grad_()
    weights = pair_weights(loss, x, y)
    assert not weights.requires_grad
    assert weights.diagonal().eq(0).all()
    signed = torch.where(y[:, None] == y, -weights, weights)
    (expected,) = torch.autograd.grad(loss(x, y), x)
    (grad,) = torch.autograd.grad((signed * (x @ x.T)).sum() / len(y), x)
    grad, expected = (g - (g * x).sum(dim=1, keepdim=True) * x for g in (grad, expected))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(grad.detach(), expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_weights_give_the_gradient(batch, name):
    cls = getattr(losses, name)
    sizes = {"n_classes": N_CLASSES, "n_components": 4}
    settings = {key: value for key, value in sizes.items() if key in inspect.signature(cls).parameters}
    check_theorem(cls(mining=None, **settings).double(), *batch)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ContrastiveLoss", {}),
        ("MultiSimilarityLoss", {}),
        ("TripletMarginLoss", {}),
        ("LiftedStructureLoss", {}),
        ("SupConLoss", {}),
        ("ContrastiveLoss", {"distance": {"power": 2}}),
        ("TripletMarginLoss", {"distance": {"power": 3}}),
    ],
)
def test_weights_of_pytorch_metric_learning_give_the_gradient(batch, name, settings):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses

    if settings:
        settings = {"distance": distances.LpDistance(**settings["distance"])}
    loss = getattr(losses, name)(**settings)
    check_theorem(loss, *batch)
    assert not loss.distance._forward_hooks


def test_multi_similarity_of_pytorch_metric_learning_is_raw(batch):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.losses import MultiSimilarityLoss

    loss = MultiSimilarityLoss(alpha=ALPHA, beta=BETA, base=THRESHOLD)
    expected = pair_weights(RAWLoss(alpha=ALPHA, beta=BETA, threshold=THRESHOLD, mining=None), *batch)
    torch.testing.assert_close(pair_weights(loss, *batch), expected)


def test_kinds_of_input_agree(batch):
    x, y = batch
    loss = RAWLoss()
    weights = pair_weights(loss, x, y)
    assert isinstance(weights, torch.Tensor)
    for kind in (x.numpy(), x.tolist()):
        other = pair_weights(loss, kind, np.array(list("abcd"))[y])
        assert isinstance(other, np.ndarray)
        np.testing.assert_array_equal(other, weights)
    assert pair_weights(loss, x.float(), y).dtype == torch.float32
    assert pair_weights(loss, np.zeros((0, 3)), np.zeros(0)).shape == (0, 0)


def test_negative_weights_are_not_clipped():
    """Of anchor 0, the first positive has more than its share of the softmax: it is pushed."""
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    weights = pair_weights(losses.SupConLoss(), x, [0, 0, 0, 1])
    assert weights[0, 1] < -0.1
    assert weights[0, 2] > 0.1


def test_weights_ask_for_the_gradient_even_without_grad(batch):
    with torch.no_grad():
        quiet = pair_weights(RAWLoss(), *batch)
    torch.testing.assert_close(quiet, pair_weights(RAWLoss(), *batch))


def test_what_has_no_weights_is_refused(batch):
    with pytest.raises(TypeError, match=r"PDDMLoss is not a function of the similarities.* Pass a loss"):
        pair_weights(PDDMLoss(4), *batch)
    with pytest.raises(ValueError, match=r"need \(B, D\) and \(B,\)"):
        pair_weights(RAWLoss(), batch[0], batch[1][:, None])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("ProxyAnchorLoss", (10, 4), "compares 10 rows to 10 others"),
        ("NPairsLoss", (), "NPairsLoss compares 3 rows to 3 others"),
        ("AngularLoss", (), "must compute its distance once.* it did so 0 times"),
        ("SignalToNoiseRatioContrastiveLoss", (), "is SNRDistance.* must be a similarity"),
    ],
)
def test_other_losses_of_pytorch_metric_learning_are_refused(batch, name, args, message):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses

    with pytest.raises(TypeError, match=message):
        pair_weights(getattr(losses, name)(*args), *batch)


# ---- the picture


def test_display_shows_the_weights_of_the_formula():
    display = PairWeightDisplay.from_loss(
        RAWLoss(alpha=ALPHA, beta=BETA, threshold=THRESHOLD, mining=None), positives=[0.7], negatives=[0.2, 0.5]
    )
    s = display.similarity
    assert (s[0], s[-1], len(s)) == (-1, 1, 201)
    pull = 1 / (1 + np.exp(ALPHA * (s - 0.7)) + np.exp(ALPHA * (s - THRESHOLD)))
    push = 1 / (1 + sum(np.exp(-BETA * (s - other)) for other in (0.2, 0.5, THRESHOLD)))
    for line, expected, style in zip(display.lines_, (pull, push), ("-", ":"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), s)
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-9)
        assert line.get_linestyle() == style
    assert display.ax_.get_xlabel() == "Similarity of the pair"
    assert display.ax_.get_ylabel() == "Weight of the pair"
    assert display.figure_ is display.ax_.figure


def test_display_takes_turns_with_the_colors():
    display = PairWeightDisplay.from_loss(RAWLoss(), n_points=5)
    second = PairWeightDisplay.from_loss(ContrastiveLoss(), n_points=5, name="eq. 5", ax=display.ax_)
    assert second.ax_ is display.ax_
    colors = [[line.get_color() for line in shown.lines_] for shown in (display, second)]
    assert len(set(colors[0])) == len(set(colors[1])) == 1
    assert colors[0] != colors[1]
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts[::2] == ["RAWLoss, positive pair", "eq. 5, positive pair"]


def test_display_of_pytorch_metric_learning():
    """Its contrastive loss pulls on a plain distance: the weight of a positive grows as 1 / d."""
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.losses import ContrastiveLoss

    display = PairWeightDisplay.from_loss(ContrastiveLoss(), positives=(), n_points=9)
    weights = display.positive_weights[:-1] * np.sqrt(2 - 2 * display.similarity[:-1])
    np.testing.assert_allclose(weights, weights[0])
    assert weights[0] > 0


def test_display_without_other_pairs():
    display = PairWeightDisplay.from_loss(BinomialDevianceLoss(), positives=(), negatives=(), n_points=3)
    np.testing.assert_allclose(display.positive_weights, 2 / (1 + np.exp(2 * (display.similarity - 0.5))))


def test_display_refuses_similarities_beyond_one():
    with pytest.raises(ValueError, match=r"lie in \[-1, 1\]; got positives=\(1.5,\)"):
        PairWeightDisplay.from_loss(RAWLoss(), positives=(1.5,))


def test_samples_around_an_anchor_have_the_similarities():
    similarities = np.array([0.3, -1.0, 1.0, 0.0])
    rows = _around_an_anchor(similarities)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    np.testing.assert_allclose(rows[1:] @ rows[0], similarities)
