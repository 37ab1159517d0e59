"""Archives behind a URL (`https://`, `s3://`, `hf://`, `memory://`, ...), read in ranges (`pip install
nemo-archive[remote]`).

What is read is rounded to blocks of 4 KiB and kept for a while; reads that follow one another fetch more and more
ahead. So the config of a large file costs a few kilobytes, and its weights a few requests.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    import mmap

    from nemo_archive.sources import Source

BLOCK = 4 << 10  # bytes; requests begin and end at multiples of it
AHEAD = 16 << 20  # bytes; the most that is fetched before it is asked for
KEPT = 32 << 20  # bytes; of ranges that were fetched
_NEAR = 64 << 10  # a gap between two reads that still counts as going on
_RECENT = 32  # ranges that are searched; a range that begins at the right block is found in any case


class RemoteSource:
    """A file that fsspec opens. Threads share it; a forked child opens the file anew."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options
        self._connect()
        self.size: int = self._size()

    def _connect(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._ranges: OrderedDict[int, bytes] = OrderedDict()
        self._kept = self._reached = self._streak = 0
        self._filesystem, self._path = _find_filesystem(self._url, self._options)
        with _Translating(self._url):
            self._file: Any = self._filesystem.open(self._path, "rb", cache_type="none")

    def _size(self) -> int:
        size = getattr(self._file, "size", None)
        if not isinstance(size, int) or not self._file.seekable():
            self.close()
            raise ArchiveError("the server does not send parts of a file: download it first", path=self._url)
        return size

    def view(self, offset: int, length: int) -> memoryview:
        if self._process != os.getpid():
            self._connect()
        with self._lock:
            if self._file is None:
                raise ArchiveError("the archive is closed", path=self._url)
            if length == 0:
                return memoryview(b"")
            going_on = -BLOCK <= offset - self._reached <= _NEAR
            self._streak = self._streak + length if going_on else length
            self._reached = offset + length
            return self._find(offset, length) or self._fetch(offset, length)

    def _find(self, offset: int, length: int) -> memoryview | None:
        begin = offset // BLOCK * BLOCK
        candidates = [begin, *(start for start, _ in zip(reversed(self._ranges), range(_RECENT), strict=False))]
        for start in candidates:
            data = self._ranges.get(start, b"")
            if start <= offset and offset + length <= start + len(data):
                self._ranges.move_to_end(start)
                return memoryview(data)[offset - start : offset - start + length]
        return None

    def _fetch(self, offset: int, length: int) -> memoryview:
        begin = offset // BLOCK * BLOCK
        wanted = max(length + offset - begin, min(self._streak, AHEAD))
        end = min(self.size, begin + -(-wanted // BLOCK) * BLOCK)
        with _Translating(self._url):
            self._file.seek(begin)
            data = self._file.read(end - begin)
        if len(data) != end - begin:
            raise ArchiveError(f"the server sent {len(data)} bytes where {end - begin} belong", path=self._url)
        self._keep(begin, data)
        return memoryview(data)[offset - begin : offset - begin + length]

    def _keep(self, begin: int, data: bytes) -> None:
        self._kept += len(data) - len(self._ranges.pop(begin, b""))
        self._ranges[begin] = data
        while self._kept > KEPT and len(self._ranges) > 1:
            _, dropped = self._ranges.popitem(last=False)
            self._kept -= len(dropped)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetches ranges (offset, length) that will be asked for soon, at once where the protocol can."""
        if self._process != os.getpid():
            self._connect()
        with self._lock:
            begins = sorted({offset // BLOCK * BLOCK for offset, length in ranges if not self._find(offset, length)})
            begins = begins[: KEPT // BLOCK // 2]
            ends = [min(self.size, begin + BLOCK) for begin in begins]
            with _Translating(self._url):
                fetched = self._filesystem.cat_ranges([self._path] * len(begins), begins, ends)
            for begin, end, data in zip(begins, ends, fetched, strict=True):
                if isinstance(data, bytes) and len(data) == end - begin:  # else it is asked for again when needed
                    self._keep(begin, data)

    def private_map(self) -> mmap.mmap | None:
        return None

    def close(self) -> None:
        file, self._file = self._file, None
        self._ranges, self._kept = OrderedDict(), 0
        if file is not None:
            file.close()


class ReadAhead:
    """A source that is read from begin to end, in large parts: a packed archive."""

    def __init__(self, source: Source, part: int = AHEAD) -> None:
        self.size = source.size
        self._source, self._part = source, part
        self._begin, self._data = 0, memoryview(b"")

    def view(self, offset: int, length: int) -> memoryview:
        if not self._begin <= offset <= offset + length <= self._begin + len(self._data):
            self._begin = offset
            self._data = self._source.view(offset, min(max(length, self._part), self.size - offset))
        return self._data[offset - self._begin : offset - self._begin + length]

    def private_map(self) -> mmap.mmap | None:
        return None

    def close(self) -> None:
        self._source.close()


def _find_filesystem(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ArchiveError("URLs need fsspec: pip install 'nemo-archive[remote]'", path=url) from None
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        raise ArchiveError(f"its protocol needs another package: {error}", path=url) from None
    except ValueError as error:
        raise ArchiveError(str(error), path=url) from None


class _Translating:
    """Within it, what the many file systems raise becomes an ArchiveError; OSError stays what it is."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError | ArchiveError):
            rule = f"cannot be read: {type(error).__name__} {' '.join(str(error).split())[:200]}"
            raise ArchiveError(rule, path=self._url) from None
