"""The model card: what a saved embedder is, for readers and for the Hub of Hugging Face."""

import inspect
import json
import re
from numbers import Real

from .._data.arrays import expected
from .exports import versions

LICENSE = re.compile("[a-z0-9]+([.+-][a-z0-9]+)*")


def model_card(embedder, params, passed, measures, license):
    """Return the README.md of a saved embedder.

    Parameters
    ----------
    embedder : BaseEmbedder
    params : dict
        The parameters that are written.
    passed : dict of str
        The types of those that a file cannot hold.
    measures : dict of float or None
    license : str or None
    """
    measures = _checked(measures)
    name = type(embedder).__name__
    is_of_images = len(embedder._input.network_shape) == 3
    metadata = _metadata(name, "image-feature-extraction" if is_of_images else "feature-extraction", measures, license)
    for key, measure in (("validation_recall_at_1", "Recall@1"), ("validation_accuracy", "Accuracy")):
        if values := [epoch[key] for epoch in embedder.history_ if key in epoch]:
            measures = {f"{measure} of the held-out part of the training data, best epoch": max(values), **measures}
    doc = re.sub(r"\]_", "]", inspect.getdoc(type(embedder)) or "")
    papers = re.search(r"^References\n-+\n(.*?)\n\n", doc + "\n\n", flags=re.MULTILINE | re.DOTALL)
    training = f"{embedder.n_iter_} epochs"
    if hasattr(embedder, "classes_"):
        n_classes = len(embedder.classes_)
        labels = ", ".join([*map(str, embedder.classes_[:10]), *["..."] * (n_classes > 10)])
        training = f"{n_classes} classes ({labels}), {training}"
    length = "of unit length" if embedder.normalize else "of any length"
    lines = [
        *metadata,
        f"# {name}",
        "",
        doc.partition("\n")[0],
        "",
        f"- Data: {expected(embedder, embedder._input)}",
        f"- Embeddings: {embedder._n_features_out} components, {length}.",
        f"- Training: {training}.",
        *_usage("embedder", passed),
        *_listed(measures),
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


def ensemble_card(ensemble, passed, measures, license):
    """Return the README.md of a saved ensemble; see `model_card`."""
    measures = _checked(measures)
    name = type(ensemble).__name__
    kinds = ", ".join(sorted({type(embedder).__name__ for embedder in ensemble.estimators_}))
    lines = [
        *_metadata(name, "feature-extraction", measures, license),
        f"# {name}",
        "",
        (inspect.getdoc(type(ensemble)) or "").partition("\n")[0].replace("]_", "]"),
        "",
        f"- Embedders: {len(ensemble.estimators_)}, of {kinds}; each has a model card in its folder.",
        f"- Embeddings: {ensemble._n_features_out} components.",
        *_usage("ensemble", passed),
        *_listed(measures),
    ]
    return "\n".join(lines) + "\n"


def _checked(measures):
    measures = dict(measures or {})
    for name, value in measures.items():
        if not isinstance(value, Real):
            raise TypeError(f"measures must map names to numbers; got {value!r} for {name!r}.")
    return measures


def _metadata(name, task, measures, license):
    """Return the lines of the block that the Hub reads: YAML, in which texts are written as in JSON."""
    if license is not None and not (isinstance(license, str) and LICENSE.fullmatch(license)):
        raise ValueError(
            f"license must be an identifier as the Hub of Hugging Face lists them, such as 'mit' or 'apache-2.0'; got "
            f"{license!r:.100}. Set license='other' for any other one, and describe it in the model card."
        )
    results = [
        "model-index:",
        f"- name: {name}",
        "  results:",
        "  - task:",
        f"      type: {task}",
        "    dataset:",  # which the Hub wants to be named
        "      type: unknown",
        "      name: not stated",
        "    metrics:",
        *(f"    - type: {json.dumps(str(measure))}\n      value: {value:.6f}" for measure, value in measures.items()),
    ]
    return [
        "---",
        "library_name: skdml",
        f"pipeline_tag: {task}",
        *([f"license: {license}"] if license else []),
        "tags:",
        "- metric-learning",
        "- embeddings",
        "- retrieval",
        *(results if measures else []),
        "---",
        "",
    ]


def _usage(name, passed):
    return [
        f"- Versions: {', '.join(f'{package} {version}' for package, version in versions().items())}.",
        "",
        "```python",
        "import skdml",
        "",
        f"{name} = skdml.load({', '.join(['path', *(f'{key}=...' for key in passed)])})",
        f"Z = {name}.transform(X)",
        "```",
    ]


def _listed(measures):
    return [
        *(["", "## Measures", ""] if measures else []),
        *(f"- {measure}: {value:.4g}" for measure, value in measures.items()),
    ]


class _Named:
    """A value that is shown by the name of its type, as its own text may hold paths of the machine."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name
