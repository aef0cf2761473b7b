"""Margin: each pair against a learned boundary of its anchor's class, negatives drawn evenly over the distances.

Axes: B samples of a batch, M samples the anchors are compared with, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .._constraints import NON_NEGATIVE, POSITIVE, POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.mining import distance_weighted
from .._loss.pairs import PairLoss, pair_masks
from .._loss.similarities import distance_similarities, distances
from .._loss.terms import rows_at, weighted_mean


@with_shared_docs
class MarginLoss(PairLoss):
    r"""Bring positive pairs within a learned distance, and negative pairs beyond it, each by a margin.

    .. math::
        \ell = \frac1A \sum_a \Bigl\{ \sum_{p \in P_a} [m + d_{ap} - \beta_{y_a}]_+
            + \sum_{n \in N_a} [m - d_{an} + \beta_{y_a}]_+ \Bigr\} + \nu \bar\beta

    The d are Euclidean distances; P_a and N_a are the positives and the negatives of anchor a that ``mining`` selects,
    by default all positives and as many negatives, drawn evenly over the distances. A counts the active terms, those
    above 0, and :math:`\bar\beta` is the mean of :math:`\beta_{y_a}` over the selected pairs.

    Parameters
    ----------
    n_classes : int
        C; >= 1.
    margin : float, default=0.2
        Margin m by which positive pairs must be nearer than the boundary and negative pairs farther away; >= 0, on the
        scale of the distances (0 to 2 for unit rows).
    beta : float, default=1.2
        The initial boundary of every class; > 0, on the scale of the distances.
    nu : float, default=0.0
        Nu, the weight of the regularizer that holds the boundaries down; >= 0. It has the most effect where few
        positive pairs cross them.
    cutoff : float, default=0.5
        Distances below this one count as this one when negatives are drawn, which bounds the weight of the nearest; >
        0. Used only with ``mining="distance_weighted"``.
    max_distance : float, default=1.4
        Negatives at this distance or farther are not drawn unless an anchor has no nearer one; > 0. The default is m +
        beta, where the term of a negative ends; above 2 all negatives of unit rows may be drawn. Used only with
        ``mining="distance_weighted"``.
    {BASE_PARAMETERS}

    Attributes
    ----------
    betas : Parameter of shape (n_classes,)
        The boundaries, learned.

    Raises
    ------
    ValueError
        If a parameter is outside its range, the shapes of a batch are not (B, D) and (B,), or a label is out of range.

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected by the draw of the negatives); y (B,) integers
    in [0, n_classes); returns a scalar, the sum of the terms over the number of active ones. A batch without a selected
    pair gives 0 with zero gradient, and one without an active pair only the regularizer. A hinge at exactly 0 is
    inactive. Plain distances have gradient 0 at d = 0.

    The draws of "distance_weighted" come from torch's generator, so that two calls give two values. Other rules are
    deterministic.

    Differences from the authors' code: negatives are drawn without replacement; an anchor without a negative nearer
    than ``max_distance`` draws evenly among all its negatives, whereas theirs may draw a positive; the regularizer is a
    mean, not a sum divided by the number of active terms; there is a boundary for each class, but none for each sample.

    Relations: with one fixed boundary this is a contrastive loss with the margins beta - m and beta + m.

    References
    ----------
    .. [1] C.-Y. Wu, R. Manmatha, A. J. Smola and P. Kraehenbuehl, "Sampling Matters in Deep Embedding Learning",
       ICCV 2017. Section 4.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import MarginLoss
    >>> criterion = MarginLoss(n_classes=2, mining=None)
    >>> embeddings = torch.tensor([[0.0], [1.5], [3.0]], requires_grad=True)
    >>> loss = criterion(embeddings, torch.tensor([0, 0, 1]))  # of the positive pair, 0.2 + 1.5 - 1.2
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.5
    >>> criterion.betas.grad
    tensor([-1.,  0.])
    """

    _parameter_constraints = {
        "n_classes": [POSITIVE_INT],
        "margin": [NON_NEGATIVE],
        "beta": [POSITIVE],
        "nu": [NON_NEGATIVE],
        "cutoff": [POSITIVE],
        "max_distance": [POSITIVE],
        **PairLoss._parameter_constraints,
    }

    _one_class = "learns a boundary for each class"

    _similarities = staticmethod(distance_similarities)

    def __init__(
        self,
        n_classes,
        *,
        margin=0.2,
        beta=1.2,
        nu=0.0,
        cutoff=0.5,
        max_distance=1.4,
        mining="distance_weighted",
        mining_margin=0.1,
    ):
        super().__init__(mining, mining_margin)
        self.n_classes = n_classes
        self.margin = margin
        self.beta = beta
        self.nu = nu
        self.cutoff = cutoff
        self.max_distance = max_distance
        check_constraints(self, vars(self))
        self.betas = nn.Parameter(torch.full((n_classes,), float(beta), dtype=torch.float32))

    def _compare(self, S, y, columns_y, n_components, sample_weight=None):
        selected = self.mine(S.detach(), *pair_masks(y, columns_y), n_components)
        return self.pair_loss(S, *selected, rows_at(self.betas, y), sample_weight)

    def mine(self, S, positive, negative, n_components):
        """Select the pairs that count; "distance_weighted" with the limits of this loss."""
        if self.mining == "distance_weighted":
            options = {"cutoff": self.cutoff, "max_distance": self.max_distance, "generator": self._generator}
            return distance_weighted(S, positive, negative, n_components, **options)
        return super().mine(S, positive, negative, n_components)

    def pair_loss(self, S, positive, negative, beta=None, sample_weight=None):
        """Return the mean over active pairs as a function of similarities.

        Parameters
        ----------
        S : tensor of shape (B, M)
            1 - d^2 / 2, which for unit rows are dot products.
        positive, negative : bool tensor of shape (B, M)
            P_a and N_a as rows.
        beta : tensor of shape (B,), default=None
            The boundary of each anchor. None: the initial boundary.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of the pairs of each anchor, >= 0, also in the mean of the boundaries. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss.
        """
        beta = S.new_full((len(S),), self.beta) if beta is None else beta
        beyond = distances(S) - beta[:, None]  # (B, M)
        terms = torch.where(positive, self.margin + beyond, 0) + torch.where(negative, self.margin - beyond, 0)
        loss = weighted_mean(terms.relu(), sample_weight, terms > 0)
        if self.nu > 0:
            n_pairs = (positive | negative).sum(dim=1)  # (B,)
            loss = loss + self.nu * weighted_mean(n_pairs * beta, sample_weight, n_pairs)
        return loss


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class MarginEmbedder(PairEmbedder):
    """Margin: each pair against a learned distance, with negatives drawn evenly over the distances [1]_.

    Random negatives are nearly all far away, and the hardest ones are often mislabeled or noise; the even draw takes
    some at every distance. Batches hold several samples of each of several classes, so classes must have several
    samples.

    Read more in the :ref:`User Guide <margin>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    beta_learning_rate : float, default=3e-2
        Peak learning rate of the boundaries; > 0. It is ten times the network's, since a step of Adam is about as long
        as the learning rate and a boundary has to move by a few tenths.
    {BASE_PARAMETERS}

    Attributes
    ----------
    betas_ : ndarray of shape (n_classes,)
        The boundaries of the classes, learned.
    {BASE_ATTRIBUTES}

    See Also
    --------
    TripletEmbedder : Compares a positive pair with a negative one, without a boundary.
    skdml.losses.MarginLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] C.-Y. Wu, R. Manmatha, A. J. Smola and P. Kraehenbuehl, "Sampling Matters in Deep Embedding Learning",
       ICCV 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import MarginEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = MarginEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> embedder.betas_.shape
    (5,)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = MarginLoss

    margin: float = 0.2
    beta: float = 1.2
    nu: float = 0.0
    cutoff: float = 0.5
    max_distance: float = 1.4
    beta_learning_rate: float = 3e-2
    mining: str | Callable | None = "distance_weighted"

    _parameter_constraints = {
        **MarginLoss._parameter_constraints,
        **PairEmbedder._parameter_constraints,
        "beta_learning_rate": [POSITIVE],
    }
    del _parameter_constraints["n_classes"]  # a parameter of the loss only

    def _loss_learning_rate(self):
        return self.beta_learning_rate

    @property
    def betas_(self):
        return self.criterion_.betas.detach().numpy()
