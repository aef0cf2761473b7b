"""N-pairs: one pair per class, each anchor against the partners of all others.

Axes: B samples of a batch, M samples the anchors are compared with, N pairs.
"""

from dataclasses import dataclass

import torch

from .._constraints import NON_NEGATIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.terms import log1p_sum_exp, rows_at, weighted_mean


@with_shared_docs
class NPairsLoss(PairLoss):
    r"""Rank the partner of an anchor above the partners of all other anchors at once.

    .. math::
        \ell = \frac1N \sum_i \Bigl\{ \log\Bigl[1 + \sum_{j \neq i} e^{a_i \cdot q_j - a_i \cdot q_i}\Bigr]
            + \mu \bigl(|a_i|^2 + |q_i|^2\bigr) \Bigr\}

    The batch gives N pairs of an anchor a and its partner q, from two samples of each class; the j are the pairs of
    other classes. The first term is the softmax cross-entropy of picking the partner of an anchor among the N. Its
    similarities are not bounded, so the second term keeps the rows short.

    Parameters
    ----------
    l2 : float, default=0.02
        Mu, the weight of the squared lengths of the embeddings; >= 0. For unit rows that term is constant.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any length; y (B,) integers; returns a scalar, the mean over
    the N pairs. The rows of a class are paired in turn, the first with the second, the third with the fourth; the last
    of an odd number is left out. The value therefore depends on the order of the rows within a class. With one pair
    there is only the second term; without a pair the loss is 0 with zero gradient.

    With a memory, an anchor is also compared with all samples of other classes in it, whether they were anchors or
    partners; its partner comes from the batch. Mining thins the masks before the pairs are formed.

    Published implementations differ in the weight of the second term, as a mean over pairs: 0.02, as here; 0.0005 (a
    regularization of 0.002 times 0.25); and a sum over 2 N with a coefficient that the user sets.
    pytorch-metric-learning scales the rows to unit length, where no loss is below log(1 + (N - 1) / e^2).

    Relations: with scaled unit rows this is the loss of a contrastive batch of two views (InfoNCE), in one direction.

    References
    ----------
    .. [1] K. Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import NPairsLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]], requires_grad=True)
    >>> loss = NPairsLoss(l2=0)(embeddings, torch.tensor([0, 0, 1, 1]))  # log(1 + e^(0 - 2)) for both anchors
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.1269
    """

    _parameter_constraints = {"l2": [NON_NEGATIVE], **PairLoss._parameter_constraints}

    _one_class = "forms one pair of each class"

    def __init__(self, *, l2=0.02, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.l2 = l2
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the mean over the pairs that the positive mask forms.

        Parameters
        ----------
        S : tensor of shape (B, M)
            Similarities, dot products, on the diagonal the squared lengths.
        positive : bool tensor of shape (B, M)
            A row with an even number of entries before the diagonal is an anchor, and its first entry behind the
            diagonal, within the batch, is its partner.
        negative : bool tensor of shape (B, M)
            Which partners and which samples of the memory the anchor is compared with.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each anchor's pair, >= 0; those of the partners do not count. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss.
        """
        B, M = S.shape
        column = torch.arange(M, device=S.device)
        later = positive[:, :B].triu()
        is_anchor = later.any(dim=1) & (positive[:, :B].tril().sum(dim=1) % 2 == 0)  # (B,)
        partner = later.byte().argmax(dim=1)  # (B,), the first of several
        compared = (is_anchor[:, None] & (column == partner[:, None])).any(dim=0) | (column >= B)  # (M,)
        excess = S - S.gather(1, partner[:, None])  # (B, M)
        losses = log1p_sum_exp(excess, negative & compared, 1.0, 0.0)  # (B,)
        if self.l2 > 0:
            squared_length = S.diagonal()  # (B,)
            losses = losses + self.l2 * (squared_length + rows_at(squared_length, partner))
        return weighted_mean(torch.where(is_anchor, losses, 0), sample_weight, is_anchor)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class NPairsEmbedder(PairEmbedder):
    """N-pairs: each anchor is compared with the partners of all other classes of the batch at once [1]_.

    A batch holds two samples of each of many classes. As in the paper, the embeddings are not normalized, since a
    softmax of cosines could not become sharp; a term weighted by ``l2`` keeps them short instead.

    Read more in the :ref:`User Guide <n_pairs>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Compares all pairs of a batch with several samples per class.
    skdml.losses.NPairsLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] K. Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import NPairsEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = NPairsEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.8)
    True
    """

    _loss_class = NPairsLoss

    l2: float = 0.02
    normalize: bool = False
    samples_per_class: int = 2

    _parameter_constraints = {**NPairsLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
