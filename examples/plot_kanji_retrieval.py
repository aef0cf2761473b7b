"""
Find characters never seen in training
======================================

Three embedders learn from images of 150 kanji and then have to find 150 *other* kanji: given one image, which images
show the same character in another font? The measure is Recall@K, the share of queries with at least one image of their
own class among the K nearest. Raw pixels and principal components show what is possible without metric learning.

Run as a script, it can write the picture to a file::

    python examples/plot_kanji_retrieval.py --picture kanji_retrieval.png
"""

# %%
# The task
# --------
# ``train`` marks the images of the characters to learn from. No character is in both parts.
import argparse

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from skdml import RAWEmbedder, SoftTripleEmbedder, SSTEmbedder
from skdml.datasets import load_kanji
from skdml.inspection import RetrievalDisplay
from skdml.metrics import recall_at_k

parser = argparse.ArgumentParser(description="Train three embedders on kanji and find characters never seen before.")
parser.add_argument("--picture", help="file to write the picture to")
parser.add_argument("--epochs", type=int, default=15, help="epochs of each embedder (default: %(default)s)")
args = parser.parse_args()

kanji = load_kanji()
X_train, y_train = kanji.images[kanji.train], kanji.target[kanji.train]
X_test, y_test = kanji.images[~kanji.train], kanji.target[~kanji.train]
print(f"train: {len(X_train)} images of {len(set(y_train))} characters")
print(f"test:  {len(X_test)} images of {len(set(y_test))} other characters")

# %%
# Training
# --------
# All parameters have their defaults: a small convolutional network, 64 components, and embeddings of unit length.
pixels = X_test.reshape(len(X_test), -1).astype(np.float32)
pca = PCA(n_components=64, random_state=0).fit(X_train.reshape(len(X_train), -1))
embeddings = {"raw pixels": pixels, "PCA(64)": pca.transform(pixels)}

for Embedder in (SoftTripleEmbedder, RAWEmbedder, SSTEmbedder):
    print(f"training {Embedder.__name__}", flush=True)
    embedder = Embedder(max_epochs=args.epochs, random_state=0, verbose=1)
    embeddings[Embedder.__name__] = embedder.fit(X_train, y_train).transform(X_test)

# %%
# Recall@K on the unseen characters
# ---------------------------------
ks = (1, 2, 4, 8)
recall = {name: recall_at_k(Z, y_test, ks) for name, Z in embeddings.items()}

print(f"\n{'Recall@K, unseen characters':28}" + "".join(f"{f'K={k}':>8}" for k in ks))
for name, values in recall.items():
    print(f"{name:28}" + "".join(f"{value:8.3f}" for value in values))

# %%
# What is found
# -------------
# The picture shows queries drawn at random and their eight nearest images, for raw pixels and for the best embedder. A
# solid green frame with a tick marks the correct character; a dashed orange frame with a cross marks another one.
best = max(recall, key=lambda name: recall[name][0])

figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="compressed", facecolor="white")
for ax, name in zip(axes, ("raw pixels", best), strict=True):
    RetrievalDisplay.from_embeddings(
        embeddings[name],
        y_test,
        images=255 - X_test,
        random_state=0,
        name=f"nearest by {name}: Recall@1 {recall[name][0]:.2f}",
        ax=ax,
    )

if args.picture:
    figure.savefig(args.picture, dpi=130)
    print(f"\npicture: {args.picture}")
plt.show()
