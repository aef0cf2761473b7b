"""HDC: a cascade of embeddings, each at its depth of the network, each trained on harder pairs.

Axes: B samples of a batch, D components, L levels, f_k features of level k.
"""

from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real

import torch
from torch import nn
from torch.nn import functional as F

from .._constraints import POSITIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import BalancedEmbedder
from .._loss.pairs import pair_masks
from .._loss.similarities import distance_similarities, squared_distances
from .._loss.terms import check_batch, in_float32, weighted_mean, zero_loss
from .._network.copies import copied
from .._network.networks import (
    IMAGE_COMPONENTS,
    STRENGTH,
    PartsNetwork,
    ResidualHead,
    count_components,
    count_features,
    default_cnn,
    default_mlp,
    taking_float32,
)


class HDCLoss(nn.Module):
    r"""Contrastive losses of several embeddings, where each embedding sees the hardest pairs of the previous one.

    .. math::
        \ell &= \sum_{k=1}^L \frac{1}{n_k} \Bigl\{ \sum_{(i, j) \in \mathcal P_k} d_{kij}^2
            + \sum_{(i, j) \in \mathcal N_k} f \, [m - d_{kij}^2]_+ \Bigr\}, \qquad
            d_{kij} = \sqrt L \, | x_{ki} - x_{kj} | \\
        \mathcal P_k &= \text{the } \lceil h_k |\mathcal P_{k-1}| \rceil
            \text{ pairs of } \mathcal P_{k-1} \text{ with the largest terms, likewise } \mathcal N_k

    The components of an embedding x_i are those of L levels, one after the other: x_ki is the part of level k. P_0 and
    N_0 are the unordered pairs of the batch from one class and from two, and n_k is the number of terms above 0.

    Parameters
    ----------
    hard_fractions : tuple of float, default=(1.0, 0.5, 0.2)
        Shares h_k, one per level and each in (0, 1]: the part of the pairs that reach the level which it keeps and
        passes on.
    margin : float, default=1.0
        Squared distance m from which on a negative pair no longer counts; > 0. Squared distances of unit rows are at
        most 4.
    negative_factor : float, default=1.0
        Weight f of a negative pair relative to a positive pair; > 0. The authors use 10, for a pretrained network; if a
        small network is trained from scratch on images, Recall@1 is far higher with 1.
    level_sizes : tuple of int or None, default=None
        The components of each level, L integers >= 1 that add up to D. None: D is split as evenly as possible; the
        first levels get the remainder.

    Raises
    ------
    ValueError
        If a parameter is outside its range, the shapes of a batch are not (B, D) and (B,), or the levels do not fit D.

    Notes
    -----
    Shape: embeddings (B, D) float with D >= L, taken as they are; y (B,) integers; returns a scalar, the sum over the
    levels, each divided by the number of its kept pairs with a term above 0. Where there is none, the level gives 0,
    and so does a batch without pairs, with zero gradient. A batch without positive or without negative pairs keeps the
    other term.

    The factor sqrt(L) suits embeddings of unit length: their levels have the length 1 / sqrt(L), so that ``sqrt(L) *
    x_ki`` is a unit row again. It applies to any rows.

    Pairs are ranked by their distance, which ranks them by their terms and also ranks terms of 0. At least one positive
    and one negative pair are kept, if there are any, and all that are as hard as the last one kept, so that the order
    of the batch does not matter. No gradient flows through the choice.

    Differences from the released layer: there each level selects from all pairs of the batch; here, as in the text of
    [1]_, it selects from those that the previous level has kept, so that the default keeps 100, 50 and 10 of 100 pairs.
    There a negative pair counts twice, a positive pair once, and the gradient of a squared distance is half the true
    one. The layer weights negative pairs with 10.

    Relations: with ``hard_fractions=(1.0,)`` this is the contrastive loss of squared distances.

    References
    ----------
    .. [1] Y. Yuan, K. Yang and C. Zhang, "Hard-Aware Deeply Cascaded Embedding", ICCV 2017. Sections 3.1 and 3.2.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import HDCLoss
    >>> embeddings = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [0.6, 0.8]], requires_grad=True)
    >>> loss = HDCLoss(hard_fractions=(1.0, 0.5))(embeddings, torch.tensor([0, 0, 1, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 3)
    1.267
    """

    _parameter_constraints = {
        "hard_fractions": [tuple, list],
        "margin": [POSITIVE],
        "negative_factor": [POSITIVE],
        "level_sizes": [tuple, list, None],
    }

    _component_parameters = None  # it splits the embeddings itself

    def __init__(self, *, hard_fractions=(1.0, 0.5, 0.2), margin=1.0, negative_factor=1.0, level_sizes=None):
        super().__init__()
        self.hard_fractions = hard_fractions
        self.margin = margin
        self.negative_factor = negative_factor
        self.level_sizes = level_sizes
        check_constraints(self, vars(self))
        _check_fractions(self)
        if level_sizes is not None and (
            len(level_sizes) != len(hard_fractions) or any(not isinstance(s, Integral) or s < 1 for s in level_sizes)
        ):
            raise ValueError(
                f"The 'level_sizes' parameter of HDCLoss must be None or {len(hard_fractions)} integers >= 1, one for "
                f"each of hard_fractions. Got {level_sizes!r} instead."
            )

    @in_float32
    def forward(self, embeddings, y, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,) or (B, L)
            The class of each row; or, 0 and 1, which of L labels it has: rows with one in common are a positive pair.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each row, >= 0: a pair has the mean of its two. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight)
        n_levels = len(self.hard_fractions)
        sizes = level_sizes(embeddings.shape[1], n_levels) if self.level_sizes is None else list(self.level_sizes)
        if sum(sizes) != embeddings.shape[1] or min(sizes) < 1:
            raise ValueError(
                f"Embeddings of {embeddings.shape[1]} components do not split into {n_levels} levels of "
                f"{sizes} components. Give fewer hard_fractions, or level_sizes that add up."
            )
        if len(y) == 0:
            return zero_loss(self, embeddings)
        positive, negative = (mask.triu(diagonal=1) for mask in pair_masks(y))  # (B, B), each pair once
        pair_weight = None if sample_weight is None else ((sample_weight[:, None] + sample_weight) / 2).flatten()
        loss = 0
        for x, fraction in zip((n_levels**0.5 * embeddings).split(sizes, dim=1), self.hard_fractions, strict=True):
            d2 = squared_distances(distance_similarities(x))  # (B, B)
            positive = hardest(d2.detach(), positive, fraction)
            negative = hardest(-d2.detach(), negative, fraction)
            terms = torch.where(positive, d2, 0) + torch.where(
                negative, self.negative_factor * (self.margin - d2).clamp(min=0), 0
            )
            terms = terms.flatten()
            loss = loss + weighted_mean(terms, pair_weight, terms > 0)
        return loss


def hardest(hardness, mask, fraction):
    """Keep this fraction of the pairs in the mask, rounded up: those with the highest hardness, and ties."""
    if fraction == 1:
        return mask
    share = Fraction(fraction).limit_denominator(10**4)  # 0.2 of 15 pairs is exactly 3, not 3.0000001
    n_kept = -(-mask.sum() * share.numerator // share.denominator)
    if hardness.device.type == "cpu":  # where a value can be read without waiting, select instead of sorting
        candidates = hardness[mask]
        return mask & (hardness >= candidates.kthvalue(len(candidates) - int(n_kept) + 1).values) if n_kept else mask
    ranked = torch.where(mask, hardness, -torch.inf).flatten().sort(descending=True).values
    return mask & (hardness >= ranked.gather(0, (n_kept - 1).clamp(min=0)[None]))


def level_sizes(n_components, n_levels):
    """Split D as evenly as possible, as ``tensor_split`` does; the last levels get 0 where D < L."""
    return [n_components // n_levels + (k < n_components % n_levels) for k in range(n_levels)]


def _check_fractions(owner):
    fractions = owner.hard_fractions
    if not fractions or not all(isinstance(h, Real) and 0 < h <= 1 for h in fractions):
        raise ValueError(
            f"The 'hard_fractions' parameter of {type(owner).__name__} must be a tuple of numbers in (0, 1], one per "
            f"level. Got {fractions!r} instead."
        )


class Levels(nn.Module):
    """The features of a sequential network after each of its ReLUs, a list of (B, f_k).

    Maps are averaged over a grid of 4 x 4 fields and flattened: the values of shallow maps, each of a small part of the
    image, say little without their place.

    Parameters
    ----------
    layers : nn.Sequential
        A default network of ``_network``; without a ReLU its input is the one level.
    """

    def __init__(self, layers):
        super().__init__()
        last = max((k for k, layer in enumerate(layers) if isinstance(layer, nn.ReLU)), default=-1)
        self.layers = layers[: last + 1]

    def forward(self, x):
        features = [] if len(self.layers) else [x]
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                features.append(F.adaptive_avg_pool2d(x, 4).flatten(1) if x.ndim == 4 else x)
        return features


class LevelHeads(nn.Module):
    """A head on each of the last features; their outputs are concatenated, (B, D)."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features):
        features = as_levels(features)[-len(self.heads) :]
        return torch.cat([head(z) for head, z in zip(self.heads, features, strict=True)], dim=1)


class _OneLevel(nn.Module):
    """The backbone, for the features of a single level."""

    def __init__(self, backbone, level):
        super().__init__()
        self.backbone = backbone
        self.level = level

    def forward(self, x):
        return as_levels(self.backbone(x))[self.level]


def as_levels(features):
    """Return a list of the features of the levels; a tensor is one level."""
    # torch.export of torch 2.7 cannot trace isinstance with a union.
    return list(features) if isinstance(features, (tuple, list)) else [features]


def build_level_network(
    backbone, sample, *, n_levels, n_components, hidden_layer_sizes, normalize, precision, frozen_backbone
):
    """Return a PartsNetwork whose parts are linear heads on features of several depths, on the sample's device.

    Parameters
    ----------
    backbone : nn.Module or None
        Copied, never changed; gives (B, f) or a tuple of such features. None: a default network and its hidden layers.
    sample : Tensor of shape (2, ...)
    n_levels : int
        At most; the deepest features that there are.
    n_components : int, "auto" or None
        "auto": 64 in all where there are several levels. None: the features themselves.
    hidden_layer_sizes : tuple of int
    normalize : bool
    precision : {"float32", "bfloat16"}
    frozen_backbone : bool

    Raises
    ------
    ValueError
        If the backbone does not take the sample or does not give features, or nothing is left to train.
    """
    if backbone is not None:
        backbone = copied(backbone)
    elif sample.ndim != 2:
        backbone = Levels(default_cnn(sample.shape[1]))
    elif len(hidden_layer_sizes) > 1:
        backbone = Levels(default_mlp(sample.shape[1], hidden_layer_sizes))
    else:
        backbone, frozen_backbone = nn.Identity(), True
    backbone = taking_float32(backbone.to(sample.device), sample)
    widths = [count_features(_OneLevel(backbone, -1), sample)]
    with torch.no_grad():
        n_features = len(as_levels(backbone(sample)))
    if n_features == 1 and frozen_backbone:  # a single level begins at the features, as in other embedders
        D = count_components(widths[0] if n_components is None else n_components, widths[0])
        head = ResidualHead(widths[0], D, hidden_layer_sizes, strength=STRENGTH, rescale=True)
        return PartsNetwork(backbone, head, [D], [1.0], normalize, precision).to(sample.device)
    if n_components == "auto":
        n_components = IMAGE_COMPONENTS
    n_levels = min(n_levels, n_features, n_components or n_levels)
    widths = [count_features(_OneLevel(backbone, level), sample) for level in range(-n_levels, -1)] + widths
    if n_components is None:
        sizes, heads = widths, [nn.Identity() for _ in widths]
    else:
        sizes = level_sizes(n_components, n_levels)
        heads = [nn.Linear(width, size, dtype=torch.float32) for width, size in zip(widths, sizes, strict=True)]
    lengths = [n_levels**-0.5] * n_levels
    network = PartsNetwork(backbone, LevelHeads(heads), sizes, lengths, normalize, precision).to(sample.device)
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(
            "The network has no parameter to train: the backbone is frozen or empty and n_components is None. Set "
            "n_components to add a linear head, or give the backbone trainable parameters."
        )
    return network


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class HDCEmbedder(BalancedEmbedder):
    """HDC: embeddings at several depths of the network, the deeper ones trained on the harder pairs [1]_.

    Each level is a linear head with a contrastive loss of its own. A level passes the hardest of its pairs on to the
    next, so that easy pairs train the shallow layers and hard pairs the deep ones. The embedding concatenates the
    outputs of the heads, each a unit row divided by the square root of the number of levels.

    The levels are the hidden layers of the multilayer perceptron; the blocks of the convolutional network, averaged
    over a grid of 4 x 4 fields; or what a ``backbone`` returns: a tuple or list of features (B, f_k), from shallow to
    deep. A single tensor is one level. There are as many levels as ``hard_fractions``, but not more than features or
    components: the deepest features are used, with the first fractions.

    Read more in the :ref:`User Guide <hdc>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    BIEREmbedder : An ensemble of heads on one feature, made different by boosting.
    skdml.losses.HDCLoss : The loss on its own, for a torch loop.

    Notes
    -----
    ``n_components`` is split over the levels as evenly as possible. With None the features themselves are the levels.

    References
    ----------
    .. [1] Y. Yuan, K. Yang and C. Zhang, "Hard-Aware Deeply Cascaded Embedding", ICCV 2017, arXiv:1611.05720.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import HDCEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = HDCEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.85)
    True
    """

    _loss_class = HDCLoss

    hidden_layer_sizes: tuple[int, ...] = (256, 256, 256)
    hard_fractions: tuple[float, ...] = (1.0, 0.5, 0.2)
    margin: float = 1.0
    negative_factor: float = 1.0

    _parameter_constraints = {**HDCLoss._parameter_constraints, **BalancedEmbedder._parameter_constraints}
    del _parameter_constraints["level_sizes"]  # a parameter of the loss only

    def _check_params(self):
        super()._check_params()
        _check_fractions(self)
        if self.pooling != "avg":
            raise ValueError(
                f"HDCEmbedder takes features (B, f) of each level: pooling={self.pooling!r} has no maps to pool. Pool "
                "in the backbone and leave pooling at 'avg'."
            )

    def _make_network(self, backbone, sample):
        network = build_level_network(
            backbone,
            sample,
            n_levels=len(self.hard_fractions),
            n_components=self.n_components,
            hidden_layer_sizes=self.hidden_layer_sizes,
            normalize=self.normalize,
            precision=self.precision,
            frozen_backbone=self.freeze == "backbone",
        )
        if self.freeze == "backbone" and len(network.sizes) > 1:
            raise ValueError(
                "freeze='backbone' keeps one tensor of features, but the backbone gives those of several levels. Set "
                "freeze='none', or give a backbone of one level."
            )
        return network

    def _make_loss(self, n_classes, network):
        sizes = tuple(network.sizes)  # only the backbone tells how many levels there are
        return HDCLoss(
            hard_fractions=self.hard_fractions[: len(sizes)],
            margin=self.margin,
            negative_factor=self.negative_factor,
            level_sizes=sizes,
        )
