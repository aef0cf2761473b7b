"""Resume after a crash: the state of a training, in a folder that belongs to one fit."""

import json
import os
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from .._data.cache import made_folder
from .._saving.exports import versions
from .._saving.json import type_name
from .._saving.states import can_pack, read_state, write_state
from .callbacks import BestWeights
from .distributed import errors_of_all, n_processes, of_all, of_first, rank
from .fingerprint import OF_MODULES, WITHOUT_INFLUENCE, digest, digest_of_module, text_of, text_of_data

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

RESULT = "result.safetensors"
STATE = "state.safetensors"
QUICK = 0.05  # seconds: what is written faster than this is written after each epoch
SHARE = 0.03  # what takes longer, as often as costs this share of the time


class Checkpoint:
    """The state of one fit in its folder, to be entered as a context, in which no other process has the folder.

    The state is written at the end of an epoch to a new file, which then takes the place of the old one: whenever the
    process ends, one of them is there, whole. Where writing takes long, some epochs are left out.

    The folder of a clone, such as a search makes, is a subfolder named by what the fit is.

    Parameters
    ----------
    embedder : BaseEmbedder
        With valid parameters, before the fit.
    goes_on : bool
        Whether the fit starts from the fitted network.

    Attributes
    ----------
    is_finished : bool
        Whether the folder has the result of the fit.
    n_epochs : int
        How many epochs an earlier process has trained.
    numbers, own_numbers : seeded
        What the training draws from torch's global generators, alike in all processes of a group, and in each its own
        way; to be set before the training.
    """

    def __init__(self, embedder, goes_on):
        self.folder = made_folder("checkpoint", embedder.checkpoint)
        self.is_keyed = getattr(embedder, "_is_clone", False)
        # What tells this fit from others. A RandomState is read before the fit draws from it.
        self.fit = {
            "embedder": type_name(type(embedder)),
            **{name: versions()[name] for name in ("skdml", "torch")},
            "device": embedder._find_device().type,
            "processes": n_processes(),
            **{
                name: text_of(value)
                for name, value in embedder.get_params(deep=False).items()
                if name not in WITHOUT_INFLUENCE
            },
        }
        if goes_on:
            fitted = [digest_of_module(module) for module in (embedder.network_, embedder.criterion_)]
            self.fit["start"] = f"the network after {embedder.n_iter_} epochs, {digest(*fitted)}"
        self.earlier = None
        self.lock = None
        self.duration = 0.0  # of writing, in seconds
        self.numbers = self.own_numbers = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.lock is not None:
            os.close(self.lock)

    def open(self, task, seed):
        """Find what an earlier process has left of this fit.

        Parameters
        ----------
        task : Task
        seed : int

        Returns
        -------
        seed : int
            Its seed, if there is a state.
        task : Task
            With its held-out rows: ``random_state=None`` draws others.

        Raises
        ------
        ValueError
            If the folder has the state of another fit, or a damaged file.
        OSError
            If the folder cannot be written to.
        """
        self.fit |= {
            "X": text_of_data(task.data),
            "y": f"{len(task.labels)} labels, {digest(repr(task.classes.tolist()), task.labels)}",
            "sample_weight": text_of(task.weights),
        }
        if self.is_keyed:
            self.folder /= digest(json.dumps(self.fit, sort_keys=True))
            self.folder.mkdir(exist_ok=True)
        self.drawn = {"seed": seed, "rows": (task.train_rows, task.valid_rows)}
        with errors_of_all():
            if rank() == 0:
                self._take()
                self.earlier = self._read()
                if self.earlier is None:
                    self._write(STATE, {})  # an error now rather than after the first epoch
                else:
                    self._compare(self.earlier["fit"])
        self.earlier = of_first(self.earlier)
        if self.earlier is not None:
            self.drawn = self.earlier["drawn"]
            train_rows, valid_rows = self.drawn["rows"]
            task = replace(task, train_rows=train_rows, valid_rows=valid_rows)
        return self.drawn["seed"], task

    def _take(self):
        """Wait until no other living process has the folder, and take it.

        Two fits that are the same may run at once, such as equal candidates of a search: the second one then finds the
        result of the first. The lock ends with the process. Where the file system has no locks, both train, and write
        the same states.
        """
        if fcntl is not None:
            self.lock = os.open(self.folder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(self.lock, fcntl.LOCK_EX)

    def _read(self):
        """Return the result or the state, or None."""
        device = torch.device(self.fit["device"])
        result = read_state(self.folder / RESULT, device)
        if result is None:
            return read_state(self.folder / STATE, device) or None
        self._remove_states()  # if the process was killed before it did
        return result

    def _compare(self, earlier):
        names = [name for name in {**earlier, **self.fit} if earlier.get(name) != self.fit.get(name)]
        if names:
            changes = "; ".join(
                f"{n} was {earlier.get(n, 'absent')}, and is {self.fit.get(n, 'absent')}" for n in names
            )
            raise ValueError(
                f"The folder checkpoint={str(self.folder)!r} belongs to another fit: {changes}. Pass the same "
                "parameters and data to go on with that fit, another folder for this one, or delete the folder."
            )

    @property
    def is_finished(self):
        return self.earlier is not None and "optimizer" not in self.earlier

    @property
    def n_epochs(self):
        return 0 if self.earlier is None else len(self.earlier["history"])

    def begin(self, net):
        """Note which arrays the callbacks had before the training: these are data, and no state."""
        values = [value for _, callback in _stateful(net) for value in vars(callback).values()]
        arrays = [value for value in values if isinstance(value, np.ndarray | torch.Tensor)]
        self.data = {id(value) for value in [*arrays, *net.given]}

    def resume(self, net):
        """Put the net into the state that was found, if there is one."""
        if self.earlier is None:
            return
        earlier, self.earlier = self.earlier, None
        net.history.extend({**epoch, "batches": []} for epoch in earlier["history"])
        restore_module(net.module_, earlier["network"])
        restore_module(net.criterion_, earlier["criterion"])
        net.optimizer_.load_state_dict(earlier["optimizer"])
        restore(net.recipe.batches, earlier["batches"])
        net.generator.set_state(earlier["generator"])
        self.numbers.states = earlier["numbers"]
        augmentation, self.own_numbers.states = earlier["own"][rank()]
        net.augment_generator.set_state(augmentation)
        net.spreads_ = earlier["spreads"]
        for name, callback in _stateful(net):
            restore(callback, earlier["callbacks"][name])

    def write(self, net):
        """Write the state at the end of an epoch, unless this would cost too much time.

        Raises
        ------
        TypeError
            If a part of it cannot be stored.
        OSError
            If the folder cannot be written to.
        """
        own = of_all((net.augment_generator.get_state(), self.own_numbers.states))
        if rank() > 0:
            return
        if self.duration > QUICK and time.monotonic() - self.written_at < self.duration / SHARE:
            return
        state = {
            "fit": self.fit,
            "drawn": self.drawn,
            "history": [_without_batches(epoch) for epoch in net.history],
            "network": module_state(net.module_),
            "criterion": module_state(net.criterion_),
            "optimizer": net.optimizer_.state_dict(),
            "batches": state_of(net.recipe.batches),
            "generator": net.generator.get_state(),
            "numbers": self.numbers.states,
            "own": own,
            "spreads": net.spreads_,
            "callbacks": {name: state_of(callback, self.data) for name, callback in _stateful(net)},
        }
        self._write(STATE, state)

    def restore_result(self, network, criterion):
        """Put the modules into their state after the fit; return skorch's history."""
        restore_module(network, self.earlier["network"])
        restore_module(criterion, self.earlier["criterion"])
        return self.earlier["history"]

    def finish(self, history, network, criterion):
        """Replace the state by the result: the trained modules and the history."""
        if rank() > 0:
            return
        result = {
            "fit": self.fit,
            "drawn": self.drawn,
            "history": [_without_batches(epoch) for epoch in history],
            "network": module_state(network),
            "criterion": module_state(criterion),
        }
        self._write(RESULT, result)
        self._remove_states()

    def _remove_states(self):
        """Remove the state, and what processes left that were killed while they wrote."""
        for path in (self.folder / STATE, *self.folder.glob(f".{STATE}-*"), *self.folder.glob(f".{RESULT}-*")):
            path.unlink(missing_ok=True)

    def _write(self, name, state):
        """Write a state or the result."""
        start = time.monotonic()
        try:
            write_state(self.folder / name, state)
        except TypeError as error:
            raise TypeError(
                f"The state of the training cannot be stored in checkpoint={str(self.folder)!r}: {error}. Modules and "
                "callbacks may hold tensors, arrays, numbers, strings and containers of these, and the history may "
                "record them. Set checkpoint=None, or change the module or callback."
            ) from error
        except OSError as error:
            message = f"{error.strerror}. The folder checkpoint={str(self.folder)!r} cannot be written to"
            raise OSError(error.errno, message) from error
        self.written_at = time.monotonic()
        self.duration = self.written_at - start


def _stateful(net):
    """Return the names and callbacks that carry something from epoch to epoch: the user's, and early stopping."""
    return [
        (name, callback)
        for name, callback in net.callbacks_
        if isinstance(callback, BestWeights) or not type(callback).__module__.startswith("skdml.")
    ]


def _without_batches(epoch):
    return {name: value for name, value in epoch.items() if name != "batches"}


def state_of(thing, data=()):
    """Return what an object carries, as data.

    What has the methods ``state_dict`` and ``load_state_dict`` says it itself. Otherwise these are its attributes that
    are data, and the state of those that have these methods, such as torch's schedulers. Other attributes, such as open
    files, are what the object makes of them when the training begins again.

    Parameters
    ----------
    thing : object
    data : collection of int
        The ids of values that are left out.
    """
    return {"state": thing.state_dict()} if _has_state(thing) else _attributes(thing, data)


def _has_state(thing):
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def restore(thing, state):
    """Restore an object from `state_of`; its lists and dicts remain the same objects, which others may hold, too."""
    if "state" in state:
        thing.load_state_dict(state["state"])
    else:
        _restore_attributes(thing, state)


def _attributes(thing, data=(), skipped=()):
    plain, parts = {}, {}
    for name, value in vars(thing).items():
        if id(value) in data or name in skipped or isinstance(value, type):
            continue
        if _has_state(value):
            parts[name] = value.state_dict()
        elif can_pack(value):
            plain[name] = value
    return {"plain": plain, "parts": parts}


def _restore_attributes(thing, state):
    for name, value in state["plain"].items():
        now = vars(thing).get(name)
        if type(now) is type(value) and isinstance(value, list | dict | set):
            now.clear()
            (now.extend if isinstance(value, list) else now.update)(value)
        else:
            vars(thing)[name] = value
    for name, value in state["parts"].items():
        getattr(thing, name).load_state_dict(value)


def module_state(module):
    """Return the tensors of a module, which of its parameters are frozen, and what parts other than torch's carry."""
    return {
        "tensors": module.state_dict(),
        "buffers": [part._buffers[name] for part, name in _other_buffers(module)],
        "frozen": [not parameter.requires_grad for parameter in module.parameters()],
        "parts": [_attributes(part, skipped=OF_MODULES) for part in _other_parts(module)],
    }


@torch.no_grad()
def restore_module(module, state):
    """Restore a module from `module_state`."""
    module.load_state_dict(state["tensors"])
    for (part, name), value in zip(_other_buffers(module), state["buffers"], strict=True):
        part._buffers[name] = value.to(part._buffers[name].device)
    for parameter, is_frozen in zip(module.parameters(), state["frozen"], strict=True):
        parameter.requires_grad_(not is_frozen)
    for part, attributes in zip(_other_parts(module), state["parts"], strict=True):
        _restore_attributes(part, attributes)


def _other_buffers(module):
    """Return (part, name) of the buffers that a state dict leaves out."""
    return [
        (part, name)
        for part in module.modules()
        for name in sorted(part._non_persistent_buffers_set)
        if part._buffers.get(name) is not None
    ]


def _other_parts(module):
    return [part for part in module.modules() if not type(part).__module__.startswith("torch.nn.")]
