"""Time per step and peak memory of every loss, with ratios to RAW and to pytorch-metric-learning.

    python benchmarks/all_losses.py [NAME ...]

A step is a forward and a backward pass in float32 on the CPU with 2 threads, D = 128 and 4 samples per class, over
batches of 128 and of 1,024 unit rows. Each loss runs in its own process, so that its peak memory can be measured, and
alternates with RAW and with the peer, so that load from other programs affects all of them. The ratios are ratios of
medians. Losses with proxies have as many classes as the batch has rows. Peers that enumerate triplets take B^3 bytes
and are left out at 1,024.
"""

import argparse
import inspect
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from skdml import losses

D = 128
STATUS = Path("/proc/self/status")
CUBIC_PEERS = {"TripletLoss", "AngularLoss", "HistogramLoss", "MarginLoss", "LiftedStructureLoss(original)"}
# Exempt from the target of five times the step of RAW; SoftTriple is not a loss over pairs.
EXCEPTED = {"PDDMLoss", "TripletLoss", "AngularLoss", "SmartMiningLoss", "ClusteringLoss", "SoftTripleLoss"}


def peer_of(name, n_classes):
    """Return the loss of pytorch-metric-learning for ours, as a function of embeddings and labels, or None."""
    from pytorch_metric_learning import distances, miners
    from pytorch_metric_learning import losses as pml

    mined = miners.MultiSimilarityMiner(epsilon=0.1), pml.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    makers = {
        "RAWLoss": lambda: lambda x, y: mined[1](x, y, mined[0](x, y)),
        "AngularLoss": lambda: pml.AngularLoss(alpha=45),
        "ArcFaceLoss": lambda: pml.ArcFaceLoss(n_classes, D),
        "CircleLoss": lambda: pml.CircleLoss(m=0.4, gamma=80),
        "ContrastiveLoss": lambda: pml.ContrastiveLoss(1, 0.5, distance=distances.CosineSimilarity()),
        "HistogramLoss": lambda: pml.HistogramLoss(n_bins=100),
        "LargeMarginSoftmaxLoss": lambda: pml.LargeMarginSoftmaxLoss(n_classes, D),
        "LiftedStructureLoss": lambda: pml.GeneralizedLiftedStructureLoss(),
        "MarginLoss": lambda: pml.MarginLoss(num_classes=n_classes, learn_beta=True),
        "NPairsLoss": lambda: pml.NPairsLoss(),
        "NormSoftmaxLoss": lambda: pml.NormalizedSoftmaxLoss(n_classes, D),
        "ProxyAnchorLoss": lambda: pml.ProxyAnchorLoss(n_classes, D),
        "ProxyNCALoss": lambda: pml.ProxyNCALoss(n_classes, D),
        "SoftTripleLoss": lambda: pml.SoftTripleLoss(n_classes, D),
        "SupConLoss": lambda: pml.SupConLoss(),
        "TripletLoss": lambda: pml.TripletMarginLoss(),
    }
    return makers[name]() if name in makers else None


def make(name, n_classes):
    cls = getattr(losses, name)
    sizes = {"n_classes": n_classes, "n_components": D}
    return cls(**{size: value for size, value in sizes.items() if size in inspect.signature(cls).parameters})


def step(loss, x, y):
    def run():
        x.grad = None
        loss(x, y).backward()

    return run


def medians(rounds, runs):
    seconds = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]


def resident(key):
    """Return the physical memory of this process in MiB: VmRSS now, VmHWM at the peak; nan without /proc."""
    if not STATUS.exists():
        return float("nan")
    return int(STATUS.read_text().partition(f"{key}:")[2].split()[0]) / 1024


def measure(name):
    """Print a row of the table."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    row = f"{name:24}"
    for n, rounds in ((128, 31), (1024, 7)):
        x, y = F.normalize(torch.randn(n, D)).requires_grad_(), torch.arange(n) // 4
        own = step(make(name, n), x, y)
        own()
        if n == 1024:
            before = resident("VmRSS")
            own()
            peak = resident("VmHWM") - before
        try:
            peer = None if n == 1024 and name in CUBIC_PEERS else peer_of(name, n)
        except ImportError:
            peer = None
        runs = [own, step(losses.RAWLoss(), x, y), *([step(peer, x, y)] if peer else [])]
        seconds, raw, *peers = medians(rounds, runs)
        ratio = f"{seconds / peers[0]:8.3f}" if peers else f"{'-':>8}"
        row += f"{1000 * seconds:9.2f}{seconds / raw:9.2f}{ratio}"
    bar = "" if name in EXCEPTED or seconds / raw <= 5 else "  above 5"
    print(f"{row}{peak:9.0f}{bar}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=losses.__all__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return measure(args.one)
    print(f"{'':24}{'B = 128':^26}{'B = 1,024':^35}")
    print(f"{'loss':24}" + f"{'ms':>9}{'/ RAW':>9}{'/ peer':>8}" * 2 + f"{'MiB':>9}")
    for name in args.names:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    main()
