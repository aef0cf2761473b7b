"""Image preprocessing on the device: resize, crop, augmentation, normalization.

Axes: B images of a batch, C channels, H x W pixels of a source image, h x w pixels of the network's input.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

N_TRIES = 10  # boxes drawn for a random resized crop before falling back to the center of the image


@dataclass(frozen=True)
class Preprocessing:
    """Transformation of an image between the array or file and the network.

    Parameters
    ----------
    resize : int or None
        Length of the shorter side in pixels. None: images keep their size.
    crop_size : int or None
        Side of the square that is cut out, in pixels. None: the whole image.
    mean, std : tuple of float
        Subtracted, then divided by; one value for all channels or one per channel, in the unit of the pixels.
    augment : {"standard"}, callable or None
        Used only in training.
    crop_scale, crop_ratio : tuple of float
        Range of the share of the area that a random crop covers, and range of its width divided by its height.
    """

    resize: int | None
    crop_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str | Callable | None
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]

    def resized(self, height, width):
        """Return the size of an image after ``resize``."""
        return resized(height, width, self.resize)

    def output_size(self, height, width):
        """Return (h, w) of what the network gets for an image of this size."""
        return self.resized(height, width) if self.crop_size is None else (self.crop_size, self.crop_size)

    def __call__(self, images, generator=None):
        """Return the network's input.

        Parameters
        ----------
        images : tensor of shape (B, C, H, W), uint8 or float32
        generator : torch.Generator or None
            Generator on the CPU whose random numbers augment the images. None: no augmentation, as in transform.

        Returns
        -------
        tensor of shape (B, C, h, w), float32
        """
        size = self.output_size(*images.shape[2:])
        if generator is not None and self.augment == "standard":
            sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
            return self.random_crop(images, *self.draw(sizes, generator), size)
        centered = self._centered(images, size)
        if generator is not None and self.augment is not None:
            centered = self.augmented(centered, unit=255 if images.dtype == torch.uint8 else 1)
        return self.normalized(centered)

    def draw(self, sizes, generator):
        """Return random boxes (B, 4) and flips (B,) for images of these sizes (B, 2)."""
        boxes = random_boxes(sizes, self.crop_scale, self.crop_ratio, generator)
        return boxes, torch.rand(len(sizes), generator=generator, dtype=torch.float32) < 0.5

    def random_crop(self, images, boxes, flip, size):
        """Return the boxes (B, 4) of the images, scaled to one size and mirrored where ``flip`` (B,) is True."""
        # Unlike torch.tensor(..., device=), this copy does not make the host wait; the same holds below.
        boxes, flip = (t.to(images.device, non_blocking=True) for t in (boxes, flip))
        rows, columns = filters(boxes, images.shape[2:], size)
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
        return self.normalized(resample(images, rows, columns))

    def augmented(self, images, unit):
        """Apply the user's augmentation, which works on [0, 1], to images with pixels in [0, ``unit``]."""
        result = self.augment(images.float() / unit)
        if not isinstance(result, torch.Tensor) or result.shape[:2] != images.shape[:2] or result.ndim != 4:
            got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise ValueError(
                f"augment must return a tensor of shape (B, C, h, w) for images of shape {tuple(images.shape)}; got "
                f"{got}."
            )
        return result * unit

    def normalized(self, images):
        """Return (images - mean) / std, float32."""
        if self.mean == (0.0,) and self.std == (1.0,):
            return images.float()
        return (images.float() - _channels(self.mean, images)).div_(_channels(self.std, images))

    def _centered(self, images, size):
        height, width = images.shape[2:]
        resized = self.resized(height, width)
        window = [slice(start := round((r - s) / 2), start + s) for r, s in zip(resized, size, strict=True)]
        if resized == (height, width):
            return images[:, :, *window]
        whole = torch.tensor([[0, 0, height, width]]).to(images.device, non_blocking=True)
        rows, columns = filters(whole, (height, width), resized)
        return resample(images, rows[:, window[0]], columns[:, window[1]])


def resized(height, width, resize):
    """Return the size of an image after its shorter side is scaled to ``resize`` pixels; None: as it is.

    Raises
    ------
    ValueError
        If the image is enlarged to more pixels than Pillow allows a file to have.
    """
    if resize is None:
        return height, width
    shorter = min(height, width)
    size = tuple(max(1, round(side * resize / shorter)) for side in (height, width))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and resize > shorter and math.prod(size) > limit:
        raise ValueError(
            f"{height:,} x {width:,} pixels (height x width) would become {size[0]:,} x {size[1]:,} with "
            f"resize={resize}, more than the limit PIL.Image.MAX_IMAGE_PIXELS = {limit:,}; leave such images out, or "
            "lower resize"
        )
    return size


def _channels(values, images):
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=torch.float32).to(images.device, non_blocking=True)[:, None, None]


def random_boxes(sizes, scale, ratio, generator):
    """Draw the box of a random resized crop [1]_ for each image.

    The share of the area is uniform in ``scale``, and the logarithm of width over height is uniform in that of
    ``ratio``. If none of `N_TRIES` such boxes fits into an image, its box is the largest central one within ``ratio``.

    Parameters
    ----------
    sizes : tensor of shape (B, 2)
        Height and width of each image.
    scale, ratio : tuple of float
    generator : torch.Generator

    Returns
    -------
    int64 tensor of shape (B, 4)
        Top, left, height and width.

    References
    ----------
    .. [1] C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015. Section 6.
    """
    height, width = sizes.double().unbind(1)  # (B,)
    u = torch.rand(4, len(sizes), N_TRIES, generator=generator, dtype=torch.float64)
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * u[0])
    r = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[1])
    h, w = (area / r).sqrt().round(), (area * r).sqrt().round()  # (B, N_TRIES)
    fits = (h >= 1) & (w >= 1) & (h <= height[:, None]) & (w <= width[:, None])
    first = fits.int().argmax(dim=1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    none = ~fits.any(dim=1)
    h = torch.where(none, torch.minimum(height, (width / ratio[0]).round()), h)
    w = torch.where(none, torch.minimum(width, (height * ratio[1]).round()), w)
    top = torch.where(none, (height - h).div(2, rounding_mode="floor"), (u[2, :, 0] * (height - h + 1)).floor())
    left = torch.where(none, (width - w).div(2, rounding_mode="floor"), (u[3, :, 0] * (width - w + 1)).floor())
    return torch.stack([top, left, h, w], dim=1).long()


def filters(boxes, source, size):
    """Return the matrices that scale a box of each image to one size: bilinear, antialiased if the box shrinks.

    Parameters
    ----------
    boxes : tensor of shape (B, 4)
        Top, left, height and width in pixels.
    source, size : tuple of int
        (H, W) and (h, w).

    Returns
    -------
    rows, columns : tensors of shape (B, h, H) and (B, w, W)
    """
    top, left, height, width = boxes.to(torch.float32).unbind(1)
    return _triangles(top, height, source[0], size[0]), _triangles(left, width, source[1], size[1])


def _triangles(start, length, n_pixels, n_out):
    """Return the triangle filter that maps pixels start...start+length to n_out pixels, (B, n_out, n_pixels)."""
    scale = (length / n_out)[:, None]  # (B, 1)
    place, pixel = (torch.arange(n, dtype=scale.dtype, device=scale.device) + 0.5 for n in (n_out, n_pixels))
    center = start[:, None] + place * scale  # (B, n_out)
    weights = 1 - (pixel - center[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # (B, n_pixels)
    weights = weights.clamp_(min=0).mul_(inside[:, None])
    return weights / weights.sum(dim=2, keepdim=True)


def resample(images, rows, columns):
    """Apply one pair of filters per image, or one pair for all: (B, C, H, W) to float32 (B, C, h, w)."""
    return rows[:, None] @ (images.float() @ columns[:, None].mT)
