"""Scorers: the measures as callables (estimator, X, y), for grid searches and cross-validation."""

from dataclasses import dataclass

import numpy as np

from ._clustering import ami_score, nmi_score, pairwise_f1_score
from ._report import CLUSTERING, RETRIEVAL, k_of, measure
from ._retrieval import check_k, map_at_r, precision_at_1, r_precision, recall_at_k
from ._rows import count_matches, prepare


@dataclass(frozen=True)
class _Scorer:
    def __call__(self, estimator, X, y):
        """Return the measure of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            Estimator to score; its `transform` is called once.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,)
            Class of each sample.

        Returns
        -------
        float
            The measure, in its own range. A RetrievalScorer returns a dict with one value for each of `metrics`.
        """
        if not hasattr(estimator, "transform"):
            raise TypeError(
                f"A retrieval scorer needs an estimator with transform, got {type(estimator).__name__}. "
                "If a pipeline ends in a classifier, score the steps before it: pipeline[:-1]."
            )
        return self._measure(estimator.transform(X), y)


@dataclass(frozen=True)
class _ClusteringScorer(_Scorer):
    random_state: int | np.random.RandomState | None = 0


@dataclass(frozen=True)
class RecallAtK(_Scorer):
    """Scorer: :func:`recall_at_k` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    k : int, default=1
        Number of neighbors, >= 1.

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

    def _measure(self, embeddings, y):
        return recall_at_k(embeddings, y, self.k)


@dataclass(frozen=True)
class PrecisionAt1(_Scorer):
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

    def _measure(self, embeddings, y):
        return precision_at_1(embeddings, y)


@dataclass(frozen=True)
class RPrecision(_Scorer):
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

    def _measure(self, embeddings, y):
        return r_precision(embeddings, y)


@dataclass(frozen=True)
class MAPAtR(_Scorer):
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

    def _measure(self, embeddings, y):
        return map_at_r(embeddings, y)


@dataclass(frozen=True)
class NMI(_ClusteringScorer):
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

    def _measure(self, embeddings, y):
        return nmi_score(embeddings, y, random_state=self.random_state)


@dataclass(frozen=True)
class AMI(_ClusteringScorer):
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

    def _measure(self, embeddings, y):
        return ami_score(embeddings, y, random_state=self.random_state)


@dataclass(frozen=True)
class PairwiseF1(_ClusteringScorer):
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

    def _measure(self, embeddings, y):
        return pairwise_f1_score(embeddings, y, random_state=self.random_state)


@dataclass(frozen=True)
class RetrievalScorer(_Scorer):
    """Scorer of several measures that embeds the data once.

    Parameters
    ----------
    metrics : sequence of str, default=("recall_at_1", "map_at_r")
        Names of the measures: "recall_at_<k>" with k >= 1, "precision_at_1", "r_precision", "map_at_r", "nmi", "ami"
        and "pairwise_f1".
    random_state : int, RandomState instance or None, default=0
        Seeds k-means, which the last three measures use.

    Raises
    ------
    ValueError
        If a name is unknown, or there are no names.
    TypeError
        If `metrics` is a single string, or, when called, if the estimator has no `transform`.

    See Also
    --------
    retrieval_report : The same measures for given embeddings; names the function that defines each.

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

    def _measure(self, embeddings, y):
        queries, gallery = prepare(embeddings, y)
        n_matches = count_matches(queries, gallery)
        return measure(self.metrics, queries, gallery, n_matches, self.random_state)
