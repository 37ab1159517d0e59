"""From the outputs of validation or test steps to the metrics that are logged at the end of an epoch.

With several sets every metric is logged with the prefix of its set (`dev_other_val_wer`), and those of the main set
(the first, or `val_dl_idx`) also without it, so that `monitor: val_wer` means the same for one set and for many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def mean_metrics(outputs: Sequence[Mapping[str, Any]], module: LightningModule | None = None) -> dict[str, Tensor]:
    """Means of the scalars of step outputs; where they have `x_num` and `x_denom`, x is the ratio of their sums.

    Args:
        outputs: what the steps of one set returned.
        module: whose trainer knows the other processes; the sums are over all of them. None for this one alone.
    """
    columns = {
        key: torch.stack([torch.as_tensor(output[key]).detach().float().reshape(()) for output in outputs])
        for key, value in (outputs[0].items() if outputs else ())
        if _is_scalar(value)
    }
    ratios = {
        key.removesuffix("_num"): _total(columns[key], module) / _total(columns[denominator], module)
        for key in columns
        if key.endswith("_num") and (denominator := key.removesuffix("_num") + "_denom") in columns
    }
    parts = {stem + suffix for stem in ratios for suffix in ("", "_num", "_denom")}
    means = {key: column.mean() for key, column in columns.items() if key not in parts}
    return {**means, **ratios}


def _total(column: Tensor, module: LightningModule | None) -> Tensor:
    trainer = None if module is None else module._trainer
    if module is None or trainer is None or trainer.world_size == 1:
        return column.sum()
    return trainer.strategy.reduce(column.sum().to(module.device), reduce_op="sum")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def merge_sets(logs: Sequence[Mapping[str, Any]], prefixes: Sequence[str], main: int = 0) -> dict[str, Any]:
    """The metrics of all sets under the names they are logged by."""
    if len(logs) == 1:
        return dict(logs[0])
    merged: dict[str, Any] = {}
    for index, (log, prefix) in enumerate(zip(logs, prefixes, strict=True)):
        merged.update({prefix + key: value for key, value in log.items()})
        if index == main:
            merged.update(log)
    return merged


def loader_count(loaders: Any) -> int:
    """How many loaders a Trainer's val_dataloaders or test_dataloaders are."""
    return len(loaders) if isinstance(loaders, list | tuple) else 1


def open_outputs(count: int) -> list[Any]:
    """Where step outputs are collected: a list, or a list of lists where there are several loaders."""
    return [[] for _ in range(count)] if count > 1 else []


def collect_output(outputs: list[Any], output: Any, batch_idx: int, loader: int) -> None:
    """Adds what a step returned, unless the step itself already did or returned no metrics."""
    bucket = outputs[loader] if outputs and isinstance(outputs[0], list) else outputs
    if isinstance(output, Mapping) and len(bucket) <= batch_idx:
        bucket.append(output)


def merge_epoch(
    outputs: list[Any],
    end: Callable[[list[Any], int], Mapping[str, Any] | None],
    prefix: Callable[[int], str],
    *,
    main: int = 0,
) -> dict[str, Any]:
    """What to log for all sets: `end` makes the metrics of one, under `log` of its result."""
    sets = outputs if outputs and isinstance(outputs[0], list) else [outputs]
    logs = [(end(part, index) or {}).get("log", {}) if part else {} for index, part in enumerate(sets)]
    return merge_sets(logs, [prefix(index) for index in range(len(logs))], main)
