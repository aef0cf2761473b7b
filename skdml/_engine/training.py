"""The engine: a skorch net whose data lie on the device and whose batches are index tensors.

skorch brings callbacks, history and checkpoints. Left out of its step, because they cost more than the step itself on
vectors: the DataLoader, the optimizer closure and reading the loss after each batch.
"""

import copy
import math
import warnings
from contextlib import closing

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import BatchScoring, Callback, EarlyStopping, EpochScoring, EpochTimer, LRScheduler
from skorch.utils import TeeGenerator
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .._network.random import generator_states, set_generator_states
from ..metrics import map_at_r, recall_at_k
from .callbacks import EpochTasks

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # of what was learned next to the start, among which early stopping chooses
WARM_UP = 0.15  # share of the one-cycle schedule in which the learning rate rises


def train(
    network,
    criterion,
    train_set,
    batches,
    *,
    valid_set,
    compare_with_input,
    max_epochs,
    learning_rate,
    head_learning_rate,
    criterion_learning_rate,
    warmup_epochs,
    lr_schedule,
    weight_decay,
    optimizer,
    n_iter_no_change,
    chunk_size,
    callbacks,
    generator,
    augment_generator,
    verbose,
):
    """Train network and criterion in place and return the history, a list of dicts, one a finished epoch.

    Parameters
    ----------
    network, criterion : nn.Module
        On the device of the data. ``criterion(network(inputs), labels)`` is the loss; what a batch rule gives beside
        the indices follows the labels. Weights, if there are any, go by name, ``sample_weight=``.
    train_set, valid_set : TrainingSet
        With a ``valid_set`` training stops when `retrieval_scores` in it have not risen for ``n_iter_no_change``
        epochs, and the best weights are put back. None: no early stopping.
    compare_with_input : bool
        Whether to warn where a network that does not begin at its input is worse than that on the ``valid_set``.
    batches : callable
        A batch rule of ``batches.py``.
    learning_rate, head_learning_rate, criterion_learning_rate : float
        Of the backbone, the head and the loss, at their highest.
    warmup_epochs : int
        First epochs, in which the backbone stays as it is.
    lr_schedule : {"one_cycle", None}
    optimizer : str or class
    chunk_size : int or None
        Rows that pass the network at a time. A larger batch is embedded twice: without a graph for the gradient in the
        embeddings, then in chunks for that in the weights, so that its size is not bounded by the activations.
    generator : torch.Generator
        Of the batch rule, on the index device.
    augment_generator : torch.Generator
        Of the augmentation, on the CPU.

    Raises
    ------
    ValueError
        When the loss or a weight is no longer finite.
    """
    net = EmbeddingNet(
        network,
        criterion=criterion,
        optimizer=OPTIMIZERS.get(optimizer, optimizer),
        lr=learning_rate,
        max_epochs=max_epochs,
        train_split=lambda dataset: (dataset, valid_set),
        callbacks=[
            *([Progress(max_epochs, verbose)] if verbose else []),
            *map(_copied, callbacks or []),
            *([BestWeights(n_iter_no_change, valid_set, compare_with_input)] if valid_set else []),
        ],
        device=train_set.data.device,
        verbose=0,
    )
    net.head_lr = head_learning_rate
    net.criterion_lr = criterion_learning_rate
    net.warmup_epochs = warmup_epochs
    net.lr_schedule = lr_schedule
    net.weight_decay = weight_decay
    net.fused = isinstance(optimizer, str) and net.device.type in ("cpu", "cuda")
    net.batches = batches
    net.chunk_size = chunk_size
    net.generator = generator
    net.augment_generator = augment_generator
    net.fit(train_set)
    for parameter in net.backbone_parameters_:  # the training may have ended in the warm-up
        parameter.requires_grad_(True)
    if not all(p.isfinite().all() for p in [*network.parameters(), *criterion.parameters()]):
        raise ValueError(net.diverged("A weight"))
    return epochs(net.history)


def epochs(history):
    """Return skorch's history under our names, a list of dicts, one a finished epoch."""
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


class TrainingSet(Dataset):
    """Placed data and labels, seen through the rows that take part.

    Parameters
    ----------
    data : Rows
    y : ndarray of shape (n_samples,), values 0..C-1
    rows : ndarray of int or None
        None: all.
    sample_weight : float32 ndarray of shape (n_samples,) or None
    """

    def __init__(self, data, y, rows=None, sample_weight=None):
        self.data = data
        self.sample_weight = None if sample_weight is None else torch.from_numpy(sample_weight).to(data.index_device)
        self.y = torch.from_numpy(y).to(data.index_device)
        self.rows = None if rows is None else torch.from_numpy(rows).to(data.index_device)
        self.sample_shape = data.sample_shape

    def __len__(self):
        return len(self.y) if self.rows is None else len(self.rows)

    def batches(self, indices, generator=None):
        """Yield the network's input for each index tensor or slice; with a generator, augmented."""
        return self.data.batches(indices if self.rows is None else [self.rows[i] for i in indices], generator)

    def labels(self, index):
        """Return the labels for an index tensor or a slice."""
        return self._of_rows(self.y, index)

    def weights(self, index):
        """Return the weights for an index tensor or a slice, or None."""
        return None if self.sample_weight is None else self._of_rows(self.sample_weight, index)

    def sample(self, n, seed):
        """Return the set of its rows that have a weight, n drawn at random where there are more."""
        rows = np.arange(len(self.y)) if self.rows is None else self.rows.cpu().numpy()
        if self.sample_weight is not None:
            rows = rows[self.sample_weight.cpu().numpy()[rows] > 0]
        if len(rows) > n:
            rows = np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))
        drawn = copy.copy(self)
        drawn.rows = torch.from_numpy(rows).to(self.y.device)
        return drawn

    def _of_rows(self, values, index):
        return values[index if self.rows is None else self.rows[index]].to(self.data.device)


@torch.no_grad()
def embed(network, data, device):
    """Return the network's outputs for all of data, float32 (n_samples, D) on ``device``, in eval mode."""
    network.eval()
    size = min(8192, max(32, 2**18 // math.prod(data.sample_shape)))  # keeps the activations small
    parts = [slice(start, start + size) for start in range(0, len(data), size)]
    outputs = None
    with closing(data.batches(parts)) as batches:  # an error leaves no worker process behind
        for part, inputs in zip(parts, batches, strict=True):
            output = network(inputs)
            if outputs is None:
                outputs = torch.empty(len(data), output.shape[1], device=device)
            outputs[part] = output
    return outputs


def retrieval_scores(embeddings, y):
    """Return (Recall@1, MAP@R) of the rows among themselves; the second decides where the first is equal."""
    return float(recall_at_k(embeddings, y, 1)), float(map_at_r(embeddings, y))


def hold_out(y, split, fraction, rng):
    """Split the rows into (training, validation), both sorted.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), values 0..C-1, each present
    split : {"samples", "classes"}
    fraction : float
    rng : RandomState

    Raises
    ------
    ValueError
        If there are too few samples or classes for both parts.
    """
    valid = (_held_out_samples if split == "samples" else _held_out_classes)(y, fraction, rng)
    return np.setdiff1d(np.arange(len(y)), valid), np.sort(valid)


def _held_out_samples(y, fraction, rng):
    """Return the rows to hold out: at least two of a class, or none.

    Recall needs a match for every query, and at a tenth of twelve samples a plain stratified split leaves none.
    """
    wanted = max(2, round(fraction * len(y)))
    valid = []
    for c in rng.permutation(y.max() + 1):
        rows = rng.permutation(np.flatnonzero(y == c))
        n = max(2, round(fraction * len(rows)))
        if len(rows) - n >= 2 and len(valid) < wanted:
            valid.extend(rows[:n])
    if not valid:
        raise ValueError(
            "early_stopping=True holds out at least two samples of a class and keeps two, but no class has four "
            "samples (or validation_fraction leaves fewer than two). Set early_stopping=False or give more data."
        )
    return valid


def _held_out_classes(y, fraction, rng):
    """Return the rows of the classes to hold out: at least two, of two or more samples each."""
    counts = np.bincount(y)
    large = np.flatnonzero(counts >= 2)
    n = max(2, round(fraction * len(counts)))
    if len(large) < n or len(counts) - n < 2:
        raise ValueError(
            f"validation_split='classes' with validation_fraction={fraction} holds out {n} classes of two or more "
            f"samples and trains on at least two others, but y has {len(counts)} classes, {len(large)} of them with "
            "two or more samples. Set validation_split='samples' or give samples of more classes."
        )
    return np.flatnonzero(np.isin(y, rng.permutation(large)[:n]))


def _copied(callback):
    """Return a copy, on which skorch may set what must not outlive the fit; shallow, for it may hold an open file."""
    return (callback[0], copy.copy(callback[1])) if isinstance(callback, tuple) else copy.copy(callback)


def check_callbacks(callbacks, early_stopping):
    """Refuse what is no skorch callback, and one that needs a prediction or a value that is not recorded.

    Raises
    ------
    TypeError, ValueError
    """
    recorded = ["train_loss", *(["valid_recall_at_1", "valid_map_at_r"] if early_stopping else [])]
    missing = {"valid_loss", "valid_acc", "valid_recall_at_1", "valid_map_at_r"}.difference(recorded)
    for callback in _instances(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be a list of skorch callbacks, or of (name, callback); got {callback!r}.")
        if isinstance(callback, EpochScoring | BatchScoring):
            raise TypeError(
                f"{type(callback).__name__} scores what a network predicts, and an embedder predicts nothing. For a "
                "score after each epoch set early_stopping=True, or use ScoringMonitor of scikit-learn's callbacks."
            )
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.removesuffix("_best") in missing:
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor!r}, which is not recorded. Give it monitor= one of "
                f"{recorded} (for Checkpoint with '_best' at the end). 'valid_recall_at_1' is recorded with "
                "early_stopping=True."
            )


def has_lr_scheduler(callbacks):
    return any(isinstance(callback, LRScheduler) for callback in _instances(callbacks))


def _instances(callbacks):
    """Yield what skorch will make of callbacks: instances, classes, or pairs of a name and one of these."""
    for callback in callbacks or []:
        callback = callback[1] if isinstance(callback, tuple) else callback
        yield callback() if isinstance(callback, type) else callback


class EmbeddingNet(NeuralNet):
    """A skorch net that steps over index batches and reads the loss once an epoch."""

    @property
    def _default_callbacks(self):
        return [("epoch_timer", EpochTimer())]

    def initialize_optimizer(self, triggered_directly=None):
        backbone, head, criterion = (
            [p for p in module.parameters() if p.requires_grad]
            for module in (self.module_.backbone, self.module_.head, self.criterion_)
        )
        self.backbone_parameters_ = backbone
        if self.head_lr == self.lr:
            backbone, head = backbone + head, []
        groups = [
            {"params": parameters, "lr": lr}
            for parameters, lr in [(backbone, self.lr), (head, self.head_lr), (criterion, self.criterion_lr)]
        ]
        options = {"fused": True} if self.fused else {}
        self.optimizer_ = self.optimizer(
            [group for group in groups if group["params"]], weight_decay=self.weight_decay, **options
        )
        self.peak_lrs_ = [group["lr"] for group in self.optimizer_.param_groups]
        return self

    def get_iterator(self, dataset, training=False):
        return dataset

    def notify(self, method_name, **kwargs):
        getattr(self, method_name)(self, **kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **kwargs)
            except KeyboardInterrupt:
                self.stopped_by = callback
                raise

    def fit_loop(self, X, y=None, epochs=None, **kwargs):
        self.stopped_by = None
        try:
            return super().fit_loop(X, y, epochs, **kwargs)
        except KeyboardInterrupt:
            # skorch's sign for "stop early", and Ctrl-C.
            if not isinstance(self.stopped_by, EarlyStopping | BestWeights | EpochTasks):
                warnings.warn(
                    f"Training was interrupted in epoch {len(self.history)} of {self.max_epochs}; the estimator keeps "
                    "the weights it has.",
                    stacklevel=6,
                )
            return self

    def run_single_epoch(self, iterator, training, prefix, step_fn, **kwargs):
        if iterator is None:
            return
        if not training:
            for name, score in zip(("valid_recall_at_1", "valid_map_at_r"), self.validate(iterator), strict=True):
                self._record(name, score, larger_is_better=True)
            return
        batches = self.batches(self.generator, lambda: embed(self.module_, iterator, self.device))
        batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
        self._set_training(True)
        if len(self.history) <= self.warmup_epochs + 1:
            # Parameters that are frozen for good are in no group of the optimizer.
            for parameter in self.backbone_parameters_:
                parameter.requires_grad_(len(self.history) > self.warmup_epochs)
        total = torch.zeros((), device=self.device)
        total_weight = 0
        with closing(iterator.batches([index for index, *_ in batches], self.augment_generator)) as inputs:
            for i, ((index, *others), X) in enumerate(zip(batches, inputs, strict=True)):
                if self.lr_schedule == "one_cycle":
                    factor, momentum = one_cycle((len(self.history) - 1 + i / len(batches)) / self.max_epochs)
                    for group, lr in zip(self.optimizer_.param_groups, self.peak_lrs_, strict=True):
                        group["lr"] = lr * factor
                        if "betas" in group:  # Adam's momentum; of plain SGD nobody asked one
                            group["betas"] = (momentum, group["betas"][1])
                batch = X, iterator.labels(index), *others
                weights = iterator.weights(index)
                self.notify("on_batch_begin", batch=batch, training=True)
                loss = step_fn(batch, **({} if weights is None else {"sample_weight": weights}))
                weight = len(index) if weights is None else weights.sum()
                total += loss * weight
                total_weight += weight
                self.notify("on_batch_end", batch=batch, training=True)
        # The one synchronisation of the epoch.
        total, total_weight = torch.stack([total, torch.as_tensor(total_weight, device=self.device)]).tolist()
        loss = total / (total_weight or 1)
        if not math.isfinite(loss):
            raise ValueError(self.diverged(f"The mean loss ({loss})"))
        self._record("train_loss", loss, larger_is_better=False)

    def validate(self, valid_set):
        return retrieval_scores(embed(self.module_, valid_set, self.device), valid_set.labels(slice(None)))

    def train_step(self, batch, **weights):
        X, *targets = batch
        self.optimizer_.zero_grad()
        if self.chunk_size is None or len(X) <= self.chunk_size:
            loss = self.criterion_(self.module_(X), *targets, **weights)
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
        """Gradient caching [1]_: as one backward pass, but for layers that mix rows, which see a chunk.

        References
        ----------
        .. [1] L. Gao, Y. Zhang, J. Han and J. Callan, "Scaling Deep Contrastive Learning Batch Size under Memory
           Limited Setup", RepL4NLP 2021, arXiv:2101.06983.
        """
        device = X.device
        chunks = X.split(self.chunk_size)
        states, embeddings = [], []
        with torch.no_grad():
            for chunk in chunks:
                states.append(generator_states(device))
                embeddings.append(self.module_(chunk))
        embeddings = torch.cat(embeddings).requires_grad_()
        loss = self.criterion_(embeddings, *targets, **weights)
        loss.backward()
        after = generator_states(device)
        for chunk, state, grad in zip(chunks, states, embeddings.grad.split(self.chunk_size), strict=True):
            set_generator_states(state, device)  # the same dropout as before
            self.module_(chunk).backward(grad)
        set_generator_states(after, device)
        return loss

    def _record(self, name, value, *, larger_is_better):
        earlier = [epoch[name] for epoch in self.history[:-1]]
        self.history.record(name, value)
        self.history.record(f"{name}_best", all(value > e if larger_is_better else value < e for e in earlier))

    def diverged(self, what):
        return (
            f"{what} is not finite after epoch {len(self.history)}. Lower learning_rate (now {self.lr:g}), and where "
            f"the loss has parameters of its own their rate (now {self.criterion_lr:g}), or scale X, for vectors with "
            "StandardScaler."
        )


def one_cycle(progress):
    """Return the factor of the learning rate and the momentum of the 1cycle policy [1]_, both on cosines.

    The factor rises from 1/25 to 1 and falls to 0; the momentum falls from 0.95 to 0.85 and rises again.

    Parameters
    ----------
    progress : float in [0, 1)
        Share of the training that is done.

    References
    ----------
    .. [1] L. N. Smith and N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
       Rates", 2018, arXiv:1708.07120.
    """
    if progress < WARM_UP:
        height = 0.5 - 0.5 * math.cos(math.pi * progress / WARM_UP)
        return 0.04 + 0.96 * height, 0.95 - 0.1 * height
    height = 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))
    return height, 0.95 - 0.1 * height


class BestWeights(Callback):
    """Stop when the validation scores no longer rise, and put the best weights back, those of the start among them.

    skorch's EarlyStopping restores only the module; here the criterion learns too.

    Parameters
    ----------
    patience : int
        Epochs without a better score before the training ends.
    valid_set : TrainingSet
    compare_with_input : bool
        Whether to warn where a network that does not begin at its input is worse than that.
    """

    def __init__(self, patience, valid_set, compare_with_input):
        self.patience = patience
        self.valid_set = valid_set
        self.compare_with_input = compare_with_input

    def on_train_begin(self, net, **kwargs):
        self.start_ = net.validate(self.valid_set)
        self._keep(net, self.start_, epoch=0)

    def on_epoch_end(self, net, **kwargs):
        epoch = len(net.history)
        scores = net.history[-1, "valid_recall_at_1"], net.history[-1, "valid_map_at_r"]
        # Where it makes no difference, what was learned counts more than the start.
        if scores > self.best_ or (self.best_epoch_ == 0 and scores == self.best_):
            self._keep(net, scores, epoch)
        elif epoch - self.best_epoch_ >= self.patience:
            raise KeyboardInterrupt

    def _keep(self, net, scores, epoch):
        self.best_ = scores
        self.best_epoch_ = epoch
        self.best_state_ = copy.deepcopy([module.state_dict() for module in (net.module_, net.criterion_)])

    def on_train_end(self, net, **kwargs):
        for module, state in zip((net.module_, net.criterion_), self.best_state_, strict=True):
            module.load_state_dict(state)
        if self.compare_with_input and not net.module_.starts_at_input:
            self._compare_with_input()
        if self.best_epoch_ == 0:
            warnings.warn(
                f"No epoch was better on the held-out data than the start (Recall@1 {self.start_[0]:.3f}, MAP@R "
                f"{self.start_[1]:.3f}): the embedder keeps the weights from before the training. Lower learning_rate, "
                "or hold out more with validation_fraction.",
                ConvergenceWarning,
                stacklevel=2,
            )
        elif net.module_.starts_at_input:
            self._choose_strength(net, net.module_.head)

    def _compare_with_input(self):
        untrained = retrieval_scores(_flat_input(self.valid_set), self.valid_set.labels(slice(None)))
        if any(u > best for u, best in zip(untrained, self.best_, strict=True)):
            warnings.warn(
                f"On the held-out data the untrained input reaches Recall@1 {untrained[0]:.3f} and MAP@R "
                f"{untrained[1]:.3f}, the best epoch {self.best_[0]:.3f} and {self.best_[1]:.3f}. Train longer, on "
                "more classes or from a pretrained backbone, or search the input itself.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _choose_strength(self, net, head):
        best = head.strength.item()
        for strength in STRENGTHS:
            head.strength.fill_(strength)
            scores = net.validate(self.valid_set)
            if scores > self.best_:
                self.best_, best = scores, strength
        head.strength.fill_(best)


def _flat_input(data_set):
    """Return the network's input as vectors, images of at most 32 x 32 pixels."""
    rows = [slice(start, start + 256) for start in range(0, len(data_set), 256)]
    parts = []
    with closing(data_set.batches(rows)) as batches:
        for x in batches:
            if x.ndim == 4 and max(x.shape[2:]) > 32:
                x = nn.functional.adaptive_avg_pool2d(x, tuple(min(side, 32) for side in x.shape[2:]))
            parts.append(x.flatten(1))
    return torch.cat(parts)


class Progress(Callback):
    """One bar over the epochs, or a line each."""

    def __init__(self, max_epochs, verbose):
        self.max_epochs = max_epochs
        self.verbose = verbose

    def on_train_begin(self, net, **kwargs):
        self.bar_ = None
        if self.verbose == 1:
            # A bar where somebody watches: a notebook or a terminal, not a log file.
            self.bar_ = tqdm(total=self.max_epochs, unit="epoch", disable=None)

    def on_epoch_end(self, net, **kwargs):
        epoch = net.history[-1]
        shown = {"loss": f"{epoch['train_loss']:.4f}"}
        if "valid_recall_at_1" in epoch:
            shown["validation Recall@1"] = f"{epoch['valid_recall_at_1']:.4f}"
        if self.bar_ is not None:
            self.bar_.set_postfix(shown, refresh=False)
            self.bar_.update()
        else:
            text = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"epoch {epoch['epoch']}/{self.max_epochs}  {text}  {epoch['dur']:.2f} s")

    def on_train_end(self, net, **kwargs):
        if self.bar_ is not None:
            self.bar_.close()
