"""The weights of an archive, as the commands look at them: which checkpoints there are, and a tensor's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    from nemo_archive.checkpoint import Checkpoint, TensorInfo
    from nemo_archive.reader import Archive

_MOST_REPEATED = 4  # how many times larger than its memory a tensor may be made by its strides
_ALWAYS_FINE = 1 << 20  # bytes


def checkpoints(archive: Archive) -> dict[str, Checkpoint | ArchiveError]:
    """Every checkpoint of the archive by name; for one that is unreadable, the reason."""
    found: dict[str, Checkpoint | ArchiveError] = {}
    for name in archive.checkpoints():
        try:
            found[name] = archive.checkpoint(name)
        except ArchiveError as error:
            found[name] = error
    return found


def readable_checkpoints(archive: Archive) -> dict[str, Checkpoint]:
    """Every checkpoint of the archive by name.

    Raises:
        ArchiveError: if one cannot be read.
    """
    return {name: archive.checkpoint(name) for name in archive.checkpoints()}


def elements(checkpoint: Checkpoint, info: TensorInfo) -> memoryview:
    """The bytes of a tensor's elements in row order; no copy where they lie in the file like that.

    Raises:
        ArchiveError: if the strides blow a few bytes up to a huge tensor.
    """
    from nemo_archive.strided import Layout, row_order
    from nemo_archive.unpickler import ITEM_BYTES

    check_extent(checkpoint, info)
    storage = checkpoint.storages[info.storage]
    return row_order(storage.view(), Layout(info.offset, info.strides), info.shape, ITEM_BYTES[info.dtype])


def check_extent(checkpoint: Checkpoint, info: TensorInfo) -> None:
    """Refuses a tensor whose strides blow a few bytes up to something huge, before its elements are looked at.

    Raises:
        ArchiveError: if it is one.
    """
    stored = checkpoint.storages[info.storage].nbytes
    if info.nbytes > max(_ALWAYS_FINE, _MOST_REPEATED * stored):
        raise checkpoint.span.error(f"tensor {info.name!r:.100}: {info.nbytes} bytes made of {stored} stored ones")


def distinct(checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    """The tensors, those that are the same memory under several names (tied weights) once."""
    seen: set[Any] = set()
    for info in checkpoint.tensors.values():
        place = (info.storage, info.offset, info.shape, info.strides, info.dtype)
        if not info.numel or place not in seen:
            seen.add(place)
            yield info


def tied_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Name of each tensor that is the same memory as an earlier one, to the earlier name."""
    first: dict[Any, str] = {}
    tied = {}
    for info in checkpoint.tensors.values():
        place = (info.storage, info.offset, info.shape, info.strides, info.dtype)
        if info.numel and first.setdefault(place, info.name) != info.name:
            tied[info.name] = first[place]
    return tied
