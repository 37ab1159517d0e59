"""NemoModel: the base class of all models. A model is a network with its config, data, optimizer and file.

It is made as `cls(cfg, trainer)` from the `model` section of a config, trained by Lightning, and kept in one .nemo
file. A subclass calls `super().__init__(cfg, trainer)`, builds its modules from `self.cfg`, and defines `forward`,
`training_step`, `validation_step` and `build_dataloader`. The work is done by the modules imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

from nemo_archive import Artifact
from nemo_config import instantiate
from nemo_expmgr import init_from, lightning_checkpoint, nemo_file
from nemo_expmgr.pretrained import PretrainedModelInfo, locate_pretrained
from nemo_expmgr.restore_context import is_restoring, take_artifacts
from nemo_expmgr.trainable import Config, TrainableModule


class NemoModel(TrainableModule):
    """A network with its config, data, optimizer and file.

    Args:
        cfg: the model section; a resolved copy of it becomes `self.cfg`, the given one is never edited.
        trainer: the Lightning trainer, if there is one already.

    Attributes:
        artifact_store: the files this model was made from (nemo_expmgr.artifact_store).
        strict_config: whether an unknown key in the config is an error: true for a typed config, false for a file's.
    """

    def __init__(self, cfg: Config, trainer: Trainer | None = None) -> None:
        super().__init__(cfg, trainer)
        self.strict_config = not is_restoring()
        if is_restoring():
            self._sections_of_file = {"validation_ds", "test_ds"}
        self.artifact_store = take_artifacts()

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The files this model was made from, by config path."""
        return self.artifact_store.artifacts

    def artifact(self, config_path: str, src: str) -> Artifact:
        """The file that a config value names, as bytes; saved with the model from then on.

        Args:
            config_path: dotted path of the value, relative to this model's config: `tokenizer.model_path`.
            src: the value: a file, or `nemo:<member>` in a config that was restored.

        Raises:
            FileNotFoundError: there is no such file or member.
        """
        return self.artifact_store.fetch(config_path, src)

    def register_artifact(self, config_path: str, src: str | None, verify_src_exists: bool = True) -> str | None:
        """Like `artifact`, but returns a path that exists as long as the model; None and "" are returned as they are.

        With verify_src_exists=False a file that does not exist gives None instead of an error.
        """
        if not src:
            return src
        try:
            return self.artifact_store.fetch_path(config_path, str(src))
        except FileNotFoundError:
            if verify_src_exists:
                raise
            return None

    def forget_artifacts(self, config_path: str) -> None:
        """Drops the files at and below a config path, before others take their place: `tokenizer`."""
        self.artifact_store.forget(config_path)

    def derived_config(self) -> dict[str, Any]:
        """Values, by dotted path, that a saved config must hold although nobody typed them: a vocabulary's size."""
        return {}

    def save_to(self, save_path: str | Path) -> None:
        """Writes the model as one .nemo file. With several processes all must call this; the first one writes."""
        nemo_file.save_model(self, save_path)

    @classmethod
    def restore_from(
        cls,
        restore_path: str | Path,
        override_config_path: str | Path | Config | None = None,
        map_location: str | torch.device | None = None,
        strict: bool = True,
        return_config: bool = False,
        trainer: Trainer | None = None,
        *,
        mmap: bool = True,
    ) -> Self:
        """Builds the model of a .nemo file, in training mode; called on a base class, of the class that the file names.

        Args:
            restore_path: the file. It is not needed afterwards, but while mapped it must not be overwritten in place.
            override_config_path: a config, or a YAML file of one, to use instead of the file's. Where it has no target,
                it is for this class; a base class takes the file's.
            map_location: device; None is the GPU where there is one.
            strict: whether the weights must match the model exactly.
            return_config: return the config (a DictConfig) instead, without touching the weights.
            trainer: for the new model.
            mmap: map the weights out of the file (copy on write) instead of reading them.

        Raises:
            ConfigError: the file's class is not a subclass of this one, or not known.
        """
        if return_config:
            config = nemo_file.read_config(restore_path, override_config_path)
            return OmegaConf.create(config)  # type: ignore[return-value]  # only where it was asked for
        return nemo_file.restore_model(
            cls,
            restore_path,
            override=override_config_path,
            map_location=map_location,
            strict=strict,
            trainer=trainer,
            mmap=mmap,
        )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's takes more forms of map_location
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        hparams_file: str | Path | None = None,
        strict: bool = True,
        weights_only: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Builds the model of a Lightning .ckpt file, read with weights_only semantics; kwargs: `cfg`, `trainer`."""
        return lightning_checkpoint.restore_checkpoint(
            cls, checkpoint_path, map_location=map_location, hparams_file=hparams_file, strict=strict, **kwargs
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the artifacts, so that load_from_checkpoint needs no other file."""
        packed = lightning_checkpoint.pack_artifacts(self.artifact_store, self.plain_cfg())
        checkpoint[lightning_checkpoint.ARTIFACTS_KEY] = packed

    @classmethod
    def from_config_dict(cls, config: Config, trainer: Trainer | None = None) -> Self:
        """Builds a model from a typed config: of the class in its `target`, or else of this one.

        A config with a `_target_` describes a part, not a model (`spec_augment` in NVIDIA's fine-tuning script): that
        part is built.
        """
        if "_target_" in config:
            return instantiate(config, path="config")  # whatever the caller knows it to be
        return nemo_file.choose_class(cls, config.get("target"), "the config")(cfg=config, trainer=trainer)

    @classmethod
    def list_available_models(cls) -> Sequence[PretrainedModelInfo]:
        """Pretrained models that from_pretrained knows by name."""
        return []

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        refresh_cache: bool = False,
        override_config_path: str | Path | Config | None = None,
        map_location: str | torch.device | None = None,
        strict: bool = True,
        return_config: bool = False,
        trainer: Trainer | None = None,
        *,
        return_model_file: bool = False,
        mmap: bool = True,
    ) -> Self:
        """restore_from for a local path, a name of list_available_models, or a Hugging Face repository `org/name`.

        With refresh_cache the file is downloaded again; with return_model_file its path is returned instead.
        """
        path = locate_pretrained(model_name, cls.list_available_models(), refresh=refresh_cache)
        if return_model_file:
            return str(path)  # type: ignore[return-value]  # only where it was asked for
        return cls.restore_from(path, override_config_path, map_location, strict, return_config, trainer, mmap=mmap)

    def maybe_init_from_pretrained_checkpoint(self, cfg: Config, map_location: str = "cpu") -> None:
        """Loads weights that the script's config asks for by an init_from_* key (nemo_expmgr.init_from)."""
        init_from.init_from_pretrained(self, cfg, map_location)
