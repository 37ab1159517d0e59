"""Writing torch's zip checkpoints, which torch has to do; the one module of the commands that needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from nemo_archive.reader import Archive
from nemo_archive.safety import ArchiveError


def checkpoint_writer(archive: Archive, member: str) -> Callable[[BinaryIO], object]:
    """A function that writes a checkpoint of `archive` as a torch zip file; its tensors are mapped, not copied.

    Raises:
        ArchiveError: if torch is missing, or the checkpoint cannot be read.
    """
    try:
        import torch

        from nemo_archive.torch import load_state_dict
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        rule = "writing a torch checkpoint needs torch: pip install 'nemo-archive[torch]'"
        raise ArchiveError(rule, path=archive.path, member=member) from None
    state_dict = load_state_dict(archive, member=member)
    return lambda file: torch.save(state_dict, file)
