"""The bundled images, the standard benchmarks from local files, and folders of your own images."""

from skdml.datasets._benchmarks import (
    load_cars196,
    load_cub200,
    load_cub200_2010,
    load_fashion_mnist,
    load_inshop,
    load_sop,
)
from skdml.datasets._folder import load_image_folder
from skdml.datasets._kanji import load_kanji
from skdml.datasets._omniglot import load_omniglot

__all__ = [
    "load_cars196",
    "load_cub200",
    "load_cub200_2010",
    "load_fashion_mnist",
    "load_image_folder",
    "load_inshop",
    "load_kanji",
    "load_omniglot",
    "load_sop",
]
