"""The bundled image set: 300 kanji in 12 fonts."""

from importlib.resources import files

import numpy as np
from sklearn.utils import Bunch


def load_kanji(*, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the bundled kanji images, a small retrieval task that needs no download.

    300 characters (classes) are drawn in 12 fonts each. Half of the classes are for training and the other half for
    testing, as in the metric learning papers: an embedding learns from some characters and has to retrieve the others.

    ================   ====================
    classes            300 (150 + 150)
    samples            3600, 12 per class
    image              32 x 32, gray, uint8
    ================   ====================

    Parameters
    ----------
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (3600, 32, 32), uint8
            The images, ink 255 on paper 0.
        images : ndarray of shape (3600, 32, 32), uint8
            The same array.
        target : ndarray of shape (3600,), int64
            The class of each image, in 0..299.
        target_names : ndarray of shape (300,), str
            The character of each class.
        train : ndarray of shape (3600,), bool
            True for the images of the 150 classes to train on.
        font : ndarray of shape (3600,), int64
            The font of each image, in 0..11.
        fonts : ndarray of shape (12,), str
            The names of the fonts.
        DESCR : str
            Origin of the images, and the license of each font.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The images and their classes.

    Examples
    --------
    >>> from skdml.datasets import load_kanji
    >>> kanji = load_kanji()
    >>> kanji.images[kanji.train].shape
    (1800, 32, 32)
    >>> print(*kanji.target_names[:5])
    面 仰 厩 過 曾
    """
    folder = files(__package__) / "data"
    with (folder / "kanji300.npz").open("rb") as file, np.load(file) as arrays:
        images, target = arrays["X"], arrays["y"].astype(np.int64)
        if return_X_y:
            return images, target
        return Bunch(
            data=images,
            images=images,
            target=target,
            target_names=arrays["names"],
            train=arrays["train"],
            font=arrays["font"].astype(np.int64),
            fonts=arrays["fonts"],
            DESCR=(folder / "kanji300.md").read_text(encoding="utf-8"),
        )
