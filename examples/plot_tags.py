"""
Learn from tags: samples with several labels
============================================

Many collections have tags in place of classes: a photograph shows a dog *and* grass. Here the tags of a kanji are
some of the parts it is written with, such as water 氵 or hand 扌; a few characters have two of them, most have none.
Two images match if they share a part. An embedding learns this from 150 characters, and then has to find, for
images of 150 *other* characters, images of yet another character with the same part.
"""

# %%
# The tags
# --------
# One string per part, of the characters that have it. The labels are a matrix of booleans, one row per image and
# one column per part: scikit-learn's multilabel format.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from skdml import RAWEmbedder
from skdml.datasets import load_kanji
from skdml.inspection import RetrievalDisplay
from skdml.metrics import map_at_r, recall_at_k

PARTS = {
    "water": "汁漸溶潅鴻済沙測活流洩汰河渡渥池泌渠",
    "hand": "扱揮振撚括提捧拷技探推招捲",
    "speech": "言訳論詐詰謝誉誘",
    "tree": "栖枝某宋杢本栴杷梶渠条",
    "person": "仰伏側仮佃俸靴依候傾便僑",
    "grass": "藤荘蕪芳芥草菊蔑薗蒐苛獲",
    "thread": "縫純系糾徽螺緩綜絵纂",
    "metal": "錬鋼鋳鈎録鉢釧鐙",
    "walk": "過避辻逗縫迎達週進近還迷",
    "woman": "媛妬姥安妨妻如妓嬉妥恕",
    "shell": "賓賀貞買側測貢慣",
    "knife": "劃側別測型割劉刻",
}

kanji = load_kanji()
names = kanji.target_names[kanji.target]
Y = pd.DataFrame({part: np.isin(names, list(characters)) for part, characters in PARTS.items()})
is_train = kanji.train
for side, rows in (("train", is_train), ("test", ~is_train)):
    n_parts = Y[rows].sum(axis=1)
    print(f"{side:6}{rows.sum()} images, {(n_parts > 0).sum()} with a part, {(n_parts > 1).sum()} with two or more")

# %%
# Training
# --------
# Batches are drawn by label, so that each holds several images of several parts. Images without a part are
# negatives of all others. ``classes_`` are the names of the parts. Images of half the size, 16 x 16 pixels, train in a
# quarter of the time.
images = kanji.images.reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4)).astype(np.uint8)
X_train, X_test = images[is_train], images[~is_train]
embedder = RAWEmbedder(max_epochs=6, random_state=0).fit(X_train, Y[is_train])
print("labels:", *embedder.classes_)

# %%
# Finding another character with the same part
# --------------------------------------------
# Images of one character share its parts, too, but in another font that is an easier task. With the characters as
# ``groups``, a match has to be another character: images of the query's own character do not count. The last line
# is what a random order finds.
characters = kanji.target[~is_train]
is_shared = Y[~is_train].groupby(characters).any().sum() > 1  # parts of two or more of the test characters
has_part = Y[~is_train].loc[:, is_shared].any(axis=1).to_numpy()
pixels = X_test.reshape(len(X_test), -1).astype(np.float32)
pca = PCA(n_components=64, random_state=0).fit(X_train.reshape(len(X_train), -1))
embeddings = {
    "raw pixels": pixels,
    "PCA(64)": pca.transform(pixels),
    "RAWEmbedder": embedder.transform(X_test),
    "random": np.random.default_rng(0).normal(size=(len(X_test), 64)),
}
queries_y = Y[~is_train][has_part]
print(f"\n{'unseen characters':20}{'Recall@1':>10}{'Recall@8':>10}{'MAP@R':>8}")
for name, Z in embeddings.items():
    gallery = {"gallery": Z, "gallery_y": Y[~is_train], "gallery_index": np.flatnonzero(has_part)}
    groups = {"groups": characters[has_part], "gallery_groups": characters}
    recall = recall_at_k(Z[has_part], queries_y, [1, 8], **gallery, **groups)
    precision = map_at_r(Z[has_part], queries_y, **gallery, **groups)
    print(f"{name:20}{recall[0]:10.3f}{recall[1]:10.3f}{precision:8.3f}")

# %%
# What is found
# -------------
# For eight images with a part, the nearest images of other characters. A solid green frame with a tick marks those
# with a part of the query, a dashed orange frame with a cross the others.
labels, shown = Y[~is_train].to_numpy(), 255 - kanji.images[~is_train]
queries = np.sort(np.random.default_rng(2).choice(np.flatnonzero(has_part), 8, replace=False))
figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="compressed", facecolor="white")
for ax, name in zip(axes, ("raw pixels", "RAWEmbedder"), strict=True):
    distances = pairwise_distances(embeddings[name][queries], embeddings[name], metric="cosine")
    distances[characters[queries, None] == characters] = np.inf
    neighbors = distances.argsort(axis=1)[:, :8]
    RetrievalDisplay(
        queries=queries,
        neighbors=neighbors,
        is_correct=(labels[queries, None] & labels[neighbors]).any(axis=2),
        query_tiles=list(shown[queries]),
        neighbor_tiles=[list(shown[row]) for row in neighbors],
        name=f"nearest other characters by {name}",
    ).plot(ax=ax)
plt.show()
