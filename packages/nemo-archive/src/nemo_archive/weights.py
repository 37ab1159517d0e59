"""Which members of an archive are checkpoints, and which of them is the model's.

model_weights.ckpt, model_weights.safetensors      the usual one
mp_rank_00/…, tp_rank_00_pp_rank_000/…             a Megatron model, one file per tensor (and pipeline) rank
model_weights/.metadata, __0_0.distcp, …           torch.distributed, one folder (distributed.py)
model_weights/<key>/.zarray, 0.0, …                Megatron-core's zarr, one folder (zarr.py)
<name>_weights.ckpt beside <name>_config.yaml      a second model (submodels.py)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nemo_archive.artifacts import SAFETENSORS, WEIGHTS
from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    from nemo_archive.reader import Archive

METADATA = ".metadata"  # of a checkpoint of torch.distributed
ZARR = ".zarray"  # of a tensor in a zarr checkpoint
_SHARD = re.compile(r"(?:mp_rank_\d+|tp_rank_\d+_pp_rank_\d+)/[^/]+")
_SURE = (".ckpt", ".safetensors")
_MAYBE = (".pt", ".pth", ".bin")  # other programs' files, too
_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc")


def find_checkpoints(archive: Archive) -> tuple[str, ...]:
    """The checkpoints in file order; a sharded one is a folder, named once, without its parts."""
    zarr = {name.removesuffix(f"/{ZARR}").rpartition("/")[0] for name in archive.members if name.endswith(f"/{ZARR}")}
    zarr.discard("")
    found: dict[str, None] = {}
    for name in archive.members:
        folder, _, base = name.rpartition("/")
        sharded = next((parent for parent in zarr if name.startswith(f"{parent}/")), None)
        if sharded is not None:
            found[sharded] = None
        elif base == METADATA and folder:
            found[folder] = None
        elif name.endswith(_SURE) or (name.endswith(_MAYBE) and _is_torch(archive, name)):
            found[name] = None
    return tuple(found)


def choose_weights(archive: Archive) -> str:
    """The checkpoint of the model itself.

    Raises:
        ArchiveError: if there is none, or several with equal right; it lists what is there.
    """
    if WEIGHTS in archive.members:
        return WEIGHTS
    found = find_checkpoints(archive)
    folder = WEIGHTS.removesuffix(".ckpt")
    for name in (SAFETENSORS, folder):
        if name in found:
            return name
    shards = [name for name in found if _SHARD.fullmatch(name)]
    if len(shards) == 1:
        return shards[0]
    if shards:
        rule = f"the model is split into {len(shards)} shards, none of which is the whole: {', '.join(shards)}"
        raise ArchiveError(rule, path=archive.path)
    held = f"its checkpoints: {', '.join(found)}" if found else "it holds no checkpoint at all"
    raise ArchiveError(
        f"is not in the archive, nor are {SAFETENSORS} and {folder}/; {held}", path=archive.path, member=WEIGHTS
    )


def _is_torch(archive: Archive, name: str) -> bool:
    span = archive.span(name)
    return span.read(0, min(span.size, 6)).startswith(_TORCH)
