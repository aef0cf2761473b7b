"""Copies of modules, in which no tensor is part of a graph."""

import copy
import functools
import types
from collections import deque

import torch

_ATOMS = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, torch.Generator)


def tensors_in(value):
    """Return the tensors that an object holds in its attributes, containers and bound methods, each once."""
    found, seen, left = [], {}, [value]
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, _ATOMS):
            continue
        seen[id(part)] = part  # kept, so that no id is used again
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif isinstance(part, dict):
            left.extend(part.values())
        elif isinstance(part, list | tuple | set | frozenset | deque):
            left.extend(part)
        elif isinstance(part, types.MethodType):
            left.append(part.__self__)
        elif isinstance(part, functools.partial):
            left.extend((part.func, part.args, part.keywords))
        left.append(getattr(part, "__dict__", None))
    return found


def copied(module):
    """Return a deep copy; a tensor that is part of a graph, which torch does not copy, becomes one of the same values.

    Forward hooks and ``torch.nn.utils.spectral_norm`` leave such tensors in a module.
    """
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in _of_graphs(module)})


def sharing_tensors(module):
    """Return a copy of the module that holds the same tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors_in(module)})


def without_graphs(module):
    """Return the module, or one that shares all its tensors except for those of graphs, which it has on the CPU."""
    of_graphs = _of_graphs(module)
    if not of_graphs:
        return module
    return copy.deepcopy(module, {id(t): t for t in tensors_in(module)} | {id(t): t.detach().cpu() for t in of_graphs})


def _of_graphs(module):
    return [tensor for tensor in tensors_in(module) if not tensor.is_leaf]
