"""NovoGrad: Adam with one second moment per tensor (Ginsburg et al. 2019, arXiv 1905.11286).

    v = beta2 v + (1 - beta2) |g|^2          (v = |g|^2 at first)
    m = beta1 m + (g / (sqrt(v) + eps) + weight_decay w)
    w = w - lr m

The state of a parameter (step, exp_avg, exp_avg_sq, max_exp_avg_sq) has NVIDIA's names, so its checkpoints load.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nemo_expmgr.optim.per_tensor import PerTensorOptimizer


class Novograd(PerTensorOptimizer):
    """NovoGrad.

    Args:
        params: tensors or groups.
        lr: learning rate.
        betas: decay of the first moment and of the per-tensor second moment, both in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled from the second moment, not from the first.
        grad_averaging: weighs the new term of the first moment by 1 - beta1.
        amsgrad: divides by the largest second moment seen.
        luc: bounds the step of a tensor by luc_trust |w| / (|m| + luc_eps), and by lr.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        luc: bool = False,
        luc_trust: float = 1e-3,
        luc_eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if value < 0:
                raise ValueError(f"{name}: {value} must not be negative")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: {betas} must be two numbers in [0, 1)")
        self.luc, self.luc_trust, self.luc_eps = luc, luc_trust, luc_eps
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "amsgrad": amsgrad,
        }
        super().__init__(params, defaults)

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self._state(param, group["amsgrad"])
        beta1, beta2 = group["betas"]
        state["step"] += 1
        _second_moment(state, grad, beta2)
        second = state["exp_avg_sq"]
        if group["amsgrad"]:
            second = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
        term = grad / (second.sqrt() + group["eps"])
        if group["weight_decay"] != 0:
            term.add_(param, alpha=group["weight_decay"])
        if group["grad_averaging"]:
            term.mul_(1 - beta1)
        momentum = state["exp_avg"].mul_(beta1).add_(term)
        param.sub_(momentum * self._rate(param, momentum, group["lr"]))

    def _rate(self, param: Tensor, momentum: Tensor, lr: float) -> Tensor | float:
        if not self.luc:
            return lr
        return (self.luc_trust * param.norm() / (momentum.norm() + self.luc_eps)).clamp(max=lr)

    def _state(self, param: Tensor, amsgrad: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros([], device=param.device)
            if amsgrad:
                state["max_exp_avg_sq"] = torch.zeros([], device=param.device)
        return state


def _second_moment(state: dict[str, Any], grad: Tensor, beta2: float) -> None:
    """The running |g|^2, which starts at the first value that is not zero. No value leaves the device."""
    average, norm = state["exp_avg_sq"], grad.norm().pow(2)
    average.copy_(torch.where(average == 0, norm, average * beta2 + norm * (1 - beta2)))
