"""Adan: Nesterov momentum with a moment of the gradient's change (Xie et al. 2022, arXiv 2208.06677).

    d = g - g_before                       (zero at first)
    m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) d
    n = beta3 n + (1 - beta3) (g + beta2 d)^2
    w = (w - lr (m / c1 + beta2 v / c2) / (sqrt(n / c3) + eps)) / (1 + lr weight_decay),     ci = 1 - betai^step

The states (exp_avg, exp_avg_diff, exp_avg_sq, neg_pre_grad) and the group's `step` have NVIDIA's names.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nemo_expmgr.optim.per_tensor import evaluated


class Adan(Optimizer):
    """Adan.

    Args:
        params: tensors or groups.
        lr: learning rate.
        betas: decays of the gradient, of its change, and of the second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled.
        max_grad_norm: bounds the norm of all gradients together; 0 for no bound.
        no_prox: multiplies by 1 - lr weight_decay first, in place of dividing by 1 + lr weight_decay at the end.
        foreach: updates all tensors of a group together: faster, with more memory.
        fused: not offered; it needs a CUDA extension.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        foreach: bool = True,
        fused: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("max_grad_norm", max_grad_norm)):
            if value < 0:
                raise ValueError(f"{name}: {value} must not be negative")
        if len(betas) != 3 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: {betas} must be three numbers in [0, 1)")
        if fused:
            raise ValueError("fused: True is not offered; use foreach")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "no_prox": no_prox,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does, which evaluates the model anew."""
        loss = evaluated(closure)
        clip = self._clip_factor()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            chunks = [params] if group["foreach"] else [[param] for param in params]
            for chunk in chunks:
                if chunk:
                    self._update(chunk, group, clip)
        return loss

    def _clip_factor(self) -> Tensor | float:
        """What every gradient is multiplied by, so that the norm of all is at most max_grad_norm."""
        if self.defaults["max_grad_norm"] <= 0:
            return 1.0
        grads = [param.grad for group in self.param_groups for param in group["params"] if param.grad is not None]
        norm = torch.stack([grad.norm().to(grads[0].device) for grad in grads]).norm()
        return (self.defaults["max_grad_norm"] / (norm + self.defaults["eps"])).clamp(max=1.0)

    def _update(self, params: list[Tensor], group: dict[str, Any], clip: Tensor | float) -> None:
        beta1, beta2, beta3 = group["betas"]
        step, lr, decay = group["step"], group["lr"], group["lr"] * group["weight_decay"]
        grads = [param.grad * clip for param in params if param.grad is not None]
        states = [self._state(param, grad, step) for param, grad in zip(params, grads, strict=True)]
        change = [state["neg_pre_grad"] for state in states]  # holds -g_before, then the change
        first, first_change, second = (
            [state[n] for state in states] for n in ("exp_avg", "exp_avg_diff", "exp_avg_sq")
        )

        torch._foreach_add_(change, grads)
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_lerp_(first_change, change, 1 - beta2)
        ahead = torch._foreach_add(grads, torch._foreach_mul(change, beta2))
        torch._foreach_mul_(second, beta3)
        torch._foreach_addcmul_(second, ahead, ahead, value=1 - beta3)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, math.sqrt(1 - beta3**step))
        torch._foreach_add_(denominator, group["eps"])

        if group["no_prox"]:
            torch._foreach_mul_(params, 1 - decay)
        torch._foreach_addcdiv_(params, first, denominator, value=-lr / (1 - beta1**step))
        torch._foreach_addcdiv_(params, first_change, denominator, value=-lr * beta2 / (1 - beta2**step))
        if not group["no_prox"]:
            torch._foreach_div_(params, 1 + decay)
        torch._foreach_copy_(change, torch._foreach_neg(grads))

    def _state(self, param: Tensor, grad: Tensor, step: int) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        for name in ("exp_avg", "exp_avg_sq", "exp_avg_diff"):
            if name not in state:
                state[name] = torch.zeros_like(param)
        if "neg_pre_grad" not in state or step == 1:
            state["neg_pre_grad"] = -grad
        return state
