"""The loaders on the genuine lists of CUB-200-2011 and Cars-196, where they are at hand; the images are empty files.

The environment variable SKDML_DATA names the folder that holds layouts/CUB_200_2011 and layouts/cars196.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from skdml.datasets import load_cars196, load_cub200

DATA = Path(os.environ.get("SKDML_DATA", Path(__file__).parents[2] / "shared" / "data"))


def copy_layout(name, home):
    """Copy the lists of a set into a folder and return the copy."""
    source = DATA / "layouts" / name
    if not source.is_dir():
        pytest.skip(f"needs the lists of {name}, see SKDML_DATA")
    # copyfile: the originals may be read-only.
    return Path(shutil.copytree(source, home / name, copy_function=shutil.copyfile))


def touch(folder, names):
    for parent in {os.path.dirname(name) for name in names}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_cub200(tmp_path):
    root = copy_layout("CUB_200_2011", tmp_path)
    names, labels, boxes, classes = (
        [line.split()[1:] for line in (root / f"{file}.txt").read_text().splitlines()]
        for file in ("images", "image_class_labels", "bounding_boxes", "classes")
    )
    names, classes = [name for (name,) in names], [name for (name,) in classes]
    touch(root / "images", names)

    birds = load_cub200(data_home=tmp_path)
    assert birds.data.tolist() == [str(root / "images" / name) for name in names]
    assert birds.target.tolist() == [int(label) - 1 for (label,) in labels]
    assert birds.target_names.tolist() == classes
    # The folder of an image is named as its class.
    assert [name.partition("/")[0] for name in names] == birds.target_names[birds.target].tolist()
    left, top, width, height = np.array(boxes, dtype=float).T
    np.testing.assert_array_equal(birds.bbox, np.stack([left, top, left + width, top + height], axis=1))
    assert birds.bbox[0].tolist() == [60, 27, 385, 331]
    numbers = np.array([int(name[:3]) for name in names])
    np.testing.assert_array_equal(birds.train, numbers <= 100)
    assert birds.train.sum() == 5864
    assert (birds.split == "test").sum() == 5924


def test_cars196(tmp_path):
    root = copy_layout("cars196", tmp_path)
    names, labels, boxes = [], [], []
    for folder, file in (
        ("cars_train", "devkit/cars_train_annos.mat"),
        ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
        for row in loadmat(root / file)["annotations"][0]:
            names.append(f"{folder}/{row['fname'].item()}")
            labels.append(row["class"].item())
            boxes.append([row[field].item() for field in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")])
    touch(root, names)

    cars = load_cars196(data_home=tmp_path)
    assert cars.data.tolist() == [str(root / name) for name in names]
    assert (cars.target + 1).tolist() == labels
    assert cars.target_names[[0, 13, 195]].tolist() == [
        "AM General Hummer SUV 2000",
        "Audi TTS Coupe 2012",
        "smart fortwo Convertible 2012",
    ]
    assert cars.target_names[cars.target[0]] == "Audi TTS Coupe 2012"
    np.testing.assert_array_equal(cars.bbox, boxes)
    assert (cars.bbox[:, :2] < cars.bbox[:, 2:]).all()
    np.testing.assert_array_equal(cars.train, np.array(labels) <= 98)
    assert cars.train.sum() == 8054
    assert (cars.split == "test").sum() == 8131
