"""Time of decoding, caching, augmentation and a frozen backbone, each divided by the least that it could take.

Rounds alternate; the ratio of the shortest times is printed next to the target. The files are generated: upscaled
characters with noise, as JPEG. The network is EfficientNet-Lite0. ``--memory`` instead streams 20,000 files of one
megapixel through a fit and prints the maximum memory of its processes (Linux).

    python benchmarks/images.py [--quick] [--memory]
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

from skdml import SoftTripleEmbedder
from skdml._data.files import ImageFiles
from skdml._data.images import Preprocessing
from skdml.datasets import load_kanji

N_JOBS = 2


class Lite(nn.Module):
    """The network without pretrained weights, since the time does not depend on them."""

    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, x):
        return self.network.extract_features(x).mean(dim=(2, 3))


def write_files(folder, n_files, size):
    kanji = load_kanji().images
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i}.jpg") for i in range(n_files)]
    for i, path in enumerate(paths):
        character = np.asarray(Image.fromarray(kanji[i]).resize(size, Image.Resampling.BICUBIC))[:, :, None]
        noise = rng.integers(0, 40, (*character.shape[:2], 3))
        Image.fromarray((character // 2 + noise + rng.integers(0, 80, 3)).astype(np.uint8)).save(path, quality=90)
    return paths


def seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def ratio(ours, least, rounds):
    """Return the ratio of the shortest times of two functions, called alternately."""
    times = [(seconds(ours), seconds(least)) for _ in range(rounds)]
    first, second = (min(column) for column in zip(*times, strict=True))
    return first / second


def show(work, value, bar):
    print(f"| {work} | {value:.2f} | {bar} |", flush=True)


def bare_decode(path):
    with Image.open(path) as image:
        image.draft("RGB", (256, 256))
        width, height = image.size
        scale = 256 / min(width, height)
        return np.asarray(image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR))


def decoding(folder, rounds):
    paths = write_files(folder, 600, (500, 375))
    chunks = [list(range(start, min(start + 32, len(paths)))) for start in range(0, len(paths), 32)]
    files = ImageFiles(paths, 256, n_jobs=N_JOBS)

    def ours(files=files):
        for images in files.images(chunks):
            np.concatenate([image.reshape(-1) for image in images])

    def pool():
        with multiprocessing.Pool(N_JOBS) as pool:
            for image in pool.imap(bare_decode, paths, chunksize=32):
                image.copy()

    value = ratio(ours, pool, rounds)
    show(f"decoding JPEG files of 500 x 375 in {N_JOBS} processes, over a Pool of plain Pillow", value, 1.2)
    cached = ImageFiles(paths, 256, cache=folder / "cache", n_jobs=N_JOBS)
    ours(cached)
    value = ratio(ours, lambda: ours(cached), rounds)
    show("decoding over the second epoch from the cache, which checks each image", value, "> 10")


def augmentation(rounds):
    network = Lite().train()
    settings = Preprocessing(None, 224, (127.0,), (128.0,), "standard", (0.08, 1.0), (3 / 4, 4 / 3))
    images = torch.randint(0, 256, (32, 3, 256, 341), dtype=torch.uint8)
    x = torch.randn(32, 3, 224, 224)
    generator = torch.Generator().manual_seed(0)

    def step(x):
        network(x).sum().backward()

    step(x)
    value = ratio(lambda: step(settings(images, generator)), lambda: step(x), rounds)
    show("step of EfficientNet-Lite0, 224 px, batch 32, with augmentation, over forward and backward", value, 1.15)


def freezing(rounds):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (512, 96, 96, 3), dtype=np.uint8)
    y = np.repeat(np.arange(64), 8)
    network = Lite()
    params = {"max_epochs": 50, "n_centers": 2, "random_state": 0, "device": "cpu"}

    def features():
        network.eval()
        with torch.no_grad():
            parts = torch.from_numpy(X).permute(0, 3, 1, 2).split(32)
            return torch.cat([network((part.float() - 127) / 128) for part in parts]).numpy()

    def frozen():
        SoftTripleEmbedder(backbone=network, freeze="backbone", **params).fit(X, y)

    def by_hand():
        SoftTripleEmbedder(hidden_layer_sizes=(), **params).fit(features(), y)

    value = ratio(frozen, by_hand, rounds)
    show("freeze='backbone', over one pass of the network and a fit of the features", value, 1.2)


def tree_memory(pid):
    """Return the memory in bytes of a process with its children, and of the process only.

    Pages that they share are counted in each process.
    """
    sizes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:  # it has ended
            continue
        if pid in (parent, int(folder.name)):
            sizes[int(folder.name)] = resident
    return sum(sizes.values()), sizes.get(pid, 0)


def fit_many(paths):
    torch.set_num_threads(1)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.ReLU())
    embedder = SoftTripleEmbedder(backbone=backbone, max_epochs=1, n_jobs=N_JOBS, random_state=0, device="cpu")
    embedder.fit(paths, np.arange(len(paths)) % 100)


def memory(folder, n_files):
    originals = write_files(folder, 20, (1000, 1000))
    paths = [str(folder / f"link{i}.jpg") for i in range(n_files)]
    for i, path in enumerate(paths):
        os.link(originals[i % 20], path)
    process = multiprocessing.Process(target=fit_many, args=(paths,))
    start = time.perf_counter()
    process.start()
    most = [0, 0]
    while process.is_alive():
        most = [max(pair) for pair in zip(most, tree_memory(process.pid), strict=True)]
        time.sleep(0.2)
    if process.exitcode:
        raise RuntimeError(f"The fit ended with exit code {process.exitcode}.")
    minutes = (time.perf_counter() - start) / 60
    show(f"{n_files:,} files of 1 megapixel, most memory of all processes, GiB ({minutes:.1f} min)", most[0] / 2**30, 2)
    show("the same, main process", most[1] / 2**30, "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer files")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    args = parser.parse_args()
    rounds = 2 if args.quick else 5
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print("| work | ratio | target |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            memory(Path(folder), 2_000 if args.quick else 20_000)
            return
        decoding(Path(folder), rounds)
    augmentation(rounds)
    freezing(rounds)


if __name__ == "__main__":
    main()
