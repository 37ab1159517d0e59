"""What our own optimizers share: the closure, and the walk over tensors that are updated one by one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What the closure, which evaluates the model anew, returns; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class PerTensorOptimizer(Optimizer):
    """An optimizer whose subclass says how one tensor is updated."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does, which evaluates the model anew."""
        loss = evaluated(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__}: a sparse gradient is not supported")
                self._update(param, param.grad, group)
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Changes `param` in place."""
        raise NotImplementedError
