"""`exp_manager(trainer, cfg)`: gives a Lightning trainer its log folder, loggers, checkpoints and resume.

    trainer = Trainer(**cfg.trainer)            # logger: false, enable_checkpointing: false
    exp_manager(trainer, cfg.get("exp_manager"))

It works on any trainer, with any LightningModule. Call it once, before `fit`. (The module has another name than the
function, so that `from nemo_expmgr import exp_manager` is the function whatever was imported before.)
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer

from nemo_config import ConfigError, read_section
from nemo_expmgr import loggers
from nemo_expmgr.callbacks.checkpoint import NeMoModelCheckpoint
from nemo_expmgr.callbacks.preemption import PreemptionCallback
from nemo_expmgr.callbacks.time_limit import StatelessTimer
from nemo_expmgr.callbacks.timing import DeltaStepTiming, StepTiming
from nemo_expmgr.config import (
    WITHOUT_EFFECT,
    CheckpointParams,
    EarlyStoppingParams,
    ExpManagerConfig,
    refuse_not_built,
)
from nemo_expmgr.lightning_checkpoint import plain_data_types
from nemo_expmgr.paths import RunFolder, archive_earlier_logs, global_rank, run_folder
from nemo_expmgr.resume import checkpoint_to_resume

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)
PATH = "exp_manager"


def exp_manager(trainer: "Trainer", cfg: Mapping[str, Any] | ExpManagerConfig | None = None) -> Path | None:
    """Prepares the trainer for an experiment.

    Args:
        trainer: without a logger and a ModelCheckpoint of its own, unless the section turns these off.
        cfg: the `exp_manager` section; see `ExpManagerConfig` for its keys.

    Returns:
        The log folder; None where nothing was done, without a section or in a fast_dev_run.

    Raises:
        ConfigError: an unknown key, a value of a wrong type, a feature that is not there, two loggers, or nothing to
            resume from.
    """
    if cfg is None:
        log.warning("exp_manager: the config has no such section, so nothing is logged or saved.")
        return None
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        log.info("exp_manager: nothing to do in a fast_dev_run.")
        return None
    config = read_section(ExpManagerConfig, cfg, PATH)
    refuse_not_built(config)
    loggers.refuse_second_logger(trainer, config)
    _refuse_second_checkpoint(trainer, config)
    folder = run_folder(trainer, config)
    params = _checkpoint_params(config.checkpoint, folder)
    checkpoint = checkpoint_to_resume(config, Path(str(params.dirpath)))
    _prepare_folder(trainer, config, folder)
    _tell_what_has_no_effect(trainer, cfg)
    if checkpoint is not None:
        trainer.ckpt_path = str(checkpoint)
        torch.serialization.add_safe_globals(plain_data_types())  # NVIDIA's checkpoints hold the config as OmegaConf's
        log.info("Training goes on from %s", checkpoint)
    loggers.attach_tensorboard(trainer, config, folder)
    _add_callbacks(trainer, config, params)
    return folder.log_dir


def _refuse_second_checkpoint(trainer: "Trainer", config: ExpManagerConfig) -> None:
    if config.create_checkpoint_callback and trainer.checkpoint_callbacks:
        rule = "is set, but the trainer has a ModelCheckpoint already; make the trainer with enable_checkpointing=False"
        raise ConfigError(f"{PATH}.create_checkpoint_callback", True, rule)


def _checkpoint_params(params: CheckpointParams, folder: RunFolder) -> CheckpointParams:
    """The section with its folder and names filled in."""
    dirpath, filename = params.dirpath, params.filename
    if params.filepath:
        old = Path(params.filepath)
        dirpath, filename = dirpath or str(old.parent), filename or old.name
    if not filename:
        metric = f"{{{params.monitor}:.4f}}-" if params.monitor else ""
        filename = f"{folder.experiment}--{metric}{{epoch}}"
    return replace(
        params,
        dirpath=dirpath or str(folder.log_dir / "checkpoints"),
        filename=filename,
        prefix=folder.experiment if params.prefix is None else params.prefix,
    )


def _prepare_folder(trainer: "Trainer", config: ExpManagerConfig, folder: RunFolder) -> None:
    """The first process sets the folder up; the others wait for it."""
    if global_rank(trainer) != 0:
        time.sleep(config.seconds_to_sleep)
        return
    copied = [Path(name).name for name in config.files_to_copy or ()]
    archive_earlier_logs(folder.log_dir, (*loggers.LOG_FILES, *copied))
    folder.log_dir.mkdir(parents=True, exist_ok=True)
    loggers.copy_files(config.files_to_copy or (), folder.log_dir)
    loggers.record_command(folder.log_dir)
    loggers.log_to_files(folder.log_dir)
    log.info("This run logs to %s", folder.log_dir)


def _tell_what_has_no_effect(trainer: "Trainer", cfg: Mapping[str, Any] | ExpManagerConfig) -> None:
    """One line for each key that somebody typed and that changes nothing here; its default asks for nothing."""
    if isinstance(cfg, ExpManagerConfig) or global_rank(trainer) != 0:
        return
    for name, (wish, reason) in WITHOUT_EFFECT.items():
        if cfg.get(name) is wish:
            log.info("%s.%s: %s has no effect: %s", PATH, name, wish, reason)


def _add_callbacks(trainer: "Trainer", config: ExpManagerConfig, params: CheckpointParams) -> None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if config.log_delta_step_timing:
        callbacks.insert(0, DeltaStepTiming(config.step_timing_kwargs))
    elif config.log_step_timing:
        callbacks.insert(0, StepTiming(config.step_timing_kwargs))
    if config.create_early_stopping_callback:
        callbacks.append(EarlyStopping(**asdict(config.early_stopping_callback_params or EarlyStoppingParams())))
    if config.max_time_per_run is not None:
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, Timer)]
        callbacks.append(StatelessTimer(config.max_time_per_run))
    if config.create_checkpoint_callback:
        checkpoint = NeMoModelCheckpoint(params, None if trainer.ckpt_path is None else str(trainer.ckpt_path))
        if config.create_preemption_callback:
            callbacks.append(PreemptionCallback(checkpoint))
        callbacks.append(checkpoint)  # Lightning wants checkpoint callbacks last
