"""Saving: a folder of data without code, and the state that pickle, joblib and skops keep.

The parameters make the network and the loss again, so weights are all that is kept of these.
"""

import copy
import hashlib
import inspect
import json
import re
import shutil
import uuid
import warnings
from numbers import Real
from pathlib import Path

import numpy as np
import safetensors.torch
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._data.arrays import expected
from .._network.backbones import load_backbone
from .._network.random import seeded
from .json import decode, encode, type_name

FORMAT = 1
MODULES = {"network_": "network.safetensors", "criterion_": "criterion.safetensors"}
HASHED = ("params.json", *MODULES.values())
FILES = (*HASHED, "SHA256SUMS", "README.md")
KEYS = {"format", "embedder", "versions", "params", "passed", "fitted", "frozen"}


# ---- the folder


def save(embedder, path, measures):
    """Write the folder; see `BaseEmbedder.save`."""
    import skdml

    check_is_fitted(embedder)
    name = type(embedder).__name__
    if getattr(skdml, name, None) is not type(embedder):
        raise TypeError(
            f"{name} is a class of your own, which skdml.load could not find. Keep the embedder with pickle or joblib."
        )
    params, passed = {}, {}
    for key, value in embedder.get_params(deep=False).items():
        try:
            params[key] = encode(value)
        except TypeError:
            passed[key] = type_name(value)
    fitted = {}
    for key, value in vars(embedder).items():
        if key in params or key in passed or key in MODULES or key == "_skl_callbacks":
            continue
        try:
            fitted[key] = encode(value)
        except TypeError as error:
            raise TypeError(f"{key} of the {name} cannot be saved: {error}. Take it out, or use pickle.") from None
    change = changed(embedder)
    if change:
        raise ValueError(
            f"{name} cannot be saved: {change}. Put the parameters back to those of the fit, fit again, or use pickle."
        )
    contents = {
        file: safetensors.torch.save(_tensors(getattr(embedder, key), f"{key} of the {name}"))
        for key, file in MODULES.items()
    }
    about = {
        "format": FORMAT,
        "embedder": name,
        "versions": _versions(),
        "params": params,
        "passed": passed,
        "fitted": fitted,
        "frozen": frozen(embedder),
    }
    contents["params.json"] = json.dumps(about, indent=1, allow_nan=False).encode()
    sums = "".join(f"{_sha256(contents[file])}  {file}\n" for file in HASHED)  # what `sha256sum --check` reads
    contents |= {"SHA256SUMS": sums.encode(), "README.md": model_card(embedder, passed, measures).encode()}
    write_folder(Path(path).resolve(), contents)


def load(path, **params):
    """Load an embedder that was written by its ``save``.

    No code from the file is run: the class is looked up in skdml, and the rest is JSON and safetensors.

    Parameters
    ----------
    path : str or path-like
        The folder.
    **params : object
        The parameters that a file cannot hold, under their names, and only those: modules of one's own (``backbone``,
        ``loss``), as a module or as its class, which is then called without arguments; callbacks; functions. The
        error for a missing one lists them. The weights come from the file.

    Returns
    -------
    embedder : object
        The fitted embedder; it transforms as the saved one does, to the last bit on the same machine.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If path is no saved embedder, a file is damaged or changed, the format is newer than this skdml, or the
        parameters passed are not those that are needed, or make another network.

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
    contents = read_folder(path)
    about = contents["params.json"]
    name = about["embedder"]
    cls = getattr(skdml, name) if isinstance(name, str) and name in skdml.__all__ else None
    if not (isinstance(cls, type) and hasattr(cls, "save")):
        raise ValueError(
            f"{path / 'params.json'} names the embedder {name!r}, which skdml {skdml.__version__} has not."
        )
    _check_passed(path, cls, about["passed"], params)
    _warn_of_versions(path, about["versions"])
    try:
        stored, fitted = ({key: decode(value) for key, value in about[part].items()} for part in ("params", "fitted"))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path / 'params.json'} was not written by an embedder's save: {error!r}") from error
    if unknown := stored.keys() - inspect.signature(cls).parameters.keys():
        raise ValueError(f"{path / 'params.json'} holds parameters that {name} has not: {', '.join(sorted(unknown))}.")
    embedder = cls(**stored, **{key: _instance(key, value) for key, value in params.items()})
    embedder._check_params()
    vars(embedder).update(fitted)
    modules = build(embedder)
    for key, file in MODULES.items():
        take_over(modules[key], contents[file], about["frozen"][key], path / file)
    vars(embedder).update(modules)
    return embedder


def read_folder(path):
    """Return the contents of the files: params.json as a dict, the others as dicts of tensors.

    What is returned is what was hashed.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_dir():
        raise ValueError(
            f"{path} is a file, and no folder that an embedder's save wrote. Read a pickle with pickle or joblib."
        )
    params = _read(path / "params.json")
    try:
        about = json.loads(params)
    except ValueError as error:
        raise ValueError(f"{path / 'params.json'} is damaged, it is no JSON: {error}") from error
    version = about.get("format") if isinstance(about, dict) else None
    if type(version) is not int:
        raise ValueError(f"{path / 'params.json'} was not written by an embedder's save: it has no format.")
    if version > FORMAT:
        raise ValueError(
            f"{path / 'params.json'} has format {version}, and this skdml {_versions()['skdml']} reads formats up to "
            f"{FORMAT}: update skdml."
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
        raise ValueError(f"{path / 'params.json'} has the keys {sorted(about)}; needed are {sorted(KEYS)}.")
    for file in MODULES.values():
        try:
            contents[file] = safetensors.torch.load(contents[file])
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path / file} is no safetensors file: {error}") from error
    return contents | {"params.json": about}


def write_folder(path, contents):
    """Write the files to a new folder and move them to the path: all of them or none.

    A folder that is there stays, as it may be the working directory or a mounted one, and its files are exchanged: the
    sums tell whoever reads it meanwhile.

    Raises
    ------
    FileExistsError
        If the path is a file, or a folder that is neither empty nor a saved embedder alone.
    """
    if path.is_file():
        raise FileExistsError(f"{path} is a file; save writes a folder. Give another path.")
    present = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if present and not {"params.json", "SHA256SUMS"} <= present <= set(FILES):
        raise FileExistsError(
            f"{path} holds {sorted(present - set(FILES)) or sorted(present)}; only a saved embedder alone is replaced. "
            "Give another path."
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
    """Rename the pairs (from, to) in this order, or none of them."""
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
        raise FileNotFoundError(f"{file} is missing: {file.parent} is no saved embedder, or not all of it.")
    return file.read_bytes()


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _check_passed(path, cls, passed, params):
    given = f"load({str(path)!r}, {', '.join(f'{key}=...' for key in passed)})"
    if missing := passed.keys() - params.keys():
        kinds = ", ".join(f"{key} (it was {passed[key]})" for key in sorted(missing))
        raise ValueError(f"{cls.__name__} in {path} needs what a file cannot hold: {kinds}. Pass it: {given}.")
    if superfluous := params.keys() - passed.keys():
        raise ValueError(
            f"{', '.join(sorted(superfluous))} must not be passed: {path} holds all parameters of the {cls.__name__}"
            f"{' but ' * bool(passed)}{', '.join(passed)}. Use set_params on the loaded embedder."
        )


def _warn_of_versions(path, versions):
    now = _versions()
    changes = [f"{key} {old} (now {now.get(key)})" for key, old in versions.items() if old != now.get(key)]
    if changes:
        warnings.warn(
            f"{path} was saved with {', '.join(changes)}: embeddings may differ from those of then.", stacklevel=3
        )


def _versions():
    import skdml

    packages = {"skdml": skdml, "torch": torch, "scikit-learn": sklearn, "numpy": np}
    return {name: package.__version__.split("+")[0] for name, package in packages.items()}  # without torch's "+cu126"


def _instance(key, value):
    """Return what was passed, called if it is the class of a module."""
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        return value
    with seeded(0, torch.device("cpu")):
        try:
            return value()
        except TypeError as error:
            raise TypeError(
                f"{key}={value.__name__} cannot be called without arguments: {error}. Pass a module."
            ) from error


# ---- network and loss


def network_input(embedder):
    """Return two rows as the fitted network gets them."""
    seen = embedder._input
    return torch.zeros(2, *seen.get("network_shape", seen["shape"]))


def build(embedder):
    """Return ``network_`` and ``criterion_`` as the parameters make them, in eval mode, with other weights."""
    cpu = torch.device("cpu")
    backbone = embedder.backbone
    if isinstance(backbone, str):
        backbone, _ = load_backbone(backbone, None, embedder.pooling)
    # The default networks hold nothing that is not saved, so they need no first weights.
    device = torch.device("meta") if backbone is None else cpu
    with seeded(0, cpu):
        with device:
            network = embedder._make_network(backbone, network_input(embedder).to(device))
        criterion = embedder._make_loss(len(embedder.classes_), network)
    if device != cpu:
        network.to_empty(device=cpu)
    if embedder.freeze == "batchnorm":
        network.freeze_batchnorm()
    return {"network_": network.eval(), "criterion_": criterion.eval()}


def changed(embedder):
    """Return what keeps the parameters from making the fitted network and loss again, or None.

    Parameters may have been set since the fit, modules exchanged by hand.
    """
    try:
        embedder._check_params()
        modules = build(embedder)
    except (TypeError, ValueError) as error:
        return f"its parameters make no network: {error}"
    for key, made in modules.items():
        fitted = getattr(embedder, key)
        difference = tensors_differ(made, fitted.state_dict()) or _attributes_differ(made, fitted)
        if difference:
            return f"{key} is not what the parameters make: {difference}"
    return None


def tensors_differ(module, tensors):
    """Return how the names, shapes and types of tensors differ from those of the module, or None."""
    made = module.state_dict()
    if differing := sorted(made.keys() ^ tensors.keys()):
        return f"{differing[0]} is {'missing' if differing[0] in made else 'one too many'}"
    for name, tensor in made.items():
        want, got = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (tensor, tensors[name]))
        if want != got:
            return f"{name} is {got}, not {want}"
    return None


def _attributes_differ(made, fitted):
    """Compare the modules, and what those of skdml hold beside tensors: margins, sizes, rules."""
    made, fitted = (dict(module.named_modules()) for module in (made, fitted))
    if extra := made.keys() ^ fitted.keys():
        return f"one alone has {', '.join(sorted(extra))}"
    for name, module in made.items():
        if type_name(module) != type_name(fitted[name]):
            return f"{name or 'it'} is a {type_name(fitted[name])}, not a {type_name(module)}"
        for key, value in vars(module).items() if type_name(module).startswith("skdml.") else ():
            other = vars(fitted[name]).get(key)
            if key[0] != "_" and other is not value and (type(other), repr(other)) != (type(value), repr(value)):
                return f"{key} is {other!r}, not {value!r}"
    return None


def frozen(embedder):
    """Return the names of the parameters that do not train, for each module."""
    return {
        key: [name for name, p in getattr(embedder, key).named_parameters() if not p.requires_grad] for key in MODULES
    }


def take_over(module, tensors, frozen_names, source):
    """Put the tensors into the module.

    Raises
    ------
    ValueError
        If names, shapes or types are not those of the module; ``source`` says whose tensors they are.
    """
    difference = tensors_differ(module, tensors)
    if difference:
        raise ValueError(
            f"{source} does not fit the module that the parameters make: {difference}. A backbone or loss that is "
            "passed must be built like the saved one."
        )
    module.load_state_dict(tensors)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen_names)


def _tensors(module, owner):
    """Return the tensors of the module as safetensors takes them: none shares memory, all are contiguous."""
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise TypeError(f"{name} in {owner} cannot be saved: it is no dense tensor. Use pickle.")
    return {k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in module.state_dict().items()}


# ---- pickle, joblib, skops


def compact_state(embedder, state):
    """Return the state with arrays in place of network and loss, if the parameters make these again.

    Arrays are what skops can store, and pickles of them outlive changes inside torch. Modules and classes of one's own
    are pickled as they are, and so is what the parameters no longer make.
    """
    is_own = not type(embedder).__module__.startswith("skdml.") or any(
        isinstance(value, nn.Module) or (name == "backbone" and value is not None)
        for name, value in embedder.get_params(deep=False).items()
    )
    if not MODULES.keys() <= state.keys() or is_own or any(frozen(embedder).values()) or changed(embedder):
        return state
    weights = {key: {name: tensor.cpu().numpy() for name, tensor in state[key].state_dict().items()} for key in MODULES}
    return {**{key: value for key, value in state.items() if key not in MODULES}, "_weights": weights}


def restore_state(embedder, state):
    """Put a state of `compact_state` into the embedder."""
    vars(embedder).update({key: value for key, value in state.items() if key != "_weights"})
    if "_weights" not in state:
        return
    modules = build(embedder)
    for key, weights in state["_weights"].items():
        take_over(
            modules[key], {name: torch.tensor(array) for name, array in weights.items()}, [], f"The state of {key}"
        )
    vars(embedder).update(modules)


# ---- exports and the model card


def to_onnx(embedder, path):
    """Write the ONNX file; see `BaseEmbedder.to_onnx`."""
    check_is_fitted(embedder)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("to_onnx needs onnx and onnxscript: pip install 'skdml[onnx]'.") from error
    network = copy.deepcopy(embedder.network_)
    network.precision = "float32"  # runtimes have no layers in bfloat16
    program = torch.onnx.export(
        network,
        (network_input(embedder),),
        dynamo=True,
        input_names=["X"],
        output_names=["embeddings"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        verbose=False,
    )
    program.save(path)


def model_card(embedder, passed, measures):
    """Return the README.md of a saved embedder."""
    measures = dict(measures or {})
    for name, value in measures.items():
        if not isinstance(value, Real):
            raise TypeError(f"measures must map names to numbers; got {value!r} for {name!r}.")
    recalls = [epoch["validation_recall_at_1"] for epoch in embedder.history_ if "validation_recall_at_1" in epoch]
    if recalls:
        measures = {"Recall@1 of the held-out part of the training data, best epoch": max(recalls), **measures}
    name = type(embedder).__name__
    doc = re.sub(r"\]_", "]", inspect.getdoc(type(embedder)) or "")
    papers = re.search(r"^References\n-+\n(.*?)\n\n", doc + "\n\n", flags=re.MULTILINE | re.DOTALL)
    n_classes = len(embedder.classes_)
    labels = ", ".join([*map(str, embedder.classes_[:10]), *["..."] * (n_classes > 10)])
    length = "of unit length" if embedder.normalize else "of any length"
    lines = [
        f"# {name}",
        "",
        doc.partition("\n")[0],
        "",
        f"- Data: {expected(embedder)}",
        f"- Embeddings: {embedder._n_features_out} components, {length}.",
        f"- Training: {n_classes} classes ({labels}), {embedder.n_iter_} epochs.",
        f"- Versions: {', '.join(f'{package} {version}' for package, version in _versions().items())}.",
        "",
        "```python",
        "import skdml",
        "",
        f"embedder = skdml.load({', '.join(['path', *(f'{key}=...' for key in passed)])})",
        "Z = embedder.transform(X)",
        "```",
        *(["", "## Measures", ""] if measures else []),
        *(f"- {measure}: {value:.4g}" for measure, value in measures.items()),
        "",
        "## Parameters",
        "",
        "All others have their defaults.",
        "",
        "```python",
        repr(embedder),
        "```",
        *(["", "## Paper", "", re.sub(r"^\.\. ", "- ", papers[1], flags=re.MULTILINE)] if papers else []),
    ]
    return "\n".join(lines) + "\n"
