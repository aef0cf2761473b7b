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
from skorch.callbacks import EarlyStopping, EpochTimer
from skorch.utils import TeeGenerator

from .._network.random import NO_DRAWS, generator_states, set_generator_states
from .callbacks import EndOfTraining, validate
from .distributed import (
    add_up_gradients,
    batches_of_first,
    gathered,
    n_processes,
    of_all,
    of_first,
    own_gradient,
    own_rows,
    take_from_first,
)
from .rows import ROW_OPTIMIZERS, samples_classes
from .training import COLLAPSED, embed, spread

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


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
    given : (object, object)
        X and y as the estimator got them, for the callbacks.
    batch_size : int
        Only shown to callbacks.
    device : torch.device
    verbose : int
        Only shown to callbacks.
    draws : context manager
        Entered for whatever may draw from torch's global generators: `seeded` or, if nothing does, `NO_DRAWS`.
    own_draws : context manager
        Entered inside of ``draws`` for the training passes of the network, where several processes train: each has
        random numbers of its own there, and all have the same ones elsewhere.
    checkpoint : Checkpoint or None
        Where the state is found at the beginning, and written after each epoch.

    Attributes
    ----------
    progress_ : float in [0, 1)
        Fraction of the training that is done, updated before each step.
    interrupt_ : KeyboardInterrupt or None
        What cut the training short after at least one whole epoch.
    spreads_ : list of tensor
        `spread` of the embeddings of the first batch of the training, and of the last batch of the last whole epoch.
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
        given=(None, None),
        batch_size=64,
        device="cpu",
        valid_set=None,
        verbose=0,
        draws=NO_DRAWS,
        own_draws=NO_DRAWS,
        checkpoint=None,
    ):
        self.draws = draws
        self.own_draws = own_draws
        optimizers = ROW_OPTIMIZERS if samples_classes(criterion) else OPTIMIZERS
        super().__init__(
            network,
            criterion=criterion,
            optimizer=optimizers.get(recipe.optimizer, recipe.optimizer),
            lr=recipe.learning_rate,
            max_epochs=recipe.max_epochs,
            batch_size=batch_size,
            train_split=None,
            callbacks=callbacks,
            device=str(device),  # safetensors, for checkpoints, takes no torch.device
            verbose=verbose,
        )
        self.recipe = recipe
        self.valid_set = valid_set
        self.generator = generator
        self.augment_generator = augment_generator
        self.progress_ = 0.0
        self.given = given
        self.checkpoint = checkpoint
        self.interrupt_ = None
        self.is_ended_ = False
        self.ends_together_ = n_processes() == 1
        self.spreads_ = []

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
        state = {"recipe": replace(self.recipe, batches=None), "callbacks": None, "callbacks_": []}
        state |= {"draws": NO_DRAWS, "own_draws": NO_DRAWS}
        state |= dict.fromkeys(("given", "valid_set", "generator", "augment_generator", "checkpoint", "interrupt_"))
        return super().__getstate__() | state

    def get_iterator(self, dataset, training=False):
        return dataset

    def notify(self, method_name, **kwargs):
        """Call the callbacks; see whether a KeyboardInterrupt, which skorch swallows, ends the training as planned."""
        is_common = method_name == "on_epoch_end" and n_processes() > 1
        if method_name == "on_train_end":
            self._look_for_interrupt()
        if method_name in ("on_train_begin", "on_train_end"):
            kwargs = dict(zip("Xy", self.given, strict=True))
        if method_name == "on_train_begin" and self.checkpoint is not None:
            self.checkpoint.begin(self)
        with self.draws:
            getattr(self, method_name)(self, **kwargs)
            for _, callback in self.callbacks_:
                try:
                    getattr(callback, method_name)(self, **kwargs)
                except KeyboardInterrupt as error:
                    is_end = isinstance(callback, EarlyStopping) and method_name == "on_epoch_end"
                    if is_end or isinstance(error, EndOfTraining):
                        self.is_ended_ = True
                        if not is_common:
                            raise
                        continue
                    self.interrupt_ = error
                    # There the others go on: one of them restores the best weights, or keeps them.
                    if method_name != "on_train_end" and not is_common:
                        raise
        # Here, what was drawn inside the block is part of the state.
        if method_name == "on_train_begin" and self.checkpoint is not None:
            self.checkpoint.resume(self)
        if method_name == "on_epoch_end" and self.checkpoint is not None:
            try:
                self.checkpoint.write(self)
            except KeyboardInterrupt as error:
                self.interrupt_ = error
                raise
        if is_common:
            self._end_together()

    def _end_together(self):
        """End the training, after the same epoch, in all processes if a callback has ended it in one of them."""
        is_ended, is_interrupted = map(any, zip(*of_all((self.is_ended_, self.interrupt_ is not None)), strict=True))
        self.ends_together_ = is_ended or is_interrupted
        if is_interrupted:
            self.interrupt_ = self.interrupt_ or KeyboardInterrupt()
            raise self.interrupt_
        if is_ended:
            self.is_ended_ = True
            raise EndOfTraining

    def _look_for_interrupt(self):
        """Set ``interrupt_``, and raise it if there was no whole epoch: the estimator then stays as it is.

        It does so too if this process is the only one of several to end: what is left to do needs all of them.
        """
        n_whole = len(epochs(self.history))
        if self.interrupt_ is None and not self.is_ended_ and n_whole < self.max_epochs:
            self.interrupt_ = KeyboardInterrupt()
        if self.interrupt_ is not None and (n_whole == 0 or not self.ends_together_):
            raise self.interrupt_

    def set_params(self, **params):
        made = [name for name in params if name.startswith(("module", "criterion"))]
        if made:
            raise ValueError(
                f"A callback sets {made[0]!r}, but the network and the loss of an embedder are made before the "
                "training. Set a parameter of the embedder, or pass a backbone."
            )
        return super().set_params(**params)

    def run_single_epoch(self, iterator, training, prefix, step_fn, **kwargs):
        if iterator is None:
            return
        if not training:
            with self.draws:
                scores = validate(self.module_, iterator)
            for name, score in zip(iterator.score_names, scores, strict=True):
                self._record(name, score, larger_is_better=True)
            return
        with self.draws:
            batches = self.recipe.batches(
                self.generator, lambda: embed(self.module_, iterator, self.device, together=True)
            )
        batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
        batches = batches_of_first(batches, self.generator.device, self.device)
        self._set_training(True)
        epoch = len(self.history) - 1
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        total_weight = 0
        with closing(iterator.batches([own_rows(index) for index, *_ in batches], self.augment_generator)) as inputs:
            for i, ((index, *others), X) in enumerate(zip(batches, inputs, strict=True)):
                self.progress_ = (epoch + i / len(batches)) / self.max_epochs
                batch = X, iterator.labels(index)
                weights = iterator.weights(index)
                self.notify("on_batch_begin", batch=batch, training=True)
                with self.draws:
                    step = step_fn((*batch, *others), **({} if weights is None else {"sample_weight": weights}))
                weight = len(index) if weights is None else weights.sum()
                total += step["loss"] * weight
                total_weight += weight
                if not self.spreads_:
                    self.spreads_ = [spread(step["y_pred"])]
                self.history.record_batch("train_batch_size", len(index))
                self.notify("on_batch_end", batch=batch, training=True, **step)
        # Statistics of BatchNorm, and what another order of additions has changed in the loss.
        take_from_first(self.criterion_, buffers_of=[self.module_])
        # The only synchronization of the epoch.
        total, total_weight = torch.stack([total, torch.as_tensor(total_weight, device=self.device)]).tolist()
        loss = of_first(total / (total_weight or 1))
        if not math.isfinite(loss):
            raise ValueError(self._diverged(f"The mean loss ({loss})"))
        self._record("train_loss", loss, larger_is_better=False)
        if batches:
            self.spreads_[1:] = [spread(step["y_pred"])]

    def train_step(self, batch, **weights):
        """Take a step; return the loss and the embeddings as skorch does, but without the graph."""
        X, *targets = batch
        self.optimizer_.zero_grad()
        if n_processes() == 1 and (self.recipe.chunk_size is None or len(X) <= self.recipe.chunk_size):
            embeddings = self.embed_batch(X)
            loss = self.criterion_(embeddings, *targets, **weights)
            loss.backward()
        else:
            embeddings, loss = self.backward_in_chunks(X, targets, **weights)
        self.notify(
            "on_grad_computed",
            named_parameters=TeeGenerator(self.get_all_learnable_params()),
            batch=(X, targets[0]),
            X=X,
            y=targets[0],
            training=True,
        )
        self.optimizer_.step()
        return {"loss": loss.detach(), "y_pred": embeddings.detach()}

    def embed_batch(self, X):
        try:
            return self.module_(X)
        except ValueError as error:
            if len(X) > 1:
                raise
            raise ValueError(
                f"Batch {len(self.history[-1]['batches'])} of epoch {len(self.history)} has one row, and the network "
                f"does not train on a single one: {error}. BatchNorm needs at least two: raise batch_size (or "
                "chunk_size), pass more rows at a time, or set freeze='batchnorm' for a backbone."
            ) from error

    def backward_in_chunks(self, X, targets, **weights):
        """Gradient caching [1]_: like one backward pass, except that layers that mix rows see only a chunk.

        Where several processes train, each passes its `own_rows` of the batch, in equally many chunks.

        References
        ----------
        .. [1] L. Gao, Y. Zhang, J. Han and J. Callan, "Scaling Deep Contrastive Learning Batch Size under Memory
           Limited Setup", RepL4NLP 2021, arXiv:2101.06983.
        """
        device = X.device
        n_rows = len(targets[0])
        most = -(-n_rows // n_processes())
        size = self.recipe.chunk_size or most
        # BatchNorm does not take a last chunk of one row.
        is_even = n_processes() > 1 or len(X) % size == 1
        chunks = X.tensor_split(-(-most // size)) if is_even else X.split(size)
        states, own = [], []
        with self.own_draws, torch.set_grad_enabled(len(chunks) == 1):
            for chunk in chunks:
                states.append(generator_states(device))
                own.append(self.embed_batch(chunk))
        embeddings = gathered(torch.cat(own).detach(), n_rows).requires_grad_()
        loss = self.criterion_(embeddings, *targets, **weights)
        loss.backward()
        grads = own_gradient(embeddings.grad, len(X)).split([len(chunk) for chunk in chunks])
        if len(chunks) == 1:
            if own[0].requires_grad:  # not in a warm-up without a head
                own[0].backward(grads[0])
        else:
            with self.own_draws:
                after = generator_states(device)
                for chunk, state, grad in zip(chunks, states, grads, strict=True):
                    set_generator_states(state, device)  # the same dropout as before
                    self.module_(chunk).backward(grad)
                set_generator_states(after, device)
        add_up_gradients(self.module_.parameters())
        return embeddings, loss

    def has_collapsed(self):
        """Return whether the embeddings of the last batch are nearly one point, and those of the first one were not."""
        if len(self.spreads_) < 2:
            return False
        first, last = torch.stack(self.spreads_).tolist()
        return last < COLLAPSED and last < first / 20

    def check_weights(self):
        """Raise a ValueError, or the interrupt, unless all weights and the statistics of BatchNorm are finite."""
        statistics = ("running_mean", "running_var")  # other buffers, such as masks, may hold infinity
        tensors = [buffer for name, buffer in self.module_.named_buffers() if name.endswith(statistics)]
        tensors += [*self.module_.parameters(), *self.criterion_.parameters()]
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise self.interrupt_ or ValueError(self._diverged("A weight"))

    def _record(self, name, value, *, larger_is_better):
        earlier = [epoch[name] for epoch in self.history[:-1]]
        self.history.record(name, value)
        self.history.record(f"{name}_best", all(value > e if larger_is_better else value < e for e in earlier))

    def _diverged(self, what):
        if self.spreads_ and not self.spreads_[0].isfinite():
            return (
                f"{what} is not finite after epoch {len(self.history)}, as the embeddings were before the first step: "
                "the values of X, or the weights of the backbone, are too large for float32. Scale X, with "
                "StandardScaler for vectors."
            )
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
        "valid_accuracy": "validation_accuracy",
        "valid_roc_auc": "validation_roc_auc",
    }
    return [
        {names.get(key, key): value for key, value in epoch.items() if key != "batches" and not key.endswith("_best")}
        for epoch in history
        if "dur" in epoch  # the EpochTimer is the first callback at the end of an epoch; an interrupted one has none
    ]
