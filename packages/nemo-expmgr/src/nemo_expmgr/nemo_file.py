"""A NemoModel to and from a .nemo file: config, weights and artifacts in one tar, which nemo_archive reads and writes.

Restoring reads the config, chooses the class, and builds it as `cls(cfg, trainer)` with the random initialisation
skipped and the file's tensors put in place. Nothing is unpacked, no directory is changed; data sections are kept, and
no data is opened.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer

from nemo_archive import open_archive
from nemo_config import ConfigError, file_config, nvidia_name, plain, resolve_target, saved_config
from nemo_expmgr.artifact_store import ArtifactStore
from nemo_expmgr.restore_context import restoring

if TYPE_CHECKING:
    from nemo_expmgr.model import NemoModel

logger = logging.getLogger(__name__)

M = TypeVar("M", bound="NemoModel")


def save_model(model: NemoModel, path: str | Path) -> None:
    """Writes the model as a .nemo file that NVIDIA's toolkit restores too; the file is replaced at once or not at all.

    With several processes every one of them calls this: the first writes, the others wait for it.
    """
    trainer = model._trainer
    try:
        if trainer is None or trainer.is_global_zero:
            _write(model, Path(path).expanduser())
    finally:
        if trainer is not None and trainer.world_size > 1:
            trainer.strategy.barrier("nemo_expmgr.save_model")


def _write(model: NemoModel, path: Path) -> None:
    from nemo_archive.torch import save_archive

    config = model.plain_cfg()
    artifacts = model.artifact_store.current(config)
    saved = saved_config(
        config,
        target=nvidia_name(type(model)),
        references={config_path: artifact.reference for config_path, artifact in artifacts.items()},
        derived=model.derived_config(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {artifact.archive_name: artifact for artifact in artifacts.values()}
    saved.pop("nemo_version", None)  # of the file it came from; save_archive's stands last: equal models, equal bytes
    save_archive(path, saved, model.state_dict(), members.values())


def read_config(path: str | Path, override: str | Path | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The model's config in a .nemo file, or the one that overrides it, with the file's target where it names none."""
    with open_archive(Path(path).expanduser()) as archive:
        return _effective_config(file_config(archive.config(), path), override, takes_target=True)


def _effective_config(
    in_file: dict[str, Any], override: str | Path | Mapping[str, Any] | None, *, takes_target: bool
) -> dict[str, Any]:
    """The file's config, or the override; with `takes_target` this has the file's target where it names none."""
    if override is None:
        return in_file
    if isinstance(override, str | Path):
        from omegaconf import OmegaConf

        loaded = OmegaConf.load(Path(override).expanduser())
        if not OmegaConf.is_dict(loaded):
            raise ConfigError("override_config_path", str(override), "must hold a mapping")
        override = loaded  # type: ignore[assignment]
    assert isinstance(override, Mapping)
    # As a child of its file's config, so that interpolations that leave the section still resolve.
    config = plain(override.get("model", override))
    target = {"target": in_file["target"]} if takes_target and "target" in in_file else {}
    return {**target, **config}


def restore_model(
    cls: type[M],
    path: str | Path,
    *,
    override: str | Path | Mapping[str, Any] | None = None,
    map_location: str | torch.device | None = None,
    strict: bool = True,
    trainer: Trainer | None = None,
    mmap: bool = True,
) -> M:
    """Builds the model of a .nemo file; NemoModel.restore_from documents the arguments."""
    from nemo_archive.torch import build_and_load, load_state_dict

    path = Path(path).expanduser()
    with open_archive(path, mmap=mmap) as archive:
        in_file = file_config(archive.config(), path)
        # a config without a target is for the class that was called: so a hybrid's file is restored as its CTC model
        config = _effective_config(in_file, override, takes_target=is_abstract(cls))
        chosen = choose_class(cls, config.get("target"), path)
        artifacts = archive.artifacts()
        state_dict = load_state_dict(archive, mmap=mmap)

    def build() -> M:
        with restoring(ArtifactStore(artifacts, in_file, str(path))):
            return chosen(cfg=config, trainer=trainer)

    with naming_file(path):
        model = build_and_load(build, state_dict, strict=strict)
    return model.to(device_for(map_location))


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """An error inside stays what it is and says in a note which file was being restored."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while restoring {path}")
        raise


def device_for(map_location: str | torch.device | None) -> torch.device:
    """The device asked for; for None the GPU where there is one."""
    if map_location is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(map_location)


def choose_class(cls: type[M], target: str | None, origin: str | Path) -> type[M]:
    """The class to build for a config's `target`, when `cls` was asked for.

    A registered target gives its class, or `cls` if that is derived from it. An unregistered one (a user's own class)
    is never imported: it gives `cls`, which the caller named, unless that is only a base class.

    Raises:
        ConfigError: the target is a class unrelated to `cls`, or unregistered while `cls` is a base class.
    """
    registered = None if target is None else _registered_class(target)
    if target is None or registered is None:
        if not is_abstract(cls):
            if target not in (None, nvidia_name(cls), f"{cls.__module__}.{cls.__qualname__}"):
                logger.info("%s: target %s is not registered, %s is built", origin, target, cls.__qualname__)
            return cls
        raise ConfigError(
            "target",
            target,
            f"in {origin} is no registered class, and {cls.__qualname__} is only a base class: call restore_from or "
            "from_config_dict of the class itself, or make it known with nemo_config.register_targets(TheClass)",
        )
    if isinstance(registered, type) and issubclass(cls, registered):
        return cls
    if isinstance(registered, type) and issubclass(registered, cls):
        return registered
    name = getattr(registered, "__qualname__", repr(registered))
    raise ConfigError(
        "target", target, f"in {origin} is {name}, not a {cls.__qualname__}: call {name}, or a base class of it"
    )


def _registered_class(target: str) -> Any:
    try:
        return resolve_target(target, "target")
    except ConfigError:
        return None


def is_abstract(cls: type) -> bool:
    """Whether a class is only a base class: it has abstract methods, or computes nothing of its own."""
    if inspect.isabstract(cls) or not issubclass(cls, LightningModule):
        return True
    return cls.forward is LightningModule.forward and cls.training_step is LightningModule.training_step
