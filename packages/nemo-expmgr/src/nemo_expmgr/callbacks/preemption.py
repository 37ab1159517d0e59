"""SIGTERM, as clusters send it before they take a machine away: the -last checkpoint is written, then the run ends.

Lightning catches the signal, finishes the batch on every process and raises SIGTERMException; this callback adds the
checkpoint. It works on CPU and GPU.
"""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from nemo_expmgr.callbacks.checkpoint import NeMoModelCheckpoint

log = logging.getLogger(__name__)


class PreemptionCallback(Callback):
    """Saves when the run is told to end.

    Args:
        checkpoint: the callback that writes.
    """

    def __init__(self, checkpoint: NeMoModelCheckpoint) -> None:
        self._checkpoint = checkpoint

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the -last checkpoint if the exception is Lightning's answer to SIGTERM."""
        if isinstance(exception, SIGTERMException):
            log.info("Received SIGTERM: saving the last checkpoint and stopping.")
            self._checkpoint.save_last_now(trainer)
