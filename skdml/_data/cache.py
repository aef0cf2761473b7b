"""A folder that caches the decoded images of files."""

import json
import os
import uuid
from pathlib import Path

import numpy as np


class Cache:
    """Decoded images in memory maps, looked up by path, modification time, length and ``resize``.

    A fit on files that the folder does not hold yet adds a shard of three files: NAME.json lists its images with their
    positions, NAME.bin holds their pixels, and byte i of NAME.done is 1 once image i is written. Only the process that
    made a shard writes to it, so that fits in several processes can share a folder.

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
        If the folder holds a .json file that does not belong to a cache, or whose pixels are missing.
    """

    def __init__(self, folder, paths, resize):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resize = resize
        self.keys = [_key(path) for path in paths]
        self.places = {}  # row -> (pixels of the shard, offset, height, width)
        self.reserved = {}  # row -> (place as above, shard, index in the shard), not written yet
        rows = {}  # a path may occur in several rows
        for row, key in enumerate(self.keys):
            if key is not None:
                rows.setdefault(key, []).append(row)
        for index in sorted(self.folder.glob("*.json")):
            try:
                self._read_shard(index, rows)
            except (OSError, ValueError, TypeError, LookupError) as error:
                raise ValueError(
                    f"cache={os.fspath(folder)!r}: {index.name} is damaged or not part of an image cache. Set cache "
                    f"to a separate folder, or delete {index.stem}.*. ({type(error).__name__}: {error})"
                ) from error

    def _read_shard(self, index, rows):
        content = json.loads(index.read_text())
        images = content["images"]
        if content["resize"] != self.resize or not images:
            return
        done = np.fromfile(index.with_suffix(".done"), dtype=np.uint8)
        *_, offset, height, width = images[-1]
        if len(done) != len(images) or index.with_suffix(".bin").stat().st_size != offset + 3 * height * width:
            raise ValueError("the shard has files of the wrong length")
        pixels = None
        for (*key, offset, height, width), is_done in zip(images, done.tolist(), strict=True):
            for row in rows.get(tuple(key), []) if is_done else []:
                if pixels is None:  # open a shard only when it is needed
                    pixels = np.memmap(index.with_suffix(".bin"), mode="r")
                self.places[row] = pixels, offset, height, width

    def __contains__(self, row):
        return row in self.places

    def __iter__(self):
        return iter(self.places)

    def size(self, row):
        """Return the image's height and width."""
        return self.places[row][2:]

    def read(self, row):
        """Return the image as a view of the memory map."""
        pixels, offset, height, width = self.places[row]
        return pixels[offset : offset + 3 * height * width].reshape(height, width, 3)

    def reserve(self, sizes):
        """Create a shard with space for the images that the folder does not hold."""
        rows = [row for row in range(len(sizes)) if row not in self.places and sizes[row, 0] > 0 and self.keys[row]]
        if not rows:
            return
        lengths = 3 * sizes[rows].prod(axis=1)
        offsets = np.cumsum(lengths) - lengths
        shard = self.folder / uuid.uuid4().hex
        for suffix, length in ((".bin", lengths.sum()), (".done", len(rows))):
            with open(shard.with_suffix(suffix), "wb") as file:
                file.truncate(length)
        pixels = np.memmap(shard.with_suffix(".bin"), mode="r")
        images = []
        for i, (row, offset) in enumerate(zip(rows, offsets.tolist(), strict=True)):
            height, width = sizes[row].tolist()
            self.reserved[row] = (pixels, offset, height, width), shard, i
            images.append([*self.keys[row], offset, height, width])
        # The list appears last and atomically: a process that finds it also finds the other files.
        shard.with_suffix(".tmp").write_text(json.dumps({"resize": self.resize, "images": images}))
        os.replace(shard.with_suffix(".tmp"), shard.with_suffix(".json"))

    def write(self, row, image):
        """Store the image, unless its size differs from that in its header."""
        place, shard, i = self.reserved.pop(row, (None, None, None))
        if place is None or image.shape[:2] != place[2:]:
            return
        # On a full disk, writing to the memory map would kill the process; writing to the file raises an error.
        try:
            for suffix, offset, content in ((".bin", place[1], image), (".done", i, b"\1")):
                with open(shard.with_suffix(suffix), "r+b") as file:
                    file.seek(offset)
                    file.write(content)
        except OSError as error:
            message = f"{error.strerror}. The folder cache={os.fspath(self.folder)!r} cannot be written to"
            raise OSError(error.errno, message) from error
        self.places[row] = place

    def keep(self, rows):
        """Return the cache of only these rows, renumbered."""
        cache = object.__new__(Cache)
        vars(cache).update(vars(self))
        cache.keys = [self.keys[row] for row in rows]
        cache.places = {i: self.places[row] for i, row in enumerate(rows) if row in self.places}
        cache.reserved = {i: self.reserved[row] for i, row in enumerate(rows) if row in self.reserved}
        return cache


def _key(path):
    try:
        status = os.stat(path)
    except OSError:
        return None  # reported by the header check
    return os.path.abspath(path), status.st_mtime_ns, status.st_size
