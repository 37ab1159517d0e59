"""Models inside a model's archive. There are three kinds:

a second pair of files    timestamps_asr_model_config.yaml and timestamps_asr_model_weights.ckpt beside the model's
                          own (Canary); its artifacts are members like all others
a section of the config   NVIDIA's `register_nemo_submodule`: the section has `target` and `nemo_version` of its
                          own, and the names of its tensors begin with the section's
a `.nemo` member          an archive in the archive, as older translation and Megatron models have
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from nemo_archive.folder import TarFiles
from nemo_archive.safety import ArchiveError
from nemo_archive.tar_index import Member, index_tar

if TYPE_CHECKING:
    import mmap

    from nemo_archive.checkpoint import Checkpoint
    from nemo_archive.reader import Archive
    from nemo_archive.sources import Source, Span

_CONFIG_END, _OWN = "_config.yaml", "model"
_ARCHIVE_END = ".nemo"


def find_submodels(archive: Archive) -> tuple[str, ...]:
    """Names of the models in an archive: pairs of files, then sections of the config, then archives."""
    sections = _sections(archive._parsed_config())
    if not archive.is_whole:
        return tuple(sections)
    pairs = [name.removesuffix(_CONFIG_END) for name in archive.members if _weights_of(archive, name) is not None]
    archives = [name for name in archive.members if name.endswith(_ARCHIVE_END)]
    return (*pairs, *sections, *archives)


def open_submodel(archive: Archive, name: str) -> Archive:
    """One of them, as an archive.

    Raises:
        ArchiveError: if there is none of that name, or it is a damaged archive.
    """
    from nemo_archive.reader import Archive

    if name not in find_submodels(archive):
        held = ", ".join(find_submodels(archive)) or "none"
        raise ArchiveError(f"it has no sub-model {name!r:.100}; it has {held}", path=archive.path)
    path = f"{archive.path}!{name}"
    pair = f"{name}{_CONFIG_END}"
    if pair in archive.members and (weights := _weights_of(archive, pair)) is not None:
        return Archive(path, dict(archive.members), archive._files, owner=archive, config=pair, weights=weights)
    if name in _sections(archive._parsed_config()):
        return Archive(path, dict(archive.members), archive._files, owner=archive, section=name)
    return _open_nested(archive, archive.span(name), path)


def section_of(config: Any, name: str) -> Any:
    """The part of a config at a dotted path."""
    for key in name.split("."):
        config = config[key]
    return config


def part_of(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """The tensors whose names begin with `prefix`, without it.

    Raises:
        ArchiveError: if there are none.
    """
    content = entries_below(checkpoint.content, prefix)
    if not content:
        raise checkpoint.span.error(f"no tensor's name begins with {prefix!r:.100}")
    tensors = {
        name.removeprefix(prefix): info._replace(name=name.removeprefix(prefix))
        for name, info in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    used = {info.storage for info in tensors.values()}
    storages = {key: storage for key, storage in checkpoint.storages.items() if key in used}
    return checkpoint._replace(content=content, tensors=tensors, storages=storages)


def entries_below(content: Any, prefix: str) -> OrderedDict[str, Any]:
    """The part of a state dict whose keys begin with `prefix`, without it; its `_metadata` likewise."""
    part: Any = OrderedDict(
        (key.removeprefix(prefix), value)
        for key, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(key, str) and key.startswith(prefix)
    )
    versions = getattr(content, "_metadata", None)
    if isinstance(versions, dict):
        part._metadata = OrderedDict(
            (f"{key}.".removeprefix(prefix).removesuffix("."), value)
            for key, value in versions.items()
            if f"{key}.".startswith(prefix)
        )
    return part


def _weights_of(archive: Archive, config: str) -> str | None:
    """The checkpoint that belongs to `<name>_config.yaml`; None for the model's own, and for other YAML files."""
    name = config.removesuffix(_CONFIG_END)
    if name in (config, _OWN):
        return None
    for weights in (f"{name}_weights.ckpt", f"{name}_weights.safetensors"):
        if weights in archive.members:
            return weights
    return None


def _sections(config: dict[str, Any]) -> list[str]:
    """Dotted paths of the sections that are configs of models; also within one another."""
    found = []
    stack: list[tuple[str, Any]] = [("", config)]
    while stack:
        path, value = stack.pop()
        if path and isinstance(value.get("target"), str) and "nemo_version" in value:
            found.append(path)
        below = [(f"{path}.{key}" if path else str(key), entry) for key, entry in value.items()]
        stack.extend((name, entry) for name, entry in reversed(below) if isinstance(entry, dict))
    return found


class _Window:
    """A part of a source, as a source; for finding out what is in it."""

    def __init__(self, span: Span) -> None:
        self.size, self._span = span.size, span

    def view(self, offset: int, length: int) -> memoryview:
        return self._span.view(offset, length)

    def private_map(self) -> mmap.mmap | None:
        return None

    def close(self) -> None: ...


def _open_nested(archive: Archive, span: Span, path: str) -> Archive:
    from nemo_archive.reader import Archive, checked
    from nemo_archive.sources import unpack_gzip

    window = _Window(span)
    if span.size > 2 and span.read(0, 2) == b"\x1f\x8b":
        unpacked: Source = unpack_gzip(window, path)
        return checked(Archive(path, index_tar(unpacked, path), TarFiles(unpacked)))
    # Its members lie in the outer source, so that they can be mapped.
    members = {
        name: Member(name, member.size, span.offset + member.offset, member.mtime)
        for name, member in index_tar(window, path).items()
    }
    return checked(Archive(path, members, TarFiles(span.source), owner=archive))
