"""BIER: groups of components that boost each other; A-BIER: and that an adversary keeps apart.

Axes: B samples of a batch, D components, M groups of them, d_m components of group m.
"""

from dataclasses import dataclass
from itertools import combinations
from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

from .._constraints import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import BalancedEmbedder
from .._loss.pairs import pair_masks, pair_shares
from .._loss.similarities import dot_products
from .._loss.terms import check_batch, in_float32, weighted_mean, zero_loss
from .._network.networks import PartsNetwork, ResidualHead

N_HIDDEN = 512  # hidden units of a regressor of A-BIER
PENALTY = 100.0  # weight of the bounds on the regressors


class BIERLoss(nn.Module):
    r"""Binomial deviances of several groups of components, each trained on what the groups before it have not learned.

    .. math::
        \ell &= \frac1M \sum_{m=1}^M \Bigl\{ \frac{1}{|\mathcal P|} \sum_{(i, j) \in \mathcal P} b_{mij} \,
            \log\bigl(1 + e^{-z_{mij}}\bigr) + \frac{1}{|\mathcal N|} \sum_{(i, j) \in \mathcal N} b_{mij} \,
            \log\bigl(1 + e^{-z_{mij}}\bigr) \Bigr\} \\
        z_{mij} &= \alpha \, c_{ij} \, (s_{mij} - \lambda), \qquad
            c_{ij} = 1 \text{ on } \mathcal P, \; -C \text{ on } \mathcal N, \qquad
            s_{mij} = \frac{D}{d_m} \, x_{mi} \cdot x_{mj} \\
        b_{1ij} &= 1, \qquad b_{m+1, ij} = \frac{1}{1 + e^{r_{mij}}}, \qquad
            r_m = (1 - \eta_m) \, r_{m-1} + \eta_m z_m, \qquad \eta_m = \frac{2}{m + 1}

    The components of an embedding x_i are those of M groups, one after the other: x_mi is the part of group m. P and N
    are the pairs of the batch from one class and from two. The boosting weight b is the slope of the deviance at r, the
    joint score of the pair under the groups so far; it is a constant of the step.

    With ``adversarial=True``, A-BIER [2]_, a regressor g_ij with one hidden layer, for each two groups i < j, tries to
    predict the smaller group from the larger one, and the groups try to prevent it. The term added to the loss is

    .. math::
        w \sum_{i < j} \Bigl\{ - \frac{1}{B d_i} \sum_{b=1}^{B} \bigl| f_{ib} \circ g_{ij}(f_{jb}) \bigr|^2
            + 100 \, Q(g_{ij}) \Bigr\}, \qquad f_m = \sqrt{D / d_m} \, x_m

    Its gradient in the embeddings has the opposite sign, so that the regressors raise the squares and the embeddings
    lower them. Q holds the weights of the regressors at a fixed length.

    Parameters
    ----------
    n_components : int
        D, the dimension of the embeddings; >= 1.
    group_shares : tuple of float, default=(3, 5, 8)
        Relative sizes of the M groups, each > 0: by default 64 components form groups of 12, 20 and 32. D is cut at the
        rounded multiples; a group that would be empty is left out.
    alpha : float, default=2.0
        Alpha, the sharpness of the deviance; > 0, unitless (multiplies a cosine in [-1, 1]).
    threshold : float, default=0.5
        Lambda, the cosine that separates positive from negative pairs; beta in [1]_.
    negative_cost : float, default=5.0
        C, the sharpness over negative pairs relative to that over positive pairs; > 0. The authors use 25, for a
        pretrained network; if a small network is trained from scratch on images, Recall@1 is far higher with 5.
    adversarial : bool, default=False
        Whether regressors drive the groups apart: A-BIER [2]_.
    diversity_weight : float, default=0.01
        Weight w of the adversarial term; >= 0. Used only with ``adversarial=True``.

    Attributes
    ----------
    regressors : ModuleList
        The g_ij in the order (1, 2), (1, 3), ..., (2, 3), ...; empty unless ``adversarial``.

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are; y (B,) integers; returns a scalar, the mean over the groups of
    the mean over the positive pairs plus the mean over the negative pairs. A side without pairs gives 0; without any
    pair the loss is 0 with zero gradient, except for the adversarial term, which needs no pairs.

    The factor D / d_m suits embeddings whose group m has the length sqrt(d_m / D): s_m is then the cosine within the
    group, and the dot product of two embeddings, of unit length, is the mean of the groups' cosines weighted by their
    sizes. It applies to any rows.

    As the boosting weights are constants, the gradient is not that of the value, nor that of any other value: a group
    depends on those before it and not the reverse. The same holds for the adversarial term.

    This is the recursion of the paper ("eta" in the authors' code), not the default of that code, which adds 0.06 z_m
    to a score that starts at 0.5 and doubles the weights of negative pairs. Other differences from that code: C is 5,
    not 25, which lowers Recall@1 much where a small network is trained from scratch; self pairs do not count in the
    means; a batch without positive or without negative pairs does not give 0/0; the combined similarity weights a group
    by its share, not by the square of its share. Without ``adversarial`` there is no term for diversity, as is the
    default there: the squared products of the activations of two groups, which that code offers, are constant for
    groups of fixed length. Its adversary sees the outputs of the linear heads before the normalization, and its
    gradient stops at the feature that the groups share; here the adversary sees the normalized groups, and its gradient
    goes through the whole network.

    Q is the mean of :math:`(|v|^2 - 1)^2` over the weight vectors v that leave a unit, plus :math:`[|c|^2 - 1]_+` for
    the biases c, summed over the two layers. The hidden layer has 512 units. The regressors start with Q = 0.

    Relations: one group, ``group_shares=(1,)``, is the binomial deviance with one mean over positive and one over
    negative pairs.

    References
    ----------
    .. [1] M. Opitz, G. Waltner, H. Possegger and H. Bischof, "BIER - Boosting Independent Embeddings Robustly", ICCV
       2017. Section 3.
    .. [2] M. Opitz, G. Waltner, H. Possegger and H. Bischof, "Deep Metric Learning with BIER: Boosting Independent
       Embeddings Robustly", IEEE TPAMI 42(2), 2020.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import BIERLoss
    >>> embeddings = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [0.6, 0.8]], requires_grad=True)
    >>> loss = BIERLoss(n_components=2)(embeddings, torch.tensor([0, 0, 1, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 3)
    2.785
    """

    _parameter_constraints = {
        "n_components": [POSITIVE_INT],
        "group_shares": [tuple, list],
        "alpha": [POSITIVE],
        "threshold": [FINITE],
        "negative_cost": [POSITIVE],
        "adversarial": ["boolean"],
        "diversity_weight": [NON_NEGATIVE],
    }

    _component_parameters = None  # it splits the embeddings itself

    def __init__(
        self,
        n_components,
        *,
        group_shares=(3, 5, 8),
        alpha=2.0,
        threshold=0.5,
        negative_cost=5.0,
        adversarial=False,
        diversity_weight=0.01,
    ):
        super().__init__()
        self.n_components = n_components
        self.group_shares = group_shares
        self.alpha = alpha
        self.threshold = threshold
        self.negative_cost = negative_cost
        self.adversarial = adversarial
        self.diversity_weight = diversity_weight
        check_constraints(self, vars(self))
        _check_shares(self)
        self._sizes = group_sizes(n_components, group_shares)
        self.regressors = nn.ModuleList(
            [_regressor(larger, smaller) for smaller, larger in combinations(self._sizes, 2)] if adversarial else []
        )

    @in_float32
    def forward(self, embeddings, y, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,) or (B, L)
            The class of each row; or, 0 and 1, which of L labels it has: rows with one in common are a positive pair.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each anchor's pairs, and of its row in the adversarial term; >= 0. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight)
        if len(y) == 0:
            return zero_loss(self, embeddings)
        groups = [
            (self.n_components / size) ** 0.5 * x
            for x, size in zip(embeddings.split(self._sizes, dim=1), self._sizes, strict=True)
        ]
        loss = self._boosted(groups, y, sample_weight)
        if self.adversarial:
            loss = loss + self.diversity_weight * self._dependence(groups, sample_weight)
        return loss

    def _boosted(self, groups, y, sample_weight):
        positive, negative = (mask.to(groups[0].dtype) for mask in pair_masks(y))  # (B, B)
        weight = pair_shares(positive, sample_weight) + pair_shares(negative, sample_weight)  # (B, B)
        cost = positive - self.negative_cost * negative
        loss, r, boost = 0, 0, 1
        for m, f in enumerate(groups, start=1):
            z = self.alpha * cost * (dot_products(f) - self.threshold)  # (B, B)
            loss = loss + (weight * boost * -F.logsigmoid(z)).sum() / len(groups)
            eta = 2 / (m + 1)
            r = (1 - eta) * r + eta * z.detach()
            boost = torch.sigmoid(-r)
        return loss

    def _dependence(self, groups, sample_weight):
        loss = 0
        for (smaller, larger), g in zip(combinations(groups, 2), self.regressors, strict=True):
            squares = (_reversed(smaller) * g(_reversed(larger))).square().mean(dim=1)  # (B,)
            loss = loss - weighted_mean(squares, sample_weight)
            for layer in (g[0], g[2]):
                loss = loss + PENALTY * (layer.weight.square().sum(dim=0) - 1).square().mean()
                loss = loss + PENALTY * (layer.bias.square().sum() - 1).clamp(min=0)
        return loss


def _reversed(x):
    """Return x, with a gradient of opposite sign."""
    return 2 * x.detach() - x


def _regressor(n_in, n_out):
    """Return a network with one hidden layer, whose weights meet the bounds."""
    regressor = nn.Sequential(
        nn.Linear(n_in, N_HIDDEN, dtype=torch.float32), nn.ReLU(), nn.Linear(N_HIDDEN, n_out, dtype=torch.float32)
    )
    for layer in (regressor[0], regressor[2]):
        layer.weight.data = F.normalize(layer.weight.data, dim=0)
        nn.init.zeros_(layer.bias)
    return regressor


def group_sizes(n_components, shares):
    """Return the sizes of the groups that D is cut into, without those of size 0."""
    total = sum(shares)
    ends = [round(n_components * sum(shares[: m + 1]) / total) for m in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False) if end > start]


def _check_shares(owner):
    shares = owner.group_shares
    if not shares or not all(isinstance(share, Real) and 0 < share < float("inf") for share in shares):
        raise ValueError(
            f"The 'group_shares' parameter of {type(owner).__name__} must be a tuple of numbers > 0, one per group. "
            f"Got {shares!r} instead."
        )


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class BIEREmbedder(BalancedEmbedder):
    """BIER: an ensemble of groups of components, each boosted on what the groups before it get wrong [1]_.

    The groups are linear heads on one feature. Each has a binomial deviance of its own cosines, in which a pair weighs
    more where the groups before do worse on it. With ``adversarial=True``, A-BIER [2]_, regressors keep the groups
    different. The embedding is the concatenation of the groups, each with the length sqrt(d_m / D), so that a dot
    product is the mean of the groups' cosines weighted by their sizes.

    Read more in the :ref:`User Guide <bier>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    HDCEmbedder : An ensemble of heads at several depths of the network.
    skdml.losses.BIERLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] M. Opitz, G. Waltner, H. Possegger and H. Bischof, "BIER - Boosting Independent Embeddings Robustly", ICCV
       2017.
    .. [2] M. Opitz, G. Waltner, H. Possegger and H. Bischof, "Deep Metric Learning with BIER: Boosting Independent
       Embeddings Robustly", IEEE TPAMI 42(2), 2020, arXiv:1801.04815.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import BIEREmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = BIEREmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = BIERLoss

    group_shares: tuple[float, ...] = (3, 5, 8)
    alpha: float = 2.0
    threshold: float = 0.5
    negative_cost: float = 5.0
    adversarial: bool = False
    diversity_weight: float = 0.01

    _parameter_constraints = {**BIERLoss._parameter_constraints, **BalancedEmbedder._parameter_constraints}

    def _check_params(self):
        super()._check_params()
        _check_shares(self)

    def _make_network(self, backbone, sample):
        network = super()._make_network(backbone, sample)
        if isinstance(network.head, ResidualHead):
            # Past the features the start is 0, and a group of zeros, which has no direction, would never learn one.
            new_rows = network.head.linear.weight[network.head.n_features :]  # (D - f, f)
            if len(new_rows):
                nn.init.kaiming_uniform_(new_rows, a=5**0.5)  # as in nn.Linear
        sizes = group_sizes(network.n_components, self.group_shares)
        lengths = [(size / network.n_components) ** 0.5 for size in sizes]
        return PartsNetwork(network.backbone, network.head, sizes, lengths, self.normalize, self.precision)
