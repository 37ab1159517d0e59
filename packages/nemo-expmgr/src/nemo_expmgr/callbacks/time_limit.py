"""A limit on the wall-clock time of one run, for clusters that end a job after some hours.

At the limit the -last checkpoint is written and `trainer.fit` returns, in the middle of an epoch if need be, without a
validation and without the .nemo file of a finished training; the next run goes on from there with a full allowance.
"""

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import _TunerExitException

from nemo_expmgr.callbacks.checkpoint import NeMoModelCheckpoint

log = logging.getLogger(__name__)


class StatelessTimer(Timer):
    """Lightning's Timer, whose clock starts anew with each run.

    Args:
        duration: "DD:HH:MM:SS", a timedelta, or a dict of its arguments.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the time of earlier runs does not count."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take over."""

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """The clock has not started."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Ends the run after this batch, if the time is over for the first process."""
        remaining = self.time_remaining()
        if not trainer.strategy.broadcast(remaining is not None and remaining <= 0):
            return
        log.info("The time of this run is over: saving the last checkpoint and stopping.")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, NeMoModelCheckpoint):
                callback.save_last_now(trainer)
        raise _TunerExitException  # Lightning ends the fit in good order; should_stop would validate first
