"""Plots of embeddings, of what they retrieve and of how losses weigh pairs."""

from ._centers import CentersDisplay
from ._embedding import EmbeddingDisplay
from ._history import HistoryDisplay
from ._pair_weights import PairWeightDisplay, pair_weights
from ._recall_curve import RecallCurveDisplay
from ._retrieval import RetrievalDisplay

__all__ = [
    "CentersDisplay",
    "EmbeddingDisplay",
    "HistoryDisplay",
    "PairWeightDisplay",
    "RecallCurveDisplay",
    "RetrievalDisplay",
    "pair_weights",
]
