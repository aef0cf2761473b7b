"""SupCon: supervised contrastive learning.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

from dataclasses import dataclass

import torch

from .._constraints import POSITIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.terms import log_sum_exp, weighted_mean


@with_shared_docs
class SupConLoss(PairLoss):
    r"""Distinguish each positive of an anchor from all other samples of the batch, by a softmax over them.

    .. math::
        \ell = \frac{T}{T_0} \frac1B \sum_i \frac{-1}{|P_i|} \sum_{p \in P_i}
            \log \frac{e^{s_{ip} / T}}{\sum_{a \in P_i \cup N_i} e^{s_{ia} / T}}

    This is Eq. (2) of [1]_, the form with the sum outside the logarithm. P_i and N_i are the positives and the
    negatives of anchor i that ``mining`` selects; without mining they are all samples but i.

    Parameters
    ----------
    temperature : float, default=0.1
        T, by which similarities are divided in the softmax; > 0, on the scale of a cosine. With a small value only the
        most similar samples count.
    base_temperature : float or None, default=None
        T_0 in the factor T / T_0 of the loss; > 0. None: ``temperature``, so that the factor is 1.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; returns a scalar, the mean
    over all B anchors. An anchor without positives contributes 0 and counts in the mean. In a batch of one class the
    softmax runs only over positives, and the loss is lowest where they are all equally similar. A batch without a
    positive pair gives 0 with zero gradient.

    The other positives of an anchor are in the denominator, so that a positive whose share of the softmax exceeds
    :math:`1 / |P_i|` is pushed away: the weight of a positive pair may be negative. For the same reason the loss of an
    anchor is at least :math:`\log |P_i|`, where all positives are equally similar and all negatives far.

    Differences from the authors' code, which is the same function: its views of an image are samples of one class here,
    like any others; its ``base_temperature`` is 0.07, whereas T here leaves Eq. (2) as printed.

    Relations: in batches with two samples per class this is the N-pairs loss of similarities divided by T, with the
    anchor's own class compared in both directions.

    References
    ----------
    .. [1] P. Khosla, P. Teterwak, C. Wang, A. Sarna, Y. Tian, P. Isola, A. Maschinot, C. Liu and D. Krishnan,
       "Supervised Contrastive Learning", NeurIPS 2020, arXiv:2004.11362. Eq. (2).

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import SupConLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    >>> loss = SupConLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 3)
    0.967
    """

    _parameter_constraints = {
        "temperature": [POSITIVE],
        "base_temperature": [POSITIVE, None],
        **PairLoss._parameter_constraints,
    }

    def __init__(self, *, temperature=0.1, base_temperature=None, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.temperature = temperature
        self.base_temperature = base_temperature
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the loss over the pairs in two masks."""
        n_positives = positive.sum(dim=1)  # (B,)
        mean_positive = torch.where(positive, S, 0).sum(dim=1) / n_positives.clamp(min=1)
        log_total, _ = log_sum_exp(S / self.temperature, positive | negative)
        losses = torch.where(n_positives > 0, log_total - mean_positive / self.temperature, 0)  # (B,)
        loss = weighted_mean(losses, sample_weight)
        return loss if self.base_temperature is None else self.temperature / self.base_temperature * loss


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class SupConEmbedder(PairEmbedder):
    """SupCon: supervised contrastive learning, a softmax of each positive over all samples of the batch [1]_.

    All positives and all negatives of an anchor take part, hard ones with the most weight. The larger the batch, the
    more negatives are compared. Batches hold several samples of each of several classes, so classes must have several
    samples.

    Read more in the :ref:`User Guide <sup_con>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Weights positives and negatives separately, and mines them.
    skdml.losses.SupConLoss : The loss on its own, for a torch loop.

    Notes
    -----
    The paper trains on two augmented views of each image, embeds them by a projection head that is dropped afterwards,
    and fits a linear classifier. Here the samples of a batch are used as they are, and ``transform`` gives the
    embeddings that the loss saw.

    References
    ----------
    .. [1] P. Khosla, P. Teterwak, C. Wang, A. Sarna, Y. Tian, P. Isola, A. Maschinot, C. Liu and D. Krishnan,
       "Supervised Contrastive Learning", NeurIPS 2020, arXiv:2004.11362.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import SupConEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = SupConEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = SupConLoss

    temperature: float = 0.1
    base_temperature: float | None = None

    _parameter_constraints = {**SupConLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
