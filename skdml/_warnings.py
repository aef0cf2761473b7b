"""Warnings that point at the caller's line, and warnings that are hidden."""

import sys
import warnings
from contextlib import contextmanager

from . import _ambient

# Between a caller and skdml there may be a pipeline, a search or the training loop.
_BETWEEN = {"skdml", "sklearn", "skorch", "joblib", "contextlib"}


def warn(message, category=UserWarning):
    """Warn as if from the innermost line that is neither in skdml nor in a library that calls it."""
    level, frame = 2, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    with _ambient.FILTERS:  # not while another thread hides warnings
        warnings.warn(message, category, stacklevel=level)


@contextmanager
def own_filters():
    """Like ``warnings.catch_warnings``, in one thread at a time: the filters belong to the process.

    Two threads that overlap would put back each other's filters. Validation by scikit-learn belongs in it, too.
    """
    with _ambient.FILTERS, warnings.catch_warnings():
        yield
