"""Time per step and memory of ``fit`` as rows, classes and columns grow, compared with a hand-written loop.

    python benchmarks/scale.py                     a table, and the figure of the manual, in about ten minutes
    python benchmarks/scale.py --picture scale.png

Each case runs in a process of its own, for a number of steps: NormSoftmax in batches of 256, as its cost depends on
rows, classes and columns alike. Memory is the largest resident size beyond that of the process with the data.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from skorch.callbacks import Callback
from training import Network

from skdml import NormSoftmaxEmbedder
from skdml.losses import NormSoftmaxLoss

BATCH_SIZE, N_STEPS = 256, 30
ROWS, CLASSES, COLUMNS = 100_000, 1000, 128
CASES = {
    "rows": [(n, CLASSES, COLUMNS) for n in (10_000, 100_000, 1_000_000)],
    "classes": [(ROWS, c, COLUMNS) for c in (100, 1000, 10_000, 50_000)],
    "columns": [(ROWS, CLASSES, d) for d in (32, 128, 512)],
}
LARGEST = (1_000_000, 100_000, 128)


class EnoughError(Exception):
    """Ends a fit after some steps."""


class Steps(Callback):
    """Notes when steps end."""

    def __init__(self, ends):
        self.ends = ends

    def on_batch_end(self, net, **kwargs):
        self.ends.append(time.perf_counter())
        if len(self.ends) == N_STEPS:
            raise EnoughError


def fit(X, y):
    ends = []
    embedder = NormSoftmaxEmbedder(
        batch_size=BATCH_SIZE, n_components=None, device="cpu", random_state=0, callbacks=[Steps(ends)]
    )
    try:
        embedder.fit(X, y)
    except EnoughError:
        return ends
    raise RuntimeError("The fit was too short.")


def loop(X, y):
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    network = Network(X.shape[1])
    network.scale = float((X[:8192] ** 2).mean() ** -0.5)
    criterion = NormSoftmaxLoss(int(y.max()) + 1, X.shape[1])
    optimizer = torch.optim.AdamW([*network.parameters(), *criterion.parameters()], weight_decay=1e-4, fused=True)
    ends = []
    for index in torch.randperm(len(X)).split(BATCH_SIZE)[:N_STEPS]:
        optimizer.zero_grad()
        criterion(network(X[index]), y[index]).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return ends


def megabytes(name):
    """Return a size of this process (Linux): "VmRSS" now, "VmHWM" at its largest since the last reset."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(kind, n_rows, n_classes, n_columns):
    """Print the milliseconds of a step and the megabytes of a run, in this process."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_columns), dtype=np.float32)
    y = rng.permutation(np.arange(n_rows) % n_classes)
    before = megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the largest size
    ends = {"fit": fit, "loop": loop}[kind](X, y)
    print(json.dumps([1000 * median(np.diff(ends[N_STEPS // 3 :])), megabytes("VmHWM") - before]))


def measured(kind, case):
    command = [sys.executable, __file__, "--case", kind, *map(str, case)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def draw(results, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), sharey="row", layout="constrained")
    for column, (name, cases) in enumerate(CASES.items()):
        sizes = [case[list(CASES).index(name)] for case in cases]
        for row, unit in enumerate(("ms per step", "MB")):
            axis = axes[row, column]
            for kind, style in (("fit", "o-"), ("loop", "s--")):
                axis.loglog(sizes, [results[kind, case][row] for case in cases], style, label=kind)
            axis.grid(alpha=0.3)
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axis.minorticks_off()
            axis.set_xlabel(name if row else "")
            axis.set_ylabel("" if column else unit)
    for row, ticks in enumerate(((5, 10, 50, 100, 500), (100, 200, 400))):
        axes[row, 0].set_yticks(ticks, map(str, ticks))
    axes[0, 0].legend(["fit", "hand-written loop"])
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--case", nargs=4, metavar=("KIND", "ROWS", "CLASSES", "COLUMNS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return measure(args.case[0], *map(int, args.case[1:]))
    results = {}
    print(f"{'rows':>10}{'classes':>10}{'columns':>9}{'fit':>13}{'loop':>13}{'ratio':>7}{'fit':>10}{'loop':>10}")
    for case in dict.fromkeys([*CASES["rows"], *CASES["classes"], *CASES["columns"], LARGEST]):
        for kind in ("fit", "loop"):
            results[kind, case] = measured(kind, case)
        (ours, our_memory), (plain, plain_memory) = results["fit", case], results["loop", case]
        print(
            f"{case[0]:10,}{case[1]:10,}{case[2]:9,}{ours:10.2f} ms{plain:10.2f} ms{ours / plain:7.2f}"
            f"{our_memory:7.0f} MB{plain_memory:7.0f} MB",
            flush=True,
        )
    if args.picture:
        draw(results, args.picture)


if __name__ == "__main__":
    main()
