"""SST: the stochastic symmetric triplet loss.

Axes: B samples of a batch, K targets of an anchor.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .._constraints import POSITIVE_INT, check_constraints
from .._docstrings import with_shared_docs
from .._engine.batches import LocalBatches
from .._engine.embedder import BaseEmbedder, PairMixin
from .._loss.pairs import PairLoss
from .._loss.similarities import distance_similarities, squared_distances
from .._loss.terms import rows_at, weighted_mean


@with_shared_docs
class SSTLoss(PairLoss):
    r"""Bring an anchor and its nearest positives closer to each other than both are to the negatives.

    .. math::
        \ell = \frac1T \sum_{(a, p, n)} \log(1 + e^{z_{apn}}), \qquad
        z_{apn} = d^2_{ap} - \tfrac12 (d^2_{an} + d^2_{pn})

    The d are Euclidean distances. The T triplets are all anchors a of the batch, times the ``n_targets`` nearest
    positives p of each (all if there are fewer), times all samples n of other classes.

    Parameters
    ----------
    n_targets : int, default=5
        How many of the nearest positives of an anchor form triplets; >= 1. Among equally near ones, those with the
        lowest index.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If ``n_targets`` is not an integer >= 1, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any norm; y (B,) integers; returns a scalar, the mean over the
    triplets. Memory grows as B^2 n_targets. Without a triplet, as in a batch of one class or of classes with one sample
    each, the loss is 0 with zero gradient. A class with a single sample provides no anchor, but a negative to all
    others.

    A term is the negative log of :math:`e^{-d^2_{ap}} / (e^{-d^2_{ap}} + e^{-(d^2_{an} + d^2_{pn}) / 2})`, which is
    symmetric in a and p and has neither margin nor scale.

    Difference from the authors' code, which fixes the triplets for an epoch, from embeddings in evaluation mode at its
    start: here the targets are the nearest in the current embeddings of the batch, which are never out of date and cost
    no second pass over the data. No gradient flows through the choice.

    Relations: with c = (a + p) / 2, :math:`z = \tfrac34 d^2_{ap} - |n - c|^2`, so this is the constraint of the angular
    loss, :math:`d^2_{ap} \le 4 \tan^2(\alpha) |n - c|^2`, at 30 degrees under a softplus.

    References
    ----------
    .. [1] B. Nguyen and B. De Baets, "Improved deep embedding learning based on stochastic symmetric triplet loss and
       local sampling", Neurocomputing 402, 2020.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import SSTLoss
    >>> embeddings = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    >>> loss = SSTLoss(n_targets=1)(embeddings, torch.tensor([0, 0, 1]))  # z = 1 - (4 + 1) / 2 for both anchors
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.2014
    """

    _parameter_constraints = {"n_targets": [POSITIVE_INT], **PairLoss._parameter_constraints}

    _one_class = "compares the negatives of an anchor with its positive, which may have a label in common,"

    _similarities = staticmethod(distance_similarities)

    def __init__(self, *, n_targets=5, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.n_targets = n_targets
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the mean over triplets as a function of similarities.

        Parameters
        ----------
        S : tensor of shape (B, M)
            1 - d^2 / 2, which for unit rows are dot products.
        positive : bool tensor of shape (B, M)
            The nearest ``n_targets`` of a row, within the batch, are the targets of its anchor.
        negative : bool tensor of shape (B, M)
            The samples that form a triplet with each target of the row's anchor.
        sample_weight : tensor of shape (B,) or None, default=None
            Weight of each anchor's triplets, >= 0. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss.
        """
        distance = squared_distances(S)  # (B, M)
        B = len(S)
        target, is_target = _nearest(distance[:, :B].detach(), positive[:, :B], self.n_targets)  # (B, K)
        terms = symmetric_terms(
            distance.gather(1, target)[:, :, None], distance[:, None, :], rows_at(distance, target)
        )  # (B, K, M)
        is_triplet = is_target[:, :, None] & negative[:, None, :]  # (B, K, M)
        return weighted_mean(torch.where(is_triplet, terms, 0), sample_weight, is_triplet)


def symmetric_terms(ap, an, pn):
    """Return the terms of triplets with the squared distances of anchor, positive and negative from each other."""
    return F.softplus(ap - (an + pn) / 2)


def _nearest(distance, mask, k):
    """Return the indices (B, K) of the k least entries of each row in the mask, and which of them exist, (B, K)."""
    distance, index = torch.where(mask, distance, torch.inf).sort(dim=1, stable=True)
    return index[:, :k], distance[:, :k] < torch.inf


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class SSTEmbedder(PairMixin, BaseEmbedder):
    """SST: symmetric triplets inside the clusters of the embedding space [1]_.

    In each epoch the training set is embedded and clustered by k-means, and each cluster is a batch (local sampling),
    so that the negatives of a batch are near.

    Read more in the :ref:`User Guide <sst>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Mines the informative pairs of class-balanced batches.
    skdml.losses.SSTLoss : The loss on its own, for a torch loop.

    Notes
    -----
    Local sampling is that of the authors, with three differences: a cluster larger than ``batch_size`` is split into
    several batches that keep the rows of a class together, whereas theirs drops the surplus; scikit-learn's minibatch
    k-means replaces the full one; and the batches come in random order.

    References
    ----------
    .. [1] B. Nguyen and B. De Baets, "Improved deep embedding learning based on stochastic symmetric triplet loss and
       local sampling", Neurocomputing 402, 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import SSTEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = SSTEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = SSTLoss

    batch_size: int = 128
    n_targets: int = 5

    _parameter_constraints = {
        **SSTLoss._parameter_constraints,
        **BaseEmbedder._parameter_constraints,
        **PairMixin._parameter_constraints,
    }

    def _make_batches(self, y):
        return LocalBatches(y, self.batch_size)
