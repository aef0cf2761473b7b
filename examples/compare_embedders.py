"""
Every embedder on one budget
============================

This script trains each embedder with the same network, epochs and seed. It prints Recall@1 and MAP@R on classes never
seen in training, and the seconds of the fit. The rows are sorted by Recall@1, and raw pixels are the baseline::

    python examples/compare_embedders.py                        # the bundled characters
    python examples/compare_embedders.py --data FILE.npz        # your own images

The file holds uint8 images X of shape (n, H, W), labels y and ``train``, a mask of the samples of the training classes.
Alternatively, it holds X_train, y_train, X_test and y_test, with other classes in the test part.
"""

import argparse
import time

import numpy as np

import skdml
from skdml.datasets import load_kanji

parser = argparse.ArgumentParser(description="Compare all embedders on classes never seen in training.")
parser.add_argument("--data", metavar="FILE.npz", help="images to use (default: the bundled characters)")
parser.add_argument("--epochs", type=int, default=12, help="epochs of each embedder (default: %(default)s)")
parser.add_argument("--limit", type=int, help="largest number of training samples (default: all)")
parser.add_argument("--only", nargs="+", metavar="NAME", help="names of the embedders (default: all)")
args = parser.parse_args()

if args.data is None:
    kanji = load_kanji()
    data = {"X": kanji.images, "y": kanji.target, "train": kanji.train}
else:
    with np.load(args.data) as file:
        data = dict(file)
if "train" in data:
    train = data["train"]
    X_train, y_train, X_test, y_test = data["X"][train], data["y"][train], data["X"][~train], data["y"][~train]
else:
    X_train, y_train, X_test, y_test = (data[name] for name in ("X_train", "y_train", "X_test", "y_test"))
if args.limit is not None and args.limit < len(X_train):
    kept = np.random.default_rng(0).choice(len(X_train), args.limit, replace=False)
    X_train, y_train = X_train[kept], y_train[kept]
print(f"train: {len(X_train)} images of {len(set(y_train))} classes")
print(f"test:  {len(X_test)} images of {len(set(y_test))} other classes\n")

pixels = X_test.reshape(len(X_test), -1).astype(np.float32)
rows = [("raw pixels", skdml.recall_at_k(pixels, y_test), skdml.map_at_r(pixels, y_test), 0.0)]
names = args.only or [name for name in skdml.__all__ if name.endswith("Embedder") and name != "FoldEnsembleEmbedder"]
for name in names:
    embedder = getattr(skdml, name)(max_epochs=args.epochs, random_state=0)
    start = time.perf_counter()
    embedder.fit(X_train, y_train)
    seconds = time.perf_counter() - start
    Z = embedder.transform(X_test)
    rows.append((name, skdml.recall_at_k(Z, y_test), skdml.map_at_r(Z, y_test), seconds))
    print(f"{name}: {rows[-1][1]:.3f}", flush=True)

print(f"\n{'unseen classes':32}{'Recall@1':>10}{'MAP@R':>10}{'seconds':>10}")
for name, recall, precision, seconds in rows[:1] + sorted(rows[1:], key=lambda row: -row[1]):
    print(f"{name:32}{recall:10.3f}{precision:10.3f}{seconds:10.1f}")
