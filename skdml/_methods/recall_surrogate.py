"""Recall@k surrogate: the measure itself, with sigmoids for its steps.

Axes: B samples of a batch, each a query; M samples the queries are compared with; T nearest positives of a query.
"""

import math
from dataclasses import dataclass
from numbers import Integral

import torch

from .._constraints import POSITIVE, POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.terms import LossFunction, most, own_backward, weighted_mean

NEGLIGIBLE = 37  # e^-37 is half a unit in the last place of 1 in float64


@with_shared_docs
class RecallSurrogateLoss(PairLoss):
    r"""Raise Recall@k for several k at once, with ranks counted by steep sigmoids and compared with k by a flat one.

    .. math::
        \ell &= 1 - \frac{1}{|Q| |\mathcal K|} \sum_{q \in Q} \sum_{k \in \mathcal K}
            \frac{\min\bigl(k, \sum_{p \in P_q} \sigma((k - r_{qp}) / \tau_2)\bigr)}{\min(k, |P_q|)} \\
        r_{qp} &= 1 + \sum_{j \in \{q\} \cup P_q \cup N_q, j \neq p} \sigma((s_{qj} - s_{qp}) / \tau_1)

    Every sample with a positive is a query, Q; r is the smooth rank of a positive among all samples. Sigma is the
    logistic function. P_q and N_q are the positives and the negatives that ``mining`` selects.

    Parameters
    ----------
    ks : tuple of int, default=(1,2,4,8,16)
        The k of Recall@k; one or more, each >= 1.
    tau1 : float, default=0.01
        Tau_1, the width of the sigmoid that counts ranks; > 0, on the scale of a cosine. Towards 0 ranks become whole
        numbers.
    tau2 : float, default=1.0
        Tau_2, the width of the sigmoid that compares a rank with k; > 0, in ranks. Towards 0 it becomes a step at k.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; returns a scalar, the mean
    over the queries and the ks. A sample without positives is not a query, but a negative of others. A batch without a
    positive pair gives 0 with zero gradient. In a batch of one class, ranks count only positives. A perfect ranking
    does not give 0, as sigma(0) = 1/2; equally similar samples count half in each other's rank.

    Cost: B M T sigmoids and as many again in the backward pass, in memory of a few (B, M). T is the largest number of
    positives of a query, but at most 2 (max(ks) + 37 tau2): the i-th nearest positive has a rank of at least (i + 1) /
    2, so that positives beyond add less than the rounding error of float64. On the CPU T is read from the data; on a
    GPU, where reading would wait, it is that bound or M - 1.

    As in the authors' code, and unlike in the measure, the query itself is among the j: its similarity of 1 adds about
    1 to every rank, so that a positive counts as found only at one rank better. Unlike that code, this takes classes of
    any size in any order, and all queries at once.

    References
    ----------
    .. [1] Y. Patel, G. Tolias and J. Matas, "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR
       2022, arXiv:2108.11179. Section 3.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import RecallSurrogateLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    >>> loss = RecallSurrogateLoss(ks=(1, 2))(embeddings, torch.tensor([0, 0, 1, 1]))  # ranks 2, 3, 3, 2
    >>> loss.backward()
    >>> round(loss.item(), 3)
    0.711
    """

    _parameter_constraints = {
        "ks": [tuple, list],
        "tau1": [POSITIVE],
        "tau2": [POSITIVE],
        **PairLoss._parameter_constraints,
    }

    def __init__(self, *, ks=(1, 2, 4, 8, 16), tau1=0.01, tau2=1.0, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.ks = ks
        self.tau1 = tau1
        self.tau2 = tau2
        check_constraints(self, vars(self))
        _check_ks(self)

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the loss over the pairs in two masks."""
        n_positives = positive.sum(dim=1)  # (B,)
        nearest, target = torch.where(positive, S.detach(), -torch.inf).topk(self._n_targets(n_positives, S), dim=1)
        is_target = nearest > -torch.inf  # (B, T)
        counted = (positive | negative).fill_diagonal_(True)
        rank, _, _ = _SoftRanks.apply(S, counted, target, self.tau1)  # (B, T)
        recall = 0
        for k in self.ks:
            found = torch.where(is_target, torch.sigmoid((k - rank) / self.tau2), 0).sum(dim=1)  # (B,)
            recall = recall + found.clamp(max=k) / n_positives.clamp(min=1, max=k)
        is_query = n_positives > 0
        return weighted_mean(torch.where(is_query, 1 - recall / len(self.ks), 0), sample_weight, is_query)

    def _n_targets(self, n_positives, S):
        """Return T, as many of a query's nearest positives as can add anything to the loss."""
        n = min(2 * math.ceil(max(self.ks) + NEGLIGIBLE * self.tau2), S.shape[1] - 1)
        return min(n, most(n_positives, n))


class _SoftRanks(LossFunction):
    r"""Return the ranks :math:`1 + \sum_{j \in M_i, j \neq t} \sigma((s_{ij} - s_{it}) / \tau)` of targets t, (B, T).

    The T matrices (B, M) of sigmoids are made one at a time, and again in the backward pass, none stored.
    """

    @staticmethod
    def forward(S, mask, target, tau):
        z = torch.where(mask, S / tau, -torch.inf)  # (B, M); -inf counts 0 in every rank
        z_target = S.gather(1, target) / tau  # (B, T)
        rank = torch.empty_like(z_target)
        for t in range(target.shape[1]):
            # The target itself is in the mask and counts sigma(0).
            rank[:, t] = 0.5 + (z - z_target[:, t, None]).sigmoid_().sum(dim=1)
        return rank, z, z_target

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        _, _, target, ctx.tau = inputs
        ctx.save_for_backward(*outputs[1:], target)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @own_backward
    def backward(ctx, grad, *_):
        z, z_target, target = ctx.saved_tensors
        grad = grad / ctx.tau  # (B, T)
        grad_S = torch.zeros_like(z)
        slopes = torch.empty_like(grad)
        for t in range(target.shape[1]):
            sigma = (z - z_target[:, t, None]).sigmoid_()
            slope = sigma.addcmul_(sigma, sigma, value=-1)  # sigma (1 - sigma), (B, M)
            grad_S.addcmul_(slope, grad[:, t, None])
            slopes[:, t] = slope.sum(dim=1)
        return grad_S.scatter_add_(1, target, -slopes * grad), None, None, None


def _check_ks(owner):
    ks = owner.ks
    if not ks or any(isinstance(k, bool) or not isinstance(k, Integral) or k < 1 for k in ks):
        raise ValueError(
            f"The 'ks' parameter of {type(owner).__name__} must be a tuple of one or more integers >= 1. "
            f"Got {ks!r} instead."
        )


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class RecallSurrogateEmbedder(PairEmbedder):
    """Recall@k surrogate: Recall@k within large batches, smoothed and raised by gradient ascent [1]_.

    A batch represents the data that are searched, so it should be large: as many classes as memory allows, with a few
    samples of each. ``chunk_size`` bounds the memory of the network. Batches hold several samples of each of several
    classes, so classes must have several samples.

    Read more in the :ref:`User Guide <recall_surrogate>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    chunk_size : int or None, default=None
        Number of samples that pass the network at a time; >= 1. A larger batch is embedded twice, once for the loss and
        once for the gradient in the weights, so that memory holds the activations of only one chunk; the gradient is
        the same, except that BatchNorm sees a chunk. None: the whole batch at once.
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Weights pairs by similarity, not by rank; small batches are enough.
    skdml.losses.RecallSurrogateLoss : The loss on its own, for a torch loop.

    Notes
    -----
    The paper's batches hold up to 4000 images; the default suits a few thousand samples, for which larger batches would
    give too few steps. The paper's similarity mixup, virtual samples between two of a class, is left out.

    References
    ----------
    .. [1] Y. Patel, G. Tolias and J. Matas, "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR
       2022, arXiv:2108.11179.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import RecallSurrogateEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = RecallSurrogateEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = RecallSurrogateLoss

    batch_size: int = 256
    ks: tuple[int, ...] = (1, 2, 4, 8, 16)
    tau1: float = 0.01
    tau2: float = 1.0
    chunk_size: int | None = None  # type: ignore[assignment]

    _parameter_constraints = {
        **RecallSurrogateLoss._parameter_constraints,
        **PairEmbedder._parameter_constraints,
        "chunk_size": [POSITIVE_INT, None],
    }

    def _check_params(self):
        super()._check_params()
        _check_ks(self)
