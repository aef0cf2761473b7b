"""Large-margin softmax: the own class must win although the angle to it counts several times.

Axes: B samples of a batch, D components, C classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .._constraints import NON_NEGATIVE, POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import ProxyEmbedder
from .._loss.proxies import ProxyLoss, is_own
from .._loss.terms import rows_at
from .._network.networks import unit_rows


@with_shared_docs
class LargeMarginSoftmaxLoss(ProxyLoss):
    r"""A softmax over dot products in which the angle to the own class's proxy is multiplied by an integer.

    .. math::
        \ell &= -\frac1B \sum_i \log \frac{e^{|w_{y_i}| |x_i| \phi(\theta_{i, y_i})}}
            {e^{|w_{y_i}| |x_i| \phi(\theta_{i, y_i})} + \sum_{c \neq y_i} e^{w_c \cdot x_i}} \\
        \phi(\theta) &= \frac{\lambda \cos \theta + \psi(\theta)}{\lambda + 1}, \qquad
        \psi(\theta) = (-1)^k \cos(m \theta) - 2 k \quad \text{for} \quad
            \theta \in \Bigl[\frac{k \pi}{m}, \frac{(k + 1) \pi}{m}\Bigr] \\
        \lambda &= \max\bigl(\lambda_{\min},\, \lambda_0 (1 + \gamma t)^{-p}\bigr)

    Here t counts the training steps: training begins with the plain softmax and moves to the margin gradually.

    Parameters
    ----------
    {BASE_PARAMETERS}
    margin : int, default=4
        Factor m of the angle between a sample and the proxy of its class; >= 1. 1 is the plain softmax.
    annealing_base : float, default=1000.0
        Lambda_0, the weight of the plain logit relative to the one with the margin, at the first step; >= 0. With 0,
        and ``annealing_minimum=0``, there is no annealing.
    annealing_gamma : float, default=1e-3
        Gamma, how soon lambda falls; >= 0, per training step: at step t it is lambda_0 (1 + gamma t)^-p. The default
        brings it below 1 in about 220 steps; for much longer training a smaller value is usual, such as the authors'
        2.5e-5.
    annealing_power : float, default=35.0
        Power p with which lambda falls; >= 0.
    annealing_minimum : float, default=0.0
        Lambda_min, the lower bound on lambda; >= 0. 5 to 10 is usual where the full margin does not train.

    Attributes
    ----------
    proxies : Parameter of shape (n_classes, n_components)
        The w_c, taken as they are: their length is learned.
    n_steps : int64 tensor of shape ()
        t, a buffer: how often the loss of a batch was computed in training mode. It does not change in eval mode.

    Raises
    ------
    ValueError
        If a parameter is outside its range, the shapes of a batch are not (B, D) and (B,), or a label is out of range.

    Notes
    -----
    Shape: embeddings (B, D) float, of any length, which scales the logits; y (B,) integers in [0, n_classes); returns a
    scalar, the mean over the batch. An empty batch gives 0 with zero gradient and does not count as a step; with one
    class the loss is 0. A row or a proxy of zeros has logits of 0.

    cos(m theta) is taken from cos(theta) by its polynomial, without an arccosine. Psi and its slope are continuous
    where k changes, so k needs no gradient.

    The annealing is that of the authors' layer, not of the formula in the paper. Proxies start uniform in +-1/sqrt(D),
    as the weights of a linear layer in torch.

    Relations: ``margin=1`` is the softmax of a linear layer without bias.

    References
    ----------
    .. [1] W. Liu, Y. Wen, Z. Yu and M. Yang, "Large-Margin Softmax Loss for Convolutional Neural Networks", ICML 2016.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import LargeMarginSoftmaxLoss
    >>> criterion = LargeMarginSoftmaxLoss(n_classes=3, n_components=2)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> criterion.proxies.grad.shape
    torch.Size([3, 2])
    >>> int(criterion.n_steps)
    1
    """

    _parameter_constraints = {
        **ProxyLoss._parameter_constraints,
        "margin": [POSITIVE_INT],
        "annealing_base": [NON_NEGATIVE],
        "annealing_gamma": [NON_NEGATIVE],
        "annealing_power": [NON_NEGATIVE],
        "annealing_minimum": [NON_NEGATIVE],
    }

    def __init__(
        self,
        n_classes,
        n_components,
        *,
        margin=4,
        annealing_base=1000.0,
        annealing_gamma=1e-3,
        annealing_power=35.0,
        annealing_minimum=0.0,
    ):
        super().__init__(n_classes, n_components)
        self.margin = margin
        self.annealing_base = annealing_base
        self.annealing_gamma = annealing_gamma
        self.annealing_power = annealing_power
        self.annealing_minimum = annealing_minimum
        check_constraints(self, vars(self))
        bound = n_components**-0.5
        self.proxies = nn.Parameter(torch.empty(n_classes, n_components, dtype=torch.float32).uniform_(-bound, bound))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))

    def _sample_losses(self, embeddings, y, proxies):
        w = rows_at(proxies, y)  # (B, D)
        cosine = (unit_rows(embeddings) * unit_rows(w)).sum(dim=1)  # (B,)
        length = torch.linalg.vector_norm(embeddings, dim=1) * torch.linalg.vector_norm(w, dim=1)  # (B,)
        annealing = self._annealing(cosine.dtype)
        phi = (annealing * cosine + _psi(cosine, self.margin)) / (annealing + 1)  # (B,)
        if self.training:
            self.n_steps = self.n_steps + 1
        own = is_own(y, len(proxies))  # (B, C)
        logits = torch.where(own, (length * phi)[:, None], embeddings @ proxies.T)  # (B, C)
        return F.cross_entropy(logits, y, reduction="none")

    def _annealing(self, dtype):
        """Return lambda at the present step, a tensor of shape ()."""
        falling = self.annealing_base * (1 + self.annealing_gamma * self.n_steps.to(dtype)) ** -self.annealing_power
        return falling.clamp(min=self.annealing_minimum)


def _psi(cosine, m):
    """Return (-1)^k cos(m theta) - 2 k for theta in [k pi / m, (k + 1) pi / m], from cos(theta)."""
    cos_m = sum(
        (-1) ** n * math.comb(m, 2 * n) * cosine ** (m - 2 * n) * (1 - cosine**2) ** n for n in range(m // 2 + 1)
    )
    bounds = torch.cos(torch.arange(1, m, dtype=cosine.dtype, device=cosine.device) * (math.pi / m))
    k = (cosine.detach()[:, None] < bounds).sum(dim=1)  # (B,)
    return (1 - 2 * (k % 2)) * cos_m - 2 * k


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class LargeMarginSoftmaxEmbedder(ProxyEmbedder):
    """Large-margin softmax: classification in which the angle to the own class is multiplied by an integer [1]_.

    The lengths of embeddings and proxies are learned: by default ``transform`` gives rows of different lengths, to be
    compared by their cosines, as ``score`` does.

    Read more in the :ref:`User Guide <large_margin_softmax>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    ArcFaceEmbedder : A margin added to the angle, of unit vectors.
    skdml.losses.LargeMarginSoftmaxLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] W. Liu, Y. Wen, Z. Yu and M. Yang, "Large-Margin Softmax Loss for Convolutional Neural Networks", ICML 2016,
       arXiv:1612.02295.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import LargeMarginSoftmaxEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = LargeMarginSoftmaxEmbedder(learning_rate=1e-3, max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.85)
    True
    """

    _loss_class = LargeMarginSoftmaxLoss

    margin: int = 4
    annealing_base: float = 1000.0
    annealing_gamma: float = 1e-3
    annealing_power: float = 35.0
    annealing_minimum: float = 0.0
    normalize: bool = False

    _parameter_constraints = {**LargeMarginSoftmaxLoss._parameter_constraints, **ProxyEmbedder._parameter_constraints}
    del _parameter_constraints["n_classes"]  # a parameter of the loss only
