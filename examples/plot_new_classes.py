"""
New classes without retraining
==============================

An embedder has learned from 150 kanji. Later, 75 other characters have to be told apart, with three images of each. No
network is trained for this: an ordinary scikit-learn classifier is fitted on their embeddings, in milliseconds.
Characters that have not been shown yet should be rejected, not assigned to the nearest class. For this, a threshold on
the similarity is calibrated.
"""

# %%
# The split
# ---------
# The embedder is trained on the first half of the characters. Every other character of the second half becomes a new
# class; the remaining ones stay unknown. Three images of each new class are shown, and the others are queries.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import FunctionTransformer

from skdml import RAWEmbedder, calibrate_threshold
from skdml.datasets import load_kanji

kanji = load_kanji()
train = kanji.train
embedder = RAWEmbedder(max_epochs=15, random_state=0).fit(kanji.images[train], kanji.target[train])

Z, y = embedder.transform(kanji.images[~train]), kanji.target[~train]
is_new = np.isin(y, np.unique(y)[::2])
rng = np.random.default_rng(0)
shown = np.concatenate([rng.choice(np.flatnonzero(y == c), 3, replace=False) for c in np.unique(y[is_new])])
queries = np.setdiff1d(np.flatnonzero(is_new), shown)
unknown = np.flatnonzero(~is_new)
print(f"{len(np.unique(y[is_new]))} new classes, {len(shown)} images shown, {len(queries)} queries")
print(f"{len(np.unique(y[unknown]))} unknown classes, {len(unknown)} images")

# %%
# Which of the new classes?
# -------------------------
# Any classifier works. Common choices are the nearest image and the nearest class mean; raw pixels show how much the
# embedding improves.
pixels = kanji.images[~train].reshape(len(y), -1) / 255.0
for name, data, classifier in (
    ("raw pixels, nearest image", pixels, KNeighborsClassifier(1)),
    ("embeddings, nearest image", Z, KNeighborsClassifier(1)),
    ("embeddings, nearest mean", Z, NearestCentroid()),
):
    predicted = classifier.fit(data[shown], y[shown]).predict(data[queries])
    print(f"{name:28}accuracy {accuracy_score(y[queries], predicted):.3f}")

# %%
# None of them?
# -------------
# The similarity to the nearest shown image is compared with a threshold. The threshold is calibrated on pairs of the
# shown images, because their classes are new to the embedder, like those of the queries.
#
# The false accept rate applies to one pair. A query is compared with all shown images and is accepted if one of them is
# similar enough, so the rate per pair has to be far lower than the share of unknown characters that may be accepted.
#
# ``calibrate_threshold`` takes any transformer; these samples are already embedded.
embedded = FunctionTransformer()
rates = np.array([1e-2, 3e-3, 1e-3, 3e-4, 1e-4])
thresholds = [calibrate_threshold(embedded, Z[shown], y[shown], strategy="far", far=far) for far in rates]

nearest = (Z @ Z[shown].T).max(1)
predicted = KNeighborsClassifier(1).fit(Z[shown], y[shown]).predict(Z)
print("\nfalse accepts/pair   threshold   right and accepted   unknown accepted")
for far, threshold in zip(rates, thresholds, strict=True):
    accepted = nearest >= threshold
    right = (accepted & (predicted == y))[queries].mean()
    print(f"{far:18g}   {threshold:9.3f}   {right:18.3f}   {accepted[unknown].mean():16.3f}")

# %%
# What a threshold costs
# ----------------------
# A query of a new class is right if it is accepted and assigned to its class. Each threshold is a point on the curve.
steps = np.linspace(nearest.min(), 1, 400)
right = [((nearest >= t) & (predicted == y))[queries].mean() for t in steps]
slipped = [(nearest >= t)[unknown].mean() for t in steps]

figure, (ax, curve) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
bins = np.linspace(nearest.min(), 1, 40)
ax.hist(nearest[queries], bins, density=True, alpha=0.6, color="#0072B2", label="new classes")
ax.hist(nearest[unknown], bins, density=True, alpha=0.6, color="#D55E00", label="unknown classes")
ax.axvline(thresholds[2], color="black", linestyle="--", label=f"threshold at {rates[2]:g} false accepts per pair")
ax.set(xlabel="similarity to the nearest image shown", ylabel="density")
ax.margins(y=0.35)
ax.legend(loc="upper left")
curve.plot(slipped, right, color="#0072B2")
for far, threshold in zip(rates, thresholds, strict=True):
    accepted = nearest >= threshold
    point = accepted[unknown].mean(), (accepted & (predicted == y))[queries].mean()
    curve.plot(*point, "o", color="black")
    curve.annotate(f"{far:g}", point, xytext=(6, -10), textcoords="offset points")
curve.set(xlabel="unknown characters accepted", ylabel="new characters accepted and right", ylim=(0, 1))
curve.set_title("Points: false accepts per pair in the calibration", fontsize=10)
plt.show()
