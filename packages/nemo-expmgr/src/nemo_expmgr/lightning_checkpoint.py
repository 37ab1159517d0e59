"""Lightning's .ckpt files: `state_dict`, and `hyper_parameters: {cfg: ...}` as NVIDIA's toolkit writes them.

Read with weights_only semantics. Older files hold OmegaConf containers, plain data whose classes are allowed by name.
A checkpoint of ours also carries the model's artifacts, so that it loads after the tokenizer's file is gone.
"""

from __future__ import annotations

import pickle
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from nemo_archive import Artifact
from nemo_config import ConfigError, file_config, plain
from nemo_expmgr.artifact_store import ArtifactStore
from nemo_expmgr.nemo_file import choose_class, device_for, naming_file
from nemo_expmgr.restore_context import restoring

if TYPE_CHECKING:
    from nemo_expmgr.model import NemoModel

ARTIFACTS_KEY = "nemo_artifacts"
M = TypeVar("M", bound="NemoModel")
_allow_lock = threading.Lock()


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a .ckpt file; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds objects other than tensors, plain values and OmegaConf configs, or is no checkpoint.
    """
    path = Path(path).expanduser()
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        checkpoint = _read_with_omegaconf(path, map_location)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f"{path}: not a Lightning checkpoint, it has no state_dict")
    return checkpoint


def _read_with_omegaconf(path: Path, map_location: Any) -> Any:
    with _allow_lock, torch.serialization.safe_globals(plain_data_types()):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path}: holds objects that are not loaded for safety ({reason})") from None


def plain_data_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """OmegaConf's containers and what they are made of, for torch.serialization.add_safe_globals."""
    from lightning.fabric.utilities.data import AttributeDict
    from omegaconf import base, dictconfig, listconfig, nodes

    node_types = [t for t in vars(nodes).values() if isinstance(t, type) and issubclass(t, base.Node)]
    attribute_dict_names = (
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    )
    return [
        *(dict, list, tuple, set, int, float, str, bool, bytes, type(None), defaultdict, Any),
        *(dictconfig.DictConfig, listconfig.ListConfig, base.ContainerMetadata, base.Metadata, *node_types),
        *((AttributeDict, name) for name in attribute_dict_names),
    ]


def pack_artifacts(store: ArtifactStore, config: Mapping[str, Any]) -> dict[str, tuple[str, torch.Tensor]]:
    """Artifacts as a checkpoint holds them: config path to name and bytes (uint8)."""
    return {
        path: (artifact.archive_name, torch.frombuffer(bytearray(artifact.data), dtype=torch.uint8))
        for path, artifact in store.current(config).items()
        if artifact.data
    }


def unpack_artifacts(packed: Mapping[str, tuple[str, torch.Tensor]]) -> dict[str, Artifact]:
    """The reverse of pack_artifacts."""
    return {path: Artifact(name, data.cpu().numpy().tobytes()) for path, (name, data) in packed.items()}


def restore_checkpoint(
    cls: type[M],
    path: str | Path,
    *,
    map_location: str | torch.device | None = None,
    hparams_file: str | Path | None = None,
    strict: bool = True,
    **arguments: Any,
) -> M:
    """Builds the model of a .ckpt file; `arguments` (cfg, trainer) replace what the file says."""
    from nemo_archive.torch import build_and_load

    checkpoint = read_checkpoint(path)
    config = _config_of(checkpoint, path, hparams_file, arguments.pop("cfg", None))
    chosen = choose_class(cls, config.get("target"), path)
    artifacts = unpack_artifacts(checkpoint.get(ARTIFACTS_KEY, {}))

    def build() -> M:
        with restoring(ArtifactStore(artifacts, config, str(path))):
            model = chosen(cfg=config, **arguments)
        model.on_load_checkpoint(checkpoint)
        return model

    with naming_file(path):
        model = build_and_load(build, checkpoint["state_dict"], strict=strict)
    return model.to(device_for(map_location))


def _config_of(
    checkpoint: dict[str, Any], path: str | Path, hparams_file: str | Path | None, given: Any
) -> dict[str, Any]:
    hyper_parameters = checkpoint.get("hyper_parameters", {})
    if hparams_file is not None:
        from omegaconf import OmegaConf

        hyper_parameters = OmegaConf.load(hparams_file)
    if given is None and hparams_file is None and hyper_parameters.get("cfg") is not None:
        return file_config(_unresolved(hyper_parameters["cfg"]), path)
    config = given if given is not None else hyper_parameters.get("cfg")
    if config is None:
        raise ConfigError("hyper_parameters.cfg", None, f"is missing in {path}: pass cfg=")
    return plain(config)


def _unresolved(config: Any) -> Any:
    """The config as it stands in the file; older ones hold it as OmegaConf containers."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
