"""How long steps take: logged values `train_step_timing in s`, `train_backward_timing in s`, and so on."""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from nemo_config import ConfigError
from nemo_expmgr.config import StepTimingParams

log = logging.getLogger(__name__)
_REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda times: sum(times) / len(times),
    "sum": sum,
    "min": min,
    "max": max,
    "none": lambda times: times[-1],
}


class _Clock:
    """Times of named spans, reduced over a window."""

    def __init__(self, params: StepTimingParams) -> None:
        reduction = params.reduction or "none"
        if reduction not in _REDUCTIONS:
            rule = f"must be one of {', '.join(_REDUCTIONS)}"
            raise ConfigError("exp_manager.step_timing_kwargs.reduction", reduction, rule)
        self._reduce = _REDUCTIONS[reduction]
        self._sync_cuda = bool(params.sync_cuda)
        size = params.buffer_size or 0
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=size if size > 0 else None))
        self._started: dict[str, float] = {}

    def now_s(self) -> float:
        if self._sync_cuda and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, name: str) -> None:
        self._started[name] = self.now_s()

    def stop(self, name: str) -> float | None:
        """The reduced time in seconds; None where the span was not started."""
        started = self._started.pop(name, None)
        if started is None:
            return None
        self._times[name].append(self.now_s() - started)
        return self._reduce(self._times[name])


class StepTiming(Callback):
    """Logs the time of each training, validation and test step, and of the backward pass."""

    def __init__(self, params: StepTimingParams | None = None) -> None:
        self._clock = _Clock(params or StepTimingParams())

    def _log(self, name: str, module: LightningModule) -> None:
        seconds = self._clock.stop(name)
        if seconds is not None:
            on_bar = name == "train_step_timing"
            module.log(f"{name} in s", seconds, on_step=True, on_epoch=False, batch_size=1, prog_bar=on_bar)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._clock.start("train_step_timing")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._log("train_step_timing", pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._clock.start("train_backward_timing")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("train_backward_timing", pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self._clock.start("validation_step_timing")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self._log("validation_step_timing", pl_module)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self._clock.start("test_step_timing")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self._log("test_step_timing", pl_module)


class DeltaStepTiming(Callback):
    """Writes the time from one step's end to the next one's into the Python log; no logger is involved."""

    def __init__(self, params: StepTimingParams | None = None) -> None:
        self._clock = _Clock(params or StepTimingParams())
        self._step: dict[str, int] = defaultdict(int)
        self._last: dict[str, float] = {}

    def _start(self, name: str) -> None:
        self._step[name] = 0
        self._last[name] = self._clock.now_s()

    def _lap(self, name: str) -> None:
        now = self._clock.now_s()
        log.info("Step %d: %s in s=%s", self._step[name], name, now - self._last[name])
        self._step[name] += 1
        self._last[name] = now

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("train_step_timing")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._lap("train_step_timing")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("validation_step_timing")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self._lap("validation_step_timing")
