"""A folder that caches the decoded images of files."""

import os
import struct
import zlib
from hashlib import blake2b
from pathlib import Path

import numpy as np

_VERSION = 1  # to be raised when the decoding of a file gives other pixels
_HEADER = struct.Struct("<16s2I4xI")  # state of the file, height, width, checksum; then come the pixels


class Cache:
    """Decoded images, one file each, looked up by path and ``resize``.

    An entry holds a checksum, and what does not agree with it is taken for absent and written anew: pixels that have
    changed, an image that was cut off by a crash, or one that another process is just writing. Processes can therefore
    share a folder without locks: they write the same bytes to the same file.

    Parameters
    ----------
    folder : str or os.PathLike
        Created if it does not exist.
    paths : list of str
        Files are identified by row, their index in this list.
    resize : int or None

    Raises
    ------
    ValueError
        If ``folder`` is not the name of a folder.
    OSError
        If the folder cannot be created.
    """

    def __init__(self, folder, paths, resize):
        self.folder = os.fspath(made_folder("cache", folder))
        self.paths = paths
        self.names = [_name(path, resize) for path in paths]
        self.states = [_state(path) for path in paths]
        self.sizes = {}  # row -> height and width, for the images that the folder holds
        self.look_up()

    def __contains__(self, row):
        return row in self.sizes

    def __iter__(self):
        return iter(self.sizes)

    def look_up(self):
        """Find the images in the folder that were not there before: other processes may write to it."""
        for row in range(len(self.paths)):
            if row not in self.sizes and (size := self._read_size(row)) is not None:
                self.sizes[row] = size

    def size(self, row):
        """Return the image's height and width."""
        return self.sizes[row]

    def read(self, rows):
        """Return the images of the rows, None for each entry that is not what was written."""
        lengths = [_HEADER.size + 3 * height * width for height, width in map(self.size, rows)]
        # To get the memory image by image would take longer than to read. The words of the checksum are aligned.
        starts = np.cumsum([0] + [-(-length // 8) * 8 for length in lengths]).tolist()
        content = np.empty(starts[-1], dtype=np.uint8)
        return [
            self._read(row, content[start : start + length])
            for row, start, length in zip(rows, starts, lengths, strict=False)
        ]

    def _read(self, row, content):
        try:
            with open(os.path.join(self.folder, self.names[row]), "rb", buffering=0) as file:
                is_whole = file.readinto(content) == len(content)
        except OSError:
            return None
        pixels = content[_HEADER.size :]
        if not is_whole or content[: _HEADER.size].tobytes() != self._header(row, *self.sizes[row], pixels):
            return None
        return pixels.reshape(*self.sizes[row], 3)

    def write(self, row, image):
        """Store the image, unless its file has changed."""
        if self.states[row] is None or _state(self.paths[row]) != self.states[row]:
            return
        height, width, _ = image.shape
        header = self._header(row, height, width, image.reshape(-1))
        try:
            with open(os.path.join(self.folder, self.names[row]), "wb") as file:
                file.write(header)
                file.write(image)
        except OSError as error:
            message = f"{error.strerror}. The folder cache={self.folder!r} cannot be written to"
            raise OSError(error.errno, message) from error
        self.sizes[row] = height, width

    def keep(self, rows):
        """Return the cache of only these rows, renumbered."""
        cache = object.__new__(Cache)
        cache.folder = self.folder
        for name in ("paths", "names", "states"):
            setattr(cache, name, [getattr(self, name)[row] for row in rows])
        cache.sizes = {i: self.sizes[row] for i, row in enumerate(rows) if row in self.sizes}
        return cache

    def _read_size(self, row):
        """Return the size that the header of an entry tells, or None if there is no entry of the file's state."""
        if self.states[row] is None:
            return None
        path = os.path.join(self.folder, self.names[row])
        try:
            length = os.stat(path).st_size
            if length < _HEADER.size:
                return None
            with open(path, "rb", buffering=0) as file:
                header = file.read(_HEADER.size)
        except OSError:
            return None
        if len(header) < _HEADER.size:
            return None
        state, height, width, _ = _HEADER.unpack(header)
        if state != self.states[row] or length != _HEADER.size + 3 * height * width:
            return None
        return height, width

    def _header(self, row, height, width, pixels):
        fields = self.states[row], height, width
        return _HEADER.pack(*fields, zlib.crc32(_HEADER.pack(*fields, 0), _checksum(pixels)))


def _checksum(content):
    """Return the CRC-32 of the sums along rows and columns of the content's 64-bit words, laid out in a table.

    The CRC-32 of the content itself takes five times as long, longer than to read it.

    Parameters
    ----------
    content : uint8 array of shape (n_bytes,)
    """
    end = len(content) // 4096 * 4096
    words = content[:end].view(np.uint64).reshape(-1, 512)
    crc = zlib.crc32(content[end:])
    for axis in (0, 1):
        crc = zlib.crc32(words.sum(axis=axis, dtype=np.uint64), crc)
    return crc


def made_folder(parameter, folder):
    """Return the folder that a parameter names as a Path, created if it does not exist."""
    shown = f"{parameter}={os.fspath(folder)!r}"
    if not os.fspath(folder):
        raise ValueError(f"{shown} names no folder. Set {parameter} to a folder, or to None.")
    try:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{shown} is a file or lies in one, but must be a folder. Set {parameter} to a folder."
        ) from error
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}. The folder {shown} cannot be created") from error
    except ValueError as error:  # a null byte, or a letter that the file system lacks
        raise ValueError(f"{shown} cannot be the name of a folder: {error}. Set {parameter} to a folder.") from error
    return path


def _name(path, resize):
    """Return the name of the entry of a file."""
    key = f"{_VERSION}\0{resize}\0{os.path.abspath(path)}"
    return blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest() + ".image"


def _state(path):
    """Return a digest of what changes with the content of a file, or None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # reported by the header check
        return None
    # The time of the last change of the inode shows what a restored modification time hides.
    state = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return blake2b(repr(state).encode(), digest_size=16).digest()
