"""torch's global generators: seeded inside a block and then put back, by one thread at a time."""

from contextlib import ContextDecorator, nullcontext

import torch
from torch import nn

from .. import _ambient

NO_DRAWS = nullcontext()  # in place of `seeded` where nothing draws

# Layers of torch that may draw, also as one of their settings; all its other layers do not.
_DRAWING = (
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.MultiheadAttention,
    nn.RNNBase,
)


class seeded(ContextDecorator):
    """A sequence of random numbers that takes the place of those of torch's global generators inside the block.

    It begins at the seed, and goes on in the next block of the same object. After each block the generators are as they
    were before. They belong to the process: while one thread is in a block, the others wait before theirs.

    Parameters
    ----------
    seed : int
    device : torch.device
        Its generator takes part, next to that of the CPU.
    """

    def __init__(self, seed, device):
        self.device = device
        devices = dict.fromkeys((torch.device("cpu"), device))
        self.states = [torch.Generator(d).manual_seed(seed).get_state() for d in devices]
        self.depth = 0

    def __enter__(self):
        _ambient.LOCK.acquire()
        self.depth += 1
        if self.depth == 1:
            self._swap()
        return self

    def __exit__(self, *error):
        self.depth -= 1
        if self.depth == 0:
            self._swap()
        _ambient.LOCK.release()

    def _swap(self):
        states = generator_states(self.device)
        set_generator_states(self.states, self.device)
        self.states = states

    def generator(self):
        """Return a generator of the device that goes on where the last block has ended."""
        generator = torch.Generator(self.device)
        generator.set_state(self.states[-1])
        return generator


def generator_states(device):
    """Return the states of torch's generators of the CPU and the device."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(getattr(torch, device.type).get_rng_state(*[device] if device.type == "cuda" else []))
    return states


def set_generator_states(states, device):
    """Restore the states from `generator_states`."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        getattr(torch, device.type).set_rng_state(states[1], *[device] if device.type == "cuda" else [])


def may_draw(module):
    """Return whether a pass through the module may draw from torch's global generators.

    A layer that skdml does not know may, and so may one that holds a function.
    """
    return any(not _is_known(part) for part in module.modules())


def _is_known(part):
    if any(map(callable, vars(part).values())) or part._forward_hooks or part._forward_pre_hooks:
        return False
    name = type(part).__module__
    return name.startswith("skdml.") or (name.startswith("torch.nn.modules.") and not isinstance(part, _DRAWING))
