"""Validation of y and of the sample weights."""

from numbers import Real

import numpy as np
from sklearn.utils import check_array, check_consistent_length

from .._ambient import warn
from .._labels import are_comparable, number_labels, one_class_message, read_labels, read_targets
from .arrays import is_dispatched


def read_target(estimator, X, y):
    """Return the labels of y, one per row of X, or the indicator of several labels, as `read_targets` does."""
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None. Call fit(X, y) with one "
            "class label per sample. Where only pairs, triplets or quadruplets are known, use PairsEmbedder, "
            "TripletsEmbedder or QuadrupletsEmbedder."
        )
    y = read_targets(y)
    check_consistent_length(X, y)
    return y


def check_classes(estimator, y, kept, goes_on, partial, more_classes):
    """Return the classes, and the y of the kept rows encoded as 0..C-1."""
    name = type(estimator).__name__
    others = []
    if partial:
        others = [] if more_classes is None else [read_labels(more_classes, "classes")]
    if goes_on:
        others.append(estimator.classes_)
    y = y if kept is None else y[kept]
    if not are_comparable(y, *others):
        raise ValueError(
            f"y has labels of type {y.dtype}, but the classes known so far or passed are of type "
            f"{others[0].dtype}. Use one type for all labels."
        )
    classes, (codes, *_) = number_labels(y, *others)
    present = np.unique(codes)
    if len(present if goes_on and not partial else classes) < 2:
        raise ValueError(f"{name} needs samples of at least 2 classes; y has 1 class, {classes[codes[0]]!r}.")
    if goes_on and not partial and not len(present) == len(classes) == len(estimator.classes_):
        known = number_labels(classes, estimator.classes_)[1][1]
        raise ValueError(
            f"With warm_start=True, y must have the classes of the previous fit ({len(known)} classes); "
            f"got {len(present)} classes, with {classes[np.setxor1d(present, known)][:5]} among the differences. "
            "Set warm_start=False to start over."
        )
    if estimator._pair_based:
        counts = np.bincount(codes)[present]
        n_single = np.count_nonzero(counts == 1)
        if n_single == len(counts):
            raise ValueError(f"{name} pulls samples of one class together, but no class of y has two samples.")
        if n_single:
            warn(f"{n_single} of {len(counts)} classes have one sample and serve only as negatives.")
    _warn_of_large_batch(estimator, y)
    return classes, codes


def _warn_of_large_batch(estimator, y):
    if estimator.batch_size > len(y):
        warn(f"batch_size={estimator.batch_size} is larger than the {len(y)} samples: a batch holds all of them.")


def check_indicator(estimator, y, names, kept, goes_on, partial, more_classes):
    """Return the names of the labels as the classes, and the y of the kept rows, bool (n_samples, n_labels)."""
    name = type(estimator).__name__
    if estimator._one_class:
        raise ValueError(one_class_message(name, estimator._one_class, y.shape))
    if more_classes is not None:
        raise ValueError(
            f"Got classes= and y of shape {y.shape}. With several labels per sample, the columns of y are the classes, "
            "and later calls need the same ones: leave classes out, and pass columns of zeros for labels to come."
        )
    if goes_on and not np.array_equal(names, estimator.classes_):
        raise ValueError(
            f"To go on from the previous fit, the columns of y must be its {len(estimator.classes_)} classes in their "
            f"order; got {len(names)} columns, {names[:5]}, and the classes {estimator.classes_[:5]}. Pass the same "
            "columns, or fit anew."
        )
    y = y if kept is None else y[kept]
    counts = y.sum(axis=0)
    if estimator._pair_based:
        if counts.max() < 2:
            raise ValueError(f"{name} pulls samples with a label in common together, but no label has two samples.")
        # A row of zeros is meant to be a negative; that a label has a single sample may be unknown.
        n_single = np.count_nonzero(y.any(axis=1) & ~y[:, counts > 1].any(axis=1))
        if n_single:
            warn(f"{n_single} of {len(y)} samples have only labels of one sample and serve only as negatives.")
    if not (goes_on and partial) and not _has_negatives(y):
        raise ValueError(
            f"{name} needs samples without a label in common, but any two samples of y share one. Leave out labels "
            "that nearly all samples have."
        )
    _warn_of_large_batch(estimator, y)
    return names, y


def _has_negatives(y):
    """Return whether two rows of the indicator have no label in common."""
    y = y.astype(np.float32)
    return any((rows @ y.T == 0).any() for rows in np.array_split(y, -(-len(y) // 256)))


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
