"""Diagnostics of how embeddings are distributed in their space, whatever they retrieve.

Axis letters: N rows, D components, C classes.
"""

import math
from numbers import Real

import torch

from ._rows import Rows, check_points, normalize_, prepare, rounding, similarities, tile_size, tiles


def intra_inter_ratio(embeddings, y, *, metric="cosine", device=None) -> float:
    r"""Mean distance within the classes divided by the mean distance between their centers.

    With the pairs :math:`P` of rows of one class, and the means :math:`\mu_c` of the C classes [1]_,

    .. math:: \frac{\pi_\mathrm{intra}}{\pi_\mathrm{inter}},
       \qquad \pi_\mathrm{intra} = \frac{1}{|P|} \sum_{(i, j) \in P} \lVert z_i - z_j \rVert,
       \qquad \pi_\mathrm{inter} = \frac{1}{C (C - 1)} \sum_{c \ne d} \lVert \mu_c - \mu_d \rVert

    Small values mean that the classes are tight compared with the distances between them. On the training classes,
    smaller is not better: the paper finds that embeddings that keep them wider do better on new classes.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_samples, n_components)
        Real, finite embeddings. A tensor is evaluated on its own device.
    y : array-like or torch.Tensor of shape (n_samples,)
        Class of each row: integers, strings or anything else that sorts.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": rows are scaled to unit length first. The distances are Euclidean in any case.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        Ratio >= 0; inf or nan if all centers are the same point.

    Raises
    ------
    ValueError
        If there is only one class, or no class has two rows; if the shapes do not match, a value is not a finite real
        number, or `metric` is unknown.
    TypeError
        If the labels cannot be compared with each other.

    See Also
    --------
    spectral_decay : How many directions the embeddings use.
    uniformity : How evenly they cover the sphere.

    Notes
    -----
    Every pair has the same weight, whatever the size of its class. Clustering indices such as the Davies-Bouldin index
    compare distances to the center of a class instead.

    References
    ----------
    .. [1] K. Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning",
       ICML 2020, Section 5.

    Examples
    --------
    The distances within the classes are 1 and 3, and that between the centers 0.5 and 7.5 is 7.

    >>> from skdml.metrics import intra_inter_ratio
    >>> round(intra_inter_ratio([[0.0], [1.0], [6.0], [9.0]], [0, 0, 1, 1], metric="euclidean"), 4)
    0.2857
    """
    rows, _ = prepare(embeddings, y, metric=metric, device=device, several_labels=False)
    sizes = torch.bincount(rows.classes)
    if len(sizes) < 2 or sizes.max() < 2:
        raise ValueError(
            f"The ratio needs two or more classes, one of them with two or more rows; got {len(sizes)} classes, the "
            f"largest with {int(sizes.max())} rows."
        )
    if metric == "cosine":
        rows.points.sub_(rows.points.mean(0))  # a common offset changes no distance, but its rounding
    centers = rows.points.new_zeros(len(sizes), rows.points.shape[1])
    centers.index_add_(0, rows.classes, rows.points / sizes[rows.classes, None])
    intra, inter = _mean_distance(rows.points, rows.classes), _mean_distance(centers)
    return intra / inter if inter else math.inf if intra else math.nan


def spectral_decay(embeddings, *, metric="cosine", device=None) -> float:
    r"""How far the singular values of the embeddings are from being all equal.

    With the D singular values of the embeddings, scaled to sum to one, as a distribution S, and the uniform one U [1]_,

    .. math:: \rho = \mathrm{KL}(U \,\Vert\, S) = \frac1D \sum_{d=1}^{D} \log \frac{1}{D\, s_d}

    It is 0 if all directions are used equally, and grows as the embeddings use fewer directions. In the paper, a low
    value comes with good retrieval of new classes; noise also has a low value.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_samples, n_components)
        Real, finite embeddings, not all zero. A tensor is evaluated on its own device.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": rows are scaled to unit length first.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        Divergence in nats, >= 0; inf if a direction is not used at all, as with fewer rows than components.

    Raises
    ------
    ValueError
        If a value is not a finite real number, all are zero, or `metric` is unknown.

    See Also
    --------
    intra_inter_ratio : How far apart the classes are.

    Notes
    -----
    As in the paper, the rows are not centered: a direction common to all rows counts like any other. The effective rank
    (Roy and Vetterli, 2007) is the exponential of the entropy of S, the divergence in the other order, which stays
    finite. Squares of singular values below N eps of the largest one, in float64, count as 0.

    References
    ----------
    .. [1] K. Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning",
       ICML 2020, Section 5.

    Examples
    --------
    Four points on a circle use both directions equally. If they are squeezed to a fifth of the height, S is (5/6, 1/6)
    and the divergence is (log 6/10 + log 6/2) / 2.

    >>> from skdml.metrics import spectral_decay
    >>> points = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
    >>> round(spectral_decay(points), 6)
    0.0
    >>> round(spectral_decay([[1.0, 0.0], [0.0, 0.2], [-1.0, 0.0], [0.0, -0.2]], metric="euclidean"), 4)
    0.2939
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}.")
    X = check_points(embeddings, "embeddings", device)
    if not X.any():
        raise ValueError("embeddings must not be all zero, as zeros have no direction. Look for a collapsed network.")
    X = normalize_(X.clone()) if metric == "cosine" else X / X.abs().max()
    gram = sum(part.T @ part for part in map(torch.Tensor.double, X.split(tile_size(X))))  # (D, D)
    squares = torch.linalg.eigvalsh(gram)  # ascending
    if squares[0] <= max(X.shape) * torch.finfo(squares.dtype).eps * squares[-1]:
        return math.inf
    values = squares.sqrt()
    return max(0.0, -torch.log(len(values) * values / values.sum()).mean().item())


def uniformity(embeddings, *, t=2.0, device=None) -> float:
    r"""Logarithm of the mean Gaussian potential of the pairs on the unit sphere.

    .. math:: \log \frac{1}{N (N - 1)} \sum_{i \ne j} e^{-t \lVert z_i - z_j \rVert^2},
       \qquad \lVert z_i \rVert = 1

    The lower the value, the more evenly the embeddings cover the sphere; 0 means that all are one point [1]_. It
    ignores the classes: embeddings are good if they are uniform and their classes are tight.

    Parameters
    ----------
    embeddings : array-like or torch.Tensor of shape (n_samples, n_components)
        Real, finite embeddings, two rows or more, which are scaled to unit length. A tensor is evaluated on its own
        device.
    t : float, default=2.0
        Inverse width of the potential, > 0.
    device : str, torch.device or None, default=None
        Device to compute on. None: the device of the embeddings, the CPU for arrays.

    Returns
    -------
    float
        In [-4 t, 0].

    Raises
    ------
    ValueError
        If t <= 0, there is only one row, or a value is not a finite real number.

    See Also
    --------
    intra_inter_ratio : Whether the classes are tight.

    Notes
    -----
    The pairs are computed in tiles, so that memory does not grow with their number. The sum leaves out the N pairs of a
    row with itself, as the authors' code does; in the paper's definition, over independent draws, they hardly matter.

    References
    ----------
    .. [1] T. Wang, P. Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
       Hypersphere", ICML 2020, Section 4.1.2.

    Examples
    --------
    Four of the six pairs of corners of a square have the squared distance 2, and two have 4: the value is
    log((4 e^-4 + 2 e^-8) / 6).

    >>> from skdml.metrics import uniformity
    >>> round(uniformity([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), 4)
    -4.3963
    """
    if not isinstance(t, Real) or not 0 < float(t) < math.inf:
        raise ValueError(f"t must be a positive number, got {t!r}.")
    X = normalize_(check_points(embeddings, "embeddings", device).clone())
    if len(X) < 2:
        raise ValueError("embeddings must have two rows or more to form pairs, got 1.")
    parts = []
    for half_squares, q, g in _half_squares(X):
        potential = half_squares.mul_(-2 * t)
        if q == g:
            potential.fill_diagonal_(-torch.inf)
        parts.append(potential.logsumexp((0, 1)).double() + math.log(1 if q == g else 2))
    return float(torch.stack(parts).logsumexp(0)) - math.log(len(X) * (len(X) - 1))


def _mean_distance(points, classes=None):
    """Return the mean distance of two rows or, with classes, which must be sorted, of two rows of one class."""
    sizes = torch.tensor([len(points)], device=points.device) if classes is None else torch.bincount(classes)
    total = 0.0
    for half_squares, q, g in _half_squares(points, classes):
        distances = half_squares.mul_(2).sqrt_()
        if classes is not None:
            distances.masked_fill_(classes[q, None] != classes[g], 0)
        total += distances.sum().item() * (1 if q == g else 2)
    return total / (sizes * (sizes - 1)).sum().item()


@torch.no_grad()
def _half_squares(points, classes=None):
    """Yield tiles of half the squared distances of the rows with their slices, on and above the diagonal.

    With classes, yield only tiles that may hold two rows of one class.
    """
    offsets = points.square().sum(1).div_(2)
    noise = 2 * rounding(points.dtype) * offsets.max()
    labels = torch.zeros(len(points), dtype=torch.int64, device=points.device) if classes is None else classes
    rows, size = Rows(points, offsets, labels, rounding(points.dtype)), tile_size(points)
    buffer = points.new_empty(min(size, len(points)) ** 2)
    for q, g, may_match, _ in tiles(rows, rows, size):
        if may_match:
            half_squares = similarities(rows[q], rows[g], buffer).neg_()
            yield half_squares.masked_fill_(half_squares <= noise, 0), q, g
