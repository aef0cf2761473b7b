"""How a loss weighs the pairs of a batch.

Axes: B samples of a batch, D components.
"""

import copy
from typing import Self

import numpy as np
import torch

from .._ambient import neutral
from .._labels import number_labels, read_targets
from .._loss.pairs import PairLoss, pair_masks
from .._loss.terms import check_batch
from ._drawing import COLORS, new_axes


@neutral()
def pair_weights(loss, embeddings, y) -> torch.Tensor | np.ndarray:
    r"""Return the weight that a loss gives to each pair of a batch.

    .. math:: w_{ij} = (1 - 2 I_{ij})\, B\, \frac{\partial \ell}{\partial s_{ij}}

    I is 1 for a pair from one class and 0 for a pair from two. The rows are anchors: :math:`s_{ij}` and :math:`s_{ji}`
    are separate variables of the loss. A step of gradient descent on :math:`\frac1B \sum_{ij} (1 - 2 I_{ij}) w_{ij}
    s_{ij}` with constant weights is also a step on the loss.

    Parameters
    ----------
    loss : PairLoss, or loss of pytorch-metric-learning
        A loss over pairs from :mod:`skdml.losses`, such as RAWLoss; or a loss of pytorch-metric-learning that compares
        the samples of a batch, with a distance that is a similarity or an LpDistance with p=2 and any power.
    embeddings : tensor or array-like of shape (B, D)
        The batch, with rows of unit length, as the loss expects.
    y : tensor or array-like of shape (B,) or (B, n_labels)
        The class of each row; or, 0 and 1, which of several labels it has, for losses of skdml.

    Returns
    -------
    tensor or ndarray of shape (B, B)
        The weights, of the same type as ``embeddings``. Positive where the loss pulls positives or pushes negatives,
        which not every loss always does. Zero on the diagonal and for pairs that do not count. Detached from the graph.

    Raises
    ------
    TypeError
        If the loss is not a function of the similarities of pairs, or its distance is not one of those above.
    ValueError
        If the shapes are not (B, D) and (B,), or a loss that needs classes gets several labels per row.

    Notes
    -----
    Losses of distances are differentiated with respect to :math:`s = 1 - d^2 / 2`, the dot product of unit rows.

    Theorem 3.1 of [1]_ has a factor 1/2, because :math:`s_{ij}` and :math:`s_{ji}` are one variable there, for which
    the derivative is the sum of both. The mean of this matrix and its transpose is B times that weight. The weights in
    Eqs. (6), (8), (10), (11) and (13) to (16) of the paper are these, per anchor.

    The factor B cancels the mean over the anchors. If a loss divides by another number (of triplets or active pairs),
    the weights keep the factor B over this number. If the ``mining`` rule draws at random, the weights differ from call
    to call.

    References
    ----------
    .. [1] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Theorem 3.1.

    Examples
    --------
    >>> from skdml.inspection import pair_weights
    >>> from skdml.losses import ContrastiveLoss
    >>> pair_weights(ContrastiveLoss(), [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], [0, 0, 1, 1])
    array([[0., 1., 1., 0.],
           [1., 0., 1., 1.],
           [1., 1., 0., 1.],
           [0., 1., 1., 0.]])
    """
    is_tensor = isinstance(embeddings, torch.Tensor)
    x = embeddings.detach() if is_tensor else torch.from_numpy(np.array(embeddings, order="C"))
    x = x if x.is_floating_point() else x.double()
    if not isinstance(y, torch.Tensor) or y.is_floating_point():
        y = read_targets(y)
        y = torch.from_numpy(y.astype(np.int64) if y.dtype.kind in "iub" else number_labels(y)[1][0])
    n_classes = loss.n_classes if isinstance(loss, PairLoss) else None
    y = check_batch(x, y.to(x.device), n_classes=n_classes, loss=loss)
    if isinstance(loss, PairLoss):
        gradient = _gradient(loss, x, y)
    elif hasattr(loss, "distance"):
        gradient = _foreign_gradient(loss, x, y)
    else:
        raise TypeError(
            f"{type(loss).__name__} is not a function of the similarities of pairs, so pairs have no weights. Pass a "
            "loss over pairs from skdml.losses, such as RAWLoss(), or one of pytorch-metric-learning with a distance."
        )
    weights = len(y) * torch.where(pair_masks(y)[0], -gradient, gradient)
    weights = weights.fill_diagonal_(0) + 0.0  # no -0.0
    return weights if is_tensor else weights.numpy()


def _gradient(loss, x, y):
    """Return the gradient (B, B) of a PairLoss with respect to the similarities."""
    if len(y) == 0:
        return x.new_zeros(0, 0)
    S = loss._similarities(x).detach().requires_grad_()
    with torch.enable_grad():
        value = loss._compare(S, y, y, x.shape[1])
    (gradient,) = torch.autograd.grad(value, S)
    return gradient


def _foreign_gradient(loss, x, y):
    """Return the gradient (B, B) of a loss of pytorch-metric-learning with respect to the similarities."""
    name, distance = type(loss).__name__, loss.distance
    power = getattr(distance, "power", 1)
    is_similarity = getattr(distance, "is_inverted", False) and power == 1
    is_euclidean = getattr(distance, "p", None) == 2 and any(
        cls.__name__ == "LpDistance" for cls in type(distance).__mro__
    )
    if not is_similarity and not is_euclidean:
        raise TypeError(
            f"The distance of {name} is {distance!r}, but it must be a similarity, such as CosineSimilarity(), or "
            "LpDistance(p=2)."
        )
    leaves = []

    def replace(module, args, output):
        rows, columns = args[0], args[-1] if args[-1] is not None else args[0]
        if rows.shape != x.shape or not rows.equal(columns):
            raise TypeError(
                f"{name} compares {len(rows)} rows to {len(columns)} others, but pair_weights needs a loss that "
                "compares the samples of a batch with one another."
            )
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    loss = copy.deepcopy(loss)
    loss.distance.register_forward_hook(replace)
    with torch.enable_grad():
        value = loss(x.clone().requires_grad_(), y)
    if len(leaves) != 1:
        raise TypeError(f"{name} must compute its distance once, for all pairs; it did so {len(leaves)} times.")
    (gradient,) = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    if is_similarity:
        return gradient
    d = leaves[0].detach() ** (1 / power)
    # The value was d^power with d = sqrt(2 - 2 s). Its derivative in s is -power d^(power - 2), and undefined at d = 0.
    slope = torch.where(d > 0, -power * torch.where(d > 0, d, 1) ** (power - 2), -2.0 if power == 2 else 0.0)
    return gradient * slope


class PairWeightDisplay:
    """The weight of a pair as a function of its similarity.

    One anchor has some positives and negatives of fixed similarities. The similarity of one more sample varies, and
    with it the weight of its pair with the anchor: the curve is solid if that sample is a positive and dotted if it is
    a negative. The samples are unit vectors, each with its own direction apart from its component along the anchor.

    It is recommended to use `from_loss` to create one. See :doc:`/inspection` for how to read the plot.

    Parameters
    ----------
    similarity : ndarray of shape (n_points,)
        The similarities of the varied pair.
    positive_weights, negative_weights : ndarray of shape (n_points,)
        Its weights, as a positive and as a negative pair.
    name : str or None, default=None
        Name of the loss in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    lines_ : list of matplotlib Line2D
        The curve of the positive pair and that of the negative pair.

    References
    ----------
    .. [1] "A Unified View of Deep Metric Learning via Gradient Analysis", submission to ICLR 2019. Figure 1.

    Examples
    --------
    >>> from skdml.inspection import PairWeightDisplay
    >>> from skdml.losses import BinomialDevianceLoss, RAWLoss
    >>> display = PairWeightDisplay.from_loss(RAWLoss())
    >>> display = PairWeightDisplay.from_loss(BinomialDevianceLoss(beta=2.0), ax=display.ax_)
    >>> display.ax_.get_xlabel()
    'Similarity of the pair'
    """

    def __init__(self, similarity, positive_weights, negative_weights, *, name=None):
        self.similarity = similarity
        self.positive_weights = positive_weights
        self.negative_weights = negative_weights
        self.name = name

    @classmethod
    def from_loss(cls, loss, *, positives=(0.4, 0.6), negatives=(0.4, 0.6), n_points=201, name=None, ax=None) -> Self:
        """Compute the weights of a loss and plot them.

        Parameters
        ----------
        loss : PairLoss, or loss of pytorch-metric-learning
            As for `pair_weights`.
        positives : sequence of float, default=(0.4, 0.6)
            Similarities of the anchor's other positives, in [-1, 1]; may be empty.
        negatives : sequence of float, default=(0.4, 0.6)
            Similarities of its other negatives, all of one class.
        n_points : int, default=201
            Number of similarities from -1 to 1 to compute.
        name : str or None, default=None
            Name of the loss in the legend. None: its class name.
        ax : matplotlib Axes or None, default=None
            Axes to plot on; a second loss on the same axes takes another color. None: a new figure.

        Returns
        -------
        PairWeightDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If `pair_weights` does not take the loss.
        ValueError
            If a similarity is outside [-1, 1].
        """
        fixed = np.array([*positives, *negatives], dtype=np.float64)
        if not (np.abs(fixed) <= 1).all():
            raise ValueError(
                f"Similarities must lie in [-1, 1]; got positives={positives!r} and negatives={negatives!r}."
            )
        is_negative = np.repeat([0, 1], [len(positives), len(negatives)])
        similarity = np.linspace(-1, 1, n_points)
        weights = np.empty((2, n_points))
        for c in (0, 1):
            y = np.concatenate([[0, c], is_negative])
            for k, s in enumerate(similarity):
                weights[c, k] = pair_weights(loss, _around_an_anchor(np.append(s, fixed)), y)[0, 1]
        return cls(similarity, *weights, name=type(loss).__name__ if name is None else name).plot(ax=ax)

    def plot(self, ax=None) -> Self:
        """Plot the two curves.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        PairWeightDisplay
            The display itself, with ``ax_``, ``figure_`` and ``lines_``.
        """
        if ax is None:
            ax = new_axes(self)
        color = COLORS[len(ax.lines) // 2 % len(COLORS)]
        prefix = "" if self.name is None else f"{self.name}, "
        self.lines_ = [
            *ax.plot(self.similarity, self.positive_weights, "-", color=color, label=f"{prefix}positive pair"),
            *ax.plot(self.similarity, self.negative_weights, ":", color=color, label=f"{prefix}negative pair"),
        ]
        ax.set(xlabel="Similarity of the pair", ylabel="Weight of the pair", xlim=(-1, 1))
        ax.legend()
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


def _around_an_anchor(similarities):
    """Return unit rows (B, B): the first is the anchor, the others have these dot products with it."""
    n = len(similarities)
    rows = np.eye(n + 1)
    rows[1:, 0] = similarities
    rows[1:, 1:] *= np.sqrt(1 - similarities**2)
    return rows
