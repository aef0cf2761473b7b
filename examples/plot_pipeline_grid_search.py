"""
An embedder in a Pipeline and a grid search
===========================================

Embedders are scikit-learn transformers and work in a Pipeline and a grid search like any other. The data here are
vectors, 64 principal components of images of kanji: 150 characters in 12 fonts each.
"""

# %%
# A classifier on top
# -------------------
# The embedding is learned inside each fold, so nothing from the test part leaks into it.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdml import RAWEmbedder, SoftTripleEmbedder
from skdml.datasets import load_kanji
from skdml.metrics import RecallAtK, RetrievalScorer
from skdml.model_selection import ClassKFold

kanji = load_kanji()
X = kanji.data[kanji.train].reshape(kanji.train.sum(), -1) / 255
y = kanji.target[kanji.train]

vectors = make_pipeline(PCA(64, random_state=0), StandardScaler())
classifiers = {
    "neighbors among the components": make_pipeline(vectors, KNeighborsClassifier(3)),
    "neighbors in the embedding": make_pipeline(
        vectors, RAWEmbedder(max_epochs=10, random_state=0), KNeighborsClassifier(3)
    ),
}
for name, classifier in classifiers.items():
    print(f"{name}: accuracy {cross_val_score(classifier, X, y, cv=5).mean():.3f}")

# %%
# How many centers?
# -----------------
# An embedding is meant for classes that it has not seen. ``ClassKFold`` holds out whole classes, and ``RecallAtK``
# scores the embedder on them: can it tell apart characters that were not in the training data?
search = GridSearchCV(
    make_pipeline(vectors, SoftTripleEmbedder(max_epochs=10, random_state=0)),
    {"softtripleembedder__n_centers": [1, 2, 5, 10]},
    scoring=RecallAtK(1),
    cv=ClassKFold(5),
).fit(X, y)
untrained = cross_val_score(vectors, X, y, scoring=RecallAtK(1), cv=ClassKFold(5))
print(f"components, untrained: Recall@1 {untrained.mean():.3f}")
print(search.best_params_, f"Recall@1 {search.best_score_:.3f}")

# %%
# Each line is a fold. Twelve fonts per character do not require many centers.
n_centers = search.cv_results_["param_softtripleembedder__n_centers"].astype(int)
folds = np.array([search.cv_results_[f"split{i}_test_score"] for i in range(5)])

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(n_centers, folds.T, color="0.75")
ax.plot(n_centers, folds.mean(axis=0), "o-", color="#0072B2", label="mean of the folds (gray)")
ax.set(
    xscale="log", xlabel="n_centers", ylabel="Recall@1 on unseen characters", xticks=n_centers, xticklabels=n_centers
)
ax.minorticks_off()
ax.legend(frameon=False)

# %%
# Several measures in one pass
# ----------------------------
# ``RetrievalScorer`` embeds the samples once per fold and returns all measures.
measures = ("recall_at_1", "recall_at_4", "map_at_r")
result = cross_validate(search.best_estimator_, X, y, scoring=RetrievalScorer(measures), cv=ClassKFold(5))
for measure in measures:
    values = result[f"test_{measure}"]
    print(f"{measure:12} {values.mean():.3f} +- {values.std():.3f}")

plt.show()
