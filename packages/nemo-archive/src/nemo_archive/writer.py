"""Writing a `.nemo` archive: the same content gives the same bytes, and a failure leaves what was there before.

Layout as NVIDIA's toolkit writes it: a `.` folder entry, then `./`-prefixed members; artifacts and others by name,
model_config.yaml, and the weights and all else that is streamed last. Times are 0, owners root. The file grows under a
temporary name beside the target, is flushed to the disk and renamed over it, so that a reader, or a model that still
maps the old file, never sees a half-written one.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from nemo_archive.artifacts import CONFIG, Artifact
from nemo_archive.safety import ArchiveError, member_name
from nemo_archive.tar_index import BLOCK
from nemo_archive.temporary import temporary_beside

if TYPE_CHECKING:
    from nemo_archive.reader import Archive
    from nemo_archive.sources import Span

_RECORD = 20 * BLOCK  # tar files end on a multiple of this
_LARGEST_OCTAL = 8 << 30
_CHUNK = 1 << 20
WEIGHTS_SUFFIXES = (".ckpt", ".safetensors")  # of members that stand last
_MOST_AT_ONCE = 1 << 30  # bytes that one system call is asked to copy


class ArchiveWriter:
    """Collects the members and writes the archive when the `with` block ends without an exception.

        with ArchiveWriter("model.nemo") as writer:
            writer.add_config({"target": ..., "tokenizer": {"model_path": artifact.reference}})
            writer.add_artifact(artifact)
            writer.add_stream("model_weights.ckpt", lambda file: torch.save(state_dict, file))

    A link as target is followed, the permissions of a file that is replaced are kept.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._members: dict[str, bytes] = {}
        self._streams: dict[str, Callable[[BinaryIO], object]] = {}
        self._copies: dict[str, Span] = {}

    def add_config(self, config: Mapping[str, Any]) -> None:
        """model_config.yaml, in the given order of keys.

        Raises:
            ArchiveError: if it holds a value that YAML has no plain type for.
        """
        from nemo_archive.yaml_config import write_config

        try:
            self.add_member(CONFIG, write_config(config))
        except ArchiveError as error:
            raise ArchiveError(error.rule, path=self.path, member=CONFIG) from None

    def add_artifact(self, artifact: Artifact) -> str:
        """Adds an artifact (equal ones once) under `artifact.archive_name`; returns what the config is to say."""
        name = artifact.archive_name
        if self._members.get(name) != artifact.data:
            self.add_member(name, artifact.data)
        return artifact.reference

    def add_member(self, name: str, data: bytes) -> None:
        """Adds a member whose content is in memory.

        Raises:
            ArchiveError: if the name is taken, absolute or climbs with `..`.
        """
        self._members[self._free(name)] = data

    def add_stream(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Adds a member that `write(file)` writes piece by piece when the archive is written.

        Raises:
            ArchiveError: as add_member.
        """
        self._streams[self._free(name)] = write

    def add_from(self, archive: Archive, member: str, *, name: str | None = None) -> None:
        """Adds a member of another archive as it is; where the system can, the kernel copies it (`copy_span`).

        The other archive must stay open until this one is written; it may be the file that is being replaced.

        Args:
            archive: where it is.
            member: its name there.
            name: its name here, if it is to have another.

        Raises:
            ArchiveError: if there is no such member, or as add_member.
        """
        self._copies[self._free(name or member)] = archive.span(member)

    def _free(self, name: str) -> str:
        normal = member_name(name, self.path)
        if not normal:
            raise ArchiveError("a member needs a name", path=self.path)
        if any(normal in added for added in (self._members, self._streams, self._copies)):
            raise ArchiveError("is there already, with other content", path=self.path, member=normal)
        return normal

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            write_file(self.path, self._write)

    def _write(self, file: BinaryIO) -> None:
        file.write(_header("./", 0, folder=True))
        for name in sorted((*self._members, *self._copies, *self._streams), key=self._place):
            if name in self._streams:
                _write_stream(file, f"./{name}", self._streams[name])
            elif name in self._copies:
                file.write(_header(f"./{name}", self._copies[name].size))
                copy_span(self._copies[name], file)
            else:
                file.write(_header(f"./{name}", len(self._members[name])))
                file.write(self._members[name])
            _pad(file, BLOCK)
        file.write(bytes(2 * BLOCK))
        _pad(file, _RECORD)

    def _place(self, name: str) -> tuple[int, str]:
        if name == CONFIG:
            return 1, name
        return (2 if name in self._streams or name.endswith(WEIGHTS_SUFFIXES) else 0), name


class _Counting(io.RawIOBase):
    """The file that a stream's writer sees: it can only append."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self.count = file, 0
        self.failure: OSError | None = None  # torch makes a RuntimeError of a full disk

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.count += size
        return size

    def tell(self) -> int:
        return self.count


def _write_stream(file: BinaryIO, name: str, write: Callable[[BinaryIO], object]) -> None:
    """The size is known only afterwards, so the header is written last, into the room kept for it."""
    start = file.tell()
    room = len(_header(name, 0))
    file.write(bytes(room))
    counting = _Counting(file)
    try:
        write(cast(BinaryIO, counting))
    except Exception:
        if counting.failure is not None:
            raise counting.failure from None
        raise
    end = start + room + counting.count
    header = _header(name, counting.count)
    if len(header) != room:
        raise ArchiveError("its name is too long for a member of over 8 GiB", member=name)
    file.seek(start)
    file.write(header)
    file.seek(end)


def copy_span(span: Span, file: BinaryIO) -> None:
    """Appends a span to a file. Linux copies from file to file by itself; elsewhere the bytes pass through here.

    Raises:
        ArchiveError: if the source became shorter meanwhile.
        OSError: if the file cannot be written.
    """
    done = _copy_by_kernel(span, file)
    while done < span.size:
        step = min(_CHUNK, span.size - done)
        file.write(span.view(done, step))
        done += step


def _copy_by_kernel(span: Span, file: BinaryIO) -> int:
    """Copies with copy_file_range(2) as far as it goes, and leaves the file's position after that; returns how far."""
    try:
        source = span.source.fileno() if hasattr(span.source, "fileno") else None
    except ValueError:  # closed, as reading it will say
        return 0
    if source is None or not hasattr(os, "copy_file_range"):
        return 0
    file.flush()
    done, start = 0, file.tell()
    while done < span.size:
        step = min(_MOST_AT_ONCE, span.size - done)
        try:
            copied = os.copy_file_range(source, file.fileno(), step, span.offset + done, start + done)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM):
                raise
            break  # these two files, or this system: not by the kernel
        if copied == 0:
            raise span.error("the file became shorter while it was read")
        done += copied
    file.seek(start + done)
    return done


def _header(name: str, size: int, *, folder: bool = False) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o755 if folder else 0o644
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    info.uname = info.gname = "root"
    # Either form of a large size is read everywhere; GNU's needs no second header, for which no room was kept.
    return info.tobuf(tarfile.GNU_FORMAT if size >= _LARGEST_OCTAL else tarfile.PAX_FORMAT)


def _pad(file: BinaryIO, multiple: int) -> None:
    file.write(bytes(-file.tell() % multiple))


def write_file(
    path: str | os.PathLike[str],
    write: Callable[[BinaryIO], object],
    *,
    overwrite: bool = True,
    follow_link: bool = True,
) -> None:
    """Writes a file that appears, or replaces an older one, only when it is complete and on the disk.

    Args:
        path: the file; the permissions of one that is replaced are kept.
        write: gets a file open for writing, which can seek.
        overwrite: False refuses to replace a file or link.
        follow_link: where the path is a link, replace what it leads to, not the link.

    Raises:
        FileExistsError: if there is a file and `overwrite` is False.
        OSError: if it cannot be written; what was there is unchanged.
    """
    target = os.path.realpath(path) if follow_link and overwrite else os.path.abspath(path)  # noqa: PTH100
    with temporary_beside(target) as (handle, temporary):
        with open(handle, "wb", buffering=1 << 16) as file:  # noqa: PTH123
            write(file)
            file.flush()
            _keep_permissions(target, file.fileno())
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)  # noqa: PTH105
        else:
            _link(temporary, target)
    _sync_folder(os.path.dirname(target))  # noqa: PTH120


def _link(temporary: str, target: str) -> None:
    """Gives the file its name unless another has it; unlike a rename, that is one step."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # a file system or system without links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.replace(temporary, target)  # noqa: PTH105
    else:
        os.unlink(temporary)  # noqa: PTH108


def _keep_permissions(target: str, descriptor: int) -> None:
    try:
        mode = os.stat(target).st_mode & 0o7777  # noqa: PTH116
    except FileNotFoundError:
        return
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


def _sync_folder(folder: str) -> None:
    """Makes the rename itself last through a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse
        pass
    finally:
        os.close(descriptor)
