"""Binomial deviance: a logistic cost for every pair, averaged over an anchor's positives and over its negatives.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .._constraints import FINITE, POSITIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.terms import weighted_mean


@with_shared_docs
class BinomialDevianceLoss(PairLoss):
    r"""Pull an anchor's positives and push its negatives, each by how far it is on the wrong side of a threshold.

    .. math::
        \ell = \frac1B \sum_i \Bigl\{
            \frac1{|P_i|} \sum_{k \in P_i} \log\bigl[1 + e^{\alpha (\lambda - s_{ik})}\bigr]
          + \frac1{|N_i|} \sum_{k \in N_i} \log\bigl[1 + e^{\beta (s_{ik} - \lambda)}\bigr] \Bigr\}

    This is Eq. (12) of [1]_, divided by B. P_i and N_i are the positives and the negatives of anchor i that ``mining``
    selects, so that their sizes count the selected pairs.

    Parameters
    ----------
    alpha : float, default=2.0
        Alpha in Eq. (12) of [1]_, the sharpness over positive pairs; > 0, unitless (multiplies a cosine in [-1, 1]).
    beta : float, default=50.0
        Beta in Eq. (12) of [1]_, the sharpness over negative pairs; > 0, unitless. It also scales their weight.
    threshold : float, default=0.5
        Lambda in Eq. (12) of [1]_, the similarity that every pair is compared with.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; returns a scalar: the mean
    over an anchor's pairs on either side, then the mean over all B anchors. A side without pairs gives 0; an anchor
    without any pair counts in the mean. A batch without pairs gives 0 with zero gradient.

    The gradient in s_ij times B is :math:`-\alpha / (|P_i| (1 + e^{\alpha (s_{ij} - \lambda)}))` for a positive pair
    and :math:`\beta / (|N_i| (1 + e^{-\beta (s_{ij} - \lambda)}))` for a negative one, the weights of Eqs. (13), (14).
    The weight of a pair depends only on its own similarity. As the formula has no 1 / beta, a hard negative weighs beta
    / alpha times as much as a hard positive.

    Differences: Eq. (12) has no 1 / B. The original [2]_ takes one mean over all positive and one over all negative
    pairs of the batch, and uses the factor beta / alpha as the cost of negatives. The code of the first author of [1]_
    has beta = 40, leaves out self pairs by ``s < 1``, which keeps many of them in float32, gives NaN for an anchor
    without positives, and with its mining multiplies the sides by 2 / alpha and 2 / beta.

    References
    ----------
    .. [1] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Eqs. (12)-(14).
    .. [2] D. Yi, Z. Lei, S. Liao and S. Z. Li, "Deep Metric Learning for Person Re-Identification", ICPR 2014.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import BinomialDevianceLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], requires_grad=True)
    >>> loss = BinomialDevianceLoss()(embeddings, torch.tensor([0, 0, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 3)
    2.795
    """

    _parameter_constraints = {
        "alpha": [POSITIVE],
        "beta": [POSITIVE],
        "threshold": [FINITE],
        **PairLoss._parameter_constraints,
    }

    def __init__(self, *, alpha=2.0, beta=50.0, threshold=0.5, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.alpha = alpha
        self.beta = beta
        self.threshold = threshold
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return Eq. (12) / B over the pairs in two masks."""
        pull = _row_means(F.softplus(self.alpha * (self.threshold - S)), positive)  # (B,)
        push = _row_means(F.softplus(self.beta * (S - self.threshold)), negative)  # (B,)
        return weighted_mean(pull + push, sample_weight)


def _row_means(values, mask):
    """Return the mean of each row (B, M) over its entries in the mask; 0 without any."""
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class BinomialDevianceEmbedder(PairEmbedder):
    """Binomial deviance: a logistic cost for every pair of a batch [1]_ [2]_.

    Positive and negative pairs are averaged separately for each anchor, so that the many negatives do not drown out the
    few positives. Batches hold several samples of each of several classes, so classes must have several samples.

    Read more in the :ref:`User Guide <binomial_deviance>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Weights a pair also by its hardness relative to the other pairs of its anchor.
    skdml.losses.BinomialDevianceLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] "A unified view of deep metric learning via gradient analysis", submission to ICLR 2019. Eqs. (12)-(14).
    .. [2] D. Yi, Z. Lei, S. Liao and S. Z. Li, "Deep Metric Learning for Person Re-Identification", ICPR 2014.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import BinomialDevianceEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = BinomialDevianceEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = BinomialDevianceLoss

    alpha: float = 2.0
    beta: float = 50.0
    threshold: float = 0.5

    _parameter_constraints = {**BinomialDevianceLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
