"""ProxyNCA: neighborhood components analysis in which one learned proxy stands for each class.

Axes: B samples of a batch, D components, C classes.
"""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn

from .._constraints import POSITIVE, Interval, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import ProxyEmbedder
from .._loss.proxies import CLASS_SAMPLE_RATE, ProxyLoss, is_own
from .._network.networks import unit_rows


@with_shared_docs
class ProxyNCALoss(ProxyLoss):
    r"""Pull a sample towards the proxy of its class, and push it away from the nearest of the other proxies.

    .. math::
        \ell &= -\frac1B \sum_i \log \frac{e^{-d_{i, y_i}}}{\sum_{c \neq y_i} e^{-d_{ic}}} \\
        d_{ic} &= |\lambda x_i - \lambda w_c|^2, \qquad w_c = v_c / |v_c|

    The own proxy is not in the denominator, so the loss has no lower bound at 0.

    Parameters
    ----------
    {BASE_PARAMETERS}
    scale : float, default=3.0
        Lambda, the length to which samples and proxies are scaled before their squared distance is taken; > 0. The
        temperature T of [2]_ is 1 / scale**2.
    positive_in_denominator : bool, default=False
        Whether the sum in the denominator runs over all classes, so that the fraction is a probability: ProxyNCA++
        [2]_.
    label_smoothing : float, default=0.0
        Epsilon, the share of the target that is spread evenly over the other classes; in [0, 1). The exponent of the
        numerator is then -(1 - epsilon) times the d of the own proxy minus epsilon times the mean d of the others.

    Attributes
    ----------
    proxies : Parameter of shape (n_classes, n_components)
        The v_c, of any length: the formula normalizes them, never in place. The shorter a proxy, the further an
        optimizer step turns it.

    Raises
    ------
    ValueError
        If a parameter is outside its range, the shapes of a batch are not (B, D) and (B,), or a label is out of range.

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers in [0, n_classes); returns a
    scalar, the mean over the batch. An empty batch gives 0 with zero gradient, and so does one class, which has no
    other proxies. A proxy of length zero has similarity 0 to everything and receives no gradient.

    The squared lengths in d occur in the numerator and in the denominator. They cancel, whatever the length of the
    sample, so that the loss is computed from ``2 * scale**2`` times the dot products.

    Implementations called ProxyNCA differ. The default here is the published form, without the own proxy in the
    denominator and with 3 for both lengths. Others sum over all proxies, some with label smoothing 0.1, with lengths 1
    for the samples and 3 for the proxies (``scale=3**0.5``) or 1 for both (``scale=1.0``). Proxies start normal with
    standard deviation 1/8, as is usual, which is length 1 where D is 64.

    Relations: with ``positive_in_denominator=True`` this is `NormSoftmaxLoss` of scale ``2 * scale**2``.

    References
    ----------
    .. [1] Y. Movshovitz-Attias, A. Toshev, T. K. Leung, S. Ioffe and S. Singh, "No Fuss Distance Metric Learning using
       Proxies", ICCV 2017.
    .. [2] E. W. Teh, T. DeVries and G. W. Taylor, "ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component
       Analysis", ECCV 2020.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import ProxyNCALoss
    >>> criterion = ProxyNCALoss(n_classes=3, n_components=2)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> criterion.proxies.grad.shape
    torch.Size([3, 2])
    """

    _parameter_constraints = {
        **ProxyLoss._parameter_constraints,
        "scale": [POSITIVE],
        "positive_in_denominator": ["boolean"],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "class_sample_rate": [CLASS_SAMPLE_RATE],
    }

    def __init__(
        self,
        n_classes,
        n_components,
        *,
        class_sample_rate=1.0,
        scale=3.0,
        positive_in_denominator=False,
        label_smoothing=0.0,
    ):
        super().__init__(n_classes, n_components, class_sample_rate)
        self.scale = scale
        self.positive_in_denominator = positive_in_denominator
        self.label_smoothing = label_smoothing
        check_constraints(self, vars(self))
        self.proxies = nn.Parameter(torch.randn(n_classes, n_components, dtype=torch.float32) / 8)

    def _sample_losses(self, embeddings, y, proxies):
        # -d up to the squared lengths, which cancel.
        z = 2 * self.scale**2 * embeddings @ unit_rows(proxies).T  # (B, C)
        if len(proxies) == 1:  # no other proxies
            return 0 * z[:, 0]
        own = is_own(y, len(proxies))  # (B, C)
        others = self.label_smoothing / (len(proxies) - 1)
        numerator = torch.where(own, (1 - self.label_smoothing) * z, others * z).sum(dim=1)  # (B,)
        denominator = (z if self.positive_in_denominator else z.masked_fill(own, -torch.inf)).logsumexp(dim=1)
        return denominator - numerator


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class ProxyNCAEmbedder(ProxyEmbedder):
    """ProxyNCA: each sample is compared with one learned proxy per class, by squared distances [1]_.

    The method that introduced proxies: no triplets, no sampling. ``positive_in_denominator=True`` is ProxyNCA++ [2]_.

    Read more in the :ref:`User Guide <proxy_nca>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    NormSoftmaxEmbedder : The same as ProxyNCA++, up to the scale.
    ProxyAnchorEmbedder : The proxy is the anchor, and the samples are compared with it.
    skdml.losses.ProxyNCALoss : The loss on its own, for a torch loop.

    Notes
    -----
    Only the loss of ProxyNCA++ is included, not its balanced batches, max pooling and layer normalization; the latter
    two belong in a ``backbone``.

    References
    ----------
    .. [1] Y. Movshovitz-Attias, A. Toshev, T. K. Leung, S. Ioffe and S. Singh, "No Fuss Distance Metric Learning using
       Proxies", ICCV 2017, arXiv:1703.07464.
    .. [2] E. W. Teh, T. DeVries and G. W. Taylor, "ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component
       Analysis", ECCV 2020, arXiv:2004.01113.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import ProxyNCAEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = ProxyNCAEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = ProxyNCALoss

    scale: float = 3.0
    positive_in_denominator: bool = False
    label_smoothing: float = 0.0
    class_sample_rate: float = 1.0
    proxy_learning_rate: float = 3e-2

    _parameter_constraints = {**ProxyNCALoss._parameter_constraints, **ProxyEmbedder._parameter_constraints}
    del _parameter_constraints["n_classes"]  # a parameter of the loss only
