"""Deep metric learning as scikit-learn estimators.

An embedder trains a torch network so that samples of one class lie close together; ``transform`` gives the embeddings.
"""

from . import datasets, inspection, losses, metrics, model_selection, verification
from ._angular import AngularEmbedder
from ._arcface import ArcFaceEmbedder
from ._bier import BIEREmbedder
from ._binomial_deviance import BinomialDevianceEmbedder
from ._circle import CircleEmbedder
from ._clustering import ClusteringEmbedder
from ._contrastive import ContrastiveEmbedder
from ._fold_ensemble import FoldEnsembleEmbedder
from ._hdc import HDCEmbedder
from ._histogram import HistogramEmbedder
from ._htl import HTLEmbedder
from ._large_margin_softmax import LargeMarginSoftmaxEmbedder
from ._lifted_structure import LiftedStructureEmbedder
from ._magnet import MagnetEmbedder
from ._margin import MarginEmbedder
from ._metric import MetricEmbedder
from ._n_pairs import NPairsEmbedder
from ._norm_softmax import NormSoftmaxEmbedder
from ._pddm import PDDMEmbedder
from ._proxy_anchor import ProxyAnchorEmbedder
from ._proxy_nca import ProxyNCAEmbedder
from ._quadruplet import QuadrupletEmbedder
from ._raw import RAWEmbedder
from ._recall_surrogate import RecallSurrogateEmbedder
from ._saving import load
from ._smart_mining import SmartMiningEmbedder
from ._soft_triple import SoftTripleEmbedder
from ._sst import SSTEmbedder
from ._sup_con import SupConEmbedder
from ._triplet import TripletEmbedder
from .metrics import MAPAtR, RecallAtK, RetrievalScorer, map_at_r, recall_at_k, retrieval_report
from .model_selection import ClassKFold, ClassShuffleSplit, class_train_test_split
from .verification import PairVerifier, calibrate_threshold

# isort: split
from . import io  # lists the embedders above

__version__ = "0.1.0"  # stands here alone; pyproject.toml reads the literal

__all__ = [
    "AngularEmbedder",
    "ArcFaceEmbedder",
    "BIEREmbedder",
    "BinomialDevianceEmbedder",
    "CircleEmbedder",
    "ClassKFold",
    "ClassShuffleSplit",
    "ClusteringEmbedder",
    "ContrastiveEmbedder",
    "FoldEnsembleEmbedder",
    "HDCEmbedder",
    "HTLEmbedder",
    "HistogramEmbedder",
    "LargeMarginSoftmaxEmbedder",
    "LiftedStructureEmbedder",
    "MAPAtR",
    "MagnetEmbedder",
    "MarginEmbedder",
    "MetricEmbedder",
    "NPairsEmbedder",
    "NormSoftmaxEmbedder",
    "PDDMEmbedder",
    "PairVerifier",
    "ProxyAnchorEmbedder",
    "ProxyNCAEmbedder",
    "QuadrupletEmbedder",
    "RAWEmbedder",
    "RecallAtK",
    "RecallSurrogateEmbedder",
    "RetrievalScorer",
    "SSTEmbedder",
    "SmartMiningEmbedder",
    "SoftTripleEmbedder",
    "SupConEmbedder",
    "TripletEmbedder",
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
