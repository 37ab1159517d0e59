"""Whether a module is called as its class says, so that its work may be done without calling it."""

from __future__ import annotations

from torch import nn


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is what its class does: no adapter, hook or quantisation is between."""
    if type(module) is not kind or "forward" in vars(module):
        return False
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return not any(hooks) and not nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
