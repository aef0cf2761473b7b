"""Fine-tuning on the photographs of CUB-200 2010 with pytorch-metric-learning::

    python benchmarks/fine_tuning.py --data-home /data

The peer of ``examples/reproduce_tables.py cub200_2010 --methods RAW+VTHM``: the same network, initial weights, crops,
number and size of batches, epochs, optimizer and schedule, in a hand-written loop with the loss, miner and sampler of
pytorch-metric-learning.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import nn

from skdml.datasets import load_cub200_2010
from skdml.metrics import map_at_r, recall_at_k

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from reproduce_tables import CUB200_2010, EfficientNetLite0, small_crops


def read(path):
    """Return the middle 224 x 224 pixels (3, 224, 224) of an image whose shorter side is scaled to 256."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([max(256, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - 224) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)


def scaled(images):
    return (images.float() - 127) / 128


def embed(network, images):
    with torch.no_grad():
        return torch.cat([nn.functional.normalize(network.eval()(scaled(part))) for part in images.split(64)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("::")[0])
    parser.add_argument("--data-home")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = load_cub200_2010(data_home=args.data_home)
    images, y = torch.from_numpy(np.stack([read(path) for path in data.data])), data.target
    X_train, y_train = images[data.train], torch.from_numpy(y[data.train])
    X_test, y_test = images[~data.train], y[~data.train]

    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002, the sampler draws from NumPy's global generator
    network = EfficientNetLite0()
    report("untrained", embed(network, X_test), y_test)
    epochs, size = CUB200_2010["max_epochs"], CUB200_2010["batch_size"]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    sampler = MPerClassSampler(y_train, m=CUB200_2010["samples_per_class"], length_before_new_iter=len(y_train))
    loss_fn, miner = MultiSimilarityLoss(), MultiSimilarityMiner()
    parameters = [p for p in network.parameters() if p.requires_grad]
    rate = CUB200_2010["learning_rate"]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=CUB200_2010["weight_decay"])
    n_batches = -(-len(y_train) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * n_batches)
    start = time.perf_counter()
    for _ in range(epochs):
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for batch in torch.tensor(list(sampler)).split(size)[:n_batches]:
            Z = nn.functional.normalize(network(small_crops(scaled(X_train[batch]))))
            loss = loss_fn(Z, y_train[batch], miner(Z, y_train[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    name = f"pytorch-metric-learning, MultiSimilarityLoss, {time.perf_counter() - start:.0f} s"
    report(name, embed(network, X_test), y_test)


def report(name, Z, y):
    print(f"{name}: Recall@1 {recall_at_k(Z, y):.3f}, MAP@R {map_at_r(Z, y):.3f}", flush=True)


if __name__ == "__main__":
    main()
