"""Plot of the history of a fit over its epochs."""

from numbers import Real
from typing import Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ._drawing import COLORS, LINE_STYLES, last_step, legend_label, new_axes

_LABELS = {
    "loss": "loss",
    "validation_recall_at_1": "Recall@1 of the held-out samples",
    "duration": "duration of the epoch in seconds",
}


class HistoryDisplay:
    """A training measure over the epochs.

    Each further display on the same axes takes another color and line style. With early stopping, a circle marks the
    epoch with the highest validation Recall@1.

    It is recommended to use `from_estimator` to create one. See :doc:`/inspection` for how to read the plot.

    Parameters
    ----------
    history : list of dict
        One dict per epoch, as in ``history_`` of an embedder: "epoch", and the measure.
    measure : str, default="loss"
        Measure to show: "loss", "validation_recall_at_1", or another key of the history.
    name : str or None, default=None
        Name of the line in the legend. None: no legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    line_ : matplotlib Line2D
        The curve.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skdml import NormSoftmaxEmbedder
    >>> from skdml.inspection import HistoryDisplay
    >>> embedder = NormSoftmaxEmbedder(max_epochs=3, random_state=0).fit(*load_iris(return_X_y=True))
    >>> display = HistoryDisplay.from_estimator(embedder)
    >>> display.line_.get_xdata().tolist()
    [1, 2, 3]
    """

    def __init__(self, history, *, measure="loss", name=None):
        self.history = history
        self.measure = measure
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, *, measure="loss", name=None, ax=None) -> Self:
        """Plot the history of a fitted embedder.

        Parameters
        ----------
        estimator : fitted embedder or Pipeline that ends in one
            Estimator whose ``history_`` is shown.
        measure : str, default="loss"
            Measure to show: "loss"; "validation_recall_at_1", with ``early_stopping``; or another key of the history,
            such as one that a callback recorded.
        name : str or None, default=None
            Name of the line in the legend. None: the class name of the embedder.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        HistoryDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If the estimator has no history.
        ValueError
            If the history does not hold the measure.
        """
        embedder = last_step(estimator)
        check_is_fitted(embedder)
        if not hasattr(embedder, "history_"):
            raise TypeError(f"{type(embedder).__name__} has no history_. Pass a fitted embedder of skdml.")
        name = type(embedder).__name__ if name is None else name
        return cls(embedder.history_, measure=measure, name=name).plot(ax=ax)

    def plot(self, ax=None) -> Self:
        """Plot the curve.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None: a new figure.

        Returns
        -------
        HistoryDisplay
            The display itself, with ``ax_``, ``figure_`` and ``line_``.

        Raises
        ------
        ValueError
            If the history does not hold the measure.
        """
        recorded = {key for epoch in self.history for key, value in epoch.items() if isinstance(value, Real)} - {
            "epoch"
        }
        if self.measure not in recorded:
            hint = " Fit with early_stopping=True to record it." if self.measure == "validation_recall_at_1" else ""
            raise ValueError(f"The history holds {sorted(recorded)}, not {self.measure!r}.{hint}")
        if ax is None:
            ax = new_axes(self)
        i = len(ax.lines)
        color = COLORS[i % len(COLORS)]
        epochs = [epoch["epoch"] for epoch in self.history]
        values = [epoch.get(self.measure, np.nan) for epoch in self.history]  # a warm start may record other measures
        style = {"color": color, "marker": "o" if len(epochs) == 1 else None, "label": legend_label(self.name)}
        (self.line_,) = ax.plot(epochs, values, LINE_STYLES[i % len(LINE_STYLES)], **style)
        recall = [epoch.get("validation_recall_at_1", np.nan) for epoch in self.history]
        if not np.isnan(recall).all():
            best = np.nanargmax(recall)
            ax.scatter(epochs[best], values[best], s=80, facecolor="none", edgecolor=color, linewidth=2)
            ax.set_xlabel("epoch (circle: highest validation Recall@1)")
        elif not ax.get_xlabel():
            ax.set_xlabel("epoch")
        ax.set_ylabel(_LABELS.get(self.measure, self.measure))
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if self.name is not None:
            ax.legend()
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
