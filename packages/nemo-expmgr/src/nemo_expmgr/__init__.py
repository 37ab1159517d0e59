"""A Lightning run for NeMo models: base model, optimizers, schedules, experiment manager."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_expmgr.config import ExpManagerConfig
    from nemo_expmgr.experiment import exp_manager
    from nemo_expmgr.model import NemoModel
    from nemo_expmgr.optim import build_optimizer, build_schedule, register_optimizer, register_scheduler
    from nemo_expmgr.pretrained import PretrainedModelInfo

__all__ = [
    "ExpManagerConfig",
    "NemoModel",
    "PretrainedModelInfo",
    "build_optimizer",
    "build_schedule",
    "exp_manager",
    "register_optimizer",
    "register_scheduler",
]

_HOME = {
    "ExpManagerConfig": "config",
    "NemoModel": "model",
    "PretrainedModelInfo": "pretrained",
    "build_optimizer": "optim",
    "build_schedule": "optim",
    "exp_manager": "experiment",
    "register_optimizer": "optim",
    "register_scheduler": "optim",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: Lightning takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
