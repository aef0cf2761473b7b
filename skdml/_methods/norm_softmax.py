"""Normalized softmax: one learned proxy per class, and a softmax over the cosines.

Axes: B samples of a batch, D components, C classes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .._constraints import POSITIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import ProxyEmbedder
from .._loss.proxies import CLASS_SAMPLE_RATE, ProxyLoss
from .._network.networks import unit_rows


@with_shared_docs
class NormSoftmaxLoss(ProxyLoss):
    r"""Pull a sample towards the proxy of its class and away from all other proxies, by a softmax over the cosines.

    .. math::
        \ell = -\frac1B \sum_i \log
            \frac{e^{\lambda x_i \cdot w_{y_i}}}{\sum_c e^{\lambda x_i \cdot w_c}}, \qquad w_c = v_c / |v_c|

    Parameters
    ----------
    {BASE_PARAMETERS}
    scale : float, default=20.0
        Lambda, the factor of the cosines in the softmax over the classes, one over the temperature; > 0, unitless.

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
    scalar, the mean over the batch. An empty batch gives 0 with zero gradient; with one class the loss is 0. A proxy of
    length zero has similarity 0 to everything and receives no gradient.

    Proxies start uniform in +-1/sqrt(C), whatever D, as the centers in the code of [2]_ do with one center per class.

    Relations: this is `SoftTripleLoss` with ``n_centers=1, margin=0``, `ArcFaceLoss` with ``margin=0`` of the same
    scale, and `ProxyNCALoss` of scale sqrt(lambda / 2) with ``positive_in_denominator=True``.

    References
    ----------
    .. [1] A. Zhai and H.-Y. Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019.
    .. [2] Q. Qian, L. Shang, B. Sun, J. Hu, H. Li and R. Jin, "SoftTriple Loss: Deep Metric Learning Without Triplet
       Sampling", ICCV 2019. Where it is called SoftMax_norm.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import NormSoftmaxLoss
    >>> criterion = NormSoftmaxLoss(n_classes=3, n_components=2)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> criterion.proxies.grad.shape
    torch.Size([3, 2])
    """

    _parameter_constraints = {
        **ProxyLoss._parameter_constraints,
        "scale": [POSITIVE],
        "class_sample_rate": [CLASS_SAMPLE_RATE],
    }

    def __init__(self, n_classes, n_components, *, class_sample_rate=1.0, scale=20.0):
        super().__init__(n_classes, n_components, class_sample_rate)
        self.scale = scale
        check_constraints(self, vars(self))
        bound = n_classes**-0.5
        self.proxies = nn.Parameter(torch.empty(n_classes, n_components, dtype=torch.float32).uniform_(-bound, bound))

    def _sample_losses(self, embeddings, y, proxies):
        logits = self.scale * embeddings @ unit_rows(proxies).T  # (B, C)
        # On CUDA, where check_batch does not look at the labels, torch would ignore those that are -100.
        return F.cross_entropy(logits, y, reduction="none", ignore_index=torch.iinfo(torch.int64).min)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class NormSoftmaxEmbedder(ProxyEmbedder):
    """Normalized softmax: classification by the cosine to one learned proxy per class [1]_.

    The simplest method with proxies, and a strong baseline: it needs no pairs and no sampling, and has one parameter.

    Read more in the :ref:`User Guide <norm_softmax>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    SoftTripleEmbedder : Several centers per class, and a margin.
    ArcFaceEmbedder : A margin in the angle to the own class.
    skdml.losses.NormSoftmaxLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] A. Zhai and H.-Y. Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019,
       arXiv:1811.12649.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import NormSoftmaxEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = NormSoftmaxEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = NormSoftmaxLoss

    scale: float = 20.0
    class_sample_rate: float = 1.0
    proxy_learning_rate: float = 3e-2

    _parameter_constraints = {**NormSoftmaxLoss._parameter_constraints, **ProxyEmbedder._parameter_constraints}
    del _parameter_constraints["n_classes"]  # a parameter of the loss only
