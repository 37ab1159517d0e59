"""Which checkpoint a run goes on from: the newest complete one.

Of several `*last.ckpt`, as a run that was killed while it wrote leaves them, the one with the most steps is taken; a
truncated one (no zip directory at its end) and one with an `-unfinished` marker beside it are passed over. The step is
read from the pickle's opcodes; nothing in it is executed.
"""

import itertools
import logging
import pickletools
import zipfile
from pathlib import Path

from nemo_config import ConfigError
from nemo_expmgr.config import ExpManagerConfig

log = logging.getLogger(__name__)
PATH = "exp_manager"


def checkpoint_to_resume(config: ExpManagerConfig, checkpoint_dir: Path) -> Path | None:
    """The checkpoint that the config asks for; None to start anew.

    Raises:
        ConfigError: the run is complete, or there is no (complete) checkpoint and resume_ignore_no_checkpoint is off.
    """
    if config.resume_from_checkpoint:
        explicit = Path(config.resume_from_checkpoint)
        if not explicit.exists():
            raise ConfigError(f"{PATH}.resume_from_checkpoint", str(explicit), "does not exist")
        return explicit
    return _newest(config, checkpoint_dir) if config.resume_if_exists else None


def _newest(config: ExpManagerConfig, checkpoint_dir: Path) -> Path | None:
    ended = sorted(checkpoint_dir.rglob("*end.ckpt"))
    if ended and not config.resume_past_end:
        rule = f"finds {ended[0]}, which says that this run is complete; set resume_past_end to go on from it"
        raise ConfigError(f"{PATH}.resume_if_exists", True, rule)
    candidates = ended + sorted({*checkpoint_dir.rglob("*last.ckpt"), *checkpoint_dir.rglob("*-last-v*.ckpt")})
    complete = [path for path in candidates if _is_complete(path)]
    if complete:
        return max(complete, key=lambda path: (_global_step(path), path.stat().st_mtime_ns))
    if candidates:
        rule = f"finds only incomplete checkpoints, {candidates[0]}; delete them to start anew"
        raise ConfigError(f"{PATH}.resume_if_exists", True, rule)
    if not config.resume_ignore_no_checkpoint:
        rule = f"finds no checkpoint in {checkpoint_dir}; set resume_ignore_no_checkpoint to start anew"
        raise ConfigError(f"{PATH}.resume_if_exists", True, rule)
    log.info("No checkpoint in %s: training starts anew.", checkpoint_dir)
    return None


def is_unfinished(path: Path) -> bool:
    """Whether a writer left its `-unfinished` marker beside this checkpoint."""
    return unfinished_marker(path).exists()


def unfinished_marker(path: Path) -> Path:
    """The marker's path, as NVIDIA's toolkit writes it: `x-last-unfinished` for `x-last.ckpt`."""
    return path.with_name(path.name.removesuffix(".ckpt").removesuffix("-EMA") + "-unfinished")


def _is_complete(path: Path) -> bool:
    if is_unfinished(path) or not (path.is_dir() or zipfile.is_zipfile(path)):
        log.warning("Checkpoint %s is incomplete and passed over.", path)
        return False
    return True


def _global_step(path: Path) -> int:
    """`global_step` of a Lightning checkpoint; -1 where it is not found."""
    if path.is_dir():
        return -1
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not pickles:
            return -1
        with archive.open(pickles[0]) as stream:
            operations = ((code.name, argument) for code, argument, _ in pickletools.genops(stream))
            after = itertools.dropwhile(lambda operation: operation[1] != "global_step", operations)
            found = (argument for name, argument in after if name.startswith(("BININT", "INT", "LONG")))
            return int(next(found, -1) or 0)
