"""Omniglot: handwritten characters for few-shot learning, from the files of its authors."""

import io
import zlib
from importlib.resources import files
from numbers import Integral
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image
from sklearn.utils import Bunch, check_scalar

from ._benchmarks import Source, check_counts, find

_PAGE = "https://github.com/brendenlake/omniglot"
OMNIGLOT = Source(
    name="Omniglot",
    folder="omniglot",
    layouts=(("images_background.zip", "images_evaluation.zip"), ("images_background", "images_evaluation")),
    counts={"background": (19280, 964), "evaluation": (13180, 659)},
    advice=(
        f"Download python/images_background.zip and python/images_evaluation.zip (16 MB) from {_PAGE} into {{folder}}; "
        "they may stay zipped"
    ),
    description="omniglot.md",
    downloads={
        f"{_PAGE}/raw/master/python/images_background.zip": (
            "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640"
        ),
        f"{_PAGE}/raw/master/python/images_evaluation.zip": (
            "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee"
        ),
    },
)
_SIDE = 105  # pixels of an image in the files

# The split of Vinyals et al. goes by alphabet, except that the last four characters of Gurmukhi are for testing.
_VAL_ALPHABETS = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
_TEST_ALPHABETS = {
    "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti",
    "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG",
}  # fmt: skip
_TEST_CHARACTERS = {f"Gurmukhi/character{number}" for number in (42, 43, 44, 45)}


def load_omniglot(
    *, data_home=None, download=False, split="vinyals", size=28, rotations=False, return_X_y=False
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

    The defaults with ``rotations=True`` are the protocol of few-shot learning [1]_, [2]_: images of 28 x 28 pixels, the
    split of the classes by Vinyals et al., and each character rotated by 90, 180 and 270 degrees as three more classes.

    ================   ======================================
    classes            1,623 (1,028 + 172 + 423)
    samples            32,460 (20,560 + 3,440 + 8,460)
    image              28 x 28 of 105 x 105, gray, uint8
    files              two, 16 MB
    ================   ======================================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds ``omniglot``, or that folder itself, with ``images_background.zip`` and
        ``images_evaluation.zip`` or with the folders in them. None: the data folder of scikit-learn, see
        :func:`sklearn.datasets.get_data_home`.
    download : bool, default=False
        Whether to download the set into ``data_home`` if it is not there. Needs pooch (``skdml[download]``).
    split : {"vinyals", "background"}, default="vinyals"
        "vinyals": 1,028 characters to train on, 172 to validate and 423 to test. "background": the authors' own split,
        964 characters to train on and 659 of other alphabets to test.
    size : int or None, default=28
        Height and width of the images, >= 1. As in the code of [2]_, each pixel is the file's pixel at its center, so
        that the images stay black and white. None: 105, as in the files.
    rotations : bool, default=False
        Whether to add the images rotated counterclockwise by 90, 180 and 270 degrees, each rotation of a character as a
        separate class: 129,840 images of 6,492 classes. A character and its rotations are in the same part of the
        split.
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (32460, size, size) or (129840, size, size), uint8
            The images, ink 255 on paper 0 as in :func:`load_kanji` and in the code of [2]_; the files have black ink on
            white paper. The 20 images of a class are consecutive; all images at 90 degrees follow those at 0 degrees,
            and so on.
        images : ndarray of the same shape, uint8
            The same array.
        target : ndarray of shape (32460,) or (129840,), int64
            The class of each image, in 0..1622 or 0..6491.
        target_names : ndarray of shape (1623,) or (6492,), str
            Alphabet and number of each character, such as "Greek/character01"; with ``rotations``, also its rotation,
            such as "Greek/character01/rot090".
        split : ndarray of shape (32460,) or (129840,), str
            "train", "val" or "test".
        train : ndarray of shape (32460,) or (129840,), bool
            True for the images of the "train" part. The papers' final models are trained on ``split != "test"``.
        DESCR : str
            Content, citation and terms of use.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The images and their classes.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says what to download, from which page, and where to put it.
    ValueError
        If ``split`` or ``size`` is out of range, a file is damaged, or the numbers of images and classes are not those
        published.
    TypeError
        If ``size`` is not an integer.
    ImportError
        If a download needs pooch and it is not installed.
    OSError
        If the download fails.

    References
    ----------
    .. [1] O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu and D. Wierstra, "Matching Networks for One Shot
       Learning", NeurIPS 2016.
    .. [2] J. Snell, K. Swersky and R. Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.

    Examples
    --------
    >>> from skdml.datasets import load_omniglot
    >>> omniglot = load_omniglot(data_home="/data", rotations=True)  # doctest: +SKIP
    >>> omniglot.images[omniglot.split == "test"].shape  # doctest: +SKIP
    (33840, 28, 28)
    """
    if split not in ("vinyals", "background"):
        raise ValueError(f"split is {split!r}; it must be 'vinyals' or 'background'.")
    size = _SIDE if size is None else check_scalar(size, "size", Integral, min_val=1)
    root, layout = find(OMNIGLOT, data_home, download)
    background, evaluation = (_read_files(root / part) for part in layout)
    drawings = dict(sorted((background | evaluation).items()))
    target_names, target = np.unique([name.rpartition("/")[0] for name in drawings], return_inverse=True)
    in_background = np.array([name in background for name in drawings])
    check_counts(OMNIGLOT, root, target, np.where(in_background, "background", "evaluation"))

    images = np.empty((len(drawings), size, size), dtype=np.uint8)
    for image, (name, content) in zip(images, drawings.items(), strict=True):
        image[:] = _decode(root, name, content, size)
    if split == "vinyals":
        parts = np.array([_vinyals_part(name) for name in target_names])[target]
    else:
        parts = np.where(in_background, "train", "test")
    if rotations:
        images = np.concatenate([np.rot90(images, k, axes=(1, 2)) for k in range(4)])
        target = np.concatenate([target + k * len(target_names) for k in range(4)])
        target_names = np.concatenate([np.char.add(target_names, f"/rot{90 * k:03}") for k in range(4)])
        parts = np.tile(parts, 4)
    if return_X_y:
        return images, target
    return Bunch(
        data=images,
        images=images,
        target=target,
        target_names=target_names,
        split=parts,
        train=parts == "train",
        DESCR=(files(__package__) / "data" / OMNIGLOT.description).read_text(encoding="utf-8"),
    )


def _read_files(path):
    """Return the contents of the images in a folder or zip file, by names such as "Greek/character01/0394_01.png"."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.glob("*/*/*.png")}
    folder = f"{path.stem}/"
    try:
        with ZipFile(path) as archive:
            return {
                name.removeprefix(folder): archive.read(name)
                for name in archive.namelist()
                if name.startswith(folder) and name.endswith(".png")
            }
    except (BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete zip file: {error}. Delete it and download it again.") from error


def _decode(root, name, content, size):
    """Return the image of a PNG file, (size, size) of uint8: ink 255 on paper 0."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (_SIDE, _SIDE):
                raise ValueError(f"it has {image.width} x {image.height} pixels, not {_SIDE} x {_SIDE}")
            gray = image.resize((size, size), Image.Resampling.NEAREST).convert("L")
    except Exception as error:  # on broken files, Pillow raises exceptions of any type
        raise ValueError(f"{name} in {root} is not as published: {error}. Unpack or download it again.") from error
    return 255 - np.asarray(gray)


def _vinyals_part(name):
    """Return the part of a character, such as "Greek/character01", in the split of Vinyals et al."""
    alphabet = name.partition("/")[0]
    if alphabet in _VAL_ALPHABETS:
        return "val"
    return "test" if alphabet in _TEST_ALPHABETS or name in _TEST_CHARACTERS else "train"
