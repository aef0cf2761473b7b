"""What is lost if an embedding is cut, with and without ``nested_components``?

    python benchmarks/nested.py glyphs32.npz cub200_2010_lite0.npz [--epochs 20 --classes 100 --seeds 0]

Each file holds vectors or images X, labels y and ``train``, a mask of the samples of the training classes. The numbers
are Recall@1 on the other classes, of the first 16, the first 32 and all components, each scaled to unit length. The
first row has the principal components of X, untrained. "principal components of it" are those of the ordinary
embedding of the training samples: what can be done after the training.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.utils.extmath import randomized_svd

from skdml import ProxyAnchorEmbedder, RAWEmbedder, SoftTripleEmbedder, recall_at_k

SIZES = (16, 32)
EMBEDDERS = {"RAW": RAWEmbedder, "SoftTriple": SoftTripleEmbedder, "ProxyAnchor": ProxyAnchorEmbedder}


def recalls(Z, y):
    return [recall_at_k(Z[:, :m], y) for m in (*SIZES, Z.shape[1])]


def principal(Z, Z_new, n_components):
    """Return the rows of Z_new turned to the principal components of Z, the first of them."""
    components = randomized_svd(Z, n_components, n_iter=5, random_state=0)[2]
    return Z_new @ components.T


def show(name, rows, seconds=""):
    means = np.mean(rows, axis=0)
    print(f"| {name} | " + " | ".join("" if np.isnan(m) else f"{m:.3f}" for m in means) + f" | {seconds} |", flush=True)


def compare(cls, name, X, y, train, epochs, seeds):
    def fit(seed, **params):
        return cls(max_epochs=epochs, random_state=seed, **params).fit(X[train], y[train])

    def duration(embedder):
        return np.median([epoch["duration"] for epoch in embedder.history_])

    unseen = X[~train], y[~train]
    small = [[fit(seed, n_components=m).score(*unseen) for m in SIZES] + [np.nan] for seed in seeds]
    show(f"{name}, n_components=16 or 32", small)
    cut, turned, nested, ratios = [], [], [], []
    for seed in seeds:
        ordinary, nesting = fit(seed), fit(seed, nested_components=SIZES)
        Z = ordinary.transform(unseen[0])
        cut.append(recalls(Z, unseen[1]))
        turned.append(
            [*recalls(principal(ordinary.transform(X[train]), Z, SIZES[-1]), unseen[1])[: len(SIZES)], np.nan]
        )
        nested.append(recalls(nesting.transform(unseen[0]), unseen[1]))
        ratios.append(duration(nesting) / duration(ordinary))
    show(f"{name}, cut", cut, "1")
    show(f"{name}, principal components of it", turned)
    show(f"{name}, nested_components={SIZES}", nested, f"{np.median(ratios):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--classes", type=int, help="only so many classes to train on and as many others")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", choices=EMBEDDERS, default=["RAW", "SoftTriple"])
    args = parser.parse_args()
    for path in args.files:
        with np.load(path) as file:
            X, y, train = file["X"], file["y"], file["train"]
        X = X.astype(np.float32) if X.ndim == 2 else X
        if args.classes:
            kept = np.isin(y, np.concatenate([np.unique(y[part])[: args.classes] for part in (train, ~train)]))
            X, y, train = X[kept], y[kept], train[kept]
        rows = X.reshape(len(X), -1).astype(np.float32)
        print(f"\n{path.stem}: {train.sum()} samples of {len(np.unique(y[train]))} classes to train on, {X.shape[1:]}")
        print("| | 16 components | 32 components | all | time of an epoch |")
        print("|---|---|---|---|---|")
        untrained = principal(rows[train], rows[~train], SIZES[-1])
        show("untrained", [[*recalls(untrained, y[~train])[: len(SIZES)], recall_at_k(rows[~train], y[~train])]])
        for name in args.methods:
            compare(EMBEDDERS[name], name, X, y, train, args.epochs, args.seeds)


if __name__ == "__main__":
    main()
