"""A saved embedder: a folder of data without code."""

import hashlib
import inspect
import json
import shutil
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._ambient import neutral
from .._data.arrays import InputRecord
from .._network.random import seeded
from . import ensemble
from .exports import model_card, versions
from .json import decode, encode, type_name
from .modules import MODULES, build, changed, describe, frozen, take_over

if TYPE_CHECKING:
    from .._engine.embedder import BaseEmbedder

FORMAT = 1
HASHED = ("params.json", *MODULES.values())
FILES = (*HASHED, "SHA256SUMS", "README.md")
KEYS = {"format", "embedder", "versions", "params", "passed", "made_with", "fitted", "frozen"}
# Attributes that are written in another form or recomputed.
NOT_FITTED = {*MODULES, "_input", "_made_with", "_structure", "_skl_callbacks", "_metadata_request"}


def save(embedder, path, measures):
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
    for key, value in embedder.get_params(deep=False).items():
        try:
            params[key] = encode(value)
        except TypeError:
            passed[key] = type_name(value)
    fitted = {"_input": encode(vars(embedder._input))}
    for key, value in vars(embedder).items():
        if key in params or key in passed or key in NOT_FITTED:
            continue
        try:
            fitted[key] = encode(value)
        except TypeError as error:
            raise TypeError(f"{key} of the {name} cannot be saved: {error}. Remove it, or use pickle.") from None
    change = changed(embedder)
    if change:
        raise ValueError(
            f"{name} cannot be saved: {change}. The parameters cannot reproduce this. Fit again, or use pickle."
        )
    contents = {
        file: safetensors.torch.save(_tensors(getattr(embedder, key), f"{key} of the {name}"))
        for key, file in MODULES.items()
    }
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
    sums = "".join(f"{_sha256(contents[file])}  {file}\n" for file in HASHED)  # what `sha256sum --check` reads
    contents |= {"SHA256SUMS": sums.encode(), "README.md": model_card(embedder, passed, measures).encode()}
    write_folder(Path(path).resolve(), contents)


def _made_with(embedder, params):
    """Return, encoded, the parameters that had other values when the network and the loss were made."""
    made_with = {}
    for key, value in embedder._made_with.items():
        if value is getattr(embedder, key):
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

    No code from the file is run: the class is looked up in skdml, and the rest is JSON and safetensors.

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
        If path is not a saved embedder, a file is damaged or was changed, the format is newer than this skdml, or the
        parameters passed are not those that are needed or make another network.

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
    import skdml

    path = Path(path)
    if (path / ensemble.FILE).is_file():
        return ensemble.load(path, params)
    contents = read_folder(path)
    about = contents["params.json"]
    name = about["embedder"]
    cls = getattr(skdml, name) if isinstance(name, str) and name in skdml.__all__ else None
    if not (isinstance(cls, type) and hasattr(cls, "save")):
        raise ValueError(
            f"{path / 'params.json'} names the embedder {name!r}, which skdml {skdml.__version__} does not have."
        )
    _check_passed(path, cls, about["passed"], params)
    _warn_of_versions(path, about["versions"])
    try:
        stored, made_with, fitted = (
            {key: decode(value) for key, value in about[part].items()} for part in ("params", "made_with", "fitted")
        )
        fitted["_input"] = InputRecord(**fitted["_input"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path / 'params.json'} was not written by an embedder's save: {error!r}") from error
    if unknown := (stored.keys() | made_with.keys()) - inspect.signature(cls).parameters.keys():
        raise ValueError(
            f"{path / 'params.json'} holds parameters that {name} does not have: {', '.join(sorted(unknown))}."
        )
    embedder = cls(**stored, **{key: _instance(key, value) for key, value in params.items()})
    embedder._check_params()
    vars(embedder).update(fitted)
    embedder._made_with = embedder.get_params(deep=False) | made_with
    modules = build(embedder)
    embedder._structure = {key: describe(module) for key, module in modules.items()}
    for key, file in MODULES.items():
        take_over(modules[key], contents[file], about["frozen"][key], path / file)
    vars(embedder).update(modules)
    return embedder


def read_folder(path):
    """Return the contents of the files: params.json as a dict, the others as dicts of tensors.

    Each file is read once, so that the contents returned are those that were hashed.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_dir():
        raise ValueError(
            f"{path} is a file, not a folder that an embedder's save wrote. Read a pickle with pickle or joblib."
        )
    params = _read(path / "params.json")
    try:
        about = json.loads(params)
    except ValueError as error:
        raise ValueError(f"{path / 'params.json'} is damaged: it is not valid JSON: {error}") from error
    version = about.get("format") if isinstance(about, dict) else None
    if type(version) is not int:
        raise ValueError(f"{path / 'params.json'} was not written by an embedder's save: it has no format.")
    if version > FORMAT:
        raise ValueError(
            f"{path / 'params.json'} has format {version}, but skdml {versions()['skdml']} reads formats up to "
            f"{FORMAT}. Update skdml."
        )
    sums = _read(path / "SHA256SUMS").decode(errors="replace").split()
    if len(sums) != 2 * len(HASHED) or sums[1::2] != list(HASHED):
        raise ValueError(f"{path / 'SHA256SUMS'} is damaged: it must hold the sums of {', '.join(HASHED)}.")
    contents = {"params.json": params, **{file: _read(path / file) for file in MODULES.values()}}
    for (file, content), digest in zip(contents.items(), sums[::2], strict=True):
        if _sha256(content) != digest:
            raise ValueError(
                f"{path / file} is damaged or was changed: its SHA-256 is not the one in SHA256SUMS. Save the embedder "
                "again, or copy the folder again."
            )
    if about.keys() != KEYS:
        raise ValueError(f"{path / 'params.json'} has the keys {sorted(about)}, but needs {sorted(KEYS)}.")
    for file in MODULES.values():
        try:
            contents[file] = safetensors.torch.load(contents[file])
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path / file} is not a safetensors file: {error}") from error
    return contents | {"params.json": about}


def write_folder(path, contents):
    """Write the files to a new folder and move them to the path: all of them or none.

    An existing folder is kept, as it may be the working directory or a mount point, and its files are replaced; a
    process that reads it in the meantime notices by the checksums.

    Raises
    ------
    FileExistsError
        If the path is a file, or a folder that holds anything but a saved embedder.
    """
    if path.is_file():
        raise FileExistsError(f"{path} is a file, but save writes a folder. Pass another path.")
    present = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if present and not {"params.json", "SHA256SUMS"} <= present <= set(FILES):
        raise FileExistsError(
            f"{path} holds {sorted(present - set(FILES)) or sorted(present)}, but save replaces only a folder that "
            "holds nothing but a saved embedder. Pass another path."
        )
    name = f".{path.name}.{uuid.uuid4().hex}"
    new = path / name if path.exists() else path.with_name(name)
    new.mkdir(parents=True)
    try:
        for file, content in contents.items():
            (new / file).write_bytes(content)
        if new.parent == path:
            old = new / "old"
            old.mkdir()
            _move([(path / file, old / file) for file in present] + [(new / file, path / file) for file in contents])
        else:
            new.rename(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if new.exists():
        shutil.rmtree(new)


def _move(moves):
    """Rename the pairs (source, target) in this order, all or none of them."""
    try:
        for source, target in moves:
            source.rename(target)
    except BaseException:
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


def _read(file):
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {file.parent} is not a complete saved embedder.")
    return file.read_bytes()


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


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
    changes = [f"{key} {old} (now {now.get(key)})" for key, old in saved_with.items() if old != now.get(key)]
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
