"""Validation of y and of the sample weights."""

from numbers import Real

import numpy as np
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from .._warnings import warn
from .arrays import is_dispatched, ndim


def check_classes(estimator, X, y, kept, goes_on, partial, more_classes):
    """Return the classes, and the y of the kept rows encoded as 0..C-1."""
    name = type(estimator).__name__
    if y is None:
        raise ValueError(
            f"{name} requires y to be passed, but the target y is None. Call fit(X, y) with one class label per sample."
        )
    if is_dispatched(y):
        y = y.cpu().numpy()
    if ndim(y) != 1:
        raise ValueError(f"y must hold one class label per sample, shape (n_samples,); got shape {np.shape(y)}.")
    y = column_or_1d(y)
    assert_all_finite(y, input_name="y", estimator_name=name)
    check_consistent_length(X, y)
    y = y if kept is None else y[kept]
    check_classification_targets(y)
    classes = np.unique(y)
    if partial:
        classes = _all_classes(estimator, classes, more_classes)
    if len(classes) < 2:
        raise ValueError(f"{name} needs samples of at least 2 classes; y has 1 class, {classes[0]!r}.")
    if goes_on and not partial and not np.array_equal(classes, estimator.classes_):
        raise ValueError(
            f"With warm_start=True, y must have the classes of the previous fit ({len(estimator.classes_)} classes); "
            f"got {len(classes)} classes, with {np.setxor1d(classes, estimator.classes_)[:5]} among the differences. "
            "Set warm_start=False to start over."
        )
    y = np.searchsorted(classes, y)
    if estimator._pair_based:
        counts = np.unique(y, return_counts=True)[1]
        n_single = np.count_nonzero(counts == 1)
        if n_single == len(counts):
            raise ValueError(f"{name} pulls samples of one class together, but no class of y has two samples.")
        if n_single:
            warn(f"{n_single} of {len(counts)} classes have one sample and serve only as negatives.")
    if estimator.batch_size > len(y):
        warn(f"batch_size={estimator.batch_size} is larger than the {len(y)} samples: a batch holds all of them.")
    return classes, y


def _all_classes(estimator, classes, more_classes):
    """Return the classes of y together with those passed to partial_fit and those already known."""
    for others in (more_classes, getattr(estimator, "classes_", None)):
        if others is None:
            continue
        others = np.asarray(others)
        if (others.dtype.kind in "biuf") != (classes.dtype.kind in "biuf"):
            raise ValueError(
                f"y has labels of type {classes.dtype}, but the classes known so far or passed are of type "
                f"{others.dtype}. Use one type for all labels."
            )
        classes = np.union1d(classes, others)
    return classes


def check_sample_weight(sample_weight, y, kept, train_rows):
    """Return the weights of the kept rows as float32, or None; extreme ones are scaled, as only ratios matter."""
    if sample_weight is None:
        return None
    if is_dispatched(sample_weight):
        sample_weight = sample_weight.cpu().numpy()
    n_samples = len(y)
    if isinstance(sample_weight, Real):
        sample_weight = np.full(n_samples, sample_weight)
    weights = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weights.shape != (n_samples,):
        raise ValueError(
            f"sample_weight must hold one weight per sample, shape ({n_samples},), or be a number; got shape "
            f"{weights.shape}."
        )
    if (weights < 0).any():
        raise ValueError(
            f"sample_weight must be >= 0; its smallest value is {weights.min():g}. Set it to 0 for samples that should "
            "not count."
        )
    weights = weights if kept is None else weights[kept]
    counted = weights if train_rows is None else weights[train_rows]
    largest = counted.max()
    if largest == 0:
        held_out = "" if train_rows is None else " except those that early_stopping holds out"
        raise ValueError(f"sample_weight is zero for all samples{held_out}. Give other samples a weight > 0.")
    exponent = np.frexp(largest)[1]
    if abs(exponent) > 32:  # sums and products of weights would leave the range of float32
        with np.errstate(over="ignore"):  # rows that are held out may have any weight
            weights = np.ldexp(weights, -exponent)
    limits = np.finfo(np.float32)
    if largest > limits.max and (smallest := counted[counted > 0].min()) / largest < limits.tiny:
        raise ValueError(
            f"sample_weight contains infinity or a value too large for dtype('float32'): {largest:g}, next to "
            f"{smallest:g}. Clip the weights: one would count, and the others would not."
        )
    return np.minimum(weights, limits.max).astype(np.float32)
