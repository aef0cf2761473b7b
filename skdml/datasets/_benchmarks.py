"""The standard benchmarks, read from files in the layout in which their authors published them."""

import ftplib
import gzip
import math
import os
import zlib
from dataclasses import dataclass
from glob import glob
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.utils import Bunch


@dataclass(frozen=True)
class Source:
    """A published data set, and where to get it.

    Parameters
    ----------
    name : str
    folder : str
        Name of the folder of the set.
    layouts : tuple of tuple of str
        Files or folders to read, relative to the folder; any one of these tuples suffices.
    counts : dict of str to tuple of int
        Number of images and of classes in each part of the split.
    advice : str
        Where to get the files and where to put them; may hold ``{home}`` and ``{folder}``.
    description : str
        File in ``data/`` that becomes ``DESCR``.
    downloads : dict of str to str
        SHA-256 by URL, of one archive that holds the folder or of the files that go into it. Empty: no program can
        download the set.
    """

    name: str
    folder: str
    layouts: tuple
    counts: dict
    advice: str
    description: str
    downloads: dict


CUB200 = Source(
    name="CUB-200-2011",
    folder="CUB_200_2011",
    layouts=(("images.txt", "image_class_labels.txt", "classes.txt", "bounding_boxes.txt"),),
    counts={"train": (5864, 100), "test": (5924, 100)},
    advice=(
        "Download CUB_200_2011.tgz (1.15 GB) from https://data.caltech.edu/records/65de6-vp158 and unpack it in {home}"
    ),
    description="cub200.md",
    downloads={
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz": (
            "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081"
        )
    },
)
CUB200_2010 = Source(
    name="CUB-200 (2010)",
    folder="CUB_200_2010",
    layouts=(("images",),),
    counts={"train": (2990, 100), "test": (3043, 100)},
    advice=(
        "download=True cannot fetch it: download images.tgz (679 MB) via "
        "https://www.vision.caltech.edu/datasets/cub_200_2010/ and unpack it in {folder}"
    ),
    description="cub200_2010.md",
    downloads={},
)
CARS196 = Source(
    name="Cars-196",
    folder="cars196",
    layouts=(
        ("cars_annos.mat",),
        ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"),
    ),
    counts={"train": (8054, 98), "test": (8131, 98)},
    advice=(
        "Its page is gone, so download=True cannot fetch it; https://github.com/pytorch/vision/issues/7545 lists "
        "copies. Put either car_ims/ and cars_annos.mat into {folder}, or cars_train/, cars_test/, devkit/ and "
        "cars_test_annos_withlabels.mat"
    ),
    description="cars196.md",
    downloads={},
)
SOP = Source(
    name="Stanford Online Products",
    folder="Stanford_Online_Products",
    layouts=(("Ebay_train.txt", "Ebay_test.txt"),),
    counts={"train": (59551, 11318), "test": (60502, 11316)},
    advice=(
        "Download Stanford_Online_Products.zip (3.08 GB) from https://cvgl.stanford.edu/projects/lifted_struct/ or "
        "https://github.com/rksltnl/Deep-Metric-Learning-CVPR16 and unpack it in {home}"
    ),
    description="sop.md",
    downloads={
        "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip": (
            "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48"
        )
    },
)
INSHOP = Source(
    name="In-Shop Clothes Retrieval",
    folder="In-shop Clothes Retrieval Benchmark",
    layouts=(("Eval/list_eval_partition.txt",),),
    counts={"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
    advice=(
        "It is on Google Drive, from which download=True cannot fetch it: download Eval/list_eval_partition.txt, "
        "Img/img.zip and, for the bounding boxes, Anno/list_bbox_inshop.txt via "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html into the same folders in {folder}, and "
        "unpack img.zip in Img"
    ),
    description="inshop.md",
    downloads={},
)
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION_MNIST = Source(
    name="Fashion-MNIST",
    folder="fashion-mnist",
    layouts=(tuple(f"{file}.gz" for file in _IDX_FILES), _IDX_FILES),
    counts={"train": (35000, 5), "test": (35000, 5)},
    advice=(
        "Download the four files (31 MB) from https://github.com/zalandoresearch/fashion-mnist into {folder}, or "
        "install Debian's package dataset-fashion-mnist and pass data_home='/usr/share/datasets'"
    ),
    description="fashion_mnist.md",
    downloads={
        f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{file}.gz": sha256
        for file, sha256 in zip(
            _IDX_FILES,
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
            strict=True,
        )
    },
)
_GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_INTACT = "Take the files from an intact copy of the set."


def load_cub200(*, data_home=None, download=False, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the paths and labels of CUB-200-2011: photographs of 200 bird species.

    The first half of the classes is for training and the second for testing, as in the metric learning papers; the
    authors' own ``train_test_split.txt``, which has all classes on both sides, is not read.

    ================   =============================
    classes            200 (100 + 100)
    images             11,788 (5,864 + 5,924)
    bounding boxes     yes
    files              CUB_200_2011.tgz, 1.15 GB
    ================   =============================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds ``CUB_200_2011``, or that folder itself. None: the data folder of scikit-learn, see
        :func:`sklearn.datasets.get_data_home`.
    download : bool, default=False
        Whether to download the set into ``data_home`` if it is not there. Needs pooch (``skdml[download]``).
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (11788,), str
            The paths of the images, in the order of ``images.txt``.
        target : ndarray of shape (11788,), int64
            The class of each image, in 0..199.
        target_names : ndarray of shape (200,), str
            The names of the classes.
        split : ndarray of shape (11788,), str
            "train" or "test".
        train : ndarray of shape (11788,), bool
            True for the images of the 100 classes to train on.
        bbox : ndarray of shape (11788, 4), float64
            Left, top, right and bottom of the bird, in pixels.
        DESCR : str
            Content, citation and terms of use.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The paths and their classes.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says what to download, from which page, and where to put it.
    ValueError
        If a file is damaged, or the numbers of images and classes are not those published.
    ImportError
        If a download needs pooch and it is not installed.
    OSError
        If the download fails.

    Examples
    --------
    >>> from skdml.datasets import load_cub200
    >>> birds = load_cub200(data_home="/data")  # doctest: +SKIP
    >>> birds.data[birds.train].shape  # doctest: +SKIP
    (5864,)
    """
    root, _ = find(CUB200, data_home, download)
    ids, names = _read_columns(root / "images.txt", int, str)
    label_ids, labels = _read_columns(root / "image_class_labels.txt", int, int)
    box_ids, left, top, width, height = _read_columns(root / "bounding_boxes.txt", int, float, float, float, float)
    _, target_names = _read_columns(root / "classes.txt", int, str)
    for file, other in (("image_class_labels.txt", label_ids), ("bounding_boxes.txt", box_ids)):
        if not np.array_equal(ids, other):
            raise ValueError(f"{root / file} does not list the images of images.txt. Unpack the archive again.")
    return _bunch(
        CUB200,
        root,
        data=_image_paths(CUB200, root / "images", names),
        target=labels - 1,
        target_names=target_names,
        split=_halves(labels - 1, target_names),
        bbox=np.column_stack([left, top, left + width, top + height]),
        return_X_y=return_X_y,
    )


def load_cub200_2010(*, data_home=None, download=False, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the paths and labels of CUB-200 (2010), the first release: photographs of 200 bird species.

    This release has about half as many photographs per species as CUB-200-2011, see :func:`load_cub200`; results on the
    two are not comparable. As there, the first half of the classes is for training and the second for testing. The
    classes are the folders of the images, in alphabetical order; the authors' lists, which have all classes on both
    sides, are not read.

    ================   ===========================
    classes            200 (100 + 100)
    images             6,033 (2,990 + 3,043)
    bounding boxes     no
    files              images.tgz, 679 MB
    ================   ===========================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds ``CUB_200_2010``, or that folder itself, which holds the archive's folder ``images``. None:
        the data folder of scikit-learn, see :func:`sklearn.datasets.get_data_home`.
    download : bool, default=False
        Exists for consistency with the other loaders; the set has no permanent URL, so missing files raise an error.
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (6033,), str
            The paths of the images, in alphabetical order.
        target : ndarray of shape (6033,), int64
            The class of each image, in 0..199.
        target_names : ndarray of shape (200,), str
            The names of the classes.
        split : ndarray of shape (6033,), str
            "train" or "test".
        train : ndarray of shape (6033,), bool
            True for the images of the 100 classes to train on.
        DESCR : str
            Content, citation and terms of use.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The paths and their classes.

    Raises
    ------
    FileNotFoundError
        If the folder ``images`` is missing; the message says what to download, from which page, and where to put it.
    ValueError
        If the numbers of images and classes are not those published.

    Examples
    --------
    >>> from skdml.datasets import load_cub200_2010
    >>> birds = load_cub200_2010(data_home="/data")  # doctest: +SKIP
    >>> birds.data[birds.train].shape  # doctest: +SKIP
    (2990,)
    """
    root, (images,) = find(CUB200_2010, data_home, download)
    names = sorted(glob("*/*.jpg", root_dir=root / images))
    target_names, target = np.unique([os.path.dirname(name) for name in names], return_inverse=True)
    return _bunch(
        CUB200_2010,
        root,
        data=np.array([os.path.join(root, images, name) for name in names]),
        target=target,
        target_names=target_names,
        split=_halves(target, target_names),
        return_X_y=return_X_y,
    )


def load_cars196(*, data_home=None, download=False, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the paths and labels of Cars-196: photographs of 196 models of cars.

    The first half of the classes is for training and the second for testing, as in the metric learning papers, which
    merge the authors' training and test images.

    ================   =============================
    classes            196 (98 + 98)
    images             16,185 (8,054 + 8,131)
    bounding boxes     yes
    files              no longer on the authors' page
    ================   =============================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds ``cars196``, or that folder itself. None: the data folder of scikit-learn, see
        :func:`sklearn.datasets.get_data_home`. Both of the authors' layouts are read: ``car_ims`` and
        ``cars_annos.mat``; or ``cars_train``, ``cars_test``, ``devkit`` and ``cars_test_annos_withlabels.mat``.
    download : bool, default=False
        Exists for consistency with the other loaders; the authors' page is gone, so missing files raise an error.
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (16185,), str
            The paths of the images, in the order of the annotations; ``cars_train`` comes before ``cars_test``.
        target : ndarray of shape (16185,), int64
            The class of each image, in 0..195.
        target_names : ndarray of shape (196,), str
            Make, model and year of each class.
        split : ndarray of shape (16185,), str
            "train" or "test".
        train : ndarray of shape (16185,), bool
            True for the images of the 98 classes to train on.
        bbox : ndarray of shape (16185, 4), float64
            Left, top, right and bottom of the car, in pixels.
        DESCR : str
            Content, citation and terms of use.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The paths and their classes.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says where to look for them and where to put them.
    ValueError
        If a file is damaged, or the numbers of images and classes are not those published.

    Examples
    --------
    >>> from skdml.datasets import load_cars196
    >>> cars = load_cars196(data_home="/data")  # doctest: +SKIP
    >>> cars.data[cars.train].shape  # doctest: +SKIP
    (8054,)
    """
    root, layout = find(CARS196, data_home, download)
    if layout == CARS196.layouts[0]:
        (annotations,) = layout
        names, labels, bbox = _read_car_annotations(root / annotations, "relative_im_path")
        target_names = _read_mat(root / annotations, "class_names")
    else:
        train_annotations, test_annotations, classes = layout
        train_names, train_labels, train_bbox = _read_car_annotations(root / train_annotations, "fname")
        test_names, test_labels, test_bbox = _read_car_annotations(root / test_annotations, "fname")
        names = [f"cars_train/{name}" for name in train_names] + [f"cars_test/{name}" for name in test_names]
        labels = np.concatenate([train_labels, test_labels])
        bbox = np.concatenate([train_bbox, test_bbox])
        target_names = _read_mat(root / classes, "class_names")
    return _bunch(
        CARS196,
        root,
        data=_image_paths(CARS196, root, names),
        target=labels - 1,
        target_names=target_names.astype(str),
        split=_halves(labels - 1, target_names),
        bbox=bbox,
        return_X_y=return_X_y,
    )


def load_sop(*, data_home=None, download=False, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the paths and labels of Stanford Online Products: pictures of 22,634 products for sale.

    The split is that of the authors, in ``Ebay_train.txt`` and ``Ebay_test.txt``. Its parts are not exactly halves, so
    use ``train`` instead of :func:`~skdml.model_selection.class_train_test_split`.

    ================   =====================================
    classes            22,634 (11,318 + 11,316)
    images             120,053 (59,551 + 60,502)
    bounding boxes     no
    files              Stanford_Online_Products.zip, 3.08 GB
    ================   =====================================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds ``Stanford_Online_Products``, or that folder itself. None: the data folder of scikit-learn,
        see :func:`sklearn.datasets.get_data_home`.
    download : bool, default=False
        Whether to download the set into ``data_home`` if it is not there. Needs pooch (``skdml[download]``).
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (120053,), str
            The paths of the images, in the order of ``Ebay_train.txt``, then of ``Ebay_test.txt``.
        target : ndarray of shape (120053,), int64
            The class of each image, in 0..22633.
        target_names : ndarray of shape (22634,), str
            Kind and number of each product, such as "bicycle/111085122871".
        split : ndarray of shape (120053,), str
            "train" or "test".
        train : ndarray of shape (120053,), bool
            True for the images of the 11,318 classes to train on.
        DESCR : str
            Content, citation and terms of use.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The paths and their classes.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says what to download, from which page, and where to put it.
    ValueError
        If a file is damaged, or the numbers of images and classes are not those published.
    ImportError
        If a download needs pooch and it is not installed.
    OSError
        If the download fails.

    Examples
    --------
    >>> from skdml.datasets import load_sop
    >>> products = load_sop(data_home="/data")  # doctest: +SKIP
    >>> products.data[products.train].shape  # doctest: +SKIP
    (59551,)
    """
    root, layout = find(SOP, data_home, download)
    train, test = (_read_columns(root / file, int, int, int, str, skip=1) for file in layout)
    _, labels, _, names = (np.concatenate(columns) for columns in zip(train, test, strict=True))
    _, first, target = np.unique(labels, return_index=True, return_inverse=True)
    return _bunch(
        SOP,
        root,
        data=_image_paths(SOP, root, names),
        target=target,
        # bicycle_final/111085122871_0.JPG is the first picture of bicycle/111085122871.
        target_names=np.array([name.rpartition("_")[0].replace("_final/", "/") for name in names[first]]),
        split=np.repeat(["train", "test"], [len(train[0]), len(test[0])]),
        return_X_y=return_X_y,
    )


def load_inshop(*, data_home=None, download=False, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the paths and labels of In-Shop Clothes Retrieval, a benchmark of DeepFashion: 7,982 pieces of clothing.

    The split is that of the authors. In testing, each image of "query" is a query to the images of "gallery", which are
    of the same classes.

    ================   ==============================================
    classes            7,982 (3,997 + 3,985)
    images             52,712 (25,882 + 14,218 queries + 12,612)
    bounding boxes     yes, in a separate file
    files              via the authors' page
    ================   ==============================================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds ``In-shop Clothes Retrieval Benchmark``, or that folder itself. None: the data folder of
        scikit-learn, see :func:`sklearn.datasets.get_data_home`. The images are in ``Img/img`` or in ``img``.
    download : bool, default=False
        Exists for consistency with the other loaders; no program may fetch the set, so missing files raise an error.
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (52712,), str
            The paths of the images, in the order of ``list_eval_partition.txt``.
        target : ndarray of shape (52712,), int64
            The class of each image, in 0..7981.
        target_names : ndarray of shape (7982,), str
            The number of each piece, such as "id_00000002".
        split : ndarray of shape (52712,), str
            "train", "query" or "gallery".
        train : ndarray of shape (52712,), bool
            True for the images of the 3,997 classes to train on.
        bbox : ndarray of shape (52712, 4), float64, or None
            Left, top, right and bottom of the clothing in the images of ``img.zip``, in pixels. None without
            ``Anno/list_bbox_inshop.txt``.
        DESCR : str
            Content, citation and terms of use.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The paths and their classes.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says what to download, from which page, and where to put it.
    ValueError
        If a file is damaged, or the numbers of images and classes are not those published.

    Examples
    --------
    >>> from skdml.datasets import load_inshop
    >>> clothes = load_inshop(data_home="/data")  # doctest: +SKIP
    >>> clothes.data[clothes.split == "query"].shape  # doctest: +SKIP
    (14218,)
    """
    root, (partition,) = find(INSHOP, data_home, download)
    names, items, split = _read_columns(root / partition, str, str, str, skip=2)
    target_names, target = np.unique(items, return_inverse=True)
    boxes = root / "Anno" / "list_bbox_inshop.txt"
    images = root / "Img"
    return _bunch(
        INSHOP,
        root,
        # Img/img, not Img: on a case-insensitive file system, Img is img.
        data=_image_paths(INSHOP, images if (images / "img").is_dir() else root, names),
        target=target,
        target_names=target_names,
        split=split,
        bbox=_read_inshop_boxes(boxes, names) if boxes.is_file() else None,
        return_X_y=return_X_y,
    )


def load_fashion_mnist(*, data_home=None, download=False, return_X_y=False) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load Fashion-MNIST: small pictures of 10 kinds of clothing.

    Classes 0 to 4 are for training and 5 to 9 for testing, so that no test class is seen in training. The authors'
    training and test images, which have all classes on both sides, are merged; rows from 60,000 on are their test
    images. The set is easy: raw pixels already retrieve the classes well. It shows whether a method works, but hardly
    which one is better.

    ================   ==========================
    classes            10 (5 + 5)
    samples            70,000 (35,000 + 35,000)
    image              28 x 28, gray, uint8
    files              four, 31 MB
    ================   ==========================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds ``fashion-mnist``, or that folder itself, with the four idx files, compressed (``.gz``) or
        not. None: the data folder of scikit-learn, see :func:`sklearn.datasets.get_data_home`. Debian's package
        ``dataset-fashion-mnist`` installs the set in "/usr/share/datasets".
    download : bool, default=False
        Whether to download the set into ``data_home`` if it is not there. Needs pooch (``skdml[download]``).
    return_X_y : bool, default=False
        If True, return only ``(data, target)``.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Object with the attributes

        data : ndarray of shape (70000, 28, 28), uint8
            The images.
        images : ndarray of shape (70000, 28, 28), uint8
            The same array.
        target : ndarray of shape (70000,), int64
            The class of each image, in 0..9.
        target_names : ndarray of shape (10,), str
            The names of the classes.
        split : ndarray of shape (70000,), str
            "train" or "test".
        train : ndarray of shape (70000,), bool
            True for the images of the 5 classes to train on.
        DESCR : str
            Content, citation and terms of use.

    (data, target) : tuple of ndarray, if ``return_X_y``
        The images and their classes.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says what to download, from which page, and where to put it.
    ValueError
        If a file is damaged, or the numbers of images and classes are not those published.
    ImportError
        If a download needs pooch and it is not installed.
    OSError
        If the download fails.

    Examples
    --------
    >>> from skdml.datasets import load_fashion_mnist
    >>> fashion = load_fashion_mnist(data_home="/usr/share/datasets")  # doctest: +SKIP
    >>> fashion.images[fashion.train].shape  # doctest: +SKIP
    (35000, 28, 28)
    """
    root, layout = find(FASHION_MNIST, data_home, download)
    train_images, train_labels, test_images, test_labels = (
        _read_idx(root / file, n_axes) for file, n_axes in zip(layout, (3, 1, 3, 1), strict=True)
    )
    for images, labels, file in ((train_images, train_labels, layout[1]), (test_images, test_labels, layout[3])):
        if len(images) != len(labels):
            raise ValueError(f"{root / file} holds {len(labels)} labels for {len(images)} images. Download it again.")
    images = np.concatenate([train_images, test_images])
    target = np.concatenate([train_labels, test_labels]).astype(np.int64)
    target_names = np.array(_GARMENTS)
    return _bunch(
        FASHION_MNIST,
        root,
        data=images,
        target=target,
        target_names=target_names,
        split=_halves(target, target_names),
        images=images,
        return_X_y=return_X_y,
    )


def find(source, data_home, download):
    """Return the folder that holds the files of a layout, and that layout, downloading them if missing and wanted."""
    from sklearn.datasets import get_data_home  # here, since it is slow to import

    # get_data_home creates the folder, which is right for the default but not for a mistyped path.
    home = Path(get_data_home() if data_home is None else data_home).expanduser()
    folder = home / source.folder
    for root in (folder, home):
        for layout in source.layouts:
            if all((root / file).exists() for file in layout):
                return root, layout
    layout = source.layouts[0]
    if download and source.downloads:
        _download(source, home)
        return folder, layout
    lacking = [(root, [file for file in layout if not (root / file).exists()]) for root in (folder, home)]
    root, missing = min(lacking, key=lambda pair: len(pair[1]))
    raise FileNotFoundError(
        f"{source.name}: {root} lacks {', '.join(missing)}. {_advice(source, home)}"
        f"{', or pass download=True.' if source.downloads else '.'}"
    )


def _advice(source, home):
    return source.advice.format(home=home, folder=home / source.folder)


def _download(source, home):
    """Download the files, verify them and put them into their folder under home, with archives unpacked."""
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"download=True needs pooch: pip install 'skdml[download]'. Without it: {_advice(source, home)}."
        ) from error
    folder = home / source.folder
    for url, sha256 in source.downloads.items():
        file = url.rpartition("/")[2]
        options = {"url": url, "known_hash": f"sha256:{sha256}", "fname": file, "progressbar": True}
        unpack = {".tgz": pooch.Untar, ".zip": pooch.Unzip}.get(Path(file).suffix)
        try:
            if unpack is None or file in source.layouts[0]:  # read without unpacking
                pooch.retrieve(path=folder, **options)
                continue
            if folder.exists():
                raise FileExistsError(f"{folder} exists but is not complete; move it away first")
            home.mkdir(parents=True, exist_ok=True)
            # The folder appears in one step and complete, so that an existing one can be trusted.
            with TemporaryDirectory(dir=home) as unpacked:
                pooch.retrieve(path=home, processor=unpack(extract_dir=unpacked), **options)
                os.replace(Path(unpacked, source.folder), folder)
        except (OSError, EOFError, ftplib.Error) as error:
            raise OSError(f"Could not download {url}: {error}. By hand: {_advice(source, home)}.") from error
        (home / file).unlink()


def _bunch(source, root, *, data, target, target_names, split, return_X_y, **more):
    """Check the labels and return the result of a loader."""
    if len(target) and (target.min() < 0 or target.max() >= len(target_names)):
        raise ValueError(
            f"{source.name}: the files in {root} name {len(target_names)} classes, but their labels, counted from 0, "
            f"range from {target.min()} to {target.max()}. {_INTACT}"
        )
    check_counts(source, root, target, split)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        target_names=target_names,
        split=split,
        train=split == "train",
        **more,
        DESCR=(files(__package__) / "data" / source.description).read_text(encoding="utf-8"),
    )


def check_counts(source, root, target, split):
    """Check that each part has the published numbers of images and classes."""
    counts = {
        str(part): (int(np.sum(split == part)), len(np.unique(target[split == part]))) for part in np.unique(split)
    }
    if counts != source.counts:
        raise ValueError(
            f"{source.name}: the files in {root} hold {_in_words(counts) or 'no images'}, but the published set has "
            f"{_in_words({part: source.counts[part] for part in sorted(source.counts)})}. {_INTACT}"
        )


def _in_words(counts):
    return ", ".join(f"{n} {part} images of {n_classes} classes" for part, (n, n_classes) in counts.items())


def _halves(target, target_names):
    """Return the split of the papers: the first half of the classes for training, the second for testing."""
    return np.where(target < len(target_names) // 2, "train", "test")


def _image_paths(source, folder, names):
    """Return the paths of the images, after checking that all exist."""
    paths = [os.path.join(folder, os.path.normpath(name)) for name in names]
    # Listing the folders is much faster than checking each file, especially over a network.
    present = set()
    for parent in {os.path.dirname(path) for path in paths}:
        if os.path.isdir(parent):
            present.update(os.path.join(parent, file) for file in os.listdir(parent))
    missing = [path for path in paths if path not in present]
    if missing:
        raise FileNotFoundError(
            f"{source.name}: {len(missing)} of {len(paths)} images are missing; the first one is {missing[0]}. "
            f"Unpack the archive of the images again."
        )
    return np.array(paths)


def _read_columns(path, *types, skip=0):
    """Return the whitespace-separated columns of a text file as arrays of these types."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[skip:]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}. {_INTACT}") from error
    rows = []
    for number, line in enumerate(lines, start=skip + 1):
        if not line.strip():
            continue
        try:
            rows.append([as_type(field) for as_type, field in zip(types, line.split(), strict=True)])
        except ValueError as error:
            needed = " ".join(as_type.__name__ for as_type in types)
            raise ValueError(f"{path}, line {number}: got {line[:80]!r}, need '{needed}'. {_INTACT}") from error
    if not rows:
        raise ValueError(f"{path} has no entries. {_INTACT}")
    return [np.array(column) for column in zip(*rows, strict=True)]


def _read_mat(path, variable):
    """Return an array from a MATLAB file."""
    from scipy.io import loadmat  # here, since it is slow to import

    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[variable])[variable])
    except Exception as error:  # scipy raises many types, even TypeError
        raise ValueError(f"{path} is not a MATLAB file with {variable!r}: {error}. {_INTACT}") from error


def _read_car_annotations(path, name_field):
    """Return the names, labels (from 1) and bounding boxes of the images that a file of Cars-196 lists."""
    annotations = _read_mat(path, "annotations")
    needed = [name_field, "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]
    if not set(needed) <= set(annotations.dtype.names or ()):
        raise ValueError(f"{path} has the fields {annotations.dtype.names}, but needs {needed}. {_INTACT}")
    names, labels, *bbox = (annotations[field].tolist() for field in needed)
    return names, np.array(labels, dtype=np.int64), np.array(bbox, dtype=np.float64).T


def _read_inshop_boxes(path, names):
    """Return the bounding boxes of the named images."""
    types = (str, int, int, int, int, int, int)
    listed, _, _, *corners = _read_columns(path, *types, skip=2)
    rows = {name: row for row, name in enumerate(listed)}
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(names)} images; the first one is {missing[0]}. {_INTACT}"
        )
    return np.column_stack(corners)[[rows[name] for name in names]].astype(np.float64)


def _read_idx(path, n_axes):
    """Return the array of an idx file of bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}. Delete it and download it again.") from error
    start = 4 + 4 * n_axes
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist() if len(content) >= start else ()
    if content[:4] != bytes([0, 0, 8, n_axes]) or len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} is not a complete idx file of bytes with {n_axes} axes: it starts with {content[:4]!r} and has "
            f"{len(content)} bytes. Delete it and download it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
