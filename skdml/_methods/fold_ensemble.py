"""FoldEnsembleEmbedder: one embedder per fold of the classes, their embeddings concatenated."""

import inspect
from numbers import Integral, Real
from typing import Self

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, MetaEstimatorMixin, TransformerMixin, clone
from sklearn.model_selection import check_cv
from sklearn.utils import Bunch, _safe_indexing, check_consistent_length, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params, check_is_fitted

from .._constraints import HasMethods, check_constraints
from .._labels import read_targets
from .._saving import ensemble
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

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "transform"])],
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
    }

    def __init__(self, estimator, *, cv=None, n_jobs=None):
        self.estimator = estimator
        self.cv = cv
        self.n_jobs = n_jobs

    def fit(self, X, y, sample_weight=None, **fit_params) -> Self:
        """Train a clone of the estimator on the training part of each fold.

        Parameters
        ----------
        X : array-like, sparse matrix, tensor or sequence of n_samples
            What the estimator takes.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            What the estimator takes: class labels; or several labels per sample, with ``cv=KFold()`` or another
            splitter that takes them.
        sample_weight : array-like of shape (n_samples,), float or None, default=None
            Weight of each sample, which each estimator gets for its fold; see :ref:`sample_weight`.
        **fit_params : object
            Other parameters of the estimator's fit, such as ``step__sample_weight`` of a Pipeline. What has one value
            per sample is split as X is. With metadata routing, an estimator or splitter gets what it requests.

        Returns
        -------
        self : object
            The fitted ensemble.

        Raises
        ------
        ValueError
            If a parameter is invalid, or y has fewer classes than there are folds; also what the estimator raises.
        """
        self._check_params()
        if y is None:
            raise ValueError(
                "FoldEnsembleEmbedder requires y to be passed, but the target y is None. Pass fit(X, y) with one "
                "class label per sample."
            )
        labels = read_targets(y)
        X, y = indexable(X, labels if labels.ndim == 1 else y)  # the names of the labels are those of a data frame
        check_consistent_length(X, y, None if isinstance(sample_weight, Real) else sample_weight)
        if sample_weight is not None:
            fit_params["sample_weight"] = sample_weight
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "fit", **fit_params)
        else:
            routed = Bunch(estimator=Bunch(fit=fit_params))
        of_splitter = routed.get("splitter", Bunch(split={})).split
        self._set_estimators(
            Parallel(n_jobs=self.n_jobs)(
                delayed(_fit)(
                    clone(self.estimator),
                    _safe_indexing(X, rows),
                    _safe_indexing(y, rows),
                    _check_method_params(X, routed.estimator.fit, rows),
                )
                for rows, _ in self._find_splitter().split(X, y, **of_splitter)
            )
        )
        return self

    # As with the embedders, scikit-learn's checks of sample_weight ask for more than float32 can give.
    fit.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        list(inspect.signature(fit).parameters.values())[:3]
    )

    def _check_params(self):
        check_constraints(self, self.get_params(deep=False))

    def _find_splitter(self):
        cv = 4 if self.cv is None else self.cv
        return ClassKFold(cv) if isinstance(cv, Integral) else check_cv(cv)

    def _set_estimators(self, estimators):
        """Set the fitted attributes."""
        fitted = {
            "estimators_": estimators,
            "_n_features_out": sum(len(estimator.get_feature_names_out()) for estimator in estimators),
        }
        for name in ("n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)  # of an earlier fit
            if hasattr(estimators[0], name):
                fitted[name] = getattr(estimators[0], name)
        vars(self).update(fitted)

    def get_metadata_routing(self):
        """Return which metadata the estimator and the splitter request; fit needs none for itself.

        Returns
        -------
        MetadataRouter
            The requests, as scikit-learn's user guide on metadata routing describes them.
        """
        router = MetadataRouter(owner=self).add(
            estimator=self.estimator, method_mapping=MethodMapping().add(caller="fit", callee="fit")
        )
        splitter = self._find_splitter()
        if hasattr(splitter, "get_metadata_routing"):
            router.add(splitter=splitter, method_mapping=MethodMapping().add(caller="fit", callee="split"))
        return router

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
        X : array-like, sparse matrix, tensor or sequence of n_samples
            Of the same kind as in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_folds * n_components), float32
            The concatenated embeddings, divided by the square root of the number of folds: rows of unit length remain
            so, and a similarity is the mean of those of the estimators. A tensor on the device of X if X is one and
            ``array_api_dispatch`` is on.
        """
        check_is_fitted(self)
        parts = [estimator.transform(X) for estimator in self.estimators_]
        if all(isinstance(part, torch.Tensor) for part in parts):
            return torch.cat(parts, dim=1) * len(parts) ** -0.5
        return np.hstack(list(map(np.asarray, parts))) * np.float32(len(parts) ** -0.5)

    def score(self, X, y) -> float:
        """Return Recall@1 of the samples among themselves.

        Parameters
        ----------
        X : array-like, sparse matrix, tensor or sequence of n_samples
            Of the same kind as in fit; the classes need not be those of fit.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class labels; or which of several labels each sample has, 0 and 1.

        Returns
        -------
        float in [0, 1]
            Share of the samples whose nearest other sample is of their class, or shares a label with them.
        """
        return float(recall_at_k(self.transform(X), y, 1))

    def save(self, path, *, measures=None, license=None) -> None:
        """Write the fitted ensemble to a folder, which `skdml.load` reads.

        The folder holds a folder of each fitted embedder, as its own ``save`` writes it, the parameters of the ensemble
        (ensemble.json) and a model card (README.md), but no code. A splitter that is not part of skdml must be passed
        to `skdml.load` again, as must what the folder of an embedder cannot hold.

        Parameters
        ----------
        path : str or path-like
            A folder that is new, empty or that of a saved ensemble, which is then replaced, as a whole or not at all.
        measures : dict of str to float or None, default=None
            Numbers for the model card, such as what a :class:`skdml.metrics.RetrievalScorer` returns.
        license : str or None, default=None
            License for the model card, as the Hub of Hugging Face names it, such as "mit" or "apache-2.0".

        Raises
        ------
        FileExistsError
            If path is a file or a folder with other files.
        TypeError
            If the estimators are not embedders of skdml, such as a Pipeline, or cannot be stored as data.
        ValueError
            If an embedder was changed by hand, or a parameter or the license is invalid.
        """
        check_is_fitted(self)
        ensemble.save(self, path, measures, license)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = self.estimator.__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags = inner.input_tags
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _fit(estimator, X, y, fit_params):
    return estimator.fit(X, y, **fit_params)
