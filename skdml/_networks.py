"""The network: a backbone, a linear head and the L2 normalisation.

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


def build_network(backbone, sample, *, n_components, hidden_layer_sizes, normalize, precision):
    """Return an EmbeddingNetwork on the sample's device.

    Parameters
    ----------
    backbone : nn.Module or None
        Copied, never changed. None: a default by the number of the sample's axes.
    sample : Tensor of shape (2, ...)
        Two rows as the network will get them.
    n_components : int or None
        None: the backbone's own output, no head.
    hidden_layer_sizes : tuple of int
        Of the default network over vectors.
    normalize : bool
    precision : {"float32", "bfloat16"}

    Raises
    ------
    ValueError
        If the backbone does not take the sample, does not give (B, f), or nothing is left to train.
    """
    if backbone is not None:
        backbone = copy.deepcopy(backbone)
    elif sample.ndim == 2:
        backbone = default_mlp(sample.shape[1], hidden_layer_sizes)
    else:
        backbone = default_cnn(sample.shape[1])
    backbone = backbone.to(sample.device)
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


def count_features(backbone, sample):
    """Pass the sample through the backbone, in eval mode so that no statistic of it changes."""
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(sample)
    except Exception as error:
        raise ValueError(
            f"The backbone does not take a batch of shape {tuple(sample.shape)} ({sample.dtype}): {error}"
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(sample):
        got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ValueError(
            f"The backbone must map a batch of B samples to a tensor of shape (B, f); a batch of shape "
            f"{tuple(sample.shape)} gave {got}. Add pooling or nn.Flatten() to its end."
        )
    return features.shape[1]
