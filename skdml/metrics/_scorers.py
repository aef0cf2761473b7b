"""Scorers: callables (estimator, X, y) of the measures, for grid searches and cross-validation."""

from dataclasses import dataclass

import numpy as np

from ._clustering import ami_score, nmi_score, pairwise_f1_score
from ._report import CLUSTERING, RETRIEVAL, k_of, measure
from ._retrieval import check_k, map_at_r, precision_at_1, r_precision, recall_at_k
from ._rows import count_matches, prepare


@dataclass(frozen=True)
class RecallAtK:
    """Scorer: :func:`recall_at_k` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    k : int, default=1
        Number of neighbours, >= 1.

    Raises
    ------
    ValueError
        If k < 1.
    TypeError
        If k is not an integer, or, when called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skdml.metrics import RecallAtK
    >>> from skdml.model_selection import ClassKFold
    >>> X, y = load_digits(return_X_y=True)
    >>> search = GridSearchCV(PCA(), {"n_components": [2, 16]}, scoring=RecallAtK(k=1), cv=ClassKFold(2))
    >>> search.fit(X, y).best_params_
    {'n_components': 16}
    """

    k: int = 1

    def __post_init__(self):
        if np.ndim(self.k):
            raise TypeError(f"k must be one integer, got {self.k!r}. Use RetrievalScorer for several values.")
        check_k(self.k)

    def __call__(self, estimator, X, y):
        """Return Recall@k of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            Recall@k in [0, 1].
        """
        return recall_at_k(_embed(estimator, X), y, self.k)


@dataclass(frozen=True)
class PrecisionAt1:
    """Scorer: :func:`precision_at_1` of an estimator's embeddings, by cosine.

    Raises
    ------
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import PrecisionAt1
    >>> X, y = load_iris(return_X_y=True)
    >>> round(PrecisionAt1()(PCA(2).fit(X), X, y), 2)
    0.75
    """

    def __call__(self, estimator, X, y):
        """Return the precision at 1 of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            Precision in [0, 1].
        """
        return precision_at_1(_embed(estimator, X), y)


@dataclass(frozen=True)
class RPrecision:
    """Scorer: :func:`r_precision` of an estimator's embeddings, by cosine.

    Raises
    ------
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import RPrecision
    >>> X, y = load_iris(return_X_y=True)
    >>> round(RPrecision()(PCA(2).fit(X), X, y), 2)
    0.7
    """

    def __call__(self, estimator, X, y):
        """Return the R-precision of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            R-precision in [0, 1].
        """
        return r_precision(_embed(estimator, X), y)


@dataclass(frozen=True)
class MAPAtR:
    """Scorer: :func:`map_at_r` of an estimator's embeddings, by cosine.

    Raises
    ------
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import MAPAtR
    >>> X, y = load_iris(return_X_y=True)
    >>> round(MAPAtR()(PCA(2).fit(X), X, y), 2)
    0.59
    """

    def __call__(self, estimator, X, y):
        """Return MAP@R of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            MAP@R in [0, 1].
        """
        return map_at_r(_embed(estimator, X), y)


@dataclass(frozen=True)
class NMI:
    """Scorer: :func:`nmi_score` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    random_state : int, RandomState instance or None, default=0
        Seeds k-means.

    Raises
    ------
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import NMI
    >>> X, y = load_iris(return_X_y=True)
    >>> round(NMI()(PCA(2).fit(X), X, y), 2)
    0.59
    """

    random_state: int | np.random.RandomState | None = 0

    def __call__(self, estimator, X, y):
        """Return the NMI of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            NMI in [0, 1].
        """
        return nmi_score(_embed(estimator, X), y, random_state=self.random_state)


@dataclass(frozen=True)
class AMI:
    """Scorer: :func:`ami_score` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    random_state : int, RandomState instance or None, default=0
        Seeds k-means.

    Raises
    ------
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import AMI
    >>> X, y = load_iris(return_X_y=True)
    >>> round(AMI()(PCA(2).fit(X), X, y), 2)
    0.58
    """

    random_state: int | np.random.RandomState | None = 0

    def __call__(self, estimator, X, y):
        """Return the AMI of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            AMI, at most 1.
        """
        return ami_score(_embed(estimator, X), y, random_state=self.random_state)


@dataclass(frozen=True)
class PairwiseF1:
    """Scorer: :func:`pairwise_f1_score` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    random_state : int, RandomState instance or None, default=0
        Seeds k-means.

    Raises
    ------
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import PairwiseF1
    >>> X, y = load_iris(return_X_y=True)
    >>> round(PairwiseF1()(PCA(2).fit(X), X, y), 2)
    0.7
    """

    random_state: int | np.random.RandomState | None = 0

    def __call__(self, estimator, X, y):
        """Return the pairwise F1 score of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            F1 in [0, 1].
        """
        return pairwise_f1_score(_embed(estimator, X), y, random_state=self.random_state)


@dataclass(frozen=True)
class RetrievalScorer:
    """Scorer of several measures that embeds the data once.

    Parameters
    ----------
    metrics : sequence of str, default=("recall_at_1", "map_at_r")
        Names of the measures: "recall_at_<k>" with k >= 1, "precision_at_1", "r_precision", "map_at_r", "nmi", "ami"
        and "pairwise_f1".
    random_state : int, RandomState instance or None, default=0
        Seeds k-means, of which the last three are measures.

    Raises
    ------
    ValueError
        If a name is unknown or there is none.
    TypeError
        If `metrics` is a single string, or, when called, if the estimator has no `transform`.

    See Also
    --------
    retrieval_report : The same measures of embeddings at hand; says where each is defined.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skdml.metrics import RetrievalScorer
    >>> X, y = load_digits(return_X_y=True)
    >>> scorer = RetrievalScorer(("recall_at_1", "recall_at_10", "map_at_r"))
    >>> search = GridSearchCV(PCA(), {"n_components": [2, 16]}, scoring=scorer, refit="recall_at_1").fit(X, y)
    >>> search.best_params_
    {'n_components': 16}
    """

    metrics: tuple[str, ...] = ("recall_at_1", "map_at_r")
    random_state: int | np.random.RandomState | None = 0

    def __post_init__(self):
        if isinstance(self.metrics, str):
            raise TypeError(f"metrics must be a sequence of names, got one string. Pass ({self.metrics!r},).")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        known = (*RETRIEVAL, *CLUSTERING)
        unknown = [name for name in self.metrics if name not in known and not k_of(name)]
        if unknown or not self.metrics:
            raise ValueError(
                f"metrics must name one or more of 'recall_at_<k>' (such as 'recall_at_1'), "
                f"{', '.join(map(repr, known))}, got {unknown or self.metrics!r}."
            )

    def __call__(self, estimator, X, y):
        """Return the measures of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            What is scored; its `transform` is called once.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        dict of str to float
            One value for each name, in the order of `metrics`.
        """
        queries, gallery = prepare(_embed(estimator, X), y)
        n_matches = count_matches(queries, gallery)
        return measure(self.metrics, queries, gallery, n_matches, self.random_state)


def _embed(estimator, X):
    if not hasattr(estimator, "transform"):
        raise TypeError(
            f"A retrieval scorer needs an estimator with transform, got {type(estimator).__name__}. "
            "Of a pipeline that ends in a classifier, score the steps before it: pipeline[:-1]."
        )
    return estimator.transform(X)
