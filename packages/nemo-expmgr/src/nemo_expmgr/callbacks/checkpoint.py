"""Checkpoints: Lightning's ModelCheckpoint plus the `.nemo` file.

Asked of the model is only `save_to(path)`. The class has NVIDIA's name because Lightning stores a callback's state
under it, so that the ranking of the best checkpoints in a .ckpt goes both ways.
"""

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from nemo_expmgr.config import CheckpointParams
from nemo_expmgr.resume import is_unfinished, unfinished_marker

log = logging.getLogger(__name__)


class NeMoModelCheckpoint(ModelCheckpoint):
    """Keeps the best and the last checkpoint, and writes the model's .nemo file.

    Args:
        params: the config's section, with dirpath, filename and prefix filled in.
        resumed_from: the checkpoint that the fit begins with.
    """

    def __init__(self, params: CheckpointParams, resumed_from: str | None = None) -> None:
        self.params = params
        self.resumed_from = resumed_from
        super().__init__(
            dirpath=params.dirpath,
            filename=params.filename,
            monitor=params.monitor,
            verbose=bool(params.verbose),
            save_last=params.save_last,
            save_top_k=1 if params.save_top_k is None else params.save_top_k,
            save_weights_only=bool(params.save_weights_only),
            mode=params.mode or "min",
            auto_insert_metric_name=params.auto_insert_metric_name,
            save_on_train_epoch_end=params.save_on_train_epoch_end,
            **_trigger(params),
        )
        self.CHECKPOINT_NAME_LAST = f"{params.filename}-last"
        self.last_model_path = resumed_from or ""
        self._last_saved_at = -1  # global step of the -last file
        self._best_in_nemo = ""  # checkpoint whose weights the .nemo file holds

    @property
    def nemo_path(self) -> Path:
        """The .nemo file."""
        assert self.dirpath is not None
        return Path(self.dirpath).absolute() / f"{self.params.prefix}{self.params.postfix}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what an interrupted writer left, before Lightning looks at the folder."""
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None:
            _remove_unfinished(Path(self.dirpath))
        with warnings.catch_warnings():
            if self.resumed_from:
                warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the ranking, without files that are no longer there."""
        super().load_state_dict(state_dict)
        kept = {path: score for path, score in self.best_k_models.items() if Path(path).exists()}
        if len(kept) == len(self.best_k_models):
            return
        self.best_k_models = kept
        ranked = sorted(kept, key=lambda path: float(kept[path]), reverse=self.mode == "max")
        self.best_model_path = ranked[0] if ranked else ""
        self.best_model_score = kept[ranked[0]] if ranked else None
        self.kth_best_model_path = ranked[-1] if ranked else ""
        if ranked:
            self.kth_value = kept[ranked[-1]]

    def save_last_now(self, trainer: Trainer) -> None:
        """Writes the -last checkpoint for the present step, unless that is done."""
        if self.save_last and self._last_saved_at != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning ranks the checkpoint; the -last file follows also where it was not among the best."""
        due = self._epoch_is_due(trainer) and not self._should_save_on_train_epoch_end(trainer)
        super().on_validation_end(trainer, pl_module)
        if due:
            self.save_last_now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for a run that saves here."""
        due = self._epoch_is_due(trainer) and self._should_save_on_train_epoch_end(trainer)
        super().on_train_epoch_end(trainer, pl_module)
        if due:
            self.save_last_now(trainer)

    def _epoch_is_due(self, trainer: Trainer) -> bool:
        every = self._every_n_epochs
        return (
            every >= 1 and (trainer.current_epoch + 1) % every == 0 and not self._should_skip_saving_checkpoint(trainer)
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the -last checkpoint if training went on after it, and the .nemo file."""
        self.save_last_now(trainer)
        if self.params.save_nemo_on_train_end:
            if self.params.save_best_model:
                self._load_best(trainer, pl_module)
            self._save_nemo(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After a fit, `trainer.test(model)` tests what was trained, not the checkpoint that the fit began with."""
        if stage == "fit" and self.resumed_from and trainer.ckpt_path == self.resumed_from:
            trainer.ckpt_path = None

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        self._last_saved_at = trainer.global_step
        super()._save_last_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if not self.params.always_save_nemo:
            return
        if not self.params.save_best_model:
            self._save_nemo(trainer.lightning_module)
        elif filepath == self.best_model_path != self._best_in_nemo:
            self._best_in_nemo = filepath
            self._save_nemo(trainer.lightning_module)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning keeps the file that the run was resumed from; an old -last file goes when a new one is there."""
        if _is_last(previous) and _is_last(current) and previous != current and self.dirpath is not None:
            return Path(previous).absolute().parent == Path(self.dirpath).absolute()
        return super()._should_remove_checkpoint(trainer, previous, current)

    def _load_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        best = trainer.strategy.broadcast(self.best_model_path)
        if not best:
            log.warning("save_best_model: no checkpoint was ranked, so the .nemo file holds the last weights.")
            return
        checkpoint = torch.load(
            best, map_location="cpu", weights_only=False
        )  # by this run, or one that it goes on from
        pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)

    def _save_nemo(self, pl_module: LightningModule) -> None:
        save_to = getattr(pl_module, "save_to", None)
        if not callable(save_to):
            if self._warn_no_save_to:
                log.warning("%s has no save_to(path): no .nemo file is written.", type(pl_module).__name__)
            self._warn_no_save_to = False
            return
        save_to(str(self.nemo_path))
        if pl_module.trainer.is_global_zero:
            log.info("Saved %s", self.nemo_path)

    _warn_no_save_to = True


def _trigger(params: CheckpointParams) -> dict[str, Any]:
    """Lightning takes one of the three; the section has a default for the first."""
    if params.time_interval is not None:
        return {"train_time_interval": params.time_interval}
    if params.every_n_train_steps:
        return {"every_n_train_steps": params.every_n_train_steps}
    return {"every_n_epochs": params.every_n_epochs}


def _is_last(path: str) -> bool:
    """Whether this is a -last checkpoint, or one that Lightning numbered because the name was in use."""
    return re.search(r"-last(-v\d+)?\.ckpt$", path) is not None


def _remove_unfinished(folder: Path) -> None:
    """Deletes checkpoints with an `-unfinished` marker, then the markers."""
    unfinished = [path for path in folder.glob("*.ckpt") if is_unfinished(path)]
    for path in unfinished:
        log.warning("Removed %s, which was not completely written.", path)
        path.unlink()
    for marker in {unfinished_marker(path) for path in unfinished}:
        marker.unlink()
