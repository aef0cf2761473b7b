"""The bundled images, and the standard benchmarks from local files."""

from skdml.datasets._benchmarks import (
    load_cars196,
    load_cub200,
    load_cub200_2010,
    load_fashion_mnist,
    load_inshop,
    load_sop,
)
from skdml.datasets._kanji import load_kanji
from skdml.datasets._omniglot import load_omniglot

__all__ = [
    "load_cars196",
    "load_cub200",
    "load_cub200_2010",
    "load_fashion_mnist",
    "load_inshop",
    "load_kanji",
    "load_omniglot",
    "load_sop",
]
