"""What every loss promises, whatever its formula.

Axes: B samples of a batch, D components, C classes.
"""

import copy
import inspect
import pickle

import pytest
import torch
from skorch import NeuralNet
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from skdml import losses
from skdml._loss.pairs import PairLoss

C, D = 4, 5

# Settings that take another path through a loss, next to its defaults.
SETTINGS = {
    "TripletLoss": [
        {"squared": False},
        {"soft_margin": True},
        {"mining": None},
        {"mining": "hard"},
        {"mining": None, "squared": False},
        {"mining": None, "soft_margin": True},
    ],
    "QuadrupletLoss": [{"mining": "hard"}],
    "MarginLoss": [{"mining": None}, {"mining": None, "nu": 0.5}],
    "ArcFaceLoss": [{"n_centers": 3, "scale": 16.0}, {"margin": 2.0}],
    "LargeMarginSoftmaxLoss": [{"annealing_base": 0.0}, {"annealing_base": 0.0, "margin": 1}],
    "ProxyNCALoss": [{"positive_in_denominator": True}, {"label_smoothing": 0.1}],
    "CircleLoss": [{"margin": 0.25, "scale": 256.0}],
    "RecallSurrogateLoss": [{"ks": (1, 3), "tau1": 0.1, "tau2": 0.5}],
    "SupConLoss": [{"base_temperature": 0.07}],
    "ClusteringLoss": [{"max_swap_rounds": 0}],
    "PDDMLoss": [{"n_quadruplets": 1}, {"n_hidden": 3, "distance_weight": 0.0}],
    "BIERLoss": [{"group_shares": (1,)}],
    "HDCLoss": [{"hard_fractions": (1.0,)}, {"hard_fractions": (0.3, 0.7), "level_sizes": (1, 4)}],
    "ContrastiveLoss": [{"metric": "euclidean"}, {"mining": "vthm"}],
    "BinomialDevianceLoss": [{"mining": "vthm"}],
    "LiftedStructureLoss": [
        {"mining": None},
        {"mining": None, "metric": "cosine"},
        {"mining": None, "form": "original"},
        {"form": "original", "metric": "cosine"},
    ],
    "AngularLoss": [{"angle": 36.0}, {"mining": "hard"}],
    "HistogramLoss": [{"n_bins": 7}],
    "NPairsLoss": [{"l2": 0.0}],
    "RAWLoss": [{"mining": None}],
    "SoftTripleLoss": [{"n_centers": 1}, {"n_centers": 2, "tau": 0.0}],
    "SSTLoss": [{"n_targets": 1}],
}

# By default two calls give two values: pairs drawn at random, an annealing that counts its steps.
CHANGES = {"LargeMarginSoftmaxLoss", "MarginLoss"}

# Their formulas hold a weight constant that depends on the embeddings: the gradient is not that of the value.
HOLDS_WEIGHTS = {"BIERLoss", "CircleLoss"}

# Which two samples of a class form its pair follows from their order.
ORDERED = {"NPairsLoss"}

# Searches a discrete structure on the CPU; lists its positive pairs.
WAITS = {"ClusteringLoss", "PDDMLoss"}

# Distances in units of their own spread; ranks, which steep sigmoids count.
SCALE_FREE = {"MagnetLoss", "RecallSurrogateLoss"}

# Sums under a logarithm that weights multiply into: the loss of many samples, not their mean.
SUMS_WEIGHTS = {"ProxyAnchorLoss"}

LOSSES = [
    pytest.param(name, settings, id=f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})")
    for name in losses.__all__
    for settings in [*([] if name in CHANGES else [{}]), *SETTINGS.get(name, [])]
]


def without(names):
    """Return LOSSES without those of which a test cannot hold."""
    return [param for param in LOSSES if param.values[0] not in names]


DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")]


def make_loss(name, settings, *, n_classes=C, n_components=D, dtype=torch.float64, device="cpu"):
    """Return the loss, with the same learned parameters every time."""
    cls = getattr(losses, name)
    sizes = {"n_classes": n_classes, "n_components": n_components}
    sizes = {size: sizes[size] for size in sizes if size in inspect.signature(cls).parameters}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(**sizes, **settings).to(device, dtype)


LEARNED = [param for param in LOSSES if list(make_loss(*param.values).parameters())]


def make_batch(n=12, *, n_classes=C, dtype=torch.float64, device="cpu", seed=0):
    """Return n unit rows (B, D) that collect a gradient, the classes in turn (B,)."""
    generator = torch.Generator().manual_seed(seed)
    x = normalize(torch.randn(n, D, generator=generator, dtype=torch.float64)).to(device, dtype)
    return x.requires_grad_(), torch.arange(n, device=device) % n_classes


def make_weights(n=12, *, dtype=torch.float64, device="cpu"):
    """Return weights (B,) from 0 to 2, every fifth of them 0."""
    w = 2 * torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w[::5] = 0
    return w.to(device, dtype)


def gradients(loss, x, y, sample_weight=None):
    """Return the value and the gradients in the embeddings and in each learned parameter."""
    value = loss(x, y, sample_weight=sample_weight)
    return value, *torch.autograd.grad(value, [x, *loss.parameters()])


@pytest.mark.parametrize("w", [None, make_weights(9)], ids=["", "weighted"])
@pytest.mark.parametrize(("name", "settings"), without(HOLDS_WEIGHTS))
def test_gradient_is_that_of_the_value(name, settings, w):
    loss = make_loss(name, settings)
    x, y = make_batch(9)
    names, parameters = zip(*loss.named_parameters(), strict=True) if list(loss.parameters()) else ((), ())

    def value(x, *parameters):
        return functional_call(loss, dict(zip(names, parameters, strict=True)), (x, y), {"sample_weight": w})

    assert torch.autograd.gradcheck(value, (x, *parameters))


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_weights_of_one_are_no_weights(name, settings):
    loss = make_loss(name, settings)
    x, y = make_batch()
    torch.testing.assert_close(gradients(loss, x, y, torch.ones(12, dtype=x.dtype)), gradients(loss, x, y))


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_the_same_result_every_time(name, settings):
    """On the CPU torch adds many values by index in any order, where these stand in brackets."""

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.add(operation.overloadpacket.__name__)
            return operation(*args, **(kwargs or {}))

    names = set()
    with Operations():
        gradients(make_loss(name, settings), *make_batch())
    assert not {"index_put", "index_put_", "_index_put_impl_", "put", "put_"} & names

    batch = make_batch(256, dtype=torch.float32)
    first, again = (gradients(make_loss(name, settings, dtype=torch.float32), *batch) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "settings"), without(SUMS_WEIGHTS))
def test_scale_of_the_weights_does_not_matter(name, settings):
    loss = make_loss(name, settings)
    x, y = make_batch()
    w = make_weights()
    weighted = gradients(loss, x, y, w)
    for factor in (2.0, 0.01):
        torch.testing.assert_close(gradients(loss, x, y, factor * w), weighted)
    assert weighted[0].item() != pytest.approx(loss(x, y).item(), rel=1e-3)


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_weights_of_zero_leave_no_gradient(name, settings):
    x, y = make_batch()
    value, grad_x, *_ = gradients(make_loss(name, settings), x, y, torch.zeros(12, dtype=x.dtype))
    assert value.isfinite()
    assert grad_x.abs().sum() == 0


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_weights_of_the_wrong_shape_are_refused(name, settings):
    x, y = make_batch()
    for w in (torch.ones(12, 1), torch.ones(11), torch.ones(())):
        with pytest.raises(ValueError, match=r"sample_weight of shape \(.*\) for 12 rows; need \(B,\)"):
            make_loss(name, settings)(x, y, sample_weight=w)


@pytest.mark.parametrize("w", [None, make_weights()], ids=["", "weighted"])
@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_order_of_the_batch_does_not_matter(name, settings, w):
    loss = make_loss(name, settings)
    x, y = make_batch()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    if name in ORDERED:
        place = order.argsort()  # the samples of a class keep their order
        for c in range(C):
            place[y == c] = place[y == c].sort().values
        order = place.argsort()
    value, grad_x, *grads = gradients(loss, x, y, w)
    permuted_value, permuted_grad_x, *permuted_grads = gradients(
        loss, x[order].detach().requires_grad_(), y[order], None if w is None else w[order]
    )
    torch.testing.assert_close([permuted_value, permuted_grad_x, *permuted_grads], [value, grad_x[order], *grads])


def degenerate_batches():
    """Yield a name, rows (B, D) and labels (B,)."""
    x, y = make_batch()
    x = x.detach()
    yield "empty", x[:0], y[:0]
    yield "one sample", x[:1], y[:1]
    yield "one pair", x[:2], torch.tensor([1, 1])
    yield "one class", x, torch.full_like(y, 2)
    yield "all classes different", x[:C], y[:C]
    yield "singletons", x[:6], torch.tensor([0, 1, 2, 2, 3, 3])
    yield "duplicates in a class", x[y], y
    yield "duplicates across classes", x[torch.arange(len(y)) // 2], y
    yield "collapsed", x[:1].expand(len(y), D), y
    yield "beyond 1 by rounding", x * (1 + 1e-6), y
    yield "long rows", 1e4 * x, y
    yield "far from the origin", 1e4 + x, y
    yield "zero rows", x * (torch.arange(len(y)) % 3 > 0)[:, None], y
    yield "zeros", torch.zeros_like(x), y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_value_and_gradient_are_finite(name, settings, dtype):
    for case, x, y in degenerate_batches():
        loss = make_loss(name, settings, dtype=dtype)
        for w in (None, make_weights(len(y), dtype=dtype)):
            for result in gradients(loss, x.to(dtype).requires_grad_(), y, w):
                assert result.isfinite().all(), case


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-6, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "settings"), LEARNED)
def test_learned_parameters_of_any_length(name, settings, dtype, length):
    loss = make_loss(name, settings, dtype=dtype)
    for parameter in loss.parameters():
        parameter.data[0] *= length
        parameter.data[-1:].view(-1)[:1] *= length
    for result in gradients(loss, *make_batch(dtype=dtype)):
        assert result.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_batch_without_pairs_gives_zero_and_zero_gradient(name, settings):
    loss = make_loss(name, settings)
    x, y = make_batch()
    for n in (0, 1) if isinstance(loss, PairLoss) else (0,):
        part = x[:n].detach().requires_grad_()
        assert [result.abs().sum() for result in gradients(loss, part, y[:n])] == [0] * (2 + len([*loss.parameters()]))


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_nothing_is_changed_in_place(name, settings):
    loss = make_loss(name, settings)
    x, y = make_batch()
    tensors = [x, y, *loss.parameters(), *loss.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    versions = [tensor._version for tensor in tensors]
    loss(x, y).backward()
    assert [tensor._version for tensor in tensors] == versions
    torch.testing.assert_close([tensor.detach() for tensor in tensors], before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_gradients_add_up_over_backward_passes(name, settings):
    loss = make_loss(name, settings)
    x, y = make_batch()
    _, *once = gradients(loss, x, y)
    value = loss(x, y)
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close([x.grad, *(p.grad for p in loss.parameters())], [2 * grad for grad in once])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_dtype_and_device_are_kept(name, settings, dtype, device):
    loss = make_loss(name, settings, dtype=dtype, device=device)
    x, y = make_batch(dtype=dtype, device=device)
    value, *grads = gradients(loss, x, y)
    assert value.shape == ()
    other = torch.float32 if dtype == torch.float64 else torch.float64
    for result in (value, *grads, *gradients(loss, x, y, make_weights(dtype=other, device=device))):
        assert result.dtype == dtype
        assert result.device.type == device
    expected, *_ = gradients(make_loss(name, settings), *make_batch())
    assert value.item() == pytest.approx(expected.item(), rel=2e-5)


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_torch_func_gives_the_gradient(name, settings):
    loss, (x, y), w = make_loss(name, settings).eval(), make_batch(), make_weights()
    parameters = {name: parameter.detach() for name, parameter in loss.named_parameters()}

    def value(x, parameters):
        torch.manual_seed(0)
        return functional_call(loss, parameters, (x, y), {"sample_weight": w})

    (grad_x, grads), got = grad_and_value(value, argnums=(0, 1))(x.detach(), parameters)
    torch.manual_seed(0)
    torch.testing.assert_close((got, grad_x, *grads.values()), gradients(loss, x, y, w), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "settings"), without(WAITS))
def test_no_step_waits_for_a_value(name, settings):
    """Tensors on the meta device have no values: what asks for one, as ``.item()`` or a mask as index does, fails."""
    loss = make_loss(name, settings, device="meta")
    x, y, w = (tensor.to("meta") for tensor in (*make_batch(), make_weights()))
    for sample_weight in (None, w):
        for result in gradients(loss, x.detach().requires_grad_(), y, sample_weight):
            assert result.is_meta


@pytest.mark.parametrize(("name", "settings"), without(SCALE_FREE))
def test_embeddings_are_taken_as_they_are(name, settings):
    """Without a normalization inside, the value changes with the length of the rows."""
    loss = make_loss(name, settings)
    x, y = make_batch()
    assert loss(2 * x, y).item() != pytest.approx(loss(x, y).item(), rel=1e-3)


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_labels_of_the_wrong_shape_are_refused(name, settings):
    x, y = make_batch()
    with pytest.raises(ValueError, match=r"y of shape \(12, 1\); need \(B, D\) and \(B,\)"):
        make_loss(name, settings)(x, y[:, None])


WIDTHS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
OF_CLASSES = [name for name in losses.__all__ if getattr(make_loss(name, {}), "n_classes", None)]


@pytest.mark.parametrize("name", losses.__all__)
def test_labels_are_integers_of_any_width(name):
    loss = make_loss(name, SETTINGS[name][0] if name in CHANGES else {})
    x, y = make_batch()
    expected = gradients(loss, x, y)
    for dtype in WIDTHS:
        torch.testing.assert_close(gradients(loss, x, y.to(dtype)), expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients(loss, x, y > 1), gradients(loss, x, (y > 1).long()), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"Got y of torch.float32; need a tensor of integers"):
        loss(x, y.float())
    with pytest.raises(TypeError, match="Got y of type list; need a tensor of integers"):
        loss(x, y.tolist())


@pytest.mark.parametrize("label", [-100, -1, C, 2**31])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_labels_out_of_range_are_refused(name, label):
    x, y = make_batch()
    y[3] = label
    low, high = min(label, 0), max(label, C - 1)
    with pytest.raises(ValueError, match=f"Got labels y from {low} to {high}; need 0 to {C - 1}, as n_classes={C}"):
        make_loss(name, {})(x, y)


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name not in OF_CLASSES])
def test_losses_without_classes_of_their_own_take_any_integers(name):
    loss = make_loss(name, {})
    x, y = make_batch()
    torch.testing.assert_close(gradients(loss, x, y - 100), gradients(loss, x, y), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_copies_give_the_same_value(name, settings):
    loss = make_loss(name, settings)
    x, y = make_batch()
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        torch.testing.assert_close(gradients(other, x, y), gradients(loss, x, y), rtol=0, atol=0)


@pytest.mark.parametrize("name", losses.__all__)
def test_attributes_equal_parameters(name):
    loss = make_loss(name, {})
    for parameter, spec in inspect.signature(type(loss)).parameters.items():
        if spec.default is not spec.empty:
            assert getattr(loss, parameter) == spec.default


@pytest.mark.parametrize("name", losses.__all__)
def test_every_parameter_has_a_range_and_says_so(name):
    cls = getattr(losses, name)
    assert set(cls._parameter_constraints) == set(inspect.signature(cls).parameters)
    for parameter in cls._parameter_constraints:
        sizes = {"n_classes": C, "n_components": D}
        sizes = {size: sizes[size] for size in sizes if size in cls._parameter_constraints}
        with pytest.raises(ValueError, match=f"The '{parameter}' parameter of {name} must be"):
            cls(**{**sizes, parameter: [parameter]})


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_trains_as_criterion_of_skorch(name, settings, blobs):
    X, y = blobs
    torch.manual_seed(0)
    net = NeuralNet(
        nn.Linear(X.shape[1], D),
        getattr(losses, name),
        **{f"criterion__{key}": value for key, value in settings.items()},
        **{
            f"criterion__{size}": value
            for size, value in {"n_classes": C, "n_components": D}.items()
            if size in inspect.signature(getattr(losses, name)).parameters
        },
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=5,
        batch_size=30,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    net.fit(X, y)
    history = net.history[:, "train_loss"]
    assert history[-1] < history[0]
