"""Does training on the features of a pretrained network help on classes that it has not seen?

    python benchmarks/start.py cub200_2010_lite0.npz banking77_minilm.npz [--methods all --seeds 0]

Each file holds vectors X, labels y and ``train``, a mask of the samples of the training classes. A fifth of these is
set aside as new samples of known classes. The embedders have their defaults; the first row is the untrained input.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import skdml
from skdml import ProxyAnchorEmbedder, RAWEmbedder, SoftTripleEmbedder, map_at_r, recall_at_k
from skdml._engine.embedder import BaseEmbedder

EMBEDDERS = (SoftTripleEmbedder, RAWEmbedder, ProxyAnchorEmbedder)


def measure(transform, X, y, unseen, new):
    """Return Recall@1 and MAP@R on unseen classes, and Recall@1 of new samples searched among the training samples."""
    Z, known = transform(X), ~unseen & ~new
    return (
        recall_at_k(Z[unseen], y[unseen]),
        map_at_r(Z[unseen], y[unseen]),
        recall_at_k(Z[new], y[new], gallery=Z[known], gallery_y=y[known]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--methods", choices=["three", "all"], default="three")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    embedders = EMBEDDERS
    if args.methods == "all":
        classes = [getattr(skdml, name) for name in skdml.__all__]
        embedders = [cls for cls in classes if isinstance(cls, type) and issubclass(cls, BaseEmbedder)]
    for path in args.files:
        with np.load(path) as file:
            X, y, train = file["X"].astype(np.float32), file["y"], file["train"]
        new = train & (np.random.default_rng(0).random(len(y)) < 0.2)
        known = train & ~new
        n_classes = len(np.unique(y[train]))
        print(f"\n{path.stem}: {known.sum()} samples of {n_classes} classes to train on, {X.shape[1]} columns")
        print("| embedder | unseen classes: Recall@1 | MAP@R | new samples of known classes: Recall@1 | seconds |")
        print("|---|---|---|---|---|")
        print("| untrained | {:.3f} | {:.3f} | {:.3f} | |".format(*measure(lambda X: X, X, y, ~train, new)), flush=True)
        for cls in embedders:
            start = time.perf_counter()
            fitted = [cls(random_state=seed).fit(X[known], y[known]) for seed in args.seeds]
            seconds = (time.perf_counter() - start) / len(fitted)
            scores = np.mean([measure(embedder.transform, X, y, ~train, new) for embedder in fitted], axis=0)
            print("| {} | {:.3f} | {:.3f} | {:.3f} | {:.0f} |".format(cls.__name__, *scores, seconds), flush=True)


if __name__ == "__main__":
    main()
