"""The losses, for plain torch loops and for skorch: ``loss(embeddings, y) -> scalar``."""

from . import _methods
from ._methods import *

__all__ = [name for name in _methods.__all__ if name.endswith("Loss")]
