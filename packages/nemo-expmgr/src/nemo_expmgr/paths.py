"""Where a run logs: exp_dir/name/version. What a folder holds:

    nemo_experiments/default/2026-11-22_17-03-59/
        events.out.tfevents...  hparams.yaml  cmd-args.log  git-info.log
        nemo_log.txt  nemo_error_log.txt  lightning_logs.txt
        checkpoints/default--val_loss=0.1234-epoch=7.ckpt  ...-last.ckpt  default.nemo
        run_0/                  what earlier runs logged here

The environment's NEMO_EXPM_VERSION stands for a version that the config leaves open.
"""

import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_config import ConfigError
from nemo_expmgr.config import ExpManagerConfig

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

VERSION_VARIABLE = "NEMO_EXPM_VERSION"
DEFAULT_NAME = "default"
_handed_on: set[str] = set()  # versions that this process put into the variable itself


@dataclass(frozen=True)
class RunFolder:
    """A log folder and its parts.

    Attributes:
        log_dir: the folder.
        save_dir, name, version: what a Lightning logger makes it of; name and version may be empty.
        experiment: the name for files.
    """

    log_dir: Path
    save_dir: Path
    name: str
    version: str
    experiment: str


def global_rank(trainer: "Trainer") -> int:
    """This process's rank, known from the environment before Lightning sets up its strategy."""
    for variable in ("RANK", "SLURM_PROCID"):
        if variable in os.environ and trainer.world_size > 1:
            return int(os.environ[variable])
    return trainer.node_rank * trainer.num_devices + int(os.environ.get("LOCAL_RANK", 0))


def run_folder(trainer: "Trainer", config: ExpManagerConfig) -> RunFolder:
    """Decides the folder; creates nothing.

    Raises:
        ConfigError: the trainer's own logger and the config name two different folders.
    """
    if config.explicit_log_dir:
        _refuse_logger(trainer, "explicit_log_dir", config.explicit_log_dir)
        log_dir = Path(config.explicit_log_dir)
        return RunFolder(log_dir, log_dir, "", "", config.name or DEFAULT_NAME)
    if trainer.logger is not None:
        return _folder_of_logger(trainer, config)
    save_dir = Path(config.exp_dir) if config.exp_dir else Path.cwd() / "nemo_experiments"
    name = config.name or DEFAULT_NAME
    version = _version(config, save_dir / name, trainer)
    return RunFolder(save_dir / name / version, save_dir, name, version, name)


def _folder_of_logger(trainer: "Trainer", config: ExpManagerConfig) -> RunFolder:
    for field in ("exp_dir", "name"):
        if getattr(config, field):
            _refuse_logger(trainer, field, getattr(config, field))
    logger = trainer.logger
    assert logger is not None
    save_dir = Path(logger.save_dir or config.exp_dir or Path.cwd() / "nemo_experiments")
    name, version = str(logger.name or DEFAULT_NAME), str(logger.version)
    version = version if version.startswith("version_") or not version.isdigit() else f"version_{version}"
    return RunFolder(save_dir / name / version, save_dir, name, version, name)


def _refuse_logger(trainer: "Trainer", field: str, value: object) -> None:
    if trainer.logger is not None:
        kind = type(trainer.logger).__name__
        rule = f"names the log folder, but so does the trainer's {kind}; make the trainer with logger=False"
        raise ConfigError(f"exp_manager.{field}", value, rule)


def _version(config: ExpManagerConfig, parent: Path, trainer: "Trainer") -> str:
    if os.environ.get(VERSION_VARIABLE) in _handed_on:
        del os.environ[VERSION_VARIABLE]  # it was for an earlier run of this process, in a sweep for instance
    given = config.version or os.environ.get(VERSION_VARIABLE)
    if given:
        return given
    if config.resume_if_exists:
        return ""
    version = _time_version(parent) if config.use_datetime_version else _next_version(parent)
    if trainer.world_size > 1:
        os.environ[VERSION_VARIABLE] = version  # the processes that this one starts log into the same folder
        _handed_on.add(version)
    return version


def _time_version(parent: Path) -> str:
    """The time to the second; runs that start within one get `_1`, `_2`, ... after it."""
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    earlier = sum(1 for _ in parent.glob(f"{now}*"))
    return f"{now}_{earlier}" if earlier else now


def _next_version(parent: Path) -> str:
    found = [re.fullmatch(r"version_(\d+)", child.name) for child in parent.glob("version_*")]
    return f"version_{max((int(match[1]) for match in found if match), default=-1) + 1}"


def archive_earlier_logs(log_dir: Path, names: Iterable[str]) -> Path | None:
    """Moves the files of these names, which an earlier run left, into log_dir/run_N; returns that folder.

    Any other file stays: explicit_log_dir may be a folder in which the user works.
    """
    files = [file for name in names if (file := log_dir / name).is_file()]
    if not files:
        return None
    numbers = [re.fullmatch(r"run_(\d+)", child.name) for child in log_dir.glob("run_*")]
    target = log_dir / f"run_{max((int(match[1]) for match in numbers if match), default=-1) + 1}"
    target.mkdir()
    for file in files:
        shutil.move(file, target / file.name)
    return target
