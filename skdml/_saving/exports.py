"""ONNX export, and the versions that embeddings depend on."""

import numpy as np
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted

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


def versions():
    """Return the versions of skdml and of the packages that embeddings depend on."""
    import skdml

    packages = {"skdml": skdml, "torch": torch, "scikit-learn": sklearn, "numpy": np}
    return {name: package.__version__.split("+")[0] for name, package in packages.items()}  # without torch's "+cu126"
