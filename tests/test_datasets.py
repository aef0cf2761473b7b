"""The bundled kanji set, and the loaders of the benchmarks."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from skdml.datasets import (
    _benchmarks,
    load_cars196,
    load_cub200,
    load_cub200_2010,
    load_fashion_mnist,
    load_image_folder,
    load_inshop,
    load_kanji,
    load_sop,
)
from skdml.model_selection import class_train_test_split


@pytest.fixture(scope="module")
def kanji():
    return load_kanji()


def test_shapes_and_types(kanji):
    assert kanji.images is kanji.data
    assert kanji.data.shape == (3600, 32, 32)
    assert kanji.data.dtype == np.uint8
    assert kanji.target.shape == kanji.font.shape == kanji.train.shape == (3600,)
    assert np.issubdtype(kanji.target.dtype, np.integer)
    assert kanji.train.dtype == bool
    assert len(set(kanji.target_names)) == 300
    assert len(set(kanji.fonts)) == 12


def test_every_class_once_in_every_font(kanji):
    pairs = np.unique(np.column_stack([kanji.target, kanji.font]), axis=0)
    assert len(pairs) == 300 * 12
    assert pairs.max(axis=0).tolist() == [299, 11]


def test_train_and_test_classes_are_disjoint(kanji):
    train, test = (set(kanji.target[mask].tolist()) for mask in (kanji.train, ~kanji.train))
    assert len(train) == len(test) == 150
    assert not train & test


def test_images_differ_and_hold_ink(kanji):
    assert len(np.unique(kanji.data.reshape(3600, -1), axis=0)) == 3600
    assert kanji.data.max(axis=(1, 2)).min() > 127


def test_each_call_returns_arrays_of_its_own():
    load_kanji().data[:] = 0
    assert load_kanji().data.any()


def test_return_X_y(kanji):
    X, y = load_kanji(return_X_y=True)
    np.testing.assert_array_equal(X, kanji.data)
    np.testing.assert_array_equal(y, kanji.target)


def test_description_names_every_font_with_a_licence(kanji):
    rows = [line.split("|") for line in kanji.DESCR.splitlines() if line.startswith("| fonts-")]
    licenses = {row[1].strip(): row[2].strip() for row in rows}
    assert set(licenses) == set(kanji.fonts)
    assert all(licenses.values())


# The benchmarks of the field: small copies of the layouts in which they were published. Images are never opened, so
# empty files do.


@pytest.fixture
def publish(monkeypatch):
    """Say that something else was published: other counts, other addresses."""

    def replace(name, **changes):
        monkeypatch.setattr(_benchmarks, name, dataclasses.replace(getattr(_benchmarks, name), **changes))

    return replace


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def touch(folder, names):
    for parent in {os.path.dirname(name) for name in names}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def write_cub200(root, class_sizes, images=True):
    """Write classes of these many images; the box of image i is 2 wide and 4 high and begins at (i, 0.5)."""
    labels = np.repeat(np.arange(1, len(class_sizes) + 1), class_sizes).tolist()
    names = [f"{label:03}.Bird_{label}/Bird_{i}.jpg" for i, label in enumerate(labels, start=1)]
    ids = range(1, len(names) + 1)
    if images:
        touch(root / "images", names)
    write(root / "images.txt", [f"{i} {name}" for i, name in zip(ids, names, strict=True)])
    write(root / "image_class_labels.txt", [f"{i} {label}" for i, label in zip(ids, labels, strict=True)])
    write(root / "bounding_boxes.txt", [f"{i} {i}.0 0.5 2.0 4.0" for i in ids])
    write(root / "classes.txt", [f"{label} {label:03}.Bird_{label}" for label in range(1, len(class_sizes) + 1)])


def write_cub200_2010(root, class_sizes):
    """Write classes of these many images, and the hidden files that macOS adds to archives."""
    names = [f"{c:03}.Bird_{c}/Bird_{i}.jpg" for c, n in enumerate(class_sizes, start=1) for i in range(n)]
    touch(root / "images", [*names, ".DS_Store", "001.Bird_1/._Bird_0.jpg"])


def car_annotations(names, labels, name_field):
    """Return the struct of the annotations: the box of the k-th image is (k, k + 1, k + 200, k + 300)."""
    fields = [name_field, "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]
    annotations = np.empty(len(names), dtype=[(field, object) for field in fields])
    for k, (name, label) in enumerate(zip(names, labels, strict=True)):
        annotations[k] = (name, np.uint8(label), k, k + 1, k + 200, k + 300)
    return {"annotations": annotations}


CAR_NAMES = {"class_names": np.array(["Audi", "BMW", "Fiat 500", "Volvo"], dtype=object)}


def write_cars196_whole(root):
    names = [f"car_ims/{i:06}.jpg" for i in range(1, 8)]
    touch(root, names)
    savemat(root / "cars_annos.mat", car_annotations(names, [4, 1, 1, 2, 3, 4, 4], "relative_im_path") | CAR_NAMES)


def write_cars196_parts(root):
    for folder, labels, file in (
        ("cars_train", [4, 1, 1], "devkit/cars_train_annos.mat"),
        ("cars_test", [2, 3, 4, 4], "cars_test_annos_withlabels.mat"),
    ):
        names = [f"{i:05}.jpg" for i in range(1, len(labels) + 1)]
        touch(root / folder, names)
        (root / file).parent.mkdir(exist_ok=True)
        savemat(root / file, car_annotations(names, labels, "fname"))
    savemat(root / "devkit" / "cars_meta.mat", CAR_NAMES)


def write_sop(root):
    header = "image_id class_id super_class_id path"
    train = ["1 1 1 bicycle_final/111_0.JPG", "2 1 1 bicycle_final/111_1.JPG", "3 2 2 cabinet_final/77_0.JPG"]
    test = ["4 3 1 bicycle_final/112_0.JPG", "5 3 1 bicycle_final/112_1.JPG"]
    write(root / "Ebay_train.txt", [header, *train, ""])
    write(root / "Ebay_test.txt", [header, *test])
    touch(root, [line.split()[-1] for line in train + test])


INSHOP_ROWS = [
    ("img/WOMEN/Tees/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Tees/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("img/MEN/Denim/id_00000001/01_1_front.jpg", "id_00000001", "query"),
    ("img/MEN/Denim/id_00000001/01_3_back.jpg", "id_00000001", "gallery"),
]


def write_inshop(root, images="Img", boxes=True):
    touch(root / images, [name for name, _, _ in INSHOP_ROWS])
    rows = [f"{name:<70}{item} {status}" for name, item, status in INSHOP_ROWS]
    write(root / "Eval" / "list_eval_partition.txt", [len(rows), "image_name item_id evaluation_status", *rows])
    if boxes:  # in another order
        rows = [f"{name} 3 1 {k:03} 008 100 200" for k, (name, _, _) in reversed(list(enumerate(INSHOP_ROWS)))]
        header = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
        write(root / "Anno" / "list_bbox_inshop.txt", [len(rows), header, *rows])


IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.astype(np.uint8).tobytes()
    )


def write_fashion_mnist(root, suffix=".gz"):
    root.mkdir(parents=True)
    images = np.arange(12 * 28 * 28).reshape(12, 28, 28) % 251
    labels = np.array([9, 0, 3, 5, 0, 1, 2, 4, 6, 7, 8, 0])
    for file, array in zip(IDX_FILES, (images[:8], labels[:8], images[8:], labels[8:]), strict=True):
        (root / f"{file}{suffix}").write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    return images, labels


SMALL = {
    "CUB200": (load_cub200, lambda root: write_cub200(root, [2, 1, 3, 1]), {"train": (3, 2), "test": (4, 2)}),
    "CUB200_2010": (
        load_cub200_2010,
        lambda root: write_cub200_2010(root, [2, 1, 3, 1]),
        {"train": (3, 2), "test": (4, 2)},
    ),
    "CARS196": (load_cars196, write_cars196_whole, {"train": (3, 2), "test": (4, 2)}),
    "SOP": (load_sop, write_sop, {"train": (3, 2), "test": (2, 1)}),
    "INSHOP": (load_inshop, write_inshop, {"train": (2, 1), "query": (1, 1), "gallery": (1, 1)}),
    "FASHION_MNIST": (load_fashion_mnist, write_fashion_mnist, {"train": (7, 5), "test": (5, 5)}),
}


@pytest.fixture(params=SMALL)
def small(request, publish, tmp_path):
    """A small copy of each set: its source, its loader, the folder around it."""
    load, write_copy, counts = SMALL[request.param]
    publish(request.param, counts=counts)
    source = getattr(_benchmarks, request.param)
    (tmp_path / source.folder).parent.mkdir(exist_ok=True)
    if request.param == "CARS196":
        (tmp_path / source.folder).mkdir()
    write_copy(tmp_path / source.folder)
    return source, load, tmp_path


def test_bunch_of_every_benchmark(small):
    source, load, home = small
    bunch = load(data_home=home)
    n = sum(images for images, _ in source.counts.values())
    assert len(bunch.data) == len(bunch.target) == len(bunch.split) == len(bunch.train) == n
    assert bunch.target.dtype == np.int64
    assert bunch.target_names.dtype.kind == "U"
    assert len(bunch.target_names) == len(np.unique(bunch.target)) == bunch.target.max() + 1
    np.testing.assert_array_equal(bunch.train, bunch.split == "train")
    assert not set(bunch.target[bunch.train]) & set(bunch.target[~bunch.train])
    for part, (images, classes) in source.counts.items():
        assert (bunch.split == part).sum() == images
        assert len(set(bunch.target[bunch.split == part])) == classes
    for word in ("Page: http", "Terms: "):
        assert word in bunch.DESCR
    if bunch.data.ndim == 1:
        assert all(os.path.isfile(path) for path in bunch.data)
    X, y = load(data_home=str(home), return_X_y=True)
    np.testing.assert_array_equal(X, bunch.data)
    np.testing.assert_array_equal(y, bunch.target)
    X_train, _, _, _ = class_train_test_split(X, y)
    assert 0 < len(X_train) < n


def test_data_home_may_be_the_folder_itself_or_that_of_sklearn(small, monkeypatch):
    source, load, home = small
    expected = load(data_home=home).data
    np.testing.assert_array_equal(load(data_home=home / source.folder).data, expected)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(home))
    np.testing.assert_array_equal(load().data, expected)
    monkeypatch.setenv("HOME", str(home.parent))
    np.testing.assert_array_equal(load(data_home=f"~/{home.name}").data, expected)


def test_cub200(publish, tmp_path):
    publish("CUB200", counts={"train": (3, 2), "test": (4, 2)})
    write_cub200(tmp_path / "CUB_200_2011", [2, 1, 3, 1])
    birds = load_cub200(data_home=tmp_path)
    assert birds.data[2] == str(tmp_path / "CUB_200_2011" / "images" / "002.Bird_2" / "Bird_3.jpg")
    assert birds.target.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert birds.target_names.tolist() == ["001.Bird_1", "002.Bird_2", "003.Bird_3", "004.Bird_4"]
    assert birds.split.tolist() == ["train"] * 3 + ["test"] * 4
    assert birds.bbox[2].tolist() == [3, 0.5, 5, 4.5]  # left, top, right, bottom


def test_cub200_of_the_published_size(tmp_path, monkeypatch):
    monkeypatch.setattr(_benchmarks, "_image_paths", lambda source, folder, names: names)  # 11,788 files take seconds
    # 5,864 images of classes 1 to 100 and 5,924 of 101 to 200.
    write_cub200(tmp_path, [59] * 64 + [58] * 36 + [60] * 24 + [59] * 76, images=False)
    assert load_cub200(data_home=tmp_path).train.sum() == 5864


def test_cub200_2010(publish, tmp_path):
    publish("CUB200_2010", counts={"train": (3, 2), "test": (4, 2)})
    write_cub200_2010(tmp_path / "CUB_200_2010", [2, 1, 3, 1])
    birds = load_cub200_2010(data_home=tmp_path)
    assert birds.data[2] == str(tmp_path / "CUB_200_2010" / "images" / "002.Bird_2" / "Bird_0.jpg")
    assert birds.target.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert birds.target_names.tolist() == ["001.Bird_1", "002.Bird_2", "003.Bird_3", "004.Bird_4"]
    assert birds.split.tolist() == ["train"] * 3 + ["test"] * 4
    assert "bbox" not in birds


def test_missing_images_of_cub200_2010_are_an_error(publish, tmp_path):
    publish("CUB200_2010", counts={"train": (3, 2), "test": (4, 2)})
    write_cub200_2010(tmp_path, [2, 1, 2, 1])
    with pytest.raises(ValueError, match=r"hold 3 test images of 2 classes, 3 train images .* has 4 test images"):
        load_cub200_2010(data_home=tmp_path)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="hold no images, but the published set has 4 test images"):
        load_cub200_2010(data_home=tmp_path)
    (tmp_path / "images").rmdir()
    with pytest.raises(FileNotFoundError, match="lacks images"):
        load_cub200_2010(data_home=tmp_path)


@pytest.mark.parametrize("write_copy", [write_cars196_whole, write_cars196_parts])
def test_cars196(publish, tmp_path, write_copy):
    publish("CARS196", counts={"train": (3, 2), "test": (4, 2)})
    write_copy(tmp_path)
    cars = load_cars196(data_home=tmp_path)
    last = {write_cars196_whole: "car_ims/000007.jpg", write_cars196_parts: "cars_test/00004.jpg"}[write_copy]
    assert cars.data[6] == str(tmp_path / last)
    assert cars.target.tolist() == [3, 0, 0, 1, 2, 3, 3]
    assert cars.target_names.tolist() == ["Audi", "BMW", "Fiat 500", "Volvo"]
    assert cars.split.tolist() == ["test", "train", "train", "train", "test", "test", "test"]
    assert cars.bbox[2].tolist() == [2, 3, 202, 302]


def test_sop(publish, tmp_path):
    publish("SOP", counts={"train": (3, 2), "test": (2, 1)})
    write_sop(tmp_path)
    products = load_sop(data_home=tmp_path)
    assert products.data[2] == str(tmp_path / "cabinet_final" / "77_0.JPG")
    assert products.target.tolist() == [0, 0, 1, 2, 2]
    assert products.target_names.tolist() == ["bicycle/111", "cabinet/77", "bicycle/112"]
    assert products.split.tolist() == ["train"] * 3 + ["test"] * 2
    assert "bbox" not in products


@pytest.mark.parametrize("images", ["Img", "."])
@pytest.mark.parametrize("boxes", [True, False])
def test_inshop(publish, tmp_path, images, boxes):
    publish("INSHOP", counts={"train": (2, 1), "query": (1, 1), "gallery": (1, 1)})
    write_inshop(tmp_path, images, boxes)
    clothes = load_inshop(data_home=tmp_path)
    assert clothes.data.tolist() == [str(tmp_path / images / name) for name, _, _ in INSHOP_ROWS]
    assert clothes.target.tolist() == [1, 1, 0, 0]
    assert clothes.target_names.tolist() == ["id_00000001", "id_00000002"]
    assert clothes.split.tolist() == ["train", "train", "query", "gallery"]
    assert clothes.train.tolist() == [True, True, False, False]
    if boxes:
        assert clothes.bbox.tolist() == [[k, 8, 100, 200] for k in range(4)]
    else:
        assert clothes.bbox is None


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(publish, tmp_path, suffix):
    publish("FASHION_MNIST", counts={"train": (7, 5), "test": (5, 5)})
    images, labels = write_fashion_mnist(tmp_path / "fashion-mnist", suffix)
    fashion = load_fashion_mnist(data_home=tmp_path)
    assert fashion.images is fashion.data
    assert fashion.data.dtype == np.uint8
    np.testing.assert_array_equal(fashion.data, images)
    np.testing.assert_array_equal(fashion.target, labels)
    np.testing.assert_array_equal(fashion.train, labels < 5)
    assert fashion.target_names[[0, 9]].tolist() == ["T-shirt/top", "Ankle boot"]
    fashion.data[:] = 0  # an array of its own


PUBLISHED = {
    "CUB200": {"train": (5864, 100), "test": (5924, 100)},
    "CUB200_2010": {"train": (2990, 100), "test": (3043, 100)},
    "CARS196": {"train": (8054, 98), "test": (8131, 98)},
    "SOP": {"train": (59551, 11318), "test": (60502, 11316)},
    "INSHOP": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
    "FASHION_MNIST": {"train": (35000, 5), "test": (35000, 5)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_counts_than_published_are_an_error(name):
    target, split, n_classes = [], [], 0
    for part, (images, classes) in PUBLISHED[name].items():
        if part != "gallery":  # the classes of the gallery are those of the queries
            n_classes += classes
        target.append(n_classes - classes + np.arange(images) % classes)
        split.append(np.full(images, part))
    target, split = np.concatenate(target), np.concatenate(split)
    names = np.arange(n_classes).astype(str)

    def check(target, split):
        source = getattr(_benchmarks, name)
        _benchmarks._bunch(
            source, "/data", data=target, target=target, target_names=names, split=split, return_X_y=True
        )

    check(target, split)
    images, classes = PUBLISHED[name]["train"]
    with pytest.raises(
        ValueError, match=rf"hold .*{images - 1} train.* published set has .*{images} train images of {classes}"
    ):
        check(target[1:], split[1:])
    with pytest.raises(ValueError, match=f"of {classes - 1} classes.* published set has .*of {classes} classes"):
        check(np.where(target == 0, 1, target), split)
    for beyond in (-1, n_classes):
        with pytest.raises(ValueError, match=rf"name {n_classes} classes, .* from .*{beyond}"):
            check(np.where(target == 1, beyond, target), split)


@pytest.mark.parametrize(
    ("load", "page", "place"),
    [
        (load_cub200, "https://data.caltech.edu/records/65de6-vp158", "unpack it in {home}, or pass download=True"),
        (load_cub200_2010, "https://www.vision.caltech.edu/datasets/cub_200_2010/", "unpack it in {home}/CUB_200_2010"),
        (load_cars196, "https://github.com/pytorch/vision/issues/7545", "into {home}/cars196"),
        (load_sop, "https://cvgl.stanford.edu/projects/lifted_struct/", "unpack it in {home}, or pass download=True"),
        (load_inshop, "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/", "folders in {home}/In-shop Clothes Retr"),
        (load_fashion_mnist, "https://github.com/zalandoresearch/fashion-mnist", "into {home}/fashion-mnist"),
    ],
)
def test_missing_files_say_what_to_get_and_where_to_put_it(tmp_path, load, page, place):
    home = tmp_path / "mistyped"
    with pytest.raises(FileNotFoundError) as caught:
        load(data_home=home)
    assert page in str(caught.value)
    assert place.format(home=home) in str(caught.value)
    assert not home.exists()


@pytest.mark.parametrize("load", [load_cub200_2010, load_cars196, load_inshop])
def test_what_no_program_may_fetch_is_not_downloaded(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="download=True cannot fetch it"):
        load(data_home=tmp_path, download=True)


def test_one_missing_list_is_named(tmp_path):
    write_cub200(tmp_path / "CUB_200_2011", [1, 1])
    (tmp_path / "CUB_200_2011" / "classes.txt").unlink()
    for home in (tmp_path, tmp_path / "CUB_200_2011"):
        with pytest.raises(FileNotFoundError, match=r"CUB_200_2011 lacks classes\.txt\. "):
            load_cub200(data_home=home)


@pytest.mark.parametrize("small", ["CUB200", "CARS196", "SOP", "INSHOP"], indirect=True)
def test_missing_images_are_counted(small):
    _, load, home = small
    data = load(data_home=home).data
    os.unlink(data[1])
    with pytest.raises(
        FileNotFoundError, match=rf"1 of {len(data)} images are missing; the first one is .*{Path(data[1]).name}"
    ):
        load(data_home=home)
    for path in data:
        Path(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(path).parent.rmdir()
    with pytest.raises(FileNotFoundError, match=rf"{len(data)} of {len(data)} images are missing"):
        load(data_home=home)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", b"1 001.Bird_1/Bird_1.jpg\n2\n", r"images\.txt, line 2: got '2', need 'int str'"),
        ("image_class_labels.txt", b"1 one\n2 2\n", r"labels\.txt, line 1: got '1 one', need 'int int'"),
        ("bounding_boxes.txt", b"1 0.0 0.5 2.0 4.0 9\n", r"need 'int float float float float'"),
        ("bounding_boxes.txt", b"2 0 0 1 1\n1 0 0 1 1\n", r"bounding_boxes\.txt does not list the images of images"),
        ("classes.txt", b"", r"classes\.txt has no entries"),
        ("classes.txt", b"1 \xff\xfe\n", r"classes\.txt is not a text file"),
    ],
)
def test_damaged_text(tmp_path, file, content, message):
    write_cub200(tmp_path, [1, 1])
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_cub200(data_home=tmp_path)


def test_damaged_list_of_boxes(tmp_path):
    write_inshop(tmp_path)
    boxes = tmp_path / "Anno" / "list_bbox_inshop.txt"
    boxes.write_text("".join(boxes.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        ValueError, match=r"lacks 1 of 4 images; the first one is img/WOMEN/Tees/id_00000002/02_1_front"
    ):
        load_inshop(data_home=tmp_path)


def test_damaged_mat(tmp_path):
    write_cars196_whole(tmp_path)
    file = tmp_path / "cars_annos.mat"
    content = file.read_bytes()
    for damaged in (b"", b"not a MATLAB file" * 20, content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cars_annos\.mat is not a MATLAB file with 'annotations'"):
            load_cars196(data_home=tmp_path)
    savemat(file, car_annotations(["a.jpg", "b.jpg"], [1, 2], "fname"))
    with pytest.raises(ValueError, match=r"has the fields .*'fname'.* needs .*'relative_im_path'"):
        load_cars196(data_home=tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-9], "is not a complete gzip file"),
        (lambda content: b"<html>404</html>", "is not a complete gzip file"),
        (
            lambda content: gzip.compress(gzip.decompress(content)[:-1]),
            "is not a complete idx file of bytes with 3 axes",
        ),
        (lambda content: gzip.compress(b""), "is not a complete idx file"),
        (lambda content: gzip.compress(idx(np.zeros(8))), "is not a complete idx file"),
        (lambda content: gzip.compress(idx(np.zeros((7, 28, 28)))), "holds 8 labels for 7 images"),
    ],
)
def test_damaged_idx(tmp_path, damage, message):
    root = tmp_path / "fashion-mnist"
    write_fashion_mnist(root)
    file = root / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_fashion_mnist(data_home=tmp_path)


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    """Serve a folder; gives the folder, its address and the requests so far."""
    folder, requests = tmp_path_factory.mktemp("served"), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            requests.append(self.path)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}", requests
        httpd.shutdown()
        thread.join()


def serve_cub200(server, publish, tmp_path, sha256=None):
    """Publish a small CUB-200-2011 on the server."""
    folder, address, _ = server
    write_cub200(tmp_path / "CUB_200_2011", [2, 1, 3, 1])
    archive = shutil.make_archive(folder / "CUB_200_2011", "gztar", tmp_path, "CUB_200_2011")
    archive = Path(archive).rename(folder / "CUB_200_2011.tgz")
    sha256 = sha256 or hashlib.sha256(archive.read_bytes()).hexdigest()
    publish(
        "CUB200",
        counts={"train": (3, 2), "test": (4, 2)},
        downloads={f"{address}/CUB_200_2011.tgz": sha256},
    )


def test_download_of_an_archive(server, publish, tmp_path):
    serve_cub200(server, publish, tmp_path / "made")
    home = tmp_path / "data" / "home"
    birds = load_cub200(data_home=home, download=True)
    np.testing.assert_array_equal(birds.target, load_cub200(data_home=tmp_path / "made").target)
    assert [path.name for path in home.iterdir()] == ["CUB_200_2011"]  # neither the archive nor anything half done
    assert server[2] == ["/CUB_200_2011.tgz"]
    load_cub200(data_home=home, download=True)
    assert len(server[2]) == 1  # local files first


def test_download_of_a_zip(server, publish, tmp_path):
    folder, address, _ = server
    write_sop(tmp_path / "made" / "Stanford_Online_Products")
    archive = Path(shutil.make_archive(folder / "Stanford_Online_Products", "zip", tmp_path / "made"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    publish("SOP", counts={"train": (3, 2), "test": (2, 1)}, downloads={f"{address}/{archive.name}": sha256})
    assert len(load_sop(data_home=tmp_path, download=True).data) == 5


def test_download_of_files_takes_what_is_missing(server, publish, tmp_path):
    folder, address, requests = server
    write_fashion_mnist(folder / "v1")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "v1").iterdir()}
    publish(
        "FASHION_MNIST",
        counts={"train": (7, 5), "test": (5, 5)},
        downloads={f"{address}/v1/{name}": sha256 for name, sha256 in sums.items()},
    )
    (tmp_path / "fashion-mnist").mkdir()
    shutil.copy(folder / "v1" / "train-images-idx3-ubyte.gz", tmp_path / "fashion-mnist")
    assert len(load_fashion_mnist(data_home=tmp_path, download=True).data) == 12
    assert len(requests) == 3


def test_download_with_another_checksum_is_refused(server, publish, tmp_path):
    serve_cub200(server, publish, tmp_path / "made", sha256="0" * 64)
    with pytest.raises(ValueError, match=r"hash of downloaded file \(CUB_200_2011\.tgz\) does not match"):
        load_cub200(data_home=tmp_path / "home", download=True)
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize(("address", "reason"), [("{http}/gone.tgz", "404"), ("ftp://127.0.0.1/a.tgz", "")])
def test_download_that_fails_says_what_to_do_by_hand(server, publish, tmp_path, address, reason):
    publish("CUB200", downloads={address.format(http=server[1]): "0" * 64})
    with pytest.raises(OSError, match=rf"Could not download .*{reason}.* By hand: .*https://data\.caltech\.edu"):
        load_cub200(data_home=tmp_path, download=True)


def test_download_leaves_a_folder_that_is_there_alone(server, publish, tmp_path):
    serve_cub200(server, publish, tmp_path / "made")
    write(tmp_path / "CUB_200_2011" / "notes.txt", ["mine"])
    with pytest.raises(OSError, match="CUB_200_2011 exists but is not complete; move it away first"):
        load_cub200(data_home=tmp_path, download=True)
    assert not server[2]


def test_download_without_pooch_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'skdml\[download\]'.*https://data\.caltech\.edu"):
        load_cub200(data_home=tmp_path, download=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_downloads_have_a_checksum(name):
    for address, sha256 in getattr(_benchmarks, name).downloads.items():
        assert address.startswith(("https://", "http://", "ftp://"))
        assert len(bytes.fromhex(sha256)) == 32


# A folder of one's own images


def folder_of(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def image_folder(root, endings):
    """Return paths and classes as torchvision's ImageFolder finds them."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    samples = []
    for i, name in enumerate(classes):
        for parent, _, files in sorted(os.walk(os.path.join(root, name), followlinks=True)):
            samples += [(os.path.join(parent, file), i) for file in sorted(files) if file.lower().endswith(endings)]
    return classes, samples


NAMES = [
    "b/2.png",
    "b/10.JPG",
    "a/x/deep/1.jpeg",
    "a/x.tif",
    "a/notes.txt",
    "a/b/1.webp",
    "10/1.bmp",
    "2/1.pgm",
    "é/1.gif",
]


@pytest.mark.parametrize("as_type", [str, Path, lambda root: f"{root}/", lambda root: os.path.relpath(root)])
def test_image_folder_is_that_of_torchvision(tmp_path, as_type):
    root = as_type(folder_of(tmp_path, NAMES))
    images = load_image_folder(root)
    classes, samples = image_folder(root, (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".tif", ".webp", ".gif"))
    assert images.target_names.tolist() == classes
    assert list(zip(images.data.tolist(), images.target.tolist(), strict=True)) == samples
    assert images.target.dtype == np.int64
    assert images.data.dtype.kind == images.target_names.dtype.kind == "U"
    assert all(os.path.exists(path) for path in images.data)
    data, target = load_image_folder(root, return_X_y=True)
    np.testing.assert_array_equal(data, images.data)
    np.testing.assert_array_equal(target, images.target)


def test_image_folder_leaves_out_what_is_hidden_or_no_image(tmp_path):
    hidden = [
        ".git/1.png",
        "a/.thumbnails/1.png",
        "a/._1.png",
        ".hidden.png",
        "readme.md",
        "a/1.eps",
        "a/1.png.txt",
        "a/png",
    ]
    images = load_image_folder(folder_of(tmp_path, ["a/1.png", "b/1.png", *hidden]))
    assert images.data.tolist() == [str(tmp_path / "a/1.png"), str(tmp_path / "b/1.png")]


def test_image_folder_follows_links_but_not_in_circles(tmp_path):
    root = folder_of(tmp_path / "images", ["a/1.png", "a/deep/2.png", "b/1.png"])
    elsewhere = folder_of(tmp_path / "elsewhere", ["3.png", "deep/4.png"])
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "deep" / "up").symlink_to(root / "a")
    (root / "a" / "self").symlink_to(".")
    (root / "b" / "more").symlink_to(elsewhere / "deep")
    (root / "b" / "2.png").symlink_to(elsewhere / "3.png")
    found = [os.path.relpath(path, root) for path in load_image_folder(root).data]
    assert found == ["a/1.png", "a/deep/2.png", "b/1.png", "b/2.png", "b/more/4.png", "c/3.png", "c/deep/4.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no subfolders. Give each class a subfolder"),
        (["notes.txt"], "has no subfolders"),
        ([".git/1.png"], "has no subfolders"),
        (["1.png", "2.JPG"], r"2 images that are in no subfolder, .*; the first one is 1\.png\. Move"),
        (["a/1.png", "b/1.png", "3.png"], r"1 images that are in no subfolder, .* 3\.png\."),
        (["a/1.png", "b/notes.txt", "c/.1.png"], r"2 of 3 subfolders of .* hold no images; the first one is b\."),
    ],
)
def test_image_folder_without_images_or_classes(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        load_image_folder(folder_of(tmp_path, names))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing", FileNotFoundError, "missing' is not a folder"),
        ("a\0b", FileNotFoundError, "is not a folder"),
        ("file.png", NotADirectoryError, "file.png' is not a folder"),
    ],
)
def test_image_folder_that_is_none(tmp_path, name, error, message):
    folder_of(tmp_path, ["file.png"])
    with pytest.raises(error, match=message):
        load_image_folder(os.path.join(tmp_path, name))


@pytest.mark.parametrize("path", [None, 3, b"folder", ["a", "b"]])
def test_image_folder_is_a_path(path):
    with pytest.raises(TypeError, match=f"the name of a folder; got a {type(path).__name__}"):
        load_image_folder(path)
