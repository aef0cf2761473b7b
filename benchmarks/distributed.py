"""Time per epoch of two processes that train one network, divided by that of one process; each has one thread.

The network is the default one over images of 32 x 32 pixels. Rounds alternate; the shortest epochs are compared.

    python benchmarks/distributed.py [--quick]
"""

import argparse
import os
import tempfile

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from skdml import SoftTripleEmbedder


def fit(rank, n_processes, store, n_images, n_epochs, durations):
    torch.set_num_threads(1)
    if n_processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_processes)
    rng = np.random.default_rng(0)
    X = rng.integers(0, 255, (n_images, 32, 32, 3), dtype=np.uint8)
    y = np.arange(n_images) % 20
    embedder = SoftTripleEmbedder(batch_size=128, max_epochs=n_epochs, random_state=0, device="cpu").fit(X, y)
    if rank == 0:
        durations.put(min(epoch["duration"] for epoch in embedder.history_[1:]))
    if n_processes > 1:
        dist.destroy_process_group()


def seconds_per_epoch(n_processes, n_images, n_epochs):
    durations = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        mp.spawn(fit, (n_processes, store, n_images, n_epochs, durations), nprocs=n_processes)
    return durations.get()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    n_images, n_epochs, n_rounds = (256, 2, 1) if quick else (2048, 4, 3)
    rounds = [[seconds_per_epoch(n, n_images, n_epochs) for n in (1, 2)] for _ in range(n_rounds)]
    one, two = (min(times) for times in zip(*rounds, strict=True))
    print(f"one process {one:.2f} s, two processes {two:.2f} s per epoch, ratio {two / one:.2f}")
