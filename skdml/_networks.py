"""The network: a backbone, pooling where it gives maps, a linear head and the L2 normalisation.

Axes: B batch, f features of the backbone, D embedding dimension.
"""

import copy
from itertools import pairwise

import torch
from torch import nn


class EmbeddingNetwork(nn.Module):
    """Map a batch to embeddings: backbone, head, L2 normalisation.

    Parameters
    ----------
    backbone : nn.Module
        Maps a batch to features (B, f).
    head : nn.Module
        Maps the features to (B, D).
    normalize : bool
        Whether rows are scaled to unit length; a row of zeros stays zero, with zero gradient.
    precision : {"float32", "bfloat16"}
        Type that backbone and head compute in, by autocast. The normalisation and the embeddings are float32.
    """

    def __init__(self, backbone, head, normalize, precision):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.normalize = normalize
        self.precision = precision
        self.frozen_batchnorm = False

    def freeze_batchnorm(self):
        """Keep the statistics and the parameters of the backbone's BatchNorm layers as they are from now on.

        Raises
        ------
        ValueError
            If there is none.
        """
        layers = self._batchnorm_layers()
        if not layers:
            raise ValueError("freeze='batchnorm', but the backbone has no BatchNorm layer. Set freeze='none'.")
        for layer in layers:
            layer.requires_grad_(False)
        self.frozen_batchnorm = True

    def _batchnorm_layers(self):
        return [layer for layer in self.backbone.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode=True):
        super().train(mode)
        if self.frozen_batchnorm:
            for layer in self._batchnorm_layers():
                layer.eval()
        return self

    def without_head(self):
        """Return the backbone alone, with the same weights, as a network that gives its features (B, f)."""
        return EmbeddingNetwork(self.backbone, nn.Identity(), False, self.precision)

    def without_backbone(self):
        """Return the network, with the same weights, that takes the features (B, f) of the backbone."""
        network = copy.copy(self)
        network._modules = {**self._modules, "backbone": nn.Identity()}
        return network

    def forward(self, x):
        if self.precision == "bfloat16":
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                z = self.head(self.backbone(x)).float()
        else:
            z = self.head(self.backbone(x))  # (B, D)
        return unit_rows(z) if self.normalize else z


class PartsNetwork(EmbeddingNetwork):
    """An embedding of several parts, each normalised by itself.

    Parameters
    ----------
    backbone, head : nn.Module
        ``head(backbone(x))`` is (B, D).
    sizes : list of int
        Components of each part; they add up to D.
    lengths : list of float
        Length of each part in a normalised row; their squares add up to 1, so that rows have unit length.
    normalize : bool
    precision : {"float32", "bfloat16"}
    """

    def __init__(self, backbone, head, sizes, lengths, normalize, precision):
        super().__init__(backbone, head, False, precision)
        self.normalize_parts = normalize
        self.sizes = sizes
        self.lengths = lengths
        self.n_components = sum(sizes)

    def forward(self, x):
        z = super().forward(x)  # (B, D)
        if not self.normalize_parts:
            return z
        parts = zip(z.split(self.sizes, dim=1), self.lengths, strict=True)
        return torch.cat([length * unit_rows(part) for part, length in parts], dim=1)


def unit_rows(z):
    """Scale the vectors of the last axis to unit length; zeros stay zero and get no gradient.

    torch's ``normalize`` divides by 1e-12 there, and multiplies the gradient by 1e12.
    """
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / norm.masked_fill(norm < 1e-12, torch.inf)


def default_mlp(n_features, hidden_layer_sizes):
    """Return a multilayer perceptron over vectors, without its output layer."""
    sizes = [n_features, *hidden_layer_sizes]
    return nn.Sequential(*(layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())))


def default_cnn(n_channels):
    """Return a small convolutional network over images: widths 32, 64, 128, 128, average pool, f = 128."""

    def block(n_in, n_out):
        return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)

    def pool():
        return nn.MaxPool2d(2, ceil_mode=True)  # rounding up: images of any size pass

    return nn.Sequential(
        *block(n_channels, 32), pool(), *block(32, 64), pool(), *block(64, 128), pool(), *block(128, 128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Pooling(nn.Module):
    """Pool maps (B, f, h, w) to (B, f): their mean ("avg"), their maximum ("max") or the sum of both ("avg+max")."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        mean = x.mean(dim=(2, 3)) if "avg" in self.kind else 0
        return mean + x.amax(dim=(2, 3)) if "max" in self.kind else mean


def build_network(backbone, sample, *, pooling, n_components, hidden_layer_sizes, normalize, precision):
    """Return an EmbeddingNetwork on the sample's device.

    Parameters
    ----------
    backbone : nn.Module or None
        Copied, never changed. None: a default by the number of the sample's axes.
    sample : Tensor of shape (2, ...)
        Two rows as the network will get them.
    pooling : {"avg", "max", "avg+max"}
        Of a backbone that gives maps (B, f, h, w).
    n_components : int or None
        None: the backbone's own output, no head.
    hidden_layer_sizes : tuple of int
        Of the default network over vectors.
    normalize : bool
    precision : {"float32", "bfloat16"}

    Raises
    ------
    ValueError
        If the backbone does not take the sample, gives neither (B, f) nor (B, f, h, w), or nothing is left to train.
    """
    if backbone is not None:
        backbone = copy.deepcopy(backbone)
    elif sample.ndim == 2:
        backbone = default_mlp(sample.shape[1], hidden_layer_sizes)
    else:
        backbone = default_cnn(sample.shape[1])
    backbone = backbone.to(sample.device)
    features = pass_sample(backbone, sample)
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        backbone = nn.Sequential(backbone, Pooling(pooling))
    elif pooling != "avg":
        raise ValueError(
            f"pooling={pooling!r} needs a backbone that gives maps (B, f, h, w); {_gives(features, sample)}. Leave "
            "pooling at 'avg', or take the pooling out of the backbone."
        )
    n_features = count_features(backbone, sample)
    head = nn.Identity() if n_components is None else nn.Linear(n_features, n_components)
    network = EmbeddingNetwork(backbone, head, normalize, precision).to(sample.device)
    network.n_components = n_features if n_components is None else n_components
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(
            "The network has no parameter to train: the backbone is frozen or empty and n_components is None. Set "
            "n_components to add a linear head, or give the backbone trainable parameters."
        )
    return network


def pass_sample(backbone, sample):
    """Return the backbone's output, in eval mode so that no statistic of it changes."""
    backbone.eval()
    try:
        with torch.no_grad():
            return backbone(sample)
    except Exception as error:
        raise ValueError(
            f"The backbone does not take a batch of shape {tuple(sample.shape)} ({sample.dtype}): {error}"
        ) from error


def count_features(backbone, sample):
    """Return f of a backbone that gives (B, f)."""
    features = pass_sample(backbone, sample)
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(sample):
        raise ValueError(
            f"The backbone must map a batch of B samples to a tensor of shape (B, f), or to maps (B, f, h, w); "
            f"{_gives(features, sample)}. Add pooling or nn.Flatten() to its end."
        )
    return features.shape[1]


def _gives(features, sample):
    got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    return f"a batch of shape {tuple(sample.shape)} gave {got}"
