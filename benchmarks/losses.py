"""Time and memory of the losses, as ratios to peers and to plain matrix products in the same process.

    python benchmarks/losses.py

A step is a forward and a backward pass in float32 on the CPU with 2 threads. The runs of a row alternate, so that load
from other programs affects all of them, and the ratios are ratios of medians. Rows that need pytorch-metric-learning
are left out if it is not installed.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from skdml.losses import RAWLoss, SoftTripleLoss, SSTLoss

try:
    from pytorch_metric_learning import losses as pml_losses
    from pytorch_metric_learning.miners import MultiSimilarityMiner
    from pytorch_metric_learning.regularizers import SparseCentersRegularizer
except ImportError:
    pml_losses = None

STATUS = Path("/proc/self/status")
PEAK_CLASSES, PEAK_CENTERS, PEAK_COMPONENTS, PEAK_BATCH = 11_318, 10, 512, 32


def main():
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print(f"{'work':<82} {'ratio':>7} {'target':>6}")
    if pml_losses is None:
        print("The comparisons with pytorch-metric-learning are left out: pip install pytorch-metric-learning")
    raw(128, 64, rounds=100)
    raw(1024, 512, rounds=15)
    soft_triple_and_pml()
    soft_triple_and_product()
    soft_triple_memory()
    sst(64)
    sst(512)


def report(work, ratio, bar):
    print(f"{work:<82} {ratio:7.3f} {bar:6.2f}{'' if ratio <= bar else '  above'}", flush=True)


def medians(rounds, *runs):
    """Return the median seconds of each run; the runs alternate, after one warm-up round."""
    seconds = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]


def step(loss, *leaves):
    """Return a run of a forward and a backward pass into fresh gradients."""

    def run():
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return run


def without_grad(products):
    def run():
        with torch.no_grad():
            products()

    return run


def unit_rows(n, d):
    return F.normalize(torch.randn(n, d)).requires_grad_()


def raw(n, d, rounds):
    """RAW with valid triplet based hard mining, 4 samples per class; the peer's miner and loss have equal constants."""
    x, y = unit_rows(n, d), torch.arange(n) // 4
    loss, G = RAWLoss(), torch.randn(n, n)
    runs = [step(lambda: loss(x, y), x), without_grad(lambda: (x @ x.T, G @ x))]
    if pml_losses:
        miner, peer = MultiSimilarityMiner(epsilon=0.1), pml_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
        runs.append(step(lambda: peer(x, y, miner(x, y)), x))
    own, products, *peers = medians(rounds, *runs)
    for seconds in peers:
        bar = 0.4 if n < 1024 else 0.3
        report(f"RAW, batch {n}, D={d}, over pytorch-metric-learning", own / seconds, bar)
    if n >= 1024:
        report(f"RAW, batch {n}, D={d}, over the products X X^T and G X", own / products, 2.2)


def soft_triple_and_pml(n_classes=1000, n_centers=10, d=64, n=32):
    if pml_losses is None:
        return
    x, y = unit_rows(n, d), torch.randint(n_classes, (n,))
    loss = SoftTripleLoss(n_classes, d, n_centers=n_centers)
    peer = pml_losses.SoftTripleLoss(
        n_classes,
        d,
        centers_per_class=n_centers,
        weight_regularizer=SparseCentersRegularizer(n_classes, n_centers),
        weight_reg_weight=0.2,
    )
    own, seconds = medians(7, step(lambda: loss(x, y), x, loss.centers), step(lambda: peer(x, y), x, peer.fc))
    work = f"SoftTriple, {n_classes} classes, K={n_centers}, D={d}, batch {n}, over pytorch-metric-learning"
    report(work, own / seconds, 0.1)


def soft_triple_and_product():
    x, y = unit_rows(PEAK_BATCH, PEAK_COMPONENTS), torch.randint(PEAK_CLASSES, (PEAK_BATCH,))
    loss = SoftTripleLoss(PEAK_CLASSES, PEAK_COMPONENTS, n_centers=PEAK_CENTERS)
    w = loss.centers.detach().flatten(0, 1)
    g = torch.randn(PEAK_BATCH, len(w))
    products = without_grad(lambda: (x @ w.T, g @ w, g.T @ x))
    own, seconds = medians(7, step(lambda: loss(x, y), x, loss.centers), products)
    work = f"SoftTriple, {PEAK_CLASSES} classes, K={PEAK_CENTERS}, D={PEAK_COMPONENTS}, batch {PEAK_BATCH}"
    report(f"{work}, over its 3 products", own / seconds, 2.5)


def soft_triple_memory():
    """Peak memory of a fresh process beyond that before the centers existed, divided by the size of the centers."""
    if not STATUS.exists():
        print("The peak memory of SoftTriple, which is read from /proc, is left out.")
        return
    process = subprocess.run(
        [sys.executable, __file__, "--peak"], stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    work = f"SoftTriple, {PEAK_CLASSES} classes, K={PEAK_CENTERS}, D={PEAK_COMPONENTS}, batch {PEAK_BATCH}"
    report(f"{work}, peak memory over the centers'", float(process.stdout), 3.0)


def peak():
    torch.set_num_threads(2)
    for n_classes in (50, PEAK_CLASSES):  # the small one loads all code
        before = resident("VmRSS")
        x, y = unit_rows(PEAK_BATCH, PEAK_COMPONENTS), torch.randint(n_classes, (PEAK_BATCH,))
        loss = SoftTripleLoss(n_classes, PEAK_COMPONENTS, n_centers=PEAK_CENTERS)
        run = step(lambda loss=loss, x=x, y=y: loss(x, y), x, loss.centers)
        run()
        run()
    print((resident("VmHWM") - before) / (loss.centers.numel() * loss.centers.element_size()))


def resident(key):
    """Return the physical memory of this process in bytes: VmRSS now, VmHWM at the peak."""
    return int(STATUS.read_text().partition(f"{key}:")[2].split()[0]) * 1024


def sst(d, n=200, n_targets=5):
    """SST, compared with the authors' code: triplets from lists in blocks of 100, with three distances each."""
    x, y = unit_rows(n, d), torch.arange(n) // 10
    loss = SSTLoss(n_targets=n_targets)
    same = y[:, None] == y
    near = torch.where(same, torch.cdist(x.detach(), x.detach()), torch.inf).fill_diagonal_(torch.inf)
    targets = near.topk(n_targets, largest=False).indices
    triplets = torch.cat([
        torch.cartesian_prod(torch.tensor([a]), targets[a], (~same[a]).nonzero().flatten()) for a in range(n)
    ])  # fmt: skip

    def in_blocks():
        total = 0
        for a, p, n in (block.T for block in triplets.split(100)):
            ap, an, pn = ((x[i] - x[j]).square().sum(dim=1) for i, j in ((a, p), (a, n), (p, n)))
            total = total + F.softplus(ap - (an + pn) / 2).sum()
        return total / len(triplets)

    torch.testing.assert_close(loss(x, y), in_blocks())
    own, seconds = medians(3, step(lambda: loss(x, y), x), step(in_blocks, x))
    report(f"SST, batch {n}, D={d}, {len(triplets)} triplets, over blocks of 100 triplets", own / seconds, 0.02)


if __name__ == "__main__":
    peak() if "--peak" in sys.argv[1:] else main()
