"""Image files: checked by their headers, decoded by Pillow in worker processes.

An image is a uint8 array (height, width, 3), rotated upright and composited on white, with its shorter side already
scaled to ``resize``.
"""

import errno
import os
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from joblib import effective_n_jobs
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from .._warnings import own_filters
from .cache import Cache

N_SHOWN = 5  # broken files listed in an error message
CHUNK = 64  # files per task where there are no batches

# The last bytes of a complete file.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


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
            raise ValueError(
                f"X holds file paths, all of which must be str or os.PathLike; element {i} is {path!r}, a "
                f"{type(path).__name__}."
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
            size = image.size
            if resize is not None:
                image.draft("RGB", (resize, resize))
            upright = ImageOps.exif_transpose(image)
            if upright.size != image.size:
                size = size[::-1]
            upright = _rgb(upright)
        if resize is not None and upright.size != _resized(size, resize):
            upright = upright.resize(_resized(size, resize), Image.Resampling.BILINEAR)
        return np.asarray(upright)
    except Exception as error:  # on broken files, Pillow's plugins raise exceptions of any type
        return _what_is_wrong(path, error)


def read_header(path, resize):
    """Return the (height, width) that `decode` will give, or a str that says what is wrong with the file."""
    try:
        with _open(path) as image:
            size = image.size
            # For a PNG file, getexif() would decode all of it.
            if image.format == "JPEG" or "exif" in image.info:
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                size = size[::-1] if orientation in (5, 6, 7, 8) else size
            ending = _ENDS.get(image.format)
        if ending is not None and not _tail(path).rstrip(b"\0").endswith(ending):
            # The file is cut off, or has harmless bytes after its end.
            decoded = decode(path, resize)
            return decoded if isinstance(decoded, str) else decoded.shape[:2]
        return (size if resize is None else _resized(size, resize))[::-1]
    except Exception as error:
        return _what_is_wrong(path, error)


@contextmanager
def _open(path):
    with own_filters():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata does not affect the pixels
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("it holds floating-point pixels, whose range is unknown")
            yield image


def _resized(size, resize):
    shorter = min(size)
    return tuple(max(1, round(side * resize / shorter)) for side in size)


def _tail(path):
    with open(path, "rb") as file:
        file.seek(-min(64, os.path.getsize(path)), os.SEEK_END)
        return file.read()


def _rgb(image):
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit gray
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _what_is_wrong(path, error):
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"has more pixels than Pillow's limit PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS:,} against "
            "decompression bombs"
        )
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return f"cannot be read: {error.strerror}"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "is empty"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read"
    return f"cannot be decoded: {error or type(error).__name__}"


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
    n_workers = effective_n_jobs(n_jobs)
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


def _as_it_is(item):
    return item


def chunked(rows):
    """Return the rows as lists of `CHUNK`."""
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def broken_files(paths, broken, hint=""):
    """Return a ValueError that lists the first broken files and counts all; ``broken`` maps rows to reasons."""
    listed = "\n".join(f"  {paths[row]} {reason}" for row, reason in sorted(broken.items())[:N_SHOWN])
    more = f"\n  and {len(broken) - N_SHOWN} more" if len(broken) > N_SHOWN else ""
    return ValueError(f"{len(broken)} of {len(paths)} files cannot be used:\n{listed}{more}{hint}")


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
        if self.cache is not None:
            self.cache.reserve(self.sizes)

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
        if self.cache is None:
            yield from run_workers(decode, self.paths, self.resize, chunks, self.n_jobs)
            return
        missing = [[row for row in rows if row not in self.cache] for rows in chunks]
        decoded = run_workers(decode, self.paths, self.resize, [rows for rows in missing if rows], self.n_jobs)
        for rows, wanted in zip(chunks, missing, strict=True):
            fresh = dict(zip(wanted, next(decoded), strict=True)) if wanted else {}
            for row, image in fresh.items():
                if not isinstance(image, str):
                    self.cache.write(row, image)
            yield [fresh[row] if row in fresh else self.cache.read(row) for row in rows]
