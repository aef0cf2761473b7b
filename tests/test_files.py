"""Image files: what is read, what is refused, worker processes, the cache."""

import contextlib
import functools
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import struct
import time
import traceback
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from PIL import Image, ImageOps
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils import Bunch
from sklearn.utils.fixes import parse_version
from skorch.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset

from skdml import (
    ClassKFold,
    FoldEnsembleEmbedder,
    HTLEmbedder,
    MagnetEmbedder,
    RAWEmbedder,
    RecallAtK,
    SmartMiningEmbedder,
    SoftTripleEmbedder,
    SSTEmbedder,
    class_train_test_split,
)
from skdml._data import files as files_module
from skdml._data.arrays import Files
from skdml._data.files import ImageFiles, decode, read_header, run_workers
from skdml._data.images import Preprocessing

Y = np.repeat(np.arange(4), 5)
FORMATS = ("jpg", "png", "webp")


def picture(seed, width=60, height=40):
    """Return smooth colors, which JPEG keeps nearly as they are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def paths(tmp_path):
    """Twenty files, in three formats: a class is a picture, its samples differ in size."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [str(folder / f"{i}.{FORMATS[i % 3]}") for i in range(20)]
    for i, path in enumerate(paths):
        picture(Y[i], 60 - i, 40 + i).save(path, quality=95)
    return paths


def embedder(cls=SoftTripleEmbedder, **params):
    common = {"max_epochs": 2, "batch_size": 8, "resize": 20, "crop_size": 16, "n_components": 8}
    return cls(**common | {"random_state": 0, "device": "cpu"} | params)


def png(header, data):
    """Return a PNG file of this header and compressed pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bare_png(width, height):
    """Return a PNG file that says it has this size, and holds nothing."""
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(b""))


DAMAGES = {  # what the file holds then, and what the error says
    "empty": (b"", "is empty"),
    "text": (b"no image", "is not an image in one of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, JPEG2000"),
    "no pixels": (bare_png(0, 5), "is not an image in one of the formats"),
    "bomb": (bare_png(20_000, 20_000), "limit PIL.Image.MAX_IMAGE_PIXELS = 89,478,485 against decompression bombs"),
    "truncated": (None, "cannot be decoded: "),
    "missing": (None, "does not exist"),
    "folder": (None, "is a folder"),
    "pipe": (None, "is a named pipe, not a regular file"),
    "socket": (None, "is a socket, not a regular file"),
    "device": (None, "is a device, not a regular file"),
}
if not hasattr(os, "mkfifo"):
    DAMAGES = {how: DAMAGES[how] for how in DAMAGES if how not in ("pipe", "socket", "device")}


def damage(path, how):
    """Make the file unusable; return what the error says of it."""
    path = Path(path)
    content, reason = DAMAGES[how]
    if how == "truncated":
        content = path.read_bytes()[:-200]
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(path.parent):
            listener.bind(path.name)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how != "missing":
        path.write_bytes(content)
    return reason


def damage_late(path):
    """Make the file, a GIF then, one that only decoding finds out."""
    with Image.open(path) as image:
        image.save(path, format="GIF")
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


@pytest.fixture
def decoded(monkeypatch):
    """Return the list of the paths that are decoded in this process from now on."""
    seen = []

    def counting(path, resize):
        seen.append(path)
        return decode(path, resize)

    monkeypatch.setattr(files_module, "decode", counting)
    return seen


# Decoding


MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "jpg": ["1", "L", "RGB", "CMYK"],
    "webp": ["L", "LA", "P", "RGB", "RGBA"],
    "gif": ["1", "L", "P", "RGB", "RGBA"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "ppm": ["1", "L", "RGB"],
    "jp2": ["L", "LA", "RGB", "RGBA", "I;16"],
    "avif": ["RGB", "RGBA"] if find_spec("PIL.AvifImagePlugin") else [],
}


@pytest.mark.parametrize(("extension", "mode"), [(extension, mode) for extension in MODES for mode in MODES[extension]])
def test_any_mode_becomes_rgb_of_the_size_that_the_header_tells(tmp_path, mode, extension):
    gray = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    image = Image.fromarray(gray) if mode == "I;16" else picture(0).convert(mode)
    path = str(tmp_path / f"image.{extension}")
    image.save(path)
    for resize, shape in [(None, (40, 60, 3)), (16, (16, 24, 3)), (64, (64, 96, 3))]:
        pixels = decode(path, resize)
        assert pixels.dtype == np.uint8
        assert pixels.shape == shape
        assert read_header(path, resize) == shape[:2]


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    gray = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    path = str(tmp_path / "image.png")
    Image.fromarray(gray).save(path)
    np.testing.assert_array_equal(decode(path, None), (gray >> 8)[:, :, None].repeat(3, axis=2))


def test_transparency_is_on_white(tmp_path):
    alpha = np.zeros((40, 60), dtype=np.uint8)
    alpha[20:] = 255
    image = picture(0)
    image.putalpha(Image.fromarray(alpha))
    path = str(tmp_path / "image.png")
    image.save(path)
    pixels = decode(path, None)
    assert (pixels[:20] == 255).all()
    np.testing.assert_array_equal(pixels[20:], np.asarray(picture(0))[20:])


def test_transparent_color_of_a_palette_is_on_white(tmp_path):
    image = Image.frombytes("P", (2, 2), bytes(range(4)))
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = str(tmp_path / "image.png")
    image.save(path, transparency=1)
    expected = [[[0, 0, 0], [255, 255, 255]], [[40, 50, 60], [70, 80, 90]]]
    np.testing.assert_array_equal(decode(path, None), expected)


def test_cmyk_jpeg_has_the_colors_that_it_shows(tmp_path):
    path = str(tmp_path / "image.jpg")
    picture(0).convert("CMYK").save(path, quality=100)
    assert np.abs(decode(path, None).astype(int) - np.asarray(picture(0))).max() < 20


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / f"image.{extension}")
    picture(0).save(path, exif=exif, lossless=True, quality=100)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    size = (30, 45) if orientation > 4 else (45, 30)
    np.testing.assert_array_equal(decode(path, None), upright)
    np.testing.assert_array_equal(decode(path, 30), upright.resize(size, Image.Resampling.BILINEAR))
    assert read_header(path, 30) == size[::-1]


@pytest.mark.parametrize("size", [(1003, 755), (755, 1003), (513, 511), (97, 4000)])
def test_large_jpeg_is_decoded_at_a_fraction_to_the_size_that_the_header_tells(tmp_path, size):
    path = str(tmp_path / "image.jpg")
    picture(0, *size).save(path, quality=95)
    for resize in (31, 64, 96):
        pixels = decode(path, resize)
        assert pixels.shape[:2] == read_header(path, resize)
        assert min(pixels.shape[:2]) == resize
        with Image.open(path) as image:
            whole = np.asarray(image.resize(pixels.shape[1::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(pixels - whole).mean() < 5  # another picture is 60 away


def test_png_without_its_end_is_read_where_pillow_reads_it(tmp_path):
    path = tmp_path / "image.png"
    picture(0).save(path)
    path.write_bytes(path.read_bytes()[:-12])
    assert decode(str(path), None).shape == (40, 60, 3)
    assert read_header(str(path), 20) == (20, 30)


def deep_png(values, mode="gray"):
    """Return a PNG file of 16 bits per channel with these values, (height, width)."""
    n_channels, color = {"gray": (1, 0), "rgb": (3, 2)}[mode]
    rows = np.repeat(values.astype(">u2"), n_channels, axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *values.shape[::-1], 16, color, 0, 0, 0)
    return png(header, zlib.compress(data))


@pytest.mark.parametrize("kind", ["png", "rgb png", "tiff", "packed tiff", "pgm", "ppm"])
@pytest.mark.parametrize(("bits", "n_warnings"), [(8, 1), (10, 1), (12, 1), (16, 0)])
def test_sixteen_bits_of_which_fewer_are_used_are_told_once(tmp_path, kind, bits, n_warnings):
    values = np.linspace(0, 2**bits - 1, 20 * 30).astype(np.uint16).reshape(20, 30)
    path = tmp_path / f"image.{kind.split()[-1]}"
    if kind.endswith("png"):
        path.write_bytes(deep_png(values, "rgb" if kind.startswith("rgb") else "gray"))
    elif kind.endswith("tiff"):
        Image.fromarray(values).save(path, compression="tiff_lzw" if kind == "packed tiff" else None)
    else:
        magic, n_channels = (b"P5", 1) if kind == "pgm" else (b"P6", 3)
        pixels = np.repeat(values.astype(">u2"), n_channels, axis=1).tobytes()
        path.write_bytes(magic + b" 30 20 65535\n" + pixels)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        files = ImageFiles([str(path)] * 4, None)
        for _ in range(2):
            list(files.images([[0, 1], [2, 3]]))
        files = files.keep([0, 1])
        list(files.images([[0, 1]]))
    told = [str(w.message) for w in record if "16 bits" in str(w.message)]
    assert len(told) == n_warnings
    assert all(str(path) in text and "after dividing the pixels by 4 or 16" in text for text in told)


def test_a_fit_tells_once_that_files_use_few_of_sixteen_bits(tmp_path, recwarn):
    path = str(tmp_path / "image.png")
    Image.fromarray(np.full((20, 20), 1023, np.uint16)).save(path)
    for n_jobs in (None, 2):
        recwarn.clear()
        embedder(n_jobs=n_jobs, cache=tmp_path / "cache").fit([path] * 20, Y)
        assert [str(w.message)[: len(path)] for w in recwarn] == [path]


def test_dark_pictures_of_eight_bits_are_fine(tmp_path):
    path = str(tmp_path / "image.png")
    Image.new("RGB", (20, 20)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder(max_epochs=1).fit([path] * 20, Y)


# What is refused


OTHERS = ["eps", "ico", "tga", "pcx", "sgi", "icns", "dds"]


@pytest.mark.parametrize("extension", OTHERS)
@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
def test_only_the_formats_that_are_promised_are_opened(tmp_path, monkeypatch, extension, name):
    picture(0, 32, 32).save(tmp_path / f"image.{extension}")
    path = tmp_path / name
    (tmp_path / f"image.{extension}").rename(path)
    monkeypatch.setattr("subprocess.Popen", None)
    for function in (decode, read_header):
        assert "is not an image in one of the formats JPEG, PNG" in function(str(path), 16)


class Silent(Exception):
    def __str__(self):
        return " "


@pytest.mark.parametrize("error", [Silent(), MemoryError(), OSError(), AssertionError()], ids=repr)
def test_an_error_without_text_is_called_by_its_type(paths, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(files_module.Image, "open", fail)
    for function in (decode, read_header):
        assert function(paths[0], 16) == f"cannot be decoded: {type(error).__name__}"


@pytest.mark.parametrize("path", ["a\0b.jpg", "a\ud800.jpg"])
@pytest.mark.parametrize("cache", [False, True])
def test_what_cannot_be_a_path_is_a_bad_file(tmp_path, paths, path, cache):
    params = {"cache": tmp_path / "cache"} if cache else {}
    with pytest.raises(ValueError, match="1 of 20 files cannot be used") as error:
        embedder(**params).fit([path, *paths[1:]], Y)
    assert f"{path!r} cannot be the path of a file" in str(error.value)
    with pytest.warns(UserWarning, match="1 of 20 files cannot be used"):
        embedder(on_error="skip", **params).fit([path, *paths[1:]], Y)


LONG = {"gif": (4000, 1), "png": (1, 20_000), "webp": (10_000, 2), "bmp": (9_000, 1), "tiff": (1, 8_000)}


@pytest.mark.parametrize("extension", LONG)
def test_the_size_after_resize_is_limited(tmp_path, extension, monkeypatch):
    path = str(tmp_path / f"image.{extension}")
    Image.new("RGB", LONG[extension]).save(path)
    width, height = LONG[extension]
    for function in (read_header, decode):
        assert isinstance(function(path, 8), tuple | np.ndarray)
        assert f"{height:,} x {width:,} pixels (height x width) would become" in function(path, 256)
    with pytest.raises(ValueError, match=r"with resize=256, more than the limit PIL\.Image\.MAX_IMAGE_PIXELS"):
        RAWEmbedder().fit([path] * 20, Y)
    fitted = embedder(max_epochs=1).fit(np.zeros((20, 20, 20, 3), np.uint8), Y)
    fitted._input.preprocessing["resize"] = 100_000
    with pytest.raises(ValueError, match="with resize=100000, more than the limit"):
        fitted.transform([path])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_header(path, 256)[0] == round(height * 256 / min(width, height))


@pytest.mark.parametrize("params", [{"resize": 256}, {"resize": 256, "crop_size": 32}, {"resize": 100_000}])
@pytest.mark.parametrize("augment", [None, "standard"])
def test_arrays_are_not_enlarged_beyond_the_limit_either(params, augment):
    for X in (np.zeros((20, 1, 4000, 3), np.uint8), np.zeros((20, 3, 1, 4000), np.float32)):
        with pytest.raises(ValueError, match=r"1 x 4,000 pixels .* more than the limit PIL\.Image\.MAX_IMAGE_PIXELS"):
            RAWEmbedder(augment=augment, **params).fit(X, Y)


def test_a_file_that_shrinks_during_the_fit(paths):
    files = [paths[0]] * 20
    data = ImageFiles(files, None)
    picture(0, 10, 10).save(paths[0])
    settings = Preprocessing(None, 16, (0.0,), (1.0,), None, (0.1, 1.0), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"holds 10 x 10 pixels .* has changed since its header was read"):
        Files(data, settings).batch(slice(0, 2))


BIG = os.urandom(100_000)
NO_ROWS = {
    "folder": (lambda paths: str(Path(paths[0]).parent), "of type str; .*load_image_folder"),
    "path": (lambda paths: Path(paths[0]).parent, "of type PosixPath|WindowsPath; .*load_image_folder"),
    "pattern": (lambda paths: "images/*.png", r"of type str; .*sorted\(glob.glob\(pattern\)\)"),
    "glob": (lambda paths: Path(paths[0]).parent.glob("*"), r"of type (generator|map); pass list\(X\)"),
    "iterator": (lambda paths: iter(paths), r"of type list_iterator; pass list\(X\)"),
    "set": (lambda paths: set(paths), r"of type set; pass list\(X\)"),
    "dict": (lambda paths: {"data": paths}, r"of type dict; pass one of its values, such as X\['data'\]"),
    "bunch": (lambda paths: Bunch(data=paths), "of type Bunch; pass one of its values"),
    "dict values": (lambda paths: {"data": paths}.values(), r"of type dict_values; pass list\(X\)"),
    "bytes": (lambda paths: BIG, r"of type bytes; .*Image.open\(io.BytesIO\(X\)\)"),
    "bytearray": (lambda paths: bytearray(BIG), "of type bytearray; "),
    "memoryview": (lambda paths: memoryview(BIG), "of type memoryview; "),
    "file": (lambda paths: io.BytesIO(BIG), "of type BytesIO; pass the path"),
    "array of bytes": (lambda paths: np.array(BIG), "got scalar: X is of type ndarray"),
    "rows of bytes": (lambda paths: [[BIG, BIG]] * 20, "of type list and holds text"),
    "dataset": (lambda paths: TensorDataset(torch.zeros(20, 3)), r"of type TensorDataset; pass the array np.stack"),
    "loader": (lambda paths: DataLoader(TensorDataset(torch.zeros(20, 3))), "of type DataLoader; .*np.concatenate"),
    "image": (lambda paths: picture(0), r"of type Image; .*np.asarray\(X\)\[None\]"),
    "None": (lambda paths: None, "got scalar: X is of type NoneType"),
    "sizes": (lambda paths: [np.zeros((4 + i % 2, 5, 3)) for i in range(20)], r"\(4, 5, 3\) and \(5, 5, 3\)\. Bring"),
    "images": (lambda paths: [picture(0, 40 + i % 2, 40) for i in range(20)], "different shapes, .* and .*Bring"),
    "object sizes": (
        lambda paths: pd.Series([torch.zeros(4 + i % 2, 5) for i in range(20)]),
        "Series and holds rows of different shapes",
    ),
    "one size": (lambda paths: pd.Series([np.zeros((4, 5))] * 20), r"20 arrays of shape \(4, 5\)\. Pass np.stack"),
    "lengths": (lambda paths: [[1, 2], [3]] * 10, r"different shapes, \(2,\) and \(1,\)\. Give all the same number"),
    "samples": (lambda paths: [(np.zeros((4, 4)), 1)] * 20, "objects of type tuple, which are not rows"),
    "dicts": (lambda paths: [{"image": BIG}] * 20, "objects of type dict, which are not rows"),
    "Nones": (lambda paths: [None] * 20, "objects of type NoneType, which are not rows"),
    "contents": (lambda paths: [BIG] * 20, "a bytes. Convert paths with os.fsdecode"),
    "column": (
        lambda paths: np.zeros(1_000_000),
        "got 1D array instead: X is of type ndarray and has 1000000 elements",
    ),
    "text": (lambda paths: pd.DataFrame({"path": ["x" * 10_000] * 20, "b": 1}), "of type DataFrame and holds text"),
}


@functools.cache
def on_vectors():
    return embedder(max_epochs=1, resize="auto", crop_size="auto").fit(np.arange(60.0).reshape(20, 3), Y)


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_holds_no_rows_is_an_error_that_says_how(paths, kind):
    make, message = NO_ROWS[kind]
    vectors = embedder(max_epochs=1, resize="auto", crop_size="auto").fit(np.arange(60.0).reshape(20, 3), Y)
    for run, says in (
        (lambda: embedder().fit(make(paths), None), message),
        (lambda: vectors.transform(make(paths)), "X"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            run()
        text = "".join(traceback.format_exception(error.value))
        assert len(str(error.value)) < 300
        assert max(len(line) for line in text.splitlines()) < 500


@pytest.mark.parametrize("how", DAMAGES)
def test_bad_files_are_listed_before_anything_is_decoded(paths, decoded, how):
    reason = damage(paths[2], how)
    damage(paths[11], how)
    with pytest.raises(ValueError, match="2 of 20 files cannot be used") as error:
        embedder().fit(paths, Y)
    lines = str(error.value).splitlines()
    assert lines[1].startswith(f"  {paths[2]} ")
    assert reason in lines[1]
    assert lines[2].startswith(f"  {paths[11]} ")
    assert "on_error='skip'" in lines[3]
    assert set(decoded) <= {paths[2], paths[11]}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("how", ["pipe", "socket", "device", "folder"])
def test_transform_opens_only_regular_files(tmp_path, paths, how):
    fitted = embedder(max_epochs=1).fit(paths, Y)
    for params in ({}, {"cache": tmp_path / "cache"}, {"n_jobs": 2}):
        files = [*paths[:3], str(tmp_path / "special.jpg")]
        picture(0).save(files[3])
        reason = damage(files[3], how)
        with pytest.raises(ValueError, match=f"1 of 4 files cannot be used:\n  {files[3]} {reason}"):
            fitted.set_params(cache=None, n_jobs=None).set_params(**params).transform(files)
        shutil.rmtree(files[3]) if how == "folder" else os.unlink(files[3])


def test_five_of_many_bad_files_are_shown(paths):
    for path in paths[3:17]:
        damage(path, "empty")
    with pytest.raises(ValueError, match="14 of 20 files cannot be used") as error:
        embedder(n_jobs=2).fit(paths, Y)
    assert [line.split()[0] for line in str(error.value).splitlines()[1:6]] == paths[3:8]
    assert "and 9 more" in str(error.value)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_no_header_tells_is_an_error_in_training(paths, n_jobs):
    damage_late(paths[6])
    with pytest.raises(ValueError, match=rf"(?s){paths[6]} cannot be decoded: .*No header shows this"):
        embedder(n_jobs=n_jobs).fit(paths, Y)


def test_skip_leaves_out_and_warns_once(paths):
    damage(paths[2], "empty")
    damage_late(paths[6])
    with pytest.warns(UserWarning, match="cannot be used") as record:
        skipped = embedder(on_error="skip", early_stopping=True).fit(paths, Y)
    assert [str(w.message) for w in record] == [
        f"2 of 20 files cannot be used and are left out. The first one is {paths[2]}, which is empty."
    ]
    good = [i for i in range(20) if i not in (2, 6)]
    good_paths = [paths[i] for i in good]
    without = embedder(early_stopping=True).fit(good_paths, Y[good])
    np.testing.assert_array_equal(skipped.transform(good_paths), without.transform(good_paths))
    assert [epoch["loss"] for epoch in skipped.history_] == [epoch["loss"] for epoch in without.history_]
    with pytest.raises(ValueError, match="1 of 20 files cannot be used"):
        skipped.transform(paths)
    damage(paths[2], "missing")
    with pytest.raises(ValueError, match="1 of 1 files cannot be used"):
        skipped.transform(paths[6:7])


def test_skip_needs_one_good_file_and_two_classes(paths):
    for path in paths[5:]:
        damage(path, "empty")
    with pytest.warns(UserWarning, match="15 of 20"), pytest.raises(ValueError, match="y has 1 class"):
        embedder(on_error="skip").fit(paths, Y)
    for path in paths[:5]:
        damage(path, "empty")
    with pytest.raises(ValueError, match="20 of 20 files"):
        embedder(on_error="skip").fit(paths, Y)


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (3, "element 1 is 3, a int"),
        (None, "element 1 is None"),
        (float("nan"), "element 1 is nan, a float"),
        (b"a.png", "element 1 is b'a.png', a bytes"),
        (np.zeros((2, 2)), r"element 1 is array\("),
    ],
)
def test_paths_are_strings(paths, element, message):
    for X in (["a.png", element], pd.Series(["a.png", element], dtype=object)):
        with pytest.raises(ValueError, match=f"all of which must be str or os.PathLike; {message}"):
            embedder().fit(X, [0, 1])
    with pytest.raises(ValueError, match=r"element 0 is .*b'a.png'"):
        embedder().fit(np.array([b"a.png", b"b.png"]), [0, 1])


def test_images_of_several_sizes_need_both_sizes(paths):
    with pytest.raises(ValueError, match=r"different sizes \(height x width\): .*0.jpg is 40 x 60, .* is 41 x 59"):
        embedder(resize=None, crop_size=None).fit(paths, Y)
    with pytest.raises(ValueError, match=r"different sizes .* after resize"):
        embedder(resize=20, crop_size=None).fit(paths, Y)
    with pytest.raises(ValueError, match="crop_size=30 is larger than the images, whose shorter side has 20 pixels"):
        embedder(crop_size=30).fit(paths, Y)
    with pytest.raises(ValueError, match="crop_size=48 is larger than the images, whose shorter side has 40 pixels"):
        embedder(resize=None, crop_size=48).fit(paths, Y)
    embedder(resize=None, crop_size=40).fit(paths, Y)


def test_files_do_not_stand_for_other_data(paths):
    fitted = embedder().fit(paths, Y)
    with pytest.raises(ValueError, match="was fitted on image files, which reach the network with shape"):
        fitted.transform(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="was fitted on image files"):
        fitted.transform(np.zeros((3, 3, 20, 20), dtype=np.float32))
    vectors = SoftTripleEmbedder(max_epochs=1, device="cpu", batch_size=8).fit(np.arange(60.0).reshape(20, 3), Y)
    with pytest.raises(ValueError, match=r"X holds file paths, but SoftTripleEmbedder was fitted on shape \(n, 3\)"):
        vectors.transform(paths)


def test_backbone_of_other_channels_is_an_error(paths):
    with pytest.raises(ValueError, match=r"backbone does not take a batch of shape \(2, 3, 16, 16\)"):
        embedder(backbone=torch.nn.Conv2d(1, 4, 3)).fit(paths, Y)
    with pytest.raises(ValueError, match=r"image_mean .* has 4 values, but the images have 3 channels"):
        embedder(image_mean=(0.1, 0.2, 0.3, 0.4)).fit(paths, Y)


def test_a_relative_path_stays_as_it_is_in_the_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\n  a\.png does not exist\n  b\.png does not exist"):
        embedder().fit(["a.png", "b.png"], [0, 1])


# In scikit-learn


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "Path": lambda paths: [Path(path) for path in paths],
    "str array": np.array,
    "object array": lambda paths: np.array(paths, dtype=object),
    "series": pd.Series,
    "object series": lambda paths: pd.Series(paths, dtype=object),
}


@pytest.fixture
def expected(paths):
    return embedder().fit(paths, Y).transform(paths)


@pytest.mark.parametrize("container", CONTAINERS)
def test_any_sequence_of_paths_will_do(paths, expected, container):
    X = CONTAINERS[container](paths)
    fitted = embedder().fit(X, Y)
    np.testing.assert_array_equal(fitted.transform(X), expected)
    assert fitted.n_features_in_ == 3 * 16 * 16
    assert fitted.score(X, Y) == fitted.score(paths, Y)


def test_polars_series(paths, expected):
    X = pytest.importorskip("polars").Series(paths)
    np.testing.assert_array_equal(embedder().fit(X, Y).transform(X), expected)


@pytest.mark.parametrize("container", ["list", "str array", "series"])
def test_scikit_learn_takes_files(paths, container):
    X = CONTAINERS[container](paths)
    search = GridSearchCV(
        embedder(), {"n_components": [2, 4]}, scoring=RecallAtK(1), cv=ClassKFold(2), error_score="raise"
    ).fit(X, Y)
    assert search.transform(X).shape == (20, search.best_params_["n_components"])
    scores = cross_validate(embedder(), X, Y, cv=ClassKFold(2), error_score="raise")
    assert scores["test_score"].shape == (2,)
    pipeline = make_pipeline(embedder(max_epochs=10, augment=None), KNeighborsClassifier(1)).fit(X, Y)
    assert pipeline.score(X, Y) > 0.9
    train, test, y_train, y_test = class_train_test_split(X, Y)
    assert type(train) is type(X)
    assert embedder().fit(train, y_train).score(test, y_test) <= 1


def test_pandas_output_has_the_index_of_the_column_and_none_of_a_list(paths):
    fitted = embedder().set_output(transform="pandas").fit(paths, Y)
    frame = pd.DataFrame({"path": paths}, index=[f"row {i}" for i in range(20)])
    if parse_version(sklearn.__version__) >= parse_version("1.8"):  # older ones keep the index of a frame alone
        assert fitted.transform(frame["path"]).index.tolist() == frame.index.tolist()
    output = fitted.transform(paths)
    assert output.index.tolist() == list(range(20))
    assert output.columns[0] == "softtripleembedder0"


def test_column_of_a_column_transformer(paths):
    frame = pd.DataFrame({"path": paths, "size": np.arange(20.0)})
    one = embedder(n_components=2)
    for image in (one, FoldEnsembleEmbedder(embedder(n_components=1), cv=2)):
        transformer = ColumnTransformer([("image", image, "path")], remainder="passthrough")
        names = transformer.fit(frame, Y).get_feature_names_out().tolist()
        prefix = f"image__{type(image).__name__.lower()}"
        assert names == [f"{prefix}0", f"{prefix}1", "remainder__size"]
        assert transformer.set_output(transform="pandas").fit_transform(frame, Y).columns.tolist() == names
    vectors = embedder(resize="auto", crop_size="auto").fit(np.random.default_rng(0).normal(size=(20, 3)), Y)
    with pytest.raises(ValueError, match="should have length equal to number of features"):
        vectors.get_feature_names_out(["a"])


def test_pickle_and_clone(paths):
    fitted = embedder().fit(paths, Y)
    Z = fitted.transform(paths)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).transform(paths), Z)
    np.testing.assert_array_equal(clone(fitted).fit(paths, Y).transform(paths), Z)


@pytest.mark.parametrize(
    "cls", [SoftTripleEmbedder, RAWEmbedder, SSTEmbedder, HTLEmbedder, SmartMiningEmbedder, MagnetEmbedder]
)
def test_every_batch_rule_takes_files(tmp_path, paths, cls):
    """Batches that are shuffled, balanced, or made from embeddings, with and without a cache and held-out samples."""
    rule = embedder(cls).fit(paths, Y)
    cached = embedder(cls, cache=tmp_path / "cache").fit(paths, Y)
    np.testing.assert_array_equal(rule.transform(paths), cached.transform(paths))
    stopped = embedder(cls, early_stopping=True).fit(paths, Y)
    assert "validation_recall_at_1" in stopped.history_[0]


def test_warm_start_goes_on(paths):
    fitted = embedder(warm_start=True).fit(paths, Y)
    before = fitted.transform(paths)
    fitted.fit(paths, Y)
    assert fitted.n_iter_ == 4
    assert not np.allclose(fitted.transform(paths), before)


def test_decoded_images_and_their_files_stand_for_each_other(tmp_path):
    """Of one size and without loss in the file, both train the same network to the last bit."""
    X = np.stack([np.asarray(picture(c, 24, 20)) for c in Y])
    files = [str(tmp_path / f"{i}.png") for i in range(20)]
    for path, image in zip(files, X, strict=True):
        Image.fromarray(image).save(path)
    for augment in (None, "standard"):
        same = {"augment": augment, "resize": None, "crop_size": 16}
        of_files = embedder(**same).fit(files, Y)
        of_arrays = embedder(**same).fit(X, Y)
        Z = of_files.transform(files)
        np.testing.assert_array_equal(of_files.transform(X), Z)
        np.testing.assert_allclose(of_arrays.transform(X), Z, rtol=0, atol=1e-4 if augment else 0)
        np.testing.assert_array_equal(of_arrays.transform(files), of_arrays.transform(X))


def test_rows_are_embedded_one_by_one(paths):
    fitted = embedder().fit(paths, Y)
    np.testing.assert_allclose(fitted.transform(paths[3:4])[0], fitted.transform(paths)[3], atol=1e-6)


# Worker processes


def test_any_number_of_workers_gives_the_same_fit(paths):
    """Augmentation included; -1 is all cores."""
    one, two, all_cores = (embedder(n_jobs=n, augment="standard").fit(paths, Y) for n in (None, 2, -1))
    for other in (two, all_cores):
        np.testing.assert_array_equal(one.transform(paths), other.transform(paths))


def test_global_random_state_is_untouched(paths):
    before = torch.get_rng_state()
    embedder(n_jobs=2).fit(paths, Y).transform(paths)
    assert torch.equal(torch.get_rng_state(), before)


def decoders():
    """Return the processes that decode; joblib's, of other tests, go on for a while."""
    return [process for process in multiprocessing.active_children() if not process.name.startswith("Loky")]


def die(path, resize):
    os.kill(os.getpid(), signal.SIGKILL)


def die_late(path, resize):
    if path.endswith("13.png"):
        die(path, resize)
    return decode(path, resize)


WORKER_DIED = r"worker .* (is killed by signal|exited unexpectedly)"


class KillingAWorker(Callback):
    """Kills the processes that decode, one after each batch; batches that wait already are still trained on."""

    def on_batch_end(self, net, **kwargs):
        for process in decoders()[:1]:
            os.kill(process.pid, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal")
@pytest.mark.parametrize(("method", "function"), [("fit", die), ("fit", die_late), ("transform", die_late)])
def test_death_of_a_worker_is_an_error(paths, monkeypatch, method, function):
    fitted = embedder(max_epochs=1).fit(paths, Y).set_params(n_jobs=2)
    monkeypatch.setattr(files_module, "decode", function)
    run = {"fit": lambda: fitted.fit(paths, Y), "transform": lambda: fitted.transform(paths)}[method]
    with pytest.raises(RuntimeError, match=WORKER_DIED):
        run()
    assert not decoders()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal")
def test_killing_a_worker_is_an_error(paths):
    with pytest.raises(RuntimeError, match=WORKER_DIED):
        embedder(n_jobs=2, callbacks=[KillingAWorker()]).fit(paths * 10, np.tile(Y, 10))
    assert not decoders()


def fail(images):
    raise ZeroDivisionError


def test_an_error_in_training_leaves_no_worker_behind(paths):
    with pytest.raises(ZeroDivisionError) as error:
        embedder(n_jobs=2, augment=fail).fit(paths * 10, np.tile(Y, 10))
    assert not decoders()
    assert error.traceback


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files")
def test_no_open_file_is_left(tmp_path, paths):
    def fit():
        embedder(n_jobs=2, cache=tmp_path / "cache").fit(paths, Y).transform(paths)

    fit()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        fit()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_none_is_this_process_in_any_context(paths, decoded, backend):
    with joblib.parallel_config(backend=backend, n_jobs=2):
        embedder(max_epochs=1).fit(paths, Y)
    assert set(decoded) == set(paths)


@pytest.mark.parametrize(("n_jobs", "n_workers"), [(None, 1), (1, 1), (3, 3), (-1, None), (-10_000, 1)])
def test_number_of_processes(n_jobs, n_workers):
    assert files_module.count_workers(n_jobs) == (n_workers or joblib.cpu_count())


def test_a_process_that_may_start_no_other_decodes_itself(paths, decoded, monkeypatch):
    """As in the workers of Dask and of multiprocessing.Pool."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    embedder(max_epochs=1, n_jobs=2).fit(paths, Y)
    assert set(decoded) == set(paths)


def large(path, resize):
    """Return more than a pipe holds."""
    return np.zeros((600, 600, 3), np.uint8)


def decode_forever(paths, connection):
    chunks = [[row] for row in range(20)] * 100
    for i, _ in enumerate(run_workers(large, paths, 20, chunks, 3)):
        if i == 5:
            # A process that outlives the parent and keeps its files open.
            other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            workers = [process.pid for process in decoders()]
            other.start()
            connection.send((workers, other.pid))
            time.sleep(60)


def is_alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no list of processes")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_workers_end_with_their_parent(paths, name):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    parent = context.Process(target=decode_forever, args=(paths, sender))
    parent.start()
    workers, other = receiver.recv()
    try:
        assert len(workers) == 3
        assert all(is_alive(pid) for pid in workers)
        os.kill(parent.pid, getattr(signal, name))
        parent.join()
        end = time.monotonic() + 10
        while any(is_alive(pid) for pid in workers) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(is_alive(pid) for pid in workers)
        assert is_alive(other)
    finally:
        os.kill(other, signal.SIGKILL)


def test_decoding_is_one_batch_ahead_at_most(paths, decoded):
    chunks = [[row] for row in range(20)]
    batches = ImageFiles(paths, 20).images(chunks)
    next(batches)
    assert decoded == paths[:1]


def test_files_come_in_the_order_asked_for(paths):
    chunks = [[5, 3], [3], [19, 0, 1]]
    for rows, images in zip(chunks, run_workers(decode, paths, 20, chunks, 3), strict=True):
        for row, image in zip(rows, images, strict=True):
            np.testing.assert_array_equal(image, decode(paths[row], 20))


# The cache


def all_images(paths, folder, resize=20):
    files = ImageFiles(paths, resize, cache=folder)
    return next(files.images([list(range(len(paths)))]))


def test_cache_decodes_each_file_once(tmp_path, paths, decoded):
    cached = embedder(cache=tmp_path / "cache", max_epochs=4).fit(paths, Y)
    assert sorted(decoded) == sorted(paths)
    cached.transform(paths)
    assert clone(cached).set_params(random_state=1).fit(paths, Y).score(paths, Y) <= 1
    assert len(decoded) == 20
    plain = embedder(max_epochs=4).fit(paths, Y)
    np.testing.assert_array_equal(plain.transform(paths), cached.transform(paths))


class Deleting(Callback):
    """Deletes the files when the first epoch is over."""

    def __init__(self, paths):
        self.paths = paths

    def on_epoch_end(self, net, **kwargs):
        for path in self.paths:
            Path(path).unlink(missing_ok=True)


def test_second_epoch_reads_no_file(tmp_path, paths):
    params = {"callbacks": [Deleting(paths)], "max_epochs": 3}
    assert embedder(cache=tmp_path / "cache", **params).fit(paths, Y).n_iter_ == 3
    for i, path in enumerate(paths):
        picture(Y[i], 60 - i, 40 + i).save(path, quality=95)
    with pytest.raises(ValueError, match="does not exist"):
        embedder(**params).fit(paths, Y)


def test_changed_file_is_decoded_anew(tmp_path, paths, decoded):
    all_images(paths, tmp_path / "cache")
    picture(7, 60, 40).save(paths[4])
    decoded.clear()
    images = all_images(paths, tmp_path / "cache")
    assert decoded == [paths[4]]
    np.testing.assert_array_equal(images[4], decode(paths[4], 20))


def test_another_resize_is_another_image(tmp_path, paths):
    assert all_images(paths, tmp_path / "cache")[0].shape == (20, 30, 3)
    assert all_images(paths, tmp_path / "cache", resize=10)[0].shape == (10, 15, 3)
    assert all_images(paths, tmp_path / "cache", resize=None)[0].shape == (40, 60, 3)


def test_a_path_may_stand_twice(tmp_path, paths, decoded):
    twice = paths + paths[:3]
    all_images(twice, tmp_path / "cache")
    decoded.clear()
    for image, path in zip(all_images(twice, tmp_path / "cache"), twice, strict=True):
        np.testing.assert_array_equal(image, decode(path, 20))
    assert not decoded


def test_paths_are_the_same_from_any_folder(tmp_path, paths, decoded, monkeypatch):
    all_images(paths, tmp_path / "cache")
    decoded.clear()
    monkeypatch.chdir(Path(paths[0]).parent)
    all_images([Path(path).name for path in paths], tmp_path / "cache")
    assert not decoded


def read_all(paths, folder):
    files = ImageFiles(paths, 20, cache=folder)
    list(files.images([[row] for row in range(len(paths))]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_processes_share_a_folder(tmp_path, paths, decoded):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=read_all, args=(paths[start:], tmp_path / "cache")) for start in (0, 3, 6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    images = all_images(paths, tmp_path / "cache")
    assert not decoded
    assert len(entries(tmp_path / "cache")) == 20
    for path, image in zip(paths, images, strict=True):
        np.testing.assert_array_equal(image, decode(path, 20))


def test_interrupted_fit_leaves_what_it_decoded(tmp_path, paths, decoded):
    batches = ImageFiles(paths, 20, cache=tmp_path / "cache").images([[4, 2], [7, 1], [9]])
    next(batches), next(batches)
    batches.close()
    decoded.clear()
    images = all_images(paths, tmp_path / "cache")
    assert sorted(decoded) == sorted(path for row, path in enumerate(paths) if row not in (4, 2, 7, 1))
    for path, image in zip(paths, images, strict=True):
        np.testing.assert_array_equal(image, decode(path, 20))


def test_skipped_files_and_the_cache(tmp_path, paths, decoded):
    """Rows are numbered anew when some are left out; their images must move with them."""
    damage(paths[0], "empty")
    damage_late(paths[6])
    with pytest.warns(UserWarning, match="2 of 20"):
        cached = embedder(on_error="skip", cache=tmp_path / "cache", max_epochs=3).fit(paths, Y)
    assert decoded.count(paths[3]) == 1
    good = [i for i in range(20) if i not in (0, 6)]
    good_paths = [paths[i] for i in good]
    plain = embedder(max_epochs=3).fit(good_paths, Y[good])
    np.testing.assert_array_equal(cached.transform(good_paths), plain.transform(good_paths))


def entries(folder):
    return sorted(Path(folder).iterdir())


def zeroed(content):
    return content[:-300] + bytes(300)


def swapped(content):
    return content[:-20_000] + content[-10_000:] + content[-20_000:-10_000]


def turned(content):
    """Height and width change places."""
    return content[:16] + content[20:24] + content[16:20] + content[24:]


DAMAGED = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-1],
    "in the header": lambda content: content[:20],
    "longer": lambda content: content + b"0",
    "zeroed": zeroed,
    "all zeros": lambda content: bytes(len(content)),
    "pixels all zero": lambda content: content[:32] + bytes(len(content) - 32),
    "one bit": lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
    "swapped": swapped,
    "turned": turned,
    "foreign": lambda content: b"some text",
}


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("is_open", [False, True])
def test_what_is_damaged_in_the_cache_is_decoded_again(tmp_path, paths, decoded, how, is_open):
    folder, paths = tmp_path / "cache", paths[:8]
    all_images(paths, folder, resize=60)
    files = ImageFiles(paths, 60, cache=folder) if is_open else None
    whole = {entry: entry.read_bytes() for entry in entries(folder)}
    for entry in entries(folder)[:3]:
        entry.write_bytes(DAMAGED[how](whole[entry]))
    decoded.clear()
    files = files or ImageFiles(paths, 60, cache=folder)
    for path, image in zip(paths, next(files.images([list(range(8))])), strict=True):
        np.testing.assert_array_equal(image, decode(path, 60))
    if not (is_open and how == "longer"):
        assert len(decoded) == 3
        assert {entry: entry.read_bytes() for entry in entries(folder)} == whole
    decoded.clear()
    next(files.images([list(range(8))]))
    assert not decoded


def test_several_fits_keep_one_copy(tmp_path, paths):
    for seed in range(3):
        embedder(cache=tmp_path / "cache", max_epochs=1, random_state=seed).fit(paths + paths[:4], np.tile(Y, 2)[:24])
    picture(7, 60, 40).save(paths[4])
    all_images(paths, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 20


def test_a_fit_that_was_killed_leaves_nothing_but_what_the_next_one_uses(tmp_path, paths, monkeypatch):
    folder = tmp_path / "cache"
    all_images(paths, folder)
    whole = {entry.name: entry.read_bytes() for entry in entries(folder)}
    for n_written in (0, 10, 32, 500):
        entry = entries(folder)[0]
        entry.write_bytes(whole[entry.name][:n_written])
        entries(folder)[1].unlink()
        all_images(paths, folder)
        assert {entry.name: entry.read_bytes() for entry in entries(folder)} == whole


def test_a_file_that_changes_in_silence_is_decoded_anew(tmp_path, decoded):
    """Of the same length, with the time of the last change put back; or another file in its place."""
    paths = [str(tmp_path / f"{i}.bmp") for i in range(3)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    all_images(paths, tmp_path / "cache")
    status = os.stat(paths[0])
    picture(7).save(paths[0])
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(paths[2], paths[1])
    picture(2).save(paths[2])
    decoded.clear()
    for path, image in zip(paths, all_images(paths, tmp_path / "cache"), strict=True):
        np.testing.assert_array_equal(image, decode(path, 20))
    assert decoded[:3] == paths


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(tmp_path, paths, monkeypatch):
    def changing(path, resize):
        image = decode(path, resize)
        picture(8).save(path)
        return image

    monkeypatch.setattr(files_module, "decode", changing)
    all_images(paths[:1], tmp_path / "cache")
    assert not entries(tmp_path / "cache")


def test_other_files_in_the_folder_stay(tmp_path, paths):
    for name in ("settings.json", "a.image", "0.jpg"):
        (tmp_path / name).write_text("mine")
    all_images(paths, tmp_path)
    all_images(paths, tmp_path)
    assert {(tmp_path / name).read_text() for name in ("settings.json", "a.image", "0.jpg")} == {"mine"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "is a file or lies in one, but must be a folder"),
        ("file/folder", "is a file or lies in one, but must be a folder"),
        ("a\0b", "cannot be the name of a folder: .*null"),
        ("\ud800", "cannot be the name of a folder: .*encode"),
    ],
)
def test_cache_that_is_no_folder(tmp_path, paths, name, message):
    (tmp_path / "file").write_text("")
    for cache in (os.path.join(tmp_path, name), tmp_path / name):
        with pytest.raises(ValueError, match=message):
            embedder(cache=cache).fit(paths, Y)
    with pytest.raises(ValueError, match="cache='' names no folder"):
        embedder(cache="").fit(paths, Y)


def test_cache_is_for_files(tmp_path):
    with pytest.raises(ValueError, match=r"X is an array\. Set cache=None"):
        embedder(cache=tmp_path).fit(np.zeros((20, 20, 20), dtype=np.uint8), Y)
    with pytest.raises(ValueError, match=r"X holds vectors of .*, but only images use cache"):
        SoftTripleEmbedder(cache="auto").fit(np.zeros((20, 5)), Y)


def test_cache_folder_that_cannot_be_written_to(tmp_path, paths):
    files = ImageFiles(paths, 20, cache=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(OSError, match=r"The folder cache='.*cache' cannot be written to"):
        next(files.images([[0]]))


@pytest.mark.skipif(not Path("/proc").exists(), reason="no folder in which nobody may write")
def test_cache_folder_that_cannot_be_made(paths):
    with pytest.raises(OSError, match=r"The folder cache='/proc/cache' cannot be created"):
        embedder(cache="/proc/cache").fit(paths, Y)
