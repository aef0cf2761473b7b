"""Callbacks around the training steps: learning rate schedule, warm-up, early stopping, progress and epoch tasks."""

import copy
import math
from contextlib import closing

import torch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EpochScoring,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    MlflowLogger,
    NeptuneLogger,
    PrintLog,
    ProgressBar,
    SacredLogger,
    TensorBoard,
    TrainEndCheckpoint,
    WandbLogger,
)
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from .._ambient import warn
from .distributed import rank
from .training import retrieval_scores

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        pass

    def with_callbacks(method):
        return method


SHARES = (0.25, 0.5, 0.75, 1.0)  # of the learned part; early stopping chooses one of them
WRITERS = (  # callbacks of skorch whose work is not part of the training
    Checkpoint,
    TrainEndCheckpoint,
    PrintLog,
    ProgressBar,
    TensorBoard,
    MlflowLogger,
    NeptuneLogger,
    SacredLogger,
    WandbLogger,
)
WARM_UP = 0.15  # share of the one-cycle schedule in which the learning rate rises


def check_callbacks(callbacks, early_stopping, score_names):
    """Reject objects that are not skorch callbacks, and callbacks that need predictions or values not recorded.

    Raises
    ------
    TypeError, ValueError
    """
    recorded = ["train_loss", *(score_names if early_stopping else [])]
    missing = {"valid_loss", "valid_acc", "valid_recall_at_1", "valid_map_at_r", *score_names}.difference(recorded)
    for callback in _instances(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be a list of skorch callbacks or (name, callback); got {callback!r}.")
        if isinstance(callback, LoadInitState):
            raise ValueError(
                "LoadInitState loads weights and the optimizer, but not the schedule, the random numbers and the "
                "batches of the earlier training. Set the parameter checkpoint to a folder: the same fit then goes on "
                "where it ended. To train further, use warm_start=True."
            )
        if isinstance(callback, EpochScoring | BatchScoring):
            raise TypeError(
                f"{type(callback).__name__} scores predictions, but an embedder does not predict. For a score after "
                "each epoch, set early_stopping=True, or use ScoringMonitor, one of scikit-learn's callbacks."
            )
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.removesuffix("_best") in missing:
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor!r}, which is not recorded. Set monitor to one of "
                f"{recorded} (for Checkpoint, append '_best'). {next(iter(score_names))!r} is recorded with "
                "early_stopping=True."
            )
        if isinstance(monitor, str) and _looks_at_batches(callback):
            raise ValueError(
                f"LRScheduler looks at {monitor!r} after each batch, but it is recorded once per epoch. Set "
                "step_every='epoch', or monitor to a function."
            )


def _looks_at_batches(callback):
    policies = ("ReduceLROnPlateau", ReduceLROnPlateau)
    return isinstance(callback, LRScheduler) and callback.step_every == "batch" and callback.policy in policies


def has_lr_scheduler(callbacks):
    return any(isinstance(callback, LRScheduler) for callback in _instances(callbacks))


def _instances(callbacks):
    """Yield the instances of callbacks that are instances, classes, or pairs of a name and one of these."""
    for callback in callbacks or []:
        callback = callback[1] if isinstance(callback, tuple) else callback
        yield callback() if isinstance(callback, type) else callback


def copied_callbacks(callbacks):
    """Return copies of the callbacks to call before the embedder's own, and of those to call after them.

    What skorch sets on a copy does not outlive the fit; they are shallow, as a callback may hold an open file. An
    InputShapeSetter is left out, since the network is made for X, and what writes is left out of all processes of a
    group but the first.
    """
    first, last = [], []
    for callback in callbacks or []:
        name, callback = callback if isinstance(callback, tuple) else (None, callback)
        kind = callback if isinstance(callback, type) else type(callback)
        if kind is InputShapeSetter or (rank() > 0 and issubclass(kind, WRITERS)):
            continue
        callback = copy.copy(callback)
        # A TrainEndCheckpoint saves the weights that the estimator keeps.
        to = last if issubclass(kind, TrainEndCheckpoint) else first
        to.append(callback if name is None else (name, callback))
    return first, last


class EndOfTraining(KeyboardInterrupt):
    """A callback ends the training as planned. Ctrl-C raises the base class, which is skorch's signal for the end."""


class OneCycle(Callback):
    """The 1cycle policy: set the learning rates, and the momentum of Adam and its variants, before each step."""

    def on_train_begin(self, net, **kwargs):
        self.highest_ = [group["lr"] for group in net.optimizer_.param_groups]

    def on_batch_begin(self, net, **kwargs):
        factor, momentum = one_cycle(net.progress_)
        for group, highest in zip(net.optimizer_.param_groups, self.highest_, strict=True):
            group["lr"] = highest * factor
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])


def one_cycle(progress):
    """Return the learning rate factor and the momentum of the 1cycle policy [1]_, which both follow cosines.

    The factor rises from 1/25 to 1 and falls to 0; the momentum falls from 0.95 to 0.85 and rises again.

    Parameters
    ----------
    progress : float in [0, 1)
        Fraction of the training that is done.

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


class WarmUp(Callback):
    """Keep the backbone unchanged in the first epochs.

    Parameters
    ----------
    n_epochs : int
    """

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def on_train_begin(self, net, **kwargs):
        # Permanently frozen parameters stay frozen.
        self.parameters_ = [p for p in net.module_.backbone.parameters() if p.requires_grad]

    def on_epoch_begin(self, net, **kwargs):
        self._train(len(net.history) > self.n_epochs)

    def on_train_end(self, net, **kwargs):
        self._train(True)  # the training may have ended during the warm-up

    def _train(self, requires_grad):
        for parameter in self.parameters_:
            parameter.requires_grad_(requires_grad)


class BestWeights(Callback):
    """Stop when the validation scores no longer rise, and restore the best weights, possibly the initial ones.

    skorch's EarlyStopping restores only the module; here, the criterion is trained too.

    Parameters
    ----------
    patience : int
        Epochs without a better score before the training ends.
    valid_set : TrainingSet
    split : {"samples", "classes"}
        What was held out. With "classes", a warning is given if a network that does not start at its input is worse
        than this input.
    """

    def __init__(self, patience, valid_set, split):
        self.patience = patience
        self.valid_set = valid_set
        self.split = split

    def on_train_begin(self, net, **kwargs):
        self.start_ = validate(net.module_, self.valid_set)
        self._keep(net, self.start_, epoch=0)

    def on_epoch_end(self, net, **kwargs):
        epoch = len(net.history)
        scores = tuple(net.history[-1, name] for name in self.valid_set.score_names)
        # In a tie, trained weights are preferred to the initial ones.
        if scores > self.best_ or (self.best_epoch_ == 0 and scores == self.best_):
            self._keep(net, scores, epoch)
        elif epoch - self.best_epoch_ >= self.patience:
            raise EndOfTraining

    def _keep(self, net, scores, epoch):
        self.best_ = scores
        self.best_epoch_ = epoch
        self.best_state_ = copy.deepcopy([module.state_dict() for module in (net.module_, net.criterion_)])

    def on_train_end(self, net, **kwargs):
        for module, state in zip((net.module_, net.criterion_), self.best_state_, strict=True):
            module.load_state_dict(state)
        if self.split == "classes" and not net.module_.starts_at_input:
            self._compare_with_input()
        if self.best_epoch_ == 0:
            names = self.valid_set.score_names.values()
            start = ", ".join(f"{name} {score:.3f}" for name, score in zip(names, self.start_, strict=True))
            warn(
                f"No epoch was better on the held-out data than the start ({start}), so the embedder keeps its initial "
                "weights. Lower learning_rate, or hold out more data with validation_fraction.",
                ConvergenceWarning,
            )

    def _compare_with_input(self):
        untrained = retrieval_scores(flat_input(self.valid_set), self.valid_set.labels(slice(None)))
        if any(u > best for u, best in zip(untrained, self.best_, strict=True)):
            warn(
                f"On the held-out data, the untrained input reaches Recall@1 {untrained[0]:.3f} and MAP@R "
                f"{untrained[1]:.3f}, and the best epoch {self.best_[0]:.3f} and {self.best_[1]:.3f}. Train longer, on "
                "more classes or from a pretrained backbone, or search with the input itself.",
                ConvergenceWarning,
            )


class LearnedShare(Callback):
    """Keep a share of what was learned, next to what was there at the start.

    In a network that starts at its input, the head adds the learned part with this share. Otherwise the weights are set
    between the initial and the trained ones, as proposed for the fine-tuning of pretrained networks [1]_.

    Parameters
    ----------
    share : float in [0, 1]
    valid_set : TrainingSet or None
        Where the share is chosen; ``share`` then wins ties. None: it is not chosen.

    References
    ----------
    .. [1] M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv:2109.01903.
    """

    def __init__(self, share, valid_set):
        self.share = share
        self.valid_set = valid_set

    def on_train_begin(self, net, **kwargs):
        if not net.module_.starts_at_input:
            self.start_ = _float_tensors(net.module_)

    def on_train_end(self, net, **kwargs):
        if not net.module_.starts_at_input:
            self.trained_ = _float_tensors(net.module_)
        best, best_scores = self.share, None
        try:
            for share in dict.fromkeys((self.share, *SHARES)) if self.valid_set else ():
                self._set(net.module_, share)
                scores = validate(net.module_, self.valid_set)
                if best_scores is None or scores > best_scores:
                    best, best_scores = share, scores
        finally:  # Ctrl-C ends the search too
            self._set(net.module_, best)

    @torch.no_grad()
    def _set(self, network, share):
        if network.starts_at_input:
            network.head.strength.fill_(share)
            return
        for name, value in network.state_dict().items():
            if name in self.start_:
                value.copy_(torch.lerp(self.start_[name], self.trained_[name], share))


def _float_tensors(network):
    return {name: value.clone() for name, value in network.state_dict().items() if value.is_floating_point()}


def validate(network, valid_set):
    """Return the scores of a network on the held-out part; all processes of a group must call."""
    return valid_set.scores(network)


def flat_input(data_set):
    """Return the network's input as vectors, with images reduced to at most 32 x 32 pixels."""
    rows = [slice(start, start + 256) for start in range(0, len(data_set), 256)]
    parts = []
    with closing(data_set.batches(rows)) as batches:
        for x in batches:
            if x.ndim == 4 and max(x.shape[2:]) > 32:
                x = nn.functional.adaptive_avg_pool2d(x, tuple(min(side, 32) for side in x.shape[2:]))
            parts.append(x.flatten(1))
    return torch.cat(parts)


class Progress(Callback):
    """Show a progress bar over the epochs, or print one line per epoch."""

    def __init__(self, verbose):
        self.verbose = verbose

    def on_train_begin(self, net, **kwargs):
        self.bar_ = None
        if self.verbose == 1:
            # disable=None shows the bar only where somebody watches, in a notebook or a terminal.
            self.bar_ = tqdm(total=net.max_epochs, unit="epoch", disable=None)

    def on_epoch_end(self, net, **kwargs):
        epoch = net.history[-1]
        shown = {"loss": f"{epoch['train_loss']:.4f}"}
        if net.valid_set:
            name, text = next(iter(net.valid_set.score_names.items()))
            shown[f"validation {text}"] = f"{epoch[name]:.4f}"
        if self.bar_ is not None:
            self.bar_.set_postfix(shown, refresh=False)
            self.bar_.update(len(net.history) - self.bar_.n)  # some epochs may be behind a training that was resumed
        else:
            text = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"epoch {epoch['epoch']}/{net.max_epochs}  {text}  {epoch['dur']:.2f} s")

    def on_train_end(self, net, **kwargs):
        if self.bar_ is not None:
            self.bar_.close()


class EpochTasks(Callback):
    """Report each epoch to scikit-learn's callbacks as a task.

    Parameters
    ----------
    estimator : BaseEmbedder
    context : sklearn.callback.CallbackContext
        Context of the fit.
    arguments : dict
        Data that the callbacks get: X, y, metadata.
    fitted : callable
        Returns, for skorch's history so far, the attributes that make ``estimator`` fitted, with copies of the network
        and the loss.
    """

    def __init__(self, estimator, context, arguments, fitted):
        self.estimator = estimator
        self.context = context
        self.arguments = arguments
        self.fitted = fitted
        context.call_on_fit_task_begin(estimator=estimator, **arguments)

    def on_epoch_begin(self, net, **kwargs):
        self.task_ = self.context.subcontext(task_name="epoch")
        self.task_.call_on_fit_task_begin(estimator=self.estimator, **self.arguments)

    def on_epoch_end(self, net, **kwargs):
        stop = self.task_.call_on_fit_task_end(
            estimator=self.estimator,
            **self.arguments,
            reconstruction_attributes=lambda: self.fitted(net.history),
        )
        if stop:
            raise EndOfTraining

    def end(self):
        """End the task of the whole fit."""
        self.context.call_on_fit_task_end(estimator=self.estimator, **self.arguments, reconstruction_attributes={})
