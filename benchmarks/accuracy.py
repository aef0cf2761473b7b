"""Accuracy compared with pytorch-metric-learning, with the embedders' defaults, and on vectors.

    python benchmarks/accuracy.py peers [--data glyphs32.npz --epochs 12]
    python benchmarks/accuracy.py defaults
    python benchmarks/accuracy.py ablations
    python benchmarks/accuracy.py vectors

``peers`` trains the same network with the same optimizer, constant learning rate, epochs, batches and seeds, once with
our loss and once with pytorch-metric-learning's, on the bundled characters or on a file with X, y and train (a mask of
the samples of the training classes). ``defaults`` prints Recall@1 on the bundled characters after 15 epochs;
``ablations`` does so with one center per class in SoftTriple and without local sampling in SST. ``vectors`` puts each
embedder between StandardScaler and three nearest neighbors, in 5-fold cross-validation.
"""

import argparse
import re

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NeighborhoodComponentsAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skdml import MetricEmbedder, RAWEmbedder, SoftTripleEmbedder, SSTEmbedder, map_at_r, recall_at_k
from skdml.datasets import load_kanji
from skdml.losses import SSTLoss

SEEDS = (0, 1, 2)
EMBEDDERS = (SoftTripleEmbedder, RAWEmbedder, SSTEmbedder)


class PeerSoftTriple(SoftTripleEmbedder):
    """Our engine and batches with pytorch-metric-learning's SoftTripleLoss with its default, no regularizer.

    With its SparseCentersRegularizer, the loss became NaN when two centers met, in epoch 7.
    """

    def _make_loss(self, n_classes, network):
        from pytorch_metric_learning.losses import SoftTripleLoss

        return SoftTripleLoss(
            n_classes,
            network.n_components,
            centers_per_class=self.n_centers,
            la=self.scale,
            gamma=self.gamma,
            margin=self.margin,
        )


class PeerMultiSimilarity(RAWEmbedder):
    """Our engine and batches with pytorch-metric-learning's MultiSimilarityLoss and miner."""

    def _make_loss(self, n_classes, network):
        from pytorch_metric_learning.losses import MultiSimilarityLoss
        from pytorch_metric_learning.miners import MultiSimilarityMiner

        class Mined(nn.Module):
            def __init__(self, loss, miner):
                super().__init__()
                self.loss = loss
                self.miner = miner

            def forward(self, embeddings, y):
                return self.loss(embeddings, y, self.miner(embeddings, y))

        return Mined(
            MultiSimilarityLoss(alpha=self.alpha, beta=self.beta, base=self.threshold),
            MultiSimilarityMiner(epsilon=self.mining_margin),
        )


def peers(X, y, train, epochs):
    print(f"{'same network, batches, seeds':28} {'Recall@1':>9} {'MAP@R':>7}   by seed")
    for cls in (SoftTripleEmbedder, PeerSoftTriple, RAWEmbedder, PeerMultiSimilarity, SSTEmbedder):
        scores = []
        for seed in SEEDS:
            embedder = cls(lr_schedule=None, learning_rate=1e-3, max_epochs=epochs, random_state=seed)
            Z = embedder.fit(X[train], y[train]).transform(X[~train])
            scores.append((recall_at_k(Z, y[~train]), map_at_r(Z, y[~train])))
        recall, precision = np.mean(scores, axis=0)
        print(f"{cls.__name__:28} {recall:9.3f} {precision:7.3f}   {np.round([r for r, _ in scores], 3)}", flush=True)


def defaults(X, y, train, epochs):
    bars = {"SoftTripleEmbedder": 0.83, "RAWEmbedder": 0.845, "SSTEmbedder": 0.78}
    print(f"{'defaults, 15 epochs':44} {'Recall@1':>9} {'target':>7}   by seed")
    for cls in EMBEDDERS:
        recall_by_seed(cls(max_epochs=epochs), X, y, train, bars[cls.__name__])


def ablations(X, y, train, epochs):
    print(f"{'15 epochs':44} {'Recall@1':>9} {'':7}   by seed")
    for embedder in (
        SoftTripleEmbedder(),
        SoftTripleEmbedder(n_centers=1),
        SSTEmbedder(),
        MetricEmbedder(loss=SSTLoss(), batches="shuffled", batch_size=128),
    ):
        recall_by_seed(embedder.set_params(max_epochs=epochs), X, y, train)


def recall_by_seed(embedder, X, y, train, bar=None):
    name = re.sub(r"max_epochs=\d+,?\s*", "", " ".join(str(embedder).split()))
    scores = [
        embedder.set_params(random_state=seed).fit(X[train], y[train]).score(X[~train], y[~train]) for seed in SEEDS
    ]
    shown = "" if bar is None else f"{bar:.3f}"
    print(f"{name:44} {np.mean(scores):9.3f} {shown:>7}   {np.round(scores, 3)}", flush=True)


def vectors():
    sets = {"digits": load_digits, "wine": load_wine, "breast_cancer": load_breast_cancer, "iris": load_iris}
    transformers = {
        "none": lambda seed: None,
        "NCA(16)": lambda seed: NeighborhoodComponentsAnalysis(16, random_state=seed),
        **{cls.__name__: lambda seed, cls=cls: cls(random_state=seed) for cls in EMBEDDERS},
    }
    print(f"{'scaler, ..., 3 neighbors':20}" + "".join(f"{name:>15}" for name in sets) + f"{'mean':>15}")
    for name, make in transformers.items():
        means = []
        for load in sets.values():
            X, y = load(return_X_y=True)
            scores = []
            for seed in SEEDS:
                transformer = make(seed)
                if name == "NCA(16)":
                    transformer.set_params(n_components=min(16, X.shape[1]))
                steps = [StandardScaler(), *([transformer] if transformer else []), KNeighborsClassifier(3)]
                folds = StratifiedKFold(5, shuffle=True, random_state=seed)
                scores.append(cross_val_score(make_pipeline(*steps), X, y, cv=folds, error_score="raise").mean())
            means.append(np.mean(scores))
        print(f"{name:20}" + "".join(f"{mean:15.4f}" for mean in [*means, np.mean(means)]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["peers", "defaults", "ablations", "vectors"])
    parser.add_argument("--data", help="npz file with X, y and train (default: the bundled characters)")
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    if args.table == "vectors":
        return vectors()
    if args.data:
        with np.load(args.data) as file:
            data = file["X"], file["y"], file["train"]
    else:
        kanji = load_kanji()
        data = kanji.data, kanji.target, kanji.train
    {"peers": peers, "defaults": defaults, "ablations": ablations}[args.table](*data, args.epochs)


if __name__ == "__main__":
    main()
