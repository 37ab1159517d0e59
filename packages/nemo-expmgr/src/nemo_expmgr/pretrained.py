"""Where a pretrained model's .nemo file is: a local path, a name that a class lists, or a Hugging Face repository.

`org/name` goes through huggingface_hub (`pip install nemo-expmgr[hub]`), its cache and its HF_HUB_OFFLINE.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PretrainedModelInfo:
    """One entry of list_available_models: a name and where its file is (a path, or `org/name` on the hub)."""

    pretrained_model_name: str
    description: str
    location: str
    class_: type | None = None
    aliases: Sequence[str] | None = None


def locate_pretrained(
    name: str | Path, available: Iterable[PretrainedModelInfo] = (), *, refresh: bool = False
) -> Path:
    """The local .nemo file for a path or name, downloaded if need be (again, if `refresh`).

    Raises:
        FileNotFoundError: no such file; no such repository; or it is not in the cache while offline.
        ValueError: the name is unknown; the nearest ones are named.
        ImportError: huggingface_hub is needed and missing.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / "model_config.yaml").is_file():  # or a folder into which one was unpacked
        return path
    known = {alias: info for info in available for alias in (info.pretrained_model_name, *(info.aliases or ()))}
    if str(name) in known:
        return locate_pretrained(known[str(name)].location, refresh=refresh)
    if path.suffix == ".nemo":
        raise FileNotFoundError(f"{name}: no such file")
    if isinstance(name, str) and name.count("/") == 1 and all(name.split("/")) and name[0] not in "./~":
        return hub_file(name, refresh=refresh)
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ValueError(f"{name}: neither a file, nor a listed model, nor org/name of a Hugging Face repository{hint}")


def hub_file(repository: str, *, refresh: bool = False) -> Path:
    """The .nemo file of a Hugging Face repository, from the cache where it is there."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(f"{repository}: huggingface_hub is missing: pip install 'nemo-expmgr[hub]'") from error
    usual = repository.split("/")[1] + ".nemo"
    try:
        return _download(huggingface_hub, repository, usual, refresh)
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{repository}: no such repository on the hub, or no access to it") from error
    except errors.LocalEntryNotFoundError as error:  # offline or unreachable; a file of another name may be cached
        cached = _only_archive(repository, _cached_archives(huggingface_hub, errors, repository))
        if cached is None:
            raise FileNotFoundError(
                f"{repository}: not in the local cache, and the hub is out of reach (HF_HUB_OFFLINE set, or no network)"
            ) from error
        return Path(cached)
    except errors.EntryNotFoundError as error:
        found = _only_archive(repository, huggingface_hub.list_repo_files(repository))
        if found is None:
            raise FileNotFoundError(f"{repository}: holds no .nemo file") from error
        return _download(huggingface_hub, repository, found, refresh)


def _download(hub: Any, repository: str, filename: str, refresh: bool) -> Path:
    return Path(hub.hf_hub_download(repository, filename, force_download=refresh))


def _cached_archives(hub: Any, errors: Any, repository: str) -> list[str]:
    try:
        folder = hub.snapshot_download(repository, local_files_only=True, allow_patterns=["*.nemo"])
    except errors.LocalEntryNotFoundError:
        return []
    return [str(path) for path in Path(folder).rglob("*.nemo")]


def _only_archive(repository: str, names: Iterable[str]) -> str | None:
    archives = sorted(name for name in names if name.endswith(".nemo"))
    if len(archives) > 1:
        raise ValueError(f"{repository}: holds several .nemo files, download one of them: {', '.join(archives)}")
    return archives[0] if archives else None
