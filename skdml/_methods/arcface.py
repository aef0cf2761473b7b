"""ArcFace: a margin in the angle between a sample and the center of its class; several centers: sub-center ArcFace.

Axes: B samples of a batch, D components, C classes, K centers of a class.
"""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

from .._constraints import POSITIVE, POSITIVE_INT, Interval, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import ProxyEmbedder
from .._loss.proxies import CLASS_SAMPLE_RATE, ProxyLoss, is_own
from .._loss.terms import rows_at
from .._network.networks import unit_rows


@with_shared_docs
class ArcFaceLoss(ProxyLoss):
    r"""A softmax over the cosines to the nearest centers of the classes, with a margin in the angle to the own class.

    .. math::
        \ell &= -\frac1B \sum_i \log \frac{e^{\lambda \psi(\theta_{i, y_i})}}
            {e^{\lambda \psi(\theta_{i, y_i})} + \sum_{c \neq y_i} e^{\lambda \cos \theta_{ic}}} \\
        \cos \theta_{ic} &= \max_k x_i \cdot w_{ck}, \qquad w_{ck} = v_{ck} / |v_{ck}| \\
        \psi(\theta) &= \begin{cases} \cos(\theta + m) & \theta < \pi - m \\ \cos \theta - m \sin m & \text{else}
            \end{cases}

    Parameters
    ----------
    {BASE_PARAMETERS}
    n_centers : int, default=1
        K, the number of centers per class; >= 1. 1 is ArcFace [1]_, more is sub-center ArcFace [2]_, where 3 is usual.
    scale : float, default=32.0
        Lambda, the factor of the cosines in the softmax over the classes; > 0, unitless. The paper uses 64, for many
        thousand classes.
    margin : float, default=0.5
        Margin m, which is added to the angle between a sample and the nearest center of its class; in [0, pi), in
        radians.

    Attributes
    ----------
    centers : Parameter of shape (n_classes, n_centers, n_components)
        The v_ck, of any length: the formula normalizes them, never in place. The shorter a center, the further an
        optimizer step turns it.

    Raises
    ------
    ValueError
        If a parameter is outside its range, the shapes of a batch are not (B, D) and (B,), or a label is out of range.

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers in [0, n_classes); returns a
    scalar, the mean over the batch. An empty batch gives 0 with zero gradient; with one class the loss is 0. Within a
    class only the nearest center gets a gradient from a sample, one of them where several are equally near. A center of
    length zero has similarity 0 to everything and receives no gradient.

    For rows of another length, cosines become dot products and psi is multiplied by the length of the row: the margin
    remains one of the angle.

    No arccosine is taken. With c the dot product and r the length of x - c w, the part of the sample orthogonal to its
    center, cos(theta + m) is c cos(m) - r sin(m). The gradient of r is a unit vector, whereas the slopes of the
    arccosine and of sqrt(1 - c^2), which other implementations use, are unbounded near a center.

    Centers start uniform in +-1/sqrt(C K), as those of `SoftTripleLoss` do. Cleaning the training set by the dominant
    centers, as [2]_ does after training, is not part of the loss.

    The scale is half that of [1]_, which has many thousand classes. On held-out classes of characters, 16 and 32
    performed alike, for 15 and for 100 classes, and 64 slightly worse: it saturates the softmax over few classes.

    Relations: ``margin=0`` with ``n_centers=1`` is `NormSoftmaxLoss`; with more centers it is `SoftTripleLoss` towards
    ``gamma=0``, without margin and tau.

    References
    ----------
    .. [1] J. Deng, J. Guo, N. Xue and S. Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
       CVPR 2019.
    .. [2] J. Deng, J. Guo, T. Liu, M. Gong and S. Zafeiriou, "Sub-center ArcFace: Boosting Face Recognition by
       Large-Scale Noisy Web Faces", ECCV 2020.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import ArcFaceLoss
    >>> criterion = ArcFaceLoss(n_classes=3, n_components=2, n_centers=3)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> criterion.centers.grad.shape
    torch.Size([3, 3, 2])
    """

    _parameter_constraints = {
        **ProxyLoss._parameter_constraints,
        "n_centers": [POSITIVE_INT],
        "scale": [POSITIVE],
        "margin": [Interval(Real, 0, math.pi, closed="left")],
        "class_sample_rate": [CLASS_SAMPLE_RATE],
    }

    def __init__(self, n_classes, n_components, *, class_sample_rate=1.0, n_centers=1, scale=32.0, margin=0.5):
        super().__init__(n_classes, n_components, class_sample_rate)
        self.n_centers = n_centers
        self.scale = scale
        self.margin = margin
        check_constraints(self, vars(self))
        bound = (n_classes * n_centers) ** -0.5
        centers = torch.empty(n_classes, n_centers, n_components, dtype=torch.float32)
        self.centers = nn.Parameter(centers.uniform_(-bound, bound))

    def _sample_losses(self, embeddings, y, proxies):
        w = unit_rows(proxies)  # (C, K, D)
        s, nearest = (embeddings @ w.flatten(0, 1).T).unflatten(1, w.shape[:2]).max(dim=2)  # (B, C)
        own_center = rows_at(w.flatten(0, 1), y * w.shape[1] + nearest.gather(1, y[:, None])[:, 0])  # (B, D)
        own = _psi(embeddings, own_center, self.margin)  # (B,)
        logits = self.scale * torch.where(is_own(y, len(w)), own[:, None], s)  # (B, C)
        return F.cross_entropy(logits, y, reduction="none")


def _psi(x, w, margin):
    """Return |x| psi(theta) for the angles theta between rows x and unit rows w, both (B, D)."""
    norm = torch.linalg.vector_norm(x, dim=1)
    c = (x * w).sum(dim=1)  # |x| cos(theta)
    r = torch.linalg.vector_norm(x - c[:, None] * w, dim=1)  # |x| sin(theta)
    return torch.where(
        c > -math.cos(margin) * norm,
        c * math.cos(margin) - r * math.sin(margin),
        c - margin * math.sin(margin) * norm,
    )


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class ArcFaceEmbedder(ProxyEmbedder):
    """ArcFace: a softmax over the angles to learned centers, with a margin in the angle to the own class [1]_.

    With ``n_centers`` above 1 this is sub-center ArcFace [2]_: a sample counts for the nearest center of its class, so
    that unusual and wrongly labeled samples gather around centers of their own.

    Read more in the :ref:`User Guide <arcface>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    NormSoftmaxEmbedder : Without a margin.
    SoftTripleEmbedder : A soft choice among the centers of a class, and a margin in the cosine.
    skdml.losses.ArcFaceLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] J. Deng, J. Guo, N. Xue and S. Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
       CVPR 2019, arXiv:1801.07698.
    .. [2] J. Deng, J. Guo, T. Liu, M. Gong and S. Zafeiriou, "Sub-center ArcFace: Boosting Face Recognition by
       Large-Scale Noisy Web Faces", ECCV 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import ArcFaceEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = ArcFaceEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = ArcFaceLoss

    n_centers: int = 1
    scale: float = 32.0
    margin: float = 0.5
    class_sample_rate: float = 1.0
    proxy_learning_rate: float = 3e-2

    _parameter_constraints = {**ArcFaceLoss._parameter_constraints, **ProxyEmbedder._parameter_constraints}
    del _parameter_constraints["n_classes"]  # a parameter of the loss only
