"""From a model's `optim` section to its optimizer and schedule, over all parameters or over groups of modules:

optim_param_groups:
  encoder: {lr: 1e-4}        # an attribute of the model, and what differs there from `optim`
optim: {name: adamw, lr: 1e-3, sched: {name: CosineAnnealing, warmup_steps: 1000}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from nemo_config import ConfigError, plain
from nemo_expmgr.optim import build_optimizer, build_schedule, schedule_steps

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from nemo_expmgr.trainable import TrainableModule

_PATH = "model.optim"


def make_optimizer(model: TrainableModule, section: Mapping[str, Any]) -> tuple[Optimizer, dict[str, Any] | None]:
    """The optimizer and Lightning's schedule dict; None for the schedule while the number of steps is not known.

    The number of steps follows from the trainer and the data when training starts; before, from the config alone.
    """
    given = plain(section, _PATH)
    schedule_section = given.get("sched")
    optimizer = build_optimizer(given, model.parameter_groups(), _PATH)
    trainer = model._trainer
    steps = schedule_steps(_once_fitting(trainer), schedule_section)
    if schedule_section is None or (steps is None and not _is_fitting(trainer)):
        return optimizer, None
    return optimizer, build_schedule(schedule_section, optimizer, max_steps=steps, path=f"{_PATH}.sched")


def _is_fitting(trainer: Trainer | None) -> bool:
    from lightning.pytorch.trainer.states import TrainerFn

    return trainer is not None and trainer.state.fn == TrainerFn.FITTING


def _once_fitting(trainer: Trainer | None) -> Trainer | None:
    """The trainer if it can say how many steps it makes: a fixed number, or data that it has been given."""
    return trainer if trainer is not None and (trainer.max_steps >= 0 or _is_fitting(trainer)) else None


def split_parameters(model: nn.Module, groups: Mapping[str, Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Parameter groups as torch takes them: what no group names comes first, then one group for each module named.

    Raises:
        ConfigError: the model has no module of that name, or two groups share parameters.
    """
    path = "model.optim_param_groups"
    taken: set[int] = set()
    named = []
    for name, options in (groups or {}).items():
        module = getattr(model, name.split(".")[0], None)
        for part in name.split(".")[1:]:
            module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{path}.{name}", dict(options), f"names no module of {type(model).__name__}")
        parameters = list(module.parameters())
        if any(id(parameter) in taken for parameter in parameters):
            raise ConfigError(f"{path}.{name}", dict(options), "shares parameters with another group")
        taken.update(map(id, parameters))
        named.append({"params": parameters, **options})
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return [{"params": rest}, *named] if rest else named
