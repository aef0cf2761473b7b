"""Shared fixtures."""

import os

import numpy as np
import pytest
import torch

# Tests run side by side in processes; more threads than one each only wait for each other, busily. The environment is
# for the processes that tests start.
torch.set_num_threads(1)
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")


def pytest_generate_tests(metafunc):
    """Run every test that asks for ``device`` on the CPU and, where there is one, on the GPU."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["cpu"] + (["cuda"] if torch.cuda.is_available() else []))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def blobs():
    """Four separable classes of 15 samples in 6 dimensions: (X, y)."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 15)
    return rng.normal(size=(60, 6)).astype(np.float32) + 3 * rng.normal(size=(4, 6)).astype(np.float32)[y], y


@pytest.fixture
def hidden():
    """Twenty classes of 10 samples that 6 columns tell apart and 24 columns of noise hide: (X, y)."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 10)
    signal = 2 * rng.normal(size=(20, 6))[y] + rng.normal(size=(200, 6))
    return np.hstack([signal, 2 * rng.normal(size=(200, 24))]).astype(np.float32), y


def pytest_collection_modifyitems(items):
    """Put the longest tests first, so that no process is left with one of them while the other has nothing to do."""
    items.sort(
        key=lambda item: not any(name in item.name for name in ("example_runs", "readme_runs", "unseen_characters"))
    )
