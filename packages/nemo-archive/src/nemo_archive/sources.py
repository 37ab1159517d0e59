"""Where the bytes of an archive come from: a read-only map, a file read piece by piece, or memory.

A source answers reads at absolute offsets and holds no position, so threads and forked children share it freely.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, NamedTuple, Protocol

from nemo_archive.safety import ArchiveError, describe_special

GZIP_IN_MEMORY = 1 << 30  # bytes; a gzip archive that unpacks to more goes to a private temporary file
GZIP_FREE_RATIO = 200  # how many times larger than its gzip stream an archive may be ...
GZIP_ALWAYS_FINE = 256 << 20  # ... once it is larger than this many bytes
GZIP_MOST_STREAMS = 1000  # one after the other, besides one for each 16 KiB
_CHUNK = 1 << 20
_PACKED_CHUNK = 16 << 10  # what is left of it is copied at the end of each stream


class Source(Protocol):
    """Random access to `size` bytes."""

    size: int

    def view(self, offset: int, length: int) -> memoryview:
        """Exactly `length` bytes from `offset`, without a copy where the source allows it."""

    def private_map(self) -> mmap.mmap | None:
        """A fresh copy-on-write map of the whole source; None where it is not a file that can be mapped."""

    def close(self) -> None: ...


class MappedSource:
    """A file mapped read-only; views stay valid after `close` for as long as they are held."""

    def __init__(self, file: BinaryIO | IO[bytes], size: int) -> None:
        self.size = size
        self._file = file
        self._map: mmap.mmap | None = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)

    def view(self, offset: int, length: int) -> memoryview:
        if self._map is None:
            raise ArchiveError("the archive is closed")
        return memoryview(self._map)[offset : offset + length]

    def fileno(self) -> int:
        """The open file, from which the kernel can copy."""
        return self._file.fileno()

    def private_map(self) -> mmap.mmap | None:
        # From the open file, not from its name, which may meanwhile belong to another file.
        try:
            return mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_COPY)
        except ValueError as error:  # it was shortened in place, or closed by another thread
            raise ArchiveError(f"cannot be mapped any more ({error})", path=str(self._file.name)) from None

    def close(self) -> None:
        # Not `_map.close()`: whoever looks at the map keeps it, and it goes with the last of them. (numpy may look
        # without holding the buffer, so that closing would succeed and the next access end the process.)
        self._map = None
        self._file.close()


class FileSource:
    """A file that is read piece by piece; nothing of it is mapped."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._lock = threading.Lock()

    def view(self, offset: int, length: int) -> memoryview:
        data = bytearray(length)
        filled = 0
        while filled < length:
            count = self._read_into(memoryview(data)[filled:], offset + filled)
            if count == 0:
                raise ArchiveError("the file became shorter while it was read", path=str(self._file.name))
            filled += count
        return memoryview(data)

    def fileno(self) -> int:
        """The open file, from which the kernel can copy."""
        return self._file.fileno()

    def _read_into(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):  # no shared file position: safe between threads and after a fork
            return os.preadv(self._file.fileno(), [buffer], offset)
        with self._lock:
            self._file.seek(offset)
            chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def private_map(self) -> mmap.mmap | None:
        return None

    def close(self) -> None:
        self._file.close()


class MemorySource:
    """Bytes in memory, such as an unpacked gzip archive."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.size = len(data)
        self._data = data

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(self._data).toreadonly()[offset : offset + length]

    def private_map(self) -> mmap.mmap | None:
        return None

    def close(self) -> None:
        self._data = b""


class Span(NamedTuple):
    """A part of a source: one member, or one file of an unpacked folder."""

    source: Source
    offset: int
    size: int
    path: str
    member: str

    def view(self, start: int, length: int) -> memoryview:
        """`length` bytes from `start` within the span.

        Raises:
            ArchiveError: if they lie outside it.
        """
        if start < 0 or length < 0 or start + length > self.size:
            raise self.error(f"refers to bytes {start} to {start + length} of {self.size}")
        return self.source.view(self.offset + start, length)

    def read(self, start: int, length: int) -> bytes:
        return bytes(self.view(start, length))

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        """Says which (start, length) will be read soon, for sources where each read is a request."""
        fetch = getattr(self.source, "prefetch", None)
        if fetch is not None:
            fetch([(self.offset + start, length) for start, length in ranges if start + length <= self.size])

    def error(self, rule: str) -> ArchiveError:
        return ArchiveError(rule, path=self.path, member=self.member)


class SpanFile(io.RawIOBase):
    """A read-only, seekable file over a span."""

    def __init__(self, span: Span) -> None:
        super().__init__()
        self._span, self._position = span, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._span.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}: before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._span.size - self._position))
        if count:
            buffer[:count] = self._span.view(self._position, count)
        self._position += count
        return count


def open_source(path: str, *, mmap: bool) -> Source:
    """Opens a plain file, mapped if asked for and if the file system can."""
    mode = os.stat(path).st_mode  # noqa: PTH116
    if not stat.S_ISREG(mode):  # opening a FIFO would wait for a writer
        raise ArchiveError(f"this is {describe_special(mode)}, neither a file nor a folder", path=path)
    file = open(path, "rb")  # noqa: SIM115, PTH123 - the source owns it
    try:
        size = os.fstat(file.fileno()).st_size
        if mmap and size:
            try:
                return MappedSource(file, size)
            except (OSError, ValueError):  # a file system without maps
                pass
        return FileSource(file, size)
    except BaseException:
        file.close()
        raise


def unpack_gzip(packed: Source, path: str, *, in_memory: int = GZIP_IN_MEMORY) -> Source:
    """Unpacks a gzip stream once: into memory, or above `in_memory` bytes into an unnamed temporary file.

    Raises:
        ArchiveError: if the stream is damaged, cut short, or suspiciously small for what it unpacks to.
    """
    memory = bytearray()
    spilled: IO[bytes] | None = None
    total = 0
    try:
        for piece in _inflate(packed, path):
            total += len(piece)
            if spilled is None and total > in_memory:
                import tempfile

                spilled = tempfile.TemporaryFile()  # noqa: SIM115 - the source owns it
                spilled.write(memory)
                memory = bytearray()
            (memory.extend if spilled is None else spilled.write)(piece)
        if spilled is None:
            return MemorySource(memory)
        spilled.flush()
        return MappedSource(spilled, total)
    except BaseException:
        if spilled is not None:
            spilled.close()
        raise


def _inflate(packed: Source, path: str) -> Iterator[bytes]:
    stream = zlib.decompressobj(wbits=31)
    read = produced = streams = 0
    pending = b""
    while pending or read < packed.size:
        if not pending:
            pending = bytes(packed.view(read, min(_PACKED_CHUNK, packed.size - read)))
            read += len(pending)
        if stream.eof:  # one gzip stream after another, or the padding that some tools append
            if not pending.strip(b"\0"):
                pending = b""
                continue
            stream = zlib.decompressobj(wbits=31)
            streams += 1
            if streams > GZIP_MOST_STREAMS + read // _PACKED_CHUNK:
                raise ArchiveError(f"made of over {GZIP_MOST_STREAMS} gzip streams", path=path)
        try:
            piece = stream.decompress(pending, _CHUNK)
        except zlib.error as error:
            raise ArchiveError(f"damaged gzip stream ({error})", path=path) from None
        pending = stream.unused_data if stream.eof else stream.unconsumed_tail
        produced += len(piece)
        if produced > GZIP_ALWAYS_FINE and produced > GZIP_FREE_RATIO * packed.size:
            raise ArchiveError(f"unpacks to over {GZIP_FREE_RATIO} times its size: a gzip bomb?", path=path)
        yield piece
    while not stream.eof:  # what the last chunk still holds back
        try:
            piece = stream.decompress(b"", _CHUNK)
        except zlib.error as error:
            raise ArchiveError(f"damaged gzip stream ({error})", path=path) from None
        if not piece:
            raise ArchiveError("truncated: the gzip stream ends early", path=path)
        yield piece
