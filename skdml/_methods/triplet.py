"""Triplet: a positive must be nearer to the anchor than a negative, by a margin.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .._constraints import NON_NEGATIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.mining import semihard_negatives
from .._loss.pairs import PairLoss
from .._loss.similarities import distance_similarities, distances, squared_distances
from .._loss.terms import LossFunction, mean_active_hinge, most, own_backward, weighted_mean


@with_shared_docs
class TripletLoss(PairLoss):
    r"""Bring the positives of an anchor nearer to it than its negatives, by a margin.

    .. math::
        \ell = \frac1T \sum_{(a, p, n)} [d^2_{ap} - d^2_{an} + m]_+

    The d are Euclidean distances. A triplet is an anchor a of the batch, one of its positives p and one of its
    negatives n; ``mining`` chooses which, and thereby T:

    - None, "vthm", "distance_weighted" or a callable: all triplets of the pairs selected; T counts the active ones, of
      a term above 0.
    - "semihard" [1]_: for each positive pair the nearest negative that is farther than the positive, or the farthest
      where none is; T counts all positive pairs.
    - "hard" [2]_: the farthest positive and the nearest negative of each anchor; T counts the anchors that have both.

    Parameters
    ----------
    margin : float, default=0.2
        Margin m by which a negative must be farther away than a positive; >= 0, on the scale of the distances (squared
        distances of unit rows lie in [0, 4]). Not used with ``soft_margin=True``.
    squared : bool, default=True
        Whether distances are squared, as in [1]_. False: plain distances, as in [2]_, where the pull on a pair does not
        fade as it closes.
    soft_margin : bool, default=False
        Whether :math:`\log(1 + e^{d^2_{ap} - d^2_{an}})`, the "soft margin" of [2]_, replaces the hinge and its margin.
        It is never 0, so that the mean runs over all triplets.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any norm; y (B,) integers; returns a scalar, the mean over T
    as above. A batch without a triplet, or with T = 0, gives 0 with zero gradient. A hinge at exactly 0 is inactive.
    Plain distances have gradient 0 at d = 0.

    "hard" with the default hinge may collapse, with all embeddings at one point and a loss of m. In
    [2]_ distances are plain and the margin is soft.

    The mean over active triplets keeps its scale as training succeeds; the mean over all would fade with the share that
    is still active. No gradient flows through T or through the choice.

    Which triplets of an anchor are active follows from its sorted distances, so that all triplets cost O(B^2 log B)
    time and O(B^2) memory, whereas an enumeration costs O(B^3). The soft margin has a term for every triplet: without
    "semihard" or "hard" it costs O(B^3) time and O(B^2) memory.

    Differences from other code: the semi-hard negative has no upper bound, :math:`d^2_{an} < d^2_{ap} + m` in [1]_,
    beyond which the hinge is 0 anyway; some codes take the mean over all triplets.

    Relations: in similarities of unit rows a term is :math:`2 [s_{an} - s_{ap} + m / 2]_+`.

    References
    ----------
    .. [1] F. Schroff, D. Kalenichenko and J. Philbin, "FaceNet: A Unified Embedding for Face Recognition and
       Clustering", CVPR 2015.
    .. [2] A. Hermans, L. Beyer and B. Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017,
       arXiv:1703.07737.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import TripletLoss
    >>> embeddings = torch.tensor([[0.0], [1.0], [1.5]], requires_grad=True)
    >>> loss = TripletLoss(mining=None)(embeddings, torch.tensor([0, 0, 1]))  # of anchors 0 and 1; the first inactive
    >>> loss.backward()
    >>> round(loss.item(), 4)  # 1 - 0.25 + 0.2
    0.95
    """

    _parameter_constraints = {
        "margin": [NON_NEGATIVE],
        "squared": ["boolean"],
        "soft_margin": ["boolean"],
        **PairLoss._parameter_constraints,
    }

    _similarities = staticmethod(distance_similarities)

    def __init__(self, *, margin=0.2, squared=True, soft_margin=False, mining="semihard", mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.margin = margin
        self.squared = squared
        self.soft_margin = soft_margin
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the mean over triplets as a function of similarities."""
        distance = squared_distances(S) if self.squared else distances(S)  # (B, M)
        if self.mining in ("semihard", "hard"):
            return self._one_negative_a_pair(distance, positive, negative, sample_weight)
        if self.soft_margin:
            n_triplets = positive.sum(dim=1) * negative.sum(dim=1)  # (B,)
            return weighted_mean(_SoftplusSums.apply(distance, positive, negative)[0], sample_weight, n_triplets)
        positive = positive if sample_weight is None else sample_weight[:, None] * positive
        return mean_active_hinge(distance, positive, negative, self.margin)

    def mine(self, S, positive, negative, n_components):
        """Select the pairs that count; all with "semihard", where `pair_loss` chooses a negative for each positive."""
        if self.mining == "semihard":
            return positive, negative
        return super().mine(S, positive, negative, n_components)

    def _one_negative_a_pair(self, distance, positive, negative, sample_weight):
        order = -distance.detach()
        counts = positive & negative.any(dim=1, keepdim=True)  # (B, M)
        column = counts.byte().topk(most(counts.sum(dim=1), counts.shape[1]), dim=1).indices  # (B, K), of the positives
        counts = counts.gather(1, column)
        if self.mining == "semihard":
            chosen = semihard_negatives(order.gather(1, column), order, negative)  # (B, K)
        else:
            chosen = torch.where(negative, order, -torch.inf).argmax(dim=1, keepdim=True)  # (B, 1)
        z = distance.gather(1, column) - distance.gather(1, chosen)  # (B, K)
        terms = F.softplus(z) if self.soft_margin else F.relu(z + self.margin)
        return weighted_mean(torch.where(counts, terms, 0), sample_weight, counts)


class _SoftplusSums(LossFunction):
    """The sums (B,) of log(1 + e^(d_p - d_n)) over a row's positives p and negatives n.

    A few rows at a time, and with the gradient at once, so that no more than O(B M) numbers are ever kept.
    """

    @staticmethod
    def forward(distance, positive, negative):
        B, M = distance.shape
        size = max(1, 8 * B // M)
        sums, grads = [], []
        for d, p, n in zip(distance.split(size), positive.split(size), negative.split(size), strict=True):
            z = (d[:, :, None] - d[:, None, :]).masked_fill_(~(p[:, :, None] & n[:, None, :]), -torch.inf)  # (b, M, M)
            sums.append(F.softplus(z).sum(dim=(1, 2)))
            z.sigmoid_()
            grads.append(z.sum(dim=2) - z.sum(dim=1))
        return torch.cat(sums), torch.cat(grads)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.save_for_backward(outputs[1])
        ctx.mark_non_differentiable(outputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @own_backward
    def backward(ctx, grad, _):
        return grad[:, None] * ctx.saved_tensors[0], None, None


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class TripletEmbedder(PairEmbedder):
    """Triplet: each positive nearer to the anchor than each negative, by a margin [1]_.

    ``mining`` chooses the form: "semihard" takes one negative for each positive pair, None all triplets of the batch,
    and "hard" the hardest triplet of each anchor [2]_. With the other defaults, "hard" may collapse, with all
    embeddings at one point and a loss of ``margin``; ``soft_margin=True, squared=False``, as in [2]_, is safer. Batches
    hold several samples of each of several classes, so classes must have several samples.

    Read more in the :ref:`User Guide <triplet>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    QuadrupletEmbedder : Compares pairs that need not share a sample.
    MarginEmbedder : Compares each pair with a learned boundary.
    skdml.losses.TripletLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] F. Schroff, D. Kalenichenko and J. Philbin, "FaceNet: A Unified Embedding for Face Recognition and
       Clustering", CVPR 2015.
    .. [2] A. Hermans, L. Beyer and B. Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017,
       arXiv:1703.07737.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import TripletEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = TripletEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = TripletLoss

    margin: float = 0.2
    squared: bool = True
    soft_margin: bool = False
    mining: str | Callable | None = "semihard"

    _parameter_constraints = {**TripletLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
