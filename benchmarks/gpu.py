"""Everything that needs a GPU, in under eight minutes: its tests, fits, measures, steps, precision and memory.

    python benchmarks/gpu.py                        on one GPU
    python benchmarks/gpu.py --device cpu --quick   that the script runs, anywhere

A time is the median of rounds after a warm-up, with the device synchronized. Ratios are those of the same rounds. The
comparison with pytorch-metric-learning needs the package, and with ``--device cpu`` nothing is a result.
"""

import argparse
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from training import fit, loop

from skdml import RAWEmbedder, SoftTripleEmbedder
from skdml.losses import RAWLoss, SoftTripleLoss
from skdml.metrics import map_at_r, nmi_score, recall_at_k

ROOT = Path(__file__).parents[1]


def report(work, value, target=""):
    print(f"{work:<78}{value:>12}   {target}", flush=True)


class Clock:
    """Times on one device."""

    def __init__(self, device, rounds):
        self.device = device
        self.rounds = rounds

    def seconds(self, run):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def medians(self, *runs):
        """Return the median seconds of each run; they alternate, after one warm-up round."""
        times = [[self.seconds(run) for run in runs] for _ in range(self.rounds + 1)]
        return [median(column) for column in zip(*times[1:], strict=True)]


def tests():
    """Run what the tests run on a GPU next to the CPU."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-k", "cuda", "-n", "8", "-p", "no:warnings"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report("tests on CUDA", (done.stdout.strip().splitlines() or ["no output"])[-1])
    if done.returncode:
        print(done.stdout[-4000:])


def training(clock, n):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, 128)).astype(np.float32), rng.integers(100, size=n)
    device = str(clock.device)
    arguments = X, y, 4096, 2, device
    plain, fused, ours = clock.medians(
        lambda: loop(*arguments, None), lambda: loop(*arguments, True), lambda: fit(*arguments)
    )
    report(f"fit of {n:,} x 128, batch 4,096, over a hand-written loop", f"{ours / plain:.2f}", "1.05")
    report("  over the same loop with a fused optimizer", f"{ours / fused:.2f}")


def measures(clock, n):
    """Stanford Online Products has 60,502 test images in 11,316 classes."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % (n // 5)
    X = rng.normal(size=(n, 512)) + 0.3 * rng.normal(size=(n // 5, 512))[y]
    Z, labels = torch.tensor(X, dtype=torch.float32, device=clock.device), torch.tensor(y, device=clock.device)
    (recall,) = clock.medians(lambda: recall_at_k(Z, labels, (1, 10, 100, 1000)))
    (precision,) = clock.medians(lambda: map_at_r(Z, labels))
    report(f"Recall@1, 10, 100, 1000 of {n:,} x 512", f"{recall:.3f} s", "0.25 s")
    report(f"MAP@R of {n:,} x 512", f"{precision:.3f} s")
    few = n // 10
    (information,) = clock.medians(lambda: nmi_score(Z[:few], labels[:few]))
    report(f"NMI by k-means of {few:,} x 512, {len(labels[:few].unique()):,} clusters", f"{information:.3f} s")


def steps(clock, batch_size):
    """Compare a forward and a backward pass of our losses with those of pytorch-metric-learning."""
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        return report("steps over pytorch-metric-learning", "left out", "pip install pytorch-metric-learning")
    embeddings = torch.randn(batch_size, 512, device=clock.device)
    embeddings = nn.functional.normalize(embeddings).requires_grad_()
    y = torch.arange(batch_size, device=clock.device) % (batch_size // 4)
    n_classes = 1000
    ours, peers = RAWLoss(mining="vthm"), losses.MultiSimilarityLoss()
    miner = miners.MultiSimilarityMiner()
    soft, peer_soft = SoftTripleLoss(n_classes, 512), losses.SoftTripleLoss(n_classes, 512, centers_per_class=10)
    soft, peer_soft = soft.to(clock.device), peer_soft.to(clock.device)

    def step(loss):
        embeddings.grad = None
        loss().backward()

    for name, run, peer in (
        ("RAW", lambda: ours(embeddings, y), lambda: peers(embeddings, y, miner(embeddings, y))),
        ("SoftTriple", lambda: soft(embeddings, y), lambda: peer_soft(embeddings, y)),
    ):
        a, b = clock.medians(lambda run=run: step(run), lambda peer=peer: step(peer))
        report(f"{name}, a step of {batch_size} x 512, over pytorch-metric-learning", f"{a / b:.2f}", "1")


def network():
    """Return a convolutional network that is large enough to keep a GPU busy, with BatchNorm."""
    layers, width = [], 3
    for channels in (64, 128, 256, 512):
        layers += [nn.Conv2d(width, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        width = channels
    return nn.Sequential(*layers)


def precision(clock, n):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 16
    X = rng.integers(0, 160, size=(n, 64, 64, 3), dtype=np.uint8) + (6 * y[:, None, None, None]).astype(np.uint8)
    settings = {"backbone": network(), "max_epochs": 2, "random_state": 0, "device": clock.device}
    fits = [RAWEmbedder(precision=name, **settings) for name in ("float32", "bfloat16")]
    exact, short = clock.medians(*(lambda f=f: f.fit(X, y) for f in fits))
    report(f"fit of {n:,} images of 64 pixels, bfloat16 over float32", f"{short / exact:.2f}")
    Z = [f.transform(X[:512]) for f in fits]
    report("  mean cosine of their embeddings", f"{np.mean(np.sum(Z[0] * Z[1], axis=1)):.4f}")
    return X, y, settings


def together(clock, X, y, settings):
    """Fit in a group of one process, on CUDA with synchronized BatchNorm, which the CPU does not have."""
    is_cuda = clock.device.type == "cuda"
    backend = "nccl" if is_cuda else "gloo"
    alone = RAWEmbedder(**settings).fit(X, y).transform(X[:512])
    if is_cuda:
        settings = {**settings, "backbone": nn.SyncBatchNorm.convert_sync_batchnorm(settings["backbone"])}
    torch.distributed.init_process_group(
        backend, init_method="tcp://127.0.0.1:29511", rank=0, world_size=1, timeout=timedelta(seconds=60)
    )
    try:
        grouped = RAWEmbedder(**settings).fit(X, y).transform(X[:512])
    finally:
        torch.distributed.destroy_process_group()
    report("largest difference of a fit in a group of one process", f"{abs(alone - grouped).max():.1e}")


def memory(device):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20_000, 64)).astype(np.float32), rng.integers(100, size=20_000)
    held = []
    for _ in range(20):
        SoftTripleEmbedder(max_epochs=1, random_state=0, device=device).fit(X, y).transform(X)
        held.append(torch.cuda.memory_allocated())
    report("bytes held after 20 fits, more than after the first", f"{held[-1] - held[0]:,}", "0")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small data and one round")
    args = parser.parse_args()
    device = torch.device(args.device)
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name() if is_cuda else "not a result"
    print(f"torch {torch.__version__}, {args.device}, {name}")
    start = time.perf_counter()
    clock = Clock(device, 1 if args.quick else 5)
    if is_cuda:
        tests()
    training(clock, 20_000 if args.quick else 1_000_000)
    measures(clock, 2_000 if args.quick else 60_502)
    steps(clock, 128)
    if not args.quick:
        steps(clock, 1024)
    together(clock, *precision(Clock(device, 1), 64 if args.quick else 16_384))
    if is_cuda:
        memory(device)
    report("the whole run", f"{time.perf_counter() - start:.0f} s", "480 s")


if __name__ == "__main__":
    main()
