"""Which room of skdml may import which; docs/architecture.rst says why."""

import ast
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

import skdml

ROOT = Path(skdml.__file__).parent
SHARED = {"_ambient", "_constraints", "_docstrings", "_labels"}
MAY_IMPORT = {
    "_methods": {"_engine", "_loss", "_network", "_saving", "metrics", "model_selection"},
    "_engine": {"_data", "_loss", "_network", "_saving", "metrics"},
    "_saving": {"_data", "_network"},
    "_network": set(),
    "_loss": set(),
    "_data": set(),
    "metrics": set(),
    "model_selection": set(),
    "verification": {"_data", "metrics"},
    "datasets": {"_data"},
    "inspection": {"_data", "_loss", "_methods", "metrics"},
}


def imports(path):
    """Return the dotted names below skdml that a module imports where it is loaded."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) + 1 - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join([*above, name]) for name in names)


def modules(room):
    path = ROOT / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room):
    met = {name.partition(".")[0] for path in modules(room) for name in imports(path)} - {room}
    assert met <= MAY_IMPORT[room] | SHARED


def test_every_folder_has_a_rule():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert folders <= MAY_IMPORT.keys()


def test_a_method_imports_no_other_method():
    for path in modules("_methods"):
        met = {name for name in imports(path) if name.startswith("_methods.")}
        if path.stem == "metric":
            assert met == {"_methods.raw"}  # the default loss
        elif path.stem == "judgments":
            assert met == {f"_methods.{name}" for name in ("contrastive", "binomial_deviance", "triplet", "sst")}
        elif path.stem != "__init__":
            assert not met, path


def test_few_modules_outside_of_folders():
    assert len(list(ROOT.glob("*.py"))) <= 9


def test_few_steps_from_fit_to_the_loss(blobs, monkeypatch):
    forward = skdml.losses.RAWLoss.forward
    frames = []

    def spy(*args, **kwargs):
        frames[:] = [Path(frame.filename) for frame in traceback.extract_stack()]
        return forward(*args, **kwargs)

    monkeypatch.setattr(skdml.losses.RAWLoss, "forward", spy)
    skdml.RAWEmbedder(max_epochs=1, batch_size=20).fit(*blobs)
    ours = [path for path in frames if path.is_relative_to(ROOT)]
    assert len(ours) + 1 <= 5  # the loss's own frame is that of the spy
    assert len({*ours, ROOT / "_loss" / "pairs.py"}) <= 4


def test_importing_skdml_leaves_out_what_is_slow_and_rarely_needed():
    rare = ("scipy.cluster", "scipy.io", "sklearn.cluster", "sklearn.datasets", "sklearn.manifold", "sklearn.neighbors")
    code = f"import sys, skdml; print(*(name for name in {(*rare, 'matplotlib')} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
