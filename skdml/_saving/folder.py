"""A saved embedder: a folder of data without code."""

import inspect
import json
import math
import os
import warnings
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._ambient import neutral
from .._data.arrays import InputRecord
from .._data.images import Preprocessing
from .._network.random import seeded
from . import ensemble
from .card import model_card
from .exports import versions
from .files import FILES, FORMAT, read_folder, write_folder
from .json import decode, encode, shortened, type_name
from .modules import MODULES, build, changed, describe, freeze, frozen, not_finite

if TYPE_CHECKING:
    from .._engine.embedder import BaseEmbedder

# Each class adds its own, `_own_fitted`.
FITTED = {"_input", "history_", "n_iter_", "n_features_in_", "feature_names_in_", "_sklearn_output_config"}
OPTIONAL = {"feature_names_in_", "_sklearn_output_config"}
# Parameters that folders written before them lack: with its default, each is what those fits did.
LATER = {"checkpoint", "class_sample_rate", "nested_components"}
# What a value that no save has written may raise, where it is used.
MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Attributes that are written in another form or recomputed.
NOT_FITTED = {*MODULES, "_input", "_made_with", "_structure", "_skl_callbacks", "_metadata_request", "_is_clone"}


def save(embedder, path, measures, license):
    """Write the folder; see `BaseEmbedder.save`."""
    import skdml

    check_is_fitted(embedder)
    name = type(embedder).__name__
    if getattr(skdml, name, None) is not type(embedder):
        raise TypeError(
            f"{name} is not a class of skdml, so skdml.load could not find it. Save the embedder with pickle or joblib."
        )
    embedder._check_params()
    params, passed = {}, {}
    for key, value in portable(embedder.get_params(deep=False)).items():
        try:
            if key == "preprocessor" and value is not None:
                raise TypeError("it is code, or samples, which a model is shared without")
            params[key] = encode(value)
        except TypeError:
            passed[key] = type_name(value)
    fitted = {"_input": encode(vars(embedder._input))}
    for key, value in vars(embedder).items():
        if key in params or key in passed or key in NOT_FITTED:
            continue
        try:
            if key not in FITTED | embedder._own_fitted:
                raise TypeError("it is not an attribute that a fit sets")
            fitted[key] = encode(value)
        except TypeError as error:
            raise TypeError(f"{key} of the {name} cannot be saved: {error}. Remove it, or use pickle.") from None
    change = changed(embedder)
    if change:
        raise ValueError(
            f"{name} cannot be saved: {change}. The parameters cannot reproduce this. Fit again, or use pickle."
        )
    tensors = {key: _tensors(getattr(embedder, key), f"{key} of the {name}") for key in MODULES}
    for key, of_module in tensors.items():
        if broken := not_finite(getattr(embedder, key), of_module):
            raise ValueError(
                f"{name} cannot be saved: {broken} of {key} holds NaN or infinity. Fit again, or use pickle."
            )
    contents = {file: safetensors.torch.save(tensors[key]) for key, file in MODULES.items()}
    about = {
        "format": FORMAT,
        "embedder": name,
        "versions": versions(),
        "params": params,
        "passed": passed,
        "made_with": _made_with(embedder, params),
        "fitted": fitted,
        "frozen": frozen(embedder),
    }
    contents["params.json"] = json.dumps(about, indent=1, allow_nan=False).encode()
    card = model_card(embedder, {key: decode(value) for key, value in params.items()}, passed, measures, license)
    contents["README.md"] = card.encode(errors="backslashreplace")
    write_folder(Path(path).resolve(), contents)


def portable(params):
    """Return the parameters without the paths of this machine: no folders, and only the name of a file of weights."""
    params = {name: None if name in ("cache", "checkpoint") else value for name, value in params.items()}
    if isinstance(params.get("backbone_weights"), str | os.PathLike):
        params["backbone_weights"] = PureWindowsPath(params["backbone_weights"]).name  # with / and with \\
    return params


def _made_with(embedder, params):
    """Return, encoded, the parameters that had other values when the network and the loss were made."""
    made_with = {}
    for key, value in portable(embedder._made_with).items():
        if value is getattr(embedder, key) or key == "preprocessor":  # neither network nor loss is made with it
            continue
        try:
            encoded = encode(value)
        except TypeError:
            raise ValueError(
                f"{type(embedder).__name__} cannot be saved: its {key} was changed since the fit, and a file cannot "
                "hold the original. Restore it, fit again, or use pickle."
            ) from None
        if key not in params or encoded != params[key]:
            made_with[key] = encoded
    return made_with


def load(path, **params) -> "BaseEmbedder":
    """Load an embedder or ensemble that was written by its ``save`` method.

    No code from the file is run: the class is looked up in skdml, and the rest is JSON and safetensors. Nothing is
    allocated before the sizes in the JSON are compared with those of the tensors.

    Parameters
    ----------
    path : str or path-like
        The folder that ``save`` wrote.
    **params : object
        The parameters that a file cannot hold, by name, and only those: your own modules (``backbone``, ``loss``), as a
        module or as its class, which is then called without arguments; callbacks; functions. If one is missing, the
        error lists them. The weights come from the file.

    Returns
    -------
    embedder : object
        The fitted embedder. It transforms exactly as the saved one does, to the last bit on the same machine.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If path is not a saved embedder, a file is damaged, was changed or holds what no save writes, the format is
        newer than this skdml, or the parameters passed are not those that are needed, not valid, or make another
        network. The message names the file.

    Warns
    -----
    UserWarning
        If the embedder was saved with other versions of skdml, torch, scikit-learn or NumPy.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> import skdml
    >>> X, y = load_iris(return_X_y=True)
    >>> embedder = skdml.RAWEmbedder(max_epochs=1, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embedder.save(folder)
    ...     loaded = skdml.load(folder)
    >>> bool((loaded.transform(X) == embedder.transform(X)).all())
    True
    """
    path = Path(path)
    if (path / ensemble.FILE).is_file():
        return ensemble.load(path, params)
    contents = read_folder(path)
    about = contents["params.json"]
    file = path / "params.json"
    with _named(file, "was not written by an embedder's save"):
        cls = _find_class(about["embedder"], file)
        passed = _check_texts(about["passed"], "passed")
        saved_with = _check_texts(about["versions"], "versions")
        if saved_with.keys() != versions().keys():
            raise ValueError(f"it has the versions of {shortened(sorted(saved_with))}")
        stored, made_with, fitted = (
            {key: decode(value) for key, value in _check_dict(about[part], part).items()}
            for part in ("params", "made_with", "fitted")
        )
        _check_names(cls, stored, passed, made_with, file)
        fitted["_input"] = _check_fitted(fitted, FITTED | cls._own_fitted)
    _check_passed(path, cls, passed, params)
    _warn_of_versions(path, saved_with)
    tensors = {key: _read_tensors(contents.pop(name), path / name) for key, name in MODULES.items()}
    params = {key: _instance(key, value) for key, value in params.items()}
    with _named(file, "cannot be used"):
        embedder = cls(**portable(stored), **params)
        embedder._check_params()
        if embedder.device != "auto":
            torch.device(embedder.device)  # raises for what is not a device; one that is missing here is for later
        vars(embedder).update(fitted)
        embedder._made_with = embedder.get_params(deep=False) | portable(made_with)
        modules = build(embedder, tensors, {key: path / name for key, name in MODULES.items()})
        _check_frozen(about["frozen"], modules)
        for key, module in modules.items():
            if name := not_finite(module, tensors[key]):
                raise ValueError(f"{path / MODULES[key]} is damaged: {name} holds NaN or infinity.")
    embedder._structure = {key: describe(module) for key, module in modules.items()}
    for key, module in modules.items():
        freeze(module, about["frozen"][key])
    vars(embedder).update(modules)
    return embedder


@contextmanager
def _named(file, what):
    """Raise a ValueError that names the file for each error that its content causes."""
    try:
        yield
    except MALFORMED as error:
        text = str(error) if isinstance(error, ValueError) else repr(error)
        text = text if len(text) < 2000 else f"{text[:2000]}..."
        is_named = any(str(file.with_name(name)) in text for name in FILES)
        raise ValueError(text if is_named else f"{file} {what}: {text}") from error


def _find_class(name, file):
    import skdml

    cls = getattr(skdml, name) if isinstance(name, str) and name in skdml.__all__ else None
    if not (isinstance(cls, type) and hasattr(cls, "save")):
        raise ValueError(f"{file} names the embedder {shortened(name)}, which skdml {skdml.__version__} does not have.")
    return cls


def _check_dict(value, part):
    if not isinstance(value, dict) or "__type__" in value:
        raise ValueError(f"{part} is {shortened(value)}, not an object of names and values")
    return value


def _check_texts(value, part):
    if not all(isinstance(text, str) for text in _check_dict(value, part).values()):
        raise ValueError(f"{part} is {shortened(value)}, not an object of names and texts")
    return value


def _check_names(cls, stored, passed, made_with, file):
    names = inspect.signature(cls).parameters.keys()
    if unknown := (stored.keys() | passed.keys() | made_with.keys()) - names:
        raise ValueError(
            f"{file} holds parameters that {cls.__name__} does not have: {', '.join(sorted(unknown)):.200}."
        )
    if missing := names - LATER - stored.keys() - passed.keys():
        raise ValueError(f"it lacks parameters of {cls.__name__}: {', '.join(sorted(missing))}")
    if twice := stored.keys() & passed.keys():
        raise ValueError(f"it holds {', '.join(sorted(twice))} and says that a file cannot hold this")


def _check_fitted(fitted, allowed):
    """Return the `InputRecord`, if the fitted attributes are those that a fit can set."""
    if unknown := fitted.keys() - allowed:
        raise ValueError(f"{shortened(sorted(unknown))} are not fitted attributes")
    if missing := allowed - OPTIONAL - fitted.keys():
        raise ValueError(f"it lacks the fitted attributes {', '.join(sorted(missing))}")
    classes, threshold, history = fitted.get("classes_"), fitted.get("threshold_"), fitted["history_"]
    n_features, names = fitted["n_features_in_"], fitted.get("feature_names_in_")
    output = fitted.get("_sklearn_output_config", {})
    record = InputRecord(**fitted["_input"])
    is_right = {
        "_input": _is_record(record),
        "classes_": "classes_" not in allowed
        or (isinstance(classes, np.ndarray) and classes.ndim == 1 and len(classes) > 0),
        "threshold_": "threshold_" not in allowed or (type(threshold) is float and math.isfinite(threshold)),
        "history_": isinstance(history, list) and all(map(_is_epoch, history)),
        "n_iter_": type(fitted["n_iter_"]) is int and fitted["n_iter_"] == len(history),
        "n_features_in_": _is_size(n_features) and n_features == math.prod(record.shape),
        "feature_names_in_": names is None
        or (isinstance(names, np.ndarray) and names.shape == (n_features,) and all(isinstance(n, str) for n in names)),
        "_sklearn_output_config": output.keys() <= {"transform"}
        and all(output[key] in ("default", "pandas", "polars") for key in output),
    }
    for name, right in is_right.items():
        if not right:
            raise ValueError(f"{name} is {shortened(fitted[name])}, which no fit sets")
    return record


def _is_epoch(epoch):
    return isinstance(epoch, dict) and all(
        isinstance(epoch.get(name, 0), Real) for name in ("epoch", "loss", "duration", "validation_recall_at_1")
    )


def _is_record(record):
    shapes = record.shape, record.network_shape
    if not all(isinstance(shape, tuple) and shape and all(map(_is_size, shape)) for shape in shapes):
        return False
    if record.preprocessing is None:
        is_kind = record.kind == "arrays" or (record.kind == "vectors" and len(record.shape) == 1)
        return is_kind and record.shape == record.network_shape
    settings = Preprocessing(**record.preprocessing, augment=None, crop_scale=(), crop_ratio=())
    match record.kind, *record.shape:
        case "files", *_:
            size = record.network_shape
        case ("uint8 images", height, width, *channels) | ("arrays", *channels, height, width) if len(channels) < 2:
            size = (*(channels or [1]), *settings.output_size(height, width))
        case _:
            return False
    return (
        record.network_shape == size
        and len(size) == 3
        and all(length is None or _is_size(length) for length in (settings.resize, settings.crop_size))
        and all(isinstance(scale, tuple) and len(scale) in (1, size[0]) for scale in (settings.mean, settings.std))
        and np.isfinite(settings.mean).all()
        and np.isfinite(settings.std).all()
        and min(settings.std) > 0
    )


def _is_size(value):
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


def _check_frozen(frozen, modules):
    _check_dict(frozen, "frozen")
    for key, module in modules.items():
        names = {name for name, _ in module.named_parameters()}
        if frozen.keys() != modules.keys() or not isinstance(frozen[key], list) or not names.issuperset(frozen[key]):
            raise ValueError(f"frozen is {shortened(frozen)}, which are not parameters of the network and the loss")


def _read_tensors(content, file):
    with _named(file, "is not a safetensors file"):
        try:
            return safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error


def _check_passed(path, cls, passed, params):
    given = f"load({str(path)!r}, {', '.join(f'{key}=...' for key in passed)})"
    if missing := passed.keys() - params.keys():
        kinds = ", ".join(f"{key} (it was {passed[key]})" for key in sorted(missing))
        raise ValueError(f"{cls.__name__} in {path} needs parameters that a file cannot hold: {kinds}. Call {given}.")
    if superfluous := params.keys() - passed.keys():
        raise ValueError(
            f"{', '.join(sorted(superfluous))} must not be passed: {path} holds all parameters of the {cls.__name__}"
            f"{' except ' * bool(passed)}{', '.join(passed)}. Use set_params on the loaded embedder."
        )


def _warn_of_versions(path, saved_with):
    now = versions()
    changes = [f"{key} {old:.100} (now {now[key]})" for key, old in saved_with.items() if old != now[key]]
    if changes:
        warnings.warn(
            f"{path} was saved with {', '.join(changes)}: embeddings may differ from the original ones.", stacklevel=3
        )


@neutral()
def _instance(key, value):
    """Return the value, or an instance of it if it is a module class."""
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        return value
    with seeded(0, torch.device("cpu")):
        try:
            return value()
        except TypeError as error:
            raise TypeError(
                f"{key}={value.__name__} cannot be called without arguments: {error}. Pass a module."
            ) from error


def _tensors(module, owner):
    """Return the tensors of the module as safetensors needs them: contiguous and without shared memory."""
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise TypeError(f"{name} in {owner} cannot be saved: it is not a dense tensor. Use pickle.")
    return {k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in module.state_dict().items()}
