"""The embedders that learn from classes. What a method adds is its loss, its batches and parameters of its own."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Self

from .._ambient import own_filters
from .._constraints import POSITIVE, Interval, StrOptions
from .._data.targets import check_classes, check_indicator, check_sample_weight, read_target
from .._labels import label_names, number_labels
from .._loss.memory import CrossBatchMemory
from .._loss.pairs import PairLoss
from ..metrics import recall_at_k
from .batches import BalancedBatches, MultilabelBatches
from .callbacks import with_callbacks
from .distributed import errors_of_all
from .estimator import NetworkEmbedder
from .training import Task, hold_out


@dataclass(kw_only=True, eq=False, repr=False)
class BaseEmbedder(NetworkEmbedder):
    """Base of the embedders: a network trained so that samples of one class lie close together.

    A subclass is a keyword-only dataclass with the method's hyperparameters as fields, their allowed values in
    ``_parameter_constraints``, and the class of its loss in ``_loss_class``. It may give its own ``_make_loss`` and
    ``_make_batches``.

    Parameters
    ----------
    validation_split : {"samples", "classes"}, default="samples"
        What early stopping holds out: samples of all classes, at least two of a class or none; or whole classes, at
        least two, so that the choice is made for classes that were not trained.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The class labels, sorted. With several labels per sample, those of the columns of y: 0 to n_classes - 1, or the
        names of the columns of a data frame.
    """

    validation_split: str = "samples"

    _own_fitted = frozenset({"classes_"})
    _parameter_constraints = {
        **NetworkEmbedder._parameter_constraints,
        "validation_split": [StrOptions({"samples", "classes"})],
    }

    @with_callbacks
    def fit(self, X, y, sample_weight=None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            Vectors, dense or sparse, or a data frame; uint8 images (n, H, W) or (n, H, W, C), which are scaled to
            (x - 127) / 128; float images (n, C, H, W), taken as they are; a 1-D array, list or data frame's column of
            paths of image files (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF), which become upright RGB
            images, on white where they are transparent; :func:`skdml.datasets.load_image_folder` gives those of a
            folder. An array may be a numpy.memmap. Any other float array of three or more axes needs a ``backbone``.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class labels of any kind that sorts, at least two distinct ones. With most methods over pairs also which of
            several labels each sample has, 0 and 1, dense or sparse. See :ref:`labels`.
        sample_weight : array-like of shape (n_samples,), float or None, default=None
            Weight of each sample's term in the loss of a batch, >= 0, not all 0; see :ref:`sample_weight`. None: ones.

        Returns
        -------
        self : object
            The fitted embedder.

        Raises
        ------
        ValueError
            For a hyperparameter, X, y or sample_weight out of range (the message says what is needed), for a backbone
            that does not fit X, for files that cannot be used, for a ``checkpoint`` that belongs to another fit, and
            when the loss is no longer finite; among :ref:`several processes <several_processes>`, in all of them, and
            where they differ in X, y or parameters.
        TypeError
            When the labels are of several types, such as 1 and "1", which have no common order, or ``checkpoint``
            cannot hold what a callback or module carries.
        OSError
            When ``checkpoint`` or ``cache`` cannot be written to.
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

    # scikit-learn's checks ask of every estimator whose fit shows sample_weight that fits on repeated rows and on
    # weighted ones, in another order, agree to 1e-7. float32 and shuffled batches cannot give that: it is not shown.
    fit.__signature__ = inspect.Signature(list(inspect.signature(fit).parameters.values())[:3])
    __metadata_request__fit = {"sample_weight": None}

    @with_callbacks
    def partial_fit(self, X, y, classes=None, sample_weight=None) -> Self:
        """Train the network for one more epoch.

        Proxies and centers of new classes are added to those learned so far. The learning rates are constant; the
        optimizer and the memory of earlier batches start anew.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            As in fit.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class labels, known ones or new ones. With several labels per sample, the same columns in each call.
        classes : array-like of shape (n_classes,) or None, default=None
            Classes that will come later, which get proxies now; those of y are added.
        sample_weight : array-like of shape (n_samples,), float or None, default=None
            As in fit.

        Returns
        -------
        self : object
            The embedder.

        Raises
        ------
        ValueError
            In the same cases as fit, and with ``early_stopping=True`` or a ``checkpoint``.
        """
        with errors_of_all():
            self._check_params()
            if self.early_stopping or self.lr_schedule == "one_cycle":
                raise ValueError(
                    "partial_fit trains for one epoch at constant learning rates. Set early_stopping=False and "
                    "lr_schedule='auto' or None, or use fit."
                )
            if self.checkpoint is not None:
                raise ValueError(
                    f"checkpoint={str(self.checkpoint)!r} keeps the state of a fit, but partial_fit has none: each "
                    "call is one epoch. Set checkpoint=None, and save the embedder with its method save after a call."
                )
        return self._train(X, y, sample_weight, goes_on=hasattr(self, "network_"), partial=True, more_classes=classes)

    def _read(self, X, y, sample_weight, rng, goes_on, partial, more_classes, pixel_scale):
        """Return the checked data as a `Task`; the estimator stays as it is."""
        data, attributes = self._read_data(X, goes_on, pixel_scale)
        given, y = y, read_target(self, X, y)
        if y.ndim == 2:
            names = label_names(given, y.shape[1])
            classes, labels = check_indicator(self, y, names, data.kept, goes_on, partial, more_classes)
        else:
            classes, labels = check_classes(self, y, data.kept, goes_on, partial, more_classes)
        train_rows = valid_rows = None
        if self.early_stopping:
            train_rows, valid_rows = hold_out(labels, self.validation_split, self.validation_fraction, rng)
        with own_filters():
            weights = check_sample_weight(sample_weight, y, data.kept, train_rows)
        return Task(data, attributes, classes, labels, weights, train_rows, valid_rows)

    def _copy_modules(self, task):
        """Return copies of the fitted network and loss, which has grown if there are more classes."""
        network, criterion = super()._copy_modules(task)
        if len(task.classes) > len(self.classes_):
            criterion = self._grow_loss(criterion, task.classes)
        return network, criterion

    def _grow_loss(self, criterion, classes):
        """Return a loss of all the classes that has learned what the one of the known classes has."""
        grown = self._make_loss(len(classes), self.network_)
        known = number_labels(classes, self.classes_)[1][1]
        learned, state = criterion.state_dict(), grown.state_dict()
        for name, value in state.items():
            if value.shape == learned[name].shape:
                state[name] = learned[name]
            else:  # the first axis is that of the classes
                value[known] = learned[name]
        grown.load_state_dict(state)
        return grown

    def score(self, X, y) -> float:
        """Return Recall@1 of the samples among themselves.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            Of the same kind as in fit; the classes need not be those of fit.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class labels; or which of several labels each sample has, 0 and 1.

        Returns
        -------
        float in [0, 1]
            Share of the samples whose nearest other sample is of their class, or shares a label with them.
        """
        return float(recall_at_k(self.transform(X), y, 1))


@dataclass(kw_only=True, eq=False, repr=False)
class ProxyEmbedder(BaseEmbedder):
    """Base of the embedders whose loss learns proxies of the classes.

    Parameters
    ----------
    proxy_learning_rate : float, default=3e-3
        Peak learning rate of the loss's own parameters; > 0.
    """

    proxy_learning_rate: float = 3e-3

    _parameter_constraints = {**BaseEmbedder._parameter_constraints, "proxy_learning_rate": [POSITIVE]}

    def _loss_learning_rate(self):
        return self.proxy_learning_rate


@dataclass(kw_only=True, eq=False, repr=False)
class BalancedEmbedder(BaseEmbedder):
    """Base of the embedders that compare the samples of a batch: P x K batches.

    Parameters
    ----------
    samples_per_class : int, default=4
        K of the P x K batches; >= 2. A batch holds this many samples of each of ``batch_size // samples_per_class``
        classes. If there are fewer classes, a batch takes more samples of each and keeps its size. A class with fewer
        samples contributes each of them once. An epoch has about ``n_samples / batch_size`` batches; what these do not
        hold of a class much larger than the others comes in the next epochs.
    """

    samples_per_class: int = 4

    _parameter_constraints = {
        **BaseEmbedder._parameter_constraints,
        "samples_per_class": [Interval(Integral, 2, None, closed="left")],
    }
    _pair_based = True

    def _check_params(self):
        super()._check_params()
        self._check_batch_size()

    def _check_batch_size(self):
        if self.batch_size < 2 * self.samples_per_class:
            raise ValueError(
                f"The 'batch_size' parameter of {type(self).__name__} must be at least 2 * samples_per_class = "
                f"{2 * self.samples_per_class}, two classes per batch. Got {self.batch_size} instead."
            )

    def _make_batches(self, y):
        rule = BalancedBatches if y.ndim == 1 else MultilabelBatches
        return rule(y, self.batch_size, self.samples_per_class)


@dataclass(kw_only=True, eq=False, repr=False)
class PairMixin:
    """What embedders with a `PairLoss` share: mining, which the loss describes, and a memory of earlier batches.

    Parameters
    ----------
    memory_size : int, default=0
        Size of the cross-batch memory (Wang et al., CVPR 2020), which holds the last embeddings; each batch is also
        compared with them. At least ``batch_size``, or 0: no memory. It is freed after the fit.
    memory_start : int, default=100
        Number of batches before the memory takes part; >= 0. Early embeddings are soon out of date.
    """

    mining: str | Callable | None = None
    mining_margin: float = 0.1
    memory_size: int = 0
    memory_start: int = 100

    _parameter_constraints = {
        **PairLoss._parameter_constraints,
        "memory_size": [Interval(Integral, 0, None, closed="left")],
        "memory_start": [Interval(Integral, 0, None, closed="left")],
    }
    _pair_based = True

    def _check_params(self):
        super()._check_params()
        if 0 < self.memory_size < self.batch_size:
            raise ValueError(
                f"The 'memory_size' parameter of {type(self).__name__} must be 0 or at least batch_size = "
                f"{self.batch_size}. Got {self.memory_size} instead."
            )

    def _training_loss(self, criterion):
        loss = super()._training_loss(criterion)
        return CrossBatchMemory(loss, self.memory_size, self.memory_start) if self.memory_size else loss


@dataclass(kw_only=True, eq=False, repr=False)
class PairEmbedder(PairMixin, BalancedEmbedder):
    """Base of the embedders with a `PairLoss` over P x K batches."""

    _parameter_constraints = {**BalancedEmbedder._parameter_constraints, **PairMixin._parameter_constraints}
