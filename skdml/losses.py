"""The losses, for plain torch loops and for skorch: ``loss(embeddings, y) -> scalar``."""

from ._angular import AngularLoss
from ._arcface import ArcFaceLoss
from ._bier import BIERLoss
from ._binomial_deviance import BinomialDevianceLoss
from ._circle import CircleLoss
from ._clustering import ClusteringLoss
from ._contrastive import ContrastiveLoss
from ._hdc import HDCLoss
from ._histogram import HistogramLoss
from ._htl import HTLLoss
from ._large_margin_softmax import LargeMarginSoftmaxLoss
from ._lifted_structure import LiftedStructureLoss
from ._magnet import MagnetLoss
from ._margin import MarginLoss
from ._n_pairs import NPairsLoss
from ._norm_softmax import NormSoftmaxLoss
from ._pddm import PDDMLoss
from ._proxy_anchor import ProxyAnchorLoss
from ._proxy_nca import ProxyNCALoss
from ._quadruplet import QuadrupletLoss
from ._raw import RAWLoss
from ._recall_surrogate import RecallSurrogateLoss
from ._smart_mining import SmartMiningLoss
from ._soft_triple import SoftTripleLoss
from ._sst import SSTLoss
from ._sup_con import SupConLoss
from ._triplet import TripletLoss

__all__ = [
    "AngularLoss",
    "ArcFaceLoss",
    "BIERLoss",
    "BinomialDevianceLoss",
    "CircleLoss",
    "ClusteringLoss",
    "ContrastiveLoss",
    "HDCLoss",
    "HTLLoss",
    "HistogramLoss",
    "LargeMarginSoftmaxLoss",
    "LiftedStructureLoss",
    "MagnetLoss",
    "MarginLoss",
    "NPairsLoss",
    "NormSoftmaxLoss",
    "PDDMLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "QuadrupletLoss",
    "RAWLoss",
    "RecallSurrogateLoss",
    "SSTLoss",
    "SmartMiningLoss",
    "SoftTripleLoss",
    "SupConLoss",
    "TripletLoss",
]
