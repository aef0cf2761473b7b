"""What is written is true: docstrings, the manual, the README and the examples."""

import doctest
import importlib
import inspect
import multiprocessing
import pkgutil
import pydoc
import re
import runpy
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from numpydoc.docscrape import ClassDoc
from numpydoc.validate import validate

import skdml
from skdml._engine.embedder import BaseEmbedder
from skdml.datasets import load_kanji

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["skdml", *(module.name for module in pkgutil.walk_packages(skdml.__path__, "skdml."))]
PUBLIC_MODULES = [name for name in MODULES if not re.search(r"\._", name)]
EMBEDDERS = [
    name for name in skdml.__all__ if name.endswith("Embedder") and issubclass(getattr(skdml, name), BaseEmbedder)
]
LOSSES = [name for name in skdml.losses.__all__ if inspect.isclass(getattr(skdml.losses, name))]
METHODS = (ROOT / "docs" / "methods.rst").read_text(encoding="utf-8")
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "methods").glob("*.rst")))

# What numpydoc asks for and skdml does not: a long summary, See Also and Examples everywhere; results without a name
# (scikit-learn writes "self : object"); where the quotes stand, which ruff checks.
NOT_ASKED = {"ES01", "SA01", "SA04", "EX01", "RT02", "GL01", "GL02"}


def public_objects():
    """Yield the dotted path of every public class, function and method of skdml's own."""
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            obj = getattr(module, name)
            if not callable(obj):  # a module or a constant
                continue
            yield f"{module_name}.{name}"
            if inspect.isclass(obj):
                for attribute, member in inspect.getmembers(obj, inspect.isfunction):
                    if not attribute.startswith("_") and member.__module__.startswith("skdml"):
                        yield f"{module_name}.{name}.{attribute}"


@pytest.mark.parametrize("name", MODULES)
def test_doctests_of_module(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=FLAGS).failed == 0


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.rst")), ids=lambda path: path.name)
def test_doctests_of_manual(path):
    assert doctest.testfile(str(path), module_relative=False, optionflags=FLAGS, encoding="utf-8").failed == 0


def code_blocks(name):
    """Return the blocks of Python code on a page of the manual."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?: +.*\n|\n)+)", text, flags=re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def test_code_of_other_packages_runs_beside_ours():
    pytest.importorskip("pytorch_metric_learning")
    namespace = {}
    with torch.random.fork_rng():
        for block in code_blocks("coming_from.rst"):
            exec(block, namespace)
    assert namespace["M"].shape == (1024, 1024)  # the last block ran


def table_rows(path):
    """Yield the cells of each row of the tables in a file of benchmarks/results."""
    for line in (ROOT / "benchmarks" / "results" / path).read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_table_which_method_holds_the_measured_numbers():
    number = r"[\d.]+"
    rows = re.findall(rf"\* - :ref:`(\w+)`\n +- .+\n +- ({number}); ({number})\n +- ({number})\n", METHODS)
    shown = {label.replace("_", ""): numbers for label, *numbers in rows}
    costs = {
        cells[0].removesuffix("Loss").lower(): (cells[2], cells[5]) for cells in table_rows("cpu.md") if len(cells) == 8
    }
    recalls = {cells[0].lower(): cells[1] for cells in table_rows("embedders.md")}
    assert {f"{name}embedder" for name in shown} == {name.lower() for name in EMBEDDERS} - {"metricembedder"}
    for name, (*cost, recall) in shown.items():
        assert recall == recalls[name]
        for value, measured in zip(cost, map(float, costs[name]), strict=True):
            assert value == (f"{measured:.0f}" if measured >= 9.95 else f"{measured:.1f}"), name
    assert f"{len(shown)} methods" in (ROOT / "docs" / "index.rst").read_text(encoding="utf-8")


class Near(doctest.OutputChecker):
    """Numbers may be off by 0.05: training does not end in the same digits on all machines."""

    def check_output(self, want, got, optionflags):
        number = r"-?\d*\.\d+"
        texts = [re.sub(number, "#", text) for text in (want, got)]
        values = [np.array(re.findall(number, text), dtype=float) for text in (want, got)]
        return super().check_output(*texts, optionflags) and np.allclose(*values, rtol=0, atol=0.05)


def test_readme_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```pycon\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", "README.md", 0)
    assert doctest.DocTestRunner(checker=Near(), optionflags=FLAGS).run(test).failed == 0


@pytest.mark.parametrize("path", sorted(set(public_objects())))
def test_docstring_is_numpydoc(path):
    # An embedder documents what is its own first; its signature begins with what is shared. All are keyword-only.
    not_asked = NOT_ASKED | {"PR03"} if path.endswith("Embedder") else NOT_ASKED
    errors = {code: text for code, text in validate(path)["errors"] if code not in not_asked}
    if path.endswith("Embedder.fit") and "sample_weight" in errors.get("PR02", ""):
        del errors["PR02"]  # an argument that the signature does not show, see BaseEmbedder
    assert not errors


@pytest.mark.parametrize("name", EMBEDDERS)
def test_help_documents_every_parameter_with_its_default(name):
    embedder = getattr(skdml, name)
    documented = {p.name: p.type for p in ClassDoc(embedder)["Parameters"]}
    parameters = inspect.signature(embedder).parameters
    assert set(documented) == set(parameters)
    text = pydoc.plain(pydoc.render_doc(embedder))
    for parameter, spec in parameters.items():
        assert f"{parameter} : " in text
        default = documented[parameter].rpartition("default=")[2]
        assert eval(default) == spec.default, parameter


@pytest.mark.parametrize("name", EMBEDDERS)
def test_shared_parameters_read_alike(name):
    first, this = ({p.name: p.desc for p in ClassDoc(getattr(skdml, n))["Parameters"]} for n in (EMBEDDERS[0], name))
    shared = [field for field in first if field in this and field in BaseEmbedder.__dataclass_fields__]
    assert len(shared) > 10
    for field in shared:
        assert this[field] == first[field], field


@pytest.mark.parametrize("name", [name for name in EMBEDDERS if getattr(skdml, name)._loss_class])
def test_loss_and_embedder_describe_a_parameter_alike(name):
    embedder = getattr(skdml, name)
    classes = embedder._loss_class, embedder
    of_loss, of_embedder = ({p.name: p.desc for p in ClassDoc(cls)["Parameters"]} for cls in classes)
    shared = (set(of_loss) & set(of_embedder)) - {"n_components"}  # of the loss a number, of the embedder also a choice
    assert shared
    for parameter in shared:
        assert of_embedder[parameter] == of_loss[parameter], parameter


@pytest.mark.parametrize("name", EMBEDDERS)
def test_method_has_its_section_and_its_row(name):
    title = name.removesuffix("Embedder")
    assert f"* - :class:`{name}`" in METHODS
    section = re.search(rf"^{title}\n=+\n(.*?)(?=^\.\. _|\Z)", PAGES, flags=re.MULTILINE | re.DOTALL)
    assert section, f"docs/methods holds no page {title!r}"
    for part in (".. math::", "**Parameters.**", "**When to use.**", "**Cost.**", "**Paper.**"):
        assert part in section[1], part


@pytest.mark.parametrize("name", LOSSES)
def test_loss_stands_in_the_table(name):
    assert f":class:`~skdml.losses.{name}`" in METHODS


@pytest.mark.parametrize("name", EMBEDDERS)
def test_readme_and_changes_name_every_embedder(name):
    assert name in (ROOT / "README.md").read_text(encoding="utf-8")
    assert name in (ROOT / "CHANGES.md").read_text(encoding="utf-8")


def few_kanji(*, return_X_y=False):
    """Every seventh kanji."""
    kanji = load_kanji()
    few = kanji.target % 7 == 0
    for name, value in kanji.items():
        if isinstance(value, np.ndarray) and len(value) == len(few):
            kanji[name] = value[few]
    kanji.target //= 7
    kanji.target_names = kanji.target_names[::7]
    return (kanji.data, kanji.target) if return_X_y else kanji


def run_example(path, options, n_threads):
    """Run an example in its folder, on a seventh of the kanji."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    n_threads_before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        patch.setattr(sys, "argv", [str(path), *options])
        patch.setattr(skdml.datasets, "load_kanji", few_kanji)
        pyplot.switch_backend("Agg")
        torch.set_num_threads(n_threads)
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            torch.set_num_threads(n_threads_before)
            pyplot.close("all")


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "examples").glob("plot_*.py")), ROOT / "examples" / "serve.py"], ids=lambda path: path.stem
)
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")  # inside torch.onnx
def test_example_runs(path, tmp_path):
    """Shortened, on a seventh of the data and mostly for one epoch: the manual's build runs them in full."""
    if path.stem == "plot_callbacks":
        pytest.importorskip("sklearn.callback")
    picture = tmp_path / "picture.png"
    options = {
        "plot_kanji_retrieval": ["--epochs", "2", "--picture", str(picture)],
        "plot_raw_ablation": ["--epochs", "1"],
    }.get(path.stem, [])
    few, count = 1, r'(max_epochs"?[=:] ?|n_iter=)\d+'
    if path.stem == "plot_custom_backbone":
        few, count = 30, r"(range\()\d+"
    elif path.stem == "serve":
        pytest.importorskip("onnxruntime")
        count = r"(max_epochs=|partial\(seconds, )\d+"
    elif path.stem in ("plot_callbacks", "plot_inspection"):
        few = 6  # after fewer, early stopping warns that the start was better
    text = path.read_text(encoding="utf-8")
    if not options:
        text, n_found = re.subn(count, rf"\g<1>{few}", text)
        assert n_found
    path = tmp_path / path.name
    path.write_text(text, encoding="utf-8")
    if path.stem == "plot_custom_backbone":
        # On two threads, as users do, and for all its epochs: there torch's backward pass has crashed on batches in
        # another layout. In a process of its own, whose threads wait passively for each other.
        process = multiprocessing.get_context("spawn").Process(target=run_example, args=(path, options, 2))
        process.start()
        process.join()
        assert process.exitcode == 0
    else:
        run_example(path, options, 1)
    assert picture.exists() or "--picture" not in options
