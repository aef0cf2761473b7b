"""PDDM: a learned similarity of pairs that depends on where they lie.

Axes: B samples of a batch, D components, H hidden units, P pairs, Q quadruplets.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .._constraints import NON_NEGATIVE, POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import BalancedEmbedder
from .._loss.pairs import pair_masks
from .._loss.terms import check_batch, in_float32, rows_at, zero_loss
from .._network.networks import unit_rows


class PDDMLoss(nn.Module):
    r"""Learn a similarity of pairs together with the embeddings, and let it find the hard quadruplets of a batch.

    .. math::
        \ell = \frac1Q \sum_{(i, j, k, l)} \bigl\{ [a + s_{ik} - s_{ij}]_+ + [a + s_{jl} - s_{ij}]_+ \bigr\}
            + \lambda \bigl\{ [b + d_{ij} - d_{ik}]_+ + [b + d_{ij} - d_{jl}]_+ \bigr\}

    Here d is the Euclidean distance and s a learned score, not a dot product. With W and b the weights of four linear
    layers, and [;] for concatenation,

    .. math::
        s_{ij} &= W_s r_{ij} + b_s, \qquad
        r_{ij} = \bigl[W_c [u_{ij} / |u_{ij}|; v_{ij} / |v_{ij}|] + b_c\bigr]_+ \\
        u_{ij} &= \bigl[W_u |x_i - x_j| + b_u\bigr]_+, \qquad
        v_{ij} = \bigl[W_v (x_i + x_j) / 2 + b_v\bigr]_+ ,

    so that the score depends on the componentwise difference of two embeddings and on their position. The Q quadruplets
    are the positive pairs (i, j) of the lowest scores, each with the negative k of i and the negative l of j of the
    highest scores.

    Parameters
    ----------
    n_components : int
        D, the dimension of the embeddings; >= 1.
    n_hidden : int or None, default=None
        H, the width of the three hidden layers of the learned similarity; >= 1. None: the dimension of the embeddings.
    score_margin : float, default=0.5
        Margin a between the scores of positive and negative pairs; >= 0.
    distance_margin : float, default=1.0
        Margin b between their distances; >= 0, in the units of the embeddings.
    distance_weight : float, default=0.5
        Lambda, the weight of the terms with distances relative to those with scores; >= 0. With 0 the embeddings learn
        only through the scores.
    n_quadruplets : int or None, default=None
        Q, the number of quadruplets of a batch that count, those around the positive pairs with the lowest scores; >=
        1. None: those of all positive pairs. The paper uses 1, for a pretrained network.

    Attributes
    ----------
    difference_layer, mean_layer : Linear of D to H
        W_u and b_u, W_v and b_v.
    joint_layer : Linear of 2 H to H
        W_c and b_c.
    score_layer : Linear of H to 1
        W_s and b_s.

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any norm; y (B,) integers; returns a scalar, the mean over the
    quadruplets. Without a quadruplet, as in a batch of one class or of classes with one sample each, the loss is 0 with
    zero gradient. A pair of samples is one positive pair, not two. At distance 0, and where a hidden layer is all
    zeros, the gradient is 0.

    No gradient flows through the choice of the quadruplets: all pairs pass the layers once without a graph, a few rows
    at a time, in :math:`O(B^2 H (D + H))` time and :math:`O(B^2)` memory; the P positive pairs and the hardest negative
    of each row pass them again. A step on a GPU waits for P, which is read from the labels.

    Difference from [1]_: its mining uses one quadruplet of each batch, ``n_quadruplets=1``, for a pretrained network.
    From random weights this fails: at most four samples of a batch, the hardest ones, get a gradient, and the
    embeddings collapse. The sum over all positive pairs does not fail.

    References
    ----------
    .. [1] C. Huang, C. C. Loy and X. Tang, "Local Similarity-Aware Deep Feature Embedding", NIPS 2016. Section 3.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import PDDMLoss
    >>> criterion = PDDMLoss(n_components=2, n_hidden=8)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 0, 1, 1]))
    >>> loss.backward()
    >>> criterion.difference_layer.weight.grad.shape
    torch.Size([8, 2])
    """

    _parameter_constraints = {
        "n_components": [POSITIVE_INT],
        "n_hidden": [POSITIVE_INT, None],
        "score_margin": [NON_NEGATIVE],
        "distance_margin": [NON_NEGATIVE],
        "distance_weight": [NON_NEGATIVE],
        "n_quadruplets": [POSITIVE_INT, None],
    }

    # The inputs of the layers; for a cut, the others are as if 0.
    _component_parameters = ("difference_layer.weight", "mean_layer.weight")

    def __init__(
        self,
        n_components,
        *,
        n_hidden=None,
        score_margin=0.5,
        distance_margin=1.0,
        distance_weight=0.5,
        n_quadruplets=None,
    ):
        super().__init__()
        self.n_components = n_components
        self.n_hidden = n_hidden
        self.score_margin = score_margin
        self.distance_margin = distance_margin
        self.distance_weight = distance_weight
        self.n_quadruplets = n_quadruplets
        check_constraints(self, vars(self))
        H = n_components if n_hidden is None else n_hidden
        self.difference_layer = nn.Linear(n_components, H, dtype=torch.float32)
        self.mean_layer = nn.Linear(n_components, H, dtype=torch.float32)
        self.joint_layer = nn.Linear(2 * H, H, dtype=torch.float32)
        self.score_layer = nn.Linear(H, 1, dtype=torch.float32)

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
            Weight of each row, >= 0: of the two terms at its end of a positive pair, in the mean. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight)
        if len(y) == 0:
            return zero_loss(self, embeddings)
        positive, negative = pair_masks(y)  # (B, B)
        hardest = self._hardest(embeddings.detach(), negative)  # (B,), k of i and l of j
        has_negative = negative.any(dim=1)  # with several labels per row, perhaps at one end of a pair only
        row, column = (positive & has_negative[:, None] & has_negative).triu(diagonal=1).nonzero(as_tuple=True)  # (P,)
        s, d = self._compare(rows_at(embeddings, row), rows_at(embeddings, column))  # (P,)
        s_negative, d_negative = self._compare(embeddings, rows_at(embeddings, hardest))  # (B,)

        w = torch.ones_like(d_negative) if sample_weight is None else sample_weight.to(d.dtype)  # (B,)
        terms = 0
        for end in (row, column):
            scores = (self.score_margin + rows_at(s_negative, end) - s).relu()
            terms = terms + w[end] * (
                scores + self.distance_weight * (self.distance_margin + d - rows_at(d_negative, end)).relu()
            )
        weights = (w[row] + w[column]) / 2  # (P,), as are the terms
        if self.n_quadruplets is not None:
            lowest = s.detach().argsort(stable=True)[: self.n_quadruplets]  # (Q,)
            terms, weights = rows_at(terms, lowest), weights[lowest]
        total = weights.sum()
        return terms.sum() / total.where(total > 0, 1)

    def _compare(self, a, b):
        """Return the scores and the distances of pairs of rows (P, D)."""
        return self.scores(a, b), torch.linalg.vector_norm(a - b, dim=1)  # the gradient at 0 is 0

    @torch.no_grad()
    def _hardest(self, x, negative):
        """Return the negative of the highest score of each row, (B,), from all scores, a few rows at a time."""
        size = max(1, 2**20 // max(1, x.numel()))
        scores = torch.cat([self.scores(rows[:, None], x) for rows in x.split(size)])  # (B, B)
        return torch.where(negative, scores, -torch.inf).argmax(dim=1)

    def scores(self, a, b):
        """Return the learned similarities of pairs; the order of a pair does not matter.

        Parameters
        ----------
        a, b : tensor of shape (..., D)
            Embeddings.

        Returns
        -------
        tensor of shape (...)
            The scores, of any sign.
        """
        difference = unit_rows(self.difference_layer((a - b).abs()).relu())
        mean = unit_rows(self.mean_layer((a + b) / 2).relu())
        joint = self.joint_layer(torch.cat([difference, mean], dim=-1)).relu()
        return self.score_layer(joint).squeeze(-1)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class PDDMEmbedder(BalancedEmbedder):
    """PDDM: a learned similarity of pairs finds the hard quadruplets that train the embeddings [1]_.

    A position-dependent deep metric: a small network scores a pair by the difference of the two embeddings and by their
    mean. It is trained with the embedder and not used afterwards; ``transform`` gives embeddings for Euclidean
    distances.

    Read more in the :ref:`User Guide <pddm>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Weights the pairs of a batch by their similarity, without a network for it.
    skdml.losses.PDDMLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] C. Huang, C. C. Loy and X. Tang, "Local Similarity-Aware Deep Feature Embedding", NIPS 2016,
       arXiv:1610.08904.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import PDDMEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = PDDMEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.8)
    True
    """

    _loss_class = PDDMLoss

    n_hidden: int | None = None
    score_margin: float = 0.5
    distance_margin: float = 1.0
    distance_weight: float = 0.5
    n_quadruplets: int | None = None

    _parameter_constraints = {**PDDMLoss._parameter_constraints, **BalancedEmbedder._parameter_constraints}
