"""The bundled images."""

from skdml.datasets._kanji import load_kanji

__all__ = ["load_kanji"]
