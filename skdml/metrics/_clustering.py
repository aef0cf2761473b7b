"""Clustering measures, which compare k-means clusters of the embeddings with their classes."""

import numpy as np
import torch
from scipy.special import gammaln
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, pair_confusion_matrix
from sklearn.utils import check_random_state

from ._k_means import k_means
from ._rows import prepare


def nmi_score(embeddings, y, *, metric="cosine", random_state=0, device=None) -> float:
    r"""NMI: normalized mutual information of the classes and the k-means clusters of the embeddings.

    With as many clusters :math:`\Omega` as classes :math:`C`, and entropies :math:`H` [1]_,

    .. math:: \mathrm{NMI} = \frac{2\, I(\Omega; C)}{H(\Omega) + H(C)}

    The denominator is an arithmetic mean, as in scikit-learn; the geometric mean of other packages gives nearly the
    same value. NMI is not corrected for chance: with few samples per class, a random clustering has a high NMI.
    :func:`ami_score` is corrected.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_samples, n_components)
        Real, finite embeddings. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_samples,)
        Class of each row: integers, strings or anything else that sorts.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": rows are scaled to unit length before k-means.
    random_state : int, RandomState instance or None, default=0
        Seeds k-means. No global state is changed.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        NMI in [0, 1]; 1 if there is only one class.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, or `metric` is unknown.
    TypeError
        If the labels cannot be compared with each other.

    See Also
    --------
    ami_score : The same, corrected for chance.
    NMI : The same as a scorer for grid searches.

    Notes
    -----
    k-means draws its initial centers by greedy k-means++ from at most four rows per cluster (16,384 in all, or the
    number of clusters if that is larger). It runs once, until at most one row in a thousand changes its cluster, for at
    most 100 of Lloyd's iterations. The value depends on the seed, by several hundredths if many classes overlap:
    compare embeddings with the same seed, or over several seeds.

    References
    ----------
    .. [1] H. Oh Song, Y. Xiang, S. Jegelka, S. Savarese, "Deep Metric Learning via Lifted Structured Feature
       Embedding", CVPR 2016, Section 5.

    Examples
    --------
    The clusters are the two points on the left and the two on the right.

    >>> from skdml.metrics import nmi_score
    >>> points = [[0.0], [1.0], [8.0], [9.0]]
    >>> nmi_score(points, [0, 0, 1, 1], metric="euclidean")
    1.0
    >>> nmi_score(points, [0, 1, 0, 1], metric="euclidean")
    0.0
    """
    queries, _ = prepare(embeddings, y, metric=metric, device=device, several_labels=False)
    return Clustering(queries, random_state).nmi()


def ami_score(embeddings, y, *, metric="cosine", random_state=0, device=None) -> float:
    r"""AMI: adjusted mutual information of the classes and the k-means clusters of the embeddings.

    With as many clusters :math:`\Omega` as classes :math:`C`, entropies :math:`H`, and the mean :math:`E` over random
    clusterings with clusters of the same sizes [1]_,

    .. math:: \mathrm{AMI} = \frac{I(\Omega; C) - E[I]}{\frac12 (H(\Omega) + H(C)) - E[I]}

    Papers report :func:`nmi_score`, which is high even for a random clustering of small classes, where AMI is near 0.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_samples, n_components)
        Real, finite embeddings. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_samples,)
        Class of each row: integers, strings or anything else that sorts.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": rows are scaled to unit length before k-means.
    random_state : int, RandomState instance or None, default=0
        Seeds k-means. No global state is changed.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        AMI, at most 1; near 0, possibly negative, for a random clustering; 1 if there is only one class.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, or `metric` is unknown.
    TypeError
        If the labels cannot be compared with each other.

    See Also
    --------
    nmi_score : The measure that papers report.
    AMI : The same as a scorer for grid searches.

    Notes
    -----
    k-means draws its initial centers by greedy k-means++ from at most four rows per cluster (16,384 in all, or the
    number of clusters if that is larger). It runs once, until at most one row in a thousand changes its cluster, for at
    most 100 of Lloyd's iterations. The value depends on the seed, by several hundredths if many classes overlap:
    compare embeddings with the same seed, or over several seeds.
    For given clusters, the value is that of ``sklearn.metrics.adjusted_mutual_info_score``.

    References
    ----------
    .. [1] N. X. Vinh, J. Epps, J. Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 11, 2010.

    Examples
    --------
    The clusters are the two points on the left and the two on the right. One of the three ways to pair four points
    agrees with the classes, so a pairing without information on the classes is worse than chance.

    >>> from skdml.metrics import ami_score
    >>> points = [[0.0], [1.0], [8.0], [9.0]]
    >>> ami_score(points, [0, 0, 1, 1], metric="euclidean")
    1.0
    >>> round(ami_score(points, [0, 1, 0, 1], metric="euclidean"), 6)
    -0.5
    """
    queries, _ = prepare(embeddings, y, metric=metric, device=device, several_labels=False)
    return Clustering(queries, random_state).ami()


def pairwise_f1_score(embeddings, y, *, metric="cosine", random_state=0, device=None) -> float:
    r"""F1 score of the pairs that share a k-means cluster, compared with those that share a class.

    With as many clusters as classes, P the share of the pairs in one cluster that are of one class, and R the share of
    the pairs of one class that are in one cluster [1]_,

    .. math:: F_1 = \frac{2 P R}{P + R}

    It is unrelated to the F1 score of a classifier, which counts samples. Clusters weigh by the square of their size:
    one that swallows several classes costs a lot.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_samples, n_components)
        Real, finite embeddings. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_samples,)
        Class of each row: integers, strings or anything else that sorts.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": rows are scaled to unit length before k-means.
    random_state : int, RandomState instance or None, default=0
        Seeds k-means. No global state is changed.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        F1 in [0, 1]; nan if no two rows share a class or a cluster.

    Raises
    ------
    ValueError
        If the shapes do not match, a value is not a finite real number, or `metric` is unknown.
    TypeError
        If the labels cannot be compared with each other.

    See Also
    --------
    nmi_score : Mutual information of the same clusters and the classes.
    PairwiseF1 : The same as a scorer for grid searches.

    Notes
    -----
    k-means draws its initial centers by greedy k-means++ from at most four rows per cluster (16,384 in all, or the
    number of clusters if that is larger). It runs once, until at most one row in a thousand changes its cluster, for at
    most 100 of Lloyd's iterations. The value depends on the seed, by several hundredths if many classes overlap:
    compare embeddings with the same seed, or over several seeds.

    References
    ----------
    .. [1] H. Oh Song, Y. Xiang, S. Jegelka, S. Savarese, "Deep Metric Learning via Lifted Structured Feature
       Embedding", CVPR 2016, Section 5.

    Examples
    --------
    The clusters are the three points on the left and the one on the right. They hold three pairs, one of them of one
    class (P = 1/3); one of the two pairs of one class is in one cluster (R = 1/2).

    >>> from skdml.metrics import pairwise_f1_score
    >>> round(pairwise_f1_score([[0.0], [1.0], [2.0], [9.0]], [0, 0, 1, 1], metric="euclidean"), 6)
    0.4
    """
    queries, _ = prepare(embeddings, y, metric=metric, device=device, several_labels=False)
    return Clustering(queries, random_state).pairwise_f1()


class Clustering:
    """k-means clusters of the rows, as many as there are classes."""

    def __init__(self, rows, random_state):
        self.y = rows.classes.cpu().numpy()
        n_classes = len(torch.unique_consecutive(rows.classes))
        self.labels = k_means(rows.points, n_classes, check_random_state(random_state)).cpu().numpy()

    def nmi(self):
        return float(normalized_mutual_info_score(self.y, self.labels))

    def ami(self):
        """Return the AMI of scikit-learn, whose expectation takes as long as a search for neighbors."""
        table = contingency_matrix(self.y, self.labels, sparse=True)
        if 1 in table.shape:
            return float(table.shape == (1, 1))
        sizes = [np.asarray(table.sum(axis)).ravel() for axis in (1, 0)]
        expected = _expected_mutual_information(*sizes)
        information = mutual_info_score(None, None, contingency=table)
        most = (entropy(sizes[0]) + entropy(sizes[1])) / 2
        room = most - expected
        return float((information - expected) / room) if room > np.finfo(float).eps else 1.0

    def pairwise_f1(self):
        (_, false_positive), (false_negative, true_positive) = pair_confusion_matrix(self.y, self.labels)
        n_pairs = 2 * true_positive + false_positive + false_negative
        return float(2 * true_positive / n_pairs) if n_pairs else np.nan


def _expected_mutual_information(a, b):
    """Mutual information of random partitions with the sizes a and b, in nats (Vinh et al., JMLR 2010, Eq. 24a)."""
    n = a.sum()
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    (a, times_a), (b, times_b) = (np.unique(sizes, return_counts=True) for sizes in (a, b))
    expected = 0.0
    for size, times in zip(a, times_a, strict=True):
        common = np.arange(1, min(size, b.max()) + 1)
        possible = (common <= b[:, None]) & (common >= size + b[:, None] - n)  # (len(b), common)
        row, column = possible.nonzero()
        c, d = common[column], b[row]
        log_probability = (
            log_factorial[size] + log_factorial[d] + log_factorial[n - size] + log_factorial[n - d] - log_factorial[n]
        ) - (log_factorial[c] + log_factorial[size - c] + log_factorial[d - c] + log_factorial[n - size - d + c])
        terms = c / n * np.log(c * (n / size) / d) * np.exp(log_probability)
        expected += times * (times_b[row] * terms).sum()
    return expected
