"""Supported kinds of X: one class per kind, with a common way to get a batch.

A data object has ``len``, ``sample_shape`` (the shape of one row as the network gets it), ``place(device)``,
``batch(index)``, which returns the rows of an index tensor or slice as a float32 tensor on the device, ready for the
network, and ``batches(indices, generator)``, which yields the batches of an epoch; with a generator, they are training
batches with augmented images. ``index_device`` is where index tensors must be: on the device if the rows are there,
else on the host.
"""

import math
import os
from collections.abc import Iterator, Mapping, Set, ValuesView
from dataclasses import dataclass, replace
from io import IOBase

import numpy as np
import torch
from PIL import Image
from scipy import sparse
from sklearn import get_config
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from torch.utils.data import DataLoader, Dataset

from .._ambient import own_filters, warn
from .files import ImageFiles, broken_files, check_paths, shown
from .images import Preprocessing

# Data may take this share of the accelerator's free memory; larger data are streamed batch by batch.
_RESIDENT_SHARE = 0.5


@dataclass(frozen=True)
class InputRecord:
    """Description of the X seen in fit, which later data are checked against.

    Parameters
    ----------
    kind : {"vectors", "arrays", "uint8 images", "files"}
    shape : tuple of int
        Shape of a sample; for a file, as it reaches the network.
    network_shape : tuple of int
        Shape of a sample as it reaches the network.
    preprocessing : dict or None
        The parameters of `Preprocessing` that belong to the fitted network: resize, crop_size, mean, std. None: X does
        not hold images.
    """

    kind: str
    shape: tuple
    network_shape: tuple
    preprocessing: dict | None = None


class Rows:
    """Rows of a float32 array, taken as they are: vectors (n, f), images (n, C, H, W) or other inputs of a backbone."""

    kept = None  # the rows of X that are used; None: all
    preprocessing = None

    def __init__(self, X):
        self.X = X
        self.sample_shape = X.shape[1:]
        self.device = self.index_device = torch.device("cpu")

    def __len__(self):
        return self.X.shape[0]

    def place(self, device):
        """Choose the device that batches go to and move all the rows there if they fit."""
        self.device = device
        if isinstance(self.X, torch.Tensor):
            self.X = self.X.to(device)
            self.index_device = device
            return self
        if device.type == "cpu":
            fits = self.X.flags.writeable  # torch cannot wrap read-only memory; those rows are copied batch by batch
        elif device.type == "cuda":
            fits = self.X.nbytes < _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        else:
            fits = True
        if fits:
            self.X = _as_tensor(self.X).to(device)
            self.index_device = device
        return self

    def batch(self, index):
        return next(self.batches([index]))

    def batches(self, indices, generator=None):
        for index in indices:
            yield self.to_input(self._gather(index), generator)

    def _gather(self, index):
        if isinstance(self.X, torch.Tensor):
            # Both branches copy: a network may change its input in place.
            return self.X[index].clone() if isinstance(index, slice) else self.X.index_select(0, index)
        rows = self.X[index if isinstance(index, slice) else index.numpy()]
        return _as_tensor(rows).to(self.device, non_blocking=True)

    def to_input(self, rows, generator):
        return rows


class SparseRows(Rows):
    """Rows of a scipy CSR matrix, made dense batch by batch."""

    def place(self, device):
        self.device = device
        return self

    def _gather(self, index):
        rows = self.X[index if isinstance(index, slice) else index.numpy()].toarray()
        return torch.from_numpy(rows).to(self.device, non_blocking=True)


class Images(Rows):
    """Images: uint8 (n, H, W) or (n, H, W, C), or float (n, C, H, W)."""

    def __init__(self, X, preprocessing):
        super().__init__(X)
        self.preprocessing = preprocessing
        n_channels, height, width = image_shape(X)
        _check_scale(preprocessing, n_channels)
        self.sample_shape = (n_channels, *preprocessing.output_size(height, width))

    def to_input(self, rows, generator):
        if rows.dtype == torch.uint8:
            rows = rows.unsqueeze(1) if rows.ndim == 3 else rows.permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.preprocessing(rows, generator)


class Files(Rows):
    """Image files, which are decoded to a shorter side of ``resize``."""

    def __init__(self, files, preprocessing):
        self.files = files
        self.preprocessing = replace(preprocessing, resize=None)
        _check_scale(preprocessing, 3)
        self.sample_shape = (3, *self.preprocessing.output_size(*files.sizes[0].tolist()))
        self.device = self.index_device = torch.device("cpu")

    def __len__(self):
        return len(self.files)

    def place(self, device):
        self.device = device
        return self

    def batches(self, indices, generator=None):
        everything = range(len(self))
        chunks = [list(everything[index]) if isinstance(index, slice) else index.tolist() for index in indices]
        for images in self.files.images(chunks):
            yield self._to_input(images, generator)

    def _to_input(self, images, generator):
        size = self.sample_shape[1:]
        if generator is not None and self.preprocessing.augment == "standard":
            sizes = torch.tensor([image.shape[:2] for image in images])
            boxes, flip = self.preprocessing.draw(sizes, generator)
            # Send only the boxes to the device.
            pixels = np.zeros((len(images), *boxes[:, 2:].amax(dim=0).tolist(), 3), dtype=np.uint8)
            for padded, image, (top, left, height, width) in zip(pixels, images, boxes.tolist(), strict=True):
                padded[:height, :width] = image[top : top + height, left : left + width]
            boxes[:, :2] = 0
            return self.preprocessing.random_crop(self._to_device(pixels), boxes, flip, size)
        pixels = np.empty((len(images), *size, 3), dtype=np.uint8)
        for cropped, image in zip(pixels, images, strict=True):
            if image.shape[0] < size[0] or image.shape[1] < size[1]:
                raise ValueError(
                    f"A file holds {image.shape[0]} x {image.shape[1]} pixels (height x width), less than the "
                    f"{size[0]} x {size[1]} that the network gets: it has changed since its header was read."
                )
            top, left = (round((side - s) / 2) for side, s in zip(image.shape, size, strict=False))
            cropped[:] = image[top : top + size[0], left : left + size[1]]
        return self.preprocessing(self._to_device(pixels), generator)

    def _to_device(self, pixels):
        return torch.from_numpy(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2)


def _as_tensor(array):
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def check_data(estimator, X, *, seen=None, training=False, pixel_scale=None):
    """Validate X and wrap it in the class of its kind, without changing the estimator.

    Parameters
    ----------
    estimator : BaseEmbedder
        Its parameters determine how images are read.
    X : array-like, sparse matrix, data frame or sequence of paths
    seen : InputRecord or None
        Record that X must match. None: X defines a new fit.
    training : bool
        True in any fit: files may be left out (``on_error="skip"``), and ``kept`` then holds the remaining rows.
    pixel_scale : tuple or None
        Mean and standard deviation of the backbone's images, each a tuple, one number per channel in [0, 1].

    Returns
    -------
    data : Rows
    attributes : dict
        The fitted attributes that describe X: ``_input``, an `InputRecord`, ``n_features_in_`` and, if the columns have
        names, ``feature_names_in_``. Empty if ``seen`` is given.

    Raises
    ------
    ValueError
        If X is empty, complex or not finite, has an unsupported shape or type, or differs from the X of fit.
    """
    if isinstance(X, torch.Tensor) and (X.device.type == "cpu" or not is_dispatched(X)):
        X = np.asarray(X.detach().float() if X.dtype == torch.bfloat16 else X.detach())  # NumPy lacks bfloat16
    _refuse_container(X)
    if holds_paths(X):
        return _check_files(estimator, X, seen, training, pixel_scale)
    is_vectors = sparse.issparse(X) or _check_axes(X) == 2
    with np.errstate(over="ignore", invalid="ignore"):  # a number too large for float32 fails the check for infinity
        if is_vectors:
            return _check_vectors(estimator, X, seen)
        return _check_arrays(estimator, X, seen, pixel_scale)


def is_dispatched(X):
    """Return whether X is a tensor that stays a tensor under scikit-learn's ``array_api_dispatch``."""
    return isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"]


def ndim(X):
    """Return the number of axes of an array or of an object with ``__array__``."""
    return X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim


def holds_paths(X):
    """Return whether X is a 1-D sequence that contains a str, bytes or path."""
    if not isinstance(X, list | tuple):
        shape = getattr(X, "shape", ())
        if len(shape) != 1 or getattr(getattr(X, "dtype", None), "kind", "O") not in "OSTU":
            return False
    return any(isinstance(x, str | bytes | os.PathLike) for x in X)


def _refuse_container(X):
    """Refuse an X that holds samples, but does not give them as rows, and say how to get these."""
    if isinstance(X, str | os.PathLike):
        advice = (
            "a sequence of paths: [path] for one file, sorted(glob.glob(pattern)) for a pattern, "
            "skdml.datasets.load_image_folder(folder).data for a folder with a subfolder per class"
        )
    elif isinstance(X, bytes | bytearray | memoryview):
        advice = "the path of the image file in a list, or the array np.asarray(PIL.Image.open(io.BytesIO(X)))[None]"
    elif isinstance(X, Image.Image):
        advice = "an array with one more axis, np.asarray(X)[None]"
    elif isinstance(X, Mapping) and not sparse.issparse(X):  # scipy's matrices of keys are mappings
        advice = "one of its values, such as X['data'], or its columns as a table, pandas.DataFrame(X)"
    elif isinstance(X, DataLoader):
        advice = "the array np.concatenate([np.asarray(batch) for batch, _ in X]) or the paths of the files"
    elif isinstance(X, Dataset):
        advice = "the array np.stack([np.asarray(sample) for sample, _ in X]) or the paths of the files"
    elif isinstance(X, IOBase):
        advice = "the path of the image file in a list"
    elif isinstance(X, Iterator | Set | ValuesView):
        advice = "list(X), which has an order and can be read more than once"
    else:
        return
    raise ValueError(f"X is of type {type(X).__name__}; pass {advice}.")


def _check_axes(X):
    """Return the number of axes of X, after checking that it has rows."""
    try:
        n_axes = ndim(X)
    except ValueError:  # rows of different shapes
        raise _no_rows(X) from None
    if n_axes > 1:
        return n_axes
    kind = type(X).__name__
    if n_axes == 0:
        raise ValueError(
            f"Expected 2D array, got scalar: X is of type {kind}; pass an array with one row per sample, or a sequence "
            "of paths."
        )
    if len(X) and np.asarray(X).dtype.kind == "O":
        raise _no_rows(X)
    raise ValueError(
        f"Expected 2D array, got 1D array instead: X is of type {kind} and has {len(X)} elements. Reshape your data: "
        "np.reshape(X, (-1, 1)) has one feature, np.reshape(X, (1, -1)) is one sample."
    )


def _no_rows(X):
    """Return the error for a sequence of objects that numpy cannot make an array of."""
    kind = type(X).__name__
    shapes = {}  # two at most
    for row in X:
        shapes.setdefault(_row_shape(row), type(row).__name__)
        if len(shapes) > 1:
            break
    (shape, of_kind), *others = shapes.items()
    if not shape or any(not other for other, _ in others):
        return ValueError(
            f"X is of type {kind} and holds objects of type {of_kind}, which are not rows of numbers. Pass an array "
            "with one row per sample, or a sequence of paths."
        )
    if not others:
        return ValueError(f"X is of type {kind} and holds {len(X)} arrays of shape {shape}. Pass np.stack(X).")
    advice = "Give all the same number of features"
    if max(len(shape) for shape in shapes) > 1:
        advice = "Bring them to one size, or pass paths of image files, which resize and crop_size bring to one size"
    return ValueError(
        f"X is of type {kind} and holds rows of different shapes, {' and '.join(map(str, shapes))}. {advice}."
    )


def _row_shape(row):
    """Return the shape of a row, () if it has none, None if its parts differ in theirs."""
    if hasattr(row, "shape"):
        return tuple(row.shape)
    try:
        return np.shape(row)
    except ValueError:
        return None


def image_shape(X):
    """Return (C, H, W) of images before preprocessing, whatever the order of their axes."""
    if not _is_uint8(X):
        return X.shape[1:]
    return (1, *X.shape[1:]) if X.ndim == 3 else (X.shape[3], *X.shape[1:3])


def _is_uint8(X):
    return X.dtype in ((torch.uint8,) if isinstance(X, torch.Tensor) else (np.uint8,))


def _check_tensor(X, dtype):
    """Return the tensor as a contiguous tensor of this dtype."""
    if X.is_complex():
        raise ValueError("Complex data not supported: X is a complex tensor.")
    X = X.detach().to(dtype).contiguous()
    if len(X) == 0 or not X.isfinite().all():
        raise ValueError("Input X has no rows." if len(X) == 0 else "Input X contains NaN or infinity.")
    return X


def _check_vectors(estimator, X, seen):
    if seen is not None and seen.kind != "vectors":
        raise ValueError(f"X has shape {np.shape(X)}, but {expected(estimator, seen)}")
    # scikit-learn's validation sets attributes on the estimator that it gets.
    checker = type(estimator)(**estimator.get_params(deep=False)) if seen is None else estimator
    if is_dispatched(X):
        validate_data(checker, X, reset=seen is None, skip_check_array=True)
        X = _check_tensor(X, torch.float32)
    else:
        if getattr(X, "shape", ())[1:] == (1,) and not sparse.issparse(X) and holds_paths(np.asarray(X)[:, 0]):
            raise ValueError(
                f"X has shape {X.shape} and holds strings, but image paths must be a 1-D sequence. Pass the column "
                'itself, df["path"] or X[:, 0]; pass a ColumnTransformer its name, not a list of names.'
            )
        try:
            with own_filters():
                X = validate_data(checker, X, reset=seen is None, accept_sparse="csr", dtype=np.float32, order="C")
        except ValueError as error:
            if not str(error).startswith("could not convert string"):
                raise
            raise ValueError(
                f"X is of type {type(X).__name__} and holds text (could not convert string to float). Encode it as "
                'numbers, leave it out, or pass the column of paths itself, df["path"].'
            ) from None
    data = SparseRows(X) if sparse.issparse(X) else Rows(X)
    if seen is not None:
        return data, {}
    _refuse_image_parameters(estimator, f"X holds vectors of shape {X.shape}")
    names = {name: getattr(checker, name) for name in ("n_features_in_", "feature_names_in_") if hasattr(checker, name)}
    return data, {"_input": InputRecord("vectors", tuple(X.shape[1:]), tuple(X.shape[1:])), **names}


def _check_arrays(estimator, X, seen, pixel_scale):
    """Validate images and other arrays of three or more axes."""
    if is_dispatched(X):
        dtype, is_uint8, is_float = X.dtype, X.dtype == torch.uint8, X.is_floating_point()
    else:
        dtype = getattr(X, "dtype", None) or np.asarray(X).dtype
        is_uint8, is_float = dtype == np.uint8, np.issubdtype(dtype, np.inexact)
    if (not is_uint8 and not is_float) or (ndim(X) > 4 and is_uint8):
        raise ValueError(
            f"X has shape {np.shape(X)} and dtype {dtype}. Images must be uint8 of shape (n, H, W) or (n, H, W, C), or "
            "float of shape (n, C, H, W); any other array must be float. Convert with X.astype(...)."
        )
    if is_dispatched(X):
        X = _check_tensor(X, X.dtype if is_uint8 else torch.float32)
    else:
        with own_filters():
            X = check_array(
                X,
                dtype=np.uint8 if is_uint8 else np.float32,
                order="C",
                allow_nd=True,
                ensure_min_features=0,
                input_name="X",
                estimator=estimator,
            )
    if 0 in X.shape:
        raise ValueError(f"X has shape {X.shape}, but no axis may be empty.")
    kind = "uint8 images" if is_uint8 else "arrays"
    if seen is not None:
        # An embedder fitted on files also takes decoded images.
        is_like_files = kind == "uint8 images" and seen.kind == "files"
        if not is_like_files and (kind != seen.kind or tuple(X.shape[1:]) != seen.shape):
            raise ValueError(f"X has shape {X.shape} and dtype {X.dtype}, but {expected(estimator, seen)}")
    elif estimator.backbone is None:
        _check_channels(X)
    if kind == "arrays" and X.ndim != 4:
        if seen is None:
            _refuse_image_parameters(estimator, f"X has shape {X.shape}")
        return _described(Rows(X), kind, X.shape[1:], seen)
    if seen is None and estimator.cache is not None:
        raise ValueError("cache stores images decoded from files, but X is an array. Set cache=None.")
    settings = preprocessing(estimator, kind, pixel_scale) if seen is None else fitted_preprocessing(estimator, seen)
    _check_crop(settings, *image_shape(X)[1:])
    data = Images(X, settings)
    if seen is not None:
        _check_like_fit(estimator, data, seen)
    return _described(data, kind, X.shape[1:], seen)


def _check_files(estimator, X, seen, training, pixel_scale):
    if seen is not None and seen.kind not in ("files", "uint8 images"):
        raise ValueError(f"X holds file paths, but {expected(estimator, seen)}")
    paths = check_paths(X)
    settings = preprocessing(estimator, "files", pixel_scale) if seen is None else fitted_preprocessing(estimator, seen)
    files = ImageFiles(paths, settings.resize, cache=estimator.cache, n_jobs=estimator.n_jobs)
    skip = training and estimator.on_error == "skip"
    if skip:
        files.find_broken()
    if files.broken and (not skip or len(files.broken) == len(files)):
        hint = "\nRemove them from X, or set on_error='skip'." if training and not skip else ""
        raise broken_files(paths, files.broken, hint)
    kept = None
    if files.broken:
        row, reason = min(files.broken.items())
        warn(
            f"{len(files.broken)} of {len(files)} files cannot be used and are left out. The first one is "
            f"{shown(paths[row])}, which {reason}."
        )
        kept = np.setdiff1d(np.arange(len(files)), list(files.broken))
        files = files.keep(kept)
    if settings.crop_size is None:
        _check_one_size(files)
    else:
        _check_crop(replace(settings, resize=None), files.sizes.min(), files.sizes.min())
    data = Files(files, settings)
    data.kept = kept
    if seen is not None:
        _check_like_fit(estimator, data, seen)
    return _described(data, "files", data.sample_shape, seen)


def _described(data, kind, shape, seen):
    """Return the data and the fitted attributes that describe them; see `check_data`."""
    if seen is not None:
        return data, {}
    settings = None
    if data.preprocessing is not None:
        # Files are resized when they are decoded.
        resize = data.files.resize if kind == "files" else data.preprocessing.resize
        settings = {name: getattr(data.preprocessing, name) for name in ("crop_size", "mean", "std")}
        settings = {"resize": resize, **settings}
    record = InputRecord(kind, tuple(shape), tuple(data.sample_shape), settings)
    return data, {"_input": record, "n_features_in_": math.prod(shape)}


def preprocessing(estimator, kind, pixel_scale):
    """Return the `Preprocessing` that an estimator's parameters define for uint8 images, float arrays or files."""
    is_file = kind == "files"
    resize, crop_size = estimator.resize, estimator.crop_size
    if resize == "auto":
        resize = 256 if is_file else None
    if crop_size == "auto":
        crop_size = round(resize * 7 / 8) if is_file and resize is not None else None
    if kind == "arrays":  # the default leaves them unchanged
        mean, std, unit = (0.0,), (1.0,), 1
    else:
        unit = 255
        mean, std = ((127.0,), (128.0,)) if pixel_scale is None else [_scaled(values, unit) for values in pixel_scale]
    return Preprocessing(
        resize,
        crop_size,
        mean if estimator.image_mean is None else _scaled(estimator.image_mean, unit),
        std if estimator.image_std is None else _scaled(estimator.image_std, unit),
        **_augmentation(estimator, kind),
    )


def _augmentation(estimator, kind):
    augment = estimator.augment
    if augment == "auto":
        augment = "standard" if kind == "files" and estimator.freeze != "backbone" else None
    return {
        "augment": augment,
        "crop_scale": tuple(estimator.crop_scale),
        "crop_ratio": tuple(estimator.crop_ratio),
    }


def _scaled(values, unit):
    return tuple((np.ravel(values) * unit).tolist())


def fitted_preprocessing(estimator, seen):
    """Return the `Preprocessing` of the fit, with the augmentation that the estimator's parameters define now."""
    return Preprocessing(**seen.preprocessing, **_augmentation(estimator, seen.kind))


def _check_scale(settings, n_channels):
    """Reject a mean or standard deviation with the wrong number of channels."""
    for name, values in (("image_mean", settings.mean), ("image_std", settings.std)):
        if len(values) not in (1, n_channels):
            raise ValueError(
                f"{name} (None: the backbone's) has {len(values)} values, but the images have {n_channels} channels. "
                "Give one value, or one per channel."
            )


def _check_like_fit(estimator, data, seen):
    """Reject images that reach the network with another shape than in fit."""
    if tuple(data.sample_shape) != seen.network_shape:
        raise ValueError(
            f"X holds images that reach the network with shape {data.sample_shape}, but {expected(estimator, seen)}"
        )


def _check_crop(settings, height, width):
    """Reject a crop that is larger than the (smallest) image."""
    smallest = min(settings.resized(height, width))
    if settings.crop_size is not None and settings.crop_size > smallest:
        raise ValueError(
            f"crop_size={settings.crop_size} is larger than the images, whose shorter side has {smallest} pixels. "
            "Lower crop_size, or raise resize."
        )


def _check_one_size(files):
    sizes, first = np.unique(files.sizes, axis=0, return_index=True)
    if len(sizes) > 1:
        one, other = (
            f"{shown(files.paths[i])} is {h} x {w}" for (h, w), i in zip(sizes[:2].tolist(), first[:2], strict=True)
        )
        raise ValueError(
            f"The images have different sizes (height x width){' after resize' * (files.resize is not None)}: {one}, "
            f"{other}. Set resize and crop_size, in pixels, to bring them to one size."
        )


_IMAGE_PARAMETERS = ("resize", "crop_size", "augment", "image_mean", "image_std", "cache")


def _refuse_image_parameters(estimator, what):
    default = {name: field.default for name, field in type(estimator).__dataclass_fields__.items()}
    values = {name: getattr(estimator, name) for name in _IMAGE_PARAMETERS}
    given = [name for name, v in values.items() if v is not None and not (isinstance(v, str) and v == default[name])]
    if given:
        raise ValueError(f"{what}, but only images use {', '.join(given)}. Leave these at their defaults.")


def _check_channels(X):
    """Reject arrays whose axes the default networks would read in the wrong order."""
    is_uint8 = _is_uint8(X)
    if not is_uint8 and X.ndim != 4:
        advice = "Pass backbone=, or X[:, None] for grayscale images."
        if X.ndim == 3 and X.shape[1] in (2, 3, 4):
            advice += (
                " If these are pairs, triplets or quadruplets, fit a PairsEmbedder, TripletsEmbedder or "
                "QuadrupletsEmbedder, or pass single samples and the class of each."
            )
        raise ValueError(
            f"X is a float array of shape {X.shape}: without a backbone, skdml takes vectors (n, f), uint8 "
            f"images (n, H, W) or (n, H, W, C) and float images (n, C, H, W). {advice}"
        )
    if is_uint8 and X.ndim == 4 and X.shape[1] in (1, 3, 4) and X.shape[3] > 4:
        raise ValueError(
            f"uint8 images must have shape (n, H, W, C), channels last; got {X.shape}. Use np.moveaxis(X, 1, -1)."
        )
    # Arrays of width 1 may be signals, (n, C, length, 1).
    if not is_uint8 and X.shape[1] > 4 and (X.shape[3] in (3, 4) or (X.shape[3] == 1 and X.shape[1] == X.shape[2])):
        raise ValueError(
            f"float images must have shape (n, C, H, W), channels first; got {X.shape}. Use np.moveaxis(X, -1, 1)."
        )


def expected(estimator, seen):
    """Return a sentence that says what the estimator was fitted on."""
    name = type(estimator).__name__
    if seen.kind == "files":
        return f"{name} was fitted on image files, which reach the network with shape {seen.shape}."
    shape = ", ".join(["n", *map(str, seen.shape)])
    return f"{name} was fitted on shape ({shape}){' of dtype uint8' * (seen.kind == 'uint8 images')}."
