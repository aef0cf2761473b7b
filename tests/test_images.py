"""Images in memory: resize, crop, augmentation, normalization, memory maps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn
from torch.nn import functional as F

from skdml import SoftTripleEmbedder
from skdml._data.arrays import check_data
from skdml._data.images import N_TRIES, Preprocessing, filters, random_boxes, resample

Y = np.repeat(np.arange(3), 4)
PLAIN = Preprocessing(
    resize=None,
    crop_size=None,
    mean=(0.0,),
    std=(1.0,),
    augment=None,
    crop_scale=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
)


class Recorder(nn.Module):
    """Averages the image and keeps what it gets; the class holds it, since the backbone is copied."""

    seen = []

    def forward(self, x):
        Recorder.seen.append((self.training, x.detach().cpu().clone()))
        return x.mean(dim=(2, 3))


@pytest.fixture
def seen():
    Recorder.seen.clear()
    return Recorder.seen


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 28, 3), dtype=np.uint8)


def embedder(**params):
    common = {"backbone": Recorder(), "max_epochs": 1, "batch_size": 12, "n_components": 4}
    return SoftTripleEmbedder(**common | {"random_state": 0, "device": "cpu"} | params)


def first_batch(seen):
    return next(x for training, x in seen if training)


# Scaling


@pytest.mark.parametrize("size", [(5, 9), (20, 28), (33, 50), (1, 1), (20, 7)])
def test_scaling_is_torch_antialiased_interpolation(size, device):
    images = torch.rand(4, 3, 20, 28, device=device)
    boxes = torch.tensor([[0, 0, 20, 28], [3, 5, 12, 9], [19, 27, 1, 1], [0, 6, 20, 3]], device=device)
    scaled = resample(images, *filters(boxes, (20, 28), size))
    for image, box, (top, left, height, width) in zip(images, scaled, boxes.tolist(), strict=True):
        crop = image[None, :, top : top + height, left : left + width]
        expected = F.interpolate(crop, size=size, mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(box, expected, atol=1e-5, rtol=1e-5)


def test_uint8_is_scaled_as_float():
    images = torch.randint(0, 256, (2, 3, 20, 28), dtype=torch.uint8)
    expected = F.interpolate(images.float(), size=(10, 14), mode="bilinear", antialias=True)
    torch.testing.assert_close(replace(PLAIN, resize=10)(images), expected, atol=1e-3, rtol=1e-5)


def test_scaling_on_the_device_is_near_that_of_pillow(images):
    """Which rounds to whole numbers, twice."""
    ours = replace(PLAIN, resize=8)(torch.from_numpy(images).permute(0, 3, 1, 2))
    for image, result in zip(images, ours, strict=True):
        pillow = np.asarray(Image.fromarray(image).resize((11, 8), Image.Resampling.BILINEAR)).astype(np.float32)
        np.testing.assert_allclose(result.permute(1, 2, 0), pillow, atol=1.01)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((20, 28), 10, (10, 14)),
        ((28, 20), 10, (14, 10)),
        ((3, 100), 2, (2, 67)),
        ((7, 7), 9, (9, 9)),
        ((5, 8), None, (5, 8)),
    ],
)
def test_resize_is_of_the_shorter_side(size, resize, expected):
    settings = replace(PLAIN, resize=resize)
    assert settings.resized(*size) == expected
    assert settings(torch.rand(1, 3, *size)).shape[2:] == expected


@pytest.mark.parametrize("size", [(20, 28), (21, 28), (20, 27), (16, 16), (17, 16)])
def test_the_middle_is_cut_out(size):
    images = torch.rand(2, 3, *size)
    top, left = (round((side - 16) / 2) for side in size)
    expected = images[:, :, top : top + 16, left : left + 16]
    torch.testing.assert_close(replace(PLAIN, crop_size=16)(images), expected)
    whole = replace(PLAIN, resize=32)(images)
    top, left = (round((side - 16) / 2) for side in whole.shape[2:])
    cropped = replace(PLAIN, resize=32, crop_size=16)(images)
    torch.testing.assert_close(cropped, whole[:, :, top : top + 16, left : left + 16])


# Random boxes


def boxes_of(height, width, n=20_000, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), seed=0):
    sizes = torch.tensor([[height, width]]).expand(n, 2)
    return random_boxes(sizes, scale, ratio, torch.Generator().manual_seed(seed))


def test_boxes_are_those_of_the_definition_in_plain_loops():
    sizes = torch.tensor([[30, 40], [40, 30], [7, 100], [100, 7], [1, 1], [64, 64]] * 50)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    boxes = random_boxes(sizes, scale, ratio, torch.Generator().manual_seed(3))
    u = torch.rand(4, len(sizes), N_TRIES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    n_middle = 0
    for i, (height, width) in enumerate(sizes.tolist()):
        for t in range(N_TRIES):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0, i, t].item())
            r = math.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * u[1, i, t].item())
            h, w = round(math.sqrt(area / r)), round(math.sqrt(area * r))
            if 0 < h <= height and 0 < w <= width:
                expected = [int(u[2, i, 0] * (height - h + 1)), int(u[3, i, 0] * (width - w + 1)), h, w]
                break
        else:
            n_middle += 1
            h, w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
            expected = [(height - h) // 2, (width - w) // 2, h, w]
        assert boxes[i].tolist() == expected
    assert n_middle > 0


@pytest.mark.parametrize("size", [(30, 40), (500, 333), (3, 200), (200, 3), (1, 1), (2, 1)])
def test_boxes_lie_in_the_image(size):
    boxes = boxes_of(*size)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(size)).all()


def test_distribution_of_the_boxes():
    """Where every box fits: area and logarithm of the ratio uniform, places uniform given the size."""
    side = 2000
    top, left, h, w = boxes_of(side, side, scale=(0.1, 0.5), ratio=(1 / 2, 2), n=5000).double().unbind(1)
    area, log_ratio = h * w / side**2, (w / h).log() / math.log(2)
    place = [(top + 0.5) / (side - h + 1), (left + 0.5) / (side - w + 1)]
    for value, low, high in [(area, 0.1, 0.5), (log_ratio, -1, 1), (place[0], 0, 1), (place[1], 0, 1)]:
        assert stats.kstest(value, stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert abs(np.corrcoef(torch.stack([area, log_ratio, *place]))[np.triu_indices(4, 1)]).max() < 0.05


def test_an_image_too_long_for_the_ratio_gives_its_middle():
    assert boxes_of(10, 100, n=3, scale=(0.9, 1.0)).tolist() == [[0, 43, 10, 13]] * 3
    assert boxes_of(100, 10, n=3, scale=(0.9, 1.0)).tolist() == [[43, 0, 13, 10]] * 3


# Augmentation


def test_standard_augmentation_is_box_scaling_and_flip(device):
    images = torch.rand(64, 3, 20, 28)
    settings = replace(PLAIN, crop_size=16, augment="standard")
    boxes, flip = settings.draw(torch.tensor([[20, 28]]).expand(64, 2), torch.Generator().manual_seed(5))
    result = settings(images.to(device), torch.Generator().manual_seed(5)).cpu()
    assert 16 < flip.sum() < 48
    for image, (top, left, h, w), mirrored, out in zip(images, boxes.tolist(), flip, result, strict=True):
        crop = image[None, :, top : top + h, left : left + w]
        expected = F.interpolate(crop, size=(16, 16), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(out, expected.flip(2) if mirrored else expected, atol=1e-5, rtol=1e-5)


def test_draws_are_those_of_the_seed_on_any_device(images, device):
    here, there, other = (
        embedder(augment="standard", device=d, learning_rate=3e-2, random_state=seed).fit(images, Y).transform(images)
        for d, seed in [(device, 0), ("cpu", 0), ("cpu", 1)]
    )
    np.testing.assert_allclose(here, there, atol=1e-3 if device == "cuda" else 0)
    assert abs(there - other).max() > 0.01


def test_epochs_and_samples_differ(images, seen):
    one = np.repeat(images[:1], 12, axis=0)
    embedder(augment="standard", crop_size=16, max_epochs=2).fit(one, Y)
    first, second = (x for training, x in seen if training)
    assert first.shape == (12, 3, 16, 16)
    assert not torch.allclose(first, second)
    assert len(torch.unique(first.flatten(1), dim=0)) == 12


def test_transform_is_not_augmented(images, seen):
    fitted = embedder(augment="standard", crop_size=16).fit(images, Y)
    seen.clear()
    np.testing.assert_array_equal(fitted.transform(images), fitted.transform(images))
    expected = (images[:, 2:18, 6:22].transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
    np.testing.assert_allclose(seen[0][1], expected, atol=1e-6)


def test_arrays_are_not_augmented_unless_asked(images, seen):
    embedder().fit(images, Y)
    expected = (images.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
    np.testing.assert_allclose(first_batch(seen).flatten(1).sort(dim=0)[0], np.sort(expected.reshape(12, -1), axis=0))


def brighten(images):
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1
    assert images.shape[1:] == (3, 16, 16)
    return images * 0.5


def test_callable_gets_unit_pixels_resized_and_cropped(images, seen):
    embedder(augment=brighten, resize=18, crop_size=16, image_mean=0, image_std=1).fit(images, Y)
    assert 0.4 < first_batch(seen).max() <= 0.5
    assert max(x.max() for training, x in seen if not training) > 0.9


def test_callable_may_be_a_module_with_random_numbers_of_torch(images):
    fits = [embedder(augment=nn.Dropout(0.3)).fit(images, Y) for _ in range(2)]
    plain = embedder().fit(images, Y).transform(images)
    np.testing.assert_array_equal(*[fit.transform(images) for fit in fits])
    assert not np.allclose(fits[0].transform(images), plain)


def test_augmentation_of_kornia(images):
    kornia = pytest.importorskip("kornia.augmentation")
    embedder(augment=kornia.RandomHorizontalFlip(p=0.5)).fit(images, Y)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x: None, "got NoneType"),
        (lambda x: x[:1], r"got \(1, 3, 20, 28\)"),
        (lambda x: x.mean(dim=1), r"got \(12, 20, 28\)"),
    ],
)
def test_callable_must_return_images(images, augment, message):
    with pytest.raises(ValueError, match=rf"augment must return a tensor .* of shape \(12, 3, 20, 28\); {message}"):
        embedder(augment=augment).fit(images, Y)


def test_augmentation_changes_no_global_state(images):
    before = torch.get_rng_state()
    embedder(augment="standard").fit(images, Y)
    embedder(augment=nn.Dropout(0.3)).fit(images, Y)
    assert torch.equal(torch.get_rng_state(), before)


# Numbers


def test_mean_and_std_of_each_channel_are_of_unit_pixels(images, seen):
    mean, std = np.array([0.1, 0.2, 0.3]), [0.5, 0.6, 0.7]
    embedder(image_mean=mean, image_std=std).fit(images, Y).transform(images)
    expected = (images / 255 - mean) / std
    np.testing.assert_allclose(seen[-1][1], expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_float_images_are_taken_as_they_are_or_scaled_in_their_own_unit(images, seen):
    X = images.transpose(0, 3, 1, 2) / 100
    embedder().fit(X, Y).transform(X)
    np.testing.assert_allclose(seen[-1][1], X, rtol=1e-6)
    embedder(image_mean=1.0, image_std=2.0, resize=10, crop_size=8, augment="standard").fit(X, Y).transform(X)
    assert seen[-1][1].shape == (12, 3, 8, 8)
    whole = F.interpolate(torch.from_numpy(X).float(), size=(10, 14), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[-1][1], (whole[:, :, 1:9, 3:11] - 1) / 2, atol=1e-5, rtol=1e-5)


def test_grey_images_have_one_channel(images, seen):
    gray = images[..., 0]
    embedder(augment="standard", crop_size=16).fit(gray, Y).transform(gray)
    assert seen[-1][1].shape == (12, 1, 16, 16)


def test_images_are_not_changed(images):
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2).mean(dim=(2, 3))

    for X in (images, images.transpose(0, 3, 1, 2).astype(np.float32)):
        before = X.copy()
        embedder(backbone=InPlace()).fit(X, Y).transform(X)
        np.testing.assert_array_equal(X, before)


def test_backbone_of_other_channels_is_an_error(images):
    with pytest.raises(ValueError, match=r"does not take a batch of shape \(2, 1, 20, 28\)"):
        embedder(backbone=nn.Conv2d(3, 4, 3)).fit(images[..., 0], Y)
    with pytest.raises(ValueError, match=r"image_std .* has 3 values, but the images have 1 channels"):
        embedder(image_std=(1, 1, 1)).fit(images[..., 0], Y)


def test_images_must_be_large_enough_for_the_crop(images):
    with pytest.raises(ValueError, match="crop_size=24 is larger than the images, whose shorter side has 20 pixels"):
        embedder(crop_size=24).fit(images, Y)
    embedder(crop_size=24, resize=24).fit(images, Y)


def test_images_of_another_size_fit_where_they_reach_the_network_alike(images):
    fitted = embedder(resize=18, crop_size=16).fit(images, Y)
    with pytest.raises(ValueError, match=r"was fitted on shape \(n, 20, 28, 3\) of dtype uint8"):
        fitted.transform(images[:, :19])


@pytest.mark.parametrize("parameter", ["resize", "crop_size", "augment", "image_mean", "image_std"])
def test_vectors_take_no_parameter_of_images(parameter):
    value = {"augment": "standard", "image_mean": np.zeros(3), "image_std": [1.0]}.get(parameter, 8)
    with pytest.raises(ValueError, match=rf"^X holds vectors of .*, but only images use {parameter}"):
        SoftTripleEmbedder(**{parameter: value}).fit(np.zeros((12, 5)), Y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"crop_scale": (0.5, 0.1)}, "crop_scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "<= 1"),
        ({"crop_scale": (0.5,)}, "two numbers"),
        ({"crop_ratio": ("a", 2)}, "crop_ratio"),
        ({"image_std": 0}, "above 0"),
        ({"image_mean": (0.1, np.nan, 0.2)}, "finite"),
        ({"resize": 0}, "resize"),
        ({"augment": "strong"}, "augment"),
        ({"n_jobs": 0}, "n_jobs"),
    ],
)
def test_parameters_out_of_range(images, params, message):
    with pytest.raises(ValueError, match=message):
        embedder(**params).fit(images, Y)


# Memory maps


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_memory_map_is_read_in_place(tmp_path, images, mode, kind, device):
    X = images if kind == "uint8" else images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.save(tmp_path / "images.npy", X)
    mapped = np.load(tmp_path / "images.npy", mmap_mode=mode)
    params = {"augment": "standard", "resize": 18, "crop_size": 16, "device": device}
    of_map, of_array = (embedder(**params).fit(images, Y) for images in (mapped, X))
    np.testing.assert_array_equal(of_map.transform(mapped), of_array.transform(X))
    assert np.shares_memory(check_data(of_map, mapped, seen=of_map._input)[0].X, mapped)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), X)


def test_read_only_map_is_copied_batch_by_batch(tmp_path, images):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    fitted = embedder().fit(images, Y)
    data = check_data(fitted, mapped, seen=fitted._input)[0].place(torch.device("cpu"))
    assert isinstance(data.X, np.ndarray)
    torch.testing.assert_close(
        data.batch(torch.tensor([5, 2])), (torch.from_numpy(images[[5, 2]]).permute(0, 3, 1, 2) - 127.0) / 128
    )
