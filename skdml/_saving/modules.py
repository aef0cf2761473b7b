"""Rebuilding the fitted network and loss from the parameters, and the state that pickle, joblib and skops keep."""

import torch
from torch import nn

from .._ambient import neutral
from .._data.arrays import InputRecord
from .._network.backbones import load_backbone
from .._network.random import seeded
from .json import type_name

MODULES = {"network_": "network.safetensors", "criterion_": "criterion.safetensors"}  # their files in a folder


def network_input(embedder):
    """Return two rows of zeros with the shape that the fitted network gets."""
    return torch.zeros(2, *embedder._input.network_shape, dtype=torch.float32)


@neutral()
def build(embedder):
    """Return ``network_`` and ``criterion_`` as the fit made them, in eval mode, with arbitrary weights."""
    cpu = torch.device("cpu")
    maker = type(embedder)(**embedder._made_with)
    backbone = maker.backbone
    # Everything that the default networks hold is saved, so they need no initial weights.
    device = torch.device("meta") if backbone is None else cpu
    with seeded(0, cpu):
        if isinstance(backbone, str):
            backbone, _ = load_backbone(backbone, None, maker.pooling)
        with device:
            network = maker._make_network(backbone, network_input(embedder).to(device))
        criterion = maker._make_loss(len(embedder.classes_), network)
    if device != cpu:
        network.to_empty(device=cpu)
    if maker.freeze == "batchnorm":
        network.freeze_batchnorm()
    return {"network_": network.eval(), "criterion_": criterion.eval()}


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


def tensors_differ(module, tensors):
    """Return how the names, shapes and types of tensors differ from those of the module, or None."""
    made = module.state_dict()
    if differing := sorted(made.keys() ^ tensors.keys()):
        return f"{differing[0]} is {'missing' if differing[0] in made else 'unexpected'}"
    for name, tensor in made.items():
        want, got = _kind_of_tensor(tensor), _kind_of_tensor(tensors[name])
        if want != got:
            return f"{name} is {got}, not {want}"
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


def take_over(module, tensors, frozen_names, source):
    """Load the tensors into the module.

    Raises
    ------
    ValueError
        If names, shapes or types differ from those of the module; ``source`` says where the tensors come from.
    """
    difference = tensors_differ(module, tensors)
    if difference:
        raise ValueError(
            f"{source} does not fit the module that the parameters define: {difference}. A backbone or loss that you "
            "pass must be built like the saved one."
        )
    module.load_state_dict(tensors)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen_names)


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


@neutral()
def restore_state(embedder, state):
    """Restore the embedder from a state of `compact_state`."""
    vars(embedder).update({key: value for key, value in state.items() if key != "_weights"})
    if "_weights" in state:
        embedder._input = InputRecord(**embedder._input)
        modules = build(embedder)
        for key, weights in state["_weights"].items():
            take_over(
                modules[key], {name: torch.tensor(array) for name, array in weights.items()}, [], f"The state of {key}"
            )
        vars(embedder).update(modules)
    if MODULES.keys() <= vars(embedder).keys() and "_structure" not in state:
        embedder._structure = {key: describe(getattr(embedder, key)) for key in MODULES}
