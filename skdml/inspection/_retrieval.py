"""Plot of queries and the samples that they retrieve."""

from numbers import Integral
from typing import Self

import numpy as np
from sklearn.utils import check_random_state

from .._labels import number_labels
from ..metrics._rows import check_gallery, check_index
from ._drawing import (
    check_embeddings,
    check_images,
    draw_mark,
    draw_tile,
    embed,
    find_images,
    make_tiles,
    new_axes,
    set_view,
)

_GREEN, _RED = "#009E73", "#D55E00"  # distinct for color-blind readers too


class RetrievalDisplay:
    """Queries, one per row, and their neighbors, nearest first.

    A solid green frame with a check mark is a neighbor of the query's class; a dashed red one with a cross is a
    neighbor of another class. Samples without an image are shown by their row number, or a text of the caller, and
    their class.

    It is recommended to use `from_estimator` or `from_embeddings` to create one. See :doc:`/inspection` for how to read
    the plot.

    Parameters
    ----------
    queries : ndarray of shape (n_queries,)
        The rows of the queries.
    neighbors : ndarray of shape (n_queries, n_neighbors)
        The rows of their neighbors among the samples, or in the gallery if there is one.
    is_correct : ndarray of shape (n_queries, n_neighbors)
        Whether each neighbor is of the query's class.
    query_tiles : list of ndarray or str
        How each query is shown: an image, uint8 of shape (H, W) or (H, W, C), or a text.
    neighbor_tiles : list of list of ndarray or str
        How its neighbors are shown.
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
    skdml.metrics.recall_at_k : Share of all queries with a correct neighbor among the first k.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from skdml.inspection import RetrievalDisplay
    >>> digits = load_digits()
    >>> Z = PCA(8, random_state=0).fit_transform(digits.data)
    >>> images = (digits.images * 15).astype("uint8")
    >>> display = RetrievalDisplay.from_embeddings(Z, digits.target, images=images, queries=[0, 1, 2], n_neighbors=4)
    >>> display.neighbors.shape
    (3, 4)
    """

    def __init__(self, *, queries, neighbors, is_correct, query_tiles, neighbor_tiles, name=None):
        self.queries = queries
        self.neighbors = neighbors
        self.is_correct = is_correct
        self.query_tiles = query_tiles
        self.neighbor_tiles = neighbor_tiles
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        gallery=None,
        gallery_y=None,
        gallery_index=None,
        queries=8,
        n_neighbors=8,
        random_state=None,
        name=None,
        ax=None,
    ) -> Self:
        """Embed the samples, find the neighbors by cosine and plot them.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            Estimator whose embeddings are searched.
        X : array-like of shape (n_samples, ...)
            Anything that ``estimator.transform`` takes. Images and image files are shown; other samples are shown by
            their row numbers.
        y : array-like of shape (n_samples,)
            Class of each sample.
        gallery : array-like of shape (n_gallery, ...) or None, default=None
            Samples like X among which neighbors are searched for. None: X, each query without itself.
        gallery_y : array-like of shape (n_gallery,) or None, default=None
            Class of each of them.
        gallery_index : array-like of shape (n_samples,) or None, default=None
            For each sample, its own row in the gallery, which it does not find; -1 for none.
        queries : int or sequence of int, default=8
            The rows of the queries, or how many to draw at random from those with a sample of their class to find; all
            of these if there are fewer.
        n_neighbors : int, default=8
            Neighbors per query, >= 1.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw.
        name : str or None, default=None
            The title. None: the class name of the estimator.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        RetrievalDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If the estimator has no ``transform``.
        ValueError
            As for `from_embeddings`.
        """
        has_gallery = gallery is not None
        return cls.from_embeddings(
            embed(estimator, X),
            y,
            images=find_images(X),
            gallery=embed(estimator, gallery) if has_gallery else None,
            gallery_y=gallery_y,
            gallery_index=gallery_index,
            gallery_images=find_images(gallery) if has_gallery else None,
            queries=queries,
            n_neighbors=n_neighbors,
            random_state=random_state,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
        )

    @classmethod
    def from_embeddings(
        cls,
        embeddings,
        y,
        *,
        images=None,
        texts=None,
        gallery=None,
        gallery_y=None,
        gallery_index=None,
        gallery_images=None,
        gallery_texts=None,
        metric="cosine",
        queries=8,
        n_neighbors=8,
        random_state=None,
        name=None,
        ax=None,
    ) -> Self:
        """Find the neighbors and plot them.

        Parameters
        ----------
        embeddings : array-like of shape (n_samples, n_components)
            Embeddings, which include the queries.
        y : array-like of shape (n_samples,)
            Class of each row.
        images : array-like of shape (n_samples, ...) or None, default=None
            uint8 (n, H, W) or (n, H, W, C); float (n, C, H, W), each stretched to its own range; or paths of image
            files, of which only those shown are opened.
        texts : sequence of str or None, default=None
            Texts such as titles, shown with the class if there are no images. None: the row numbers.
        gallery : array-like of shape (n_gallery, n_components) or None, default=None
            Rows among which neighbors are searched for. None: the embeddings, each query without itself.
        gallery_y, gallery_images, gallery_texts : array-like or None, default=None
            Like ``y``, ``images`` and ``texts``, but for the gallery.
        gallery_index : array-like of shape (n_samples,) or None, default=None
            For each sample, its own row in the gallery, which it does not find; -1 for none.
        metric : {"cosine", "euclidean"}, default="cosine"
            Whether the nearest row has the largest cosine or the smallest Euclidean distance.
        queries : int or sequence of int, default=8
            The rows of the queries, or how many to draw at random from those with a sample of their class to find; all
            of these if there are fewer.
        n_neighbors : int, default=8
            Neighbors per query, >= 1.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw.
        name : str or None, default=None
            The title.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        RetrievalDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the lengths differ, a value is not finite, the images are of an unsupported kind, there are fewer than
            ``n_neighbors`` samples to find, ``queries`` holds a row that does not exist, or no query has a sample of
            its class to find.
        """
        check_gallery(gallery, gallery_y, gallery_index=gallery_index)
        images = check_images(images)
        Z, y = check_embeddings(embeddings, y, images=images, texts=texts)
        own = None
        if gallery is None:
            gallery, gallery_y, gallery_images, gallery_texts = Z, y, images, texts
            own = np.arange(len(Z))
        else:
            gallery_images = check_images(gallery_images)
            gallery, gallery_y = check_embeddings(
                gallery, gallery_y, "gallery_y", images=gallery_images, texts=gallery_texts
            )
            if gallery_index is not None:
                own = check_index(gallery_index, (len(Z), len(gallery))).numpy()
        codes, gallery_codes = number_labels(y, gallery_y)[1]
        n_own = 0 if own is None else 1
        if not 1 <= n_neighbors <= len(gallery) - n_own:
            raise ValueError(
                f"n_neighbors must be in 1..{len(gallery) - n_own}, as there are no more samples to find; got "
                f"{n_neighbors!r}."
            )
        if isinstance(queries, Integral):
            queries = _draw(queries, codes, gallery_codes, own, check_random_state(random_state))
        queries = np.asarray(queries)
        if queries.ndim != 1 or queries.dtype.kind not in "iu" or not np.isin(queries, np.arange(len(Z))).all():
            raise ValueError(f"queries must be rows in 0..{len(Z) - 1}; got {queries.tolist()!r}.")
        from sklearn.neighbors import NearestNeighbors  # here, since it is slow to import

        search = NearestNeighbors(n_neighbors=n_neighbors + n_own, metric=metric, algorithm="brute").fit(gallery)
        neighbors = search.kneighbors(Z[queries], return_distance=False)
        if own is not None:
            # Leave out the query itself, which among many equal rows may not be the first, or not be found.
            rows = zip(own[queries], neighbors, strict=True)
            neighbors = np.array([row[row != itself][:n_neighbors] for itself, row in rows])
        return cls(
            queries=queries,
            neighbors=neighbors,
            is_correct=gallery_codes[neighbors] == codes[queries, None],
            query_tiles=make_tiles(queries, y, images, texts),
            neighbor_tiles=[make_tiles(row, gallery_y, gallery_images, gallery_texts) for row in neighbors],
            name=name,
        ).plot(ax=ax)

    def plot(self, ax=None) -> Self:
        """Plot the queries and their neighbors.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        RetrievalDisplay
            The display itself, with ``ax_`` and ``figure_``.
        """
        n_queries, n_neighbors = self.neighbors.shape
        has_texts = isinstance(self.query_tiles[0], str)
        if ax is None:
            side = 0.85 if has_texts else 0.6  # inches
            ax = new_axes(self, (max(4, side * (n_neighbors + 1.2)), side * n_queries + 1))
        for i in range(n_queries):
            draw_tile(ax, 0, -i, self.query_tiles[i])
            for j, (tile, is_correct) in enumerate(zip(self.neighbor_tiles[i], self.is_correct[i], strict=True)):
                color, style = (_GREEN, "-") if is_correct else (_RED, (0, (2.2, 1.4)))
                draw_tile(ax, j + 1.2, -i, tile, color=color, linestyle=style)
                draw_mark(ax, j + 1.2, -i, is_correct, color)
        set_view(ax, (-0.5, 0.5 - n_queries), (n_neighbors + 0.7, 0.5))
        ax.set_xticks([0, *(np.arange(n_neighbors) + 1.2)], ["query", *range(1, n_neighbors + 1)])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("solid: query's class; dashed: another class" + "\nno images: names and classes" * has_texts)
        if self.name is not None:
            ax.set_title(self.name)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


def _draw(n_queries, y, gallery_y, own, rng):
    """Return the sorted rows of at most n_queries queries that have something to find besides their own rows."""
    if n_queries < 1:
        raise ValueError(f"queries must be at least 1, or a sequence of rows; got {n_queries}.")
    found, size = np.unique(gallery_y, return_counts=True)
    is_candidate = has_class = np.isin(y, found)
    if own is not None:
        finds_itself = (own >= 0) & (gallery_y[own] == y)
        is_candidate = np.where(finds_itself, np.isin(y, found[size > 1]), has_class)
    candidates = np.flatnonzero(is_candidate)
    if len(candidates) == 0:
        reason = "no class has two samples" if has_class.any() else "the gallery has other classes"
        raise ValueError(
            f"No query has a sample of its class to find: {reason}. To see what they find anyway, pass rows as queries."
        )
    return np.sort(rng.choice(candidates, min(n_queries, len(candidates)), replace=False))
