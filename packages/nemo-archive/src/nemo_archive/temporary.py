"""The file that grows beside its target: `.<name of the target>.<12 hex digits>.tmp`.

A writer that is killed leaves it behind; no reader takes it for an archive, since it begins with a dot and ends in
`.tmp`. The next writer of the same target removes it: each holds a lock (flock) on its own, which ends with its
process, so that a file without a lock belongs to nobody. Where there are no such locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator


@contextlib.contextmanager
def temporary_beside(target: str) -> Iterator[tuple[int, str]]:
    """A new empty file in the target's folder, open for reading and writing: its descriptor, which the block closes,
    and its name. Within the block it is to be renamed or removed; it is removed if the block raises.

    Raises:
        OSError: if it cannot be made.
    """
    folder, base = os.path.split(target)
    _remove_leftovers(folder, base)
    handle, name = _open_locked(folder, base)
    lock = os.dup(handle)
    try:
        yield handle, name
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108
        raise
    finally:
        os.close(lock)


def _open_locked(folder: str, base: str) -> tuple[int, str]:
    while True:
        name = os.path.join(folder, f".{base[:200]}.{os.urandom(6).hex()}.tmp")  # noqa: PTH118
        # Opened by hand: the mode follows the umask, which no other thread's setting of it can disturb.
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        _lock(handle, wait=True)
        if os.name == "nt" or os.fstat(handle).st_nlink:  # else another writer found it before it was locked
            return handle, name
        os.close(handle)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the file is now this process's."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):  # Windows; another's; a file system without locks
        return False
    return True


def _remove_leftovers(folder: str, base: str) -> None:
    pattern = re.compile(re.escape(f".{base[:200]}.") + r"[0-9a-f]{12}\.tmp")
    with contextlib.suppress(OSError):  # a folder that may be written but not listed
        for name in filter(pattern.fullmatch, os.listdir(folder or ".")):  # noqa: PTH208
            _remove_unlocked(os.path.join(folder, name))  # noqa: PTH118


def _remove_unlocked(name: str) -> None:
    try:
        descriptor = os.open(name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        if _lock(descriptor, wait=False):
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108
    finally:
        os.close(descriptor)
