"""Clustering: a structured loss that compares the batch's clusters with its classes.

Axes: B samples of a batch, J candidates for a medoid.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import nn

from .._constraints import NON_NEGATIVE, Interval, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import BalancedEmbedder
from .._loss.terms import LossFunction, check_batch, in_float32, rows_at, zero_loss


class ClusteringLoss(nn.Module):
    r"""Make the classes the best clustering of the batch, by a margin that grows with the error of another one.

    .. math::
        \ell &= \Bigl[ \max_{|S| = C} \{ F(S) + \gamma \Delta(S) \} - \tilde F \Bigr]_+, \qquad
        F(S) = -\sum_i \min_{j \in S} |x_i - x_j| \\
        \tilde F &= -\sum_c \min_{j : y_j = c} \sum_{i : y_i = c} |x_i - x_j|, \qquad
        \Delta(S) = 1 - \mathrm{NMI}(S, y)

    S is a set of medoids, as many as the batch has classes C; each sample belongs to its nearest medoid. F is the
    facility location function, :math:`\tilde F` its value where the clusters are the classes. NMI is the normalized
    mutual information of clusters and classes, :math:`I / \sqrt{H H'}`.

    Parameters
    ----------
    gamma : float, default=1.0
        Gamma, the factor of the margin, which is 1 minus the normalized mutual information of clusters and classes; >=
        0, on the scale of a sum of distances over the batch.
    max_swap_rounds : int, default=5
        Maximum number of rounds that swap medoids (PAM) after the greedy choice; >= 0. A round without a swap is the
        last.

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are, of any norm; y (B,) integers; returns a scalar, a sum over the
    batch, not a mean. A batch of one class, or of classes with one sample each, gives 0 with zero gradient.

    The maximum is approximated as in [1]_: medoids are added one at a time, each the sample with the highest :math:`F +
    \gamma \Delta` (the lowest index among equals); then each is swapped for the best member of its cluster (PAM), if
    that is better. The loss is therefore never above that of the exact maximum. No gradient flows through the choice:
    it reaches the distances to the chosen medoids and to those of the classes. A sample at distance 0 from its medoid
    gets none.

    The choice is made on the CPU in float64, so that a step on another device waits for it. It takes at most
    :math:`O(B^2 D + C B^3)` time: all candidates are compared at once, through the cells of the table of clusters and
    classes, at most B of which are not empty. :math:`\Delta` is computed only where it can change the choice, for
    candidates whose F is within gamma of the best.

    Differences from [1]_: a swap is judged by the F of the batch with every sample at its nearest medoid, whereas the
    paper uses the sum over the old cluster, a bound on it; and samples move to their nearest medoid after every swap,
    not after every round. A medoid belongs to its own cluster, whatever lies at distance 0 from it. Mutual information
    is divided by the geometric mean, as in the paper; scikit-learn uses the arithmetic mean since 0.22 (its
    ``average_method="geometric"`` gives this one). A port for Chainer squares the distances.

    References
    ----------
    .. [1] H. O. Song, S. Jegelka, V. Rathod and K. Murphy, "Deep Metric Learning via Facility Location", CVPR 2017.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import ClusteringLoss
    >>> embeddings = torch.tensor([[0.0], [2.0], [3.0], [6.0]], requires_grad=True)
    >>> loss = ClusteringLoss()(embeddings, torch.tensor([0, 0, 1, 1]))  # F of {2, 6} is -3, that of the classes -5
    >>> loss.backward()
    >>> round(loss.item(), 4)
    2.6544
    """

    _one_class = "compares clusters with the classes"

    _parameter_constraints = {
        "gamma": [NON_NEGATIVE],
        "max_swap_rounds": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, *, gamma=1.0, max_swap_rounds=5):
        super().__init__()
        self.gamma = gamma
        self.max_swap_rounds = max_swap_rounds
        check_constraints(self, vars(self))

    @in_float32
    def forward(self, embeddings, y, sample_weight=None):
        """Return the loss of a batch.

        Parameters
        ----------
        embeddings : tensor of shape (B, D)
            Taken as they are, never normalized here.
        y : int tensor of shape (B,)
            The class of each row.
        sample_weight : tensor of shape (B,) or None, default=None
            Factor of each row's distances, >= 0; what counts is its ratio to the mean weight of the batch. All rows
            count equally in the mutual information. None: ones.

        Returns
        -------
        tensor of shape ()
            The loss; 0 for an empty batch.
        """
        y = check_batch(embeddings, y, sample_weight, loss=self)
        w = embeddings.new_ones(len(y)) if sample_weight is None else sample_weight.to(embeddings.dtype)  # (B,)
        if not w.any():
            return zero_loss(self, embeddings)
        w = w / w.mean()
        factors = None if sample_weight is None else w
        medoid, class_medoid, error = _Choice.apply(embeddings, y, factors, self.gamma, self.max_swap_rounds)
        F, F_classes = (_facility_location(embeddings, chosen, w) for chosen in (medoid, class_medoid))
        return (F + error - F_classes).relu()


class _Choice(LossFunction):
    """The best medoid and the class's medoid of each row, (B,), and gamma times the error of the former; no gradient.

    A function of autograd, since ``torch.func`` hides the numbers of a tensor everywhere else.
    """

    @staticmethod
    def forward(embeddings, y, w, gamma, max_swap_rounds):
        x = embeddings.cpu().double().numpy()
        labels = np.unique(y.cpu().numpy(), return_inverse=True)[1]
        search = _MedoidSearch(cdist(x, x), labels, None if w is None else w.cpu().numpy())
        medoids = search.best_medoids(gamma, max_swap_rounds)
        chosen = (torch.from_numpy(rows).to(y.device) for rows in (search.assign(medoids), search.class_medoids()))
        return *chosen, embeddings.new_tensor(gamma * search.error(medoids))

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.mark_non_differentiable(*outputs)

    @staticmethod
    def backward(ctx, *grads):
        return (None,) * 5


def _facility_location(embeddings, medoid, w):
    """Return minus the sum of the distances of the rows (B, D) to the rows that ``medoid`` (B,) names, times w."""
    distance = torch.linalg.vector_norm(embeddings - rows_at(embeddings, medoid), dim=1)  # its gradient at 0 is 0
    return -(w * distance).sum()


class _MedoidSearch:
    """The medoids of a batch.

    Parameters
    ----------
    distance : ndarray of shape (B, B)
    y : ndarray of shape (B,), values 0..C-1, each present
    w : ndarray of shape (B,) or None, default=None
        Factors of the distances in F. None: ones.
    """

    def __init__(self, distance, y, w=None):
        self.distance = distance
        self.y = y
        self.w = w
        self.n_classes = int(y.max()) + 1
        self.of_class = np.eye(self.n_classes)[y]  # (B, C)
        n = np.arange(len(y) + 1)
        self.n_log_n = n * np.log(np.maximum(n, 1))  # (B + 1,), for entropies: the counts are integers

    def _total(self, distance):
        """Return the sums of distances (B, J) over the samples, times their factors, (J,)."""
        return (distance if self.w is None else self.w[:, None] * distance).sum(axis=0)

    def class_medoids(self):
        """Return the medoid of the class of each sample, (B,)."""
        same = self.y[:, None] == self.y
        total = self._total(np.where(same, self.distance, 0))  # (B,)
        medoid = np.where(self.of_class > 0, total[:, None], np.inf).argmin(axis=0)  # (C,), the first of equals
        return medoid[self.y]

    def assign(self, medoids):
        """Return the nearest medoid of each sample, (B,), the first of equally near ones; a medoid has itself."""
        medoid = medoids[self.distance[:, medoids].argmin(axis=1)]
        medoid[medoids] = medoids
        return medoid

    def error(self, medoids):
        """Return 1 - NMI of the clusters of the medoids."""
        cluster = np.searchsorted(np.sort(medoids), self.assign(medoids))
        table = np.eye(len(medoids))[cluster].T @ self.of_class  # (clusters, C)
        counts = table.astype(np.int64)
        return float(self._error(self.n_log_n[counts].sum(), self.n_log_n[counts.sum(axis=1)].sum()))

    def best_medoids(self, gamma, max_swap_rounds):
        """Return distinct medoids, as many as classes, of high F + gamma * error, (C,)."""
        medoids = np.empty(0, dtype=np.int64)
        value = -np.inf
        for _ in range(self.n_classes):
            left = np.setdiff1d(np.arange(len(self.y)), medoids)
            j, value = self._best_addition(medoids, left, gamma, -np.inf)
            medoids = np.append(medoids, j)
        for _ in range(max_swap_rounds if self.n_classes > 1 else 0):
            before = value
            for k in range(len(medoids)):
                members = np.flatnonzero(self.assign(medoids) == medoids[k])
                others = np.delete(medoids, k)
                j, value = self._best_addition(others, members[members != medoids[k]], gamma, value)
                if j is not None:
                    medoids[k] = j
            if value == before:
                break
        return medoids

    def _best_addition(self, medoids, candidates, gamma, value):
        """Return the candidate whose addition gives the highest F + gamma * error, if above ``value``, and this.

        Otherwise None and ``value``.
        """
        nearest = self.assign(medoids) if len(medoids) else np.zeros(len(self.y), dtype=np.int64)
        reach = self.distance[np.arange(len(self.y)), nearest] if len(medoids) else np.inf  # (B,)
        to_candidate = self.distance[:, candidates]  # (B, J)
        F = -self._total(np.minimum(to_candidate, np.reshape(reach, (-1, 1))))  # (J,)
        # The error lies in [0, 1]: a candidate further behind cannot win. (Comparisons with NaN are false: it stays.)
        hopeful = ~((F + gamma < F.max(initial=-np.inf)) | (F + gamma <= value))
        if not hopeful.any():
            return None, value
        candidates, F = candidates[hopeful], F[hopeful]
        moves = to_candidate[:, hopeful] < np.reshape(reach, (-1, 1))  # (B, J)
        moves[candidates, np.arange(len(candidates))] = True
        total = F + gamma * self._errors(nearest, moves)
        best = total.argmax()
        return (None, value) if total[best] <= value else (candidates[best], total[best])

    def _errors(self, nearest, moves):
        """Return 1 - NMI, (J,), where samples leave the cluster ``nearest`` (B,) for a new one.

        ``moves`` (B, J) says which do. Only nonempty cells of the table of clusters and classes are counted.
        """
        moves = moves.astype(np.float64)
        _, cell, n_cell = np.unique(nearest * self.n_classes + self.y, return_inverse=True, return_counts=True)
        _, cluster, n_cluster = np.unique(nearest, return_inverse=True, return_counts=True)
        joint = cluster_part = 0
        for group, n in ((cell, n_cell), (cluster, n_cluster)):
            leave = np.eye(len(n))[group].T @ moves  # (cells, J), the number of samples that leave each
            stay = self.n_log_n[(n[:, None] - leave).astype(np.int64)].sum(axis=0)
            joint, cluster_part = cluster_part, stay
        enter = (self.of_class.T @ moves).astype(np.int64)  # (C, J)
        joint = joint + self.n_log_n[enter].sum(axis=0)
        cluster_part = cluster_part + self.n_log_n[enter.sum(axis=0)]
        return self._error(joint, cluster_part)

    def _error(self, joint, clusters):
        """Return 1 - NMI from the sums of n log n over the cells of the table and over the clusters."""
        B = len(self.y)
        classes = self.n_log_n[np.bincount(self.y)].sum()
        total = self.n_log_n[B]
        H_joint, H_clusters, H_classes = ((total - part) / B for part in (joint, clusters, classes))
        if self.n_classes == 1:
            return 1.0 - (np.abs(H_clusters) < 1e-12)  # two trivial partitions agree
        scale = np.sqrt(np.maximum(H_clusters * H_classes, 0))
        information = np.maximum(H_clusters + H_classes - H_joint, 0)
        return 1 - np.divide(information, scale, out=np.zeros_like(information), where=scale > 1e-12)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class ClusteringEmbedder(BalancedEmbedder):
    """Clustering: a structured loss that makes the classes the best clustering of the batch [1]_.

    The loss looks at the batch as a whole: the clusters around the best medoids should be the classes, by a margin that
    grows with their disagreement.

    Read more in the :ref:`User Guide <clustering>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Compares pairs; a step is cheaper.
    SSTEmbedder : Batches that are clusters of the embeddings.
    skdml.losses.ClusteringLoss : The loss on its own, for a torch loop.

    References
    ----------
    .. [1] H. O. Song, S. Jegelka, V. Rathod and K. Murphy, "Deep Metric Learning via Facility Location", CVPR 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import ClusteringEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = ClusteringEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.95)
    True
    """

    _loss_class = ClusteringLoss

    gamma: float = 1.0
    max_swap_rounds: int = 5

    _parameter_constraints = {**ClusteringLoss._parameter_constraints, **BalancedEmbedder._parameter_constraints}
