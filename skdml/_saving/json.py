"""Exact conversion of values to JSON and back: types that JSON lacks become objects with a "__type__"."""

import inspect
import math
from pathlib import Path

import numpy as np
import torch


def encode(value):
    """Return the value in a form that JSON can hold.

    Raises
    ------
    TypeError
        If `decode` could not return exactly this value.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [encode(item) for item in value]
    if kind is dict and all(type(key) is str for key in value) and "__type__" not in value:
        return {key: encode(item) for key, item in value.items()}
    if kind is float:
        return _tagged("float", repr(value))
    if kind is tuple:
        return _tagged("tuple", [encode(item) for item in value])
    if isinstance(value, Path):
        return _tagged("Path", str(value))
    if kind is torch.device:
        return _tagged("torch.device", str(value))
    if isinstance(value, type) and value is optimizer_class(value.__name__):
        return _tagged("torch.optim", value.__name__)
    if kind is np.random.RandomState and value.get_state(legacy=False)["bit_generator"] == "MT19937":
        return _tagged("RandomState", encode(value.get_state(legacy=False)))
    if kind is np.ndarray or isinstance(value, np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "biufUOmM" and array.dtype != np.longdouble and np.dtype(array.dtype.str) == array.dtype:
            numbers = array.view(np.int64) if array.dtype.kind in "mM" else array
            tag = "ndarray" if kind is np.ndarray else "scalar"
            values = [encode(item) for item in numbers.ravel().tolist()]
            return {**_tagged(tag, values), "dtype": array.dtype.str, "shape": list(array.shape)}
    raise TypeError(f"{type_name(value)} has no exact form in JSON")


def _tagged(name, value):
    return {"__type__": name, "value": value}


def optimizer_class(name):
    """Return the optimizer of torch.optim with this name, or None."""
    cls = getattr(torch.optim, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) else None


def decode(value):
    """Return the value that `encode` got; no code is run, whatever the value holds.

    Raises
    ------
    KeyError, RuntimeError, TypeError, ValueError
        If the value does not come from `encode`.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__type__" not in value:
        return {key: decode(item) for key, item in value.items()}
    content = decode(value["value"])
    match value["__type__"]:
        case "float":
            return float(content)
        case "tuple":
            return tuple(content)
        case "Path":
            return Path(content)
        case "torch.device":
            return torch.device(content)
        case "torch.optim" if optimizer_class(content):
            return optimizer_class(content)
        case "RandomState":
            random = np.random.RandomState()
            random.set_state(content)
            return random
        case "ndarray" | "scalar" as kind:
            dtype = np.dtype(value["dtype"])
            array = np.fromiter(content, np.int64 if dtype.kind in "mM" else dtype, len(content))
            array = array.view(dtype).reshape(value["shape"])
            return array if kind == "ndarray" else array[()]
    raise ValueError(f"{value['__type__']!r} is not a type that skdml stores")


def type_name(value):
    """Return the dotted name of a class or function, and of the class of any other value."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(type_name, value))}]"
    named = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    return f"{named.__module__}.{named.__qualname__}"
