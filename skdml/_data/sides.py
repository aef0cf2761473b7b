"""Pairs, triplets and quadruplets, read as their sides: all first samples, all second samples and so on."""

import hashlib
import importlib
import os
from itertools import pairwise
from numbers import Real

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import _safe_indexing

from .arrays import holds_paths

# By the number of sides: what they form, this number as a word, and what each side holds.
_FORMS = {
    2: ("pair", "two", ("first", "second")),
    3: ("triplet", "three", ("anchor", "positive", "negative")),
    4: ("quadruplet", "four", ("first", "second", "third", "fourth")),
}


def split(X, n_sides, *, elements=False):
    """Return the sides of pairs, triplets or quadruplets as they were given.

    Parameters
    ----------
    X : tuple of n_sides sides, or sequence of groups of n_sides samples
    n_sides : {2, 3, 4}
    elements : bool, default=False
        Whether a sample may be a single value, such as a row number, which stands for a sample.

    Returns
    -------
    tuple of n_sides array-likes

    Raises
    ------
    ValueError
        If X does not hold such groups, or could be read in two ways.
    """
    kind, number, names = _FORMS[n_sides]
    sides = f"the {' and the '.join(names)} samples" if n_sides == 2 else f"the {n_sides} sides"
    needed = _needed(n_sides)
    if isinstance(X, tuple) and len(X) == n_sides:
        if all(isinstance(side, tuple) and len(side) == n_sides for side in X):
            raise ValueError(
                f"X is a tuple of {number} tuples of {number} samples: these could be {number} {kind}s, or {sides}. "
                f"Write list(X) for {number} {kind}s, or tuple(map(list, X)) for {sides}."
            )
        if not elements and any(map(_is_one_sample, X)):
            raise ValueError(
                f"X is a tuple of {number} samples, but a tuple must hold {_all(names)} samples. Write one {kind} "
                f"as [({', '.join(names)})]."
            )
        return X
    if not hasattr(X, "shape") and hasattr(X, "__array__"):
        X = np.asarray(X)
    shape = tuple(getattr(X, "shape", ()))
    if sparse.issparse(X) or not (isinstance(X, list | tuple) or shape):
        raise ValueError(f"{needed}; got a {type(X).__name__}.")
    if len(X) == 0:
        raise ValueError(f"{needed}; got no {kind}s.")
    if len(shape) > 1:
        if shape[1] != n_sides:
            raise ValueError(f"{needed}; got shape {shape}.")
        if len(shape) > 2:
            return tuple(X[:, side] for side in range(n_sides))
        columns = [list(_safe_indexing(X, side, axis=1)) for side in range(n_sides)]
        return tuple(_stack(column, needed, elements) for column in columns)
    for i, group in enumerate(X):
        if not is_group(group, n_sides):
            shape = f" of shape {tuple(group.shape)}" if hasattr(group, "shape") else ""
            found = f"{type(group).__name__}{shape}"
            raise ValueError(f"{needed}; got a {type(X).__name__}, whose element {i} is not a {kind}, but a {found}.")
    if len(X) == n_sides and not any(isinstance(group, list | tuple) for group in X):
        raise ValueError(
            f"X is a {type(X).__name__} of {number} {type(next(iter(X))).__name__}s of {number} rows: these could be "
            f"{number} {kind}s, or {sides}. Write list(map(tuple, X)) for {number} {kind}s, or tuple(X) for {sides}."
        )
    return tuple(_stack(samples, needed, elements) for samples in zip(*X, strict=True))


def _needed(n_sides):
    kind, number, names = _FORMS[n_sides]
    listed = ", ".join(names)
    return (
        f"X must hold {kind}s, as an array of shape (n_{kind}s, {n_sides}, ...) or as a tuple "
        f"({', '.join(f'{name}s' for name in names)}) of {_all(names)} samples, or as a list of ({listed}), or as "
        f"{number} columns of paths"
    )


def _all(names):
    *others, last = (f"all {name}" for name in names)
    return f"{', '.join(others)} and {last}"


def is_group(value, n_sides):
    """Return whether the value holds this number of samples."""
    if isinstance(value, str | bytes | dict) or sparse.issparse(value) or getattr(value, "ndim", 1) == 0:
        return False
    return hasattr(value, "__len__") and len(value) == n_sides


def _is_one_sample(side):
    """Return whether it is a path or a vector, and not several of them."""
    if isinstance(side, str | bytes | os.PathLike):
        return True
    if isinstance(side, list | tuple):
        return bool(side) and all(isinstance(value, Real) for value in side)
    return len(getattr(side, "shape", ())) == 1 and isinstance(next(iter(side), None), Real | torch.Tensor)


def _stack(samples, needed, elements):
    """Return the samples as one X: a list of paths, a tensor, a sparse matrix or an array."""
    if any(isinstance(sample, str | os.PathLike) for sample in samples):
        return list(samples)
    if all(isinstance(sample, torch.Tensor) for sample in samples):
        return torch.stack(list(samples))
    if all(sparse.issparse(sample) for sample in samples):
        return sparse.vstack([sample.reshape(1, -1) for sample in samples], format="csr")
    arrays = [np.asarray(sample) for sample in samples]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1 or not (shapes[0] or elements):
        found = (
            " and ".join(f"shape {shape}" for shape in shapes[:2])
            if shapes[-1]
            else f"single values, such as {samples[0]!r:.50}"
        )
        raise ValueError(f"{needed}, each sample a path or an array of the same shape; got samples of {found}.")
    return np.stack(arrays)


def join(sides):
    """Return the sides one below the other, as one X.

    Raises
    ------
    ValueError
        If the sides differ in their number of samples, their kind, or the shape or columns of a sample.
    """
    kind, _, names = _FORMS[len(sides)]
    kinds = [_kind(side) for side in sides]
    if len(set(kinds)) > 1:
        found = ", ".join(f"{name}s: {of_side}" for name, of_side in zip(names, kinds, strict=True))
        raise ValueError(f"The sides of the {kind}s hold samples of different kinds ({found}). Give all in one kind.")
    lengths = [side.shape[0] if hasattr(side, "shape") else len(side) for side in sides]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"Each {kind} must have {len(sides)} samples, but the sides have {', '.join(map(str, lengths))} samples."
        )
    first = sides[0]
    if holds_paths(first):
        return [path for side in sides for path in side]
    if sparse.issparse(first):
        return sparse.vstack(sides, format="csr")
    if isinstance(first, torch.Tensor):
        return torch.cat(list(sides))
    if hasattr(first, "columns"):
        return importlib.import_module(type(first).__module__.partition(".")[0]).concat(list(sides))
    return np.concatenate([np.asarray(side) for side in sides])


def _kind(side):
    """Return in words what samples a side holds; sides of one kind can be joined."""
    if holds_paths(side):
        return "paths"
    if hasattr(side, "columns"):
        return f"data frame with columns {', '.join(map(str, side.columns)):.100}"
    shape = tuple(side.shape if hasattr(side, "shape") else np.shape(side))[1:]
    if sparse.issparse(side):
        return f"sparse rows of shape {shape}"
    dtype = side.dtype if hasattr(side, "dtype") else np.asarray(side).dtype
    number = f" of {dtype}" if len(shape) > 1 else ""  # images of uint8 are scaled, those of floats are not
    return f"{'tensors' if isinstance(side, torch.Tensor) else 'arrays'} of shape {shape}{number}"


def number_rows(X):
    """Return the index of the first of all equal rows of X, (n_unique,), and the number of each row's own, (n,)."""
    number = {}
    numbers = np.fromiter((number.setdefault(key, len(number)) for key in _keys(X)), np.int64)
    return np.unique(numbers, return_index=True)[1], numbers


def _keys(X):
    """Yield a key per row, the same for equal rows: of rows of numbers a hash, which takes little memory."""
    if holds_paths(X):
        yield from (os.fspath(path) if isinstance(path, os.PathLike) else repr(path) for path in X)
        return
    if sparse.issparse(X):
        X = sparse.csr_array(X, copy=True)
        X.sum_duplicates()
        for start, end in pairwise(X.indptr.tolist()):
            row = slice(start, end)
            yield hashlib.blake2b(X.indices[row].tobytes() + X.data[row].tobytes(), digest_size=16).digest()
        return
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        X = (X.float() if X.dtype == torch.bfloat16 else X).numpy()
    X = np.ascontiguousarray(X)
    yield from X.tolist() if X.ndim == 1 else (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in X)
