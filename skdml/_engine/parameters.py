"""The parameters that all embedders share: what they mean, which values they take, and what follows from these."""

import inspect
import os
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import nn

from .._constraints import FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_INT, Interval, StrOptions, check_constraints
from .._loss.mining import MINING_DOC
from .callbacks import check_callbacks, has_lr_scheduler
from .net import OPTIMIZERS

# What learning_rate="auto" stands for over features. WIDTH_MOVE is the best of 0.32, 0.64 and 1.28 on held-out training
# classes of image and text features, in Recall@1 and MAP@R of unseen classes and Recall@1 of new samples together; the
# three differ by 0.01 in the sum. TOTAL_MOVE was found on class splits of tables of 9 to 64 columns.
TOTAL_MOVE = 5  # learning rate times steps
WIDTH_MOVE = 0.32  # learning rate times columns, since all columns move an output together
FINE_TUNING_RATE = 1e-4
LEARNING_RATE = 3e-3

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
    n_components : int, "auto" or None, default="auto"
        Dimension D of the embedding, >= 1. "auto": 64 over images without a backbone. Over vectors and the features of
        a backbone, their own dimension, but at least 64; more than 2,048 columns become 512 principal components.
        None: the dimension of the vectors or features; a backbone that is trained then gets no head.
    backbone : torch.nn.Module, str or None, default=None
        Maps a batch (B, ...) to features (B, f) or maps (B, f, h, w), which are pooled; a linear head to
        ``n_components`` follows, which begins as the identity or at the principal components of the features. A module
        is copied, never changed. "timm/resnet50" and the like: the network of that library without its classifier.
        None: over images a small convolutional network (four times convolution, BatchNorm, ReLU of widths 32, 64, 128,
        128, then average pooling). Vectors are their own features: the embedding begins at the vectors and adds what it
        learns, see :ref:`start`.
    backbone_weights : str, path or None, default="pretrained"
        Of a backbone named by a str: "pretrained", those that the library has for it (it may fetch them); a file with
        its state dict; a name of torchvision's weights; None: random.
    pooling : {"avg", "max", "avg+max"}, default="avg"
        Of the backbone's maps; "avg" is what a backbone named by a str does by itself.
    freeze : {"none", "batchnorm", "backbone"}, default="none"
        What is not trained: nothing; statistics, scales and shifts of the backbone's BatchNorm layers, as the papers
        do for fine-tuning; or the whole backbone, which then runs over the data once, without augmentation, and its
        features are treated as vectors are. For a given ``backbone`` only.
    hidden_layer_sizes : tuple of int, default={hidden_layer_sizes}
        Of the multilayer perceptron that learns over vectors and over the features of a frozen backbone, next to a
        linear map; () is a linear embedding. Not used otherwise.
    normalize : bool, default={normalize}
        Whether embeddings are scaled to unit length.
    max_epochs : int, default=50
        Upper bound on the epochs, >= 1.
    batch_size : int, default={batch_size}
        Samples a step, >= 1.
    learning_rate : float or "auto", default="auto"
        Of the network, at its highest; > 0. "auto": over vectors and the features of a frozen backbone, 5 over the
        number of steps, so that long and short trainings move the weights equally far, at most 0.32 over the number of
        columns (of 16 or more), and half of that where the rate is constant; 1e-4 for a pretrained backbone given by
        name; else 3e-3. A lower rate stays nearer to the start, which serves unseen classes; a higher one serves new
        samples of the training classes.
    head_learning_rate : float or None, default=None
        Of the head, at its highest; > 0. None: as the rest of the network.
    warmup_epochs : int, default=0
        First epochs in which only the head and the loss's own parameters are trained, >= 0; 0 over vectors, where
        there is nothing else.
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
        Whether to hold out a part of the training data, stop when Recall@1 in it (MAP@R where that is equal) has not
        risen for ``n_iter_no_change`` epochs, and go back to the best weights. Those before the training take part, and
        over vectors and frozen features a quarter, a half, three quarters and all of what was learned. A warning says
        where no epoch is better than the start, and on held-out classes where a network that does not begin at its
        input is worse than that.
    validation_split : {"samples", "classes"}, default="samples"
        What early stopping holds out: samples of all classes, at least two of a class or none, or whole classes, two
        or more, so that the choice is made for classes that were not trained.
    validation_fraction : float, default=0.1
        Share of the samples or of the classes that early stopping holds out, in (0, 1).
    n_iter_no_change : int, default=10
        Epochs without a better result before early stopping ends the training, >= 1.
    callbacks : list of skorch callbacks or None, default=None
        Shallow copies of them are added to the skorch net. They see "train_loss" in its history, and
        "valid_recall_at_1" and "valid_map_at_r" with ``early_stopping``.
    device : str or torch.device, default="auto"
        Where to train and transform. "auto": "cuda" where there is one, else "mps", else "cpu".
    precision : {"float32", "bfloat16"}, default="float32"
        "bfloat16": autocast of the network up to the normalisation. Similarities and losses stay float32.
    warm_start : bool, default=False
        Whether fit goes on from the weights of the fit before. The classes must be the same; parameters of the network
        and of the loss keep the values of the first fit.
    random_state : int, RandomState instance or None, default=None
        Seeds the weights, the batches and the held-out samples. None: other ones in each fit, from NumPy's generator.
        No other global state is changed.
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
        "validation_recall_at_1" and "validation_map_at_r" with ``early_stopping``, and what callbacks recorded.
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
class EmbedderParameters:
    """The parameters of `BaseEmbedder`, and the docstrings of its subclasses."""

    n_components: int | str | None = "auto"
    backbone: nn.Module | str | None = None
    backbone_weights: str | os.PathLike | None = "pretrained"
    pooling: str = "avg"
    freeze: str = "none"
    hidden_layer_sizes: tuple[int, ...] = (256,)
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

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.__doc__:
            cls.__doc__ = inspect.cleandoc(cls.__doc__)
            for marker, text in _SHARED_DOCS.items():
                if marker in cls.__doc__:
                    text = re.sub(r"\{(\w+)\}", lambda match: _shown(getattr(cls, match[1])), textwrap.dedent(text))
                    cls.__doc__ = cls.__doc__.replace(marker, text.strip())

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
