"""Omniglot in the layouts of its authors: a small made copy, and the genuine images where they are at hand.

The environment variable SKDML_DATA names the folder that holds omniglot.npz.
"""

import dataclasses
import io
import os
import shutil
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from skdml.datasets import _omniglot, load_omniglot
from skdml.datasets._benchmarks import check_counts

DATA = Path(os.environ.get("SKDML_DATA", Path(__file__).parents[2] / "shared" / "data"))
FOLDERS = ("images_background", "images_evaluation")
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["folders", "zips"])

# Two drawings of each character; evaluation comes first in the alphabet, to tell the orders apart.
CHARACTERS = {
    "Arcadian/character01": "images_evaluation",
    "Armenian/character01": "images_background",
    "Gurmukhi/character41": "images_background",
    "Gurmukhi/character42": "images_background",
    "Tibetan/character01": "images_evaluation",
}
COUNTS = {"background": (6, 3), "evaluation": (4, 2)}


def encode(ink):
    """Return the content of a file of the set: 1 bit per pixel, black ink on white."""
    file = io.BytesIO()
    Image.fromarray(~ink).save(file, "png", compress_level=1)
    return file.getvalue()


def write_layout(root, contents, packed):
    """Write the content of each file, by its name as in "images_background/Greek/character01/0394_01.png"."""
    root.mkdir(parents=True)
    if packed:
        archives = {folder: ZipFile(root / f"{folder}.zip", "w") for folder in FOLDERS}
        for name, content in contents.items():
            archives[name.partition("/")[0]].writestr(name, content)
        for archive in archives.values():
            archive.close()
    else:
        for folder in {os.path.dirname(name) for name in contents}:
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (root / name).write_bytes(content)


@pytest.fixture
def ink():
    """Random drawings, (10, 105, 105), in the order of the characters."""
    return np.random.default_rng(0).random((10, 105, 105)) < 0.3


@pytest.fixture
def contents(ink, monkeypatch):
    """The files of a small copy, whose counts pass for the published ones."""
    monkeypatch.setattr(_omniglot, "OMNIGLOT", dataclasses.replace(_omniglot.OMNIGLOT, counts=COUNTS))
    names = [f"{folder}/{name}/{i:04}_{i:02}.png" for name, folder in CHARACTERS.items() for i in (1, 2)]
    return {name: encode(drawing) for name, drawing in zip(names, ink, strict=True)}


@pytest.fixture
def home(tmp_path, contents):
    """The folder around a small copy in two zip files."""
    write_layout(tmp_path / "omniglot", contents, packed=True)
    return tmp_path


@PACKED
def test_small_copy(tmp_path, contents, ink, packed):
    write_layout(tmp_path / "omniglot", dict(reversed(contents.items())), packed)
    omniglot = load_omniglot(data_home=tmp_path, size=None)
    assert omniglot.images is omniglot.data
    assert omniglot.data.dtype == np.uint8
    np.testing.assert_array_equal(omniglot.data, 255 * ink)  # white on black
    assert omniglot.target.dtype == np.int64
    assert omniglot.target.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert omniglot.target_names.tolist() == list(CHARACTERS)
    assert omniglot.split.tolist() == ["train"] * 2 + ["val"] * 2 + ["train"] * 2 + ["test"] * 4
    np.testing.assert_array_equal(omniglot.train, omniglot.split == "train")
    for word in ("Page: http", "Terms: "):
        assert word in omniglot.DESCR


def test_split_of_the_authors(home):
    omniglot = load_omniglot(data_home=home, split="background")
    assert omniglot.split.tolist() == ["test"] * 2 + ["train"] * 6 + ["test"] * 2
    np.testing.assert_array_equal(omniglot.train, omniglot.split == "train")


def test_images_are_those_of_prototypical_networks(home, contents):
    """Their code turns an image, scales it by Pillow's defaults for 1-bit images, and takes 1 minus the pixels."""
    omniglot = load_omniglot(data_home=home, rotations=True)
    contents = sorted(contents.items(), key=lambda item: item[0].partition("/")[2])
    expected = [
        1.0 - np.array(Image.open(io.BytesIO(content)).rotate(degrees).resize((28, 28)), dtype=np.float32)
        for degrees in (0, 90, 180, 270)
        for _, content in contents
    ]
    np.testing.assert_array_equal(omniglot.images / 255.0, expected)


def test_rotations_are_classes(home):
    upright = load_omniglot(data_home=home)
    omniglot = load_omniglot(data_home=home, rotations=True)
    assert omniglot.data.shape == (40, 28, 28)
    np.testing.assert_array_equal(np.bincount(omniglot.target), np.full(20, 2))
    np.testing.assert_array_equal(omniglot.data[:10], upright.data)
    np.testing.assert_array_equal(omniglot.target[:10], upright.target)
    for row in (0, 13, 39):
        character, turn = omniglot.target_names[omniglot.target[row]].rsplit("/", 1)
        assert character == upright.target_names[upright.target[row % 10]]
        assert turn == ["rot000", "rot090", "rot180", "rot270"][row // 10]
        np.testing.assert_array_equal(omniglot.data[row], np.rot90(upright.data[row % 10], row // 10))
    np.testing.assert_array_equal(omniglot.split.reshape(4, 10), np.tile(upright.split, (4, 1)))
    np.testing.assert_array_equal(omniglot.train, omniglot.split == "train")


def test_return_X_y(home):
    omniglot = load_omniglot(data_home=home, size=20, rotations=True)
    X, y = load_omniglot(data_home=str(home), size=20, rotations=True, return_X_y=True)
    assert X.shape == (40, 20, 20)
    np.testing.assert_array_equal(X, omniglot.data)
    np.testing.assert_array_equal(y, omniglot.target)


def test_data_home_may_be_the_folder_itself_or_that_of_sklearn(home, monkeypatch):
    expected = load_omniglot(data_home=home).data
    np.testing.assert_array_equal(load_omniglot(data_home=home / "omniglot").data, expected)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(home))
    np.testing.assert_array_equal(load_omniglot().data, expected)


def test_what_macos_adds_to_a_zip_is_not_read(home):
    with ZipFile(home / "omniglot" / "images_background.zip", "a") as archive:
        archive.writestr("__MACOSX/images_background/Gurmukhi/character41/._0001_01.png", b"")
    assert len(load_omniglot(data_home=home).data) == 10


def test_images_of_8_bits_are_read_alike(tmp_path, contents, home):
    eight_bits = {}
    for name, content in contents.items():
        file = io.BytesIO()
        Image.open(io.BytesIO(content)).convert("RGB").save(file, "png")
        eight_bits[name] = file.getvalue()
    write_layout(tmp_path / "again", eight_bits, packed=False)
    np.testing.assert_array_equal(load_omniglot(data_home=tmp_path / "again").data, load_omniglot(data_home=home).data)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "lake"}, ValueError, "split is 'lake'; it must be 'vinyals' or 'background'"),
        ({"size": 0}, ValueError, "size == 0, must be >= 1"),
        ({"size": 28.0}, TypeError, "size must be an instance of .*int"),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        load_omniglot(**options)


def test_missing_files_say_what_to_get_and_where_to_put_it(tmp_path, home):
    with pytest.raises(FileNotFoundError) as caught:
        load_omniglot(data_home=tmp_path / "mistyped")
    assert "https://github.com/brendenlake/omniglot" in str(caught.value)
    assert f"into {tmp_path}/mistyped/omniglot; they may stay zipped, or pass download=True." in str(caught.value)
    assert not (tmp_path / "mistyped").exists()
    (home / "omniglot" / "images_evaluation.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"omniglot lacks images_evaluation\.zip\. Download python/images_back"):
        load_omniglot(data_home=home)


@PACKED
def test_other_counts_than_published_are_an_error(tmp_path, contents, packed):
    contents.pop("images_background/Gurmukhi/character41/0002_02.png")
    write_layout(tmp_path / "omniglot", contents, packed)
    with pytest.raises(ValueError, match=r"hold 5 background images of 3 classes, .* published set has 6 background"):
        load_omniglot(data_home=tmp_path)
    (tmp_path / "omniglot").rename(tmp_path / "incomplete")
    write_layout(tmp_path / "omniglot", {f"{folder}/README": b"" for folder in FOLDERS}, packed)
    with pytest.raises(ValueError, match=r"hold no images, but the published set has 6 background"):
        load_omniglot(data_home=tmp_path)


def test_published_counts():
    assert _omniglot.OMNIGLOT.counts == {"background": (964 * 20, 964), "evaluation": (659 * 20, 659)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "truncated"),
        (lambda content: b"<html>404</html>", "cannot identify image file"),
        (lambda content: encode(np.zeros((28, 30), dtype=bool)), "it has 30 x 28 pixels, not 105 x 105"),
    ],
)
@PACKED
def test_damaged_image(tmp_path, contents, packed, damage, message):
    name = "Gurmukhi/character41/0001_01.png"
    contents[f"images_background/{name}"] = damage(contents[f"images_background/{name}"])
    write_layout(tmp_path / "omniglot", contents, packed)
    with pytest.raises(ValueError, match=rf"{name} in .*omniglot is not as published: .*{message}.* download it again"):
        load_omniglot(data_home=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-30],
        lambda content: b"<html>404</html>",
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
    ],
)
def test_damaged_zip(home, damage):
    file = home / "omniglot" / "images_background.zip"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"images_background\.zip is not a complete zip file: .* download it again"):
        load_omniglot(data_home=home)


def test_download_keeps_the_zip_files(tmp_path, contents, monkeypatch):
    pooch = pytest.importorskip("pooch")
    write_layout(tmp_path / "served", contents, packed=True)
    addresses = {}

    def retrieve(url, known_hash, path, fname, progressbar):
        addresses[url] = known_hash
        path.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "served" / fname, path)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(load_omniglot(data_home=tmp_path / "home", download=True).data) == 10
    assert sorted(os.listdir(tmp_path / "home" / "omniglot")) == ["images_background.zip", "images_evaluation.zip"]
    for folder, url in zip(FOLDERS, addresses, strict=True):
        assert url == f"https://github.com/brendenlake/omniglot/raw/master/python/{folder}.zip"
        assert len(bytes.fromhex(addresses[url].removeprefix("sha256:"))) == 32


# The genuine images: two drawings of each character, as it takes long to write all.


@pytest.fixture(scope="module")
def genuine():
    if not (DATA / "omniglot.npz").is_file():
        pytest.skip("needs the images of Omniglot, see SKDML_DATA")
    with np.load(DATA / "omniglot.npz") as file:
        arrays = dict(file)
    arrays["name"] = np.array([f"{a}/{c}" for a, c in zip(arrays["alphabet"], arrays["character"], strict=True)])
    return arrays


def test_published_counts_are_those_of_the_genuine_set(genuine):
    part = np.where(genuine["background"], "background", "evaluation")
    _, target = np.unique(genuine["name"], return_inverse=True)
    check_counts(_omniglot.OMNIGLOT, "", target, part)


@PACKED
def test_genuine_images(genuine, tmp_path, monkeypatch, packed):
    counts = {"background": (2 * 964, 964), "evaluation": (2 * 659, 659)}
    monkeypatch.setattr(_omniglot, "OMNIGLOT", dataclasses.replace(_omniglot.OMNIGLOT, counts=counts))
    order = np.lexsort([genuine["drawing"], genuine["name"]]).reshape(1623, 20)[:, [0, 19]].ravel()
    ink = np.unpackbits(genuine["ink"][order], axis=1, count=105 * 105).reshape(-1, 105, 105).astype(bool)
    names, in_background = genuine["name"][order], genuine["background"][order]
    files = zip(np.where(in_background, *FOLDERS), names, genuine["drawing"][order], strict=True)
    contents = {"/".join(parts): encode(drawing) for parts, drawing in zip(files, ink, strict=True)}
    write_layout(tmp_path / "omniglot", contents, packed)

    omniglot = load_omniglot(data_home=tmp_path, split="background", size=None)
    assert np.array_equal(omniglot.data, 255 * ink.view(np.uint8))
    assert omniglot.target_names[omniglot.target].tolist() == names.tolist()
    np.testing.assert_array_equal(omniglot.train, in_background)

    omniglot = load_omniglot(data_home=tmp_path, rotations=True)
    for part in ("train", "val", "test"):
        assert set(omniglot.target_names[omniglot.target[omniglot.split == part]]) == set(genuine[f"vinyals_{part}"])
