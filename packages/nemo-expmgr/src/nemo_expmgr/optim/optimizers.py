"""From the `optim` section of a config to an optimizer.

    optim:
      name: adamw
      lr: 1e-3
      betas: [0.9, 0.98]
      weight_decay: 1e-3
      sched: {...}            # nemo_expmgr.optim.schedules

`_target_: torch.optim.AdamW` in the place of `name` works for any class in the registry of nemo_config.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import optim
from torch.optim import Optimizer

from nemo_config import ConfigError, check_keys, instantiate, plain
from nemo_expmgr.optim.adafactor import Adafactor
from nemo_expmgr.optim.adan import Adan
from nemo_expmgr.optim.arguments import construct, number, own_arguments, unknown_name
from nemo_expmgr.optim.novograd import Novograd

_SECTION_KEYS = frozenset({"name", "sched", "args", "cls"})  # not the optimizer's own
_DEFAULT_NAME = "adam"


@dataclass(frozen=True)
class _Entry:
    optimizer: type[Optimizer]
    keys: frozenset[str]


def _constructor_keys(optimizer: type[Any]) -> frozenset[str]:
    return frozenset(inspect.signature(optimizer).parameters) - {"params"}


_OPTIMIZERS: dict[str, _Entry] = {
    name: _Entry(optimizer, _constructor_keys(optimizer))
    for name, optimizer in {
        "sgd": optim.SGD,
        "adam": optim.Adam,
        "adamw": optim.AdamW,
        "adadelta": optim.Adadelta,
        "adamax": optim.Adamax,
        "adagrad": optim.Adagrad,
        "rmsprop": optim.RMSprop,
        "rprop": optim.Rprop,
        "radam": optim.RAdam,
        "novograd": Novograd,
        "adafactor": Adafactor,
        "adan": Adan,
    }.items()
}


def register_optimizer(name: str, optimizer: type[Optimizer], schema: type[Any] | None = None) -> None:
    """Makes `optim.name: <name>` build your class, called as `optimizer(params, **keys)`.

    Args:
        name: as written in configs, in any case; a name in use is refused.
        optimizer: the class.
        schema: a dataclass whose fields are the valid keys; the constructor's parameters where None.

    Raises:
        ValueError: the name is taken.
    """
    if name.lower() in _OPTIMIZERS:
        taken = _OPTIMIZERS[name.lower()].optimizer.__name__
        raise ValueError(f"register_optimizer: the name {name!r} is taken by {taken}")
    keys = frozenset(field.name for field in fields(schema)) if schema else _constructor_keys(optimizer)
    _OPTIMIZERS[name.lower()] = _Entry(optimizer, keys)


def available_optimizers() -> tuple[str, ...]:
    """Every name that `optim.name` may have."""
    return tuple(_OPTIMIZERS)


def build_optimizer(section: Mapping[str, Any], params: Iterable[Any], path: str = "model.optim") -> Optimizer:
    """Builds the optimizer of an `optim` section; `adam` where it has neither `name` nor `_target_`.

    Args:
        section: the section; its `sched` is left to `build_schedule`.
        params: tensors, or dicts of parameter groups, as torch takes them.
        path: dotted path of the section, for messages.

    Raises:
        ConfigError: an unknown name or key, or a value that the optimizer refuses.
    """
    given = plain(section, path)
    if given.get("_target_"):
        return _from_target(given, params, path)
    name = given.get("name") or _DEFAULT_NAME
    entry = _OPTIMIZERS.get(str(name).lower())
    if entry is None:
        raise unknown_name(name, _OPTIMIZERS, path, "optimizer")
    known = check_keys(own_arguments(given, _SECTION_KEYS), entry.keys, path)
    built: Optimizer = construct(entry.optimizer, params, _with_rate(known, path), path)
    return built


def _from_target(given: dict[str, Any], params: Iterable[Any], path: str) -> Optimizer:
    options = _with_rate(own_arguments(given, _SECTION_KEYS), path)
    options = {key: number(value, f"{path}.{key}") for key, value in options.items()}
    built = instantiate(options, params, path=path)
    if not isinstance(built, Optimizer):
        raise ConfigError(f"{path}._target_", given["_target_"], "is no optimizer")
    return built


def _with_rate(options: dict[str, Any], path: str) -> dict[str, Any]:
    """The options with a numeric lr; `lr: null` leaves the rate to the optimizer."""
    if options.get("lr", 0) is None:
        return {key: value for key, value in options.items() if key != "lr"}
    if isinstance(number(options.get("lr", 0), f"{path}.lr"), str):
        raise ConfigError(f"{path}.lr", options["lr"], "must be a number")
    return options
