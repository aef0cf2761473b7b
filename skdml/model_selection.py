"""Splitters whose training and test sets have no class in common.

Metric learning is evaluated on classes that were not seen in training. scikit-learn's own splitters put every class on
both sides or need the classes a second time, as ``groups``; these split the classes in y itself. Their ``groups`` are
what else must not be on both sides.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import KFold, ShuffleSplit, train_test_split
from sklearn.utils import check_consistent_length, indexable

from ._labels import number_labels, read_labels

__all__ = ["ClassKFold", "ClassShuffleSplit", "class_train_test_split"]


class ClassKFold(KFold):
    """K-fold cross-validation over classes: each class is in the test set of exactly one fold.

    Without shuffling, the folds are contiguous blocks of the sorted classes, as in [1]_.

    Parameters
    ----------
    n_splits : int, default=4
        Number of folds, from 2 to the number of classes.
    shuffle : bool, default=False
        Whether to assign the classes to the folds at random.
    random_state : int, RandomState instance or None, default=None
        Seed of the shuffling; used only with `shuffle=True`.

    Raises
    ------
    ValueError
        If `n_splits` is not an integer or < 2, or `random_state` is set without `shuffle`.
    TypeError
        If `shuffle` is not a bool.

    See Also
    --------
    ClassShuffleSplit : Random shares of the classes.
    class_train_test_split : One split, as in the papers.

    Notes
    -----
    Folds have the same number of classes, give or take one, but not the same number of samples.

    References
    ----------
    .. [1] K. Musgrave, S. Belongie, S.-N. Lim, "A Metric Learning Reality Check", ECCV 2020, Section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from skdml.model_selection import ClassKFold
    >>> y = np.array(["ant", "bee", "cat", "dog", "ant", "bee"])
    >>> for train, test in ClassKFold(2).split(None, y):
    ...     print(y[train], y[test])
    ['cat' 'dog'] ['ant' 'bee' 'ant' 'bee']
    ['ant' 'bee' 'ant' 'bee'] ['cat' 'dog']
    """

    __metadata_request__split = {"groups": True}

    def __init__(self, n_splits=4, *, shuffle=False, random_state=None):
        super().__init__(n_splits, shuffle=shuffle, random_state=random_state)

    def split(self, X, y=None, groups=None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the indices of the training and the test samples of each fold.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or None
            Only its length is used.
        y : array-like of shape (n_samples,)
            Class of each sample.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample, such as a photographer or a product page. Then no group is on both sides either:
            classes that share a group stay together and count as one class.

        Yields
        ------
        train : ndarray of int
            Indices of the training samples, in ascending order.
        test : ndarray of int
            Indices of the test samples, in ascending order.

        Raises
        ------
        ValueError
            If y is missing, continuous or not as long as X, groups are not as long or hold missing values, or there are
            fewer classes, or classes without a common group, than folds.
        """
        codes, n_classes = _encode(X, y)
        if self.n_splits > n_classes:
            raise ValueError(
                f"n_splits={self.n_splits} needs at least as many classes, but y has {n_classes}. Use fewer folds."
            )
        if groups is not None:
            codes, n_classes = _link(codes, n_classes, groups, self.n_splits)
        for train, test in super().split(np.arange(n_classes)):
            yield _members(codes, train), _members(codes, test)


class ClassShuffleSplit(ShuffleSplit):
    """Random splits of the classes: some of them for training, others for testing.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits, drawn independently.
    test_size : float or int, default=None
        Share of the classes in (0, 1), rounded up, or number of classes in the test set. None: all classes not in the
        training set, or a tenth of the classes if `train_size` is None too.
    train_size : float or int, default=None
        Share of the classes in (0, 1), rounded down, or number of classes in the training set. None: all classes not in
        the test set.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws. With an integer, each call of `split` gives the same splits.

    See Also
    --------
    ClassKFold : Each class is tested once.
    class_train_test_split : One split, as in the papers.

    Examples
    --------
    >>> from skdml.model_selection import ClassShuffleSplit
    >>> y = ["ant", "bee", "cat", "dog", "ant", "bee"]
    >>> for train, test in ClassShuffleSplit(2, test_size=0.5, random_state=0).split(None, y):
    ...     print([y[i] for i in train], [y[i] for i in test])
    ['ant', 'bee', 'ant', 'bee'] ['cat', 'dog']
    ['bee', 'dog', 'bee'] ['ant', 'cat', 'ant']
    """

    __metadata_request__split = {"groups": True}

    def __init__(self, n_splits=10, *, test_size=None, train_size=None, random_state=None):
        super().__init__(n_splits, test_size=test_size, train_size=train_size, random_state=random_state)

    def split(self, X, y=None, groups=None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the indices of the training and the test samples of each split.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or None
            Only its length is used.
        y : array-like of shape (n_samples,)
            Class of each sample.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample, such as a photographer or a product page. Then no group is on both sides either:
            classes that share a group stay together and count as one class.

        Yields
        ------
        train : ndarray of int
            Indices of the training samples, in ascending order.
        test : ndarray of int
            Indices of the test samples, in ascending order.

        Raises
        ------
        ValueError
            If y is missing, continuous or not as long as X, groups are not as long or hold missing values, or the
            classes, or those without a common group, cannot be divided into the requested sizes.
        """
        codes, n_classes = _encode(X, y)
        if groups is not None:
            codes, n_classes = _link(codes, n_classes, groups, 2)
        for train, test in super().split(np.arange(n_classes)):
            yield _members(codes, train), _members(codes, test)


def class_train_test_split(X, y, *arrays, test_size=0.5, shuffle=False, random_state=None):
    """Split into training and test data with no class in common: the first classes for training, the last for testing.

    With the defaults, the first half of the sorted classes is for training and the second half for testing, as in the
    papers [1]_. If the number of classes is odd, the test set gets one more.

    Parameters
    ----------
    X : array-like, data frame or sparse matrix of shape (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class of each sample.
    *arrays : array-like, data frame or sparse matrix of shape (n_samples, ...)
        What else belongs to the samples, such as weights or groups.
    test_size : float or int, default=0.5
        Share of the classes in (0, 1), rounded up, or number of classes in the test set.
    shuffle : bool, default=False
        Whether to draw the test classes at random instead of taking the last ones.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw; used only with `shuffle=True`.

    Returns
    -------
    X_train, X_test : of the type of X
        Samples, in their original order.
    y_train, y_test : of the type of y
        Their classes. The two parts of each further array follow.

    Raises
    ------
    TypeError
        If a further array is a number or another object without a length.
    ValueError
        If the lengths differ, y is missing, continuous or of only one class, `test_size` leaves one side without
        classes, or `random_state` is set without `shuffle`.

    See Also
    --------
    ClassKFold : Each class is tested once.

    References
    ----------
    .. [1] H. Oh Song, Y. Xiang, S. Jegelka, S. Savarese, "Deep Metric Learning via Lifted Structured Feature
       Embedding", CVPR 2016, Section 5.

    Examples
    --------
    >>> from skdml.model_selection import class_train_test_split
    >>> X, y = [[1], [2], [3], [4], [5]], ["ant", "bee", "cat", "dog", "ant"]
    >>> X_train, X_test, y_train, y_test = class_train_test_split(X, y)
    >>> X_train, y_train
    ([[1], [2], [5]], ['ant', 'bee', 'ant'])
    >>> X_test, y_test
    ([[3], [4]], ['cat', 'dog'])
    >>> *_, weight_train, weight_test = class_train_test_split(X, y, [0.1, 0.2, 0.3, 0.4, 0.5])
    >>> weight_test
    [0.3, 0.4]
    """
    if random_state is not None and not shuffle:
        raise ValueError(f"random_state={random_state!r} has no effect without shuffling. Set shuffle=True.")
    for array in arrays:
        if not hasattr(array, "__len__"):
            raise TypeError(f"Arrays must hold one entry per sample, got {array!r}. Pass test_size and others by name.")
    codes, n_classes = _encode(X, y)
    X, y, *arrays = indexable(X, y, *arrays)
    if n_classes < 2:
        raise ValueError(f"y must hold at least 2 classes, got {n_classes}. Pass samples of more classes.")
    classes = train_test_split(np.arange(n_classes), test_size=test_size, shuffle=shuffle, random_state=random_state)
    train, test = (_members(codes, side) for side in classes)
    return [part for data in (X, y, *arrays) for part in (_take(data, train), _take(data, test))]


def _encode(X, y):
    """Check y; return the index of each sample's class among the sorted classes, and the number of classes."""
    if y is None:
        raise ValueError("y is missing, but the split is made over its classes. Pass the class of each sample.")
    y = read_labels(y, instead="cannot be on one side of a split each: use KFold or ShuffleSplit of scikit-learn")
    check_consistent_length(X, y)
    classes, (codes,) = number_labels(y)
    return codes, len(classes)


def _link(codes, n_classes, groups, n_needed):
    """Return the samples' classes and their number after classes that share a group have become one."""
    groups = read_labels(groups, "groups")
    if groups.shape != codes.shape:
        raise ValueError(f"groups must hold one group per sample, shape {codes.shape}, got shape {groups.shape}.")
    names, (groups,) = number_labels(groups)
    n_nodes = n_classes + len(names)  # of a graph in which each sample links its class with its group
    graph = coo_array((np.ones(len(codes)), (codes, n_classes + groups)), shape=(n_nodes, n_nodes))
    _, parts = connected_components(graph, directed=False)  # numbered in the order of their first classes
    parts, codes = np.unique(parts[codes], return_inverse=True)
    if len(parts) < n_needed:
        raise ValueError(
            f"A class and a group cannot be on one side only: groups link the classes into {len(parts)} sets, and at "
            f"least {n_needed} are needed. Use fewer folds, or leave out groups that hold samples of many classes."
        )
    return codes, len(parts)


def _members(codes, classes):
    """Return the indices of the samples of the given classes."""
    return np.flatnonzero(np.isin(codes, classes))


def _take(data, indices):
    if hasattr(data, "iloc"):
        return data.iloc[indices]
    return data[indices] if hasattr(data, "shape") else [data[i] for i in indices]
