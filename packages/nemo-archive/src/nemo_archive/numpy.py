"""Weights as numpy arrays: read-only views of the archive's bytes (`pip install nemo-archive[numpy]`)."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from nemo_archive.checkpoint import Checkpoint, TensorInfo
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    import numpy as np

_NOT_IN_NUMPY = ("bfloat16", "float8_")


def load_arrays(
    archive: Archive | str | os.PathLike[str], *, mmap: bool = True, member: str | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a checkpoint by name, in file order.

    On a plain archive the arrays are views of the mapped file: nothing is read before it is touched, and they stay
    valid after the archive is closed. Tensors that share a storage share memory. bfloat16 and float8 come in
    ml_dtypes' types.

    Args:
        archive: an open archive, or a path.
        mmap: for a path: whether to map the file (see `open_archive`).
        member: one of `archive.checkpoints()`; None is `archive.weights`.

    Raises:
        ArchiveError: if it is no sound checkpoint, or numpy or ml_dtypes is missing.
    """
    if not isinstance(archive, Archive):
        with open_archive(archive, mmap=mmap) as opened:
            return load_arrays(opened, member=member)
    checkpoint = archive.checkpoint(member)
    views = {key: storage.view() for key, storage in checkpoint.storages.items()}
    return {name: _array(info, views[info.storage]) for name, info in checkpoint.tensors.items()}


def load_array(archive: Archive, name: str, *, member: str | None = None) -> np.ndarray[Any, Any]:
    """One tensor of a checkpoint, as `load_arrays` gives it.

    Raises:
        ArchiveError: if there is none of that name, or as `load_arrays`.
    """
    checkpoint: Checkpoint = archive.checkpoint(member)
    info = checkpoint.tensors.get(name)
    if info is None:
        raise checkpoint.span.error(f"it holds no tensor {name!r}")
    return _array(info, checkpoint.storages[info.storage].view())


def _array(info: TensorInfo, storage: memoryview) -> np.ndarray[Any, Any]:
    dtype = array_dtype(info.dtype)
    import numpy as np

    if info.numel == 0:
        return np.empty(info.shape, dtype)
    array: np.ndarray[Any, Any] = np.ndarray(
        info.shape,
        dtype,
        buffer=np.frombuffer(storage.toreadonly(), np.uint8),  # which holds on to the map
        offset=info.offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in info.strides],
    )
    return array


@functools.cache
def array_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype for torch's name of one; bfloat16 and float8 are ml_dtypes'.

    Raises:
        ArchiveError: if numpy or ml_dtypes is missing.
    """
    try:
        import numpy as np

        if name.startswith(_NOT_IN_NUMPY):
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, name))
    except ImportError as error:
        raise ArchiveError(f"arrays of {name} need {error.name}: pip install 'nemo-archive[numpy]'") from None
    return np.dtype(name)
