"""Exact conversion of values to JSON and back: types that JSON lacks become objects with a "__type__"."""

import inspect
import math
import reprlib
from datetime import date, datetime
from pathlib import Path

import numpy as np
import torch

# An array of strings may take this many bytes for characters that none of its strings has.
_PADDING = 2**28

_shortening = reprlib.Repr()
_shortening.maxstring = _shortening.maxother = _shortening.maxlong = 100


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
    if kind is bytes:
        return _tagged("bytes", value.hex())
    if kind is date or (kind is datetime and value.tzinfo is None and value.fold == 0):
        return _tagged(kind.__name__, value.isoformat())
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
        if _has_form(array.dtype) and array.dtype != np.longdouble and not _is_padded(array.dtype, array.ravel()):
            numbers = array.view(np.int64) if array.dtype.kind in "mM" else array
            tag = "ndarray" if kind is np.ndarray else "scalar"
            values = [encode(item) for item in numbers.ravel().tolist()]
            return {**_tagged(tag, values), "dtype": array.dtype.str, "shape": list(array.shape)}
    raise TypeError(f"{type_name(value)} has no exact form in JSON")


def _tagged(name, value):
    return {"__type__": name, "value": value}


def _has_form(dtype):
    return dtype.kind in "biufSUOmM" and np.dtype(dtype.str) == dtype


def _is_padded(dtype, values):
    """Return whether strings take far more memory than their characters."""
    size = {"S": 1, "U": 4}.get(dtype.kind)  # of a character
    needed = size * max(map(len, values), default=0) if size else dtype.itemsize
    return needed < dtype.itemsize and len(values) * dtype.itemsize > _PADDING


def optimizer_class(name):
    """Return the optimizer of torch.optim with this name, or None."""
    cls = getattr(torch.optim, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) else None


def decode(value):
    """Return the value that `encode` got; no code is run, whatever the value holds.

    Raises
    ------
    Exception
        If the value does not come from `encode`.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__type__" not in value:
        return {key: decode(item) for key, item in value.items()}
    kind = value["__type__"]
    keys = {"__type__", "value", *(("dtype", "shape") if kind in ("ndarray", "scalar") else ())}
    if value.keys() != keys:
        raise ValueError(f"{shortened(kind)} has the keys {shortened(sorted(value))}, but needs {sorted(keys)}")
    content = decode(value["value"])
    match kind:
        case "float" if isinstance(content, str):
            return float(content)
        case "tuple" if isinstance(content, list):
            return tuple(content)
        case "bytes" if isinstance(content, str):
            return bytes.fromhex(content)
        case "date" if isinstance(content, str):
            return date.fromisoformat(content)
        case "datetime" if isinstance(content, str):
            return datetime.fromisoformat(content)
        case "Path" if isinstance(content, str):
            return Path(content)
        case "torch.device" if isinstance(content, str):
            return torch.device(content)
        case "torch.optim" if isinstance(content, str) and optimizer_class(content):
            return optimizer_class(content)
        case "RandomState":
            return _random_state(content)
        case "ndarray" | "scalar" if isinstance(content, list):
            array = _array(content, value["dtype"], value["shape"])
            if kind == "ndarray":
                return array
            if array.ndim == 0 and array.dtype.kind != "O":
                return array[()]
    raise ValueError(f"{shortened(value)} is not a value that skdml stores")


def _array(values, dtype, shape):
    name, dtype = dtype, np.dtype(dtype if isinstance(dtype, str) else None)
    if dtype.str != name or not _has_form(dtype):
        raise ValueError(f"{shortened(name)} is not a type of array that skdml stores")
    if (
        not isinstance(shape, list)
        or any(type(n) is not int or n < 0 for n in shape)
        or math.prod(shape) != len(values)
    ):
        raise ValueError(f"an array of {len(values)} values has the shape {shortened(shape)}")
    if dtype.kind in "SU":
        kind, size = (bytes, 1) if dtype.kind == "S" else (str, 4)
        if not all(isinstance(item, kind) and size * len(item) <= dtype.itemsize for item in values):
            raise ValueError(f"an array of type {name} holds other values than strings of this length")
        if _is_padded(dtype, values):
            raise ValueError(f"an array of {len(values)} short strings has the type {name}")
    array = np.fromiter(values, np.int64 if dtype.kind in "mM" else dtype, len(values))
    return array.view(dtype).reshape(shape)


def _random_state(state):
    key, position = state["state"]["key"], state["state"]["pos"]
    # NumPy checks neither, and reads past the end of the key.
    if key.dtype != np.uint32 or key.shape != (624,) or type(position) is not int or not 0 <= position <= 624:
        raise ValueError("a random state must hold 624 numbers and a position among them")
    random = np.random.RandomState()
    random.set_state(state)
    return random


def shortened(value):
    """Return the text of a value for a message, of limited length."""
    return _shortening.repr(value)


def type_name(value):
    """Return the dotted name of a class or function, and of the class of any other value."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(type_name, value))}]"
    named = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    return f"{named.__module__}.{named.__qualname__}"
