"""SoftTriple: several learned centers per class, no triplets.

Axes: B samples of a batch, D components, C classes, K centers of a class.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional as F

from .._constraints import NON_NEGATIVE, POSITIVE, POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import BaseEmbedder
from .._loss.proxies import CLASS_SAMPLE_RATE, ProxyLoss, is_own
from .._loss.terms import LossFunction, own_backward, weighted_mean
from .._network.networks import unit_rows


@with_shared_docs
class SoftTripleLoss(ProxyLoss):
    r"""Pull a sample towards the nearest centers of its class and away from the centers of all others.

    .. math::
        \ell &= -\frac1B \sum_i \log \frac{e^{\lambda (S'_{i, y_i} - \delta)}}
            {e^{\lambda (S'_{i, y_i} - \delta)} + \sum_{c \neq y_i} e^{\lambda S'_{i, c}}}
            + \frac{\tau}{C K (K - 1)} \sum_c \sum_{t=1}^{K} \sum_{u=t+1}^{K} \sqrt{2 - 2 w_{ct} \cdot w_{cu}} \\
        S'_{i, c} &= \sum_k \frac{e^{s_{ick} / \gamma}}{\sum_{k'} e^{s_{ick'} / \gamma}} s_{ick}, \qquad
        s_{ick} = x_i \cdot w_{ck}, \qquad w_{ck} = v_{ck} / |v_{ck}|

    The second term draws the centers of a class together, so that superfluous ones coincide.

    Parameters
    ----------
    {BASE_PARAMETERS}
    n_centers : int, default=10
        K, the number of centers per class; >= 1. 1 is the normalized softmax with a margin.
    scale : float, default=20.0
        Lambda, the factor of the similarities in the softmax over the classes; > 0, unitless (multiplies a cosine in
        [-1, 1]).
    gamma : float, default=0.1
        Gamma, the temperature of the softmax over the centers of a class; > 0, on the scale of a cosine. Towards 0 only
        the nearest center counts.
    margin : float, default=0.01
        Delta, which is subtracted from the similarity to the sample's own class; >= 0, on the scale of a cosine.
    tau : float, default=0.2
        Tau, the weight of the regularizer that draws the centers of a class together; >= 0.

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
    scalar, the mean over the batch plus the second term. An empty batch gives 0 with zero gradient.

    S' is the mean of the similarities under the softmax, without the entropy that a log-sum-exp would add, so that a
    center whose similarity is more than gamma below S' is pushed away by its own class. The second term is half the
    mean distance between two centers of a class: its sum runs over unordered pairs, whereas its denominator counts
    ordered pairs.

    As in the authors' code, and not in the paper's formula: 1e-5 is added under the root, which bounds its slope where
    two centers coincide; centers start uniform in +-1/sqrt(C K), whatever D; the margin applies with one center, too.
    Unlike that code, this creates no matrix of all centers by all centers and no second copy of them. A center of
    length zero has similarity 0 to everything and receives no gradient.

    Relations: ``n_centers=1, margin=0`` is the normalized softmax loss with temperature 1 / scale.

    References
    ----------
    .. [1] Q. Qian, L. Shang, B. Sun, J. Hu, H. Li and R. Jin, "SoftTriple Loss: Deep Metric Learning Without Triplet
       Sampling", ICCV 2019. Section 3.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import SoftTripleLoss
    >>> criterion = SoftTripleLoss(n_classes=3, n_components=2, n_centers=2)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> criterion.centers.grad.shape
    torch.Size([3, 2, 2])
    """

    _parameter_constraints = {
        **ProxyLoss._parameter_constraints,
        "n_centers": [POSITIVE_INT],
        "scale": [POSITIVE],
        "gamma": [POSITIVE],
        "margin": [NON_NEGATIVE],
        "tau": [NON_NEGATIVE],
        "class_sample_rate": [CLASS_SAMPLE_RATE],
    }

    def __init__(
        self,
        n_classes,
        n_components,
        *,
        class_sample_rate=1.0,
        n_centers=10,
        scale=20.0,
        gamma=0.1,
        margin=0.01,
        tau=0.2,
    ):
        super().__init__(n_classes, n_components, class_sample_rate)
        self.n_centers = n_centers
        self.scale = scale
        self.gamma = gamma
        self.margin = margin
        self.tau = tau
        check_constraints(self, vars(self))
        bound = (n_classes * n_centers) ** -0.5
        centers = torch.empty(n_classes, n_centers, n_components, dtype=torch.float32)
        self.centers = nn.Parameter(centers.uniform_(-bound, bound))

    def _batch_loss(self, embeddings, y, proxies, sample_weight):
        s, gram, _ = _Cosines.apply(embeddings, proxies)  # (B, C, K), (C, K, K)
        similarity = _relaxed_similarity(s, self.gamma)  # (B, C)
        own = is_own(y, len(proxies))  # (B, C)
        logits = self.scale * torch.where(own, similarity - self.margin, similarity)  # (B, C)
        loss = weighted_mean(F.cross_entropy(logits, y, reduction="none"), sample_weight)
        if self.n_centers > 1 and self.tau > 0:
            loss = loss + self.tau * _half_mean_distance(gram)
        return loss


def _relaxed_similarity(s, gamma):
    """Return S' (B, C): the similarities s (B, C, K) to a class's centers, averaged under their softmax."""
    K = s.shape[2]
    if K == 1:
        return s.squeeze(2)
    if K < 8:  # along so short an axis torch's softmax is slow on the CPU
        s = s.permute(2, 0, 1).contiguous()  # (K, B, C)
    axis = 0 if K < 8 else 2
    q = torch.softmax(s / gamma, dim=axis)
    return (q * s).sum(dim=axis)


def _half_mean_distance(gram):
    """Return the sum of |w_ct - w_cu| over t < u, over C K (K - 1), from the cosines (C, K, K) of unit centers."""
    C, K, _ = gram.shape
    return (2 + 1e-5 - 2 * gram).sqrt().triu(diagonal=1).sum() / (C * K * (K - 1))


class _Cosines(LossFunction):
    """Dot products of embeddings with unit centers w = v / |v|, (B, C, K), and of a class's unit centers, (C, K, K).

    With g the gradient in w, that in v is (g - (g . w) w) / |v|. As g mixes embeddings and centers of the same class,
    it takes one product with the embeddings and one of K by K numbers per class with v, and w is never stored. With
    many classes, autograd's copies of the centers would fill the memory.
    """

    @staticmethod
    def forward(x, v):
        gram = v @ v.mT  # (C, K, K)
        norm = gram.diagonal(dim1=1, dim2=2).sqrt()  # (C, K)
        r = torch.where(norm > 1e-12, 1 / norm, 0)  # (C, K)
        gram = gram.mul_(r[:, :, None]).mul_(r[:, None, :]).clamp_(max=1)
        s = (x @ v.flatten(0, 1).T).unflatten(1, r.shape).mul_(r)  # (B, C, K)
        return s, gram, r

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.save_for_backward(*inputs, *outputs)
        ctx.mark_non_differentiable(outputs[2])

    @staticmethod
    @own_backward
    def backward(ctx, grad_s, grad_gram, _):
        x, v, s, gram, r = ctx.saved_tensors
        grad_s_v = (grad_s * r).flatten(1)  # (B, C K), in the dot products with v
        grad_x = grad_s_v @ v.flatten(0, 1) if ctx.needs_input_grad[0] else None
        grad_v = None
        if ctx.needs_input_grad[1]:
            grad_gram = grad_gram + grad_gram.mT
            radial = (grad_s * s).sum(dim=0) + (grad_gram * gram).sum(dim=2)  # (C, K), g . w
            mix = (grad_gram - torch.diag_embed(radial)).mul_(r[:, :, None]).mul_(r[:, None, :])  # (C, K, K)
            grad_v = (grad_s_v.T @ x).unflatten(0, r.shape)  # (C, K, D)
            torch.baddbmm(grad_v, mix, v, out=grad_v)
        return grad_x, grad_v


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class SoftTripleEmbedder(BaseEmbedder):
    """SoftTriple: several learned centers per class, no pairs and no sampling [1]_.

    Each class has ``n_centers`` learned centers; a softmax over the relaxed similarities of the classes pulls a sample
    to the nearer centers of its class, and ``tau`` merges superfluous centers of a class. It is the first choice where
    classes are diverse or have few samples: any batch will do.

    Read more in the :ref:`User Guide <soft_triple>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    center_learning_rate : float, default=3e-3
        Peak learning rate of the centers; > 0.
    {BASE_PARAMETERS}

    Attributes
    ----------
    centers_ : ndarray of shape (n_classes, n_centers, n_components)
        The centers, unit rows.
    n_centers_per_class_ : ndarray of shape (n_classes,)
        Number of distinct centers that tau left: centers closer than 0.1, directly or through others, count as one.
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Compares the pairs of a batch; needs several samples per class and is then often better.
    skdml.losses.SoftTripleLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] Q. Qian, L. Shang, B. Sun, J. Hu, H. Li and R. Jin, "SoftTriple Loss: Deep Metric Learning Without Triplet
       Sampling", ICCV 2019, arXiv:1909.05235.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import SoftTripleEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = SoftTripleEmbedder(n_centers=4, max_epochs=5, random_state=0).fit(X / 16, y)
    >>> embedder.transform(X_unseen / 16).shape
    (896, 64)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = SoftTripleLoss

    n_centers: int = 10
    scale: float = 20.0
    gamma: float = 0.1
    margin: float = 0.01
    tau: float = 0.2
    class_sample_rate: float = 1.0
    center_learning_rate: float = 3e-3

    _parameter_constraints = {
        **SoftTripleLoss._parameter_constraints,
        **BaseEmbedder._parameter_constraints,
        "center_learning_rate": [POSITIVE],
    }
    del _parameter_constraints["n_classes"]  # a parameter of the loss only

    def _loss_learning_rate(self):
        return self.center_learning_rate

    @property
    def centers_(self):
        return unit_rows(self.criterion_.centers.detach()).numpy()

    @property
    def n_centers_per_class_(self):
        return np.array([len(np.unique(row)) for row in merge_centers(self.centers_)])


def merge_centers(centers):
    """Return the group of each unit center, (C, K): those of a class closer than 0.1, directly or through others."""
    # Single linkage cut at 0.1: the connected components of the graph of near pairs.
    C, K, _ = centers.shape
    similarity = [W @ W.T for W in centers]  # unit rows: |v - w|^2 = 2 - 2 v.w
    c, k, l = np.nonzero(2 - 2 * np.stack(similarity) < 0.1**2)
    near = sparse.coo_array((np.ones(len(c)), (c * K + k, c * K + l)), shape=(C * K, C * K))
    return sparse.csgraph.connected_components(near, directed=False)[1].reshape(C, K)
