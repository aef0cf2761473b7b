"""Values with tensors as one file, for the states of a training: no code in it, and recognized if it is not whole.

A file begins with a checksum, a number and the length of the JSON that follows; then come the tensors. The checksum is
written last.
"""

import json
import os
import struct
import uuid
import zlib
from collections import Counter, OrderedDict

import numpy as np
import torch

from .json import decode, encode

_PREFIX = struct.Struct("<QQQ")  # checksum, number, length of the JSON
_CONTAINERS = {"list": list, "tuple": tuple, "set": set}


def write_state(path, number, value):
    """Write the value to a file, in place if there is one: its pages are in memory, and to get new ones takes longer.

    Parameters
    ----------
    path : Path
    number : int
        States are found in the order of their numbers.
    value : object
        What `pack` takes.
    """
    tensors = []
    header = json.dumps(pack(value, tensors)).encode()
    header += b" " * (-len(header) % 8)
    total, length = 0, _PREFIX.size + len(header)
    with open(path, "r+b" if path.exists() else "xb") as file:
        file.write(_PREFIX.pack(0, number, len(header)))
        file.flush()  # it is not whole from here on
        file.write(header)
        for tensor in tensors:
            content = content_of(tensor)
            end = len(content) // 8 * 8
            tail = content[end:].tobytes()
            tail += b"\0" * (-len(tail) % 8)
            for part in (content[:end], np.frombuffer(tail, np.uint8)):
                total += _sum(part)
                file.write(part)
            length += end + len(tail)
        file.truncate()
        file.flush()
        file.seek(0)
        file.write(_PREFIX.pack(_checksum(header, total, length), number, len(header)))


def replace_state(path, number, value):
    """Write the value to a new file, which takes the place of the old one when the disk has it."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write_state(temporary, number, value)
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush(path):
    """Wait until the disk has the file."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def number_of(path):
    """Return the number of the state in a file, or -1 if there is none that was written to its end."""
    try:
        with open(path, "rb") as file:
            prefix = file.read(_PREFIX.size)
    except FileNotFoundError:
        return -1
    checksum, number, _ = _PREFIX.unpack(prefix) if len(prefix) == _PREFIX.size else (0, 0, 0)
    return number if checksum else -1


def is_whole(content):
    """Return whether the content of a file is what was written to it."""
    if len(content) < _PREFIX.size or len(content) % 8:
        return False
    checksum, _, length = _PREFIX.unpack_from(content)
    words = np.frombuffer(content, np.uint8)[_PREFIX.size :]
    header = words[:length].tobytes()
    return len(header) == length and checksum == _checksum(header, _sum(words[length:]), len(content))


def parse_state(content, device):
    """Return the value from the content of a file; tensors that were not on the CPU are put on the device."""
    start = _PREFIX.size + _PREFIX.unpack_from(content)[2]
    packed = json.loads(content[_PREFIX.size : start])
    place = start

    def take(n_bytes):
        nonlocal place
        taken = np.frombuffer(content, np.uint8, n_bytes, place)
        place += -(-n_bytes // 8) * 8
        return taken

    return unpack(packed, take, device)


def _sum(content):
    """Return the sum of the 64-bit words; a CRC-32 takes five times as long, longer than to write the file."""
    return int(content.view(np.uint64).sum(dtype=np.uint64))


def _checksum(header, total, length):
    return (zlib.crc32(header) * 2**32 + total % 2**64 + length) % (2**64 - 1) + 1  # 0: not whole


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
    """Return the value from `pack`; ``take(n)`` returns the next n bytes of the tensors."""
    if not isinstance(value, dict):
        return value
    content = value["value"]
    match value["__type__"]:
        case "tensor":
            name, shape, place = content
            tensor = torch.empty(shape, dtype=getattr(torch, name))
            content_of(tensor)[:] = take(tensor.nbytes)
            return tensor if place == "cpu" else tensor.to(device)
        case "array":
            array = np.empty(content[1], dtype=content[0])
            content_of(array)[:] = take(array.nbytes)
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
