"""FoldEnsembleEmbedder: one model a fold, embeddings side by side."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_param_validation, parametrize_with_checks
from torch import nn

import skdml
from skdml import ClassKFold, FoldEnsembleEmbedder, NormSoftmaxEmbedder, RAWEmbedder
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


def test_constraints_are_those_of_the_parameters():
    check_param_validation("FoldEnsembleEmbedder", FoldEnsembleEmbedder(inner()))


# ---- weights


@pytest.fixture
def weights():
    """Weights of the samples of ``blobs``."""
    return np.random.default_rng(1).random(60).astype(np.float32)


def weighted_by_hand(X, y, weights):
    parts = [
        clone(inner()).fit(X[rows], y[rows], sample_weight=weights[rows]).transform(X)
        for rows, _ in ClassKFold(2).split(X, y)
    ]
    return np.hstack(parts) / np.sqrt(2)


@pytest.mark.parametrize("make", [np.asarray, list, pd.Series, torch.from_numpy], ids=lambda make: make.__name__)
def test_weights_go_to_the_estimators(blobs, weights, make):
    X, y = blobs
    Z = FoldEnsembleEmbedder(inner(), cv=2).fit(X, y, sample_weight=make(weights)).transform(X)
    np.testing.assert_allclose(Z, weighted_by_hand(X, y, weights), rtol=1e-6)
    assert not np.allclose(Z, FoldEnsembleEmbedder(inner(), cv=2).fit(X, y).transform(X))


def test_weights_of_one_number_and_of_steps(blobs, weights):
    X, y = blobs
    ensemble = FoldEnsembleEmbedder(inner(), cv=2)
    np.testing.assert_array_equal(ensemble.fit(X, y, 2.0).transform(X), ensemble.fit(X, y).transform(X))
    pipeline = FoldEnsembleEmbedder(make_pipeline("passthrough", inner()), cv=2)
    Z = pipeline.fit(X, y, normsoftmaxembedder__sample_weight=weights).transform(X)
    np.testing.assert_allclose(Z, weighted_by_hand(X, y, weights), rtol=1e-6)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ensemble.fit(X, y, weights[:-1])


def test_routing(blobs, weights, tmp_path):
    X, y = blobs
    expected = weighted_by_hand(X, y, weights)
    with config_context(enable_metadata_routing=True):
        with pytest.raises(UnsetMetadataPassedError):
            FoldEnsembleEmbedder(inner(), cv=2).fit(X, y, sample_weight=weights)
        ensemble = FoldEnsembleEmbedder(inner().set_fit_request(sample_weight=True), cv=2)
        np.testing.assert_allclose(ensemble.fit(X, y, sample_weight=weights).transform(X), expected, rtol=1e-6)
        ensemble.save(tmp_path)
        np.testing.assert_array_equal(skdml.load(tmp_path).transform(X), ensemble.transform(X))
        pipeline = make_pipeline("passthrough", ensemble).fit(X, y, sample_weight=weights)
        np.testing.assert_allclose(pipeline.transform(X), expected, rtol=1e-6)
        nested = FoldEnsembleEmbedder(make_pipeline("passthrough", ensemble.estimator), cv=2)
        np.testing.assert_allclose(nested.fit(X, y, sample_weight=weights).transform(X), expected, rtol=1e-6)
        halves = KFold(2, shuffle=True, random_state=0)
        GridSearchCV(ensemble, {"estimator__n_components": [3]}, cv=halves).fit(X, y, sample_weight=weights)


# ---- tensors


def test_tensors_without_dispatch(blobs):
    X, y = blobs
    expected = FoldEnsembleEmbedder(inner(), cv=2).fit(X, y).transform(X)
    Z = FoldEnsembleEmbedder(inner(), cv=2).fit(torch.from_numpy(X), torch.from_numpy(y)).transform(torch.from_numpy(X))
    assert isinstance(Z, np.ndarray)
    np.testing.assert_array_equal(Z, expected)


def test_array_api_tensors_in_tensors_out():
    """In a process of its own: SciPy reads the switch when it is imported."""
    code = """
    import numpy as np, torch
    from sklearn import config_context
    from sklearn.model_selection import KFold
    from skdml import FoldEnsembleEmbedder, RAWEmbedder

    rng = np.random.default_rng(0)
    y = np.arange(60) % 4
    X = rng.normal(size=(60, 6)).astype(np.float32) + y[:, None]
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for cv in (2, KFold(2)):
            embedder = RAWEmbedder(batch_size=16, max_epochs=1, random_state=0, device=device)
            ensemble = FoldEnsembleEmbedder(embedder, cv=cv)
            expected = ensemble.fit(X, y).transform(X)
            T, t = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
            with config_context(array_api_dispatch=True):
                Z = ensemble.fit(T, t, torch.ones(60, device=device)).transform(T)
                assert isinstance(Z, torch.Tensor) and Z.device.type == device and Z.dtype == torch.float32
                np.testing.assert_allclose(Z.cpu().numpy(), expected, atol=0 if device == "cpu" else 1e-2)
                assert ensemble.score(T, y) == ensemble.score(T, t)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env={**os.environ, "SCIPY_ARRAY_API": "1"}, capture_output=True, text=True)
    if "to dispatch array" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])  # what this version of scikit-learn needs
    assert done.returncode == 0, done.stderr


# ---- files


@pytest.fixture(scope="module")
def fitted():
    """An ensemble of two folds, and X."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 4
    X = rng.normal(size=(40, 6)).astype(np.float32) + y[:, None]
    return FoldEnsembleEmbedder(inner(max_epochs=1), cv=2).fit(X, y), X


@pytest.mark.parametrize("cv", [None, 2, ClassKFold(2, shuffle=True, random_state=3)])
def test_save_and_load(fitted, tmp_path, cv):
    ensemble, X = fitted
    ensemble = clone(ensemble).set_params(cv=cv, estimator__max_epochs=2)
    frame = pd.DataFrame(X, columns=list("abcdef"))
    ensemble.fit(frame, np.arange(40) % 4).set_output(transform="pandas")
    ensemble.save(tmp_path / "a" / "b", measures={"Recall@1": 0.25})
    loaded = skdml.load(tmp_path / "a" / "b")
    pd.testing.assert_frame_equal(loaded.transform(frame), ensemble.transform(frame))
    assert repr(loaded) == repr(ensemble)
    assert loaded.n_features_in_ == 6
    np.testing.assert_array_equal(loaded.feature_names_in_, list("abcdef"))
    np.testing.assert_array_equal(loaded.get_feature_names_out(), ensemble.get_feature_names_out())
    assert "Recall@1: 0.25" in (tmp_path / "a" / "b" / "README.md").read_text()
    loaded.fit(frame, np.arange(40) % 4)
    loaded.save(tmp_path / "a" / "b")  # over the old one
    assert sum(entry.is_dir() for entry in (tmp_path / "a" / "b").iterdir()) == 1


class Halves(nn.Module):
    """A backbone of one's own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x)


def test_what_a_file_cannot_hold(fitted, tmp_path):
    X, y = fitted[1], np.arange(40) % 4
    folds = KFold(2, shuffle=True, random_state=0)
    ensemble = FoldEnsembleEmbedder(RAWEmbedder(backbone=Halves(), max_epochs=1, batch_size=8), cv=folds).fit(X, y)
    ensemble.save(tmp_path)
    with pytest.raises(ValueError, match=r"cv \(it was sklearn.*KFold\). Call load\('.*', cv=...\)"):
        skdml.load(tmp_path, backbone=Halves)
    with pytest.raises(ValueError, match=r"backbone \(it was"):
        skdml.load(tmp_path, cv=folds)
    with pytest.raises(ValueError, match="n_jobs must not be passed"):
        skdml.load(tmp_path, cv=folds, backbone=Halves, n_jobs=2)
    loaded = skdml.load(tmp_path, cv=folds, backbone=Halves)
    np.testing.assert_array_equal(loaded.transform(X), ensemble.transform(X))
    assert loaded.cv is folds
    with pytest.raises(TypeError, match=r"its Pipeline is not an embedder of skdml. Use pickle"):
        FoldEnsembleEmbedder(make_pipeline(StandardScaler(), inner()), cv=2).fit(X, y).save(tmp_path)


def test_save_refuses_other_folders(fitted, tmp_path):
    ensemble, _ = fitted
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        ensemble.save(tmp_path / "file")
    with pytest.raises(FileExistsError, match=r"holds \['file'\]"):
        ensemble.save(tmp_path)
    ensemble.estimators_[0].save(tmp_path / "embedder")
    with pytest.raises(FileExistsError, match=r"params\.json"):
        ensemble.save(tmp_path / "embedder")
    ensemble.save(tmp_path / "ensemble")
    with pytest.raises(FileExistsError, match=r"ensemble\.json"):
        ensemble.estimators_[0].save(tmp_path / "ensemble")


@pytest.mark.parametrize(
    "damage",
    [
        lambda about: about.pop("n_folds"),
        lambda about: about.update(format=2),
        lambda about: about.update(format=0),
        lambda about: about.update(format="1"),
        lambda about: about.update(more=1),
        lambda about: about.update(embedder="RAWEmbedder"),
        lambda about: about.update(folds="../other"),
        lambda about: about.update(n_folds=1),
        lambda about: about.update(n_folds=True),
        lambda about: about.update(params=[]),
        lambda about: about["params"].update(n_jobs=2),
        lambda about: about["params"].update(transform=2),
        lambda about: about["fitted"].update(transform="x"),
        lambda about: about.update(sha256=3),
    ],
)
def test_damage_is_named(fitted, tmp_path, damage):
    fitted[0].save(tmp_path)
    about = json.loads((tmp_path / "ensemble.json").read_text())
    damage(about)
    (tmp_path / "ensemble.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"ensemble\.json"):
        skdml.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b"null"])
def test_what_is_not_json_is_named(fitted, tmp_path, content):
    fitted[0].save(tmp_path)
    (tmp_path / "ensemble.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"ensemble\.json"):
        skdml.load(tmp_path)


def test_folds_are_not_mixed(fitted, tmp_path):
    ensemble, _ = fitted
    ensemble.save(tmp_path)
    (folds,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
    (folds / "0").rename(folds / "2")
    with pytest.raises(FileNotFoundError, match="is missing"):
        skdml.load(tmp_path)
    (folds / "1").rename(folds / "0")
    (folds / "2").rename(folds / "1")
    with pytest.raises(ValueError, match="damaged or was changed"):
        skdml.load(tmp_path)


def exit_at(n):
    """Return a hook that ends the process at the n-th operation on files."""
    events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
    left = iter(range(n))

    def hook(event, arguments):
        if event in events and next(left, None) is None:
            os._exit(1)

    return hook


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
def test_killed_at_any_operation(fitted, tmp_path):
    """The old or the new ensemble loads, and the next save works."""
    old, X = fitted
    new = pickle.loads(pickle.dumps(old))
    new.estimators_ = new.estimators_[::-1]
    results = [embedder.transform(X) for embedder in (old, new)]
    old.save(tmp_path)
    seen = set()
    for n in range(5, 1000, 7):
        child = os.fork()
        if child == 0:
            sys.addaudithook(exit_at(n))
            new.save(tmp_path)
            os._exit(0)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        Z = skdml.load(tmp_path).transform(X)
        seen.add(next(k for k, result in enumerate(results) if (result == Z).all()))
        if finished:
            break
        old.save(tmp_path)
    assert seen == {0, 1}
    assert finished
    assert n > 30
    assert len(list(tmp_path.iterdir())) == 3
