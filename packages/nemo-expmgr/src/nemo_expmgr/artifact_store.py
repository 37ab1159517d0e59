"""The files a model was made from (tokenizer, lexicon), held as bytes so that saving never needs them again.

Each is known by the dotted path of the config value that names it (`tokenizer.model_path`). A value is a file on disk
or `nemo:<member>`, a member of the archive that the model was restored from. For what came from an archive its bytes
always win over a file of the same name on this machine. Nothing is written to disk until somebody asks for a path.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_archive import Artifact
from nemo_archive.artifacts import PREFIX

logger = logging.getLogger(__name__)

_directory_lock = threading.Lock()


@dataclass(frozen=True)
class _Entry:
    artifact: Artifact
    source: str  # the config value it was found under
    archived: bool  # it came from an archive
    used: bool  # the model asked for it


class ArtifactStore:
    """Artifacts by config path.

    Args:
        archived: what an archive holds, by config path.
        config: that archive's config, which tells the value each path had there.
        origin: name of the archive or checkpoint, for messages.
    """

    def __init__(
        self, archived: Mapping[str, Artifact] | None = None, config: Mapping[str, Any] | None = None, origin: str = ""
    ) -> None:
        self.origin = origin
        self._directory: str | None = None
        self._entries = {
            path: _Entry(artifact, str(value_at(config or {}, path) or artifact.reference), archived=True, used=False)
            for path, artifact in (archived or {}).items()
        }

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """Every artifact by its config path."""
        return {path: entry.artifact for path, entry in self._entries.items()}

    def current(self, config: Mapping[str, Any]) -> dict[str, Artifact]:
        """What belongs into a file saved with `config`: all that the model used, and what the config still names."""
        return {
            path: entry.artifact
            for path, entry in self._entries.items()
            if entry.used or value_at(config, path) in (entry.source, entry.artifact.reference)
        }

    def forget(self, prefix: str) -> None:
        """Drops the artifacts at and below a config path, as when a tokenizer is replaced by another kind."""
        for path in [p for p in self._entries if p == prefix or p.startswith(prefix + ".")]:
            del self._entries[path]

    def fetch(self, config_path: str, source: str) -> Artifact:
        """The artifact for a config value, from memory where it is known, else read from disk once.

        Raises:
            FileNotFoundError: the file, or the member of the archive, does not exist.
        """
        held = self._held(config_path, source)
        entry = _Entry(held.artifact, source, held.archived, True) if held else self._read(config_path, source)
        self._entries[config_path] = entry
        return entry.artifact

    def fetch_path(self, config_path: str, source: str) -> str:
        """Like fetch, but an absolute path: the source itself, or a private copy that lives as long as this store."""
        artifact = self.fetch(config_path, source)
        on_disk = Path(source).expanduser()
        if not self._entries[config_path].archived and on_disk.is_file():
            return str(on_disk.absolute())
        return self._materialise(artifact)

    def _held(self, config_path: str, source: str) -> _Entry | None:
        entry = self._entries.get(config_path)
        if entry is not None and source in (entry.source, entry.artifact.reference):
            # A file that was read here may have been written anew under the same name since.
            if entry.archived or not Path(source).expanduser().is_file():
                return entry
            return None
        if source.startswith(PREFIX):
            return next((e for e in self._entries.values() if source in (e.source, e.artifact.reference)), None)
        return None

    def _read(self, config_path: str, source: str) -> _Entry:
        if source.startswith(PREFIX):
            where = f"is not in {self.origin}" if self.origin else "is a member of an archive, and there is none"
            raise FileNotFoundError(f"{config_path}: {source} {where}")
        path = Path(source).expanduser()
        if path.is_dir():
            raise IsADirectoryError(f"{config_path}: {source} is a folder, not a file")
        if path.is_file():
            return _Entry(Artifact.from_file(path), source, archived=False, used=True)
        entry = self._entries.get(config_path)
        if entry is not None and entry.archived and entry.artifact.archive_name.endswith("_" + path.name):
            logger.info("%s: %s does not exist, the file of that name in %s is used", config_path, source, self.origin)
            return _Entry(entry.artifact, source, archived=True, used=True)
        raise FileNotFoundError(f"{config_path}: {source} does not exist")

    def _materialise(self, artifact: Artifact) -> str:
        with _directory_lock:
            if self._directory is None:
                self._directory = tempfile.mkdtemp(prefix="nemo-artifacts-")
                weakref.finalize(self, _remove_directory, self._directory, os.getpid())
            path = Path(self._directory, Path(artifact.archive_name).name)
            if not path.exists():
                path.write_bytes(artifact.data)
        return str(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_directory": None}  # a copy makes its own, the original removes only its own


def _remove_directory(directory: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked data loader worker must not remove its parent's files
        shutil.rmtree(directory, ignore_errors=True)


def value_at(config: Any, dotted_path: str) -> Any:
    """The value at a dotted path (list indexes are numbers) of plain containers; None where there is none."""
    for key in dotted_path.split("."):
        if isinstance(config, Mapping):
            config = config.get(key)
        elif isinstance(config, list) and key.isdecimal() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None
    return config
