"""A saved ensemble: a folder with one saved embedder per fold, and a file that names the folds."""

import hashlib
import inspect
import json
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from sklearn.base import clone

from . import folder
from .card import ensemble_card
from .exports import versions
from .json import decode, encode, type_name

FORMAT = 1
FILE = "ensemble.json"
KEYS = {"format", "embedder", "folds", "n_folds", "params", "passed", "fitted", "sha256"}
FOLDS = re.compile("folds-[0-9a-f]{32}")
NAME = "FoldEnsembleEmbedder"
PARAMS = {"cv", "n_jobs"}  # the third one, the estimator, is in the folders of the folds
FITTED = {"_sklearn_output_config"}  # attributes that are not those of the estimators
OF_ESTIMATORS = {"estimator", "estimators_", "_n_features_out", "n_features_in_", "feature_names_in_"}


def save(ensemble, path, measures, license):
    """Write the folder; see `FoldEnsembleEmbedder.save`.

    The embedders are written to a new folder in it, and then the file that names this folder is replaced: at each
    moment it names a whole ensemble. Folders that it does not name, of an earlier ensemble or of a killed save, are
    removed.
    """
    for embedder in ensemble.estimators_:
        if not hasattr(embedder, "save"):
            raise TypeError(
                f"{NAME} cannot be saved: its {type(embedder).__name__} is not an embedder of skdml. Use pickle or "
                "joblib."
            )
    params, passed = {}, {}
    for key in sorted(PARAMS):
        value = getattr(ensemble, key)
        try:
            params[key] = _encode_splitter(value) if key == "cv" else encode(value)
        except TypeError:
            passed[key] = type_name(value)
    fitted = {key: value for key, value in vars(ensemble).items() if key not in PARAMS | OF_ESTIMATORS}
    if unknown := fitted.keys() - FITTED:
        raise TypeError(f"{sorted(unknown)[0]} of the {NAME} cannot be saved. Remove it, or use pickle.")
    about = {
        "format": FORMAT,
        "embedder": NAME,
        "n_folds": len(ensemble.estimators_),
        "params": params,
        "passed": passed,
        "fitted": encode(fitted),
    }
    card = ensemble_card(ensemble, passed, measures, license)
    path = Path(path).resolve()
    is_new = not path.exists()
    _check_folder(path)
    while not _write(ensemble, path, about, card, is_new):
        pass  # another save took the folder for that of a killed one
    current = _named(path)
    for entry in os.listdir(path):
        if FOLDS.fullmatch(entry) and entry != current:
            shutil.rmtree(path / entry, ignore_errors=True)


def _check_folder(path):
    if os.path.lexists(path) and not path.is_dir():
        raise FileExistsError(f"{path} is a file, but save writes a folder. Pass another path.")
    present = set(os.listdir(path)) if path.exists() else set()
    foreign = {name for name in present if not FOLDS.fullmatch(name)} - {FILE, "README.md"}
    if foreign or present == {"README.md"}:
        raise FileExistsError(
            f"{path} holds {sorted(foreign or present)}, but save replaces only a folder that holds nothing but a "
            "saved ensemble. Pass another path."
        )


def _write(ensemble, path, about, card, is_new):
    """Write a new folder of folds and let the file name it; return False if another save has removed it."""
    folds = path / f"folds-{uuid.uuid4().hex}"
    folds.mkdir(parents=True)
    try:
        for k, embedder in enumerate(ensemble.estimators_):
            embedder.save(folds / str(k))
        about = {**about, "folds": folds.name}
        about["sha256"] = _sum(path, about)
        (folds / FILE).write_text(json.dumps(about, indent=1, allow_nan=False), encoding="utf-8")
        (folds / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        for file in (FILE, "README.md"):
            (folds / file).replace(path / file)
        return True
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and not folds.exists():
            return False
        if _named(path) != folds.name:
            shutil.rmtree(folds, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # another save is in it
                    path.rmdir()
        raise


def _named(path):
    """Return the name of the folder of folds that the file names, or None."""
    try:
        return json.loads((path / FILE).read_bytes())["folds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sum(path, about):
    """Return the SHA-256 of what the file holds and of the sums of the folds."""
    total = hashlib.sha256(json.dumps({key: about[key] for key in KEYS - {"sha256"}}, sort_keys=True).encode())
    for k in range(about["n_folds"]):
        fold = path / about["folds"] / str(k)
        total.update(_read(fold / (FILE if (fold / FILE).exists() else "SHA256SUMS")))
    return total.hexdigest()


def load(path, params):
    """Return the ensemble of the folder; see `skdml.load`."""
    import skdml

    while True:
        about = _read_about(path)
        given = f"load({str(path)!r}, {', '.join(f'{key}=...' for key in about['passed'])})"
        if missing := about["passed"].keys() - params.keys():
            kinds = ", ".join(f"{key} (it was {about['passed'][key]})" for key in sorted(missing))
            raise ValueError(f"{NAME} in {path} needs parameters that a file cannot hold: {kinds}. Call {given}.")
        own = {key: value for key, value in params.items() if key in about["passed"]}
        others = {key: value for key, value in params.items() if key not in about["passed"]}
        try:
            if _sum(path, about) != about["sha256"]:
                raise ValueError(
                    f"{path / FILE} or a SHA256SUMS in its folders is damaged or was changed. Save the ensemble again, "
                    "or copy the folder again."
                )
            folds = [path / about["folds"] / str(k) for k in range(about["n_folds"])]
            estimators = [folder.load(fold, **others) for fold in folds]
            break
        except FileNotFoundError:
            if _named(path) == about["folds"]:
                raise
            # A save has replaced the ensemble in the meantime.
    try:
        own |= {
            key: _decode_splitter(value) if key == "cv" else decode(value) for key, value in about["params"].items()
        }
        ensemble = skdml.FoldEnsembleEmbedder(clone(estimators[0]), **own)
        ensemble._check_params()
        ensemble._set_estimators(estimators)
        for key, value in decode(about["fitted"]).items():
            if value not in ({}, *({"transform": kind} for kind in ("default", "pandas", "polars"))):
                raise ValueError(f"{key} is {value!r:.100}, which no set_output sets")
            setattr(ensemble, key, value)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path / FILE} was not written by a save of {NAME}: {error!r:.500}") from error
    return ensemble


def _read_about(path):
    """Return what the file holds, checked as far as its names go."""
    file = path / FILE
    try:
        about = json.loads(_read(file))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file} is damaged: it is not valid JSON: {error}") from error
    version = about.get("format") if isinstance(about, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"{file} was not written by a save of {NAME}: its format is {version!r:.100}, not 1 or more.")
    if version > FORMAT:
        raise ValueError(
            f"{file} has format {version:.3g}, but skdml {versions()['skdml']} reads formats up to {FORMAT}. Update "
            "skdml."
        )
    if about.keys() != KEYS:
        raise ValueError(f"{file} has the keys {sorted(about)!s:.500}, but needs {sorted(KEYS)}.")
    objects = [about[key] for key in ("params", "passed", "fitted")]
    if not (
        about["embedder"] == NAME
        and isinstance(about["folds"], str)
        and FOLDS.fullmatch(about["folds"])
        and type(about["n_folds"]) is int
        and about["n_folds"] > 0
        and all(isinstance(value, dict) for value in objects)
        and sorted([*about["params"], *about["passed"]]) == sorted(PARAMS)
        and about["fitted"].keys() <= FITTED
    ):
        raise ValueError(f"{file} was not written by a save of {NAME}.")
    return about


def _read(file):
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {file.parent} is not a complete saved ensemble.")
    return file.read_bytes()


def _encode_splitter(value):
    """Return the splitter as JSON: one of skdml by its name and parameters."""
    from .. import model_selection

    name = type(value).__name__
    if name not in model_selection.__all__ or type(value) is not getattr(model_selection, name):
        return encode(value)
    return {
        "splitter": name,
        "params": {key: encode(getattr(value, key)) for key in inspect.signature(type(value)).parameters},
    }


def _decode_splitter(value):
    from .. import model_selection

    if not (isinstance(value, dict) and "splitter" in value):
        return decode(value)
    if value["splitter"] not in ("ClassKFold", "ClassShuffleSplit"):
        raise ValueError(f"{value['splitter']!r:.100} is not a splitter of skdml")
    return getattr(model_selection, value["splitter"])(**decode(value["params"]))
