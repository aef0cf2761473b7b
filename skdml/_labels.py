"""Labels of classes, read in one place: exactly, whatever holds them."""

from collections.abc import Sequence, Set
from numbers import Integral

import numpy as np
import torch
from scipy import sparse
from sklearn.exceptions import DataConversionWarning

from ._ambient import warn


def read_labels(y, name="y", *, instead=None):
    """Return the labels as an array that holds each of them exactly.

    Parameters
    ----------
    y : array-like, column of a data frame or torch.Tensor of shape (n_samples,)
        One label per sample: integers, booleans, strings, whole floats, dates or other hashable objects that sort.
    name : str
        What errors call it.
    instead : str or None, default=None
        What to do with several labels per sample, for the error.

    Returns
    -------
    ndarray of shape (n_samples,)
        Of the dtype that NumPy gives y. Objects that are all integers, booleans or floats are int64 (uint64 or objects
        where one does not fit), bool or float64.

    Raises
    ------
    TypeError
        If the labels are of several types, which have no common order.
    ValueError
        If there are several labels per sample, or a label is missing, infinite, complex or not a whole number.

    Warns
    -----
    DataConversionWarning
        If the shape is (n_samples, 1).
    """
    return _read(y, *_as_array(y), name, instead)


def read_targets(y, name="y"):
    """Return what `read_labels` does or, for several labels per sample, the binary indicator.

    Parameters
    ----------
    y : array-like, data frame, torch.Tensor or sparse matrix of shape (n_samples,) or (n_samples, n_labels)
        One label per sample; or, with two columns or more, which of the labels each sample has: booleans, or numbers 0
        and 1, the multilabel format of scikit-learn.
    name : str
        What errors call it.

    Returns
    -------
    ndarray of shape (n_samples,) or bool ndarray of shape (n_samples, n_labels)

    Raises
    ------
    TypeError, ValueError
        As `read_labels` does, and if a value is missing.
    """
    shape = tuple(getattr(y, "shape", ()))
    if sparse.issparse(y) and len(shape) == 2 and shape[1] > 1:
        y = sparse.csr_array(y)  # adds up entries of one place
        if np.isin(y.data, (0, 1)).all():
            return y.astype(bool).toarray()
    values, is_sequence = _as_array(y)
    if values.ndim != 2 or values.shape[1] < 2:
        return _read(y, values, is_sequence, name)
    if isinstance(values, np.ma.MaskedArray):
        _check_missing(np.ma.getmaskarray(values).ravel(), name)
        values = values.data
    if values.dtype.kind == "O":
        entries = _objects(int(x) if isinstance(x, bool | np.bool_) else x for x in values.ravel())
        values = _from_objects(entries, name).reshape(values.shape)
    if values.dtype.kind == "f":
        _check_missing(np.isnan(values).ravel(), name)
    if values.dtype.kind not in "biuf" or not ((values == 0) | (values == 1)).all():
        raise ValueError(_wrong_shape(y, values.shape, name, None))
    return values.astype(bool)


def label_names(y, n_labels):
    """Return the names of the columns of a binary indicator: those of a data frame, otherwise 0 to n_labels - 1."""
    return (
        read_labels(list(y.columns), "the names of the columns of y") if hasattr(y, "columns") else np.arange(n_labels)
    )


def one_class_message(who, why, shape):
    """Return the error for several labels per sample where ``who`` needs classes, because it ``why``."""
    return (
        f"{who} {why} and takes one class label per sample, y of shape (n_samples,); got shape {tuple(shape)}. "
        "Several labels per sample (multi-label) are for methods that compare the pairs of a batch, such as RAW, "
        "triplet, SupCon or contrastive. For one-hot rows, pass y.argmax(axis=1); for rows that are one label "
        "together, a string of each."
    )


def number_labels(*labels):
    """Return the classes of one or more arrays of labels together, and the place of each label among them.

    Parameters
    ----------
    *labels : ndarrays of shape (n,)
        As `read_labels` returns them.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
        The different labels, sorted.
    codes : list of int64 ndarrays of shape (n,), values 0..n_classes-1
        The place of each label among the classes, for each of the arrays.

    Raises
    ------
    TypeError
        If the labels cannot be compared with each other.
    """
    if not are_comparable(*labels):
        raise TypeError(_mixture("The labels", set().union(*map(_kinds, labels))))
    joined = _joined(labels)
    if joined.dtype.kind == "O":
        classes, codes = _unique_objects(joined)
    else:
        classes, codes = np.unique(joined, return_inverse=True)
    ends = np.cumsum([len(array) for array in labels])
    return classes, np.split(codes.astype(np.int64, copy=False), ends[:-1])


def are_comparable(*labels):
    """Return whether arrays that `read_labels` returned hold labels of one kind, such as numbers or strings."""
    return len(set().union(*map(_kinds, labels))) <= 1


def _read(y, values, is_sequence, name, instead=None):
    """Return the labels of y, of which `_as_array` made the values."""
    shape = values.shape or tuple(getattr(y, "shape", ()))  # NumPy takes a sparse matrix for a scalar
    if values.ndim == 2 and shape[1] == 1:
        warn(
            f"A column-vector {name} was passed when a 1d array was expected. Pass shape (n_samples,), for example "
            f"{name}.ravel().",
            DataConversionWarning,
        )
        values = values[:, 0]
    elif values.ndim != 1:
        raise ValueError(_wrong_shape(y, shape, name, instead))
    if isinstance(values, np.ma.MaskedArray):
        _check_missing(np.ma.getmaskarray(values), name)
        values = values.data
    if values.dtype.kind in ("O", "T"):  # T: strings of any length
        values = _from_objects(values.astype(object), name)
        if is_sequence and len(values) and type(values[0]) is str and "\0" not in "".join(values):
            values = values.astype(str)  # as np.asarray does, but it would cut null characters off
    if values.dtype.kind in "mM":
        _check_missing(np.isnat(values), name)
    elif values.dtype.kind == "f":
        _check_missing(np.isnan(values), name)
        _check_whole(values, name)
    elif values.dtype.kind not in "biuUSO":
        prefix = "Complex data not supported: " if values.dtype.kind == "c" else ""
        raise ValueError(f"{prefix}{name} holds {values.dtype}, not class labels. Pass integers or strings.")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _as_array(y):
    """Return y as an array of any shape, and whether it is a sequence of Python objects."""
    if isinstance(y, Sequence) and not isinstance(y, str | bytes | bytearray | memoryview):
        # As objects, since NumPy makes strings of [1, "1"] and ["a", nan], and floats of [2**63, -1].
        objects = list(y)
        try:
            return np.array(objects, dtype=object), True
        except ValueError:  # arrays of several shapes
            return np.fromiter(objects, dtype=object, count=len(objects)), True
    if hasattr(y, "__dlpack__") and not hasattr(y, "__array__"):
        y = torch.from_dlpack(y)
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu()
        is_new_float = y.is_floating_point() and y.dtype not in (torch.float16, torch.float32, torch.float64)
        return (y.float() if is_new_float else y).numpy(), False
    return np.asanyarray(y) if isinstance(y, np.ma.MaskedArray) else np.asarray(y), False


def _wrong_shape(y, shape, name, instead):
    got = f"shape {shape}" if shape else f"a value of type {type(y).__name__}, shape ()"
    advice = " Pass a list or an array." if not shape else ""
    if len(shape) == 2:
        instead = instead or (
            "are taken by embedders and losses over pairs and by the measures of retrieval, as two or more columns of "
            "0 and 1"
        )
        advice = (
            f" Several labels per sample (multi-label) {instead}. Otherwise pass one column, {name}[:, 0]; for one-hot "
            f"rows, {name}.argmax(axis=1); for rows that are one label together, a string of each."
        )
    return f"{name} must be 1-D and hold one class label per sample, shape (n_samples,); got {got}.{advice}"


def _check_missing(is_missing, name):
    n_missing = np.count_nonzero(is_missing)
    if n_missing:
        raise ValueError(
            f"{name} contains NaN or other missing values: {n_missing} of {len(is_missing)} labels are missing. Leave "
            "these rows out, or give them a class of their own."
        )


def _check_whole(values, name):
    """Reject floats that are not class numbers; warn where a float may stand for several integers."""
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains infinity, but labels must be finite. Leave these rows out.")
    is_whole = values == np.floor(values)
    if not is_whole.all():
        raise ValueError(
            f"{name} must hold classes, but it is continuous, with values such as {values[~is_whole][0]:g}. Bin it "
            "first, for example with pandas.cut or KBinsDiscretizer; if the numbers are names of classes, pass "
            f"{name}.astype(str)."
        )
    limit = 2.0 ** (np.finfo(values.dtype).nmant + 1)
    if (np.abs(values) >= limit).any():
        warn(
            f"{name} holds floats of {limit:.0f} or more, which do not represent every integer: different labels may "
            "have become equal. Read them as integers or strings."
        )


def _from_objects(values, name):
    """Return labels (n,), objects of one kind of which none is missing, as a numeric array if they are numbers."""
    types = set(map(type, values))
    if not types:
        return values.astype(np.int64)
    if any(issubclass(t, np.ndarray | torch.Tensor) for t in types):
        values = _objects(x.item() if isinstance(x, np.ndarray | torch.Tensor) and not x.shape else x for x in values)
        types = set(map(type, values))
    several = [t.__name__ for t in types if t.__hash__ is None or issubclass(t, Set | torch.Tensor)]
    try:
        different = set() if several else set(values)
    except TypeError:  # such as a tuple that holds a list
        several = [t.__name__ for t in types]
    if several:
        raise ValueError(
            f"{name} must hold one class label per sample, but it holds objects of type {' and '.join(several)}. "
            "Several labels per sample (multi-label) are two or more columns of 0 and 1, where they are taken: pass "
            f"sklearn.preprocessing.MultiLabelBinarizer().fit_transform({name}), or one integer or string per sample."
        )
    if any(map(_is_missing, different)):
        _check_missing([_is_missing(label) for label in values], name)
    kinds = {_kind(t) for t in types}
    if kinds == {"float"}:
        return values.astype(np.float64)
    if kinds == {"int"}:
        return _integers(values)
    if kinds == {"int", "float"}:
        _check_whole(_objects(x for x in values if not isinstance(x, Integral)).astype(np.float64), name)
        return _integers(_objects(map(int, values)))
    if len(kinds) > 1:
        raise TypeError(_mixture(name, [t.__name__ for t in types]))
    if kinds == {"bool"}:
        return values.astype(bool)
    if len(types) == 1 and issubclass(*types, np.datetime64 | np.timedelta64):
        return np.array(values.tolist())
    if kinds == {"str"} and types != {str}:
        return _objects(map(str.__str__, values))  # of an Enum of strings the value
    return values


def _is_missing(label):
    return label is None or type(label).__name__ == "NAType" or bool(label != label)  # NaN and NaT differ from itself


def _kind(t):
    if issubclass(t, bool | np.bool_):
        return "bool"
    for kind, base in {"int": Integral, "float": float | np.floating, "str": str, "bytes": bytes}.items():
        if issubclass(t, base):
            return kind
    return "object"


def _kinds(labels):
    """Return the kind of the labels of an array in a set, which is empty if the array is."""
    if not len(labels):
        return set()
    kinds = {"U": "strings", "S": "bytes", "M": "dates", "m": "times", "O": "objects"}
    if labels.dtype.kind != "O":
        return {kinds.get(labels.dtype.kind, "numbers")}
    return {{"int": "numbers", "str": "strings", "bytes": "bytes"}.get(_kind(type(labels[0])), "objects")}


def _mixture(name, kinds):
    return (
        f"{name} must be of one sortable type, got a mixture: {' and '.join(sorted(kinds))}. Convert them, for example "
        "with [str(label) for label in labels]."
    )


def _joined(labels):
    """Return the arrays as one, without a common type that could merge labels."""
    if len(labels) == 1:
        return labels[0]
    kinds = {array.dtype.kind for array in labels}
    if kinds <= set("biuf") and len(kinds) > 1 and np.result_type(*labels).kind == "f":
        return _objects(int(label) for array in labels for label in array.tolist())
    if "O" in kinds:
        labels = [array.astype(object) for array in labels]
    return np.concatenate(labels)


def _unique_objects(labels):
    """Return the classes of an object array and the place of each label among them."""
    number = {}  # of a class, in the order of the first labels
    codes = np.fromiter((number.setdefault(label, len(number)) for label in labels), np.int64, len(labels))
    try:
        classes = sorted(number)
    except TypeError as error:
        raise TypeError(
            f"The labels must be of one sortable type, but {error}. Convert them, for example to strings."
        ) from error
    place = np.empty(len(classes), np.int64)
    place[[number[label] for label in classes]] = np.arange(len(classes))
    is_integer = len(classes) and _kind(type(classes[0])) in ("int", "bool")
    classes = _integers(_objects(map(int, classes))) if is_integer else _objects(classes)
    return classes, place[codes]


def _integers(values):
    """Return an object array of integers as int64 or, where one does not fit, as uint64 or Python integers."""
    try:
        return values.astype(np.int64)
    except OverflowError:
        values = _objects(map(int, values))
    return values.astype(np.uint64) if min(values) >= 0 and max(values) < 2**64 else values


def _objects(labels):
    """Return a 1-D array of any objects."""
    return np.fromiter(labels, dtype=object)
