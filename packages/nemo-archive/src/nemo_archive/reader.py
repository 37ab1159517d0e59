"""Opening a `.nemo` archive: an index of its members first, everything else when it is asked for.

A `.nemo` is a tar file (plain since NeMo 1.7, gzip before) of model_config.yaml, the weights and artifacts; see
artifacts.py and torch_zip.py. Nothing is unpacked to disk, except that a gzip archive above
`sources.GZIP_IN_MEMORY` bytes goes to one unnamed temporary file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from nemo_archive.artifacts import CONFIG, Artifact, find_references
from nemo_archive.folder import Files, FolderFiles, TarFiles, index_folder
from nemo_archive.safety import ArchiveError, member_name
from nemo_archive.sources import Source, Span, SpanFile, open_source, unpack_gzip
from nemo_archive.tar_index import Member, index_tar

if TYPE_CHECKING:
    from nemo_archive.checkpoint import Checkpoint, TensorInfo


class Archive:
    """An open archive; made by `open_archive`. Threads may share it, and it survives a fork.

    Attributes:
        path: what was opened.
        members: the files in the archive by name (without `./`), in file order.
    """

    def __init__(
        self,
        path: str,
        members: dict[str, Member],
        files: Files,
        *,
        owner: Archive | None = None,
        config: str = CONFIG,
        weights: str | None = None,
        section: str = "",
        allow: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.path = path
        self.members: Mapping[str, Member] = MappingProxyType(members)
        self._files, self._owner = files, owner  # a sub-model's owner has opened the files, and closes them
        self._config_name, self._weights_name, self._section = config, weights, section
        self._allow: dict[str, Callable[..., Any]] = owner._allow if owner is not None else dict(allow or {})
        self._closed = False
        self._config: dict[str, Any] | None = None
        self._checkpoints: dict[str, Checkpoint] = {}

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Archive({self.path!r}, {len(self.members)} members{', closed' if self.closed else ''})"

    def close(self) -> None:
        """Lets go of the file. Arrays and tensors made from it stay valid; sub-models are closed, too."""
        self._closed = True
        self._checkpoints = {}
        if self._owner is None:
            self._files.close()

    @property
    def closed(self) -> bool:
        """Whether it can no longer be read."""
        return self._closed or (self._owner is not None and self._owner.closed)

    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            ArchiveError: if there is none of that name.
        """
        span = self.span(name)
        return span.read(0, span.size)

    def open(self, name: str) -> BinaryIO:
        """A member as a seekable file, without reading it whole."""
        return cast(BinaryIO, io.BufferedReader(SpanFile(self.span(name))))

    def span(self, name: str) -> Span:
        """Where a member's bytes are; for code that maps or copies them itself.

        Raises:
            ArchiveError: if there is no member of that name, or the archive is closed.
        """
        if self.closed:
            raise ArchiveError("the archive is closed", path=self.path)
        member = self.members.get(name) or self.members.get(member_name(name, self.path))
        if member is None:
            raise ArchiveError("is not in the archive", path=self.path, member=name)
        return Span(self._files.source_of(member), member.offset, member.size, self.path, member.name)

    def config(self) -> dict[str, Any]:
        """model_config.yaml as plain dicts, lists and scalars, a fresh copy; `1e-3` is a float, `${...}` stays text.

        Raises:
            ArchiveError: if it is no YAML mapping of plain types.
        """
        return cast(dict[str, Any], _copy(self._parsed_config()))

    def _parsed_config(self) -> dict[str, Any]:
        if self._config is None:
            if self._owner is not None and self._section:
                from nemo_archive.submodels import section_of

                self._config = cast(dict[str, Any], section_of(self._owner._parsed_config(), self._section))
            else:
                self._config = _read_config(self.span(self._config_name))
        return self._config

    def references(self) -> dict[str, str]:
        """Dotted config path to member name for every artifact that the config names, present or not."""
        return find_references(self._parsed_config(), self.members.keys())

    def artifacts(self) -> dict[str, Artifact]:
        """Every artifact that the config names and the archive holds, by dotted config path."""
        read: dict[str, Artifact] = {}
        found = {}
        for config_path, name in self.references().items():
            if name in self.members:
                if name not in read:
                    read[name] = Artifact(name, self.read(name))
                found[config_path] = read[name]
        return found

    def artifact(self, config_path: str) -> Artifact:
        """The artifact that the config names at a dotted path, e.g. `tokenizer.model_path`.

        Raises:
            ArchiveError: if the config names none there, or the archive lacks it.
        """
        name = self.references().get(config_path)
        if name is None:
            raise ArchiveError(f"{config_path}: the config names no artifact there", path=self.path)
        if name not in self.members:
            raise ArchiveError(f"{config_path} names it, but it is not in the archive", path=self.path, member=name)
        return Artifact(name, self.read(name))

    def checkpoints(self) -> tuple[str, ...]:
        """The names of all checkpoints in the archive: weights, shards of split models, those of sub-models.

        A sharded checkpoint (of torch.distributed, or zarr) is a folder, and named without a closing slash.
        """
        from nemo_archive.weights import find_checkpoints

        return find_checkpoints(self)

    @property
    def weights(self) -> str:
        """The name of the checkpoint that holds the model's weights.

        Raises:
            ArchiveError: if there is none, or the model is split and none of its shards is the whole.
        """
        from nemo_archive.weights import choose_weights

        return self._weights_name or choose_weights(self)

    @property
    def is_whole(self) -> bool:
        """Whether it is an archive of its own, not a model that shares the members of another."""
        return self._config_name == CONFIG and not self._section

    @property
    def prefix(self) -> str:
        """What the names of this model's tensors begin with in the file; "" unless it is a section of another."""
        outer = self._owner.prefix if self._owner is not None and self._section else ""
        return f"{outer}{self._section}." if self._section else ""

    def checkpoint(self, member: str | None = None) -> Checkpoint:
        """The index of a checkpoint in the archive: structure, tensors, storages; no element is read.

        Args:
            member: one of `checkpoints()`; None is `weights`.

        Raises:
            ArchiveError: if it is neither a zip checkpoint of torch nor safetensors, damaged, or holds more than
                weights.
        """
        name = member_name(self.weights if member is None else member, self.path)
        if self.closed or name not in self._checkpoints:
            self._checkpoints[name] = self._read_checkpoint(name)
        return self._checkpoints[name]

    def _read_checkpoint(self, name: str) -> Checkpoint:
        if self._owner is not None and self._section:
            from nemo_archive.submodels import part_of

            return part_of(self._owner.checkpoint(name), f"{self._section}.")
        if f"{name}/.metadata" in self.members:
            from nemo_archive.distributed import read_distributed

            return read_distributed(self, name)
        if name not in self.members and name in self.checkpoints():
            from nemo_archive.zarr import read_zarr

            return read_zarr(self, name)
        from nemo_archive.checkpoint import read_checkpoint

        return read_checkpoint(self.span(name), self._allow)

    def submodels(self) -> tuple[str, ...]:
        """The names of the models that the archive holds besides its own.

        Those are pairs of `<name>_config.yaml` and `<name>_weights.ckpt`, sections of the config that are models, and
        `.nemo` members.
        """
        from nemo_archive.submodels import find_submodels

        return find_submodels(self)

    def submodel(self, name: str) -> Archive:
        """One of `submodels()`, to be read like any archive, while this one is open.

        Raises:
            ArchiveError: if there is none of that name, or it is a damaged archive.
        """
        from nemo_archive.submodels import open_submodel

        return open_submodel(self, name)

    def tensors(self, member: str | None = None) -> Mapping[str, TensorInfo]:
        """Names, shapes, dtypes and places of the tensors of a checkpoint, in file order.

        Args:
            member: one of `checkpoints()`; None is `weights`. Models split over several GPUs have e.g.
                `mp_rank_00/model_weights.ckpt`.

        Raises:
            ArchiveError: as `checkpoint`.
        """
        return MappingProxyType(self.checkpoint(member).tensors)


def open_archive(
    path: str | os.PathLike[str], *, mmap: bool = True, allow: Mapping[str, Callable[..., Any]] | None = None
) -> Archive:
    """Opens a `.nemo` file, or a folder into which one was unpacked, and indexes its members.

    A plain archive is mapped read-only, so that reading a part touches only that part. Replacing the file by renaming
    another over it is safe meanwhile; overwriting it in place changes what is read, and shortening it may kill the
    process (SIGBUS): pass `mmap=False` where that can happen. A gzip archive is unpacked into memory (once, at the
    cost of its full size), above 1 GiB into an unnamed temporary file.

    Args:
        path: the file or folder, or a URL that fsspec knows (`https://`, `s3://`, `hf://`, ...), of which only the
            parts that are asked for are fetched.
        mmap: False reads a copy of what is asked for.
        allow: names that pickles in checkpoints may hold besides those of weights, `{"module.Name": what it stands
            for}`. The class or function given here is called with what the file says; nothing is imported by name.

    Raises:
        ArchiveError: if it is no sound archive, in one line that says what it really is.
        OSError: if it cannot be opened.
    """
    name = os.fspath(path)
    if os.path.isdir(name):  # noqa: PTH112
        return checked(Archive(name, index_folder(name), FolderFiles(name, mmap=mmap), allow=allow))
    source = _open_remote(name) if "://" in name else open_source(name, mmap=mmap)
    try:
        if source.size > 2 and bytes(source.view(0, 2)) == b"\x1f\x8b":
            packed, source = source, _unpack(source, name)
            packed.close()
        return checked(Archive(name, index_tar(source, name), TarFiles(source), allow=allow))
    except BaseException:
        source.close()
        raise


def _open_remote(url: str) -> Source:
    from nemo_archive.remote import RemoteSource

    return RemoteSource(url)


def _unpack(packed: Source, name: str) -> Source:
    if "://" in name:
        from nemo_archive.remote import ReadAhead

        packed = ReadAhead(packed)
    return unpack_gzip(packed, name)


def checked(archive: Archive) -> Archive:
    """The archive, if it holds a model.

    Raises:
        ArchiveError: if it does not; the archive is closed.
    """
    if CONFIG not in archive.members:
        archive.close()
        held = ", ".join(list(archive.members)[:5]) or "nothing"
        raise ArchiveError(f"not a .nemo archive: it has no {CONFIG}, but {held}", path=archive.path)
    return archive


def _read_config(span: Span) -> dict[str, Any]:
    from nemo_archive.yaml_config import LARGEST_CONFIG, parse_config

    if span.size > LARGEST_CONFIG:
        raise span.error(f"a config of {span.size} bytes is refused (at most {LARGEST_CONFIG})")
    try:
        return parse_config(span.read(0, span.size))
    except ArchiveError as error:
        raise span.error(error.rule) from None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copy(entry) for entry in value]
    return value
