"""Class-disjoint splitters: no class on both sides, nothing lost, same seed same split."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.model_selection import BaseCrossValidator, BaseShuffleSplit, GridSearchCV, cross_val_score, cross_validate

from skdml.metrics import RecallAtK
from skdml.model_selection import ClassKFold, ClassShuffleSplit, class_train_test_split

SPLITTERS = [
    ClassKFold(3),
    ClassKFold(3, shuffle=True, random_state=0),
    ClassShuffleSplit(3, test_size=0.4, random_state=0),
]
LABELS = st.lists(st.integers(-5, 5), min_size=3, max_size=40).filter(lambda y: len(set(y)) >= 3)


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
@given(y=LABELS)
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_no_class_on_both_sides_and_no_sample_lost(splitter, y):
    y = np.array(y)
    folds = list(splitter.split(np.zeros((len(y), 2)), y))
    assert len(folds) == splitter.get_n_splits() == 3
    for train, test in folds:
        assert not set(y[train]) & set(y[test])
        assert len(train) > 0
        assert len(test) > 0
        assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(y)))
        assert (np.diff(train) > 0).all()
        assert (np.diff(test) > 0).all()


@given(y=LABELS, shuffle=st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_k_fold_tests_each_class_once(y, shuffle):
    folds = ClassKFold(3, shuffle=shuffle).split(None, y)
    tested = [set(np.array(y)[test]) for _, test in folds]
    assert sorted(label for classes in tested for label in classes) == sorted(set(y))
    sizes = [len(classes) for classes in tested]
    assert max(sizes) - min(sizes) <= 1


def test_k_fold_takes_blocks_of_the_sorted_classes():
    y = np.array(["c", "a", "d", "b", "e", "a"])
    tested = [sorted(set(y[test])) for _, test in ClassKFold(2).split(None, y)]
    assert tested == [["a", "b", "c"], ["d", "e"]]


def test_k_fold_shuffles():
    y = np.arange(40)
    plain, shuffled = (list(cv.split(None, y)) for cv in (ClassKFold(), ClassKFold(shuffle=True, random_state=0)))
    assert len(plain) == len(shuffled) == 4
    assert plain[0][1].tolist() == list(range(10))
    assert shuffled[0][1].tolist() != list(range(10))


@pytest.mark.parametrize("splitter", [ClassKFold, ClassShuffleSplit])
def test_same_seed_same_splits(splitter):
    y = np.arange(60) % 20
    options = {"shuffle": True} if splitter is ClassKFold else {}

    def tests(seed):
        return [test.tolist() for _, test in splitter(5, random_state=seed, **options).split(None, y)]

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert tests(0) == tests(0)
    assert tests(0) != tests(1)
    assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    draws = np.random.RandomState(0)
    assert tests(draws) != tests(draws)


@pytest.mark.parametrize(
    ("sizes", "n_train", "n_test"),
    [
        ({}, 9, 1),
        ({"test_size": 0.25}, 7, 3),
        ({"test_size": 4}, 6, 4),
        ({"train_size": 0.25}, 2, 8),
        ({"train_size": 3, "test_size": 2}, 3, 2),
    ],
)
def test_shuffle_split_counts_classes(sizes, n_train, n_test):
    y = np.repeat(np.arange(10), np.arange(1, 11))
    for train, test in ClassShuffleSplit(4, random_state=0, **sizes).split(None, y):
        assert (len(set(y[train])), len(set(y[test]))) == (n_train, n_test)
        assert not set(y[train]) & set(y[test])


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
@given(y=LABELS, seed=st.integers(0, 99), share=st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_no_group_on_both_sides(splitter, y, seed, share):
    y = np.array(y)
    rng = np.random.default_rng(seed)
    # Each class has groups of its own, or some that it shares with another class.
    groups = np.where(rng.random(len(y)) < share, y, rng.permutation(np.unique(y))[rng.integers(2, size=len(y))])
    groups = np.array(list("abcdefghijk"))[groups + 5]
    try:
        folds = list(splitter.split(None, y, groups))
    except ValueError as error:
        assert "groups link the classes into" in str(error) or "test_size=0.4" in str(error)  # noqa: PT017
        return
    for train, test in folds:
        assert not set(y[train]) & set(y[test])
        assert not set(groups[train]) & set(groups[test])
        assert len(train) > 0
        assert len(test) > 0
        assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(y)))
    if isinstance(splitter, ClassKFold):
        assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(len(y)))


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_groups_within_classes_and_classes_within_groups(splitter):
    y = np.array([2, 0, 1, 1, 3, 0, 4, 5])
    expected = [test.tolist() for _, test in splitter.split(None, y)]
    finer = [f"{label}{i % 2}" for i, label in enumerate(y)]
    coarser = y // 2
    assert [test.tolist() for _, test in splitter.split(None, y, finer)] == expected
    assert [test.tolist() for _, test in splitter.split(None, y, coarser)] == [
        test.tolist() for _, test in splitter.split(None, coarser)
    ]


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1, 0, 1, 0, 1], "groups link the classes into 1 sets, and at least [23] are needed"),
        ([0, 1, 2], r"groups must hold one group per sample, shape \(6,\), got shape \(3,\)"),
        ([[0, 0]] * 6, r"groups must be 1-D .* got shape \(6, 2\)"),
        (["a", None, "b", "c", "d", "e"], "groups contains NaN or other missing values: 1 of 6"),
        ([0.0, np.nan, 1.0, 2.0, 3.0, 4.0], "groups contains NaN or other missing values: 1 of 6"),
    ],
)
def test_groups_are_checked(splitter, groups, message):
    with pytest.raises(ValueError, match=message):
        list(splitter.split(None, [0, 0, 1, 1, 2, 2], groups))


def test_labels_of_any_kind_give_the_same_folds():
    y = np.array([2, 0, 1, 1, 3, 0])
    expected = [test.tolist() for _, test in ClassKFold(2).split(None, y)]
    series = pd.Series(y, index=list("uvwxyz"))
    for same in (y.tolist(), series, y + 2**60, y - 9.0, torch.tensor(y), np.array(["a", "b", "c", "d"])[y]):
        assert [test.tolist() for _, test in ClassKFold(2).split(None, same)] == expected


def test_they_are_splitters():
    assert isinstance(ClassKFold(), BaseCrossValidator)
    assert isinstance(ClassShuffleSplit(), BaseShuffleSplit)
    assert repr(ClassKFold(3)) == "ClassKFold(n_splits=3, random_state=None, shuffle=False)"
    assert repr(ClassShuffleSplit(test_size=0.5)) == (
        "ClassShuffleSplit(n_splits=10, random_state=None, test_size=0.5,\n         train_size=None)"
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ClassKFold(1), ValueError, "at least one train/test split by setting n_splits=2 or more"),
        (lambda: ClassKFold(2.0), ValueError, "Integral"),
        (lambda: ClassKFold(shuffle="yes"), TypeError, "shuffle must be True or False"),
        (lambda: ClassKFold(random_state=0), ValueError, "random_state has no effect since shuffle is False"),
    ],
)
def test_parameters_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


def split_all(splitter):
    return lambda X, y: list(splitter.split(X, y))


@pytest.mark.parametrize(
    "split", [*map(split_all, SPLITTERS), class_train_test_split], ids=[*map(repr, SPLITTERS), "class_train_test_split"]
)
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing"),
        ([0.5, 1.0, 2.0, 3.0], "continuous"),
        ([0.0, np.nan, 2.0, 3.0], "missing values: 1 of 4"),
        ([0.0, np.inf, 2.0, 3.0], "infinity"),
        ([[0, 0], [1, 0], [2, 0], [3, 0]], r"y must be 1-D.*got shape \(4, 2\)"),
        ([0, 1, 2], "inconsistent numbers of samples"),
    ],
)
def test_y_is_checked(split, y, message):
    with pytest.raises(ValueError, match=message):
        split(np.ones((4, 2)), y)


def test_too_few_classes():
    with pytest.raises(ValueError, match="n_splits=4 needs at least as many classes, but y has 3"):
        next(ClassKFold().split(None, [0, 1, 2, 2, 2]))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        class_train_test_split([[1], [2]], [0, 0])
    with pytest.raises(ValueError, match="train set will be empty"):
        next(ClassShuffleSplit().split(None, [0, 0]))


@pytest.mark.parametrize("n_classes", [2, 3, 10, 11])
def test_first_half_trains(n_classes):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(n_classes), 3))
    X = np.arange(len(y))[:, None]
    X_train, X_test, y_train, y_test = class_train_test_split(X, y)
    assert_array_equal(np.unique(y_train), np.arange(n_classes // 2))
    assert_array_equal(np.unique(y_test), np.arange(n_classes // 2, n_classes))
    assert_array_equal(y[X_train[:, 0]], y_train)
    assert_array_equal(y[X_test[:, 0]], y_test)
    assert (np.diff(X_train[:, 0]) > 0).all()
    assert len(X_train) + len(X_test) == len(X)


def test_train_test_split_sizes_and_seed():
    y = np.arange(20)
    assert len(class_train_test_split(y, y, test_size=0.2)[1]) == 4
    assert class_train_test_split(y, y, test_size=3)[1].tolist() == [17, 18, 19]
    drawn = class_train_test_split(y, y, shuffle=True, random_state=0)[1].tolist()
    assert drawn == class_train_test_split(y, y, shuffle=True, random_state=0)[1].tolist()
    assert drawn != list(range(10, 20))
    with pytest.raises(ValueError, match="random_state=0 has no effect without shuffling"):
        class_train_test_split(y, y, random_state=0)
    with pytest.raises(ValueError, match="test_size=20"):
        class_train_test_split(y, y, test_size=20)


@pytest.mark.parametrize(
    "container",
    [
        np.asarray,
        list,
        sparse.csr_array,
        sparse.coo_array,
        torch.tensor,
        lambda X: pd.DataFrame(X, columns=["u", "v"], index=list("defg")),
    ],
)
def test_train_test_split_keeps_the_container(container):
    X = container(np.arange(8.0).reshape(4, 2))
    y = pd.Series(["b", "a", "c", "a"], index=list("defg"))
    X_train, X_test, y_train, y_test = class_train_test_split(X, y, test_size=1)
    kind = sparse.csr_array if sparse.issparse(X) else type(X)
    assert type(X_train) is type(X_test) is kind
    assert y_train.tolist() == ["b", "a", "a"]
    assert y_test.index.tolist() == ["f"]
    dense = [part.toarray() if sparse.issparse(part) else np.asarray(part) for part in (X_train, X_test)]
    assert dense[0].tolist() == [[0, 1], [2, 3], [6, 7]]
    assert dense[1].tolist() == [[4, 5]]


def test_train_test_split_of_more_arrays():
    X, y = np.arange(12).reshape(6, 2), ["b", "a", "c", "a", "d", "c"]
    more = pd.Series(np.arange(6) / 10, index=list("uvwxyz")), list("uvwxyz"), torch.arange(6), sparse.coo_array(X)
    parts = class_train_test_split(X, y, *more, test_size=0.25)
    assert len(parts) == 12
    test = [4]
    train = [0, 1, 2, 3, 5]
    assert parts[4].tolist() == more[0].iloc[train].tolist()
    assert parts[5].index.tolist() == ["y"]
    assert (parts[6], parts[7]) == (list("uvwxz"), ["y"])
    assert parts[8].tolist() == train
    assert_array_equal(parts[11].toarray(), X[test])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        class_train_test_split(X, y, [1, 2])
    for wrong in (0.25, 3, None, np.float64(0.25)):
        with pytest.raises(TypeError, match="Pass test_size and others by name"):
            class_train_test_split(X, y, wrong)


class NoSharedClass(TransformerMixin, BaseEstimator):
    """Remember the classes of the training set, to be compared with those of the test set."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def transform(self, X):
        return X


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_model_selection_of_sklearn_takes_them(splitter, blobs):
    X, y = blobs

    def n_shared(estimator, X, y):
        return np.isin(y, estimator.classes_).sum()

    assert_array_equal(cross_val_score(NoSharedClass(), X, y, cv=splitter, scoring=n_shared), np.zeros(3))
    search = GridSearchCV(PCA(), {"n_components": [2, 3]}, scoring=RecallAtK(1), cv=splitter).fit(X, y)
    assert search.n_splits_ == 3
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
@pytest.mark.parametrize("is_routed", [False, True])
def test_searches_pass_groups_on(splitter, is_routed, blobs):
    X, y = blobs
    y = np.arange(60) % 12
    groups = (y + 1) // 2

    def n_shared(estimator, X, y):
        return np.isin((y + 1) // 2, (estimator.classes_ + 1) // 2).sum()

    assert cross_val_score(NoSharedClass(), X, y, cv=splitter, scoring=n_shared).sum() > 0
    with config_context(enable_metadata_routing=is_routed):
        given = {"params": {"groups": groups}} if is_routed else {"groups": groups}
        scores = cross_validate(NoSharedClass(), X, y, cv=splitter, scoring=n_shared, **given)
        assert_array_equal(scores["test_score"], np.zeros(3))
        scores = cross_val_score(NoSharedClass(), X, y, cv=splitter, scoring=n_shared, **given)
        assert_array_equal(scores, np.zeros(3))
        search = GridSearchCV(PCA(), {"n_components": [2]}, scoring=lambda e, X, y: np.ptp(y), cv=splitter)
        expected = [np.ptp(y[test]) for _, test in splitter.split(X, y, groups)]
        search.fit(X, y, groups=groups)
        assert [search.cv_results_[f"split{i}_test_score"][0] for i in range(3)] == expected
