"""An embedder for any loss."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .._constraints import POSITIVE, StrOptions
from .._docstrings import with_shared_docs
from .._engine.batches import LocalBatches, ShuffledBatches
from .._engine.embedder import BalancedEmbedder
from .._loss.pairs import PairLoss
from .._network.copies import copied
from .raw import RAWLoss


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class MetricEmbedder(BalancedEmbedder):
    """A network trained with any torch loss ``(embeddings, y) -> scalar``, by the engine of the other embedders.

    The loss may be your own or that of another library, such as pytorch-metric-learning with its miners; what it learns
    (for example proxies) is trained as well.

    Read more in the :ref:`User Guide <metric>`.

    Parameters
    ----------
    loss : torch.nn.Module, callable or None, default=None
        Maps embeddings (B, D) and classes (B,), numbered from 0 in the order of ``classes_``, to a scalar; with several
        labels per sample, embeddings and booleans (B, n_labels). It is copied, never changed. None:
        :class:`skdml.losses.RAWLoss` with its defaults. A loss with a parameter ``sample_weight`` (B,) can be fitted
        with weights.
    miner : callable or None, default=None
        Maps embeddings and classes to the third argument of the loss: a miner of pytorch-metric-learning. For the
        losses of skdml use their ``mining``.
    batches : {"balanced", "shuffled", "local"}, default="balanced"
        "balanced": P x K, for losses that compare samples. "shuffled": any samples, for losses with proxies. "local":
        clusters of the embeddings, found anew each epoch by k-means, as in :class:`SSTEmbedder`.
    loss_learning_rate : float, default=3e-3
        Peak learning rate of the loss's own parameters; > 0.
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : The default loss, with its parameters as those of the embedder.

    References
    ----------
    .. [1] K. Musgrave, S. Belongie and S.-N. Lim, "PyTorch Metric Learning", 2020, arXiv:2008.09164.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from torch.nn.functional import cross_entropy
    >>> from skdml import MetricEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> def softmax_over_samples(embeddings, y):
    ...     S = (embeddings @ embeddings.T / 0.1).fill_diagonal_(-1e9)
    ...     same = (y[:, None] == y).float().fill_diagonal_(0)
    ...     return cross_entropy(S, same / same.sum(dim=1, keepdim=True).clamp(min=1))
    >>> embedder = MetricEmbedder(loss=softmax_over_samples, max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.8)
    True
    """

    loss: nn.Module | Callable | None = None
    miner: Callable | None = None
    batches: str = "balanced"
    loss_learning_rate: float = 3e-3

    _parameter_constraints = {
        **BalancedEmbedder._parameter_constraints,
        "loss": [callable, None],
        "miner": [callable, None],
        "batches": [StrOptions({"balanced", "shuffled", "local"})],
        "loss_learning_rate": [POSITIVE],
    }

    @property
    def _pair_based(self):
        return self.batches != "shuffled"

    @property
    def _one_class(self):
        if self.batches == "local":
            return "keeps the rows of a class together in its batches of clusters (batches='local')"
        return getattr(self.loss, "_one_class", None)

    def _check_batch_size(self):
        if self.batches == "balanced":
            super()._check_batch_size()

    def _check_params(self):
        super()._check_params()
        name = type(self).__name__
        if isinstance(self.loss, type):
            raise ValueError(
                f"The 'loss' parameter of {name} must be a loss, not its class: call it. Got {self.loss!r} instead."
            )
        loss = RAWLoss() if self.loss is None else self.loss
        if self.miner is not None and type(loss).__module__.startswith("skdml."):
            raise ValueError(
                f"The 'miner' parameter of {name} must be None with a loss of skdml, which takes mining= itself. "
                f"Got {self.miner!r} instead."
            )

    def _make_loss(self, n_classes, network):
        if self.loss is None:
            return RAWLoss()
        return copied(self.loss) if isinstance(self.loss, nn.Module) else _FunctionLoss(self.loss)

    def _training_loss(self, criterion):
        loss = criterion if self.miner is None else _MinedLoss(criterion, copied(self.miner))
        return super()._training_loss(loss)

    def _make_batches(self, y):
        match self.batches:
            case "balanced":
                return super()._make_batches(y)
            case "shuffled":
                return ShuffledBatches(y, self.batch_size)
            case "local":
                return LocalBatches(y, self.batch_size)

    def _loss_learning_rate(self):
        return self.loss_learning_rate

    def _read(self, X, y, sample_weight, *args):
        if sample_weight is not None and self.loss is not None and not _takes_weights(self.loss):
            raise ValueError(
                f"sample_weight goes to the loss, but {self.loss!r} has no parameter of that name. Give it one, the "
                "weights (B,) of a batch, or fit without weights."
            )
        return super()._read(X, y, sample_weight, *args)


def _takes_weights(loss):
    if isinstance(loss, nn.Module):
        loss = loss.pair_loss if isinstance(loss, PairLoss) else loss.forward
    return "sample_weight" in inspect.signature(loss).parameters


class _FunctionLoss(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, embeddings, y, **weights):
        return self.function(embeddings, y, **weights)


class _MinedLoss(nn.Module):
    """A loss with a miner of pytorch-metric-learning before it."""

    def __init__(self, loss, miner):
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings, y, **weights):
        return self.loss(embeddings, y, self.miner(embeddings, y), **weights)
