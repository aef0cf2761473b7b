"""Image files: checked by their headers, decoded by Pillow in worker processes.

An image is a uint8 array (height, width, 3), rotated upright and composited on white, with its shorter side already
scaled to ``resize``.
"""

import errno
import functools
import multiprocessing
import os
import re
import reprlib
import stat
import threading
import warnings
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch
from joblib import cpu_count
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from .._ambient import own_filters, warn
from .cache import Cache
from .images import resized

N_SHOWN = 5  # broken files listed in an error message
CHUNK = 64  # files per task where there are no batches

# The formats that are read, by Pillow's names, with the ends of their files' names. Pillow knows others, some of which,
# such as EPS, make it start a program.
FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
_OPENED = [name for name in FORMATS if name != "AVIF" or find_spec("PIL.AvifImagePlugin")]  # new in Pillow 11.3

# The last bytes of a complete file.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def check_paths(paths):
    """Return X, a 1-D sequence of paths, as a list of str.

    Raises
    ------
    ValueError
        If an element is neither str nor os.PathLike, or there are no elements.
    """
    paths = list(paths)
    if not paths:
        raise ValueError("X has 0 files; at least 1 is needed.")
    for i, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
            advice = ""
            if isinstance(path, bytes | os.PathLike):
                advice = " Convert paths with os.fsdecode; the content of a file is read by PIL.Image.open."
            raise ValueError(
                f"X holds file paths, all of which must be str or os.PathLike; element {i} is "
                f"{reprlib.repr(path)}, a {type(path).__name__}.{advice}"
            )
    return [os.fspath(path) for path in paths]


def decode(path, resize):
    """Return the image of a file, or a str that says what is wrong with the file.

    Parameters
    ----------
    path : str
    resize : int or None
        Length of the shorter side in pixels. JPEG files at least twice as large are decoded at a fraction of their
        size.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            size = resized(height, width, resize)[::-1]
            if resize is not None:
                image.draft("RGB", (resize, resize))
            upright = ImageOps.exif_transpose(image)
            if upright.size != image.size:
                size = size[::-1]
            upright = _rgb(upright)
        if resize is not None and upright.size != size:
            upright = upright.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(upright)
    except Exception as error:  # on broken files, Pillow's plugins raise exceptions of any type
        return _what_is_wrong(error)


def read_header(path, resize):
    """Return the (height, width) that `decode` will give, or a str that says what is wrong with the file."""
    try:
        with _open(path) as image:
            height, width = resized(*image.size[::-1], resize)
            # For a PNG file, getexif() would decode all of it.
            if image.format in ("JPEG", "MPO") or "exif" in image.info:
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                height, width = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
            ending = _ENDS.get(image.format)
            is_complete = ending is None or _tail(image.fp).rstrip(b"\0").endswith(ending)
        if not is_complete:
            # The file is cut off, or has harmless bytes after its end.
            decoded = decode(path, resize)
            return decoded if isinstance(decoded, str) else decoded.shape[:2]
        return height, width
    except Exception as error:
        return _what_is_wrong(error)


def is_deep(path):
    """Return whether a file has 16 bits per channel, of which `decode` keeps the upper eight."""
    try:
        with _open(path) as image:
            # Pillow tells the bits of gray images by the mode, and those of colored ones only to the decoder.
            return image.mode.startswith("I") or re.search(r";16[BLN]|\b65535\b", str(image.tile)) is not None
    except (OSError, _Unusable):  # it has been decoded, so the file is gone or another one by now
        return False


class _Unusable(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its path."""


@contextmanager
def _open(path):
    # Opening a named pipe would wait for somebody to write to it, and opening a device may do anything.
    try:
        status = os.stat(path)
    except ValueError as error:  # a null byte, or a letter that the file system lacks
        raise _Unusable(f"cannot be the path of a file: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        raise _Unusable(f"is a {kind}" if kind == "folder" else f"is a {kind}, not a regular file")
    if status.st_size == 0:
        raise _Unusable("is empty")
    with own_filters():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata does not affect the pixels
        with open(path, "rb") as file, Image.open(file, formats=_OPENED) as image:
            if image.mode == "F":
                raise _Unusable("cannot be decoded: it holds floating-point pixels, whose range is unknown")
            yield image


def _tail(file):
    length = file.seek(0, os.SEEK_END)
    file.seek(-min(64, length), os.SEEK_END)
    return file.read()


def _rgb(image):
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit gray
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _what_is_wrong(error):
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"has more pixels than Pillow's limit PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS:,} against "
            "decompression bombs"
        )
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image in one of the formats {', '.join(_OPENED)}"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return f"cannot be read: {error.strerror or type(error).__name__}"
    return f"cannot be decoded: {str(error).strip() or type(error).__name__}"


class Decoder(Dataset):
    """Data set whose item for a list of rows is ``function(path, resize)`` of each, computed in a worker."""

    def __init__(self, function, paths, resize):
        self.function = function
        self.paths = paths
        self.resize = resize

    def __getitem__(self, rows):
        return [self.function(self.paths[row], self.resize) for row in rows]


def run_workers(function, paths, resize, chunks, n_jobs):
    """Yield ``function`` of the files of each chunk of rows, in order, computing at most two chunks per worker ahead.

    Raises
    ------
    RuntimeError
        If a worker process dies.
    """
    n_workers = count_workers(n_jobs)
    with own_filters():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores: intended
        # Python 3.12 warns about any fork after torch has started its threads, but workers need none of these.
        warnings.filterwarnings("ignore", message=".*is multi-threaded, use of fork", category=DeprecationWarning)
        loader = DataLoader(
            Decoder(function, paths, resize),
            batch_size=None,
            sampler=chunks,
            num_workers=0 if n_workers == 1 else min(n_workers, len(chunks)),
            collate_fn=_as_it_is,  # arrays use a pipe, tensors shared memory, of which containers have little
            worker_init_fn=functools.partial(_start_worker, Image.MAX_IMAGE_PIXELS),
            generator=torch.Generator(),  # otherwise the loader would draw from the global one
        )
        iterator = iter(loader)
    for _ in chunks:
        try:
            item = next(iterator)
        except RuntimeError as error:
            raise RuntimeError(
                f"A process that decodes images died ({error}). Lack of memory is the usual reason; lower n_jobs or "
                "batch_size."
            ) from error
        yield item


def count_workers(n_jobs):
    """Return the number of processes that ``n_jobs`` means, 1 where this process must not start any."""
    if n_jobs is None or multiprocessing.current_process().daemon:
        return 1
    return n_jobs if n_jobs > 0 else max(1, cpu_count() + 1 + n_jobs)


def _start_worker(max_pixels, worker_id):
    Image.MAX_IMAGE_PIXELS = max_pixels  # a spawned process has the default
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent_id):
    """End this process once its parent is gone: without that, it waits forever for somebody to take its images."""
    parent = multiprocessing.parent_process()
    # The sentinel stays open while a process lives that was forked from the parent later.
    while parent.is_alive() and os.getppid() == parent_id:
        parent.join(timeout=1)
    os._exit(1)


def _as_it_is(item):
    return item


def chunked(rows):
    """Return the rows as lists of `CHUNK`."""
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def broken_files(paths, broken, hint=""):
    """Return a ValueError that lists the first broken files and counts all; ``broken`` maps rows to reasons."""
    listed = "\n".join(f"  {shown(paths[row])} {reason}" for row, reason in sorted(broken.items())[:N_SHOWN])
    more = f"\n  and {len(broken) - N_SHOWN} more" if len(broken) > N_SHOWN else ""
    return ValueError(f"{len(broken)} of {len(paths)} files cannot be used:\n{listed}{more}{hint}")


def shown(path):
    """Return the path as a message shows it."""
    return path if path.isprintable() else repr(path)


class ImageFiles:
    """Images of files, decoded on request or read from the cache.

    Parameters
    ----------
    paths : list of str
    resize : int or None
    cache : str, os.PathLike or None
        Folder of the `Cache`.
    n_jobs : int or None

    Attributes
    ----------
    sizes : int array of shape (n_files, 2)
        Height and width of each image, from the cache or the header; -1 for files that cannot be used.
    broken : dict
        Maps rows to what is wrong with their files, as far as the headers show.
    """

    def __init__(self, paths, resize, *, cache=None, n_jobs=None):
        self.paths = paths
        self.resize = resize
        self.n_jobs = n_jobs
        self.cache = None if cache is None else Cache(cache, paths, resize)
        self.sizes = np.full((len(paths), 2), -1)
        self.broken = {}
        unknown = list(range(len(paths)))
        if self.cache is not None:
            unknown = [row for row in unknown if row not in self.cache]
            for row in self.cache:
                self.sizes[row] = self.cache.size(row)
        chunks = chunked(unknown)
        for rows, sizes in zip(chunks, run_workers(read_header, paths, resize, chunks, n_jobs), strict=True):
            for row, size in zip(rows, sizes, strict=True):
                if isinstance(size, str):
                    self.broken[row] = size
                else:
                    self.sizes[row] = size
        self._warned = False

    def __len__(self):
        return len(self.paths)

    def find_broken(self):
        """Decode every file that is not in the cache, and add to ``broken`` the errors that no header shows."""
        rows = [row for row in range(len(self)) if row not in self.broken]
        chunks = chunked(rows)
        for chunk, images in zip(chunks, self._decoded(chunks), strict=True):
            self.broken |= {row: im for row, im in zip(chunk, images, strict=True) if isinstance(im, str)}

    def keep(self, rows):
        """Return only the files of these rows."""
        files = object.__new__(ImageFiles)
        files.paths = [self.paths[row] for row in rows]
        files.resize, files.n_jobs = self.resize, self.n_jobs
        files.sizes = self.sizes[rows]
        files.broken = {}
        files._warned = self._warned
        files.cache = None if self.cache is None else self.cache.keep(rows)
        return files

    def images(self, chunks):
        """Yield a list of images for each list of rows.

        Raises
        ------
        ValueError
            If a file cannot be decoded.
        RuntimeError
            If a worker process dies.
        """
        for rows, images in zip(chunks, self._decoded(chunks), strict=True):
            broken = {row: image for row, image in zip(rows, images, strict=True) if isinstance(image, str)}
            if broken:
                raise broken_files(
                    self.paths, broken, "\nNo header shows this; other batches may hold more such files."
                )
            yield images

    def _decoded(self, chunks):
        """Yield the images of each list of rows, each broken file as a str that says what is wrong with it."""
        missing = [[row for row in rows if self.cache is None or row not in self.cache] for rows in chunks]
        decoded = run_workers(decode, self.paths, self.resize, [rows for rows in missing if rows], self.n_jobs)
        for rows, wanted in zip(chunks, missing, strict=True):
            fresh = dict(zip(wanted, next(decoded), strict=True)) if wanted else {}
            for row, image in fresh.items():
                self._keep(row, image)
            images = self._cached([row for row in rows if row not in fresh]) | fresh
            images = [images[row] for row in rows]
            self._warn_if_dark(rows, images)
            yield images

    def _keep(self, row, image):
        if self.cache is not None and not isinstance(image, str):
            self.cache.write(row, image)

    def _cached(self, rows):
        """Return the images by row, from the cache or, where it is damaged, decoded again."""
        images = dict(zip(rows, self.cache.read(rows), strict=True)) if rows else {}
        for row, image in images.items():
            if image is None:
                images[row] = decode(self.paths[row], self.resize)
                self._keep(row, images[row])
        return images

    def _warn_if_dark(self, rows, images):
        """Warn once about 16-bit files whose data have fewer bits."""
        for row, image in zip(rows, images, strict=True):
            if self._warned:
                return
            # A few pixels nearly always tell that an image is not dark.
            is_dark = not isinstance(image, str) and image[::16, ::16].max() <= 16 and image.max() <= 16
            if is_dark and is_deep(self.paths[row]):
                self._warned = True
                warn(
                    f"{shown(self.paths[row])} has 16 bits per channel, of which the upper eight are kept, and "
                    f"becomes black or nearly black: no pixel is above {image.max()} of 255. If these are data of "
                    "10 or 12 bits, save the files with 8 bits instead, after dividing the pixels by 4 or 16."
                )
