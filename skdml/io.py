"""Support for other packages that read and write embedders."""

import inspect

import torch
from sklearn.base import BaseEstimator

from . import _methods, metrics, model_selection
from .verification import PairVerifier

__all__ = ["TRUSTED_TYPES"]


def _classes(module):
    return (value for name in module.__all__ if inspect.isclass(value := getattr(module, name)))


#: Names of the types that fitted embedders consist of, for ``skops.io.load(file, trusted=TRUSTED_TYPES)``: the
#: estimators, scorers and splitters of skdml, ``torch.device`` and the optimizers of torch. Your own modules and
#: functions are not among them.
TRUSTED_TYPES = sorted(
    f"{cls.__module__}.{cls.__qualname__}"
    for cls in {
        *(cls for cls in _classes(_methods) if issubclass(cls, BaseEstimator)),
        PairVerifier,
        *_classes(metrics),
        *_classes(model_selection),
        torch.device,
        *(
            cls
            for cls in vars(torch.optim).values()
            if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        ),
    }
)
