"""Measures of embeddings: retrieval, clustering and diagnostics, as functions and as scikit-learn scorers."""

from ._clustering import ami_score, nmi_score, pairwise_f1_score
from ._diagnostics import intra_inter_ratio, spectral_decay, uniformity
from ._report import retrieval_report
from ._retrieval import (
    map_at_r,
    mean_average_precision,
    mean_reciprocal_rank,
    precision_at_1,
    r_precision,
    recall_at_k,
)
from ._scorers import (
    AMI,
    NMI,
    MAPAtR,
    MeanAveragePrecision,
    MeanReciprocalRank,
    PairwiseF1,
    PrecisionAt1,
    RecallAtK,
    RetrievalScorer,
    RPrecision,
)

__all__ = [
    "AMI",
    "NMI",
    "MAPAtR",
    "MeanAveragePrecision",
    "MeanReciprocalRank",
    "PairwiseF1",
    "PrecisionAt1",
    "RPrecision",
    "RecallAtK",
    "RetrievalScorer",
    "ami_score",
    "intra_inter_ratio",
    "map_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "nmi_score",
    "pairwise_f1_score",
    "precision_at_1",
    "r_precision",
    "recall_at_k",
    "retrieval_report",
    "spectral_decay",
    "uniformity",
]
