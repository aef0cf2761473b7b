"""The files of a saved embedder: written all or none, read whole."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from contextlib import suppress

from .exports import versions
from .json import shortened
from .modules import MODULES

FORMAT = 1
HASHED = ("params.json", *MODULES.values())
FILES = (*HASHED, "SHA256SUMS", "README.md")
KEYS = {"format", "embedder", "versions", "params", "passed", "made_with", "fitted", "frozen"}  # of params.json
NEW = "unfinished-save"  # a folder in the folder: a whole embedder whose files are being moved into place
TEMPORARY = re.compile(rf"\.{NEW}-[0-9a-f]{{32}}")  # what is being written, or was when the process was killed


def read_folder(path):
    """Return the contents of the files: params.json as a dict, the others as bytes.

    Each file is read once, so that the contents returned are those that were hashed. If they do not agree, they are
    read again: a save may have come between.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_dir():
        raise ValueError(
            f"{path} is a file, not a folder that an embedder's save wrote. Read a pickle with pickle or joblib."
        )
    contents = None
    while True:
        before, contents = contents, {"params.json": _read(path, "params.json")}
        about = _parse(contents["params.json"], path / "params.json")
        contents |= {file: _read(path, file) for file in ("SHA256SUMS", *MODULES.values())}
        damage = _find_damage(contents, path)
        if damage is None:
            break
        if contents == before:
            raise ValueError(damage)
    if about.keys() != KEYS:
        raise ValueError(f"{path / 'params.json'} has the keys {sorted(about)}, but needs {sorted(KEYS)}.")
    return contents | {"params.json": about}


def _read(path, name):
    for file in (path / NEW / name, path / name):  # a file may be moved from there to here in the meantime
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{file} is damaged: it is not a regular file.")
            return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except MemoryError as error:
            raise ValueError(f"{file} is damaged: its {status.st_size} bytes do not fit into the memory.") from error
    raise FileNotFoundError(f"{path / name} is missing: {path} is not a complete saved embedder.")


def _parse(content, file):
    """Return what params.json holds, of a format that this version reads."""
    try:
        about = json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file} is damaged: it is not valid JSON: {error}") from error
    version = about.get("format") if isinstance(about, dict) else None
    if type(version) is not int:
        raise ValueError(f"{file} was not written by an embedder's save: it has no format.")
    if not 1 <= version <= FORMAT:
        raise ValueError(
            f"{file} has format {shortened(version)}, but skdml {versions()['skdml']} reads formats up to {FORMAT}. "
            f"{'Update skdml' if version > FORMAT else 'Formats start at 1: save the embedder again'}."
        )
    return about


def _unique(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shortened(next(name for name in names if names.count(name) > 1))} appears twice")
    return value


def _no_constant(name):
    raise ValueError(f"{name} is not a number of JSON")


def _find_damage(contents, path):
    """Return which file does not have the sum that SHA256SUMS gives, in a sentence, or None."""
    sums = contents["SHA256SUMS"].decode(errors="replace").split()
    if len(sums) != 2 * len(HASHED) or sums[1::2] != list(HASHED):
        return f"{path / 'SHA256SUMS'} is damaged: it must hold the sums of {', '.join(HASHED)}."
    for file, digest in zip(HASHED, sums[::2], strict=True):
        if _sha256(contents[file]) != digest:
            return (
                f"{path / file} is damaged or was changed: its SHA-256 is not the one in SHA256SUMS. Save the embedder "
                "again, or copy the folder again."
            )
    return None


def write_folder(path, contents):
    """Write the files and their sums, all or none of them, wherever the process may be killed.

    They are written to a folder inside the path, which is then renamed to ``unfinished-save``: from this moment on, the
    new embedder is the saved one. Then its files are moved into place. A reader looks there first, and the next save
    moves what a killed one left there. Several saves at once need no lock: each of them renames a whole embedder, and
    any of them may move its files.

    An existing folder is kept, as it may be the working directory or a mount point.

    Raises
    ------
    FileExistsError
        If the path is a file, or a folder that holds anything but a saved embedder.
    """
    sums = "".join(f"{_sha256(contents[file])}  {file}\n" for file in HASHED)  # what `sha256sum --check` reads
    contents = {**contents, "SHA256SUMS": sums.encode()}
    is_new = not path.exists()
    for name in _check_folder(path):
        # Renamed before it is removed: a save that is still at work finds it whole or not at all.
        taken = path / _temporary_name()
        with suppress(FileNotFoundError):
            (path / name).rename(taken)
            shutil.rmtree(taken, ignore_errors=True)
    try:
        while not _write_new(path, contents):
            pass  # another save took the files for those of a killed one
        _move_into_place(path)
    except BaseException:
        if is_new:
            with suppress(OSError):  # it is not empty, if the new embedder or another save is in it
                path.rmdir()
        raise


def _check_folder(path):
    """Return what killed saves left in the folder, which may be missing, if `save` may write to it."""
    if os.path.lexists(path) and not path.is_dir():
        raise FileExistsError(f"{path} is a file, but save writes a folder. Pass another path.")
    # In this order, so that a file that is being moved is seen.
    is_foreign = (path / NEW).is_symlink() or (path / NEW).is_file()
    moving = set() if is_foreign else _names(path / NEW)
    names = _names(path)
    is_moving = NEW in names and not is_foreign
    left = {name for name in names if TEMPORARY.fullmatch(name)}
    present = (names - left - {NEW} if is_moving else names - left) | moving
    needed = set() if is_moving else {"params.json", "SHA256SUMS"}
    if present and not needed <= present <= set(FILES):
        raise FileExistsError(
            f"{path} holds {sorted(present - set(FILES)) or sorted(present)}, but save replaces only a folder that "
            "holds nothing but a saved embedder. Pass another path."
        )
    return left


def _names(path):
    try:
        return set(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _temporary_name():
    return f".{NEW}-{uuid.uuid4().hex}"


def _write_new(path, contents):
    """Write the files to a folder and rename it to ``unfinished-save``; return False if another save has removed it."""
    folder = path / _temporary_name()
    folder.mkdir(parents=True)
    try:
        for file, content in contents.items():
            with open(folder / file, "xb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
        while True:
            try:
                folder.rename(path / NEW)
                return True
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                _move_into_place(path)  # what another save has not moved yet
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            return False
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _move_into_place(path):
    """Move the files of ``unfinished-save`` to where they belong, unless another save does."""
    for file in FILES:
        with suppress(FileNotFoundError):
            (path / NEW / file).replace(path / file)
    try:
        (path / NEW).rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # the next embedder is there, whose save moves it
            raise


def _sha256(content):
    return hashlib.sha256(content).hexdigest()
