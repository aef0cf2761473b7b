"""Plot of the centers that SoftTriple learned."""

from numbers import Integral
from typing import Self

import numpy as np
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .._labels import number_labels, read_labels
from .._methods.soft_triple import merge_centers
from ._drawing import (
    COLORS,
    check_embeddings,
    check_images,
    class_name,
    draw_text,
    draw_tile,
    embed,
    find_images,
    last_step,
    make_tiles,
    new_axes,
    set_view,
)


class CentersDisplay:
    """The distinct centers of some classes, and the samples nearest to each.

    Each row is a class, and each group of tiles in it is a center: the samples of the class that are nearest to it. The
    number above counts the samples whose nearest center it is; the frame of a sample that is nearer to another center
    is dotted. Centers closer than 0.1 count as one, as in ``SoftTripleEmbedder.n_centers_per_class_``.

    It is recommended to use `from_estimator` or `from_embeddings` to create one. See :doc:`/inspection` for how to read
    the plot.

    Parameters
    ----------
    classes : list of shape (n_classes,)
        The classes shown.
    sizes : list of n_classes lists of int
        For each distinct center of a class, the number of samples whose nearest center it is, largest first.
    is_own : list of n_classes lists of ndarray of shape (n_samples,)
        Whether each sample shown for a center has no nearer center.
    tiles : list of n_classes lists of lists of ndarray or str
        How these samples are shown: an image, uint8 of shape (H, W) or (H, W, C), or a text.
    name : str or None, default=None
        The title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the plot.
    figure_ : matplotlib Figure
        Figure that contains the axes.

    See Also
    --------
    skdml.SoftTripleEmbedder : Learns several centers per class.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skdml import SoftTripleEmbedder
    >>> from skdml.inspection import CentersDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> embedder = SoftTripleEmbedder(n_centers=3, max_epochs=2, random_state=0).fit(X, y)
    >>> display = CentersDisplay.from_estimator(embedder, X, y, classes=[0, 2])
    >>> [len(sizes) for sizes in display.sizes]
    [3, 3]
    """

    def __init__(self, *, classes, sizes, is_own, tiles, name=None):
        self.classes = classes
        self.sizes = sizes
        self.is_own = is_own
        self.tiles = tiles
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, X, y, *, classes=6, n_samples=2, random_state=None, name=None, ax=None) -> Self:
        """Embed the samples, compare them with the centers of their classes and plot those nearest to each.

        Parameters
        ----------
        estimator : fitted SoftTripleEmbedder or Pipeline that ends in one
            Estimator whose centers are shown.
        X : array-like of shape (n_samples, ...)
            Anything that ``estimator.transform`` takes, such as the training data. Images and image files are shown;
            other samples are shown by their row numbers.
        y : array-like of shape (n_samples,)
            Class of each sample. Classes that were not in the training data have no centers and are left out.
        classes : int or sequence, default=6
            The classes to show, or how many to draw at random; all if there are fewer.
        n_samples : int, default=2
            Samples per center, >= 1; all of the class if there are fewer.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw.
        name : str or None, default=None
            The title. None: the class name of the estimator.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        CentersDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If the estimator is not a SoftTripleEmbedder.
        ValueError
            If a class has no centers or no samples, and as for `from_embeddings`.
        """
        embedder = last_step(estimator)
        check_is_fitted(embedder)
        if not hasattr(embedder, "centers_"):
            raise TypeError(
                f"{type(embedder).__name__} has no centers_. Pass a fitted SoftTripleEmbedder, or your own centers "
                "to from_embeddings."
            )
        centers = dict(zip(_as_list(embedder.classes_), embedder.centers_, strict=True))
        if isinstance(classes, Integral):
            found, codes = number_labels(embedder.classes_, read_labels(y))
            both = np.intersect1d(*codes)  # ascending
            if classes < 1 or len(both) == 0:
                raise ValueError(
                    f"There are no classes to show: classes={classes} must be at least 1, and y shares {len(both)} "
                    f"classes with the training data, whose {len(centers)} classes have centers."
                )
            rng = check_random_state(random_state)
            classes = _as_list(found[np.sort(rng.choice(both, min(classes, len(both)), replace=False))])
        unknown = [label for label in classes if label not in centers]
        if unknown:
            raise ValueError(f"The classes {unknown!r} were not in the training data, so they have no centers.")
        return cls.from_embeddings(
            embed(estimator, X),
            y,
            {label: centers[label] for label in classes},
            images=find_images(X),
            n_samples=n_samples,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
        )

    @classmethod
    def from_embeddings(
        cls, embeddings, y, centers, *, images=None, texts=None, n_samples=2, name=None, ax=None
    ) -> Self:
        """Compare embeddings with the centers of their classes and plot those nearest to each.

        Parameters
        ----------
        embeddings : array-like of shape (n_samples, n_components)
            Embeddings, compared with the centers by cosine.
        y : array-like of shape (n_samples,)
            Class of each row.
        centers : dict of class to array-like of shape (n_centers, n_components)
            The classes to show, and the centers of each.
        images : array-like of shape (n_samples, ...) or None, default=None
            uint8 (n, H, W) or (n, H, W, C); float (n, C, H, W), each stretched to its own range; or paths of image
            files, of which only those shown are opened.
        texts : sequence of str or None, default=None
            Texts such as titles, shown with the class if there are no images. None: the row numbers.
        n_samples : int, default=2
            Samples per center, >= 1; all of the class if there are fewer.
        name : str or None, default=None
            The title.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        CentersDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the lengths differ, a value is not finite, the images are of an unsupported kind, ``n_samples`` < 1,
            there is no class, or a class has no samples or has centers of another dimension.
        """
        images = check_images(images)
        Z, y = check_embeddings(embeddings, y, images=images, texts=texts)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}.")
        if not centers:
            raise ValueError("centers must hold at least one class, got none.")
        found, (codes,) = number_labels(y)
        code = {label: c for c, label in enumerate(_as_list(found))}
        sizes, is_own, tiles = [], [], []
        for label, W in centers.items():
            W = np.asarray(W)
            if W.ndim != 2 or W.shape[1] != Z.shape[1]:
                raise ValueError(
                    f"The centers of a class must have shape (n_centers, {Z.shape[1]}), as the embeddings have "
                    f"{Z.shape[1]} components; got {W.shape} for class {label!r}."
                )
            rows = np.flatnonzero(codes == code.get(label, -1))
            if len(rows) == 0:
                raise ValueError(f"Class {label!r} has centers but no sample in y.")
            W = normalize(W)
            group = merge_centers(W[None])[0]
            W = normalize([W[group == g].mean(axis=0) for g in np.unique(group)])  # (K, D), distinct
            similarity = normalize(Z[rows]) @ W.T  # (n, K)
            nearest = similarity.argmax(axis=1)  # (n,)
            size = np.bincount(nearest, minlength=len(W))
            order = np.argsort(-size, kind="stable")
            shown = (-similarity[:, order]).argsort(axis=0, kind="stable")[:n_samples].T  # (K, n_samples)
            sizes.append(size[order].tolist())
            is_own.append(list(nearest[shown] == order[:, None]))
            tiles.append([make_tiles(rows[near], y, images, texts) for near in shown])
        return cls(classes=list(centers), sizes=sizes, is_own=is_own, tiles=tiles, name=name).plot(ax=ax)

    def plot(self, ax=None) -> Self:
        """Plot the centers.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        CentersDisplay
            The display itself, with ``ax_`` and ``figure_``.
        """
        gap, height = 0.35, 1.3  # between groups; of a row including the numbers above its tiles
        n_columns = max(sum(len(group) + gap for group in groups) - gap for groups in self.tiles)
        has_texts = isinstance(self.tiles[0][0][0], str)
        if ax is None:
            side = min(0.85 if has_texts else 0.6, 12 / n_columns)  # inches
            ax = new_axes(self, (max(5, side * n_columns + 1.3), side * height * len(self.classes) + 1))
        for i, (sizes, owns, groups) in enumerate(zip(self.sizes, self.is_own, self.tiles, strict=True)):
            x = 0.0
            for size, is_own, group in zip(sizes, owns, groups, strict=True):
                draw_text(ax, x + (len(group) - 1) / 2, 0.57 - i * height, f"{size}", letter=0.22, width=1)
                for own, tile in zip(is_own, group, strict=True):
                    style = {"color": COLORS[0]} if own else {"color": "0.6", "linestyle": ":"}
                    draw_tile(ax, x, -i * height, tile, **style)
                    x += 1
                x += gap
        set_view(ax, (-0.5, -0.5 - (len(self.classes) - 1) * height), (n_columns - 0.5, height - 0.5))
        ax.set_yticks(
            [-i * height for i in range(len(self.classes))],
            [
                f"{class_name(label)}\n{len(sizes)} distinct center{'s' * (len(sizes) > 1)}"
                for label, sizes in zip(self.classes, self.sizes, strict=True)
            ],
        )
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel(
            "group: the samples most similar to a center\nnumber: samples whose nearest center it is\n"
            "dotted: another center is nearer" + "\nno images: names and classes" * has_texts,
            loc="right",
        )
        if self.name is not None:
            ax.set_title(self.name)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


def _as_list(classes):
    """Return the classes as Python objects; dates remain NumPy's, since those of nanoseconds would become integers."""
    return list(classes) if classes.dtype.kind in "mM" else classes.tolist()
