"""Shared parts of the displays: colors, axes, and the tile that represents a sample.

A tile is an image, as matplotlib's imshow takes it, or a text. It is a square with side 1 in data units, in which the
letters and marks on it are measured too, so that they keep their places at any size of the figure.
"""

import os
import textwrap

import numpy as np
from scipy import sparse

from .._data.files import decode
from .._labels import read_labels

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe-Ito, color-blind safe
LINE_STYLES = ["-", "--", "-.", ":"]
MARKERS = ["o", "s", "^", "v", "D", "P", "X", "*"]  # 8 markers, coprime to 7 colors: 56 pairs before one repeats

# Outlines of the marks, in a square from -1 to 1, as not every font has these marks.
_TICK = [(-0.8, 0.0), (-0.55, 0.25), (-0.25, -0.1), (0.55, 0.7), (0.8, 0.45), (-0.25, -0.6)]
_CROSS = [
    (0, 0.25), (0.45, 0.7), (0.7, 0.45), (0.25, 0), (0.7, -0.45), (0.45, -0.7),
    (0, -0.25), (-0.45, -0.7), (-0.7, -0.45), (-0.25, 0), (-0.7, 0.45), (-0.45, 0.7),
]  # fmt: skip
_SHORTER_SIDE = 128  # of an image file in a tile, in pixels


def new_axes(display, figsize=None):
    """Return the axes of a new figure."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{type(display).__name__} needs matplotlib: pip install 'skdml[plot]'.") from error
    return plt.subplots(figsize=figsize, layout="compressed")[1]


def embed(estimator, X):
    """Return the estimator's embeddings of X."""
    if not hasattr(estimator, "transform"):
        raise TypeError(
            f"A display of embeddings needs an estimator with transform, got {type(estimator).__name__}. If a pipeline "
            "ends in a classifier, pass the steps before it: pipeline[:-1]."
        )
    return estimator.transform(X)


def last_step(estimator):
    """Return the last step of a pipeline, or the estimator itself."""
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator


def check_embeddings(embeddings, y, y_name="y", **others):
    """Return embeddings (n, D) and y (n,) as arrays; the others must have length n or be None."""
    Z, y = _as_array(embeddings), read_labels(y, y_name)
    if Z.ndim != 2 or 0 in Z.shape or Z.dtype.kind not in "fiu" or not np.isfinite(Z).all():
        raise ValueError(
            "embeddings must be a dense array (n_samples, n_components) of finite numbers, with at least one sample; "
            f"got shape {Z.shape} and dtype {Z.dtype}. Pass the output of transform."
        )
    for name, sequence in {y_name: y, **others}.items():
        if sequence is not None and len(sequence) != len(Z):
            raise ValueError(f"{name} must hold one entry for each of the {len(Z)} embeddings, got {len(sequence)}.")
    return Z, y


def _as_array(a):
    return a.detach().cpu().numpy() if hasattr(a, "detach") else np.asarray(a)


def find_images(X):
    """Return X as an array of images or of paths of image files, or None if it is neither."""
    if sparse.issparse(X):
        return None
    X = _as_array(X)
    is_image = (
        (X.ndim == 1 and len(X) and isinstance(X[0], str | os.PathLike))
        or (X.dtype == np.uint8 and (X.ndim == 3 or (X.ndim == 4 and X.shape[3] in (1, 3, 4))))
        or (X.dtype.kind == "f" and X.ndim == 4 and X.shape[1] in (1, 3, 4))
    )
    return X if is_image else None


def check_images(images):
    """Return the images that a caller passed as an array."""
    if images is None:
        return None
    found = find_images(images)
    if found is None:
        raise ValueError(
            "images must be uint8 (n, H, W) or (n, H, W, C), float (n, C, H, W), with C of 1, 3 or 4, or a sequence of "
            f"paths of image files; got shape {np.shape(images)} and dtype {getattr(images, 'dtype', None)}."
        )
    return found


def make_tiles(rows, y, images=None, texts=None):
    """Return the tiles of some rows.

    Parameters
    ----------
    rows : sequence of int
    y : ndarray of shape (n_samples,)
    images : ndarray or None
        As `find_images` returns them. None: the tiles are texts.
    texts : sequence of length n_samples or None
        None: the row numbers.

    Returns
    -------
    list of ndarray or str
    """
    if images is None:
        return [f"{f'row {row}' if texts is None else _shorten(texts[row], 2)}\n{class_name(y[row])}" for row in rows]
    if images.ndim == 1:
        return [_read(images[row]) for row in rows]
    shown = images[rows]
    return list(shown) if shown.dtype == np.uint8 else [_stretch(image) for image in shown]


def class_name(label, width=12):
    """Return a short name of a class, in at most two lines of ``width`` letters."""
    return _shorten(label if isinstance(label, str) else f"class {label}", 2, width)


def legend_label(text):
    """Return the text so that matplotlib shows it, which leaves out labels that begin with an underscore."""
    return f" {text}" if text is not None and text.startswith("_") else text


def _shorten(text, n_lines, width=12):
    text = "\n".join(textwrap.wrap(str(text), width=width, max_lines=n_lines, placeholder=" …"))
    return text.replace("$", r"\$")  # otherwise text between two of them is a formula


def _stretch(image):
    """Return a float image (C, H, W) of any scale as uint8 (H, W, C), with its lowest value black."""
    low, high = image.min(), image.max()
    return np.moveaxis((image - low) / (high - low or 1) * 255, 0, -1).round().astype(np.uint8)


def _read(path):
    image = decode(path, _SHORTER_SIDE)
    if isinstance(image, str):
        raise ValueError(f"{path} {image}.")
    return image


def draw_tile(ax, x, y, tile, *, side=1.0, color="black", linestyle="-", linewidth=2.0):
    """Draw a tile centered on (x, y), in a frame."""
    from matplotlib.patches import Rectangle

    half = 0.43 * side
    zorder = 2.5  # above dots and lines
    if isinstance(tile, str):
        draw_text(ax, x, y + 0.1 * side, tile, width=1.9 * half)  # above a mark
    else:
        height, width = tile.shape[:2]
        h, w = (half * length / max(height, width) for length in (height, width))
        ax.imshow(tile, cmap="gray", vmin=0, vmax=255, extent=(x - w, x + w, y - h, y + h), zorder=zorder)
    frame = {"fill": False, "edgecolor": color, "linestyle": linestyle, "linewidth": linewidth, "zorder": zorder}
    ax.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, **frame))


def draw_mark(ax, x, y, is_correct, color):
    """Draw a tick or a cross in the lower right corner of the tile at (x, y)."""
    from matplotlib.patches import Polygon, Rectangle

    ax.add_patch(Rectangle((x + 0.21, y - 0.43), 0.22, 0.22, facecolor=color, zorder=3))
    corners = np.array(_TICK if is_correct else _CROSS)
    ax.add_patch(Polygon([x + 0.32, y - 0.32] + 0.11 * corners, facecolor="white", zorder=3))


def draw_text(ax, x, y, text, *, letter=0.12, width):
    """Write lines centered on (x, y), with letters of size `letter`, or smaller if a line is wider than `width`."""
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    lines = text.strip().split("\n") if text.strip() else []
    for i, line in enumerate(lines):
        path = TextPath((0, 0), line, size=100)
        left, right = path.vertices[:, 0].min(), path.vertices[:, 0].max()
        scale = min(letter / 100, width / (right - left))
        middle = y + 1.3 * letter * ((len(lines) - 1) / 2 - i)
        place = Affine2D().translate(-(left + right) / 2, -37).scale(scale).translate(x, middle)
        # Not add_patch, which would go through every curve to find the limits of the axes.
        ax.add_artist(PathPatch(path, color="black", linewidth=0, transform=place + ax.transData, zorder=3))


def set_view(ax, low, high):
    """Show the data from one corner (x, y) to the other, with x and y on the same scale and without ticks."""
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], aspect="equal")
