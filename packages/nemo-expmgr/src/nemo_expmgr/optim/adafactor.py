"""Adafactor: second moments of matrices kept as a row and a column (Shazeer & Stern 2018, arXiv 1804.04235).

    R = beta2 R + (1 - beta2) mean_columns(g^2 + eps1)      C likewise over rows, beta2 = 1 - step^decay_rate
    u = g / sqrt(R C / mean(R))                             (a vector keeps its whole second moment)
    u = u / max(1, RMS(u) / clip_threshold)
    w = w - rate u         rate = lr or, with relative_step, min(min_step, 1 / sqrt(step)); with scale_parameter
                           times max(eps2, RMS(w))

torch.optim.Adafactor has other keys and another decay, so this one is our own.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nemo_expmgr.optim.per_tensor import PerTensorOptimizer


class Adafactor(PerTensorOptimizer):
    """Adafactor.

    Args:
        params: tensors or groups; half-precision ones are updated in float32.
        lr: learning rate; None (and only None) with relative_step.
        eps: added to the squared gradient; least RMS of a parameter.
        clip_threshold: largest RMS of an update.
        decay_rate: exponent of the step in beta2, negative.
        beta1: decay of a first moment of the updates; None for none.
        weight_decay: decoupled.
        scale_parameter: multiplies the rate by the RMS of the parameter.
        relative_step: the rate follows from the step.
        warmup_init: with relative_step, starts at 1e-6 step.
        min_step: with relative_step, the largest rate.

    Raises:
        ValueError: options that exclude each other or are outside their range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        min_step: float = 1e-2,
    ) -> None:
        if lr is not None and relative_step:
            raise ValueError(f"lr: {lr} and relative_step: true exclude each other")
        if lr is None and not relative_step:
            raise ValueError("lr: None needs relative_step: true")
        if warmup_init and not relative_step:
            raise ValueError("warmup_init: True needs relative_step: true")
        if decay_rate >= 0:
            raise ValueError(f"decay_rate: {decay_rate} must be negative")
        self.min_step = min_step
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
            "min_step": min_step,
        }
        super().__init__(params, defaults)

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if param.dtype in (torch.float16, torch.bfloat16):
            grad = grad.float()
        weight = param.to(grad.dtype)
        state = self._state(param, grad, group["beta1"] is not None)
        state["step"] += 1
        state["RMS"] = _rms(weight)
        rate = self._rate(group, state)
        update = grad * _inverse_root(state, grad, group)
        update.div_((_rms(update) / group["clip_threshold"]).clamp_(min=1.0)).mul_(rate)
        if group["beta1"] is not None:
            update = state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
        if group["weight_decay"] != 0:
            weight = weight - weight * (group["weight_decay"] * rate)
        param.copy_(weight - update)

    def _rate(self, group: dict[str, Any], state: dict[str, Any]) -> float | Tensor:
        """This tensor's rate. With relative_step it is shown in group["lr"] too, for the logs."""
        rate: float | Tensor = group["lr"]
        if group["relative_step"]:
            highest = 1e-6 * state["step"] if group["warmup_init"] else self.min_step
            rate = min(highest, 1.0 / math.sqrt(state["step"]))
        if group["scale_parameter"]:
            rate = rate * state["RMS"].clamp(min=group["eps"][1])
        if group["relative_step"]:
            group["lr"] = float(rate)
        return rate

    def _state(self, param: Tensor, grad: Tensor, first_moment: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        if state:
            for name in ("exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"):
                if name in state:  # a restored state comes in the parameter's precision
                    state[name] = state[name].to(grad)
            return state
        state["step"] = 0
        if first_moment:
            state["exp_avg"] = torch.zeros_like(grad)
        if grad.dim() >= 2:
            state["exp_avg_sq_row"] = grad.new_zeros(grad.shape[:-1])
            state["exp_avg_sq_col"] = grad.new_zeros(grad.shape[:-2] + grad.shape[-1:])
        else:
            state["exp_avg_sq"] = torch.zeros_like(grad)
        return state


def _inverse_root(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
    """Updates the second moment and returns 1 / sqrt of it, in the shape of the gradient."""
    beta2 = 1.0 - math.pow(state["step"], group["decay_rate"])
    square = grad.square() + group["eps"][0]
    if "exp_avg_sq" in state:
        return state["exp_avg_sq"].lerp_(square, 1.0 - beta2).rsqrt()
    row = state["exp_avg_sq_row"].lerp_(square.mean(dim=-1), 1.0 - beta2)
    column = state["exp_avg_sq_col"].lerp_(square.mean(dim=-2), 1.0 - beta2)
    row_factor = (row / row.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1)
    return row_factor * column.rsqrt().unsqueeze(-2)


def _rms(x: Tensor) -> Tensor:
    return x.norm(2) / x.numel() ** 0.5
