"""What other packages need to read and write embedders."""

import inspect

import torch

from ._base import BaseEmbedder

__all__ = ["TRUSTED_TYPES"]


def _embedders(base=BaseEmbedder):
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from _embedders(cls)


#: Names of the types that fitted embedders consist of, for ``skops.io.load(file, trusted=TRUSTED_TYPES)``: the
#: embedders, ``torch.device`` and the optimizers of torch. Modules and functions of one's own are not among them.
TRUSTED_TYPES = sorted(
    f"{cls.__module__}.{cls.__qualname__}"
    for cls in {
        *_embedders(),
        torch.device,
        *(
            cls
            for cls in vars(torch.optim).values()
            if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        ),
    }
)
