"""Angular: a bound on the angle at the negative of a triplet.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch.nn import functional as F

from .._constraints import Interval, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.terms import weighted_mean


@with_shared_docs
class AngularLoss(PairLoss):
    r"""Keep the angle at which a negative sees a positive pair below a bound.

    .. math::
        \ell &= \frac1T \sum_{(a, p)} \log\Bigl[1 + \sum_{n \in N_a} e^{f_{apn}}\Bigr] \\
        f_{apn} &= 4 \tan^2(\alpha)\, (x_a + x_p) \cdot x_n - 2 (1 + \tan^2(\alpha))\, x_a \cdot x_p

    The T pairs (a, p) are all ordered positive pairs of the batch, the N_a the negatives of the anchor.

    Parameters
    ----------
    angle : float, default=45.0
        Alpha, the upper bound on the angle at the negative, in degrees; in (0, 90). The paper tries 36 to 55.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; returns a scalar, the mean
    over the ordered positive pairs, of which those whose anchor has no negatives are 0. Without positives or without
    negatives the loss is 0 with zero gradient. With a memory, negatives may come from earlier batches; positives come
    from the batch.

    For unit rows f is :math:`d^2_{ap} - 4 \tan^2(\alpha) |x_n - c|^2` with c = (x_a + x_p) / 2, minus the constant
    :math:`2 - 6 \tan^2(\alpha)`, which the paper drops. A scale of the rows scales f.

    The sum over n splits into factors of (a, n) and of (p, n), so that all pairs take one matrix product; the triplets
    would take B^3 exponentials. In float32 a factor more than e^70 times smaller than the largest of its row counts as
    e^-70 of it, which unit rows do not come near for angles up to 65 degrees. Long rows may: a pair whose two rows have
    no near negative in common then gets too large a value.

    Differences from pytorch-metric-learning: it normalizes only anchors and positives, whereas negatives are treated
    alike here; the angle is 45, not 40. The TensorFlow and Chainer ports take two samples per class, and only the
    partners as negatives. The paper adds the N-pairs loss; a torch loop can sum the two.

    Relations: :class:`~skdml.losses.SSTLoss` is the same bound at 30 degrees, on distances, one triplet at a time.

    References
    ----------
    .. [1] J. Wang, F. Zhou, S. Wen, X. Liu and Y. Lin, "Deep Metric Learning with Angular Loss", ICCV 2017.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import AngularLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = AngularLoss()(embeddings, torch.tensor([0, 0, 1]))  # f = 4 * 0 - 4 * 1 for both pairs
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.0181
    """

    _parameter_constraints = {"angle": [Interval(Real, 0, 90, closed="neither")], **PairLoss._parameter_constraints}

    _one_class = "compares the negatives of an anchor with its positive, which may have a label in common,"

    def __init__(self, *, angle=45.0, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.angle = angle
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the mean over the positive pairs of the batch as a function of similarities.

        Parameters
        ----------
        S : tensor of shape (B, M)
            Similarities, dot products.
        positive : bool tensor of shape (B, M)
            The pairs (a, p); those beyond the batch do not count.
        negative : bool tensor of shape (B, M)
            N_a as rows.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each anchor's positive pairs, >= 0. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss.
        """
        t = math.tan(math.radians(self.angle)) ** 2
        B = len(S)
        positive = positive[:, :B]
        # What a sample meets as a positive: the negatives of its anchors, without mining its own.
        met = positive.T.to(S.dtype) @ negative.to(S.dtype) > 0  # (B, M)
        anchor_part, anchor_top = _exponentials(4 * t * S, negative)
        positive_part, positive_top = _exponentials(4 * t * S, met)
        counts = positive & negative.any(dim=1, keepdim=True)  # (B, B)
        total = torch.where(counts, anchor_part @ positive_part.T, 1)  # (B, B), the sum over n, scaled
        f = total.log() + anchor_top + positive_top.T - 2 * (1 + t) * S[:, :B]
        return weighted_mean(torch.where(counts, F.softplus(f), 0), sample_weight, positive)


def _exponentials(z, mask):
    """Return exp(z - top) in the mask and 0 elsewhere, (B, M), and the largest entry of each row, top (B, 1)."""
    top = torch.where(mask, z.detach(), -torch.inf).amax(dim=1, keepdim=True)
    top = torch.where(mask.any(dim=1, keepdim=True), top, 0)
    least = 0.8 * math.log(torch.finfo(z.dtype).tiny)  # -70 in float32: no sum with a largest entry in it is 0
    return torch.where(mask, (z - top).clamp(min=least, max=0), -torch.inf).exp(), top


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class AngularEmbedder(PairEmbedder):
    """Angular: bounds the angle at the negative of each triplet [1]_.

    An angle does not change with the scale, so that one value fits classes of any spread, which a margin does not, and
    the loss uses three sides of a triplet instead of two. As in the paper, a batch holds two samples per class: more
    classes, and thus more negatives, work better than more positives.

    Read more in the :ref:`User Guide <angular>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    NPairsEmbedder : The loss that the paper combines with this one.
    SSTEmbedder : The same bound at 30 degrees, within local batches.
    skdml.losses.AngularLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] J. Wang, F. Zhou, S. Wen, X. Liu and Y. Lin, "Deep Metric Learning with Angular Loss", ICCV 2017,
       arXiv:1708.01682.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import AngularEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = AngularEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = AngularLoss

    angle: float = 45.0
    samples_per_class: int = 2

    _parameter_constraints = {**AngularLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
