"""The methods: one paper, one file, with its loss and its embedder. ``__all__`` is the only list of them."""

from .angular import AngularEmbedder, AngularLoss
from .arcface import ArcFaceEmbedder, ArcFaceLoss
from .bier import BIEREmbedder, BIERLoss
from .binomial_deviance import BinomialDevianceEmbedder, BinomialDevianceLoss
from .circle import CircleEmbedder, CircleLoss
from .clustering import ClusteringEmbedder, ClusteringLoss
from .contrastive import ContrastiveEmbedder, ContrastiveLoss
from .fold_ensemble import FoldEnsembleEmbedder
from .hdc import HDCEmbedder, HDCLoss
from .histogram import HistogramEmbedder, HistogramLoss
from .htl import HTLEmbedder, HTLLoss
from .judgments import PairsEmbedder, QuadrupletsEmbedder, TripletsEmbedder
from .large_margin_softmax import LargeMarginSoftmaxEmbedder, LargeMarginSoftmaxLoss
from .lifted_structure import LiftedStructureEmbedder, LiftedStructureLoss
from .magnet import MagnetEmbedder, MagnetLoss
from .margin import MarginEmbedder, MarginLoss
from .metric import MetricEmbedder
from .n_pairs import NPairsEmbedder, NPairsLoss
from .norm_softmax import NormSoftmaxEmbedder, NormSoftmaxLoss
from .pddm import PDDMEmbedder, PDDMLoss
from .proxy_anchor import ProxyAnchorEmbedder, ProxyAnchorLoss
from .proxy_nca import ProxyNCAEmbedder, ProxyNCALoss
from .quadruplet import QuadrupletEmbedder, QuadrupletLoss
from .raw import RAWEmbedder, RAWLoss
from .recall_surrogate import RecallSurrogateEmbedder, RecallSurrogateLoss
from .smart_mining import SmartMiningEmbedder, SmartMiningLoss
from .soft_triple import SoftTripleEmbedder, SoftTripleLoss
from .sst import SSTEmbedder, SSTLoss
from .sup_con import SupConEmbedder, SupConLoss
from .triplet import TripletEmbedder, TripletLoss

__all__ = [
    "AngularEmbedder",
    "AngularLoss",
    "ArcFaceEmbedder",
    "ArcFaceLoss",
    "BIEREmbedder",
    "BIERLoss",
    "BinomialDevianceEmbedder",
    "BinomialDevianceLoss",
    "CircleEmbedder",
    "CircleLoss",
    "ClusteringEmbedder",
    "ClusteringLoss",
    "ContrastiveEmbedder",
    "ContrastiveLoss",
    "FoldEnsembleEmbedder",
    "HDCEmbedder",
    "HDCLoss",
    "HTLEmbedder",
    "HTLLoss",
    "HistogramEmbedder",
    "HistogramLoss",
    "LargeMarginSoftmaxEmbedder",
    "LargeMarginSoftmaxLoss",
    "LiftedStructureEmbedder",
    "LiftedStructureLoss",
    "MagnetEmbedder",
    "MagnetLoss",
    "MarginEmbedder",
    "MarginLoss",
    "MetricEmbedder",
    "NPairsEmbedder",
    "NPairsLoss",
    "NormSoftmaxEmbedder",
    "NormSoftmaxLoss",
    "PDDMEmbedder",
    "PDDMLoss",
    "PairsEmbedder",
    "ProxyAnchorEmbedder",
    "ProxyAnchorLoss",
    "ProxyNCAEmbedder",
    "ProxyNCALoss",
    "QuadrupletEmbedder",
    "QuadrupletLoss",
    "QuadrupletsEmbedder",
    "RAWEmbedder",
    "RAWLoss",
    "RecallSurrogateEmbedder",
    "RecallSurrogateLoss",
    "SSTEmbedder",
    "SSTLoss",
    "SmartMiningEmbedder",
    "SmartMiningLoss",
    "SoftTripleEmbedder",
    "SoftTripleLoss",
    "SupConEmbedder",
    "SupConLoss",
    "TripletEmbedder",
    "TripletLoss",
    "TripletsEmbedder",
]
