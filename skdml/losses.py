"""The losses, for plain torch loops and for skorch: ``loss(embeddings, y) -> scalar``."""

from ._raw import RAWLoss
from ._soft_triple import SoftTripleLoss
from ._sst import SSTLoss

__all__ = [
    "RAWLoss",
    "SSTLoss",
    "SoftTripleLoss",
]
