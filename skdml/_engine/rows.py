"""Steps of an optimizer that touch only the rows of a parameter with a gradient.

torch's Adam and AdamW take no sparse gradients, and its SGD none with weight decay.
"""

import torch


class _RowSteps:
    """An optimizer of torch that also takes sparse gradients of rows.

    A row whose gradient is sparse is treated as a parameter of its own: weight decay, moments and the number of steps
    are those of the steps in which it had a gradient. Other parameters are left to torch.
    """

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    grad = parameter.grad.coalesce()
                    parameter.grad = None
                    self._step_rows(parameter, grad.indices()[0], grad.values(), group)
        return super().step(closure)

    @torch.no_grad()
    def _step_rows(self, parameter, rows, grad, group):
        """Take the step of rows with distinct indices (c,) and gradients (c, ...)."""
        x, lr = parameter[rows], group["lr"]
        if isinstance(self, torch.optim.AdamW):
            x = x * (1 - lr * group["weight_decay"])
        else:
            grad = grad.add(x, alpha=group["weight_decay"])
        change = grad if isinstance(self, torch.optim.SGD) else self._adam(parameter, rows, grad, group)
        parameter.index_copy_(0, rows, x.sub_(change, alpha=lr))

    def _adam(self, parameter, rows, grad, group):
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        step = state["step"][rows] + 1
        mean = state["exp_avg"][rows].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        for name, value in (("step", step), ("exp_avg", mean), ("exp_avg_sq", square)):
            state[name].index_copy_(0, rows, value)
        step = step.double().view(-1, *[1] * (grad.ndim - 1))  # float32 has few digits of 1 - beta2
        correction, correction_sq = ((1 - beta**step).to(grad.dtype) for beta in (beta1, beta2))
        return (mean / correction).div_((square / correction_sq).sqrt_().add_(group["eps"]))


class RowAdamW(_RowSteps, torch.optim.AdamW):
    """AdamW."""


class RowAdam(_RowSteps, torch.optim.Adam):
    """Adam."""


class RowSGD(_RowSteps, torch.optim.SGD):
    """SGD without momentum."""


ROW_OPTIMIZERS = {"adamw": RowAdamW, "adam": RowAdam, "sgd": RowSGD}


def samples_classes(loss):
    """Return whether training steps of the loss see only a share of the classes."""
    return any(getattr(module, "class_sample_rate", 1) < 1 for module in loss.modules())


def check_sampling(embedder):
    """Raise a ValueError if the embedder has other parameters that do not go with a share of the classes."""
    name = type(embedder).__name__
    if not isinstance(embedder.optimizer, str):
        raise ValueError(
            f"class_sample_rate below 1 gives sparse gradients, for which {name} has steps of its own, not those of "
            f"optimizer={embedder.optimizer!r}. Set optimizer to one of {sorted(ROW_OPTIMIZERS)}, or "
            "class_sample_rate=1.0."
        )
    if embedder.nested_components is not None:
        raise ValueError(
            f"{name} cannot cut the embedding (nested_components={embedder.nested_components!r}) and see only a share "
            "of the classes. Set nested_components=None or class_sample_rate=1.0."
        )
