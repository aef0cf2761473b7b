"""What pairs, triplets and quadruplets need in place of classes: reading, batches, early stopping, judging."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import _safe_indexing
from torch.utils.data import Dataset

from .._ambient import own_filters
from .._data.arrays import Rows, ndim
from .._data.sides import join, number_rows, split
from .._data.targets import check_sample_weight
from .callbacks import with_callbacks
from .distributed import n_processes
from .estimator import NetworkEmbedder
from .training import TrainingSet, embed


@dataclass(frozen=True, kw_only=True)
class JudgmentTask:
    """The validated input of a fit on judgments; in the engine, it stands for a `Task`.

    Parameters
    ----------
    data : Rows
        The samples of all judgments, each once.
    attributes : dict
        The fitted attributes that describe the samples.
    judgments : int64 ndarray of shape (n_judgments, 2..4)
        The rows of the samples of each judgment.
    y : int64 ndarray of shape (n_judgments,) or None
        +1 or -1 for each pair. None: not pairs.
    weights : float32 ndarray of shape (n_judgments,) or None
    train_rows, valid_rows : ndarray of int or None
        Judgments to train on and judgments that are held out. None: all are for training.
    score_names : dict
    scores : callable
        As in a `JudgmentSet`.
    """

    data: Rows
    attributes: dict
    judgments: np.ndarray
    y: np.ndarray | None
    weights: np.ndarray | None
    train_rows: np.ndarray | None
    valid_rows: np.ndarray | None
    score_names: dict
    scores: Callable

    classes = np.empty(0)

    @property
    def labels(self):
        """All judgments, for pairs with y as a third column."""
        return self.judgments if self.y is None else np.column_stack([self.judgments, self.y])

    @property
    def training_labels(self):
        """The judgments to train on, from which batch rules are made."""
        return self.judgments if self.train_rows is None else self.judgments[self.train_rows]

    def split(self, data):
        """Return the judgments to train on over the samples in data, and those held out or None."""
        return self._set(data, self.train_rows), None if self.valid_rows is None else self._set(data, self.valid_rows)

    def _set(self, data, rows):
        y, weights = (values if values is None or rows is None else values[rows] for values in (self.y, self.weights))
        judgments = self.judgments if rows is None else self.judgments[rows]
        return JudgmentSet(data, judgments, y, weights, self.score_names, self.scores)


class JudgmentSet(Dataset):
    """Judgments and their samples, with judgments as what is counted, shuffled and weighted.

    The samples of a batch of judgments are embedded once each.

    Parameters
    ----------
    data : Rows
    judgments, y, sample_weight : ndarrays
        As in a `JudgmentTask`.
    score_names : dict
        As in a `TrainingSet`.
    scores : callable
        Maps embeddings, the places of the judgments' samples among them, and y to what `scores` returns.
    """

    def __init__(self, data, judgments, y, sample_weight, score_names, scores):
        self.data = data
        self.judgments, self.y, self.sample_weight = (
            None if values is None else torch.from_numpy(values).to(data.index_device)
            for values in (judgments, y, sample_weight)
        )
        self.sample_shape = data.sample_shape
        self.score_names = score_names
        self._scores = scores

    def __len__(self):
        return len(self.judgments)

    def batches(self, indices, generator=None):
        """Yield the network's input for the samples of each batch of judgments; with a generator, augmented."""
        return self.data.batches([self._rows(index)[0] for index in indices], generator)

    def labels(self, index):
        """Return the places of the judgments' samples in their batch, (B, 2..4), for pairs followed by y: (B, 3)."""
        places = self._rows(index)[1]
        if self.y is not None:
            places = torch.cat([places, self.y[index, None]], dim=1)
        return places.to(self.data.device)

    def weights(self, index):
        """Return the weights of judgments, or None."""
        return None if self.sample_weight is None else self.sample_weight[index].to(self.data.device)

    def sample(self, n, seed):
        """Return a `TrainingSet` of at most n samples, drawn from those of the judgments with a nonzero weight."""
        judgments = self.judgments if self.sample_weight is None else self.judgments[self.sample_weight > 0]
        return self._samples(judgments.unique()).sample(n, seed)

    def scores(self, network):
        """Return how well a network orders the samples of the judgments: what early stopping compares."""
        rows, places = self._rows(slice(None))
        Z = embed(network, self._samples(rows), "cpu")
        return self._scores(Z, places.cpu(), None if self.y is None else self.y.cpu().numpy())

    def _rows(self, index):
        """Return the samples of judgments, each once, and the places of the judgments' samples among them."""
        return self.judgments[index].unique(return_inverse=True)

    def _samples(self, rows):
        return TrainingSet(self.data, np.zeros(len(self.data), dtype=np.int64), rows.cpu().numpy())


class _FitsOnOtherThanSamples:
    """Hide ``fit_transform``: what ``fit`` takes is not what ``transform`` takes."""

    @property
    def fit_transform(self):
        raise AttributeError(
            f"{type(self).__name__} has no fit_transform: fit takes judgments and transform takes samples. Call fit, "
            "then transform."
        )


@dataclass(kw_only=True, eq=False, repr=False)
class JudgmentsEmbedder(_FitsOnOtherThanSamples, NetworkEmbedder):
    """Base of the embedders that learn from pairs, triplets or quadruplets of samples.

    A subclass has the number of sides in ``_n_sides``, the names of its validation scores in ``_score_names``, and
    ``_decide(Z, judgments)``, which returns a number (n,) per judgment, above 0 where the samples are in order.

    Parameters
    ----------
    preprocessor : array-like, callable or None, default=None
        What makes samples of what ``fit``, ``transform`` and the other methods get. An array of samples (or a data
        frame, a sparse matrix, a list of paths): they get its row numbers; ``transform`` also takes other samples,
        except paths. A callable maps an array or list of what they get, each element once, to as many samples; it may
        be the ``transform`` of a fitted transformer. None: they get the samples themselves.
    batch_size : int, default=64
        Number of judgments per step; >= 1. A sample that several of them share is embedded once.
    early_stopping : bool, default=False
        Whether to hold out some of the judgments, to stop when the share of them that is judged correctly (for pairs,
        with the best threshold; ROC AUC where that is equal) has not risen for ``n_iter_no_change`` epochs, and to go
        back to the best weights. The weights before the training take part, and over vectors and frozen features also a
        quarter, a half and three quarters of what was learned. A warning says where no epoch is better than the start.
    validation_fraction : float, default=0.1
        Share of the judgments that early stopping holds out, of pairs of either sign; in (0, 1). Their samples may also
        be in other judgments.
    callbacks : list of skorch callbacks or None, default=None
        Shallow copies of them are added to the skorch net. They see "train_loss" in its history and, with
        ``early_stopping``, "valid_accuracy" and for pairs "valid_roc_auc", and get X, y, losses and embeddings as
        skorch passes them.
    warm_start : bool, default=False
        Whether fit continues from the weights of the previous fit. Parameters of the network and of the loss keep the
        values of the first fit.

    Attributes
    ----------
    history_ : list of dict
        One per epoch: "epoch", "loss" (mean over the judgments, by their weights), "duration" in seconds,
        "validation_accuracy" and for pairs "validation_roc_auc" with ``early_stopping``, and what callbacks recorded.
    """

    preprocessor: ArrayLike | Callable | None = None

    _parameter_constraints = {
        **NetworkEmbedder._parameter_constraints,
        "preprocessor": ["array-like", "sparse matrix", callable, None],
    }
    _pair_based = True
    _own_fitted: ClassVar[frozenset[str]] = frozenset()
    validation_split = "samples"  # not a parameter: no classes can be held out

    def transform(self, X) -> np.ndarray:
        """Embed single samples.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            Samples of the same kind as in fit, or what the ``preprocessor`` takes; files and uint8 RGB images are
            interchangeable.

        Returns
        -------
        ndarray of shape (n_samples, n_components), float32
            Unit rows with ``normalize=True``. A tensor on the device of X if X is one and ``array_api_dispatch`` is on.

        Raises
        ------
        ValueError
            If X does not have the kind and shape seen in fit, a file cannot be used, or an embedding is not finite.
        RuntimeError
            When a process that decodes files dies.
        """
        return super().transform(self._preprocessed(X))

    def _judge(self, X):
        """Return what `_decide` says of the judgments X, (n_judgments,)."""
        samples, judgments = self._distinct(X)
        Z = self.transform(samples)
        Z = Z.cpu() if isinstance(Z, torch.Tensor) else torch.from_numpy(np.array(Z))
        return self._decide(Z, torch.from_numpy(judgments)).numpy()

    def _preprocessed(self, X):
        """Return the samples that X stands for."""
        if self.preprocessor is None:
            return X
        if callable(self.preprocessor):
            return self.preprocessor(X)
        if ndim(X) != 1:
            return X
        rows = np.asarray(X)
        n_rows = self.preprocessor.shape[0] if hasattr(self.preprocessor, "shape") else len(self.preprocessor)
        if rows.dtype.kind not in "iu" or rows.min(initial=0) < 0 or rows.max(initial=0) >= n_rows:
            found = f"{rows.min()} to {rows.max()}" if rows.dtype.kind in "iu" else f"values of type {rows.dtype}"
            raise ValueError(
                f"With an array as preprocessor, samples are given by its row numbers, integers from 0 to "
                f"{n_rows - 1}; got {found}."
            )
        return _safe_indexing(self.preprocessor, rows)

    def _distinct(self, X):
        """Return the samples of the judgments X, each once, before the preprocessor, and their rows (n, n_sides)."""
        joined = join(split(X, self._n_sides, elements=self.preprocessor is not None))
        first, number = number_rows(joined)
        samples = joined[torch.from_numpy(first)] if isinstance(joined, torch.Tensor) else _safe_indexing(joined, first)
        return samples, np.ascontiguousarray(number.reshape(self._n_sides, -1).T)

    def _read(self, X, y, sample_weight, rng, goes_on, partial, more_classes, pixel_scale):
        """Return the checked data as a `JudgmentTask`; the estimator stays as it is."""
        if n_processes() > 1:
            raise ValueError(
                f"{type(self).__name__} trains in one process, but there is a process group of {n_processes()}. Call "
                "torch.distributed.destroy_process_group() before fit, or fit in a process of its own."
            )
        samples, judgments = self._distinct(X)
        y = self._read_target(y, len(judgments))
        data, attributes = self._read_data(self._preprocessed(samples), goes_on, pixel_scale)
        given, kept = judgments, None
        if data.kept is not None:
            row = np.full(judgments.max() + 1, -1)
            row[data.kept] = np.arange(len(data.kept))
            kept = np.flatnonzero((row[judgments] >= 0).all(axis=1))
            judgments, y = row[judgments[kept]], None if y is None else y[kept]
        elif len(data) != judgments.max() + 1:
            raise ValueError(
                f"The preprocessor made {len(data)} samples of {judgments.max() + 1} elements. It must make one of "
                "each."
            )
        train_rows = valid_rows = None
        if self.early_stopping:
            train_rows, valid_rows = self._hold_out(np.zeros(len(judgments)) if y is None else y, rng)
        with own_filters():
            weights = check_sample_weight(sample_weight, given, kept, train_rows)
        counts = slice(None) if train_rows is None else train_rows
        if weights is not None:
            counts = np.arange(len(judgments))[counts]
            counts = counts[weights[counts] > 0]
        self._check_judgments(judgments[counts], None if y is None else y[counts])
        return JudgmentTask(
            data=data,
            attributes=attributes,
            judgments=judgments,
            y=y,
            weights=weights,
            train_rows=train_rows,
            valid_rows=valid_rows,
            score_names=self._score_names,
            scores=self._scores,
        )

    def _hold_out(self, kind, rng):
        """Split the judgments into (training, validation), both sorted, with a share of every kind in each."""
        is_valid = np.zeros(len(kind), dtype=bool)
        for value in np.unique(kind):
            rows = rng.permutation(np.flatnonzero(kind == value))
            n_held_out = max(1, round(self.validation_fraction * len(rows)))
            if n_held_out >= len(rows):
                raise ValueError(
                    f"early_stopping=True with validation_fraction={self.validation_fraction} holds out {n_held_out} "
                    f"of {len(rows)} judgments of a kind, and none is left. Set early_stopping=False, lower "
                    "validation_fraction or give more judgments."
                )
            is_valid[rows[:n_held_out]] = True
        return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)

    def _check_judgments(self, judgments, y):
        """Raise a ValueError if the judgments (n, n_sides), rows of samples that all differ, cannot be learned."""
        if not len(judgments):
            raise ValueError(f"{type(self).__name__} has no judgments to train on. Give some with a weight above 0.")

    def _fitted(self, task, history, network, criterion, *, goes_on):
        attributes = super()._fitted(task, history, network, criterion, goes_on=goes_on)
        del attributes["classes_"]
        return attributes


@dataclass(kw_only=True, eq=False, repr=False)
class ComparisonsEmbedder(JudgmentsEmbedder):
    """Base of the embedders that learn which of two distances is smaller, from the order of the samples."""

    _score_names = {"valid_accuracy": "accuracy"}

    @with_callbacks
    def fit(self, X, y=None, sample_weight=None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : tuple of sides, or sequence of judgments
            A tuple of as many sides as a judgment has samples; a side holds one sample of each judgment: vectors,
            images, a data frame, a sparse matrix, paths or anything else that embedders take. All else is a sequence of
            judgments: an array of shape (n_judgments, n_sides, ...), a list of tuples of samples, or an array or data
            frame with a column of paths for each side. With a ``preprocessor``, also row numbers or whatever it takes
            in place of samples.
        y : None
            Not used; present for the API of scikit-learn.
        sample_weight : array-like of shape (n_judgments,), float or None, default=None
            Weight of each judgment's term in the loss of a batch, >= 0, not all 0. None: ones.

        Returns
        -------
        self : object
            The fitted embedder.

        Raises
        ------
        ValueError
            For a hyperparameter, X, y or sample_weight out of range, for judgments that cannot be learned (the message
            says what is needed), for a backbone that does not fit the samples, for files that cannot be used, and when
            the loss is no longer finite.
        RuntimeError
            When a process that decodes files dies.
        KeyboardInterrupt
            After Ctrl-C; the embedder is fitted if there was at least one whole epoch, otherwise as before.

        Warns
        -----
        ConvergenceWarning
            When all training samples have nearly the same embedding.
        """
        with self._start() as start:
            return self._train(X, y, sample_weight, **start)

    def decision_function(self, X) -> np.ndarray:
        """Return by how much the distance that must be larger exceeds the other one.

        Parameters
        ----------
        X : tuple of sides, or sequence of judgments
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_judgments,)
            The difference of two Euclidean distances of embeddings: above 0 where they are in the right order.

        Raises
        ------
        ValueError
            If X does not hold judgments of samples of the kind seen in fit, or can be read in two ways.
        """
        return self._judge(X)

    def predict(self, X) -> np.ndarray:
        """Return whether the distances of each judgment are in the right order.

        Parameters
        ----------
        X : tuple of sides, or sequence of judgments
            As in `fit`.

        Returns
        -------
        ndarray of int of shape (n_judgments,)
            1 where they are, otherwise -1.

        Raises
        ------
        ValueError
            If X does not hold judgments of samples of the kind seen in fit, or can be read in two ways.
        """
        return np.where(self.decision_function(X) > 0, 1, -1)

    def score(self, X, y=None, sample_weight=None) -> float:
        """Return the accuracy: the share of the judgments whose distances are in the right order.

        Parameters
        ----------
        X : tuple of sides, or sequence of judgments
            As in `fit`.
        y : None
            Not used; present for the API of scikit-learn.
        sample_weight : array-like of shape (n_judgments,), float or None, default=None
            Weight of each judgment, >= 0, not all 0. None: ones.

        Returns
        -------
        float in [0, 1]
            Share of the judgments.
        """
        is_right = self.decision_function(X) > 0
        return float(np.average(is_right, weights=check_sample_weight(sample_weight, is_right, None, None)))

    def _read_target(self, y, n_judgments):
        """Return y as an array (n_judgments,), or None where there is none."""
        if y is not None:
            raise ValueError(
                f"{type(self).__name__} takes no y: the order of a judgment's samples says all. Got y of type "
                f"{type(y).__name__}. Bring the samples of each judgment in this order and leave y out."
            )

    def _scores(self, Z, judgments, y):
        """Return what early stopping compares, from embeddings (n, D) and the rows of judgments in them."""
        return (float((self._decide(Z, judgments) > 0).double().mean()),)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags
