"""Scorers: the measures as callables (estimator, X, y), for grid searches and cross-validation."""

from dataclasses import dataclass, fields

import numpy as np
from sklearn import get_config
from sklearn.utils.metadata_routing import UNCHANGED, MetadataRequest

from ._clustering import ami_score, nmi_score, pairwise_f1_score
from ._report import CLUSTERING, RETRIEVAL, k_of, measure
from ._retrieval import (
    check_k,
    map_at_r,
    mean_average_precision,
    mean_reciprocal_rank,
    precision_at_1,
    r_precision,
    recall_at_k,
)
from ._rows import check_gallery, count_matches, prepare


@dataclass(frozen=True)
class _ClusteringScorer:
    random_state: int | np.random.RandomState | None = 0

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
            The measure, in its own range.
        """
        return self._measure(_embed(estimator, X), y)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _GalleryScorer:
    gallery: object = None
    gallery_y: object = None
    gallery_groups: object = None

    def __post_init__(self):
        check_gallery(self.gallery, self.gallery_y, gallery_groups=self.gallery_groups)

    def __call__(self, estimator, X, y, *, gallery_index=None, groups=None):
        """Return the measure of `estimator.transform(X)`.

        Parameters
        ----------
        estimator : fitted transformer or Pipeline that ends in one
            Estimator to score; its `transform` is called once for X and once for the gallery, if there is one.
        X : array-like of shape (n_samples, ...)
            Anything that `estimator.transform` takes.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class of each sample, or its labels, 0 and 1.
        gallery_index : array-like of shape (n_samples,), default=None
            For each sample, the row of the gallery that is the sample itself, which is left out; -1 for none.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample, such as its camera: samples of the same class and group count neither as right nor as
            wrong.

        Returns
        -------
        float
            The measure, in its own range. A RetrievalScorer returns a dict with one value for each of `metrics`.
        """
        return self._measure(
            _embed(estimator, X),
            y,
            gallery=None if self.gallery is None else _embed(estimator, self.gallery),
            gallery_y=self.gallery_y,
            gallery_index=gallery_index,
            groups=groups,
            gallery_groups=self.gallery_groups,
        )

    def set_score_request(self, *, gallery_index=UNCHANGED, groups=UNCHANGED):
        """Request `gallery_index` or `groups` from searches and cross-validation (scikit-learn's metadata routing).

        Parameters
        ----------
        gallery_index, groups : bool, str or None
            True: passed to the scorer for the samples of each fold, if given; False: not passed; a string: the name
            under which it is given; None: an error if it is given.

        Returns
        -------
        object
            The scorer itself.

        Raises
        ------
        RuntimeError
            If metadata routing is not enabled.
        """
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "Scorers get gallery_index and groups by metadata routing, which is not enabled. Call "
                "sklearn.set_config(enable_metadata_routing=True) first."
            )
        request = self.get_metadata_routing()
        for param, alias in {"gallery_index": gallery_index, "groups": groups}.items():
            if alias is not UNCHANGED:
                request.score.add_request(param=param, alias=alias)
        object.__setattr__(self, "_request", request)
        return self

    def get_metadata_routing(self):
        """Return what the scorer requests from scikit-learn's metadata routing.

        Returns
        -------
        sklearn.utils.metadata_routing.MetadataRequest
            The requests of `gallery_index` and `groups`.
        """
        if hasattr(self, "_request"):
            return self._request
        request = MetadataRequest(owner=type(self).__name__)
        for param in ("gallery_index", "groups"):
            request.score.add_request(param=param, alias=None)
        return request

    def __eq__(self, other):
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        parts = [f"{name}={value!r}" for name, value in self._others().items()]
        parts += [f"{name}=<{type(value).__name__}>" for name, value in self._held().items() if value is not None]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _held(self):
        return {field.name: getattr(self, field.name) for field in fields(_GalleryScorer)}

    def _others(self):
        return {field.name: getattr(self, field.name) for field in fields(self)[len(self._held()) :]}

    def _key(self):  # two galleries are the same if they are one object: arrays do not compare as values do
        return (*self._others().values(), *map(id, self._held().values()))


def _embed(estimator, X):
    if not hasattr(estimator, "transform"):
        raise TypeError(
            f"A retrieval scorer needs an estimator with transform, got {type(estimator).__name__}. "
            "If a pipeline ends in a classifier, score the steps before it: pipeline[:-1]."
        )
    return estimator.transform(X)


@dataclass(frozen=True, eq=False, repr=False)
class RecallAtK(_GalleryScorer):
    """Scorer: :func:`recall_at_k` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    k : int, default=1
        Number of neighbors, >= 1.
    gallery : array-like of shape (n_gallery, ...), default=None
        Samples among which neighbors are searched for; they are embedded by the estimator that is scored. None: the
        samples that are scored, each without itself.
    gallery_y : array-like of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each sample of the gallery, or its labels.
    gallery_groups : array-like of shape (n_gallery,), default=None
        Group of each sample of the gallery, for scoring with `groups`.

    Raises
    ------
    ValueError
        If k < 1, or `gallery` is given without `gallery_y` or the other way round.
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

    Neighbors may also be searched for in a gallery, which each estimator embeds.

    >>> scorer = RecallAtK(k=1, gallery=X[:1000], gallery_y=y[:1000])
    >>> round(scorer(PCA(16).fit(X[:1000]), X[1000:], y[1000:]), 2)
    0.95
    """

    k: int = 1

    def __post_init__(self):
        super().__post_init__()
        if np.ndim(self.k):
            raise TypeError(f"k must be one integer, got {self.k!r}. Use RetrievalScorer for several values.")
        check_k(self.k)

    def _measure(self, embeddings, y, **search):
        return recall_at_k(embeddings, y, self.k, **search)


@dataclass(frozen=True, eq=False, repr=False)
class PrecisionAt1(_GalleryScorer):
    """Scorer: :func:`precision_at_1` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    gallery : array-like of shape (n_gallery, ...), default=None
        Samples among which neighbors are searched for; they are embedded by the estimator that is scored. None: the
        samples that are scored, each without itself.
    gallery_y : array-like of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each sample of the gallery, or its labels.
    gallery_groups : array-like of shape (n_gallery,), default=None
        Group of each sample of the gallery, for scoring with `groups`.

    Raises
    ------
    ValueError
        If `gallery` is given without `gallery_y` or the other way round.
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

    def _measure(self, embeddings, y, **search):
        return precision_at_1(embeddings, y, **search)


@dataclass(frozen=True, eq=False, repr=False)
class RPrecision(_GalleryScorer):
    """Scorer: :func:`r_precision` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    gallery : array-like of shape (n_gallery, ...), default=None
        Samples among which neighbors are searched for; they are embedded by the estimator that is scored. None: the
        samples that are scored, each without itself.
    gallery_y : array-like of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each sample of the gallery, or its labels.
    gallery_groups : array-like of shape (n_gallery,), default=None
        Group of each sample of the gallery, for scoring with `groups`.

    Raises
    ------
    ValueError
        If `gallery` is given without `gallery_y` or the other way round.
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

    def _measure(self, embeddings, y, **search):
        return r_precision(embeddings, y, **search)


@dataclass(frozen=True, eq=False, repr=False)
class MAPAtR(_GalleryScorer):
    """Scorer: :func:`map_at_r` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    gallery : array-like of shape (n_gallery, ...), default=None
        Samples among which neighbors are searched for; they are embedded by the estimator that is scored. None: the
        samples that are scored, each without itself.
    gallery_y : array-like of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each sample of the gallery, or its labels.
    gallery_groups : array-like of shape (n_gallery,), default=None
        Group of each sample of the gallery, for scoring with `groups`.

    Raises
    ------
    ValueError
        If `gallery` is given without `gallery_y` or the other way round.
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

    def _measure(self, embeddings, y, **search):
        return map_at_r(embeddings, y, **search)


@dataclass(frozen=True, eq=False, repr=False)
class MeanAveragePrecision(_GalleryScorer):
    """Scorer: :func:`mean_average_precision` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    gallery : array-like of shape (n_gallery, ...), default=None
        Samples among which neighbors are searched for; they are embedded by the estimator that is scored. None: the
        samples that are scored, each without itself.
    gallery_y : array-like of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each sample of the gallery, or its labels.
    gallery_groups : array-like of shape (n_gallery,), default=None
        Group of each sample of the gallery, for scoring with `groups`.

    Raises
    ------
    ValueError
        If `gallery` is given without `gallery_y` or the other way round.
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import MeanAveragePrecision
    >>> X, y = load_iris(return_X_y=True)
    >>> round(MeanAveragePrecision()(PCA(2).fit(X), X, y), 2)
    0.74
    """

    def _measure(self, embeddings, y, **search):
        return mean_average_precision(embeddings, y, **search)


@dataclass(frozen=True, eq=False, repr=False)
class MeanReciprocalRank(_GalleryScorer):
    """Scorer: :func:`mean_reciprocal_rank` of an estimator's embeddings, by cosine.

    Parameters
    ----------
    gallery : array-like of shape (n_gallery, ...), default=None
        Samples among which neighbors are searched for; they are embedded by the estimator that is scored. None: the
        samples that are scored, each without itself.
    gallery_y : array-like of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each sample of the gallery, or its labels.
    gallery_groups : array-like of shape (n_gallery,), default=None
        Group of each sample of the gallery, for scoring with `groups`.

    Raises
    ------
    ValueError
        If `gallery` is given without `gallery_y` or the other way round.
    TypeError
        When called, if the estimator has no `transform`.

    See Also
    --------
    RetrievalScorer : Several measures from one embedding pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skdml.metrics import MeanReciprocalRank
    >>> X, y = load_iris(return_X_y=True)
    >>> round(MeanReciprocalRank()(PCA(2).fit(X), X, y), 2)
    0.84
    """

    def _measure(self, embeddings, y, **search):
        return mean_reciprocal_rank(embeddings, y, **search)


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


@dataclass(frozen=True, eq=False, repr=False)
class RetrievalScorer(_GalleryScorer):
    """Scorer of several measures that embeds the data once.

    Parameters
    ----------
    metrics : sequence of str, default=("recall_at_1", "map_at_r")
        Names of the measures: "recall_at_<k>" with k >= 1, "precision_at_1", "r_precision", "map_at_r", "map", "mrr",
        "nmi", "ami" and "pairwise_f1".
    random_state : int, RandomState instance or None, default=0
        Seeds k-means, which the last three measures use.
    gallery : array-like of shape (n_gallery, ...), default=None
        Samples among which neighbors are searched for; they are embedded by the estimator that is scored. None: the
        samples that are scored, each without itself.
    gallery_y : array-like of shape (n_gallery,) or (n_gallery, n_labels), default=None
        Class of each sample of the gallery, or its labels.
    gallery_groups : array-like of shape (n_gallery,), default=None
        Group of each sample of the gallery, for scoring with `groups`.

    Raises
    ------
    ValueError
        If a name is unknown, there are no names, or `gallery` is given without `gallery_y` or the other way round.
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
        super().__post_init__()
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

    def _measure(self, embeddings, y, **search):
        queries, gallery = prepare(embeddings, y, **search)
        n_matches = count_matches(queries, gallery)
        return measure(self.metrics, queries, gallery, n_matches, self.random_state)
