"""
A metric learning reality check
===============================

Musgrave et al. (ECCV 2020) found that many gains of published losses vanish when all losses are tuned in the same way:
hyperparameters are chosen by cross-validation over classes, never on the test classes, and models are compared by
MAP@R. With scikit-learn this takes a few lines, here on the bundled characters.
"""

# %%
# Half of the characters are used for everything that is chosen or trained, and the other half only for the final
# number.

from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.model_selection import RandomizedSearchCV

from skdml import ClassKFold, FoldEnsembleEmbedder, MAPAtR, ProxyAnchorEmbedder, class_train_test_split, map_at_r
from skdml.datasets import load_kanji

X, X_unseen, y, y_unseen = class_train_test_split(*load_kanji(return_X_y=True))

# %%
# In the random search, each fold validates on classes that its model has not seen. ``ClassKFold`` uses contiguous
# blocks of classes, as the paper does. (A real search draws dozens of candidates and trains much longer.)

search = RandomizedSearchCV(
    ProxyAnchorEmbedder(max_epochs=2, random_state=0),
    {"alpha": loguniform(8, 64), "margin": [0.0, 0.1, 0.2]},
    n_iter=3,
    scoring=MAPAtR(),
    cv=ClassKFold(3),
    refit=False,
    random_state=0,
).fit(X, y)
for params, mean, std in zip(
    search.cv_results_["params"],
    search.cv_results_["mean_test_score"],
    search.cv_results_["std_test_score"],
    strict=True,
):
    print(f"MAP@R {mean:.3f} +- {std:.3f}   alpha {params['alpha']:5.1f}, margin {params['margin']}")

# %%
# The best candidate is reported as in the paper: the models of the folds one by one, and as an ensemble that
# concatenates their embeddings. The first row is without training, and the last is one model trained on all training
# classes.

best = clone(search.estimator).set_params(**search.best_params_)
ensemble = FoldEnsembleEmbedder(best, cv=ClassKFold(3)).fit(X, y)
best.fit(X, y)

measure = MAPAtR()
print("MAP@R on unseen characters")
print(f"raw pixels   {map_at_r(X_unseen.reshape(len(X_unseen), -1), y_unseen):.3f}")
for i, model in enumerate(ensemble.estimators_, start=1):
    print(f"fold {i}       {measure(model, X_unseen, y_unseen):.3f}")
print(f"ensemble     {measure(ensemble, X_unseen, y_unseen):.3f}")
print(f"all classes  {measure(best, X_unseen, y_unseen):.3f}")
