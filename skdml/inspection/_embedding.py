"""A map of the embeddings."""

from typing import Self

import numpy as np
from sklearn.utils import check_random_state

from .._labels import number_labels, read_labels
from ._drawing import (
    COLORS,
    MARKERS,
    check_embeddings,
    check_images,
    class_name,
    draw_tile,
    embed,
    find_images,
    legend_label,
    make_tiles,
    new_axes,
    set_view,
)

_MAX_LEGEND = 12
_THUMBNAILS_A_SIDE = 20


class EmbeddingDisplay:
    """A map of embeddings by t-SNE, with thumbnails where the samples are images.

    Each dot is a sample; its color and marker show its class. Thumbnails cover some of the dots, where there is room.

    It is recommended to use `from_estimator` or `from_embeddings` to create one. See :doc:`/inspection` for how to read
    the plot.

    Parameters
    ----------
    points : ndarray of shape (n_points, 2)
        Positions on the map.
    y : ndarray of shape (n_points,)
        Class of each point.
    rows : ndarray of shape (n_points,)
        Row of each point in the data.
    thumbnails : dict of int to ndarray, default=None
        Images, uint8 of shape (H, W) or (H, W, C), of some of the points, by their indices in ``points``. None: there
        are no images.
    name : str or None, default=None
        The title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the map.
    figure_ : matplotlib Figure
        Figure that contains the axes.

    Notes
    -----
    t-SNE preserves neighborhoods [1]_. Distances between groups, their sizes and their densities on the map mean
    nothing.

    References
    ----------
    .. [1] L. van der Maaten and G. Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skdml.inspection import EmbeddingDisplay
    >>> display = EmbeddingDisplay.from_embeddings(*load_iris(return_X_y=True), subsample=60, random_state=0)
    >>> display.points.shape
    (60, 2)
    """

    def __init__(self, *, points, y, rows, thumbnails=None, name=None):
        self.points = points
        self.y = y
        self.rows = rows
        self.thumbnails = thumbnails
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, X, y, *, subsample=1000, random_state=None, name=None, ax=None) -> Self:
        """Embed the samples, place them by the cosines of their embeddings and plot the map.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            Estimator whose embeddings are shown.
        X : array-like of shape (n_samples, ...)
            Anything that ``estimator.transform`` takes. Images and image files are shown as thumbnails.
        y : array-like of shape (n_samples,)
            Class of each sample.
        subsample : int or None, default=1000
            At most this many samples, drawn at random. None: all.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw, the choice of the thumbnails and t-SNE.
        name : str or None, default=None
            The title. None: the class name of the estimator.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        EmbeddingDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If the estimator has no ``transform``.
        ValueError
            As for `from_embeddings`.
        """
        return cls.from_embeddings(
            embed(estimator, X),
            y,
            images=find_images(X),
            subsample=subsample,
            random_state=random_state,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
        )

    @classmethod
    def from_embeddings(
        cls, embeddings, y, *, images=None, metric="cosine", subsample=1000, random_state=None, name=None, ax=None
    ) -> Self:
        """Place the embeddings and plot the map.

        Parameters
        ----------
        embeddings : array-like of shape (n_samples, n_components)
            At least 4 rows and 2 components.
        y : array-like of shape (n_samples,)
            Class of each row.
        images : array-like of shape (n_samples, ...) or None, default=None
            uint8 (n, H, W) or (n, H, W, C); float (n, C, H, W), each stretched to its own range; or paths of image
            files, of which only those shown are opened. None: only dots.
        metric : {"cosine", "euclidean"}, default="cosine"
            How t-SNE compares the rows.
        subsample : int or None, default=1000
            At most this many samples, drawn at random. None: all.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw, the choice of the thumbnails and t-SNE.
        name : str or None, default=None
            The title.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        EmbeddingDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the lengths differ, a value is not finite, the images are of an unsupported kind, there are fewer than 4
            samples or 2 components, or all embeddings are equal.

        Notes
        -----
        The perplexity of t-SNE is 30, or a third of the number of samples if there are fewer than 90.
        """
        images = check_images(images)
        Z, y = check_embeddings(embeddings, y, images=images)
        n = len(Z) if subsample is None else min(subsample, len(Z))
        if n < 4 or Z.shape[1] < 2:
            raise ValueError(f"A map needs at least 4 samples and 2 components; got {n} and {Z.shape[1]}.")
        rng = check_random_state(random_state)
        rows = rng.permutation(len(Z))[:n]
        Z = Z[rows] / (np.abs(Z).max() or 1)  # t-SNE does not depend on the scale, but its rounding does
        if np.ptp(Z, axis=0).max() < 1e-6:
            raise ValueError(
                "The embeddings are all equal, so there is nothing to map: the network has collapsed. Look at the loss "
                "(HistoryDisplay), and train with a lower learning_rate."
            )
        from sklearn.manifold import TSNE  # here, since it is slow to import

        tsne = TSNE(metric=metric, perplexity=min(30, n / 3), random_state=rng)
        points = tsne.fit_transform(Z.astype(np.float32))
        thumbnails = None
        if images is not None:
            chosen = _spread(points, np.ptp(points, axis=0).max() / _THUMBNAILS_A_SIDE)
            thumbnails = dict(zip(chosen, make_tiles(rows[chosen], y, images), strict=True))
        return cls(points=points, y=y[rows], rows=rows, thumbnails=thumbnails, name=name).plot(ax=ax)

    def plot(self, ax=None) -> Self:
        """Plot the map.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        EmbeddingDisplay
            The display itself, with ``ax_`` and ``figure_``.
        """
        side = np.ptp(self.points, axis=0).max() / _THUMBNAILS_A_SIDE
        low, high = self.points.min(axis=0) - side, self.points.max(axis=0) + side
        classes, (codes,) = number_labels(read_labels(self.y))
        has_legend = len(classes) <= _MAX_LEGEND
        if ax is None:
            width, height = high - low
            ax = new_axes(self, (7 + 1.3 * has_legend, 0.6 + 7 * height / width))
        for c, label in enumerate(classes):
            style = {"color": COLORS[c % len(COLORS)], "marker": MARKERS[c % len(MARKERS)]}
            style["label"] = legend_label(class_name(label, 24))
            ax.scatter(*self.points[codes == c].T, s=25, linewidth=0, **style)
        for i, image in (self.thumbnails or {}).items():
            color = COLORS[codes[i] % len(COLORS)]
            x, y = self.points[i]
            draw_tile(ax, x, y, image, side=side, color=color, linewidth=1)
        set_view(ax, low, high)
        if has_legend:
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        note = "" if self.thumbnails is None else ", thumbnails where there is room"
        ax.set_xlabel(f"t-SNE of {len(self.y)} embeddings, {len(classes)} classes{note}")
        if self.name is not None:
            ax.set_title(self.name)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


def _spread(points, side):
    """Return the indices of points whose squares do not overlap, chosen in the order of the points."""
    chosen = []
    for i, point in enumerate(points):
        if not chosen or np.abs(points[chosen] - point).max(axis=1).min() >= side:
            chosen.append(i)
    return chosen
