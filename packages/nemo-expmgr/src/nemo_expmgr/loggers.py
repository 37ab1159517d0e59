"""What a run writes into its log folder beside checkpoints: TensorBoard events, the programs' logs, what was run.

nemo_log.txt         messages of the nemo packages, INFO and above
nemo_error_log.txt   warnings and errors of every library
lightning_logs.txt   messages of Lightning
cmd-args.log         the command line
hparams.yaml         what the model says of itself (Lightning's)
git-info.log         commit and uncommitted changes of the working directory, where it is in a git repository
"""

import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_config import ConfigError
from nemo_expmgr.config import ExpManagerConfig
from nemo_expmgr.paths import RunFolder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LOG_FILES = (
    "nemo_log.txt",
    "nemo_error_log.txt",
    "lightning_logs.txt",
    "cmd-args.log",
    "git-info.log",
    "hparams.yaml",  # TensorBoardLogger's
)
_PACKAGES = ("nemo_config", "nemo_archive", "nemo_kernels", "nemo_expmgr", "nemo_asr", "nemo_nlp", "nemo_tts")
_LIGHTNING = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
_attached: list[tuple[logging.Logger, logging.Handler]] = []


def attach_tensorboard(trainer: "Trainer", config: ExpManagerConfig, folder: RunFolder) -> None:
    """Gives the trainer a TensorBoard logger that writes into the log folder.

    Raises:
        ConfigError: the trainer has a logger already, or `log_dir` is among the writer's arguments.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    if not config.create_tensorboard_logger:
        return
    arguments = config.summary_writer_kwargs or {}
    if "log_dir" in arguments:
        rule = "must be left out: the log folder follows from exp_dir, name and version"
        raise ConfigError("exp_manager.summary_writer_kwargs.log_dir", arguments["log_dir"], rule)
    trainer.logger = TensorBoardLogger(
        save_dir=str(folder.save_dir), name=folder.name, version=folder.version, **arguments
    )


def refuse_second_logger(trainer: "Trainer", config: ExpManagerConfig) -> None:
    """Raises ConfigError where both the trainer and this section would log."""
    if config.create_tensorboard_logger and trainer.logger is not None:
        kind = type(trainer.logger).__name__
        rule = f"is set, but the trainer has a {kind} already; make the trainer with logger=False"
        raise ConfigError("exp_manager.create_tensorboard_logger", True, rule)


def log_to_files(log_dir: Path) -> None:
    """Sends Python's logging into the log folder; an earlier run's files are closed first."""
    while _attached:
        logger, handler = _attached.pop()
        logger.removeHandler(handler)
        handler.close()
    everything = _handler(log_dir / "nemo_log.txt", logging.INFO)
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        _attach(logger, everything)
    errors = _handler(log_dir / "nemo_error_log.txt", logging.WARNING)
    lightning = _handler(log_dir / "lightning_logs.txt", logging.INFO)
    _attach(logging.getLogger(), errors)
    for name in _LIGHTNING:
        logger = logging.getLogger(name)
        _attach(logger, lightning)
        if not logger.propagate:
            _attach(logger, errors)


def _handler(path: Path, level: int) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _attach(logger: logging.Logger, handler: logging.Handler) -> None:
    logger.addHandler(handler)
    _attached.append((logger, handler))


def record_command(log_dir: Path) -> None:
    """Writes cmd-args.log and, in a git repository, git-info.log."""
    (log_dir / "cmd-args.log").write_text(shlex.join(sys.argv), encoding="utf-8")
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        diff = _git("diff") or ""
        (log_dir / "git-info.log").write_text(f"commit hash: {commit}{diff}", encoding="utf-8")


def _git(*arguments: str) -> str | None:
    """What git prints; None without git or a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, errors="replace", timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def copy_files(files: Iterable[str], log_dir: Path) -> None:
    """Copies `files_to_copy` into the log folder.

    Raises:
        ConfigError: one of them is not there.
    """
    for index, name in enumerate(files):
        if not Path(name).is_file():
            raise ConfigError(f"exp_manager.files_to_copy.{index}", name, "is no file")
        shutil.copy(name, log_dir)
