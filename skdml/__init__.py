"""Deep metric learning as scikit-learn estimators.

An embedder trains a torch network so that samples of one class lie close together; ``transform`` gives the embeddings.
"""

from . import datasets, losses, metrics, model_selection
from ._raw import RAWEmbedder
from ._soft_triple import SoftTripleEmbedder
from ._sst import SSTEmbedder
from .metrics import MAPAtR, RecallAtK, RetrievalScorer, map_at_r, recall_at_k
from .model_selection import ClassKFold, ClassShuffleSplit, class_train_test_split

__version__ = "0.1.0"

__all__ = [
    "ClassKFold",
    "ClassShuffleSplit",
    "MAPAtR",
    "RAWEmbedder",
    "RecallAtK",
    "RetrievalScorer",
    "SSTEmbedder",
    "SoftTripleEmbedder",
    "class_train_test_split",
    "datasets",
    "losses",
    "map_at_r",
    "metrics",
    "model_selection",
    "recall_at_k",
]
