"""The parameters that all embedders share: what they mean, which values they take, and what follows from these."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import nn

from .._constraints import FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_INT, Interval, StrOptions, check_constraints
from .callbacks import check_callbacks, has_lr_scheduler
from .net import OPTIMIZERS

# What learning_rate="auto" stands for over features. WIDTH_MOVE is the best of 0.32, 0.64 and 1.28 on held-out training
# classes of image and text features, in Recall@1 and MAP@R of unseen classes and Recall@1 of new samples together; the
# three differ by 0.01 in the sum. TOTAL_MOVE was found on class splits of tables of 9 to 64 columns.
TOTAL_MOVE = 5  # learning rate times steps
WIDTH_MOVE = 0.32  # learning rate times columns, since all columns move an output together
FINE_TUNING_RATE = 1e-4
LEARNING_RATE = 3e-3


@dataclass(kw_only=True, eq=False, repr=False)
class EmbedderParameters:
    """The parameters of `BaseEmbedder`.

    Parameters
    ----------
    n_components : int, "auto" or None, default="auto"
        D, the dimension of the embedding; >= 1. "auto": 64 for images without a backbone; for vectors and for the
        features of a backbone their own dimension, but at least 64, and 512 principal components in place of more than
        2,048 columns. None: the dimension of the vectors or features; a backbone that is trained then gets no head.
    backbone : torch.nn.Module, str or None, default=None
        Maps a batch (B, ...) to features (B, f), or to maps (B, f, h, w), which are pooled. A linear head to
        ``n_components`` follows; it starts as the identity or at the principal components of the features. A module is
        copied, never changed. A string such as "timm/resnet50" names a network of that library, which is used without
        its classifier. None: for images a small convolutional network (four times convolution, BatchNorm and ReLU, of
        widths 32, 64, 128 and 128, then average pooling); vectors are their own features: the embedding starts at the
        vectors and adds what it learns, see :ref:`start`.
    backbone_weights : str, path or None, default="pretrained"
        Weights of a backbone given by name. "pretrained": those that the library offers for it, which it may download;
        a path: a file with the state dict; another string: a name of torchvision's weights; None: random weights.
    pooling : {"avg", "max", "avg+max"}, default="avg"
        How the maps of the backbone are pooled; "avg" is what a backbone given by name does by itself.
    freeze : {"none", "batchnorm", "backbone"}, default="none"
        What is not trained. "none": everything is trained. "batchnorm": the statistics, scales and shifts of the
        backbone's BatchNorm layers stay fixed, as the papers do for fine-tuning. "backbone": the whole backbone stays
        fixed; it processes the data once, without augmentation, and its features are treated as vectors are. The last
        two need a ``backbone``.
    hidden_layer_sizes : tuple of int, default=(256,)
        Hidden layers of the multilayer perceptron that learns over vectors and over the features of a frozen backbone,
        next to a linear map; () gives a linear embedding. Not used otherwise.
    learned_share : float or "auto", default="auto"
        Share of what was learned that counts after training, next to what was there at the start; in [0, 1]. Over
        vectors and the features of a frozen backbone, the learned part of the embedding is multiplied by it; the
        weights of a backbone that is trained are set between the initial and the trained ones. "auto": 1/2, but 1 for a
        module of your own that is trained, and where the network starts from random weights; ``early_stopping`` chooses
        it. A smaller share helps on unseen classes, a larger one on new samples of the training classes.
    normalize : bool, default=True
        Whether embeddings are scaled to unit length.
    max_epochs : int, default=50
        Upper bound on the number of epochs; >= 1.
    batch_size : int, default=64
        Number of samples per step; >= 1.
    learning_rate : float or "auto", default="auto"
        Peak learning rate of the network; > 0. "auto": over vectors and the features of a frozen backbone, 5 divided by
        the number of steps, so that long and short trainings move the weights equally far, but at most 0.32 divided by
        the number of columns (at least 16), and half of that where the rate is constant; 1e-4 for a pretrained backbone
        given by name; otherwise 3e-3. A lower rate stays nearer to the start, which helps on unseen classes; a higher
        one helps on new samples of the training classes.
    head_learning_rate : float or None, default=None
        Peak learning rate of the head; > 0. None: that of the rest of the network.
    warmup_epochs : int, default=0
        Number of first epochs in which only the head and the loss's own parameters are trained; >= 0, and 0 over
        vectors, where there is nothing else.
    lr_schedule : {"auto", "one_cycle"} or None, default="auto"
        "one_cycle": over the whole training, the learning rates rise to their peak in 15 % of the steps and fall to 0,
        along cosines, and the momentum (first beta) of Adam and its variants falls from 0.95 to 0.85 and rises again.
        None: constant rates. "auto": "one_cycle", but None with early stopping, a warm start or an LRScheduler
        callback.
    weight_decay : float, default=1e-4
        Weight decay of all weights, the loss's own included; >= 0. Decoupled with "adamw".
    optimizer : {"adamw", "adam", "sgd"} or class, default="adamw"
        A class, such as ``torch.optim.RMSprop``, is called with parameter groups and ``weight_decay``.
    resize : int, None or "auto", default="auto"
        Pixels of an image's shorter side after scaling (bilinear, antialiased); >= 1. None: images are not scaled.
        "auto": 256 for files, None for arrays.
    crop_size : int, None or "auto", default="auto"
        Side in pixels of the square that the network gets; >= 1: the center of the image in transform, a random crop
        in training with ``augment="standard"``. None: the whole image. "auto": 7/8 of ``resize`` for files (224 for
        256), None for arrays.
    augment : {"auto", "standard"}, callable or None, default="auto"
        What is done to the images of a training batch, on the device. "standard": a crop of random size and shape,
        scaled to the size that the network gets and mirrored half of the time. A callable, such as an augmentation of
        kornia, maps images (B, C, H, W), in [0, 1] if they come from uint8, resized and cropped as in transform, to
        images; it takes its random numbers from torch's generators. "auto": "standard" for files unless
        ``freeze="backbone"``, None for arrays.
    crop_scale : tuple of float, default=(0.08, 1.0)
        Range of the share of the image's area that a random crop covers, in (0, 1].
    crop_ratio : tuple of float, default=(3 / 4, 4 / 3)
        Range of the width of a random crop divided by its height, > 0.
    image_mean : float, sequence of float or None, default=None
        What is subtracted from the pixels: one number, or one per channel, for uint8 images and files in [0, 1]. None:
        the mean of a backbone given by name, otherwise 127 / 255; float images are taken as they are.
    image_std : float, sequence of float or None, default=None
        What the pixels are then divided by; > 0. None: the value of a backbone given by name, otherwise 128 / 255.
    cache : str, path or None, default=None
        Folder that keeps the decoded images of files, resized, so that each file is decoded once; several fits may
        share it at the same time. It is created if it does not exist. What has been damaged in it, and files that have
        changed, are decoded again. None: files are decoded each time.
    n_jobs : int or None, default=None
        Number of processes that decode files. None or 1: only this one; -1: as many as there are cores. A process that
        must not start others, such as a worker of Dask, decodes by itself.
    on_error : {"raise", "skip"}, default="raise"
        What fit does about files that cannot be used. "skip": it decodes all files before the training, leaves out
        those that fail and warns once. transform never leaves out a row.
    early_stopping : bool, default=False
        Whether to hold out a part of the training data, to stop when Recall@1 in it (MAP@R where that is equal) has not
        risen for ``n_iter_no_change`` epochs, and to go back to the best weights. The weights before the training take
        part, and over vectors and frozen features also a quarter, a half and three quarters of what was learned. A
        warning says where no epoch is better than the start, and on held-out classes where a network that does not
        begin at its input is worse than that input.
    validation_split : {"samples", "classes"}, default="samples"
        What early stopping holds out: samples of all classes, at least two of a class or none; or whole classes, at
        least two, so that the choice is made for classes that were not trained.
    validation_fraction : float, default=0.1
        Share of the samples or of the classes that early stopping holds out; in (0, 1).
    n_iter_no_change : int, default=10
        Epochs without a better result before early stopping ends the training; >= 1.
    callbacks : list of skorch callbacks or None, default=None
        Shallow copies of them are added to the skorch net. They see "train_loss" in its history, and
        "valid_recall_at_1" and "valid_map_at_r" with ``early_stopping``, and get X, y, losses and embeddings as skorch
        passes them.
    device : str or torch.device, default="auto"
        Where to train and transform. "auto": "cuda" where there is one, else "mps", else "cpu".
    precision : {"float32", "bfloat16"}, default="float32"
        "bfloat16": autocast of the network up to the normalization. Similarities and losses stay in float32.
    warm_start : bool, default=False
        Whether fit continues from the weights of the previous fit. The classes must be the same; parameters of the
        network and of the loss keep the values of the first fit.
    random_state : int, RandomState instance or None, default=None
        Seeds the weights, the batches and the held-out samples. None: a different seed in each fit, from NumPy's
        generator. No other global state is changed, and fits in several threads give what they give in turn.
    verbose : int, default=0
        1: a progress bar over the epochs, where the output is a terminal or a notebook. 2: one line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The class labels, sorted. With several labels per sample, those of the columns of y: 0 to n_classes - 1, or the
        names of the columns of a data frame.
    network_ : torch.nn.Module
        Maps a batch to embeddings, normalization included; on the CPU, in eval mode.
    criterion_ : torch.nn.Module
        The loss, with its learned tensors; on the CPU.
    history_ : list of dict
        One per epoch: "epoch", "loss" (mean over the samples, by their weights), "duration" in seconds,
        "validation_recall_at_1" and "validation_map_at_r" with ``early_stopping``, and what callbacks recorded.
    n_iter_ : int
        Number of epochs run.
    n_features_in_ : int
        Numbers per sample; for files, those in what the network gets.
    feature_names_in_ : ndarray of shape (n_features,)
        Only where X has string column names.
    """

    n_components: int | str | None = "auto"
    backbone: nn.Module | str | None = None
    backbone_weights: str | os.PathLike | None = "pretrained"
    pooling: str = "avg"
    freeze: str = "none"
    hidden_layer_sizes: tuple[int, ...] = (256,)
    learned_share: float | str = "auto"
    normalize: bool = True
    max_epochs: int = 50
    batch_size: int = 64
    learning_rate: float | str = "auto"
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
    validation_split: str = "samples"
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10
    callbacks: list | None = None
    device: str | torch.device = "auto"
    precision: str = "float32"
    warm_start: bool = False
    random_state: int | np.random.RandomState | None = None
    verbose: int = 0

    _parameter_constraints = {
        "n_components": [POSITIVE_INT, StrOptions({"auto"}), None],
        "backbone": [nn.Module, str, None],
        "backbone_weights": [str, os.PathLike, None],
        "pooling": [StrOptions({"avg", "max", "avg+max"})],
        "freeze": [StrOptions({"none", "batchnorm", "backbone"})],
        "hidden_layer_sizes": [tuple, list],
        "learned_share": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "normalize": ["boolean"],
        "max_epochs": [POSITIVE_INT],
        "batch_size": [POSITIVE_INT],
        "learning_rate": [POSITIVE, StrOptions({"auto"})],
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
        "validation_split": [StrOptions({"samples", "classes"})],
        "validation_fraction": [FRACTION],
        "n_iter_no_change": [POSITIVE_INT],
        "callbacks": [list, tuple, None],
        "device": [str, torch.device],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

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
                f"The 'n_jobs' parameter of {name} must be None, for this process only, or an integer other than "
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
        if self.freeze == "backbone" and self.warmup_epochs:
            raise ValueError(
                f"freeze='backbone' trains only the head, but warmup_epochs={self.warmup_epochs}. Set warmup_epochs=0."
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

    def _find_learning_rate(self, network, n_samples, lr_schedule):
        """Return the learning rate for the network and the number of samples to train on."""
        if self.learning_rate != "auto":
            return self.learning_rate
        if network.starts_at_input:
            n_steps = self.max_epochs * -(-n_samples // self.batch_size)
            rate = min(TOTAL_MOVE / n_steps, WIDTH_MOVE / max(network.head.n_features, 16))
            return rate if lr_schedule == "one_cycle" else rate / 2  # the mean of a cycle is half its highest
        is_pretrained = isinstance(self.backbone, str) and self.backbone_weights is not None
        return FINE_TUNING_RATE if is_pretrained else LEARNING_RATE

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
