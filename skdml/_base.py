"""The estimator: parameters, validation, fit, transform, score. What a method adds is its loss and its batches."""

import copy
import inspect
import os
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from . import _saving
from ._backbones import load_backbone
from ._batches import BalancedBatches, ShuffledBatches
from ._callbacks import CallbackSupportMixin, EpochTasks, with_callbacks
from ._constraints import FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_INT, Interval, StrOptions, check_constraints
from ._data import Rows, check_data, is_dispatched
from ._memory import CrossBatchMemory
from ._mining import MINING_CONSTRAINTS, MINING_DOC
from ._networks import build_network
from ._targets import check_classes, check_sample_weight
from ._training import (
    OPTIMIZERS,
    TrainingSet,
    check_callbacks,
    embed,
    epochs,
    has_lr_scheduler,
    hold_out,
    seeded,
    train,
)
from .metrics import recall_at_k

# Stand once here; every class docstring holds the markers in their place. {name} is the default of that parameter.
_SHARED_DOCS = {
    "PROXY_PARAMETERS": """\
    proxy_learning_rate : float, default={proxy_learning_rate}
        Learning rate of the loss's own parameters, at its highest; > 0.
""",
    "PAIR_PARAMETERS": f"""\
{textwrap.indent(MINING_DOC, "    ")}\
    memory_size : int, default=0
        Embeddings of the last batches that each batch is compared with, too (cross-batch memory, Wang et al., CVPR
        2020); at least ``batch_size``, or 0: none. They are freed after the fit.
    memory_start : int, default=100
        Batches before the memory takes part, >= 0: early embeddings are soon out of date.
""",
    "BALANCED_PARAMETERS": """\
    samples_per_class : int, default={samples_per_class}
        K of the P x K batches, >= 2: a batch holds ``batch_size // samples_per_class`` classes and this many samples of
        each. With fewer classes than that, a batch takes more samples of each and keeps its size. A class with fewer
        samples gives those it has, each once.
""",
    "SHARED_PARAMETERS": """\
    n_components : int or None, default=64
        Dimension D of the embedding, >= 1. None: the backbone's own output, without a linear head.
    backbone : torch.nn.Module, str or None, default=None
        Maps a batch (B, ...) to features (B, f) or maps (B, f, h, w), which are pooled; a linear head to
        ``n_components`` follows. A module is copied, never changed. "timm/resnet50" and the like: the network of that
        library without its classifier. None: a multilayer perceptron over vectors, a small convolutional network (four
        times convolution, BatchNorm, ReLU of widths 32, 64, 128, 128, then average pooling) over images.
    backbone_weights : str, path or None, default="pretrained"
        Of a backbone named by a str: "pretrained", those that the library has for it (it may fetch them); a file with
        its state dict; a name of torchvision's weights; None: random.
    pooling : {"avg", "max", "avg+max"}, default="avg"
        Of the backbone's maps; "avg" is what a backbone named by a str does by itself.
    freeze : {"none", "batchnorm", "backbone"}, default="none"
        What is not trained: nothing; statistics, scales and shifts of the backbone's BatchNorm layers, as the papers
        do for fine-tuning; or the whole backbone, which then runs over the data once, without augmentation, and the
        head is trained on its features. For a given ``backbone`` only.
    hidden_layer_sizes : tuple of int, default={hidden_layer_sizes}
        Of the multilayer perceptron; () is a linear embedding. Not used over images or with a backbone.
    normalize : bool, default={normalize}
        Whether embeddings are scaled to unit length.
    max_epochs : int, default=50
        Upper bound on the epochs, >= 1.
    batch_size : int, default={batch_size}
        Samples a step, >= 1.
    learning_rate : float, default=3e-3
        Of the network, at its highest; > 0. For a pretrained backbone about 1e-4.
    head_learning_rate : float or None, default=None
        Of the linear head, at its highest; > 0. None: as the rest of the network.
    warmup_epochs : int, default=0
        First epochs in which only the head and the loss's own parameters are trained, >= 0.
    lr_schedule : {"auto", "one_cycle"} or None, default="auto"
        "one_cycle": over the whole training, the learning rates rise to their highest in 15 % of it and fall to 0, on
        cosines, and the momentum (first beta) of Adam's kin falls from 0.95 to 0.85 and rises again. None: constant.
        "auto": "one_cycle", but None with early stopping, a warm start or an LRScheduler callback.
    weight_decay : float, default=1e-4
        Of all weights, the loss's own included; >= 0. Decoupled under "adamw".
    optimizer : {"adamw", "adam", "sgd"} or class, default="adamw"
        A class, such as ``torch.optim.RMSprop``, is called with parameter groups and ``weight_decay``.
    resize : int, None or "auto", default="auto"
        Pixels of an image's shorter side after scaling (bilinear, antialiased), >= 1. None: as it is. "auto": 256 for
        files, None for arrays.
    crop_size : int, None or "auto", default="auto"
        Pixels of the square that the network gets, >= 1: the middle of the image in transform, a random crop in
        training with ``augment="standard"``. None: the whole image. "auto": 7/8 of ``resize`` for files (224 of 256),
        None for arrays.
    augment : {"auto", "standard"}, callable or None, default="auto"
        What is done to the images of a training batch, on the device. "standard": a crop of random size and shape,
        scaled to the size that the network gets, and mirrored half of the time. A callable, such as an augmentation of
        kornia, maps images (B, C, H, W), in [0, 1] if they come from uint8, resized and cropped as in transform, to
        images; it takes its random numbers from torch's generators. "auto": "standard" for files unless
        ``freeze="backbone"``, None for arrays.
    crop_scale : tuple of float, default=(0.08, 1.0)
        Range of the random crop's share of the area, in (0, 1].
    crop_ratio : tuple of float, default=(3 / 4, 4 / 3)
        Range of the random crop's width over its height, > 0.
    image_mean : float, sequence of float or None, default=None
        What is subtracted from the pixels: one number or one a channel, for uint8 images and files in [0, 1]. None:
        that of a backbone named by a str, else 127 / 255; float images are taken as they are.
    image_std : float, sequence of float or None, default=None
        What the pixels are then divided by, > 0. None: that of a backbone named by a str, else 128 / 255.
    cache : str, path or None, default=None
        Folder that keeps the decoded images of files, resized, so that each file is decoded once; it may serve several
        fits at a time. None: files are decoded each time.
    n_jobs : int or None, default=None
        Processes that decode files. None or 1: this one; -1: as many as there are cores.
    on_error : {"raise", "skip"}, default="raise"
        What fit does about files that cannot be used. "skip": decodes all files before the training, leaves out those
        that fail and warns once. transform never leaves a row out.
    early_stopping : bool, default=False
        Whether to hold out ``validation_fraction`` of the samples, stop when Recall@1 among them has not risen for
        ``n_iter_no_change`` epochs, and go back to the weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of the samples that early stopping holds out, in (0, 1); at least two of a class, or none.
    n_iter_no_change : int, default=10
        Epochs without a better Recall@1 before early stopping ends the training, >= 1.
    callbacks : list of skorch callbacks or None, default=None
        Shallow copies of them are added to the skorch net. They see "train_loss" in its history, and
        "valid_recall_at_1" with ``early_stopping``.
    device : str or torch.device, default="auto"
        Where to train and transform. "auto": "cuda" where there is one, else "mps", else "cpu".
    precision : {"float32", "bfloat16"}, default="float32"
        "bfloat16": autocast of the network up to the normalisation. Similarities and losses stay float32.
    warm_start : bool, default=False
        Whether fit goes on from the weights of the fit before. The classes must be the same; parameters of the network
        and of the loss keep the values of the first fit.
    random_state : int, RandomState instance or None, default=None
        Seeds the weights, the batches and the held-out samples. No global state is changed.
    verbose : int, default=0
        1: a progress bar over the epochs, where the output is a terminal or a notebook. 2: a line an epoch.
""",
    "SHARED_ATTRIBUTES": """\
    classes_ : ndarray of shape (n_classes,)
        The class labels, sorted.
    network_ : torch.nn.Module
        Maps a batch to embeddings, normalisation included; on the CPU, in eval mode.
    criterion_ : torch.nn.Module
        The loss, with its learned tensors; on the CPU.
    history_ : list of dict
        One an epoch: "epoch", "loss" (mean over the samples, by their weights), "duration" in seconds,
        "validation_recall_at_1" with ``early_stopping``, and what callbacks recorded.
    n_iter_ : int
        Epochs run.
    n_features_in_ : int
        Numbers in a sample; of files, in what the network gets.
    feature_names_in_ : ndarray of shape (n_features,)
        Only where X has string column names.
""",
}


def _shown(default):
    return f'"{default}"' if isinstance(default, str) else repr(default)


@dataclass(kw_only=True, eq=False, repr=False)
class BaseEmbedder(CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):
    """Base of the embedders: a network trained so that samples of one class lie close together.

    A subclass is a keyword-only dataclass with the method's hyperparameters as fields, their allowed values in
    ``_parameter_constraints``, and ``_make_loss``. It may give its own ``_make_batches``.
    """

    n_components: int | None = 64
    backbone: nn.Module | str | None = None
    backbone_weights: str | os.PathLike | None = "pretrained"
    pooling: str = "avg"
    freeze: str = "none"
    hidden_layer_sizes: tuple[int, ...] = (256,)
    normalize: bool = True
    max_epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 3e-3
    head_learning_rate: float | None = None
    warmup_epochs: int = 0
    lr_schedule: str | None = "auto"
    weight_decay: float = 1e-4
    optimizer: str | type = "adamw"
    resize: int | str | None = "auto"
    crop_size: int | str | None = "auto"
    augment: str | Callable | None = "auto"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None
    cache: str | os.PathLike | None = None
    n_jobs: int | None = None
    on_error: str = "raise"
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10
    callbacks: list | None = None
    device: str | torch.device = "auto"
    precision: str = "float32"
    warm_start: bool = False
    random_state: int | np.random.RandomState | None = None
    verbose: int = 0

    _parameter_constraints = {
        "n_components": [POSITIVE_INT, None],
        "backbone": [nn.Module, str, None],
        "backbone_weights": [str, os.PathLike, None],
        "pooling": [StrOptions({"avg", "max", "avg+max"})],
        "freeze": [StrOptions({"none", "batchnorm", "backbone"})],
        "hidden_layer_sizes": [tuple, list],
        "normalize": ["boolean"],
        "max_epochs": [POSITIVE_INT],
        "batch_size": [POSITIVE_INT],
        "learning_rate": [POSITIVE],
        "head_learning_rate": [POSITIVE, None],
        "warmup_epochs": [Interval(Integral, 0, None, closed="left")],
        "lr_schedule": [StrOptions({"auto", "one_cycle"}), None],
        "weight_decay": [NON_NEGATIVE],
        "optimizer": [StrOptions(set(OPTIMIZERS)), type],
        "resize": [POSITIVE_INT, StrOptions({"auto"}), None],
        "crop_size": [POSITIVE_INT, StrOptions({"auto"}), None],
        "augment": [StrOptions({"auto", "standard"}), callable, None],
        "crop_scale": [tuple, list],
        "crop_ratio": [tuple, list],
        "image_mean": [Real, "array-like", None],
        "image_std": [Real, "array-like", None],
        "cache": [str, os.PathLike, None],
        "n_jobs": [Integral, None],
        "on_error": [StrOptions({"raise", "skip"})],
        "early_stopping": ["boolean"],
        "validation_fraction": [FRACTION],
        "n_iter_no_change": [POSITIVE_INT],
        "callbacks": [list, tuple, None],
        "device": [str, torch.device],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # scikit-learn's HTML shows what parameters mean where there is a link to a manual; skdml's has no address.
    _doc_link_module = "skdml"
    _doc_link_template = "#"

    # Rows that pass the network at a time, where a loss needs larger batches than fit.
    chunk_size = None

    # Whether the loss compares the samples of a batch, so that a class of one sample is nobody's positive.
    _pair_based = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.__doc__:
            cls.__doc__ = inspect.cleandoc(cls.__doc__)
            for marker, text in _SHARED_DOCS.items():
                if marker in cls.__doc__:
                    text = re.sub(r"\{(\w+)\}", lambda match: _shown(getattr(cls, match[1])), textwrap.dedent(text))
                    cls.__doc__ = cls.__doc__.replace(marker, text.strip())

    @abstractmethod
    def _make_loss(self, n_classes, network):
        """Return the loss module for labels 0..n_classes-1 and embeddings of network.n_components."""

    def _make_batches(self, y):
        """Return the batch rule of ``_batches.py`` for labels 0..C-1."""
        return ShuffledBatches(y, self.batch_size)

    def _make_network(self, backbone, sample):
        """Return the network, with its dimension as ``n_components``, for a sample of two rows."""
        return build_network(
            backbone,
            sample,
            pooling=self.pooling,
            n_components=self.n_components,
            hidden_layer_sizes=self.hidden_layer_sizes,
            normalize=self.normalize,
            precision=self.precision,
        )

    def _loss_learning_rate(self):
        """Return the learning rate of the loss's own parameters."""
        return self.learning_rate

    def _training_loss(self, criterion):
        """Return what training minimises: the loss, or a module around it that does not outlive the fit."""
        return criterion

    @with_callbacks
    def fit(self, X, y, sample_weight=None):
        """Train the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            Vectors, dense or sparse, or a data frame; uint8 images (n, H, W) or (n, H, W, C), which are scaled to
            (x - 127) / 128; float images (n, C, H, W), taken as they are; a 1-D array, list or data frame's column of
            paths of image files, in any format and mode that Pillow reads, which become upright RGB images, on white
            where they are transparent. An array may be a numpy.memmap. Any other float array of three or more axes
            needs a ``backbone``.
        y : array-like of shape (n_samples,)
            Class labels, at least two distinct ones.
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
            that does not fit X, for files that cannot be used, and when the loss is no longer finite.
        RuntimeError
            When a process that decodes files dies.
        """
        self._check_params()
        return self._fit(X, y, sample_weight, goes_on=self.warm_start and hasattr(self, "network_"))

    # scikit-learn's checks ask of every estimator whose fit shows sample_weight that fits on repeated rows and on
    # weighted ones, in another order, agree to 1e-7. float32 and shuffled batches cannot give that: it is not shown.
    fit.__signature__ = inspect.Signature(list(inspect.signature(fit).parameters.values())[:3])
    __metadata_request__fit = {"sample_weight": None}

    @with_callbacks
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train the network for one epoch, going on from where it stands.

        Proxies and centers of new classes are added to those learned so far. The learning rates are constant, the
        optimizer and a memory of earlier batches start anew.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            As in fit.
        y : array-like of shape (n_samples,)
            Class labels, known ones or new ones.
        classes : array-like of shape (n_classes,) or None, default=None
            Classes to come, so that they have proxies from now on; those of y are added.
        sample_weight : array-like of shape (n_samples,), float or None, default=None
            As in fit.

        Returns
        -------
        self : object
            The embedder.

        Raises
        ------
        ValueError
            As fit does; and with ``early_stopping=True``.
        """
        self._check_params()
        if self.early_stopping or self.lr_schedule == "one_cycle":
            raise ValueError(
                "partial_fit trains for one epoch at constant learning rates. Set early_stopping=False and "
                "lr_schedule='auto' or None, or use fit."
            )
        return self._fit(X, y, sample_weight, goes_on=hasattr(self, "network_"), partial=True, more_classes=classes)

    def _fit(self, X, y, sample_weight, *, goes_on, partial=False, more_classes=None):
        device = self._find_device()
        max_epochs = 1 if partial else self.max_epochs
        earlier = self.history_ if goes_on else []
        rng = check_random_state(self.random_state)
        seed = int(rng.randint(2**31 - 1)) + (len(earlier) if partial else 0)  # other batches in each partial_fit
        backbone, pixel_scale = self.backbone, None
        if isinstance(backbone, str) and not goes_on:
            with seeded(seed, device):
                backbone, pixel_scale = load_backbone(backbone, self.backbone_weights, self.pooling)
        data = check_data(self, X, reset=not goes_on, training=True, pixel_scale=pixel_scale)
        classes, labels = check_classes(self, X, y, data.kept, goes_on, partial, more_classes)
        train_rows = valid_rows = None
        if self.early_stopping:
            train_rows, valid_rows = hold_out(labels, self.validation_fraction, rng)
        weights = check_sample_weight(sample_weight, y, data.kept, train_rows)
        # Batch rules number the classes that there are; part of the data need not hold all.
        present = np.unique(labels, return_inverse=True)[1] if partial else labels
        batches = self._make_batches(present if train_rows is None else present[train_rows])
        data.place(device)
        with seeded(seed, device):
            if goes_on:
                network, criterion = copy.deepcopy((self.network_, self.criterion_))
                if len(classes) > len(self.classes_):
                    criterion = self._grow_loss(criterion, classes)
            else:
                network = self._make_network(backbone, data.batch(slice(0, 2)))
                criterion = self._make_loss(len(classes), network)
            network = trained = network.to(device)
            if self.freeze == "batchnorm":
                network.freeze_batchnorm()
            elif self.freeze == "backbone":
                data = Rows(embed(network.without_head(), data, "cpu").numpy()).place(device)
                trained = network.without_backbone()
            criterion = criterion.to(device)

            tasks = []
            if hasattr(self, "_init_callback_context"):
                context = self._init_callback_context(max_subtasks=max_epochs)
                arguments = {"X": X, "y": y, "metadata": {} if weights is None else {"sample_weight": sample_weight}}
                context.call_on_fit_task_begin(estimator=self, **arguments)
                seen = EpochTasks(
                    self,
                    context,
                    arguments,
                    lambda h: _fitted(classes, earlier, epochs(h), *copy.deepcopy((network, criterion))),
                )
                tasks = [seen]
            history = train(
                trained,
                self._training_loss(criterion),
                TrainingSet(data, labels, train_rows, weights),
                batches,
                valid_set=TrainingSet(data, labels, valid_rows) if self.early_stopping else None,
                max_epochs=max_epochs,
                learning_rate=self.learning_rate,
                head_learning_rate=self.learning_rate if self.head_learning_rate is None else self.head_learning_rate,
                warmup_epochs=self.warmup_epochs,
                criterion_learning_rate=self._loss_learning_rate(),
                lr_schedule=None if partial else self._find_lr_schedule(),
                weight_decay=self.weight_decay,
                optimizer=self.optimizer,
                n_iter_no_change=self.n_iter_no_change,
                chunk_size=self.chunk_size,
                callbacks=[*(self.callbacks or []), *tasks],
                generator=torch.Generator(data.index_device).manual_seed(seed),
                augment_generator=torch.Generator().manual_seed(seed + 1),
                verbose=self.verbose,
            )
        for name, value in _fitted(classes, earlier, history, network, criterion).items():
            setattr(self, name, value)
        if tasks:
            context.call_on_fit_task_end(estimator=self, **arguments, reconstruction_attributes={})
        return self

    def _grow_loss(self, criterion, classes):
        """Return a loss of all the classes that has learned what the one of the known classes has."""
        grown = self._make_loss(len(classes), self.network_)
        known = np.searchsorted(classes, self.classes_)
        learned, state = criterion.state_dict(), grown.state_dict()
        for name, value in state.items():
            if value.shape == learned[name].shape:
                state[name] = learned[name]
            else:  # the first axis is that of the classes
                value[known] = learned[name]
        grown.load_state_dict(state)
        return grown

    def transform(self, X):
        """Embed the samples.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            Of the same kind as in fit; files and uint8 RGB images may stand for each other.

        Returns
        -------
        ndarray of shape (n_samples, n_components), float32
            Unit rows with ``normalize=True``. A tensor on the device of X if X is one and ``array_api_dispatch`` is on.

        Raises
        ------
        ValueError
            If X is not of the kind and shape seen in fit, or a file cannot be used.
        RuntimeError
            When a process that decodes files dies.
        """
        check_is_fitted(self)
        device = self._find_device()
        data = check_data(self, X, reset=False).place(device)
        # A copy: the fitted network stays on the CPU.
        network = self.network_ if device.type == "cpu" else copy.deepcopy(self.network_).to(device)
        if is_dispatched(X):
            return embed(network, data, X.device)
        return embed(network, data, "cpu").numpy()

    def score(self, X, y):
        """Return Recall@1 of the samples among themselves.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            Of the same kind as in fit; the classes need not be those of fit.
        y : array-like of shape (n_samples,)
            Class labels.

        Returns
        -------
        float in [0, 1]
            Share of the samples whose nearest other sample is of their class.
        """
        return recall_at_k(self.transform(X), y, 1)

    def save(self, path, *, measures=None):
        """Write the fitted embedder to a folder, which `skdml.load` reads.

        It holds parameters and fitted attributes (params.json), the weights (network.safetensors,
        criterion.safetensors), their SHA-256 sums (SHA256SUMS) and a model card (README.md), but no code. What a
        file cannot hold, such as modules of one's own, callbacks and functions, is named in params.json and is passed
        to `skdml.load` again.

        Parameters
        ----------
        path : str or path-like
            The folder. It is written as a whole or not at all; a saved embedder is replaced, and so is an empty folder.
        measures : dict of str to float or None, default=None
            Numbers for the model card, such as what a :class:`skdml.metrics.RetrievalScorer` returns.

        Raises
        ------
        FileExistsError
            If path is a file or a folder with other files.
        TypeError
            For an embedder of a class of one's own, and for fitted attributes that are no data.
        ValueError
            If parameters of the network or the loss were changed after the fit.
        """
        _saving.save(self, path, measures)

    def to_torch(self):
        """Return the network as a torch module without the estimator.

        Returns
        -------
        torch.nn.Module
            A copy of ``network_``, on the CPU and in eval mode. It maps a float32 batch to embeddings
            (B, n_components): vectors as they are; images (B, C, H, W), those of uint8 as ``(x - 127) / 128``.
        """
        check_is_fitted(self)
        return copy.deepcopy(self.network_)

    def to_onnx(self, path):
        """Write the network as an ONNX file with a batch of any size; it needs the extra ``skdml[onnx]``.

        The input "X" and the output "embeddings" are those of :meth:`to_torch`. The file computes in float32, with any
        ``precision``.

        Parameters
        ----------
        path : str or path-like
            The file. Weights of more than 2 GB go to a second one beside it.

        Raises
        ------
        ImportError
            If onnx or onnxscript is missing.
        """
        _saving.to_onnx(self, path)

    def __getstate__(self):
        return _saving.compact_state(self, super().__getstate__())

    def __setstate__(self, state):
        _saving.restore_state(self, state)

    @property
    def _n_features_out(self):
        return self.network_.n_components

    def _check_params(self):
        check_constraints(self, self.get_params(deep=False))
        name = type(self).__name__
        if any(not isinstance(size, Integral) or size < 1 for size in self.hidden_layer_sizes):
            raise ValueError(
                f"The 'hidden_layer_sizes' parameter of {name} must hold integers >= 1. "
                f"Got {self.hidden_layer_sizes!r} instead."
            )
        if isinstance(self.optimizer, type) and not issubclass(self.optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"The 'optimizer' parameter of {name} must be one of {sorted(OPTIMIZERS)} or a class of "
                f"torch.optim. Got {self.optimizer!r} instead."
            )
        if isinstance(self.backbone, str) and not re.fullmatch("(timm|torchvision)/.+", self.backbone):
            raise ValueError(
                f"The 'backbone' parameter of {name} must be a torch.nn.Module, None, 'timm/<name>' or "
                f"'torchvision/<name>'. Got {self.backbone!r} instead."
            )
        check_callbacks(self.callbacks, self.early_stopping)
        self._check_image_params()
        self._check_freeze()

    def _check_image_params(self):
        name = type(self).__name__
        for parameter, highest in (("crop_scale", 1), ("crop_ratio", np.inf)):
            value = getattr(self, parameter)
            if (
                len(value) != 2
                or not all(isinstance(v, Real) for v in value)
                or not 0 < value[0] <= value[1] <= highest
            ):
                raise ValueError(
                    f"The '{parameter}' parameter of {name} must be two numbers, 0 < lowest <= highest"
                    f"{' <= 1' * (highest == 1)}. Got {value!r} instead."
                )
        for parameter, lowest in (("image_mean", -np.inf), ("image_std", 0)):
            value = getattr(self, parameter)
            if value is not None and not (np.isfinite(value).all() and np.greater(value, lowest).all()):
                raise ValueError(
                    f"The '{parameter}' parameter of {name} must hold finite numbers{' above 0' * (lowest == 0)}. Got "
                    f"{value!r} instead."
                )
        if self.n_jobs == 0:
            raise ValueError(
                f"The 'n_jobs' parameter of {name} must be None, which is no further process, or an integer other than "
                "0. Got 0 instead."
            )

    def _check_freeze(self):
        if self.freeze != "none" and self.backbone is None:
            raise ValueError(
                f"freeze={self.freeze!r} keeps a trained backbone as it is, but backbone=None: the default network "
                "starts from random weights. Pass a backbone or set freeze='none'."
            )
        if self.freeze == "backbone" and self.augment not in ("auto", None):
            raise ValueError(
                f"freeze='backbone' passes each image through the backbone once, so that augment={self.augment!r} has "
                "nothing to vary. Set augment=None or freeze='none'."
            )
        if self.freeze == "backbone" and (self.warmup_epochs or self.n_components is None):
            raise ValueError(
                "freeze='backbone' trains the head alone: warmup_epochs must be 0 and n_components a number."
            )

    def _find_device(self):
        if self.device == "auto":
            return torch.device(
                "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
            )
        try:
            device = torch.device(self.device)
            torch.zeros(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"The 'device' parameter of {type(self).__name__} must be 'auto' or a device that torch can use here, "
                f"such as 'cpu'. Got {self.device!r} instead: {error}"
            ) from error
        return device

    def _find_lr_schedule(self):
        scheduled = has_lr_scheduler(self.callbacks)
        if self.lr_schedule == "auto":
            return None if self.early_stopping or self.warm_start or scheduled else "one_cycle"
        if self.lr_schedule == "one_cycle" and scheduled:
            raise ValueError(
                "lr_schedule='one_cycle' and the LRScheduler among the callbacks would both set the learning rate. Set "
                "lr_schedule=None or take the callback out."
            )
        return self.lr_schedule

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _fitted(classes, earlier, history, network, criterion):
    """Return the attributes of a fitted estimator; network and loss, now at rest, are moved and not copied."""
    history = earlier + [{**epoch, "epoch": len(earlier) + epoch["epoch"]} for epoch in history]
    for parameter in [*network.parameters(), *criterion.parameters()]:
        parameter.grad = None
    return {
        "classes_": classes,
        "network_": network.cpu().eval(),
        "criterion_": criterion.cpu().eval(),
        "history_": history,
        "n_iter_": len(history),
    }


@dataclass(kw_only=True, eq=False, repr=False)
class ProxyEmbedder(BaseEmbedder):
    """Base of the embedders whose loss learns proxies of the classes: a learning rate of their own."""

    proxy_learning_rate: float = 3e-3

    _parameter_constraints = {**BaseEmbedder._parameter_constraints, "proxy_learning_rate": [POSITIVE]}

    def _loss_learning_rate(self):
        return self.proxy_learning_rate


@dataclass(kw_only=True, eq=False, repr=False)
class BalancedEmbedder(BaseEmbedder):
    """Base of the embedders that compare the samples of a batch: P x K batches."""

    samples_per_class: int = 4

    _parameter_constraints = {
        **BaseEmbedder._parameter_constraints,
        "samples_per_class": [Interval(Integral, 2, None, closed="left")],
    }
    _pair_based = True

    def _check_params(self):
        super()._check_params()
        if self.batch_size < 2 * self.samples_per_class:
            raise ValueError(
                f"The 'batch_size' parameter of {type(self).__name__} must be at least 2 * samples_per_class = "
                f"{2 * self.samples_per_class}, two classes a batch. Got {self.batch_size} instead."
            )

    def _make_batches(self, y):
        return BalancedBatches(y, self.batch_size, self.samples_per_class)


@dataclass(kw_only=True, eq=False, repr=False)
class PairMixin:
    """What embedders with a `PairLoss` share: mining and a memory of earlier batches."""

    mining: str | Callable | None = None
    mining_margin: float = 0.1
    memory_size: int = 0
    memory_start: int = 100

    _parameter_constraints = {
        **MINING_CONSTRAINTS,
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
        return CrossBatchMemory(criterion, self.memory_size, self.memory_start) if self.memory_size else criterion


@dataclass(kw_only=True, eq=False, repr=False)
class PairEmbedder(PairMixin, BalancedEmbedder):
    """Base of the embedders with a `PairLoss` over P x K batches."""

    _parameter_constraints = {**BalancedEmbedder._parameter_constraints, **PairMixin._parameter_constraints}
