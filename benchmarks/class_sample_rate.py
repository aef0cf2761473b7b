"""What does ``class_sample_rate`` save in a step, and what does it cost in Recall@1?

    python benchmarks/class_sample_rate.py steps [--classes 100000]
    python benchmarks/class_sample_rate.py recall glyphs32.npz [--epochs 6 --methods NormSoftmax]

``steps``: CPU time of a step of loss, backward pass and AdamW on one thread, 64 samples in 128 dimensions, and the
memory that the process takes beyond what it had before. ``recall``: a file holds X, labels y and ``train``, a mask of
the samples of the training classes; images are halved in size, and with ``--vectors`` their pixels are vectors.
"""

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import skdml
from skdml import losses, recall_at_k
from skdml._engine.net import OPTIMIZERS
from skdml._engine.rows import ROW_OPTIMIZERS

RATES = (1.0, 0.3, 0.1)
METHODS = ("ArcFace", "NormSoftmax", "ProxyAnchor", "ProxyNCA", "SoftTriple")


def step(method, n_classes, rate):
    """Return the median CPU time of a step in seconds and the memory in MB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    centers = {"n_centers": 2} if method == "SoftTriple" else {}
    loss = getattr(losses, f"{method}Loss")(n_classes, 128, class_sample_rate=rate, **centers)
    optimizers = ROW_OPTIMIZERS if rate < 1 else OPTIMIZERS
    optimizer = optimizers["adamw"](loss.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    seconds = []
    for _ in range(12):
        x = torch.nn.functional.normalize(torch.randn(64, 128)).requires_grad_()
        y = torch.randint(n_classes, (64,))
        start = time.process_time()
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return np.median(seconds[2:]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def steps(methods, n_classes):
    print(f"| {n_classes} classes | " + " | ".join(f"time at {r} | memory at {r}" for r in RATES) + " |")
    print("|---" * 7 + "|")
    for method in methods:
        measured = []
        for rate in RATES:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # memory starts low
                measured.append(pool.submit(step, method, n_classes, rate).result())
        cells = [f"{seconds / measured[0][0]:.2f} | {memory:.0f} MB" for seconds, memory in measured]
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


def recall(methods, path, epochs, seeds, vectors):
    with np.load(path) as file:
        X, y, train = file["X"], file["y"], file["train"]
    if X.ndim == 3:
        X = X.reshape(len(X), X.shape[1] // 2, 2, X.shape[2] // 2, 2).mean(axis=(2, 4)).astype(np.uint8)
    X = X.reshape(len(X), -1).astype(np.float32) if vectors else X
    print(f"\n| {path.stem}, {len(np.unique(y[train]))} classes | " + " | ".join(f"at {r}" for r in RATES) + " |")
    print("|---" * 4 + "|")
    rows = X[~train].reshape((~train).sum(), -1).astype(np.float32)
    print(f"| untrained | {recall_at_k(rows, y[~train]):.3f} | | |", flush=True)
    for method in methods:
        cls = getattr(skdml, f"{method}Embedder")
        cells = []
        for rate in RATES:
            fits = [
                cls(class_sample_rate=rate, max_epochs=epochs, random_state=s).fit(X[train], y[train]) for s in seeds
            ]
            cells.append(f"{np.mean([embedder.score(X[~train], y[~train]) for embedder in fits]):.3f}")
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("table", choices=["steps", "recall"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--vectors", action="store_true")
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    args = parser.parse_args()
    if args.table == "steps":
        steps(args.methods, args.classes)
    else:
        recall(args.methods, args.file, args.epochs, args.seeds, args.vectors)


if __name__ == "__main__":
    main()
