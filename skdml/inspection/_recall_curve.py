"""Plot of Recall@K over K."""

from typing import Self

import numpy as np

from ..metrics import recall_at_k
from ._drawing import COLORS, LINE_STYLES, MARKERS, embed, legend_label, new_axes

_MAX_TICKS = 10  # more would overlap


class RecallCurveDisplay:
    """Recall@K over K, one line per estimator.

    Each further display on the same axes takes another color, line style and marker.

    It is recommended to use `from_estimator` or `from_embeddings` to create one. See :doc:`/inspection` for how to read
    the plot.

    Parameters
    ----------
    k : sequence of int
        The numbers of neighbors, >= 1.
    recall : ndarray of shape (len(k),)
        Recall@K for each of them, in [0, 1].
    name : str or None, default=None
        Name of the line in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    line_ : matplotlib Line2D
        The curve.

    See Also
    --------
    skdml.metrics.recall_at_k : Definition of Recall@K.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from skdml.inspection import RecallCurveDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> display = RecallCurveDisplay.from_estimator(PCA(2).fit(X), X, y, name="PCA(2)")
    >>> display = RecallCurveDisplay.from_estimator(PCA(8).fit(X), X, y, name="PCA(8)", ax=display.ax_)
    >>> display.line_.get_label()
    'PCA(8) (Recall@1 = 0.96)'
    """

    def __init__(self, *, k, recall, name=None):
        self.k = k
        self.recall = recall
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        k=(1, 2, 4, 8, 16, 32),
        gallery=None,
        gallery_y=None,
        gallery_index=None,
        groups=None,
        gallery_groups=None,
        name=None,
        ax=None,
    ) -> Self:
        """Embed the samples, compute Recall@K by cosine and plot it.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            Estimator to score.
        X : array-like of shape (n_samples, ...)
            The queries, anything that ``estimator.transform`` takes.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class of each sample, or its labels, 0 and 1.
        k : sequence of int, default=(1, 2, 4, 8, 16, 32)
            The numbers of neighbors, >= 1.
        gallery : array-like of shape (n_gallery, ...) or None, default=None
            Samples like X among which neighbors are searched for. None: X, each query without itself.
        gallery_y : array-like of shape (n_gallery,) or None, default=None
            Class of each of them.
        gallery_index : array-like of shape (n_samples,) or None, default=None
            For each query, the row of the gallery that is the query itself, which is left out; -1 for none.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of each query, such as its camera: samples of the query's class and group are left out.
        gallery_groups : array-like of shape (n_gallery,) or None, default=None
            Group of each sample of the gallery.
        name : str or None, default=None
            Name of the line in the legend. None: the class name of the estimator.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        RecallCurveDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If the estimator has no ``transform``.
        ValueError
            As for :func:`~skdml.metrics.recall_at_k`.
        """
        return cls.from_embeddings(
            embed(estimator, X),
            y,
            k=k,
            gallery=None if gallery is None else embed(estimator, gallery),
            gallery_y=gallery_y,
            gallery_index=gallery_index,
            groups=groups,
            gallery_groups=gallery_groups,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
        )

    @classmethod
    def from_embeddings(
        cls,
        embeddings,
        y,
        *,
        k=(1, 2, 4, 8, 16, 32),
        gallery=None,
        gallery_y=None,
        gallery_index=None,
        groups=None,
        gallery_groups=None,
        metric="cosine",
        name=None,
        ax=None,
    ) -> Self:
        """Compute Recall@K and plot it.

        Parameters
        ----------
        embeddings : array-like or torch.Tensor of shape (n_samples, n_components)
            The queries.
        y : array-like or torch.Tensor of shape (n_samples,) or (n_samples, n_labels)
            Class of each row, or its labels, 0 and 1.
        k : sequence of int, default=(1, 2, 4, 8, 16, 32)
            The numbers of neighbors, >= 1.
        gallery : array-like or torch.Tensor of shape (n_gallery, n_components) or None, default=None
            Rows among which neighbors are searched for. None: the queries, each without itself.
        gallery_y : array-like or torch.Tensor of shape (n_gallery,) or None, default=None
            Class of each of them.
        gallery_index : array-like or torch.Tensor of shape (n_samples,) or None, default=None
            For each query, the row of the gallery that is the query itself, which is left out; -1 for none.
        groups : array-like or torch.Tensor of shape (n_samples,) or None, default=None
            Group of each query, such as its camera: samples of the query's class and group are left out.
        gallery_groups : array-like or torch.Tensor of shape (n_gallery,) or None, default=None
            Group of each sample of the gallery.
        metric : {"cosine", "euclidean"}, default="cosine"
            Whether the nearest row has the largest cosine or the smallest Euclidean distance.
        name : str or None, default=None
            Name of the line in the legend.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        RecallCurveDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            As for :func:`~skdml.metrics.recall_at_k`.
        """
        k = np.atleast_1d(k).tolist()
        recall = recall_at_k(
            embeddings,
            y,
            k,
            gallery=gallery,
            gallery_y=gallery_y,
            gallery_index=gallery_index,
            groups=groups,
            gallery_groups=gallery_groups,
            metric=metric,
        )
        return cls(k=k, recall=recall, name=name).plot(ax=ax)

    def plot(self, ax=None) -> Self:
        """Plot the curve.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        RecallCurveDisplay
            The display itself, with ``ax_``, ``figure_`` and ``line_``.
        """
        if ax is None:
            ax = new_axes(self)
        score = f"Recall@{self.k[0]} = {self.recall[0]:.2f}"
        i = len(ax.lines)
        (self.line_,) = ax.plot(
            self.k,
            self.recall,
            color=COLORS[i % len(COLORS)],
            linestyle=LINE_STYLES[i % len(LINE_STYLES)],
            marker=MARKERS[i % len(MARKERS)],
            label=score if self.name is None else legend_label(f"{self.name} ({score})"),
        )
        ax.set_xscale("log", base=2)
        k = np.unique([x for line in ax.lines for x in line.get_xdata() if x >= 1])  # also those of other displays
        if len(k) <= _MAX_TICKS:
            ax.set_xticks(k)
            ax.set_xticks([], minor=True)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="K", ylabel="Recall@K")
        ax.legend(loc="lower right")
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
