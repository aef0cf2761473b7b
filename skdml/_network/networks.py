"""The network: a backbone, pooling if it gives maps, a head and L2 normalization.

Axes: B batch, f features of the backbone, D embedding dimension.
"""

import copy
from itertools import pairwise

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import nn
from torch.nn import functional as F

from .copies import copied

# n_components="auto" means this many components for images without a backbone, ...
IMAGE_COMPONENTS = 64
# ... for features their own dimension within these limits, and this many principal components of wider features.
OWN_DIMENSION = (64, 2048)
PRINCIPAL_COMPONENTS = 512
# The learned part counts half, as in the mean of the initial and the trained weights.
STRENGTH = 0.5
LARGEST = float(np.finfo(np.float32).max)


class EmbeddingNetwork(nn.Module):
    """Map a batch to embeddings: backbone, head, L2 normalization.

    Parameters
    ----------
    backbone : nn.Module
        Maps a batch to features (B, f).
    head : nn.Module
        Maps the features to (B, D).
    normalize : bool
        Whether rows are scaled to unit length; a row of zeros stays zero, with zero gradient, and one whose length
        overflows becomes NaN.
    precision : {"float32", "bfloat16"}
        Type in which the backbone and the head compute, by autocast. The normalization and the embeddings are float32.
    """

    def __init__(self, backbone, head, normalize, precision):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.normalize = normalize
        self.precision = precision
        self.frozen_batchnorm = False

    @property
    def starts_at_input(self):
        """Whether training starts from the input of the head: vectors, or the features of a frozen backbone."""
        return isinstance(self.head, ResidualHead) and self.head.rescale

    def freeze_batchnorm(self):
        """Freeze the statistics and the parameters of the backbone's BatchNorm layers.

        Raises
        ------
        ValueError
            If the backbone has no such layers.
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
        """Return only the backbone, with the same weights, as a network that gives its features (B, f)."""
        return EmbeddingNetwork(self.backbone, nn.Identity(), False, self.precision)

    def without_backbone(self):
        """Return a network with the same weights that takes the features (B, f) of the backbone."""
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


class ResidualHead(nn.Module):
    r"""Embed features as they are, plus a learned part.

    .. math:: z = P x + s \, (W x + b + V h(x))

    P is the identity, padded with rows of zeros if D > f, or holds the principal components of the features if D < f;
    it is not trained. With ``n_leading``, P is a rotation in place of the identity, whose first rows are the principal
    components. The learned part starts at W = 0, b = 0 and V = 0, so that the embedding starts as an isometry of
    the features. In training, the learned part counts fully (s = 1), and afterwards by ``strength``: with 1/2, the
    weights are the mean of the initial and the trained ones, which works better than either on classes that were not
    trained, as it does when a whole network is fine-tuned [1]_.

    Parameters
    ----------
    n_features, n_components : int
        f and D.
    hidden_layer_sizes : tuple of int
        Hidden layers of h, a multilayer perceptron. (): no h, only an affine map.
    strength : float
        Weight s of the learned part after training, in [0, 1].
    rescale : bool
        Whether `start_at` scales the features to a mean square of 1, so that z has a length of about 1.
    n_leading : int, default=0
        How many of the first components must be principal components even if D >= f.

    Attributes
    ----------
    shift, scale : tensor of shape (f,)
        x is ``(features - shift) * scale``.
    projection : tensor of shape (D, f) or None
        P if it is not the identity.
    strength : tensor of shape ()

    References
    ----------
    .. [1] M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv:2109.01903.
    """

    def __init__(self, n_features, n_components, hidden_layer_sizes, *, strength, rescale, n_leading=0):
        super().__init__()
        self.n_features = n_features
        self.n_components = n_components
        self.rescale = rescale
        self.n_principal = n_components if n_components < n_features else min(n_leading, n_features)
        self.register_buffer("shift", torch.zeros(n_features, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(n_features, dtype=torch.float32))
        projection = torch.zeros(n_components, n_features, dtype=torch.float32) if self.n_principal else None
        self.register_buffer("projection", projection)
        self.register_buffer("strength", torch.tensor(float(strength), dtype=torch.float32))
        self.linear = _zeros(nn.Linear(n_features, n_components, dtype=torch.float32))
        self.hidden = self.output = None
        if hidden_layer_sizes:
            self.hidden = default_mlp(n_features, hidden_layer_sizes)
            self.output = _zeros(nn.Linear(hidden_layer_sizes[-1], n_components, bias=False, dtype=torch.float32))

    @property
    def needs_features(self):
        """Whether `start_at` has anything to do."""
        return self.rescale or self.projection is not None

    def start_at(self, features, weights, seed):
        """Set the scale and the projection from a sample of the features.

        Parameters
        ----------
        features : float32 ndarray of shape (n_samples, f)
        weights : float32 ndarray of shape (n_samples,) or None
            Weights of the samples, not all 0.
        seed : int
            Seed of the randomized SVD that finds the principal components.

        Returns
        -------
        ruling : (int, float) or None
            If one or two columns make up nearly all of the squared length of the rows, the index of the largest one and
            its share: the columns are standardized, as cosines would compare little else. None: they keep their
            proportions.
        """
        ruling = self._set_scale(features, weights) if self.rescale else None
        if self.projection is not None:
            x = (features.astype(np.float64) - self.shift.cpu().numpy()) * self.scale.cpu().numpy()
            x = x if weights is None else x * np.sqrt(weights)[:, None]
            n_found = min(self.n_principal, *x.shape)
            components = randomized_svd(x, n_found, n_iter=5, random_state=seed)[2]
            self.projection[:n_found] = torch.from_numpy(components)
            if self.n_components >= self.n_features:  # the other rows of a rotation, in any order
                others = np.linalg.qr(components.T, mode="complete")[0][:, n_found:].T
                self.projection[n_found : self.n_features] = torch.from_numpy(others)
        return ruling

    def _set_scale(self, features, weights):
        features = features.astype(np.float64)
        mean, squares = (np.average(a, axis=0, weights=weights) for a in (features, features**2))  # (f,)
        shares = squares / (squares.sum() or 1)
        # 1 / sum(shares**2) is f if all columns are alike, and the number of large columns if the others are small
        if (shares**2).sum() <= max(0.5, 1 / (0.6 * self.n_features)):
            self.scale.fill_(min(float((squares.mean() or 1) ** -0.5), LARGEST))
            return None
        deviation = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
        varies = deviation > 1e-6 * np.sqrt(squares)  # float32 does not resolve less
        self.shift.copy_(torch.from_numpy(mean))
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
        self.scale.copy_(torch.from_numpy(np.minimum(scale, LARGEST)))
        return int(shares.argmax()), float(shares.max())

    def forward(self, features):
        x = (features - self.shift) * self.scale  # (B, f)
        learned = self.linear(x)
        if self.hidden is not None:
            learned = learned + self.output(self.hidden(x))
        if self.projection is None:
            start = F.pad(x, (0, self.n_components - self.n_features))
        else:
            start = F.linear(x, self.projection)
        z = start + (learned if self.training else self.strength * learned)  # (B, D)
        return z / self.n_features**0.5 if self.rescale else z


def _zeros(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class PartsNetwork(EmbeddingNetwork):
    """An embedding of several parts, each normalized separately.

    Parameters
    ----------
    backbone, head : nn.Module
        ``head(backbone(x))`` is (B, D).
    sizes : list of int
        Number of components of each part; they sum to D.
    lengths : list of float
        Length of each part in a normalized row; their squares sum to 1, so that rows have unit length.
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
    """Scale the vectors of the last axis to unit length; zero vectors stay zero and get no gradient.

    torch's ``normalize`` divides zero vectors by 1e-12, which multiplies their gradient by 1e12. Where the length
    overflows, which would give zeros, the vector becomes NaN.
    """
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / norm.masked_fill(norm < 1e-12, torch.inf).where(norm != torch.inf, torch.nan)


def default_mlp(n_features, hidden_layer_sizes):
    """Return a multilayer perceptron for vectors, without its output layer."""
    sizes = [n_features, *hidden_layer_sizes]
    linear = [nn.Linear(*pair, dtype=torch.float32) for pair in pairwise(sizes)]
    return nn.Sequential(*(part for layer in linear for part in (layer, nn.ReLU())))


def default_cnn(n_channels):
    """Return a small convolutional network for images: widths 32, 64, 128, 128, average pooling, f = 128."""

    def block(n_in, n_out):
        convolution = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False, dtype=torch.float32)
        return convolution, nn.BatchNorm2d(n_out, dtype=torch.float32), nn.ReLU(inplace=True)

    def pool():
        return nn.MaxPool2d(2, ceil_mode=True)  # rounding up lets images of any size pass

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


def build_network(
    backbone, sample, *, pooling, n_components, hidden_layer_sizes, normalize, precision, frozen_backbone, n_leading=0
):
    """Return an EmbeddingNetwork on the sample's device.

    Parameters
    ----------
    backbone : nn.Module or None
        Copied, never changed. None: a default chosen by the number of axes of the sample.
    sample : Tensor of shape (2, ...)
        Two rows as the network will get them.
    pooling : {"avg", "max", "avg+max"}
        Pooling for a backbone that gives maps (B, f, h, w).
    n_components : int, "auto" or None
        None: the dimension of the features, without a head if the backbone is trained.
    hidden_layer_sizes : tuple of int
        Hidden layers of the learned part, for vectors and for the features of a frozen backbone.
    normalize : bool
    precision : {"float32", "bfloat16"}
    frozen_backbone : bool
    n_leading : int, default=0
        How many of the first components begin at the principal components of the features.

    Raises
    ------
    ValueError
        If the backbone does not take the sample, gives neither (B, f) nor (B, f, h, w), or nothing is left to train.
    """
    starts_at_features = True
    if backbone is not None:
        backbone = copied(backbone)
    elif sample.ndim == 2:
        backbone = nn.Identity()
        frozen_backbone = True
    else:
        backbone = default_cnn(sample.shape[1])
        starts_at_features = False
        if n_components == "auto":
            n_components = IMAGE_COMPONENTS
    backbone = taking_float32(backbone.to(sample.device), sample)
    features = pass_sample(backbone, sample)
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        backbone = nn.Sequential(backbone, Pooling(pooling))
    elif pooling != "avg":
        raise ValueError(
            f"pooling={pooling!r} needs a backbone that gives maps (B, f, h, w); {_gives(features, sample)}. Leave "
            "pooling at 'avg', or remove the pooling from the backbone."
        )
    n_features = count_features(backbone, sample)
    if n_components is None:
        n_components, has_head = n_features, frozen_backbone
    else:
        n_components, has_head = count_components(n_components, n_features), True
    if not has_head:
        head = nn.Identity()
    elif not starts_at_features:
        head = nn.Linear(n_features, n_components, dtype=torch.float32)
    elif frozen_backbone:
        head = ResidualHead(
            n_features, n_components, hidden_layer_sizes, strength=STRENGTH, rescale=True, n_leading=n_leading
        )
    else:
        head = ResidualHead(n_features, n_components, (), strength=1, rescale=False, n_leading=n_leading)
    network = EmbeddingNetwork(backbone, head, normalize, precision).to(sample.device)
    network.n_components = n_components
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(
            "The network has no parameter to train: the backbone is frozen or empty and n_components is None. Set "
            "n_components to add a linear head, or give the backbone trainable parameters."
        )
    return network


class OwnDtype(nn.Module):
    """A backbone that computes in another dtype, between a float32 batch and float32 features."""

    def __init__(self, backbone, dtype):
        super().__init__()
        self.backbone = backbone
        self.dtype = dtype

    def forward(self, x):
        features = self.backbone(x.to(self.dtype))
        if isinstance(features, (tuple, list)):  # those of several levels
            return [level.float() for level in features]
        return features.float() if isinstance(features, torch.Tensor) else features


def taking_float32(backbone, sample):
    """Return the backbone, as an `OwnDtype` if it takes the float32 sample only in the dtype of its parameters."""
    dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.float32)
    if dtype != torch.float32:
        try:
            pass_sample(backbone, sample)
        except ValueError:
            return OwnDtype(backbone, dtype)
    return backbone


def count_components(n_components, n_features):
    """Return D for features of this dimension."""
    if n_components != "auto":
        return n_components
    least, most = OWN_DIMENSION
    return max(n_features, least) if n_features <= most else PRINCIPAL_COMPONENTS


def pass_sample(backbone, sample):
    """Return the backbone's output, in eval mode so that none of its statistics changes."""
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
