"""scikit-learn's newer protocols: partial_fit, callbacks, array API input, output containers, HTML."""

import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skdml
from skdml import MetricEmbedder, NormSoftmaxEmbedder, RAWEmbedder, RecallAtK, SoftTripleEmbedder
from skdml._engine.embedder import BaseEmbedder

EMBEDDERS = [
    embedder
    for embedder in (getattr(skdml, name) for name in skdml.__all__)
    if inspect.isclass(embedder) and issubclass(embedder, BaseEmbedder) and embedder is not MetricEmbedder
]


@pytest.mark.parametrize("cls", EMBEDDERS)
def test_partial_fit_goes_on_and_takes_new_classes(blobs, cls):
    X, y = blobs
    embedder = cls(batch_size=16, random_state=0).partial_fit(X[y < 3], y[y < 3])
    before = {name: value.clone() for name, value in embedder.network_.state_dict().items()}
    assert embedder.partial_fit(X[y > 1], y[y > 1]) is embedder
    np.testing.assert_array_equal(embedder.classes_, [0, 1, 2, 3])
    assert [epoch["epoch"] for epoch in embedder.history_] == [1, 2]
    assert embedder.n_iter_ == 2
    moved = [not torch.equal(before[name], value) for name, value in embedder.network_.state_dict().items()]
    assert any(moved)
    assert embedder.transform(X).shape == (60, 64)


def test_partial_fit_keeps_what_the_known_classes_have_learned(blobs):
    X, y = blobs
    labels = np.array(["d", "b", "e", "a"])
    embedder = SoftTripleEmbedder(n_centers=2, center_learning_rate=1e-20, weight_decay=0, random_state=0)
    embedder.set_params(batch_size=16)
    embedder.partial_fit(X[y < 3], labels[y[y < 3]], classes=["b", "d", "e", "f"])
    known = embedder.centers_.copy()
    embedder.partial_fit(X, labels[y], classes=["c"])
    assert list(embedder.classes_) == ["a", "b", "c", "d", "e", "f"]
    np.testing.assert_allclose(embedder.centers_[[1, 3, 4, 5]], known, atol=1e-6)
    assert not np.isclose(embedder.centers_[0], embedder.centers_[2]).all()  # new ones are random


def test_partial_fit_is_one_epoch_of_fit(blobs):
    X, y = blobs
    options = {"batch_size": 16, "random_state": 0, "lr_schedule": None}
    once = NormSoftmaxEmbedder(max_epochs=1, **options).fit(X, y)
    partial = NormSoftmaxEmbedder(**options).partial_fit(X, y)
    np.testing.assert_array_equal(partial.transform(X), once.transform(X))
    # Another call draws other batches.
    once.set_params(warm_start=True).fit(X, y)
    assert partial.partial_fit(X, y).history_[1]["loss"] != once.history_[1]["loss"]


def test_partial_fit_learns_as_well_as_fit(blobs):
    X, y = blobs
    embedder = SoftTripleEmbedder(batch_size=16, random_state=0)
    for _ in range(10):
        embedder.partial_fit(X, y)
    assert embedder.history_[-1]["loss"] < 0.5 * embedder.history_[0]["loss"]


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"early_stopping": True}, np.arange(60) % 4, "early_stopping=False"),
        ({"lr_schedule": "one_cycle"}, np.arange(60) % 4, "lr_schedule='auto'"),
        ({}, np.zeros(60, dtype=int), "at least 2 classes"),
        ({}, (np.arange(60) % 4).astype(str), "one type for all labels"),
    ],
)
def test_partial_fit_refuses(blobs, changes, labels, message):
    X, y = blobs
    embedder = SoftTripleEmbedder(batch_size=16, random_state=0)
    if labels.dtype.kind == "U":
        embedder.partial_fit(X, y)
    with pytest.raises(ValueError, match=message):
        embedder.set_params(**changes).partial_fit(X, labels)


def test_partial_fit_takes_a_chunk_of_one_class(blobs):
    X, y = blobs
    embedder = SoftTripleEmbedder(batch_size=15, random_state=0).partial_fit(X, y)
    embedder.partial_fit(X[y == 2], y[y == 2])
    assert len(embedder.classes_) == 4


class Recorder:
    """A callback of scikit-learn that stops after three epochs."""

    def __init__(self):
        self.seen = []

    def setup(self, estimator, context):
        self.seen.append("setup")

    def teardown(self, estimator, context):
        self.seen.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.seen.append(f"{context.task_name} begins")

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.seen.append(f"{context.task_name} ends")
        if context.task_name == "epoch":
            assert 0 <= fitted_estimator.score(X, y) <= 1
            assert fitted_estimator.n_iter_ == context.task_id + 1
            return context.task_id == 2
        return False


def test_callbacks_of_scikit_learn_see_every_epoch_and_may_stop(blobs):
    pytest.importorskip("sklearn.callback")
    X, y = blobs
    recorder = Recorder()
    embedder = SoftTripleEmbedder(batch_size=16, max_epochs=5, random_state=0)
    plain = SoftTripleEmbedder(batch_size=16, max_epochs=5, random_state=0, lr_schedule=None).fit(X, y)
    embedder.set_params(lr_schedule=None).set_callbacks(recorder).fit(X, y)
    epochs = ["epoch begins", "epoch ends"] * 3
    assert recorder.seen == ["setup", "fit begins", *epochs, "fit ends", "teardown"]
    assert embedder.n_iter_ == 3
    # Looking does not change the training.
    assert [epoch["loss"] for epoch in embedder.history_] == [epoch["loss"] for epoch in plain.history_[:3]]


def test_scoring_monitor_and_progress_bar_through_a_grid_search(blobs, capsys):
    callback = pytest.importorskip("sklearn.callback")
    pytest.importorskip("rich")
    X, y = blobs
    monitor = callback.ScoringMonitor(scoring={"recall_at_1": RecallAtK(1)})
    embedder = RAWEmbedder(batch_size=16, max_epochs=2, random_state=0).set_callbacks(monitor)
    pipeline = make_pipeline(StandardScaler(), embedder)
    search = GridSearchCV(pipeline, {"rawembedder__beta": [20.0, 50.0]}, cv=2, scoring=RecallAtK(1))
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None)).fit(X, y)
    scores = [row["recall_at_1"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == (2 * 2 + 1) * 2
    assert "RAWEmbedder" in capsys.readouterr().out


def test_tensor_of_a_type_that_numpy_has_not(blobs):
    X, y = torch.tensor(blobs[0], dtype=torch.bfloat16), blobs[1]
    embedder = RAWEmbedder(batch_size=16, max_epochs=2, random_state=0)
    expected = embedder.fit(X.float(), y).transform(X.float())
    np.testing.assert_array_equal(embedder.fit(X, y).transform(X), expected)


def test_array_api_tensors_in_tensors_out():
    """In a process of its own: SciPy reads the switch when it is imported."""
    code = """
    import numpy as np, torch
    from sklearn import config_context
    from sklearn.pipeline import make_pipeline
    from skdml import RAWEmbedder

    rng = np.random.default_rng(0)
    y = np.arange(60) % 4
    for X in [
        rng.normal(size=(60, 6)).astype(np.float32) + y[:, None],
        rng.integers(0, 255, size=(60, 8, 8), dtype=np.uint8),
        rng.normal(size=(60, 1, 8, 8)).astype(np.float32),
    ]:
        embedder = RAWEmbedder(batch_size=16, max_epochs=2, random_state=0)
        expected = embedder.fit(X, y).transform(X)
        for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            T, t = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
            with config_context(array_api_dispatch=True):
                Z = embedder.set_params(device=device).fit(T, t).transform(T)
                assert isinstance(Z, torch.Tensor) and Z.device.type == device and Z.dtype == torch.float32
                np.testing.assert_allclose(Z.cpu().numpy(), expected, atol=0 if device == "cpu" else 1e-2)
                assert embedder.score(T, y) == embedder.score(T, t)
                try:
                    embedder.transform(T[..., :3])
                except ValueError as error:
                    assert "features" in str(error) or "shape" in str(error), error
                else:
                    raise AssertionError("a wrong shape passed")
        assert isinstance(embedder.set_params(device="cpu").transform(torch.from_numpy(X)), np.ndarray)
    bad = torch.full((60, 6), float("nan"))
    with config_context(array_api_dispatch=True):
        try:
            embedder.fit(bad, y)
        except ValueError as error:
            assert "NaN" in str(error), error
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "to dispatch array" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])  # what this version of scikit-learn needs
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(blobs, library):
    module = pytest.importorskip(library)
    X, y = blobs
    embedder = SoftTripleEmbedder(n_components=3, batch_size=16, max_epochs=1).set_output(transform=library)
    frame = embedder.fit(X, y).transform(X)
    assert isinstance(frame, module.DataFrame)
    assert list(frame.columns) == [f"softtripleembedder{i}" for i in range(3)]


def test_html_shows_what_parameters_mean(blobs):
    html = SoftTripleEmbedder(n_centers=3)._repr_html_()
    assert "n_centers" in html
    if "body-param-doc" in html or "param-doc" in html:  # from scikit-learn 1.8 on
        assert "the number of centers per class" in html
