"""Rebuilding the fitted network and loss from the parameters, and the state that pickle, joblib and skops keep."""

import torch
from torch import nn

from .._data.arrays import InputRecord
from .._network.backbones import load_backbone
from .._network.copies import copied
from .._network.networks import Pooling
from .._network.random import seeded
from .json import type_name

MODULES = {"network_": "network.safetensors", "criterion_": "criterion.safetensors"}  # their files in a folder


def network_input(embedder, device="cpu"):
    """Return two rows of zeros with the shape that the fitted network gets."""
    return torch.zeros(2, *embedder._input.network_shape, device=device)


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
        If the names, shapes or types of the tensors differ from those of a module, or a weight is not finite.
    """
    cpu, meta = torch.device("cpu"), torch.device("meta")
    maker = type(embedder)(**embedder._made_with)
    with seeded(0, cpu):
        network, outline = _outline(maker, network_input(embedder, meta))
        if outline is not None:
            _set_backbone(network, outline)
        with meta:
            loss_outline = maker._make_loss(len(embedder.classes_), network)
        for key, module in (("network_", network), ("criterion_", loss_outline)):
            _check_tensors(module, tensors[key], sources[key])
        if outline is None:  # everything that a default network holds is saved
            network.to_empty(device=cpu)
        else:
            network.head.to_empty(device=cpu)
            _set_backbone(network, _backbone(maker))
        criterion = maker._make_loss(len(embedder.classes_), network)
    if maker.freeze == "batchnorm":
        network.freeze_batchnorm()
    built = {"network_": network.eval(), "criterion_": criterion.eval()}
    for key, module in built.items():
        module.load_state_dict(tensors[key])
    return built


def _outline(maker, sample):
    """Return the network on the meta device, and its backbone there, or None if it is a default one."""
    if maker.backbone is None:
        with sample.device:
            return maker._make_network(None, sample), None
    try:
        with sample.device:
            backbone = _backbone(maker).to(sample.device)
            return maker._make_network(backbone, sample), backbone
    except ImportError:
        raise
    except Exception:  # a backbone that needs values cannot run on meta; one that is wrong raises again
        backbone = _backbone(maker)
        with sample.device:
            return maker._make_network(_RunOnCPU(backbone), sample), copied(backbone).to(sample.device)


def _backbone(maker):
    """Return a copy of the embedder's backbone, with arbitrary weights if it is given by name."""
    if isinstance(maker.backbone, str):
        return load_backbone(maker.backbone, None, maker.pooling)[0]
    return copied(maker.backbone).cpu()


def _set_backbone(network, backbone):
    """Replace the backbone in a network of ``_make_network``."""
    if isinstance(network.backbone, nn.Sequential) and isinstance(network.backbone[-1], Pooling):
        network.backbone[0] = backbone
    else:
        network.backbone = backbone


class _RunOnCPU(nn.Module):
    """A stand-in for a backbone: takes and gives tensors of the meta device, but runs on the CPU.

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
            features = self.backbone[0].eval()(torch.zeros(x.shape))
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
    if name := not_finite(module, tensors):
        raise ValueError(f"{source} is damaged: {name} holds NaN or infinity.")


def not_finite(module, tensors):
    """Return the name of a tensor of the module that holds NaN or infinity, or None.

    Infinity may be meant in the buffers of modules that are not skdml's or torch's, such as the mask of an attention.
    """
    own = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        if not type(part).__module__.startswith(("skdml.", "torch.nn."))
        for name in part._buffers
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
    as they are, and so are modules that were changed by hand.
    """
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


def restore_state(embedder, state):
    """Restore the embedder from a state of `compact_state`."""
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
