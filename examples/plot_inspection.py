"""
Inspect an embedding
====================

These plots show what an embedder does with kanji that it has never seen: what it retrieves, how the classes lie, how it
compares with others, how its training went, and what the centers of SoftTriple represent.
"""

# %%
# Two embedders
# -------------
# Early stopping holds out a tenth of the samples, and the history then contains Recall@1 on them.
import matplotlib.pyplot as plt
import numpy as np
from torch import nn

from skdml import RAWEmbedder, SoftTripleEmbedder
from skdml.datasets import load_kanji
from skdml.inspection import (
    CentersDisplay,
    EmbeddingDisplay,
    HistoryDisplay,
    RecallCurveDisplay,
    RetrievalDisplay,
)

kanji = load_kanji()
X_train, y_train = kanji.images[kanji.train], kanji.target[kanji.train]
X_test, y_test = kanji.images[~kanji.train], kanji.target[~kanji.train]

settings = {"max_epochs": 6, "early_stopping": True, "lr_schedule": "one_cycle", "random_state": 0}
soft_triple = SoftTripleEmbedder(**settings).fit(X_train, y_train)
raw = RAWEmbedder(**settings).fit(X_train, y_train)

# %%
# What it retrieves
# -----------------
# Each row is a query and its nearest images. A solid green frame with a tick marks the correct character.
RetrievalDisplay.from_estimator(raw, X_test, y_test, queries=6, random_state=0)

# %%
# Without images, a tile holds the row number or your own text, here the name of the font.
RetrievalDisplay.from_embeddings(
    raw.transform(X_test),
    y_test,
    texts=[kanji.fonts[font].removeprefix("fonts-") for font in kanji.font[~kanji.train]],
    queries=4,
    n_neighbors=5,
    random_state=0,
    name="RAWEmbedder",
)

# %%
# How the classes lie
# -------------------
# Similar images are close together: first the images of one character, then characters that share a component.
EmbeddingDisplay.from_estimator(raw, X_test, y_test, random_state=0)

# %%
# With few classes, colors and markers tell them apart.
few = y_test < np.unique(y_test)[8]
EmbeddingDisplay.from_embeddings(raw.transform(X_test[few]), y_test[few], random_state=0, name="8 characters")

# %%
# Recall@K of several embedders
# -----------------------------
pixels = X_test.reshape(len(X_test), -1)
display = RecallCurveDisplay.from_embeddings(pixels, y_test, name="raw pixels")
for embedder in (soft_triple, raw):
    RecallCurveDisplay.from_estimator(embedder, X_test, y_test, ax=display.ax_)

# %%
# How the training went
# ---------------------
# The losses have different units: compare the shapes of the curves, not their heights.
_, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, measure in zip(axes, ("loss", "validation_recall_at_1"), strict=True):
    for embedder in (soft_triple, raw):
        HistoryDisplay.from_estimator(embedder, measure=measure, ax=ax)

# %%
# What the centers represent
# --------------------------
# Here, a class is made of five characters, and the embedding is linear, so it cannot pull them all to one place: the
# centers divide the characters among themselves. A deep network can, and leaves most of the centers without a sample.
y_mixed = np.unique(y_train, return_inverse=True)[1] // 5
some = y_mixed < 12
linear = SoftTripleEmbedder(backbone=nn.Flatten(), n_centers=5, tau=1.0, max_epochs=30, batch_size=32, random_state=0)
linear.fit(X_train[some], y_mixed[some])
CentersDisplay.from_estimator(linear, X_train[some], y_mixed[some], classes=5, n_samples=4, random_state=0)

plt.show()
