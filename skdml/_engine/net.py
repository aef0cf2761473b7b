"""The training loop: a skorch net whose data are on the device and whose batches are index tensors.

skorch provides callbacks, history and checkpoints. Its DataLoader, its optimizer closure and its reading of the loss
after each batch are not used, because on vectors they cost more than the step itself.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from skorch import NeuralNet
from skorch.callbacks import EpochTimer
from skorch.utils import TeeGenerator

from .._network.random import NO_DRAWS, generator_states, set_generator_states
from .._warnings import warn
from .callbacks import ends_training, validate
from .training import embed

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
VALIDATION_SCORES = ("valid_recall_at_1", "valid_map_at_r")  # in skorch's history


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of the training.

    Parameters
    ----------
    batches : callable
        A batch rule of ``batches.py``.
    max_epochs : int
    learning_rate, head_learning_rate, loss_learning_rate : float
        Peak learning rates of the backbone, the head and the loss.
    weight_decay : float
    optimizer : str or class
    chunk_size : int or None
        Rows that pass the network at a time. A larger batch is embedded twice: without a graph for the gradient with
        respect to the embeddings, then in chunks for the gradient with respect to the weights, so that the activations
        do not limit its size.
    """

    batches: Callable
    max_epochs: int
    learning_rate: float
    head_learning_rate: float
    loss_learning_rate: float
    weight_decay: float
    optimizer: str | type
    chunk_size: int | None


class EmbeddingNet(NeuralNet):
    """A skorch net that steps over index batches and reads the loss once per epoch.

    ``criterion(network(inputs), labels)`` is the loss. What a batch rule returns next to the indices is passed after
    the labels, and weights are passed by name, as ``sample_weight``.

    Parameters
    ----------
    network, criterion : nn.Module
        Trained in place; on the device of the data.
    recipe : Recipe
    callbacks : list
        skorch callbacks, in the order in which they are called.
    valid_set : TrainingSet or None
        Scored after each epoch.
    generator : torch.Generator
        Generator of the batch rule, on the index device.
    augment_generator : torch.Generator
        Generator of the augmentation, on the CPU.
    device : torch.device
    draws : context manager
        Entered for whatever may draw from torch's global generators: `seeded` or, if nothing does, `NO_DRAWS`.

    Attributes
    ----------
    progress_ : float in [0, 1)
        Fraction of the training that is done, updated before each step.
    stopped_by_ : Callback or None
        The callback that ended the training.
    """

    def __init__(
        self,
        network,
        criterion,
        recipe,
        *,
        callbacks,
        generator,
        augment_generator,
        device="cpu",
        valid_set=None,
        draws=NO_DRAWS,
    ):
        self.draws = draws
        super().__init__(
            network,
            criterion=criterion,
            optimizer=OPTIMIZERS.get(recipe.optimizer, recipe.optimizer),
            lr=recipe.learning_rate,
            max_epochs=recipe.max_epochs,
            train_split=None,
            callbacks=callbacks,
            device=str(device),  # safetensors, for checkpoints, takes no torch.device
            verbose=0,
        )
        self.recipe = recipe
        self.valid_set = valid_set
        self.generator = generator
        self.augment_generator = augment_generator
        self.progress_ = 0.0
        self.stopped_by_ = None

    @property
    def _default_callbacks(self):
        return [("epoch_timer", EpochTimer())]

    def initialize_optimizer(self, triggered_directly=None):
        recipe = self.recipe
        backbone, head, criterion = (
            [p for p in module.parameters() if p.requires_grad]
            for module in (self.module_.backbone, self.module_.head, self.criterion_)
        )
        if recipe.head_learning_rate == recipe.learning_rate:
            backbone, head = backbone + head, []
        rates = recipe.learning_rate, recipe.head_learning_rate, recipe.loss_learning_rate
        groups = [
            {"params": parameters, "lr": lr}
            for parameters, lr in zip((backbone, head, criterion), rates, strict=True)
            if parameters
        ]
        can_fuse = isinstance(recipe.optimizer, str) and torch.device(self.device).type in ("cpu", "cuda")
        options = {"fused": True} if can_fuse else {}
        self.optimizer_ = self.optimizer(groups, weight_decay=recipe.weight_decay, **options)
        return self

    def get_split_datasets(self, X, y=None, **fit_params):
        return X, self.valid_set

    def __getstate__(self):
        # A pickled checkpoint holds what is trained, but not the data, nor callbacks, which may hold data as well.
        state = {"recipe": replace(self.recipe, batches=None), "callbacks": None, "callbacks_": [], "stopped_by_": None}
        state |= dict.fromkeys(("valid_set", "generator", "augment_generator"))
        return super().__getstate__() | state

    def get_iterator(self, dataset, training=False):
        return dataset

    def notify(self, method_name, **kwargs):
        with self.draws:
            getattr(self, method_name)(self, **kwargs)
            for _, callback in self.callbacks_:
                try:
                    getattr(callback, method_name)(self, **kwargs)
                except KeyboardInterrupt:
                    self.stopped_by_ = callback
                    raise

    def run_single_epoch(self, iterator, training, prefix, step_fn, **kwargs):
        if iterator is None:
            return
        if not training:
            with self.draws:
                scores = validate(self.module_, iterator)
            for name, score in zip(VALIDATION_SCORES, scores, strict=True):
                self._record(name, score, larger_is_better=True)
            return
        with self.draws:
            batches = self.recipe.batches(self.generator, lambda: embed(self.module_, iterator, self.device))
        batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
        self._set_training(True)
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        total_weight = 0
        with closing(iterator.batches([index for index, *_ in batches], self.augment_generator)) as inputs:
            for i, ((index, *others), X) in enumerate(zip(batches, inputs, strict=True)):
                self.progress_ = (len(self.history) - 1 + i / len(batches)) / self.max_epochs
                batch = X, iterator.labels(index), *others
                weights = iterator.weights(index)
                self.notify("on_batch_begin", batch=batch, training=True)
                with self.draws:
                    loss = step_fn(batch, **({} if weights is None else {"sample_weight": weights}))
                weight = len(index) if weights is None else weights.sum()
                total += loss * weight
                total_weight += weight
                self.notify("on_batch_end", batch=batch, training=True)
        # The only synchronization of the epoch.
        total, total_weight = torch.stack([total, torch.as_tensor(total_weight, device=self.device)]).tolist()
        loss = total / (total_weight or 1)
        if not math.isfinite(loss):
            raise ValueError(self._diverged(f"The mean loss ({loss})"))
        self._record("train_loss", loss, larger_is_better=False)

    def train_step(self, batch, **weights):
        X, *targets = batch
        self.optimizer_.zero_grad()
        if self.recipe.chunk_size is None or len(X) <= self.recipe.chunk_size:
            embeddings = self.module_(X)
            loss = self.criterion_(embeddings, *targets, **weights)
            loss.backward()
        else:
            loss = self.backward_in_chunks(X, targets, **weights)
        self.notify(
            "on_grad_computed",
            named_parameters=TeeGenerator(self.get_all_learnable_params()),
            X=X,
            y=targets[0],
            training=True,
        )
        self.optimizer_.step()
        return loss.detach()

    def backward_in_chunks(self, X, targets, **weights):
        """Gradient caching [1]_: like one backward pass, except that layers that mix rows see only a chunk.

        References
        ----------
        .. [1] L. Gao, Y. Zhang, J. Han and J. Callan, "Scaling Deep Contrastive Learning Batch Size under Memory
           Limited Setup", RepL4NLP 2021, arXiv:2101.06983.
        """
        device = X.device
        chunks = X.split(self.recipe.chunk_size)
        states, embeddings = [], []
        with torch.no_grad():
            for chunk in chunks:
                states.append(generator_states(device))
                embeddings.append(self.module_(chunk))
        embeddings = torch.cat(embeddings).requires_grad_()
        loss = self.criterion_(embeddings, *targets, **weights)
        loss.backward()
        after = generator_states(device)
        for chunk, state, grad in zip(chunks, states, embeddings.grad.split(self.recipe.chunk_size), strict=True):
            set_generator_states(state, device)  # the same dropout as before
            self.module_(chunk).backward(grad)
        set_generator_states(after, device)
        return loss

    def warn_if_interrupted(self):
        """Warn unless the number of epochs or a callback that is meant to do so has ended the training."""
        n_epochs = len(epochs(self.history))
        if n_epochs < self.max_epochs and not ends_training(self.stopped_by_):
            warn(
                f"Training was interrupted in epoch {len(self.history)} of {self.max_epochs}; the estimator keeps the "
                "weights reached so far."
            )

    def check_weights(self):
        """Raise a ValueError unless all weights are finite."""
        parameters = [*self.module_.parameters(), *self.criterion_.parameters()]
        if not all(parameter.isfinite().all() for parameter in parameters):
            raise ValueError(self._diverged("A weight"))

    def _record(self, name, value, *, larger_is_better):
        earlier = [epoch[name] for epoch in self.history[:-1]]
        self.history.record(name, value)
        self.history.record(f"{name}_best", all(value > e if larger_is_better else value < e for e in earlier))

    def _diverged(self, what):
        recipe = self.recipe
        return (
            f"{what} is not finite after epoch {len(self.history)}. Lower learning_rate (now "
            f"{recipe.learning_rate:g}) and, if the loss has parameters of its own, their learning rate (now "
            f"{recipe.loss_learning_rate:g}), or scale X, with StandardScaler for vectors."
        )


def epochs(history):
    """Return skorch's history under skdml's names: a list of dicts, one per finished epoch."""
    names = {
        "train_loss": "loss",
        "dur": "duration",
        "valid_recall_at_1": "validation_recall_at_1",
        "valid_map_at_r": "validation_map_at_r",
    }
    return [
        {names.get(key, key): value for key, value in epoch.items() if key != "batches" and not key.endswith("_best")}
        for epoch in history
        if "train_loss" in epoch  # an interrupted epoch has none
    ]
