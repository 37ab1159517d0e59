"""Reads every .nemo file below a folder and compares its weights with torch.load; prints one line a file and counts.

    python tests/archive/check_golden_files.py FOLDER

Exit status 1 if any file cannot be read or any tensor differs.
"""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from nemo_archive import Archive, ArchiveError, open_archive
from nemo_archive.numpy import load_arrays
from nemo_archive.torch import load_state_dict


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape or ours.stride() != theirs.stride():
        return False
    return (
        ours.contiguous().view(torch.uint8).equal(theirs.contiguous().view(torch.uint8))
        if ours.dim()
        else (ours.reshape(1).view(torch.uint8).equal(theirs.reshape(1).view(torch.uint8)))
    )


def check_checkpoint(archive: Archive, member: str) -> int:
    """Compares one checkpoint; returns how many tensors it holds."""
    theirs = torch.load(io.BytesIO(archive.read(member)), map_location="cpu", weights_only=True)
    listed = archive.tensors(member)
    arrays = load_arrays(archive, member=member)
    for mmap in (True, False):
        ours = load_state_dict(archive, mmap=mmap, member=member)
        assert list(ours) == list(theirs), f"{member}: other names or another order"
        assert getattr(ours, "_metadata", None) == getattr(theirs, "_metadata", None), f"{member}: other metadata"
        for name, tensor in theirs.items():
            if not isinstance(tensor, torch.Tensor):
                assert ours[name] == tensor, f"{member}: {name} differs"
                continue
            assert same_bits(ours[name], tensor), f"{member}: {name} differs"
            info = listed[name]
            assert (info.shape, f"torch.{info.dtype}") == (tuple(tensor.shape), str(tensor.dtype)), f"{member}: {name}"
            assert same_bits(torch.from_numpy(arrays[name].copy(order="K")), tensor.clone()), f"{member}: array {name}"
    return len(listed)


def check_file(path: Path, counts: Counter[str]) -> str:
    started = time.perf_counter()
    with open_archive(path) as archive:
        keys = len(archive.config())
        config_ms = 1e3 * (time.perf_counter() - started)
        artifacts = archive.artifacts()
        assert artifacts.keys() == archive.references().keys(), "the config names artifacts that are not there"
        for member in archive.members:
            assert len(archive.read(member)) == archive.members[member].size
        checkpoints = [name for name in archive.members if name.endswith(".ckpt")]
        tensors = sum(check_checkpoint(archive, member) for member in checkpoints)
        counts.update(members=len(archive.members), artifacts=len(artifacts), checkpoints=len(checkpoints))
        counts.update(tensors=tensors, files=1)
        return (
            f"{len(archive.members)} members, {keys} keys, {len(artifacts)} artifacts, {len(checkpoints)} checkpoints, "
            f"{tensors} tensors equal; open and config {config_ms:.1f} ms"
        )


def main() -> int:
    counts: Counter[str] = Counter()
    for path in sorted(Path(sys.argv[1]).rglob("*.nemo")):
        try:
            print(f"{path}: {check_file(path, counts)}")
        except (ArchiveError, AssertionError) as error:
            counts["failed"] += 1
            print(f"{path}: FAILED: {error}")
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    return 1 if counts["failed"] or not counts["files"] else 0


if __name__ == "__main__":
    sys.exit(main())
