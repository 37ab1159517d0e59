"""Read and write .nemo model archives, without torch.

    with open_archive("model.nemo") as archive:
        archive.config()["target"], archive.artifacts(), archive.tensors()

`nemo_archive.numpy` and `nemo_archive.torch` give arrays and tensors.
"""

from typing import TYPE_CHECKING, Any

from nemo_archive.artifacts import Artifact
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError
from nemo_archive.tar_index import Member

if TYPE_CHECKING:
    from nemo_archive.checkpoint import TensorInfo
    from nemo_archive.writer import ArchiveWriter

__all__ = ["Archive", "ArchiveError", "ArchiveWriter", "Artifact", "Member", "TensorInfo", "open_archive"]

_LAZY = {"ArchiveWriter": "nemo_archive.writer", "TensorInfo": "nemo_archive.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nemo_archive' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
