"""Time of ``fit`` relative to a hand-written loop, and of ``import skdml`` beyond the packages that it imports.

The loop has the same network, loss, optimizer (class and settings) and batch size, and its data are on the device.
Rounds alternate; the median of the ratios is printed next to the target.

    python benchmarks/training.py [--quick] [--device cuda]
"""

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torch import nn

from skdml import SoftTripleEmbedder
from skdml.losses import SoftTripleLoss


class Network(nn.Module):
    """The default network over 64 columns or more: the input plus a linear map and a perceptron that start at zero."""

    scale = 1.0

    def __init__(self, n_features):
        super().__init__()
        self.linear = nn.Linear(n_features, n_features)
        self.hidden = nn.Linear(n_features, 256)
        self.output = nn.Linear(256, n_features, bias=False)
        for parameter in [*self.linear.parameters(), *self.output.parameters()]:
            nn.init.zeros_(parameter)

    def forward(self, x):
        x = x * self.scale
        return nn.functional.normalize(x + self.linear(x) + self.output(self.hidden(x).relu()))


def loop(X, y, batch_size, epochs, device, fused):
    """Train with a carefully written loop: one index tensor per batch, and the loss is read once per epoch."""
    X, y = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    network = Network(X.shape[1]).to(device)
    network.scale = float((X**2).mean() ** -0.5)
    criterion = SoftTripleLoss(int(y.max()) + 1, X.shape[1], n_centers=2).to(device)
    optimizer = torch.optim.AdamW(
        [{"params": network.parameters(), "lr": 3e-3}, {"params": criterion.parameters(), "lr": 3e-3}],
        weight_decay=1e-4,
        fused=fused,
    )
    for _ in range(epochs):
        total = 0.0
        for index in torch.randperm(len(X), device=device).split(batch_size):
            optimizer.zero_grad()
            loss = criterion(network(X[index]), y[index])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        total.item()


def fit(X, y, batch_size, epochs, device):
    SoftTripleEmbedder(
        n_centers=2, batch_size=batch_size, max_epochs=epochs, lr_schedule=None, device=device, random_state=0
    ).fit(X, y)


def seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def import_seconds(statement):
    code = f"import time, torch, sklearn, skorch; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rounds = 3 if args.quick else 7
    sizes = [(20_000, 64, 128), (20_000, 64, 1024), (20_000, 784, 64)]
    if args.device != "cpu":
        sizes.append((1_000_000, 128, 4096))

    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {rounds} rounds")
    print(f"{'fit over a hand-written loop':45} {'AdamW':>9} {'fused':>9}   target")
    rng = np.random.default_rng(0)
    for n, d, batch_size in sizes:
        X = rng.normal(size=(n, d)).astype(np.float32)
        y = rng.integers(100, size=n)
        ratios = []
        for _ in range(rounds + 1):
            plain = seconds(loop, X, y, batch_size, 3, args.device, None)
            ours = seconds(fit, X, y, batch_size, 3, args.device)
            fused = seconds(loop, X, y, batch_size, 3, args.device, True)
            ratios.append((ours / plain, ours / fused))
        plain, fused = (statistics.median(column) for column in zip(*ratios[1:], strict=True))
        print(f"{f'{n:,} x {d}, batch {batch_size}':45} {plain:9.2f} {fused:9.2f}   1.05")
    extra = statistics.median(import_seconds("import skdml") for _ in range(rounds))
    print(f"import skdml beyond torch, scikit-learn and skorch: {extra:.2f} s   0.30 s")


if __name__ == "__main__":
    main()
