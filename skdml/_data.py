"""What X may be: one class a kind, one way to get a batch.

A data object has ``len``, ``sample_shape`` (of one row of X), ``place(device)`` and ``batch(index)``, which gives the
rows of an index tensor or slice as a float32 tensor on the device, ready for the network. ``index_device`` says where
index tensors must lie: on the device if the rows do, else on the host.
"""

import math

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

# Data may take this share of the accelerator's free memory; what is larger is streamed batch by batch.
_RESIDENT_SHARE = 0.5


class Rows:
    """Rows of a float32 array, taken as they are: vectors (n, f), images (n, C, H, W) or what else a backbone takes."""

    def __init__(self, X):
        self.X = X
        self.sample_shape = X.shape[1:]
        self.device = self.index_device = torch.device("cpu")

    def __len__(self):
        return self.X.shape[0]

    def place(self, device):
        """Choose the device that batches go to and move all the rows there if they fit."""
        self.device = device
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
        if isinstance(self.X, torch.Tensor):
            return self.to_input(self.X[index] if isinstance(index, slice) else self.X.index_select(0, index))
        rows = self.X[index if isinstance(index, slice) else index.numpy()]
        return self.to_input(_as_tensor(rows).to(self.device, non_blocking=True))

    @staticmethod
    def to_input(rows):
        return rows


class SparseRows(Rows):
    """Rows of a scipy CSR matrix, made dense batch by batch."""

    def place(self, device):
        self.device = device
        return self

    def batch(self, index):
        rows = self.X[index if isinstance(index, slice) else index.numpy()].toarray()
        return torch.from_numpy(rows).to(self.device, non_blocking=True)


class Images(Rows):
    """uint8 images (n, H, W) or (n, H, W, C), scaled to (x - 127) / 128 and channels first on the device."""

    @staticmethod
    def to_input(rows):
        images = rows.unsqueeze(1) if rows.ndim == 3 else rows.permute(0, 3, 1, 2)  # (B, C, H, W)
        return images.float().sub_(127).div_(128)


def _as_tensor(array):
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def check_data(estimator, X, *, reset):
    """Validate X and wrap it in the class of its kind.

    Parameters
    ----------
    estimator : BaseEmbedder
        Gets ``n_features_in_`` and ``feature_names_in_`` if ``reset``, else X is held against them.
    X : array-like, sparse matrix or data frame
    reset : bool
        True in a fit that starts anew.

    Returns
    -------
    Rows

    Raises
    ------
    ValueError
        If X is empty, complex, not finite, of a shape or type that is no kind of data, or not as it was in fit.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a number too large for float32 is an error a moment later
        if sparse.issparse(X) or ndim(X) < 3:
            X = _check_vectors(estimator, X, reset)
        else:
            X = _check_arrays(estimator, X, reset)
    if sparse.issparse(X):
        return SparseRows(X)
    return Images(X) if X.dtype == np.uint8 else Rows(X)


def ndim(X):
    """Return the number of axes, also of what is an array only through ``__array__``."""
    return X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim


def _check_vectors(estimator, X, reset):
    if not reset and len(estimator._sample_shape) > 1:
        raise ValueError(f"X has shape {np.shape(X)}, but {_expected(estimator)}")
    X = validate_data(estimator, X, reset=reset, accept_sparse="csr", dtype=np.float32, order="C")
    if reset:
        estimator._sample_shape = X.shape[1:]
        estimator._uint8_images = False
    return X


def _check_arrays(estimator, X, reset):
    """Validate images and other arrays of three or more axes."""
    dtype = getattr(X, "dtype", None) or np.asarray(X).dtype
    if (dtype != np.uint8 and not np.issubdtype(dtype, np.inexact)) or (ndim(X) > 4 and dtype == np.uint8):
        raise ValueError(
            f"X has shape {np.shape(X)} and dtype {dtype}. Images must be uint8 of shape (n, H, W) or (n, H, W, C), or "
            "float of shape (n, C, H, W); any other array must be float. Convert with X.astype(...)."
        )
    X = check_array(
        X,
        dtype=np.uint8 if dtype == np.uint8 else np.float32,
        order="C",
        allow_nd=True,
        ensure_min_features=0,
        input_name="X",
        estimator=estimator,
    )
    if 0 in X.shape:
        raise ValueError(f"X has shape {X.shape}: no axis may be empty.")
    if not reset:
        if X.shape[1:] != estimator._sample_shape or (X.dtype == np.uint8) != estimator._uint8_images:
            raise ValueError(f"X has shape {X.shape} and dtype {X.dtype}, but {_expected(estimator)}")
        return X
    if estimator.backbone is None:
        _check_channels(X)
    estimator._sample_shape = X.shape[1:]
    estimator._uint8_images = X.dtype == np.uint8
    estimator.n_features_in_ = math.prod(X.shape[1:])
    if hasattr(estimator, "feature_names_in_"):  # of an earlier fit
        del estimator.feature_names_in_
    return X


def _check_channels(X):
    """Refuse what the default networks would read in the wrong order."""
    if X.dtype != np.uint8 and X.ndim != 4:
        raise ValueError(
            f"X is a float array of shape {X.shape}: without a backbone, skdml takes vectors (n, f), uint8 "
            "images (n, H, W) or (n, H, W, C) and float images (n, C, H, W). Pass backbone=, or "
            "X[:, None] for greyscale images."
        )
    if X.dtype == np.uint8 and X.ndim == 4 and X.shape[1] in (1, 3, 4) and X.shape[3] > 4:
        raise ValueError(
            f"uint8 images must have shape (n, H, W, C), channels last; got {X.shape}. Use np.moveaxis(X, 1, -1)."
        )
    if X.dtype != np.uint8 and X.shape[3] in (1, 3, 4) and X.shape[1] == X.shape[2] > 4:
        raise ValueError(
            f"float images must have shape (n, C, H, W), channels first; got {X.shape}. Use np.moveaxis(X, -1, 1)."
        )


def _expected(estimator):
    shape = ", ".join(["n", *map(str, estimator._sample_shape)])
    return f"{type(estimator).__name__} was fitted on shape ({shape}){' of dtype uint8' * estimator._uint8_images}."
