"""The training rows, the held-out rows, and their embeddings."""

import copy
import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from .._data.arrays import Rows
from .._network.random import NO_DRAWS
from ..metrics import map_at_r, recall_at_k
from .distributed import n_processes, of_first, of_shares, own_share, rank

TOO_FEW_TO_HOLD_OUT = (
    "early_stopping=True holds out at least two samples of a class and keeps two, but no class has four samples (or "
    "validation_fraction leaves fewer than two). Set early_stopping=False or give more data."
)
COLLAPSED = 1e-2  # the spread below which embeddings are nearly one point


@dataclass(frozen=True)
class Task:
    """The validated input of a fit.

    Parameters
    ----------
    data : Rows
    attributes : dict
        The fitted attributes that describe X.
    classes : ndarray of shape (n_classes,)
        Classes of y, and others that are already known or were announced.
    labels : ndarray of shape (n_samples,), values 0..C-1, or bool ndarray of shape (n_samples, n_classes)
    weights : float32 ndarray of shape (n_samples,) or None
    train_rows, valid_rows : ndarray of int or None
        None: all rows are for training.
    """

    data: Rows
    attributes: dict
    classes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    train_rows: np.ndarray | None
    valid_rows: np.ndarray | None

    @property
    def training_labels(self):
        """The labels of the training rows, renumbered: batch rules count the classes that are present."""
        labels = self.labels if self.train_rows is None else self.labels[self.train_rows]
        if labels.ndim == 2:
            return labels[:, labels.any(axis=0)]
        return np.unique(labels, return_inverse=True)[1]

    def split(self, data):
        """Return the training rows of data, and the held-out rows or None."""
        train_set = TrainingSet(data, self.labels, self.train_rows, self.weights)
        return train_set, None if self.valid_rows is None else TrainingSet(data, self.labels, self.valid_rows)


class TrainingSet(Dataset):
    """Data and labels on their device, restricted to the rows that are used.

    Parameters
    ----------
    data : Rows
    y : ndarray of shape (n_samples,), values 0..C-1, or bool ndarray of shape (n_samples, n_classes)
    rows : ndarray of int or None
        None: all rows.
    sample_weight : float32 ndarray of shape (n_samples,) or None
    """

    # What `scores` returns, by the names in skorch's history; the next one decides if two are equal.
    score_names = {"valid_recall_at_1": "Recall@1", "valid_map_at_r": "MAP@R"}

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

    def scores(self, network):
        """Return how well a network embeds the rows: what early stopping compares. All processes of a group call."""
        embeddings = embed(network, self, self.data.device, together=True)
        return of_first(retrieval_scores(embeddings, self.labels(slice(None))) if rank() == 0 else None)

    def sample(self, n, seed):
        """Return the set of rows with a nonzero weight, or n of them drawn at random if there are more."""
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
def embed(network, data, device, draws=NO_DRAWS, *, together=False):
    """Return the network's outputs for all of data, float32 (n_samples, D) on ``device``, in eval mode.

    Each pass is in a block of ``draws``, that of `seeded` if it may draw from torch's global generators. With
    ``together``, each process of a group embeds its share of the data; all must call.

    Raises
    ------
    ValueError
        If an output is not finite.
    """
    network.eval()
    size = min(8192, max(32, 2**18 // math.prod(data.sample_shape)))  # keeps the activations small
    together = together and n_processes() > 1
    rows = own_share(len(data)) if together else range(len(data))
    parts = [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]
    outputs = None
    total = 0.0
    with closing(data.batches(parts)) as batches:  # no worker process is left after an error
        for part, inputs in zip(parts, batches, strict=True):
            with draws:
                output = network(inputs)
            if outputs is None:
                at = output.device if together else device
                outputs = torch.empty(len(rows), output.shape[1], dtype=torch.float32, device=at)
            outputs[part.start - rows.start : part.stop - rows.start] = output
            total = total + output.sum()
    if together:
        outputs = of_shares(outputs, len(data)).to(device)
        total = outputs.sum()
    # The sum is cheap, and not finite if an output is not; it may also overflow by itself.
    if not math.isfinite(total) and (n_bad := int((~outputs.isfinite()).any(dim=1).sum())):
        raise ValueError(
            f"The network gives embeddings that are not finite for {n_bad} of {len(data)} rows of X: their values are "
            "too large for float32. Scale X, as it was scaled for fit; if the network was trained just now, lower "
            "learning_rate."
        )
    return outputs


def spread(embeddings):
    """Return the variance of embeddings (n_samples, D) by their mean square: 1 minus the mean cosine of unit rows."""
    deviations = embeddings - embeddings.mean(dim=0)
    return deviations.square().sum() / embeddings.square().sum().clamp(min=torch.finfo(embeddings.dtype).tiny)


def retrieval_scores(embeddings, y):
    """Return (Recall@1, MAP@R) of the rows among themselves; MAP@R decides if Recall@1 is equal."""
    return float(recall_at_k(embeddings, y, 1)), float(map_at_r(embeddings, y))


def hold_out(y, split, fraction, rng):
    """Split the rows into (training, validation), both sorted.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), values 0..C-1, each present, or bool ndarray of shape (n_samples, n_classes)
    split : {"samples", "classes"}
    fraction : float
    rng : RandomState

    Raises
    ------
    ValueError
        If there are too few samples or classes for both parts.
    """
    if split == "classes":
        valid = _held_out_classes(y, fraction, rng)
    else:
        valid = (_held_out_samples if y.ndim == 1 else _held_out_of_labels)(y, fraction, rng)
    is_valid = np.zeros(len(y), dtype=bool)
    is_valid[valid] = True
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def _held_out_samples(y, fraction, rng):
    """Return the rows to hold out: at least two per class, or none of it.

    Recall needs a match for every query, and a plain stratified split of a tenth of twelve samples leaves none.
    """
    wanted = max(2, round(fraction * len(y)))
    by_class = y.argsort(kind="stable")
    ends = np.bincount(y).cumsum().tolist()
    valid = [by_class[:0]]
    n_valid = 0
    for c in rng.permutation(len(ends)).tolist():
        if n_valid >= wanted:
            break
        rows = by_class[ends[c - 1] if c else 0 : ends[c]]
        rng.shuffle(rows)
        n = max(2, round(fraction * len(rows)))
        if len(rows) - n >= 2:
            valid.append(rows[:n])
            n_valid += n
    if not n_valid:
        raise ValueError(TOO_FEW_TO_HOLD_OUT)
    return np.concatenate(valid)


def _held_out_of_labels(y, fraction, rng):
    """Return the rows to hold out where samples have several labels: at least two of a label, or none on its account.

    So every held-out row has a match among them. A label that has no two other rows left is passed over.
    """
    wanted = max(2, round(fraction * len(y)))
    is_valid = np.zeros(len(y), dtype=bool)
    for label in rng.permutation(y.shape[1]):
        if is_valid.sum() >= wanted:
            break
        rows = np.flatnonzero(y[:, label] & ~is_valid)
        n = max(2, round(fraction * len(rows)))
        if len(rows) - n >= 2:
            is_valid[rng.permutation(rows)[:n]] = True
    if not is_valid.any():
        raise ValueError(TOO_FEW_TO_HOLD_OUT)
    return np.flatnonzero(is_valid)


def _held_out_classes(y, fraction, rng):
    """Return the rows of the classes to hold out: at least two, of two or more samples each."""
    if y.ndim == 2:
        raise ValueError(
            "validation_split='classes' holds out whole classes, but with several labels per sample, the samples of a "
            "label belong to others too. Set validation_split='samples'."
        )
    counts = np.bincount(y)
    large = np.flatnonzero(counts >= 2)
    n = max(2, round(fraction * len(counts)))
    if len(large) < n or len(counts) - n < 2:
        raise ValueError(
            f"validation_split='classes' with validation_fraction={fraction} holds out {n} classes of two or more "
            f"samples and trains on at least two others, but y has {len(counts)} classes, {len(large)} of them with "
            "two or more samples. Set validation_split='samples' or give samples of more classes."
        )
    is_held_out = np.zeros(len(counts), dtype=bool)
    is_held_out[rng.permutation(large)[:n]] = True
    return np.flatnonzero(is_held_out[y])
