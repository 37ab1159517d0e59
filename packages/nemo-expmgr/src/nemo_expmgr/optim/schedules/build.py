"""From the `sched` section of a config to what Lightning's configure_optimizers returns.

    sched:
      name: CosineAnnealing
      warmup_steps: 2000
      min_lr: 1e-6

Keys of the older layout (`args: {name: auto, params: {...}}`) are read too.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer, lr_scheduler

from nemo_config import check_keys, plain
from nemo_expmgr.optim.arguments import construct, own_arguments, unknown_name
from nemo_expmgr.optim.schedules import schedulers
from nemo_expmgr.optim.schedules.schedulers import FormulaScheduler

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# Keys of the section that are not the scheduler's own; the t_ ones are what NVIDIA's ModelPT adds at run time.
_SECTION_KEYS = frozenset({
    "name", "args", "monitor", "reduce_on_plateau", "iters_per_batch", "t_max_epochs", "t_accumulate_grad_batches",
    "t_limit_train_batches", "t_num_workers",
})  # fmt: skip
_EPOCH_SCHEDULERS = (lr_scheduler.ExponentialLR, lr_scheduler.ReduceLROnPlateau)


@dataclass(frozen=True)
class _Entry:
    scheduler: type[Any]
    keys: frozenset[str]
    ignored: frozenset[str] = frozenset()


def _torch_entry(scheduler: type[Any]) -> _Entry:
    """torch's own; `verbose`, which it no longer takes, and the run's max_steps are left out."""
    keys = frozenset(inspect.signature(scheduler).parameters) - {"optimizer"}
    return _Entry(scheduler, keys, frozenset({"verbose", "max_steps", "last_epoch"}) - keys)


def _formula_entry(scheduler: type[FormulaScheduler]) -> _Entry:
    return _Entry(scheduler, scheduler.keys | {"last_epoch"})


_SCHEDULERS: dict[str, _Entry] = {
    **{
        scheduler.__name__: _formula_entry(scheduler)
        for scheduler in (
            schedulers.WarmupPolicy,
            schedulers.WarmupHoldPolicy,
            schedulers.SquareAnnealing,
            schedulers.SquareRootAnnealing,
            schedulers.CosineAnnealing,
            schedulers.NoamAnnealing,
            schedulers.NoamHoldAnnealing,
            schedulers.WarmupAnnealing,
            schedulers.InverseSquareRootAnnealing,
            schedulers.T5InverseSquareRootAnnealing,
            schedulers.PolynomialDecayAnnealing,
            schedulers.PolynomialHoldDecayAnnealing,
            schedulers.WarmupHoldAnnealLinear,
            schedulers.WarmupHoldAnnealOneMinusSquareRoot,
        )
    },
    "StepLR": _torch_entry(lr_scheduler.StepLR),
    "ExponentialLR": _torch_entry(lr_scheduler.ExponentialLR),
    "ReduceLROnPlateau": _torch_entry(lr_scheduler.ReduceLROnPlateau),
    "CyclicLR": _torch_entry(lr_scheduler.CyclicLR),
}


def register_scheduler(name: str, scheduler: type[Any], schema: type[Any] | None = None) -> None:
    """Makes `sched.name: <name>` build your class, called as `scheduler(optimizer, **keys)`.

    Args:
        name: as written in configs; a name in use is refused.
        scheduler: an LRScheduler; where its constructor has `max_steps`, it gets the run's.
        schema: a dataclass whose fields are the valid keys; the constructor's parameters where None.

    Raises:
        ValueError: the name is taken.
    """
    if (taken := _entry_of(name)) is not None:
        raise ValueError(f"register_scheduler: the name {name!r} is taken by {taken.scheduler.__name__}")
    keys = frozenset(field.name for field in fields(schema)) if schema else _torch_entry(scheduler).keys
    _SCHEDULERS[name] = _Entry(scheduler, keys, frozenset({"max_steps"}) - keys)


def available_schedulers() -> tuple[str, ...]:
    """Every name that `sched.name` may have."""
    return tuple(_SCHEDULERS)


def build_schedule(
    section: Mapping[str, Any] | None,
    optimizer: Optimizer,
    *,
    max_steps: float | None = None,
    path: str = "model.optim.sched",
) -> dict[str, Any] | None:
    """Builds the scheduler of a `sched` section.

    Args:
        section: the section; None for a constant rate.
        optimizer: what the schedule drives.
        max_steps: optimizer steps of the run. Where None (or infinite, or negative), the section's own `max_steps`
            is used; `schedule_steps` says which of the two NVIDIA's toolkit would take.
        path: dotted path of the section, for messages.

    Returns:
        Lightning's dict: scheduler, interval, frequency, monitor, reduce_on_plateau; None without a section.

    Raises:
        ConfigError: an unknown name or key, a value that does not fit, a missing number of steps.
    """
    if section is None:
        return None
    given = plain(section, path)
    entry = _entry(given.get("name"), path)
    own = own_arguments(given, (_SECTION_KEYS - entry.keys) | entry.ignored)
    known = check_keys(own, entry.keys, path, ignored=entry.ignored)
    if "max_steps" in entry.keys:
        steps = _usable_steps(max_steps)
        known["max_steps"] = _usable_steps(known.get("max_steps")) if steps is None else steps
    scheduler = construct(entry.scheduler, optimizer, known, path)
    return {
        "scheduler": scheduler,
        "interval": "epoch" if isinstance(scheduler, _EPOCH_SCHEDULERS) else "step",
        "frequency": 1,
        "monitor": given.get("monitor") or "loss",
        "reduce_on_plateau": isinstance(scheduler, lr_scheduler.ReduceLROnPlateau),
    }


def schedule_steps(trainer: "Trainer | None", section: Mapping[str, Any] | None) -> int | None:
    """The number of steps that a schedule covers, chosen in NVIDIA's order.

    `trainer.max_steps` where set, else the section's `max_steps`, else what max_epochs and the data loader amount to
    (`trainer.estimated_stepping_batches`, which counts accumulation, limits and devices). None where nothing says.
    """
    if trainer is not None and trainer.max_steps >= 0:
        return trainer.max_steps
    typed = _usable_steps(plain(section).get("max_steps")) if section is not None else None
    if typed is not None or trainer is None:
        return typed
    return _usable_steps(trainer.estimated_stepping_batches)


def _usable_steps(steps: Any) -> int | None:
    """None for what stands for "no end": None, a negative number, infinity."""
    return None if steps is None or steps < 0 or math.isinf(steps) else int(steps)


def _entry(name: Any, path: str) -> _Entry:
    entry = _entry_of(str(name))
    if entry is None:
        raise unknown_name(name, _SCHEDULERS, path, "schedule")
    return entry


def _entry_of(name: str) -> _Entry | None:
    return {known.lower(): entry for known, entry in _SCHEDULERS.items()}.get(name.lower())
