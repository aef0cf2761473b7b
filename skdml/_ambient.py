"""What surrounds a call: torch's modes, which must not matter, warnings, and locks on what belongs to the process."""

import os
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager

import torch

# Held by the thread that changes something of the whole process for a while: the states of torch's generators, its
# default dtype, numbers of threads. Reentrant, since a callback may fit another embedder.
LOCK = threading.RLock()
FILTERS = threading.RLock()  # the same for the warning filters; never held by a thread that waits for LOCK

# Between a caller and skdml there may be a pipeline, a search or the training loop.
_BETWEEN = {"skdml", "sklearn", "skorch", "joblib", "contextlib"}


def _free_locks():
    global LOCK, FILTERS
    LOCK, FILTERS = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):  # a thread that held a lock does not exist in a forked process
    os.register_at_fork(after_in_child=_free_locks)


@contextmanager
def neutral():
    """Let torch compute inside the block as in a new process, whatever the surrounding program has set.

    Gradients are on, inference mode and autocast are off, and new tensors are on the CPU. All of this belongs to the
    thread. The default dtype belongs to the process and is left alone: skdml names the dtype of each tensor that it
    makes.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device_type):
                # No cache, which would keep the weights of the first step until the surrounding block ends.
                stack.enter_context(torch.autocast(device_type, enabled=False, cache_enabled=False))
        if torch.empty(0).device.type != "cpu":  # otherwise not, as it slows down each operation
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def float32_by_default():
    """Let modules of other packages be made in float32; only where `LOCK` is held."""
    dtype = torch.get_default_dtype()
    if dtype == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


def warn(message, category=UserWarning):
    """Warn as if from the innermost line that is neither in skdml nor in a library that calls it."""
    level, frame = 2, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    with FILTERS:  # not while another thread hides warnings
        warnings.warn(message, category, stacklevel=level)


@contextmanager
def own_filters():
    """Like ``warnings.catch_warnings``, in one thread at a time: the filters belong to the process.

    Two threads that overlap would put back each other's filters. Validation by scikit-learn belongs in it, too.
    """
    with FILTERS, warnings.catch_warnings():
        yield
