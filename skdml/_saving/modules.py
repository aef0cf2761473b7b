"""Rebuilding the fitted network and loss from the parameters, and the state that pickle, joblib and skops keep."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._ambient import neutral
from .._data.arrays import InputRecord
from .._network.backbones import load_backbone
from .._network.copies import copied, tensors_in
from .._network.networks import Pooling, taking_float32
from .._network.random import seeded
from .json import type_name

MODULES = {"network_": "network.safetensors", "criterion_": "criterion.safetensors"}  # their files in a folder


def network_input(embedder, device="cpu"):
    """Return two rows of zeros with the shape that the fitted network gets."""
    return torch.zeros(2, *embedder._input.network_shape, dtype=torch.float32, device=device)


@neutral()
def build(embedder, tensors, sources):
    """Return ``network_`` and ``criterion_`` with the tensors, as the fit made them, in eval mode.

    Both are first made on torch's meta device, where tensors have a shape but no memory, so that no parameter can ask
    for more of it than the tensors take.

    Parameters
    ----------
    embedder : BaseEmbedder
        With the fitted attributes, except for the modules.
    tensors : dict
        The state dict of each module.
    sources : dict
        Says where the tensors of each module come from.

    Raises
    ------
    ValueError
        If the names, shapes or types of the tensors differ from those of a module.
    """
    cpu, meta = torch.device("cpu"), torch.device("meta")
    maker = type(embedder)(**embedder._made_with)
    n_classes = len(getattr(embedder, "classes_", ()))  # 0: it was fitted on judgments
    with seeded(0, cpu):
        sample = network_input(embedder, meta)
        network, backbone = _outline(maker, sample)
        with meta:
            loss_outline = maker._make_loss(n_classes, network)
        for key, module in (("network_", network), ("criterion_", loss_outline)):
            _check_tensors(module, tensors[key], sources[key])
        if maker.backbone is None:  # everything that a default network holds is saved
            network.to_empty(device=cpu)
        else:
            network.head.to_empty(device=cpu)
            _set_backbone(network, _backbone(maker, sample) if backbone is None else backbone)
        criterion = maker._make_loss(n_classes, network)
    if maker.freeze == "batchnorm":
        network.freeze_batchnorm()
    built = {"network_": network.eval(), "criterion_": criterion.eval()}
    for key, module in built.items():
        module.load_state_dict(tensors[key])
    return built


def _outline(maker, sample):
    """Return the network on the meta device, and its backbone if this cannot be there, or None."""
    if maker.backbone is None:
        with sample.device:
            return maker._make_network(None, sample), None
    try:
        with sample.device:
            return maker._make_network(_backbone(maker, sample).to(sample.device), sample), None
    except ImportError:
        raise
    except Exception:  # a backbone that does not take the sample raises again
        with sample.device:
            network = maker._make_network(_RunOnCPU(_backbone(maker, sample)), sample)
        stand_in = network.backbone[0] if _pools(network) else network.backbone
        _set_backbone(network, stand_in.backbone[0])
        return network, stand_in.backbone[0]


def _backbone(maker, sample):
    """Return a copy of the embedder's backbone, with arbitrary weights if it is given by name."""
    if isinstance(maker.backbone, str):
        return load_backbone(maker.backbone, None, maker.pooling)[0]
    backbone = copied(maker.backbone)
    if any(map(is_lazy, backbone.parameters())):
        return backbone
    # On the meta device, a batch of another dtype than the parameters passes.
    return taking_float32(backbone.cpu(), torch.zeros(sample.shape, dtype=sample.dtype, device="cpu"))


def _pools(network):
    return isinstance(network.backbone, nn.Sequential) and isinstance(network.backbone[-1], Pooling)


def _set_backbone(network, backbone):
    """Replace the backbone in a network of ``_make_network``."""
    if _pools(network):
        network.backbone[0] = backbone
    else:
        network.backbone = backbone


class _RunOnCPU(nn.Module):
    """A stand-in for a backbone that needs values and not only shapes: it is on the meta device, and runs on the CPU.

    Parameters
    ----------
    backbone : nn.Module
    """

    def __init__(self, backbone):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, device="meta"))  # a network without any parameter is refused
        self.backbone = (backbone,)  # not a submodule, which would be moved to the meta device

    def forward(self, x):
        with torch.device("cpu"):
            features = self.backbone[0].eval()(torch.zeros(x.shape, dtype=x.dtype))
        if isinstance(features, torch.Tensor):
            return features.to("meta")
        return [level.to("meta") for level in features]


def describe(module):
    """Return what defines the module, except the values of its tensors, as a dict of texts by the names of its parts.

    For skdml's own modules, this includes the attributes: margins, sizes, rules.
    """
    parts = {}
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        kind = type_name(part)
        parts[f"{prefix}type"] = kind
        for key, value in vars(part).items() if kind.startswith("skdml.") else ():
            if key[0] != "_" and key != "training":
                parts[prefix + key] = f"{type_name(value)} {value!r}"
    return parts | {name: _kind_of_tensor(value) for name, value in module.state_dict().items()}


def changed(embedder):
    """Return a manual change of the fitted network or loss that the parameters cannot reproduce, or None."""
    for key, before in embedder._structure.items():
        after = describe(getattr(embedder, key))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                return f"{name} of {key} is {after.get(name, 'missing')}, but was {before.get(name, 'missing')} in fit"
    return None


def _check_tensors(module, tensors, source):
    made = module.state_dict()
    difference = None
    if differing := sorted(made.keys() ^ tensors.keys()):
        difference = f"{differing[0]} is {'missing' if differing[0] in made else 'unexpected'}"
    for name, tensor in made.items() if difference is None else ():
        want, got = _kind_of_tensor(tensor), _kind_of_tensor(tensors[name])
        if want != got:
            difference = f"{name} is {got}, not {want}"
            break
    if difference:
        raise ValueError(
            f"{source} does not fit the module that the parameters define: {difference}. A backbone or loss that you "
            "pass must be built like the saved one."
        )


def not_finite(module, tensors):
    """Return the name of a tensor of the module that holds NaN or infinity, or None.

    Infinity may be meant in the buffers of modules that are not skdml's or torch's, such as the mask of an attention.
    """
    own = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        if not type(part).__module__.startswith(("skdml.", "torch.nn."))
        for name, _ in part.named_buffers(recurse=False)
    }
    for name, tensor in tensors.items():
        if (tensor.isnan() if name in own else ~tensor.isfinite()).any():
            return name
    return None


def _kind_of_tensor(value):
    if not isinstance(value, torch.Tensor):
        return type_name(value)
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def frozen(embedder):
    """Return the names of the frozen parameters of each module."""
    return {
        key: [name for name, p in getattr(embedder, key).named_parameters() if not p.requires_grad] for key in MODULES
    }


def freeze(module, names):
    """Let all parameters be trained except for those named."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in names)


def compact_state(embedder, state):
    """Return the state with arrays in place of the network and the loss, if the parameters can rebuild these.

    skops can store arrays, and pickles of arrays survive changes inside torch. Custom modules and classes are pickled
    as they are, and so are modules that were changed by hand, with arrays in place of their tensors.
    """
    state = _with_weights(embedder, state)
    return {"_state": _WithArrays(state)} if tensors_in(state) else state


def _with_weights(embedder, state):
    if not MODULES.keys() <= state.keys() or changed(embedder):
        return state
    # Described anew when it is restored: the text of an object may hold its address.
    state = {key: value for key, value in state.items() if key != "_structure"}
    is_own = not type(embedder).__module__.startswith("skdml.") or any(
        isinstance(value, nn.Module) or (name == "backbone" and value is not None)
        for params in (embedder.get_params(deep=False), state.get("_made_with", {}))
        for name, value in params.items()
    )
    if is_own or any(frozen(embedder).values()):
        return state
    weights = {key: {name: tensor.cpu().numpy() for name, tensor in state[key].state_dict().items()} for key in MODULES}
    kept = {key: value for key, value in state.items() if key not in MODULES}
    return {**kept, "_input": vars(state["_input"]), "_weights": weights}


class _WithArrays:
    """A state that is pickled with arrays in place of tensors.

    torch's pickles of equal tensors differ, and so would the hashes of equal embedders, by which joblib finds what it
    has cached.

    Parameters
    ----------
    state : dict
    """

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        memo = {id(tensor): _as_array(tensor) for tensor in tensors_in(self.state) if _is_plain(tensor)}
        return dict, (copy.deepcopy(self.state, memo),)


class _Made:
    """What a function returns for arguments, when it is unpickled."""

    def __init__(self, make, *args):
        self.make = make
        self.args = args

    def __reduce__(self):
        return self.make, self.args


def _is_plain(tensor):
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    return is_dense and type(tensor) in (torch.Tensor, nn.Parameter) and not (tensor.is_conj() or tensor.is_neg())


def _as_array(tensor):
    """Return what makes the tensor, with the order of its axes in memory, from an array of bytes."""
    axes = list(range(tensor.ndim))
    order = sorted(axes, key=lambda axis: -tensor.stride(axis))
    if tensor.is_contiguous() or not tensor.permute(order).is_contiguous():
        order = axes
    values = tensor.detach().permute(order).contiguous()
    content = values.reshape(-1).view(torch.uint8).cpu().numpy()
    trains = tensor.requires_grad and tensor.is_leaf
    kind = isinstance(tensor, nn.Parameter), trains, tensor.device, dict(tensor.__dict__)
    return _Made(_make_tensor, content, tensor.dtype, tuple(values.shape), order, *kind)


def _make_tensor(content, dtype, shape, order, is_parameter, trains, device, attributes):
    tensor = torch.tensor(content, device=device).view(dtype).reshape(shape).permute(np.argsort(order).tolist())
    tensor = nn.Parameter(tensor, requires_grad=trains) if is_parameter else tensor.requires_grad_(trains)
    tensor.__dict__.update(attributes)
    return tensor


@neutral()
def restore_state(embedder, state):
    """Restore the embedder from a state of `compact_state`."""
    if "_state" in state:
        # `copy.copy` has not pickled it.
        state = state["_state"].state if isinstance(state["_state"], _WithArrays) else state["_state"]
    vars(embedder).update({key: value for key, value in state.items() if key != "_weights"})
    if "_weights" in state:
        embedder._input = InputRecord(**embedder._input)
        tensors = {
            key: {name: torch.tensor(array) for name, array in weights.items()}
            for key, weights in state["_weights"].items()
        }
        modules = build(embedder, tensors, {key: f"The state of {key}" for key in MODULES})
        for module in modules.values():
            freeze(module, [])
        vars(embedder).update(modules)
    if MODULES.keys() <= vars(embedder).keys() and "_structure" not in state:
        embedder._structure = {key: describe(getattr(embedder, key)) for key in MODULES}
