"""Seeding of torch's global generators inside a block, after which their states are restored."""

from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def seeded(seed, device):
    """Seed torch's generators of the CPU and the device inside the block, and restore their states after it."""
    states = generator_states(device)
    try:
        # torch.manual_seed would also seed every GPU of the machine.
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                getattr(torch, device.type).manual_seed(seed)
        yield
    finally:
        set_generator_states(states, device)


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
