"""The bundled images, and the benchmarks of the field from files of one's own."""

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
