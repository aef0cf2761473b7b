"""Deep metric learning as scikit-learn estimators.

An embedder trains a torch network so that samples of one class lie close together; ``transform`` gives the embeddings.
"""

from . import _methods, datasets, inspection, io, losses, metrics, model_selection, verification
from ._methods import *
from ._saving.folder import load
from .metrics import MAPAtR, RecallAtK, RetrievalScorer, map_at_r, recall_at_k, retrieval_report
from .model_selection import ClassKFold, ClassShuffleSplit, class_train_test_split
from .verification import PairVerifier, calibrate_threshold

__version__ = "0.1.0"  # the only place; pyproject.toml reads it from here

__all__ = [
    *(name for name in _methods.__all__ if name.endswith("Embedder")),
    "ClassKFold",
    "ClassShuffleSplit",
    "MAPAtR",
    "PairVerifier",
    "RecallAtK",
    "RetrievalScorer",
    "calibrate_threshold",
    "class_train_test_split",
    "datasets",
    "inspection",
    "io",
    "load",
    "losses",
    "map_at_r",
    "metrics",
    "model_selection",
    "recall_at_k",
    "retrieval_report",
    "verification",
]
