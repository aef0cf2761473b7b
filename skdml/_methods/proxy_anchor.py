"""Proxy-Anchor: every proxy is an anchor, and the samples of the batch are its positives and negatives.

Axes: B samples of a batch, D components, C classes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .._constraints import NON_NEGATIVE, POSITIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import ProxyEmbedder
from .._loss.proxies import CLASS_SAMPLE_RATE, ProxyLoss, is_own
from .._network.networks import unit_rows


@with_shared_docs
class ProxyAnchorLoss(ProxyLoss):
    r"""Pull the samples of a class towards its proxy, weighting each by its distance, and push all others away.

    .. math::
        \ell = \frac{1}{|P^+|} \sum_{c \in P^+} \log\Bigl[1 + \sum_{i : y_i = c} e^{-\alpha (s_{ic} - \delta)}\Bigr]
             + \frac1C \sum_c \log\Bigl[1 + \sum_{i : y_i \neq c} e^{\alpha (s_{ic} + \delta)}\Bigr], \qquad
        s_{ic} = x_i \cdot v_c / |v_c|

    P+ are the classes with a sample in the batch.

    Parameters
    ----------
    {BASE_PARAMETERS}
    alpha : float, default=32.0
        Alpha, the sharpness over the samples; > 0, unitless (multiplies a cosine in [-1, 1]). With a large value only
        the hardest sample of a proxy counts.
    margin : float, default=0.1
        Delta; >= 0, on the scale of a cosine. The similarities of a proxy to the samples of its class should exceed it,
        those to all others should be below -delta.

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
    scalar, the mean over the proxies of the batch's classes plus the mean over all proxies. A proxy without negatives
    contributes 0 to the second mean and counts in it. An empty batch gives 0 with zero gradient. A proxy of length zero
    has similarity 0 to everything and receives no gradient.

    The weight of a sample multiplies its exponentials, so that an integer equals repeated rows; a class of which all
    samples have weight 0 is not in P+. Unlike in a mean, the scale of the weights matters.

    Proxies start as in the authors' code, normal with standard deviation sqrt(2 / C). Unlike in that code, two classes
    give the right value (its one-hot labels then have one column), and no exponent overflows.

    References
    ----------
    .. [1] S. Kim, D. Kim, M. Cho and S. Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020. Section 3.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import ProxyAnchorLoss
    >>> criterion = ProxyAnchorLoss(n_classes=3, n_components=2)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> criterion.proxies.grad.shape
    torch.Size([3, 2])
    """

    _parameter_constraints = {
        **ProxyLoss._parameter_constraints,
        "alpha": [POSITIVE],
        "margin": [NON_NEGATIVE],
        "class_sample_rate": [CLASS_SAMPLE_RATE],
    }

    def __init__(self, n_classes, n_components, *, class_sample_rate=1.0, alpha=32.0, margin=0.1):
        super().__init__(n_classes, n_components, class_sample_rate)
        self.alpha = alpha
        self.margin = margin
        check_constraints(self, vars(self))
        self.proxies = nn.Parameter(torch.randn(n_classes, n_components, dtype=torch.float32) * (2 / n_classes) ** 0.5)

    def _batch_loss(self, embeddings, y, proxies, sample_weight):
        s = embeddings @ unit_rows(proxies).T  # (B, C)
        own = is_own(y, len(proxies))  # (B, C)
        pull = _log1p_sum_exp(-self.alpha * (s - self.margin), own, sample_weight)  # (C,), 0 outside the batch
        push = _log1p_sum_exp(self.alpha * (s + self.margin), ~own, sample_weight)  # (C,)
        counts = own if sample_weight is None else own & (sample_weight > 0)[:, None]  # (B, C)
        return pull.sum() / counts.any(dim=0).sum().clamp(min=1) + push.mean()


def _log1p_sum_exp(z, mask, sample_weight):
    """Return log(1 + sum of w e^z over the rows in the mask) for every column: a row of zeros stands for the 1."""
    z = z.masked_fill(~mask, -torch.inf)
    if sample_weight is not None:
        z = z + sample_weight.to(z.dtype).log()[:, None]
    return F.pad(z, (0, 0, 1, 0)).logsumexp(dim=0)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class ProxyAnchorEmbedder(ProxyEmbedder):
    """Proxy-Anchor: one learned proxy per class, compared with all samples of the batch [1]_.

    The gradient of a sample depends on the other samples of the batch, as with pairs, at the cost of proxies: no
    sampling is needed.

    Read more in the :ref:`User Guide <proxy_anchor>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    ProxyNCAEmbedder : The sample is the anchor, and the proxies are compared with it.
    skdml.losses.ProxyAnchorLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] S. Kim, D. Kim, M. Cho and S. Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020,
       arXiv:2003.13911.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import ProxyAnchorEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = ProxyAnchorEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = ProxyAnchorLoss

    alpha: float = 32.0
    margin: float = 0.1
    class_sample_rate: float = 1.0
    proxy_learning_rate: float = 3e-2

    _parameter_constraints = {**ProxyAnchorLoss._parameter_constraints, **ProxyEmbedder._parameter_constraints}
    del _parameter_constraints["n_classes"]  # a parameter of the loss only
