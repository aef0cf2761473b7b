"""Texts by which fits are compared: those of processes that train together, and one that was cut off with the next."""

import functools
import hashlib
import inspect
import os
from numbers import Real

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn.parameter import is_lazy

from .._data.arrays import Files
from .._saving.json import type_name
from .._saving.states import content_of

WITHOUT_INFLUENCE = {"cache", "checkpoint", "device", "n_jobs", "verbose"}  # parameters that do not change the result
OF_MODULES = vars(nn.Module()).keys()


def text_of(value):
    """Return a text by which to compare a value: the value itself if it is short, otherwise what and how long it is.

    Code is compared only by name, such as that of a function.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, Real | str):
        return repr(value)
    if isinstance(value, os.PathLike | torch.device):
        return repr(str(value))
    if isinstance(value, list | tuple):
        return f"({', '.join(map(text_of, value))})"
    if isinstance(value, np.random.RandomState):
        _, key, *others = value.get_state()
        return f"a RandomState in the state {digest(key, repr(others))}"
    if isinstance(value, nn.Module):
        return f"{type_name(value)} {digest_of_module(value)}"
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)} {digest(value)}"
    if isinstance(value, functools.partial):
        return f"partial{text_of([value.func, value.args, list(value.keywords.items())])}"
    if isinstance(value, type) or inspect.isroutine(value) or not hasattr(value, "__dict__"):
        return type_name(value)
    return f"{type_name(value)}({', '.join(f'{name}={text}' for name, text in _settings(value).items())})"


def _settings(thing):
    """Return the texts of an object's attributes that are numbers, strings or tuples of these."""
    return {
        name: text_of(value)
        for name, value in vars(thing).items()
        if name[-1] != "_" and name not in OF_MODULES and _is_setting(value)
    }


def _is_setting(value):
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, Real | str | os.PathLike)


def text_of_data(data):
    """Return a text by which to compare X: files are compared by paths, sizes and times of the last change."""
    if isinstance(data, Files):
        paths = [os.path.abspath(path) for path in data.files.paths]
        states = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)]
        return f"{len(paths)} files {digest(repr(paths), repr(states))}"
    if sparse.issparse(data.X):
        return f"sparse of shape {data.X.shape} {digest(data.X.data, data.X.indices, data.X.indptr)}"
    return text_of(data.X)


def digest_of_module(module):
    parts = [f"{name} {type_name(part)} {sorted(_settings(part).items())}" for name, part in module.named_modules()]
    parts += [f"{name} {parameter.requires_grad}" for name, parameter in module.named_parameters()]
    for name, value in module.state_dict().items():
        parts.append(name)
        parts.append(value if isinstance(value, torch.Tensor) and not is_lazy(value) else type_name(value))
    return digest(*parts)


def digest(*values):
    """Return the first digits of the SHA-256 of texts, arrays and tensors."""
    sha256 = hashlib.sha256()
    for value in values:
        if isinstance(value, str):
            sha256.update(f"{len(value)} {value}".encode(errors="surrogatepass"))
        else:
            sha256.update(f"{value.dtype} {tuple(value.shape)}".encode())
            sha256.update(content_of(value))
    return sha256.hexdigest()[:32]
