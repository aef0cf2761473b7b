"""The bundled kanji set."""

import numpy as np
import pytest

from skdml.datasets import load_kanji


@pytest.fixture(scope="module")
def kanji():
    return load_kanji()


def test_shapes_and_types(kanji):
    assert kanji.images is kanji.data
    assert kanji.data.shape == (3600, 32, 32)
    assert kanji.data.dtype == np.uint8
    assert kanji.target.shape == kanji.font.shape == kanji.train.shape == (3600,)
    assert np.issubdtype(kanji.target.dtype, np.integer)
    assert kanji.train.dtype == bool
    assert len(set(kanji.target_names)) == 300
    assert len(set(kanji.fonts)) == 12


def test_every_class_once_in_every_font(kanji):
    pairs = np.unique(np.column_stack([kanji.target, kanji.font]), axis=0)
    assert len(pairs) == 300 * 12
    assert pairs.max(axis=0).tolist() == [299, 11]


def test_train_and_test_classes_are_disjoint(kanji):
    train, test = (set(kanji.target[mask].tolist()) for mask in (kanji.train, ~kanji.train))
    assert len(train) == len(test) == 150
    assert not train & test


def test_images_differ_and_hold_ink(kanji):
    assert len(np.unique(kanji.data.reshape(3600, -1), axis=0)) == 3600
    assert kanji.data.max(axis=(1, 2)).min() > 127


def test_each_call_returns_arrays_of_its_own():
    load_kanji().data[:] = 0
    assert load_kanji().data.any()


def test_return_X_y(kanji):
    X, y = load_kanji(return_X_y=True)
    np.testing.assert_array_equal(X, kanji.data)
    np.testing.assert_array_equal(y, kanji.target)


def test_description_names_every_font_with_a_licence(kanji):
    rows = [line.split("|") for line in kanji.DESCR.splitlines() if line.startswith("| fonts-")]
    licences = {row[1].strip(): row[2].strip() for row in rows}
    assert set(licences) == set(kanji.fonts)
    assert all(licences.values())
