"""FoldEnsembleEmbedder: one embedder per fold of the classes, their embeddings concatenated."""

from numbers import Integral

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, MetaEstimatorMixin, TransformerMixin, clone
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.validation import check_is_fitted

from .._labels import read_labels
from ..metrics import recall_at_k
from ..model_selection import ClassKFold


class FoldEnsembleEmbedder(ClassNamePrefixFeaturesOutMixin, MetaEstimatorMixin, TransformerMixin, BaseEstimator):
    """Embedders trained on the folds of a cross-validation, their embeddings concatenated [1]_.

    Cross-validation over classes trains one model per fold. Concatenated, they form one embedding that has seen all
    training classes, so that no validation data of the folds is lost.

    Parameters
    ----------
    estimator : embedder
        Cloned for each fold: an embedder, or a Pipeline that ends in one.
    cv : int, splitter or None, default=None
        The folds; each model is trained on the training part of a fold. An int: this number of folds of `ClassKFold`,
        which are disjoint in classes. None: four.
    n_jobs : int or None, default=None
        Number of folds that are trained at the same time, each in a process of its own.

    Attributes
    ----------
    estimators_ : list
        The fitted clones, in the order of the folds.
    n_features_in_ : int
        Numbers per sample, if the estimators know it.
    feature_names_in_ : ndarray of shape (n_features,)
        Only where X has string column names.

    See Also
    --------
    skdml.model_selection.ClassKFold : The folds.
    skdml.metrics.MAPAtR : The measure that [1]_ chooses hyperparameters by.

    References
    ----------
    .. [1] K. Musgrave, S. Belongie, S.-N. Lim, "A Metric Learning Reality Check", ECCV 2020, Section 4.

    Examples
    --------
    >>> from skdml import FoldEnsembleEmbedder, NormSoftmaxEmbedder, class_train_test_split
    >>> from skdml.datasets import load_kanji
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_kanji(return_X_y=True))
    >>> embedder = NormSoftmaxEmbedder(n_components=16, max_epochs=1, random_state=0)
    >>> ensemble = FoldEnsembleEmbedder(embedder, cv=2).fit(X, y)
    >>> ensemble.transform(X_unseen).shape
    (1800, 32)
    """

    def __init__(self, estimator, *, cv=None, n_jobs=None):
        self.estimator = estimator
        self.cv = cv
        self.n_jobs = n_jobs

    def fit(self, X, y):
        """Train a clone of the estimator on the training part of each fold.

        Parameters
        ----------
        X : array-like, sparse matrix or sequence of n_samples
            What the estimator takes.
        y : array-like of shape (n_samples,)
            Class labels.

        Returns
        -------
        self : object
            The fitted ensemble.

        Raises
        ------
        ValueError
            If y has fewer classes than there are folds; also what the estimator raises.
        """
        if y is None:
            raise ValueError(
                "FoldEnsembleEmbedder requires y to be passed, but the target y is None. Pass fit(X, y) with one "
                "class label per sample."
            )
        X, y = indexable(X, read_labels(y))
        cv = 4 if self.cv is None else self.cv
        cv = ClassKFold(cv) if isinstance(cv, Integral) else check_cv(cv)
        self.estimators_ = Parallel(n_jobs=self.n_jobs)(
            delayed(_fit)(clone(self.estimator), _safe_indexing(X, rows), _safe_indexing(y, rows))
            for rows, _ in cv.split(X, y)
        )
        self._n_features_out = sum(len(estimator.get_feature_names_out()) for estimator in self.estimators_)
        first = self.estimators_[0]
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(first, name):
                setattr(self, name, getattr(first, name))
            elif hasattr(self, name):  # of an earlier fit
                delattr(self, name)
        return self

    def get_feature_names_out(self, input_features=None):
        """Return the names of the components, the class in small letters and a number.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the features of X, which the estimators check.

        Returns
        -------
        ndarray of str, shape (n_components of all estimators,)
            The names.

        Raises
        ------
        ValueError
            If the names are not those of the features in fit, or not as many.
        """
        check_is_fitted(self)
        self.estimators_[0].get_feature_names_out(input_features)
        return super().get_feature_names_out()

    def transform(self, X):
        """Embed the samples with each of the estimators.

        Parameters
        ----------
        X : array-like, sparse matrix or sequence of n_samples
            Of the same kind as in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_folds * n_components), float32
            The concatenated embeddings, divided by the square root of the number of folds: rows of unit length remain
            so, and a similarity is the mean of those of the estimators.
        """
        check_is_fitted(self)
        parts = [np.asarray(estimator.transform(X)) for estimator in self.estimators_]
        return np.hstack(parts) * np.float32(len(parts) ** -0.5)

    def score(self, X, y):
        """Return Recall@1 of the samples among themselves.

        Parameters
        ----------
        X : array-like, sparse matrix or sequence of n_samples
            Of the same kind as in fit; the classes need not be those of fit.
        y : array-like of shape (n_samples,)
            Class labels.

        Returns
        -------
        float in [0, 1]
            Share of the samples whose nearest other sample is of their class.
        """
        return recall_at_k(np.asarray(self.transform(X)), y, 1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = self.estimator.__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags = inner.input_tags
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _fit(estimator, X, y):
    return estimator.fit(X, y)
