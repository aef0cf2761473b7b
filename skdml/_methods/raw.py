"""RAW: relative and absolute similarity weights.

Axes: B samples of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .._constraints import FINITE, POSITIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.terms import log1p_sum_exp, weighted_mean


@with_shared_docs
class RAWLoss(PairLoss):
    r"""Pull hard positives and push hard negatives, weighting each by its hardness relative to the anchor's others.

    .. math::
        \ell = \frac1B \sum_i \Bigl\{
            \frac1\alpha \log\Bigl[1 + \sum_{k \in P_i} e^{-\alpha (s_{ik} - \lambda)}\Bigr]
          + \frac1\beta  \log\Bigl[1 + \sum_{k \in N_i} e^{ \beta  (s_{ik} - \lambda)}\Bigr] \Bigr\}

    This is Eq. (17) of [1]_. P_i and N_i are the positives and the negatives of anchor i that ``mining`` selects.

    Parameters
    ----------
    alpha : float, default=2.0
        Alpha in Eqs. (15) and (17) of [1]_, the sharpness over positive pairs; > 0, unitless (multiplies a cosine in
        [-1, 1]).
    beta : float, default=50.0
        Beta in Eqs. (16) and (17) of [1]_, the sharpness over negative pairs; > 0, unitless.
    threshold : float, default=0.5
        Lambda in Eqs. (15)-(17) of [1]_, the similarity that the absolute part of a weight compares with.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; returns a scalar, the mean
    over all B anchors. An anchor for which nothing is selected contributes 0 and counts in the mean, so that the loss
    fades as training succeeds. A batch without selected pairs gives 0 with zero gradient.

    The weights of Eqs. (15) and (16) are the gradient in s_ij times B, with the opposite sign for positive pairs. They
    lie in (0, 1).

    Differences from the code of [2]_, which is the same method: self pairs are left out by index, not by ``s < 1 -
    1e-5``, which drops duplicates and keeps the self pairs of rows shorter than 1; anchors without positives and
    batches of one class give 0, not an exception; beta is 50, as in [1]_, instead of 40; no exponent overflows.

    Relations: this is the Multi-Similarity loss of [2]_, with ``mining="vthm"`` for its mining and None for the bare
    loss.

    References
    ----------
    .. [1] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Eqs. (15)-(17)
       and Section 5.1.
    .. [2] X. Wang, X. Han, W. Huang, D. Dong and M. R. Scott, "Multi-Similarity Loss with General Pair Weighting for
       Deep Metric Learning", CVPR 2019.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import RAWLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    >>> loss = RAWLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 3)
    0.339
    """

    _parameter_constraints = {
        "alpha": [POSITIVE],
        "beta": [POSITIVE],
        "threshold": [FINITE],
        **PairLoss._parameter_constraints,
    }

    def __init__(self, *, alpha=2.0, beta=50.0, threshold=0.5, mining="vthm", mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.alpha = alpha
        self.beta = beta
        self.threshold = threshold
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return Eq. (17) over the pairs in two masks."""
        pull = log1p_sum_exp(S, positive, -self.alpha, self.threshold) / self.alpha  # (B,)
        push = log1p_sum_exp(S, negative, self.beta, self.threshold) / self.beta  # (B,)
        return weighted_mean(pull + push, sample_weight)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class RAWEmbedder(PairEmbedder):
    """RAW: pairs of a batch weighted by relative and absolute similarity, after mining the informative ones [1]_.

    The same function as the multi-similarity loss [2]_ with its mining. Batches hold several samples of each of several
    classes, so classes must have several samples.

    Read more in the :ref:`User Guide <raw>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    SoftTripleEmbedder : Learned centers instead of pairs.
    skdml.losses.RAWLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] "A unified view of deep metric learning via gradient analysis", submission to ICLR 2019. Eqs. (15)-(17), and
       Section 5.1 for the mining.
    .. [2] X. Wang, X. Han, W. Huang, D. Dong and M. R. Scott, "Multi-Similarity Loss with General Pair Weighting for
       Deep Metric Learning", CVPR 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import RAWEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = RAWEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = RAWLoss

    alpha: float = 2.0
    beta: float = 50.0
    threshold: float = 0.5
    mining: str | Callable | None = "vthm"

    _parameter_constraints = {**RAWLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
