"""Images of one's own: a folder with a subfolder per class."""

import os

import numpy as np
from sklearn.utils import Bunch

from .._data.files import FORMATS

_ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)


def load_image_folder(path, *, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the paths and labels of the images in a folder that has one subfolder per class.

    The subfolders are the classes, sorted by name. Files deeper in a subfolder belong to its class, links are followed,
    and names that begin with a dot are left out, as are files whose names do not end as those of images do (.jpg,
    .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff, .ppm, .pgm, .pbm, .pnm, .jp2, .j2k or .avif, in letters of any case).
    Classes and paths come in the order of torchvision's ``ImageFolder``. No file is opened.

    Parameters
    ----------
    path : str or path-like
        The folder.
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (n_images,), str
            The paths of the images, which begin with ``path``; those of a class are consecutive.
        target : ndarray of shape (n_images,), int64
            The class of each image, in 0..n_classes - 1.
        target_names : ndarray of shape (n_classes,), str
            The names of the subfolders.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The paths and their classes.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    NotADirectoryError
        If ``path`` is a file.
    ValueError
        If the folder has no subfolders, a subfolder has no images, or an image is not in a subfolder, so that it has
        no class.
    OSError
        If a folder cannot be read.
    TypeError
        If ``path`` is neither a str nor path-like.

    Examples
    --------
    >>> from skdml.datasets import load_image_folder
    >>> birds = load_image_folder("birds")  # doctest: +SKIP
    >>> embedder.fit(birds.data, birds.target_names[birds.target])  # doctest: +SKIP
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path must be a str or path-like, the name of a folder; got a {type(path).__name__}.")
    root = os.path.expanduser(os.fspath(path))
    if not os.path.isdir(root):
        error = NotADirectoryError if os.path.exists(root) else FileNotFoundError
        raise error(f"{root!r} is not a folder. Pass the folder that holds one subfolder of images per class.")
    with os.scandir(root) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    loose = [entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)]
    if loose:
        raise ValueError(
            f"{root} holds {len(loose)} images that are in no subfolder, and so have no class; the first one is "
            f"{loose[0]}. Move each of them into the subfolder of its class, or pass your own paths and labels to fit."
        )
    images = {entry.name: _images(entry.path) for entry in entries if entry.is_dir()}
    if not images:
        raise ValueError(f"{root} has no subfolders. Give each class a subfolder that holds its images.")
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(images)} subfolders of {root} hold no images; the first one is {empty[0]}. Remove "
            f"them, or add files that end in {', '.join(_ENDINGS)}."
        )
    data = np.array([path for paths in images.values() for path in paths])
    target = np.repeat(np.arange(len(images), dtype=np.int64), [len(paths) for paths in images.values()])
    if return_X_y:
        return data, target
    return Bunch(data=data, target=target, target_names=np.array(list(images)))


def _is_image(name):
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


def _images(folder):
    """Return the paths of the images in a folder and the folders in it, sorted by folder and then by name."""
    found = []
    # The folders that a folder lies in: a link to one of them leads in a circle.
    above = {folder: {os.path.realpath(folder)}}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        reached = above.pop(parent)
        inner = {name: os.path.realpath(os.path.join(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, real in inner.items() if real not in reached]
        above |= {os.path.join(parent, name): reached | {inner[name]} for name in folders}
        found.append((parent, sorted(name for name in files if _is_image(name))))
    return [os.path.join(parent, name) for parent, names in sorted(found) for name in names]


def _raise(error):
    raise error
