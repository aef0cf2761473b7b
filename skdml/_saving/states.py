"""Values with tensors as one safetensors file, for the states of a training: no code in it, and whole or not there."""

import json
import os
import uuid
from collections import Counter, OrderedDict

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .json import decode, encode

_CONTAINERS = {"list": list, "tuple": tuple, "set": set}


def write_state(path, value):
    """Write the value to a new file, which takes the place of the old one when the disk has it."""
    tensors = []
    packed = json.dumps(pack(value, tensors)).encode()
    contents = {str(number): content_of(tensor) for number, tensor in enumerate(tensors)}
    contents["json"] = np.frombuffer(packed, np.uint8)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(save(contents))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_state(path, device):
    """Return the value that `write_state` got, with tensors that were not on the CPU on the device, or None.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        contents = load(path.read_bytes())
        packed = json.loads(contents.pop("json").tobytes())
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}. Delete it to train anew.") from error
    numbers = iter(range(len(contents)))
    return unpack(packed, lambda: contents[str(next(numbers))], device)


def pack(value, tensors):
    """Return the value in a form that JSON can hold; tensors and arrays of numbers are appended to ``tensors``.

    Raises
    ------
    TypeError
        If the value is neither data nor made of it: a module, an open file, a parameter of a network.
    """
    kind = type(value)
    if kind is torch.Tensor and value.layout == torch.strided and not value.is_quantized:
        tensors.append(value)
        return _tagged("tensor", [str(value.dtype).removeprefix("torch."), list(value.shape), _place(value)])
    if kind is np.ndarray and value.dtype.kind in "biufc" and value.dtype.isnative:
        tensors.append(value)
        return _tagged("array", [value.dtype.str, list(value.shape)])
    if kind is torch.Generator:
        return _tagged("generator", [_place(value), pack(value.get_state(), tensors)])
    if kind in (dict, OrderedDict, Counter):
        pairs = [[pack(key, tensors), pack(item, tensors)] for key, item in value.items()]
        return _tagged("Counter" if kind is Counter else "dict", pairs)
    if kind.__name__ in _CONTAINERS and kind is _CONTAINERS[kind.__name__]:
        return _tagged(kind.__name__, [pack(item, tensors) for item in value])
    return encode(value)


def _tagged(kind, value):
    return {"__type__": kind, "value": value}


def _place(value):
    return "cpu" if value.device.type == "cpu" else "device"


def can_pack(value):
    """Return whether `pack` takes the value."""
    try:
        pack(value, [])
    except TypeError:
        return False
    return True


def unpack(value, take, device):
    """Return the value from `pack`; ``take()`` returns the bytes of the next tensor."""
    if not isinstance(value, dict):
        return value
    content = value["value"]
    match value["__type__"]:
        case "tensor":
            name, shape, place = content
            tensor = torch.empty(shape, dtype=getattr(torch, name))
            content_of(tensor)[:] = take()
            return tensor if place == "cpu" else tensor.to(device)
        case "array":
            array = np.empty(content[1], dtype=content[0])
            content_of(array)[:] = take()
            return array
        case "generator":
            place, state = content
            return torch.Generator("cpu" if place == "cpu" else device).set_state(unpack(state, take, device))
        case "dict" | "Counter" as kind:
            pairs = {unpack(key, take, device): unpack(item, take, device) for key, item in content}
            return pairs if kind == "dict" else Counter(pairs)  # the milestones of torch's MultiStepLR
        case "list" | "tuple" | "set" as kind:
            return _CONTAINERS[kind](unpack(item, take, device) for item in content)
    return decode(value)


def content_of(tensor):
    """Return the bytes of a tensor or array as a uint8 array, without a copy if it is contiguous and on the CPU."""
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
