"""Searches whose fits run on the workers of a cluster."""

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skdml import SoftTripleEmbedder
from skdml.metrics import RecallAtK

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two processes on this machine."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs="ERROR"
        ) as cluster,
        distributed.Client(cluster),
    ):
        yield


def scores(X, y, **params):
    embedder = SoftTripleEmbedder(max_epochs=2, n_components=4, random_state=0, device="cpu", **params)
    search = GridSearchCV(embedder, {"n_centers": [1, 3]}, scoring=RecallAtK(1), cv=2, error_score="raise").fit(X, y)
    results = [search.cv_results_[f"split{k}_test_score"] for k in range(2)]
    return results, search.best_estimator_.transform(X)


def compare(X, y, **params):
    in_turn = scores(X, y, **params)
    with joblib.parallel_config(backend="dask"):
        on_workers = scores(X, y, **params)
    for expected, found in zip(in_turn, on_workers, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert np.ptp(in_turn[0]) > 0  # or equal scores would say little


def test_search_on_workers_equals_one_in_turn(cluster, hidden):
    compare(*hidden)


def test_search_over_files_on_workers(cluster, tmp_path):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 8)
    paths = [tmp_path / f"{i}.png" for i in range(len(y))]
    for path, c in zip(paths, y, strict=True):
        Image.fromarray(rng.integers(5 * c, 5 * c + 200, size=(20, 20, 3), dtype=np.uint8)).save(path)
    cache = tmp_path / "cache"
    compare(np.array([str(p) for p in paths]), y, resize=16, crop_size=16, cache=cache, n_jobs=2, batch_size=8)
    assert any(cache.iterdir())
