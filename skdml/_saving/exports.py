"""ONNX export and the model card."""

import inspect
import re
from numbers import Real

import numpy as np
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted

from .._data.arrays import expected
from .._network.copies import copied
from .modules import network_input


def to_onnx(embedder, path):
    """Write the ONNX file; see `BaseEmbedder.to_onnx`."""
    check_is_fitted(embedder)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("to_onnx needs onnx and onnxscript: pip install 'skdml[onnx]'.") from error
    network = copied(embedder.network_)
    network.precision = "float32"  # ONNX runtimes lack layers in bfloat16
    program = torch.onnx.export(
        network,
        (network_input(embedder),),
        dynamo=True,
        input_names=["X"],
        output_names=["embeddings"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        verbose=False,
    )
    program.save(path)


def model_card(embedder, params, passed, measures):
    """Return the README.md of a saved embedder.

    Parameters
    ----------
    embedder : BaseEmbedder
    params : dict
        The parameters that are written.
    passed : dict of str
        The types of those that a file cannot hold.
    measures : dict of float or None
    """
    measures = dict(measures or {})
    for name, value in measures.items():
        if not isinstance(value, Real):
            raise TypeError(f"measures must map names to numbers; got {value!r} for {name!r}.")
    for key, measure in (("validation_recall_at_1", "Recall@1"), ("validation_accuracy", "Accuracy")):
        if values := [epoch[key] for epoch in embedder.history_ if key in epoch]:
            measures = {f"{measure} of the held-out part of the training data, best epoch": max(values), **measures}
    name = type(embedder).__name__
    doc = re.sub(r"\]_", "]", inspect.getdoc(type(embedder)) or "")
    papers = re.search(r"^References\n-+\n(.*?)\n\n", doc + "\n\n", flags=re.MULTILINE | re.DOTALL)
    training = f"{embedder.n_iter_} epochs"
    if hasattr(embedder, "classes_"):
        n_classes = len(embedder.classes_)
        labels = ", ".join([*map(str, embedder.classes_[:10]), *["..."] * (n_classes > 10)])
        training = f"{n_classes} classes ({labels}), {training}"
    length = "of unit length" if embedder.normalize else "of any length"
    lines = [
        f"# {name}",
        "",
        doc.partition("\n")[0],
        "",
        f"- Data: {expected(embedder, embedder._input)}",
        f"- Embeddings: {embedder._n_features_out} components, {length}.",
        f"- Training: {training}.",
        f"- Versions: {', '.join(f'{package} {version}' for package, version in versions().items())}.",
        "",
        "```python",
        "import skdml",
        "",
        f"embedder = skdml.load({', '.join(['path', *(f'{key}=...' for key in passed)])})",
        "Z = embedder.transform(X)",
        "```",
        *(["", "## Measures", ""] if measures else []),
        *(f"- {measure}: {value:.4g}" for measure, value in measures.items()),
        "",
        "## Parameters",
        "",
        "All other parameters have their defaults.",
        "",
        "```python",
        repr(type(embedder)(**params, **{key: _Named(name) for key, name in passed.items()})),
        "```",
        *(["", "## Paper", "", re.sub(r"^\.\. ", "- ", papers[1], flags=re.MULTILINE)] if papers else []),
    ]
    return "\n".join(lines) + "\n"


class _Named:
    """A value that is shown by the name of its type, as its own text may hold paths of the machine."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


def versions():
    """Return the versions of skdml and of the packages that embeddings depend on."""
    import skdml

    packages = {"skdml": skdml, "torch": torch, "scikit-learn": sklearn, "numpy": np}
    return {name: package.__version__.split("+")[0] for name, package in packages.items()}  # without torch's "+cu126"
