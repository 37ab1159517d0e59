"""Opening a `.nemo` archive: an index of its members first, everything else when it is asked for.

A `.nemo` is a tar file (plain since NeMo 1.7, gzip before) of model_config.yaml, the weights and artifacts; see
artifacts.py and torch_zip.py. Nothing is unpacked to disk, except that a gzip archive above
`sources.GZIP_IN_MEMORY` bytes goes to one unnamed temporary file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from nemo_archive.artifacts import CONFIG, Artifact, find_references
from nemo_archive.safety import ArchiveError, member_name
from nemo_archive.sources import Source, Span, SpanFile, open_source, unpack_gzip
from nemo_archive.tar_index import MOST_MEMBERS, Member, index_tar

if TYPE_CHECKING:
    from nemo_archive.checkpoint import Checkpoint, TensorInfo


class Archive:
    """An open archive; made by `open_archive`. Threads may share it, and it survives a fork.

    Attributes:
        path: what was opened.
        members: the files in the archive by name (without `./`), in file order.
    """

    def __init__(self, path: str, members: dict[str, Member], source: Source | None) -> None:
        self.path = path
        self.members: Mapping[str, Member] = MappingProxyType(members)
        self._source = source  # None: an unpacked folder, one source per member
        self._opened: dict[str, Source] = {}
        self._mmap = True
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
        return f"Archive({self.path!r}, {len(self.members)} members{', closed' if self._closed else ''})"

    def close(self) -> None:
        """Lets go of the file. Arrays and tensors made from it stay valid."""
        self._closed = True
        for source in (self._source, *self._opened.values()):
            if source is not None:
                source.close()
        self._opened = {}
        self._checkpoints = {}

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
        if self._closed:
            raise ArchiveError("the archive is closed", path=self.path)
        member = self.members.get(name) or self.members.get(member_name(name, self.path))
        if member is None:
            raise ArchiveError("is not in the archive", path=self.path, member=name)
        return Span(self._source_of(member), member.offset, member.size, self.path, member.name)

    def _source_of(self, member: Member) -> Source:
        if self._source is not None:
            return self._source
        if member.name not in self._opened:
            self._opened[member.name] = open_source(os.path.join(self.path, member.name), mmap=self._mmap)  # noqa: PTH118
        return self._opened[member.name]

    def config(self) -> dict[str, Any]:
        """model_config.yaml as plain dicts, lists and scalars, a fresh copy; `1e-3` is a float, `${...}` stays text.

        Raises:
            ArchiveError: if it is no YAML mapping of plain types.
        """
        return cast(dict[str, Any], _copy(self._parsed_config()))

    def _parsed_config(self) -> dict[str, Any]:
        if self._config is None:
            from nemo_archive.yaml_config import LARGEST_CONFIG, parse_config

            span = self.span(CONFIG)
            if span.size > LARGEST_CONFIG:
                raise span.error(f"a config of {span.size} bytes is refused (at most {LARGEST_CONFIG})")
            try:
                self._config = parse_config(self.read(CONFIG))
            except ArchiveError as error:
                raise ArchiveError(error.rule, path=self.path, member=CONFIG) from None
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

        A sharded checkpoint of torch.distributed is a folder, and named without a closing slash.
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

        return choose_weights(self)

    def checkpoint(self, member: str | None = None) -> Checkpoint:
        """The index of a checkpoint in the archive: structure, tensors, storages; no element is read.

        Args:
            member: one of `checkpoints()`; None is `weights`.

        Raises:
            ArchiveError: if it is neither a zip checkpoint of torch nor safetensors, damaged, or holds more than
                weights.
        """
        span = self.span(self.weights if member is None else member)
        if span.member not in self._checkpoints:
            from nemo_archive.checkpoint import read_checkpoint

            self._checkpoints[span.member] = read_checkpoint(span)
        return self._checkpoints[span.member]

    def tensors(self, member: str | None = None) -> Mapping[str, TensorInfo]:
        """Names, shapes, dtypes and places of the tensors of a checkpoint, in file order.

        Args:
            member: one of `checkpoints()`; None is `weights`. Models split over several GPUs have e.g.
                `mp_rank_00/model_weights.ckpt`.

        Raises:
            ArchiveError: as `checkpoint`.
        """
        return MappingProxyType(self.checkpoint(member).tensors)


def open_archive(path: str | os.PathLike[str], *, mmap: bool = True) -> Archive:
    """Opens a `.nemo` file, or a folder into which one was unpacked, and indexes its members.

    A plain archive is mapped read-only, so that reading a part touches only that part. Replacing the file by renaming
    another over it is safe meanwhile; overwriting it in place changes what is read, and shortening it may kill the
    process (SIGBUS): pass `mmap=False` where that can happen. A gzip archive is unpacked into memory (once, at the
    cost of its full size), above 1 GiB into an unnamed temporary file.

    Raises:
        ArchiveError: if it is no sound archive, in one line that says what it really is.
        OSError: if it cannot be opened.
    """
    name = os.fspath(path)
    if os.path.isdir(name):  # noqa: PTH112
        archive = Archive(name, _index_folder(name), None)
        archive._mmap = mmap
    else:
        source = open_source(name, mmap=mmap)
        try:
            if source.size > 2 and bytes(source.view(0, 2)) == b"\x1f\x8b":
                packed, source = source, unpack_gzip(source, name)
                packed.close()
            archive = Archive(name, index_tar(source, name), source)
        except BaseException:
            source.close()
            raise
    if CONFIG not in archive.members:
        archive.close()
        held = ", ".join(list(archive.members)[:5]) or "nothing"
        raise ArchiveError(f"not a .nemo archive: it has no {CONFIG}, but {held}", path=name)
    return archive


def _index_folder(folder: str) -> dict[str, Member]:
    members = {}
    pending = [""]
    while pending:
        below = pending.pop()
        for entry in sorted(os.scandir(os.path.join(folder, below)), key=lambda entry: entry.name):  # noqa: PTH118
            name = member_name(f"{below}/{entry.name}" if below else entry.name, folder)
            if len(members) + len(pending) >= MOST_MEMBERS:
                raise ArchiveError(f"an archive of over {MOST_MEMBERS} members is refused", path=folder)
            if entry.is_symlink():
                raise ArchiveError("symbolic links are refused", path=folder, member=name)
            if entry.is_dir():
                pending.append(name)
            elif entry.is_file():
                status = entry.stat()
                members[name] = Member(name, status.st_size, 0, int(status.st_mtime))
            else:
                raise ArchiveError("devices, FIFOs and sockets are refused", path=folder, member=name)
    return dict(sorted(members.items()))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copy(entry) for entry in value]
    return value
