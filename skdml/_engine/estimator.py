"""What all embedders do, whatever they learn from: train a network, embed samples, save."""

import inspect
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._ambient import neutral, warn
from .._data.arrays import Rows, check_data, is_dispatched
from .._loss.pairs import PairLoss
from .._loss.proxies import ProxyLoss
from .._network.backbones import load_backbone
from .._network.copies import copied, without_graphs
from .._network.networks import STRENGTH, ResidualHead, build_network
from .._network.random import NO_DRAWS, may_draw, seeded
from .._saving import exports, folder, modules
from .batches import ShuffledBatches
from .callbacks import (
    BestWeights,
    CallbackSupportMixin,
    EpochTasks,
    LearnedShare,
    OneCycle,
    Progress,
    WarmUp,
    copied_callbacks,
    flat_input,
)
from .checkpoint import Checkpoint
from .distributed import (
    check_alike,
    errors_of_all,
    fill_cache,
    n_processes,
    of_first,
    rank,
    take_from_first,
    with_common_batchnorm,
)
from .nested import NestedLoss, check_nested
from .net import EmbeddingNet, Recipe, epochs
from .parameters import LEARNING_RATE, EmbedderParameters
from .rows import check_sampling, samples_classes
from .training import COLLAPSED, embed, spread


@dataclass(kw_only=True, eq=False, repr=False)
class NetworkEmbedder(
    EmbedderParameters, CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Base of all embedders: a network that is trained, embeds samples, and is saved.

    A subclass says what it learns from: it has ``fit``, which calls ``_train``, and ``_read``, which returns the
    checked data as a `Task` or another object with the same attributes.
    """

    # scikit-learn's HTML shows what parameters mean where there is a link to a manual; skdml's has no address.
    _doc_link_module = "skdml"
    _doc_link_template = "#"

    # Rows that pass the network at a time, where a loss needs larger batches than fit.
    chunk_size = None

    # Whether the loss compares the samples of a batch, so that a class of one sample is nobody's positive.
    _pair_based = False

    # The class of the loss, where `_make_loss` is that of this class.
    _loss_class: ClassVar[type[nn.Module] | None] = None

    @property
    def _one_class(self):
        """Why y must hold one class per sample, as the loss says; None: it may hold several labels."""
        return getattr(self._loss_class, "_one_class", None)

    def _make_loss(self, n_classes, network):
        """Return the loss module for labels 0..n_classes-1 and embeddings of network.n_components.

        By default one of ``_loss_class``, with the embedder's values of the parameters that both have.
        """
        if self._loss_class is None:
            raise NotImplementedError(f"{type(self).__name__} must define _loss_class or _make_loss.")
        values = {**self.get_params(deep=False), "n_classes": n_classes, "n_components": network.n_components}
        names = inspect.signature(self._loss_class).parameters
        return self._loss_class(**{name: values[name] for name in names if name in values})

    def _make_batches(self, y):
        """Return the batch rule of ``batches.py`` for labels 0..C-1, or for the indicator of several labels (n, C)."""
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
            frozen_backbone=self.freeze == "backbone",
            n_leading=0 if self.nested_components is None else self.nested_components[-1],
        )

    def _loss_learning_rate(self):
        """Return the learning rate of the loss's own parameters."""
        return LEARNING_RATE if self.learning_rate == "auto" else self.learning_rate

    def _training_loss(self, criterion):
        """Return what training minimizes: the loss, or a module around it that does not outlive the fit."""
        if self.nested_components is None:
            return criterion
        return NestedLoss(criterion, self.nested_components, self.normalize)

    @contextmanager
    def _start(self):
        """Check the parameters, and yield from where ``_train`` goes on: the fitted network, or a ``checkpoint``."""
        with errors_of_all():
            self._check_params()
            goes_on = self.warm_start and hasattr(self, "network_")
            checkpoint = None if self.checkpoint is None else Checkpoint(self, goes_on)
        with checkpoint or nullcontext():
            yield {"goes_on": goes_on, "checkpoint": checkpoint}

    @neutral()
    def _train(self, X, y, sample_weight, *, goes_on, partial=False, more_classes=None, checkpoint=None):
        """Read the data, train, and set the fitted attributes last: an exception leaves the estimator as it was."""
        with errors_of_all():
            device = self._find_device()
        task, seed, backbone = self._read_alike(
            X,
            y,
            sample_weight,
            device,
            goes_on=goes_on,
            partial=partial,
            more_classes=more_classes,
            checkpoint=checkpoint,
        )
        batches = self._make_batches(task.training_labels)
        fill_cache(task.data)
        data = task.data.place(device)
        numbers = seeded(seed, device)
        # Those of the network's passes in training: each process of a group passes other rows.
        own_numbers = numbers if n_processes() == 1 else seeded(seed + 1 + n_processes() + rank(), device)
        if callable(self.augment):
            data.preprocessing = replace(data.preprocessing, augment=own_numbers(self.augment))
        with numbers:
            network, criterion = self._copy_modules(task) if goes_on else self._make_modules(task, backbone)
        if self.nested_components is not None:
            check_nested(self, criterion, network.n_components)
        if samples_classes(criterion):
            check_sampling(self)
        if checkpoint is not None and checkpoint.is_finished:
            return self._restore(task, checkpoint, network, criterion, (X, y, sample_weight), goes_on)
        network = trained = network.to(device)
        take_from_first(network)  # a backbone may have been made at random
        draws = numbers if may_draw(network) else NO_DRAWS
        if self.freeze == "batchnorm":
            network.freeze_batchnorm()
        elif self.freeze == "backbone":
            features = embed(network.without_head(), data, "cpu", draws, together=True)
            data = Rows(features.numpy()).place(device)
            trained = network.without_backbone()
        train_set, valid_set = task.split(data)
        if not goes_on:
            _start_at_features(trained, train_set, seed, draws, of_backbone=self.freeze == "backbone")
        criterion = criterion.to(device)
        take_from_first(trained, criterion)
        trained = with_common_batchnorm(trained)

        lr_schedule = None if partial else self._find_lr_schedule()
        recipe = self._find_recipe(network, batches, len(train_set), lr_schedule, partial)
        epoch_tasks = self._begin_epoch_tasks(
            X,
            y,
            sample_weight,
            recipe.max_epochs,
            lambda history: self._fitted(task, history, *copied((network, criterion)), goes_on=goes_on),
        )
        training_loss = self._training_loss(criterion)
        if checkpoint is not None:
            checkpoint.numbers, checkpoint.own_numbers = numbers, own_numbers
        net = EmbeddingNet(
            trained,
            training_loss,
            recipe,
            callbacks=self._make_callbacks(trained, valid_set, lr_schedule, epoch_tasks, goes_on),
            valid_set=valid_set,
            given=(X, y),
            batch_size=self.batch_size,
            verbose=self.verbose,
            generator=torch.Generator(data.index_device).manual_seed(seed),
            augment_generator=torch.Generator("cpu").manual_seed(seed + 1 + rank()),
            device=device,
            draws=self._find_draws(trained, training_loss, numbers),
            own_draws=own_numbers if n_processes() > 1 and may_draw(trained) else NO_DRAWS,
            checkpoint=checkpoint,
        )
        net.fit(train_set, epochs=recipe.max_epochs - (0 if checkpoint is None else checkpoint.n_epochs))
        net.check_weights()
        if self._pair_based and net.has_collapsed():  # proxies may draw all classes one way at first
            _warn_of_collapse(trained, train_set, seed, draws)
        fitted = self._fitted(task, net.history, network, criterion, goes_on=goes_on)
        if checkpoint is not None and net.interrupt_ is None:
            checkpoint.finish(net.history, fitted["network_"], fitted["criterion_"])
        self._set_fitted(fitted)
        for epoch_task in epoch_tasks:
            epoch_task.end()
        if net.interrupt_ is not None:
            raise net.interrupt_
        return self

    def _read_alike(self, X, y, sample_weight, device, *, goes_on, partial, more_classes, checkpoint):
        """Return the task, the seed and the backbone: alike in all processes, and as in the fit that is resumed."""
        with errors_of_all():
            rng = check_random_state(self.random_state)
            seed = int(rng.randint(2**31 - 1))
            if partial and goes_on:
                seed += len(self.history_)  # other batches in each partial_fit
            backbone, pixel_scale = (None, None) if goes_on else self._find_backbone(seed, device)
            task = self._read(X, y, sample_weight, rng, goes_on, partial, more_classes, pixel_scale)
        check_alike(self, task, n_iter_=self.n_iter_ if goes_on else 0)
        seed, train_rows, valid_rows = of_first((seed, task.train_rows, task.valid_rows))
        task = replace(task, train_rows=train_rows, valid_rows=valid_rows)
        if checkpoint is not None:
            drawn, (seed, task) = seed, checkpoint.open(task, seed)
            if seed != drawn and not goes_on:  # with random_state=None
                backbone, _ = self._find_backbone(seed, device)
        return task, seed, backbone

    def _restore(self, task, checkpoint, network, criterion, given, goes_on):
        """Become what the same fit gave that an earlier process has finished."""
        epoch_tasks = self._begin_epoch_tasks(*given, self.max_epochs, None)
        history = checkpoint.restore_result(network, criterion)
        self._set_fitted(self._fitted(task, history, network, criterion, goes_on=goes_on))
        for epoch_task in epoch_tasks:
            epoch_task.end()
        return self

    def _make_callbacks(self, network, valid_set, lr_schedule, epoch_tasks, goes_on):
        """Return the embedder's callbacks and copies of the user's, in the order in which they are called."""
        callbacks, last_callbacks = copied_callbacks(self.callbacks)
        return [
            *([OneCycle()] if lr_schedule == "one_cycle" else []),
            *([WarmUp(self.warmup_epochs)] if self.warmup_epochs else []),
            *([Progress(self.verbose)] if self.verbose and rank() == 0 else []),
            *callbacks,
            *epoch_tasks,
            *([BestWeights(self.n_iter_no_change, valid_set, self.validation_split)] if valid_set else []),
            *self._find_learned_share(network, valid_set, goes_on),
            *last_callbacks,
        ]

    def _find_draws(self, network, criterion, numbers):
        """Return ``numbers`` if the training may draw from torch's global generators, otherwise an empty context.

        Only one thread at a time can be in a block of ``numbers``.
        """
        own = [type(self), *([self.optimizer] if isinstance(self.optimizer, type) else [])]
        if (
            may_draw(network)
            or may_draw(criterion)
            or self.callbacks
            or self.chunk_size
            or not all(cls.__module__.partition(".")[0] in ("skdml", "torch") for cls in own)
        ):
            return numbers
        for module in criterion.modules():
            if isinstance(module, PairLoss | ProxyLoss):
                module._generator = numbers.generator()
        return NO_DRAWS

    def _find_backbone(self, seed, device):
        """Return the backbone, loaded if it is given by name, and then the scale of its pixels."""
        if not isinstance(self.backbone, str):
            return self.backbone, None
        with seeded(seed, device):
            return load_backbone(self.backbone, self.backbone_weights, self.pooling)

    def _read_data(self, X, goes_on, pixel_scale):
        """Return the checked samples, and the fitted attributes that describe them."""
        seen = self._input if goes_on else None
        data, attributes = check_data(self, X, seen=seen, training=True, pixel_scale=pixel_scale)
        if self.warmup_epochs and self.backbone is None and (seen or attributes["_input"]).kind == "vectors":
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} trains only the head at first, but over vectors there is nothing "
                "else to train. Set warmup_epochs=0."
            )
        return data, attributes

    def _make_modules(self, task, backbone):
        network = self._make_network(backbone, task.data.batch(slice(0, 2)))
        return network, self._make_loss(len(task.classes), network)

    def _copy_modules(self, task):
        """Return copies of the fitted network and loss, which training goes on from."""
        return copied((self.network_, self.criterion_))

    def _find_recipe(self, network, batches, n_samples, lr_schedule, partial):
        learning_rate = self._find_learning_rate(network, n_samples, lr_schedule)
        return Recipe(
            batches=batches,
            max_epochs=1 if partial else self.max_epochs,
            learning_rate=learning_rate,
            head_learning_rate=learning_rate if self.head_learning_rate is None else self.head_learning_rate,
            loss_learning_rate=self._loss_learning_rate(),
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
            chunk_size=self.chunk_size,
        )

    def _find_learned_share(self, network, valid_set, goes_on):
        """Return the callback that keeps a share of what was learned, in a list, or no callback where all is kept."""
        is_auto = self.learned_share == "auto"
        if network.starts_at_input:
            share = network.head.strength.item()  # of a new head, or of the fit before
        elif goes_on:
            return []
        elif self.backbone is None or (isinstance(self.backbone, str) and self.backbone_weights is None):
            if not is_auto and self.learned_share < 1:
                raise ValueError(
                    f"learned_share={self.learned_share} keeps a part of the start, but this network starts from "
                    "random weights. Set learned_share to 'auto' or 1, or pass a pretrained backbone."
                )
            return []
        else:
            share = STRENGTH if isinstance(self.backbone, str) else 1.0
        if not is_auto:
            share, valid_set = self.learned_share, None
        return [LearnedShare(share, valid_set)] if share < 1 or valid_set or network.starts_at_input else []

    def _begin_epoch_tasks(self, X, y, sample_weight, max_epochs, fitted):
        """Begin the task of scikit-learn's callbacks, if there are any, and return it in a list."""
        if not hasattr(self, "_init_callback_context") or rank() > 0:
            return []
        context = self._init_callback_context(max_subtasks=max_epochs)
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        return [EpochTasks(self, context, {"X": X, "y": y, "metadata": metadata}, fitted)]

    def _fitted(self, task, history, network, criterion, *, goes_on):
        """Return the fitted attributes; network and loss, now at rest, are moved and not copied."""
        earlier = self.history_ if goes_on else []
        history = earlier + [{**epoch, "epoch": len(earlier) + epoch["epoch"]} for epoch in epochs(history)]
        for parameter in [*network.parameters(), *criterion.parameters()]:
            parameter.grad = None
        vars(criterion).pop("_generator", None)
        network, criterion = without_graphs((network, criterion))
        made = {"network_": network.cpu().eval(), "criterion_": criterion.cpu().eval()}
        return {
            **task.attributes,
            **made,
            "classes_": task.classes,
            "history_": history,
            "n_iter_": len(history),
            **({} if goes_on else {"_made_with": self.get_params(deep=False)}),
            "_structure": {name: modules.describe(module) for name, module in made.items()},
        }

    def _set_fitted(self, attributes):
        """Set the attributes that `_fitted` returns, all that there are."""
        if "_input" in attributes:  # a fit that starts anew
            vars(self).pop("feature_names_in_", None)
        vars(self).update(attributes)

    @neutral()
    def transform(self, X) -> np.ndarray:
        """Embed the samples.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), array of images, or sequence of paths
            Must be of the same kind as in fit; files and uint8 RGB images are interchangeable.

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
        check_is_fitted(self)
        device = self._find_device()
        data = check_data(self, X, seen=self._input)[0].place(device)
        # A copy: the fitted network stays on the CPU.
        network = self.network_ if device.type == "cpu" else copied(self.network_).to(device)
        Z = embed(network, data, X.device if is_dispatched(X) else "cpu")
        if not Z[0].any() and not Z.any():
            warn(
                "All embeddings are zero: what the network gives for X is shorter than 1e-12. Scale X as it was scaled "
                "for fit."
            )
        return Z if is_dispatched(X) else Z.numpy()

    def save(self, path, *, measures=None, license=None) -> None:
        """Write the fitted embedder to a folder, which `skdml.load` reads.

        The folder holds parameters and fitted attributes (params.json), the weights (network.safetensors,
        criterion.safetensors), their SHA-256 sums (SHA256SUMS) and a model card (README.md), but no code and no paths
        of this machine: ``cache`` becomes None, and of a file in ``backbone_weights`` only the name is kept. What a
        file cannot hold, such as your own modules, callbacks and functions, is named in params.json and must be passed
        to `skdml.load` again.

        Parameters
        ----------
        path : str or path-like
            A folder that is new, empty or that of a saved embedder, whose files are then replaced: all or none,
            wherever the process ends.
        measures : dict of str to float or None, default=None
            Numbers for the model card, such as what a :class:`skdml.metrics.RetrievalScorer` returns.
        license : str or None, default=None
            License for the model card, as the Hub of Hugging Face names it, such as "mit" or "apache-2.0".

        Raises
        ------
        FileExistsError
            If path is a file or a folder with other files.
        TypeError
            If the class of the embedder is not part of skdml, an attribute cannot be stored as data, or it has one
            that a fit does not set.
        ValueError
            If the network or the loss was changed by hand, a weight is NaN or infinite, a parameter is invalid, or a
            module passed as a parameter was replaced after the fit; or for a license that is not such a name.
        """
        folder.save(self, path, measures, license)

    @neutral()
    def to_torch(self) -> nn.Module:
        """Return the network as a torch module without the estimator.

        Returns
        -------
        torch.nn.Module
            A copy of ``network_``, on the CPU and in eval mode. It maps a float32 batch to embeddings
            (B, n_components): vectors as they are; images (B, C, H, W), those of uint8 as ``(x - 127) / 128``.
        """
        check_is_fitted(self)
        return copied(self.network_)

    @neutral()
    def to_onnx(self, path) -> None:
        """Write the network as an ONNX file with a batch of any size; it needs the extra ``skdml[onnx]``.

        The input "X" and the output "embeddings" are those of :meth:`to_torch`. The file computes in float32, with any
        ``precision``.

        Parameters
        ----------
        path : str or path-like
            The file. Weights of more than 2 GB go to a second one next to it.

        Raises
        ------
        ImportError
            If onnx or onnxscript is missing.
        """
        exports.to_onnx(self, path)

    def __sklearn_clone__(self):
        clone = super().__sklearn_clone__()
        if self.checkpoint is not None:
            clone._is_clone = True  # clones share the folder: each has its state in a subfolder
        return clone

    def __getstate__(self):
        return modules.compact_state(self, super().__getstate__())

    def __setstate__(self, state):
        modules.restore_state(self, state)

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Return the names of the components: the class name in lower case, followed by a number.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the features of X; they are only checked, and only if X holds vectors.

        Returns
        -------
        ndarray of str, shape (n_components,)
            The names.

        Raises
        ------
        ValueError
            If the names are not those of the features in fit, or not as many.
        """
        # A column of images or of paths is one feature, of many numbers each.
        is_vectors = not hasattr(self, "_input") or self._input.kind == "vectors"
        return super().get_feature_names_out(input_features if is_vectors else None)

    @property
    def _n_features_out(self):
        return self.network_.n_components

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _start_at_features(network, train_set, seed, draws, *, of_backbone):
    """Let the head begin at the features of the training set, or at their principal components."""
    head = network.head
    if not isinstance(head, ResidualHead) or not head.needs_features:
        return
    # A sample is enough for scale and components; it is small where each row has to pass a backbone. Components need at
    # least as many rows.
    n_rows = 4 * head.n_components
    if head.rescale:
        n_rows = max(min(8192, 2**24 // head.n_features), head.n_components if head.projection is not None else 2)
    sample = train_set.sample(n_rows, seed)
    features = embed(network.without_head(), sample, "cpu", draws, together=True).numpy()
    weights = sample.weights(slice(None))
    ruling = head.start_at(features, None if weights is None else weights.cpu().numpy(), seed)
    if ruling is not None:
        column = f"Feature {ruling[0]} of the backbone" if of_backbone else f"Column {ruling[0]} of X"
        advice = "" if of_backbone else " Scale X, for example with StandardScaler, to choose the scale."
        warn(
            f"{column}, counted from 0, makes up {ruling[1]:.1%} of the squared length of its rows, so that cosines of "
            "the rows would compare little else: the embedder standardizes all columns to mean 0 and variance 1."
            f"{advice}"
        )


def _warn_of_collapse(network, train_set, seed, draws):
    """Warn if embeddings of the training set, a sample of it, are nearly one point, though its rows differ."""
    sample = train_set.sample(512, seed)
    remaining = spread(embed(network, sample, "cpu", draws)).item()
    if remaining < COLLAPSED and (rows := flat_input(sample)).ne(rows[0]).any():
        warn(
            f"The embeddings have collapsed: the mean cosine of two training samples is {1 - remaining:.6f}, so that "
            "little tells the classes apart. Set mining to 'semihard' or None if it is 'hard', lower learning_rate, or "
            "scale X, with StandardScaler for vectors.",
            ConvergenceWarning,
        )
