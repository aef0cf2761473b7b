"""Seconds of saving and loading an embedder with a network of 25 MB, compared with pickle in the same run.

    python benchmarks/saving.py

Rounds alternate, and the minimum is printed, because other load on the machine only adds to it. The script then prints
whether the loaded embedder's transform equals the saved one's bit for bit.
"""

import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import skdml


def main():
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(256, 512)).astype(np.float32), np.arange(256) % 16
    embedder = skdml.RAWEmbedder(hidden_layer_sizes=(2048, 2048, 512), max_epochs=1, device="cpu").fit(X, y)
    size = sum(p.nbytes for p in embedder.network_.parameters())
    seconds = {"save": [], "load": [], "pickle": [], "unpickle": []}
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder, "embedder"), Path(folder, "embedder.pickle")
        for _ in range(10):
            clock(seconds["save"], lambda: embedder.save(path))
            loaded = clock(seconds["load"], lambda: skdml.load(path))
            clock(seconds["pickle"], lambda: file.write_bytes(pickle.dumps(embedder)))
            unpickled = clock(seconds["unpickle"], lambda: pickle.loads(file.read_bytes()))
    best = {name: min(values) for name, values in seconds.items()}
    total, peer = best["save"] + best["load"], best["pickle"] + best["unpickle"]
    print(f"network of {size / 1e6:.1f} MB: " + ", ".join(f"{name} {value:.3f} s" for name, value in best.items()))
    print(f"save + load {total:.3f} s (target 0.5 s){'' if total < 0.5 else '  above'}, {total / peer:.2f} of pickle")
    for name, other in (("loaded", loaded), ("unpickled", unpickled)):
        print(f"{name}: transform equal bit for bit: {np.array_equal(embedder.transform(X), other.transform(X))}")


def clock(seconds, function):
    start = time.perf_counter()
    result = function()
    seconds.append(time.perf_counter() - start)
    return result


if __name__ == "__main__":
    main()
