"""Labels of any kind, in any container, wherever they are read."""

import datetime
import decimal
import enum
import fractions
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import DataConversionWarning
from sklearn.preprocessing import FunctionTransformer

from skdml import (
    ClassKFold,
    FoldEnsembleEmbedder,
    NormSoftmaxEmbedder,
    PairVerifier,
    calibrate_threshold,
    class_train_test_split,
    load,
    recall_at_k,
)
from skdml._labels import number_labels, read_labels
from skdml.inspection import pair_weights
from skdml.losses import RAWLoss
from skdml.metrics import nmi_score
from skdml.model_selection import ClassShuffleSplit

N = 24
CODES = np.arange(N) % 6
X = np.eye(6, dtype=np.float32)[CODES] + np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32) / 3


class OnlyArray:
    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


class OnlyDLPack:
    def __init__(self, values):
        self.values = torch.tensor(values)

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Whole(enum.IntEnum):
    A, B, C, D, E, F = range(6)


class Word(str, enum.Enum):  # noqa: UP042 - str() is not the value, as that of a StrEnum is
    A, B, C, D, E, F = "abcdef"


class Plain(enum.Enum):
    A, B, C, D, E, F = range(6)


def polars(dtype=None):
    """Return what makes a polars series, or skip."""

    def make(values):
        pl = pytest.importorskip("polars")
        return pl.Series(values, dtype=None if dtype is None else getattr(pl, dtype))

    return make


def arrow(values):
    pytest.importorskip("pyarrow")
    return pd.Series(values, dtype="int64[pyarrow]")


def strings_of_numpy(values, **options):
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("needs NumPy 2")
    return np.array(values, dtype=np.dtypes.StringDType(**options))


IDS = [2**60 + i for i in range(6)]  # floats would make one of them
NAMES = ["ant", "bee", "cat", "dog", "eel", "fly"]
DATES = [datetime.date(2020, 1, day) for day in range(1, 7)]
INTEGERS = {
    "list": list,
    "tuple": tuple,
    "int64": np.array,
    "uint64": lambda v: np.array(v, dtype=np.uint64),
    "big-endian": lambda v: np.array(v, dtype=">i8"),
    "objects": lambda v: np.array(v, dtype=object),
    "objects of NumPy": lambda v: np.array([np.int64(x) for x in v], dtype=object),
    "tensor": torch.tensor,
    "list of tensors": lambda v: [torch.tensor(x) for x in v],
    "Series": lambda v: pd.Series(v, index=range(100, 100 + len(v))),
    "Int64": lambda v: pd.Series(v, dtype="Int64"),
    "UInt64 array": lambda v: pd.array(v, dtype="UInt64"),
    "int64[pyarrow]": arrow,
    "categorical": pd.Categorical,
    "nullable categorical": lambda v: pd.Series(v, dtype="Int64").astype("category"),
    "Index": pd.Index,
    "polars": polars(),
    "polars UInt64": polars("UInt64"),
    "__array__": OnlyArray,
    "__dlpack__": OnlyDLPack,
    "masked": np.ma.array,
}
OTHERS = {
    "strings": (NAMES, list),
    "U": (NAMES, np.array),
    "objects": (NAMES, lambda v: np.array(v, dtype=object)),
    "StringDType": (NAMES, strings_of_numpy),
    "string": (NAMES, lambda v: pd.Series(v, dtype="string")),
    "str": (NAMES, pd.Series),
    "category": (NAMES, lambda v: pd.Series(v, dtype="category")),
    "polars": (NAMES, polars()),
    "polars Categorical": (NAMES, polars("Categorical")),
    "null characters": ([name + "\0" for name in NAMES], list),
    "bytes": ([name.encode() + b"\0" for name in NAMES], list),
    "S": ([name.encode() for name in NAMES], np.array),
    "dates": (DATES, list),
    "datetimes of NumPy": ([np.datetime64(date) for date in DATES], list),
    "datetime64": (DATES, lambda v: np.array(v, dtype="datetime64[D]")),
    "timestamps": ([pd.Timestamp(date) for date in DATES], list),
    "time zone": (DATES, lambda v: pd.Series(pd.to_datetime(v)).dt.tz_localize("UTC")),
    "periods": (DATES, lambda v: pd.Series(pd.to_datetime(v)).dt.to_period("D")),
    "bins": (range(6), lambda v: pd.cut(np.array(v), [-1, 0, 1, 2, 3, 4, 5])),
    "floats": (range(6), lambda v: np.array(v, dtype=np.float32)),
    "int and float": ([0, 1.0, 2, 3, 4, 5.0], list),
    "above 64 bits": ([2**70 + i for i in range(6)], list),
    "both signs": ([-1, *range(2**63, 2**63 + 5)], list),
    "fractions": ([fractions.Fraction(i, 7) for i in range(6)], list),
    "decimals": ([decimal.Decimal(i) for i in range(6)], list),
    "tuples": ([(i, "a") for i in range(6)], pd.Series),
    "IntEnum": (list(Whole), list),
    "Enum of str": (list(Word), list),
    "uint8": (range(6), lambda v: np.array(v, dtype=np.uint8)),
    "bfloat16": (range(6), lambda v: torch.tensor(v, dtype=torch.bfloat16)),
    "uint16": (range(6), lambda v: torch.tensor(v, dtype=torch.uint16)),
}


def labels_of(classes, container):
    return container([list(classes)[c] for c in CODES])


EVERY = [
    *(pytest.param(IDS, container, id=f"integers, {name}") for name, container in INTEGERS.items()),
    *(pytest.param(classes, container, id=name) for name, (classes, container) in OTHERS.items()),
]


@pytest.mark.filterwarnings("ignore:Most queries have an identical row")
@pytest.mark.parametrize(("classes", "container"), EVERY)
def test_every_kind_is_read_exactly(classes, container):
    y = labels_of(classes, container)
    assert recall_at_k(X, y) == recall_at_k(X, CODES)
    assert recall_at_k(X, y, gallery=X[::-1].copy(), gallery_y=read_labels(y)[::-1]) == 1
    folds = [[part.tolist() for part in fold] for fold in ClassKFold(3).split(X, y)]
    assert folds == [[part.tolist() for part in fold] for fold in ClassKFold(3).split(X, CODES)]
    np.testing.assert_array_equal(pair_weights(RAWLoss(), X, y), pair_weights(RAWLoss(), X, CODES))
    found, (codes,) = number_labels(read_labels(y))
    assert codes.tolist() == CODES.tolist()
    assert len(found) == 6


def fitted(y, **options):
    embedder = NormSoftmaxEmbedder(max_epochs=1, batch_size=8, hidden_layer_sizes=(), n_components=2, random_state=0)
    return embedder.set_params(**options).fit(X, y)


@pytest.mark.parametrize("container", INTEGERS.values(), ids=INTEGERS)
def test_classes_of_integers_are_integers(container):
    embedder = fitted(labels_of(IDS, container))
    assert embedder.classes_.tolist() == IDS
    assert embedder.classes_.dtype.kind in "iu"
    np.testing.assert_array_equal(embedder.transform(X), fitted(CODES).transform(X))


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        (np.array(CODES, dtype=np.uint8), np.uint8),
        (CODES.astype(np.float32), np.float32),
        (CODES > 2, bool),
        (list(CODES > 2), bool),
        (pd.Series(CODES > 2, dtype="boolean"), bool),
        (np.array(CODES > 2, dtype=object), bool),
        (torch.tensor(CODES > 2), bool),
        (np.array(NAMES)[CODES], "U3"),
        (np.array(NAMES)[CODES].tolist(), "U3"),
        (np.array(NAMES, dtype=object)[CODES], object),
        (np.array(DATES, dtype="datetime64[s]")[CODES], "datetime64[s]"),
        ([list(Word)[c] for c in CODES], "U1"),
    ],
    ids=lambda value: f"{type(value).__name__} of {value[0]!r}" if hasattr(value, "__len__") else str(value),
)
def test_dtype_of_classes(y, dtype, tmp_path):
    embedder = fitted(y)
    assert embedder.classes_.dtype == dtype
    assert embedder.classes_.tolist() == np.unique(read_labels(y)).tolist()
    embedder.save(tmp_path / "embedder")
    np.testing.assert_array_equal(load(tmp_path / "embedder").classes_, embedder.classes_)


def with_missing(values, missing, container=list):
    return container([*values[:-2], missing, missing])


MISSING = {
    "NaN": with_missing(CODES.tolist(), np.nan),
    "NaN in floats": np.array(with_missing(CODES.tolist(), np.nan)),
    "None": with_missing(IDS, None),
    "NaN among strings": with_missing(NAMES, np.nan),
    "None among strings": with_missing(NAMES, None, lambda v: np.array(v, dtype=object)),
    "None among dates": with_missing(DATES, None),
    "NaT": np.array(with_missing(DATES, None), dtype="datetime64[D]"),
    "NaT of pandas": with_missing([pd.Timestamp(date) for date in DATES], pd.NaT),
    "NA": with_missing(NAMES, pd.NA),
    "Int64": pd.Series(with_missing(IDS, None), dtype="Int64"),
    "boolean": pd.Series([True, False, None, None], dtype="boolean"),
    "string": pd.Series(with_missing(NAMES, None), dtype="string"),
    "category": pd.Series(with_missing(NAMES, None), dtype="category"),
    "category of integers": pd.Categorical.from_codes([0, 1, -1, -1], IDS),
    "masked": np.ma.array(IDS, mask=[0, 0, 0, 0, 1, 1]),
    "tensor": torch.tensor([0.0, 1, torch.nan, torch.nan]),
    "polars": lambda: polars()(with_missing(IDS, None)),
    "polars strings": lambda: polars()(with_missing(NAMES, None)),
    "polars booleans": lambda: polars()([True, False, None, None]),
    "StringDType": lambda: strings_of_numpy(with_missing(NAMES, np.nan), na_object=np.nan),
}


@pytest.mark.parametrize("y", MISSING.values(), ids=MISSING)
def test_missing_labels_are_counted(y):
    y = y() if callable(y) else y
    n = len(y)
    for read in (lambda: recall_at_k(np.eye(n), y), lambda: list(ClassKFold(2).split(np.eye(n), y))):
        with pytest.raises(ValueError, match=rf"^y contains NaN or other missing values: 2 of {n} labels"):
            read()


def embedder_with(**options):
    return NormSoftmaxEmbedder(max_epochs=1, batch_size=8, hidden_layer_sizes=(), **options)


IDENTITY = FunctionTransformer().fit(X)
READERS = {
    "fit": lambda y: embedder_with().fit(X, y),
    "partial_fit": lambda y: embedder_with().partial_fit(X, y),
    "partial_fit classes": lambda y: embedder_with().partial_fit(X, CODES, classes=y),
    "warm_start": lambda y: embedder_with(warm_start=True).fit(X, CODES).fit(X, y),
    "score": lambda y: embedder_with().fit(X, CODES).score(X, y),
    "fold ensemble": lambda y: FoldEnsembleEmbedder(embedder_with(), cv=2).fit(X, y),
    "recall_at_k": lambda y: recall_at_k(X, y),
    "nmi_score": lambda y: nmi_score(X, y),
    "gallery": lambda y: recall_at_k(X, CODES, gallery=X, gallery_y=y),
    "ClassKFold": lambda y: list(ClassKFold(2).split(X, y)),
    "ClassShuffleSplit": lambda y: list(ClassShuffleSplit(2, random_state=0).split(X, y)),
    "class_train_test_split": lambda y: class_train_test_split(X, y),
    "calibrate_threshold": lambda y: calibrate_threshold(IDENTITY, X, y),
    "PairVerifier": lambda y: PairVerifier(IDENTITY).fit(X, y),
    "pair_weights": lambda y: pair_weights(RAWLoss(), X, y),
}
BAD = {
    "missing": (np.where(CODES == 1, None, CODES), ValueError, "missing values: 4 of 24"),
    "infinite": (np.where(CODES == 1, np.inf, CODES), ValueError, "contains infinity"),
    "continuous": (np.linspace(0, 1, N), ValueError, "continuous, with values such as .* Bin it"),
    "lists": ([[1], [2, 3]] * 12, ValueError, "one class label per sample, but it holds objects of type list. Several"),
    "sets": ([{1}, {2, 3}] * 12, ValueError, "one class label per sample, but it holds objects of type set. Several"),
    "pairs": ([(1, 2)] * N, ValueError, r"one class label per sample.* got shape \(24, 2\)"),
    "text": ("abc", ValueError, "one class label per sample.* got a value of type str"),
    "dict": ({0: 1}, ValueError, r"got a value of type dict.* Pass a list"),
    "mixture": ([0, "0"] * 12, TypeError, "one sortable type, got a mixture: int and str"),
    "no order": (
        list(Plain) * 4,
        (TypeError, ValueError),
        "'<' not supported.* Convert them|mixture: numbers and objects.* Convert them|one type for all labels",
    ),
    "complex": (np.full(N, 1j), ValueError, r"Complex data not supported: \w+ holds complex128"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("y", "error", "message"), BAD.values(), ids=BAD)
def test_bad_labels_are_refused_everywhere(reader, y, error, message):
    with pytest.raises(error, match=message):
        reader(y)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"score", "recall_at_k", "gallery", "pair_weights"}))
def test_several_labels_are_refused_where_classes_are_needed(name):
    with pytest.raises(ValueError, match=r"one class label per sample.* got shape \(24, 6\). Several.*argmax"):
        READERS[name](np.eye(6)[CODES])


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"^gallery_y contains NaN"):
        READERS["gallery"](BAD["missing"][0])
    with pytest.raises(ValueError, match=r"^classes must hold classes"):
        READERS["partial_fit classes"](BAD["continuous"][0])


@pytest.mark.filterwarnings("ignore:Most queries have an identical row")
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_column_is_read_with_a_warning(reader):
    with pytest.warns(DataConversionWarning, match="A column-vector .* was passed when a 1d array was expected"):
        reader(CODES[:, None])
    for column in (CODES[:, None].tolist(), pd.DataFrame({"y": CODES})):
        with pytest.warns(DataConversionWarning):
            assert read_labels(column).tolist() == CODES.tolist()


@pytest.mark.filterwarnings("ignore:Most queries have an identical row")
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_labels_with_only_array(reader):
    reader(OnlyArray(CODES))


def test_weights_of_labels_with_only_array():
    w = np.linspace(0, 1, N)
    embedder = embedder_with(random_state=0)
    expected = embedder.fit(X, CODES, sample_weight=w).transform(X)
    np.testing.assert_array_equal(embedder.fit(X, OnlyArray(CODES), sample_weight=w).transform(X), expected)
    embedder.fit(X, OnlyArray(CODES), sample_weight=2.0)


@pytest.mark.filterwarnings("ignore:Most queries have an identical row")
def test_numbers_meet_by_value_and_others_do_not():
    large = np.array(IDS)[CODES]
    for gallery_y in (
        large.astype(np.uint64),
        large.astype(object),
        torch.tensor(large),
        pd.Series(large, dtype="Int64"),
    ):
        assert recall_at_k(X, large, gallery=X, gallery_y=gallery_y) == 1
    assert recall_at_k(X, CODES.astype(np.float32), gallery=X, gallery_y=CODES) == 1
    # 2**53 + 1 is not 2**53, which a common type of floats would make of it.
    classes, (a, b) = number_labels(np.array([2**53 + 1, 0]), np.array([2.0**53]))
    assert classes.tolist() == [0, 2**53, 2**53 + 1]
    assert (a.tolist(), b.tolist()) == ([2, 0], [1])
    with pytest.raises(TypeError, match="got a mixture: numbers and strings"):
        recall_at_k(X, CODES, gallery=X, gallery_y=CODES.astype(str))


def test_partial_fit_keeps_integers_of_64_bits():
    y = np.array(IDS)[CODES]
    embedder = embedder_with(random_state=0, proxy_learning_rate=1e-20, weight_decay=0)
    embedder.partial_fit(X[CODES < 3], pd.Series(y[CODES < 3], dtype="Int64"), classes=IDS[:4])
    known = embedder.criterion_.proxies.detach().clone()
    embedder.partial_fit(X, y.astype(np.uint64))
    assert embedder.classes_.tolist() == IDS
    torch.testing.assert_close(embedder.criterion_.proxies[:4], known)
    embedder.set_params(warm_start=True).fit(X, y.astype(object))
    with pytest.raises(ValueError, match=r"previous fit \(6 classes\); got 5 classes"):
        embedder.fit(X[CODES < 5], y[CODES < 5])
    with pytest.raises(ValueError, match="one type for all labels"):
        embedder.fit(X, y.astype(str))


def test_floats_that_may_have_merged_labels_warn():
    with pytest.warns(UserWarning, match="y holds floats of 16777216 or more"):
        recall_at_k(X, np.float32(2**24) + CODES.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recall_at_k(X, 2.0**52 + CODES)


@pytest.mark.parametrize("shape", [(20, 2, 3), (20, 4, 3)])
def test_pairs_in_place_of_samples(shape):
    with pytest.raises(ValueError, match=r"pairs, triplets or quadruplets, fit a PairsEmbedder.*class of each"):
        embedder_with().fit(np.zeros(shape), np.ones(20))
