"""FoldEnsembleEmbedder: one model a fold, embeddings side by side."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skdml import ClassKFold, FoldEnsembleEmbedder, NormSoftmaxEmbedder
from skdml.metrics import RecallAtK


def inner(**changes):
    return NormSoftmaxEmbedder(**{"n_components": 3, "max_epochs": 2, "batch_size": 4, "random_state": 0} | changes)


@parametrize_with_checks([FoldEnsembleEmbedder(inner(max_epochs=1), cv=KFold(2, shuffle=True, random_state=0))])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_embeddings_of_the_folds_side_by_side(blobs):
    X, y = blobs
    ensemble = FoldEnsembleEmbedder(inner(), cv=2).fit(X, y)
    parts = [clone(inner()).fit(X[rows], y[rows]).transform(X) for rows, _ in ClassKFold(2).split(X, y)]
    Z = ensemble.transform(X)
    np.testing.assert_allclose(Z, np.hstack(parts) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-5)
    assert Z.dtype == np.float32
    assert len(ensemble.get_feature_names_out()) == Z.shape[1] == 6


def test_each_model_misses_the_classes_of_its_fold(blobs):
    X, y = blobs
    labels = np.array(["a", "b", "c", "d"])[y]
    ensemble = FoldEnsembleEmbedder(inner()).fit(X, labels)
    assert [set("abcd") - set(model.classes_) for model in ensemble.estimators_] == [{"a"}, {"b"}, {"c"}, {"d"}]


def test_lists_pipelines_pickles_and_processes(blobs):
    X, y = blobs
    pipeline = make_pipeline(StandardScaler(), inner())
    ensemble = FoldEnsembleEmbedder(pipeline, cv=2).fit(X, y)
    in_processes = FoldEnsembleEmbedder(pipeline, cv=2, n_jobs=2).fit(X, y)
    np.testing.assert_allclose(in_processes.transform(X), ensemble.transform(X), rtol=1e-5, atol=1e-6)
    of_lists = FoldEnsembleEmbedder(pipeline, cv=2).fit(X.tolist(), y.tolist())
    np.testing.assert_allclose(of_lists.transform(X), ensemble.transform(X), atol=1e-4)  # scaled in float64
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ensemble)).transform(X), ensemble.transform(X))
    assert ensemble.score(X, y) == RecallAtK(1)(ensemble, X, y)
    assert np.isfinite(cross_val_score(ensemble, X, y, cv=KFold(2, shuffle=True, random_state=0))).all()


def test_too_few_classes(blobs):
    X, y = blobs
    with pytest.raises(ValueError, match="5"):
        FoldEnsembleEmbedder(inner(), cv=5).fit(X, y)
    with pytest.raises(ValueError, match="requires y"):
        FoldEnsembleEmbedder(inner()).fit(X, None)
