"""Weights as torch tensors, and saving a model (`pip install nemo-archive[torch]`).

The tensors that `load_state_dict` gives lie in a private, copy-on-write map of the `.nemo` file: loading touches no
weight, several processes share the pages, and whoever writes to a tensor (an optimizer, say) gets its own copy of the
page. The file is never changed through them. `build_and_load` puts them into a module without copying.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, BinaryIO, Literal

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "nemo_archive.torch needs torch: pip install 'nemo-archive[torch]'", name="torch"
    ) from None
from torch import Tensor

from nemo_archive.artifacts import SAFETENSORS, WEIGHTS, Artifact
from nemo_archive.checkpoint import Checkpoint, Storage, is_legacy
from nemo_archive.module_loading import StateDictError, build_and_load, skip_init
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safetensors import Payload, write_payloads
from nemo_archive.safety import ArchiveError
from nemo_archive.sources import Source, Span
from nemo_archive.submodels import entries_below
from nemo_archive.unpickler import ITEM_BYTES, DType, StoredTensor
from nemo_archive.writer import ArchiveWriter

__all__ = ["StateDictError", "build_and_load", "load_state_dict", "save_archive", "skip_init"]

NEMO_VERSION = "3.0.0"  # the toolkit whose format is written
SMALL = 1 << 20  # bytes; a checkpoint below this is copied, which costs less than a map


def load_state_dict(
    archive: Archive | str | os.PathLike[str],
    *,
    mmap: bool = True,
    map_location: str | torch.device | None = "cpu",
    member: str | None = None,
) -> OrderedDict[str, Tensor]:
    """The state dict of an archive, as `torch.load(weights_only=True)` would give it, `_metadata` included.

    Every call gives tensors of their own. Tensors that share a storage in the file share memory. The map lives as
    long as the tensors. While they live, the file may be replaced by renaming another over it, but must not be
    overwritten in place: the weights would change, or, if it becomes shorter, the process may die (SIGBUS).

    Args:
        archive: an open archive, or a path.
        mmap: False reads a copy. gzip archives and checkpoints below 1 MiB are copied in any case.
        map_location: the device of the tensors; None is the CPU.
        member: one of `archive.checkpoints()`; None is `archive.weights`.

    Raises:
        ArchiveError: if it is no sound checkpoint, or holds more than weights.
    """
    if not isinstance(archive, Archive):
        with open_archive(archive, mmap=mmap) as opened:
            return load_state_dict(opened, mmap=mmap, map_location=map_location, member=member)
    member = archive.weights if member is None else member
    device = torch.device(map_location or "cpu")
    if member in archive.members and is_legacy(span := archive.span(member)):
        content = _load_legacy(span, device, archive._allow)
        return _as_state_dict(entries_below(content, archive.prefix) if archive.prefix else content, span)
    checkpoint = archive.checkpoint(member)
    size = sum(storage.nbytes for storage in checkpoint.storages.values())
    builder = _TensorBuilder(checkpoint, device, mmap=mmap and size >= SMALL)
    return _as_state_dict(builder.build(checkpoint.content), checkpoint.span)


def _as_state_dict(content: Any, span: Span) -> OrderedDict[str, Tensor]:
    if isinstance(content, OrderedDict):
        return content
    if isinstance(content, dict):
        return OrderedDict(content)
    raise span.error(f"holds a {type(content).__name__} where a state dict is expected")


def _load_legacy(span: Span, device: torch.device, allow: Mapping[str, Callable[..., Any]]) -> Any:
    try:
        with torch.serialization.safe_globals([(one, name) for name, one in allow.items()]):
            return torch.load(io.BytesIO(span.read(0, span.size)), map_location=device, weights_only=True)
    except Exception as error:  # torch's unpickler raises many kinds on damaged or unsafe input
        raise span.error(f"an old torch checkpoint that cannot be loaded safely: {str(error)[:300]}") from None


class _TensorBuilder:
    """Makes tensors of the descriptions in a checkpoint; one memory per storage."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, *, mmap: bool) -> None:
        self._checkpoint, self._device, self._mmap = checkpoint, device, mmap
        self._maps: dict[int, Any] = {}  # by id of the source: an unpacked folder has several
        self._memory: dict[str, torch.UntypedStorage] = {}
        self._built: dict[int, Any] = {}  # by id: what the file refers to twice is one object here, too

    def build(self, value: Any) -> Any:
        if isinstance(value, StoredTensor | dict | list):
            if id(value) not in self._built:
                self._built[id(value)] = self._build_new(value)
            return self._built[id(value)]
        if isinstance(value, DType):
            return getattr(torch, value.name)
        if isinstance(value, tuple):
            return tuple(self.build(entry) for entry in value)
        return value

    def _build_new(self, value: StoredTensor | dict[Any, Any] | list[Any]) -> Any:
        if isinstance(value, StoredTensor):
            return self._tensor(value)
        if isinstance(value, list):
            return [self.build(entry) for entry in value]
        items = ((key, self.build(entry)) for key, entry in value.items())
        if not isinstance(value, OrderedDict):
            return dict(items)
        ordered: Any = OrderedDict(items)
        if hasattr(value, "_metadata"):
            ordered._metadata = deepcopy(value._metadata)
        return ordered

    def _tensor(self, stored: StoredTensor) -> Tensor:
        memory = self._storage(self._checkpoint.storages[stored.storage.key], ITEM_BYTES[stored.dtype])
        tensor = torch.empty(0, dtype=getattr(torch, stored.dtype), device=self._device)
        tensor.set_(memory, stored.offset, stored.shape, stored.strides)
        if stored.is_parameter:
            return torch.nn.Parameter(tensor, requires_grad=stored.requires_grad)
        return tensor

    def _storage(self, storage: Storage, item_bytes: int) -> torch.UntypedStorage:
        if storage.key not in self._memory:
            self._memory[storage.key] = self._bytes(storage, item_bytes).to(self._device).untyped_storage()
        return self._memory[storage.key]

    def _bytes(self, storage: Storage, item_bytes: int) -> Tensor:
        """The storage as a (nbytes,) tensor of uint8 on the CPU."""
        if storage.nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        place = storage.place()
        if self._mmap and place is not None and (place[0].offset + place[1]) % item_bytes == 0:
            private_map = self._map_of(place[0].source)
            if private_map is not None:
                start = place[0].offset + place[1]
                return torch.frombuffer(private_map, dtype=torch.uint8, count=storage.nbytes, offset=start)
        view = storage.view()
        if view.readonly:  # of memory that others look at, too; a file's bytes are read for this call alone
            view = memoryview(bytearray(view))
        return torch.frombuffer(view, dtype=torch.uint8)

    def _map_of(self, source: Source) -> Any:
        if id(source) not in self._maps:
            self._maps[id(source)] = source.private_map()
        return self._maps[id(source)]


def save_archive(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    state_dict: Mapping[str, Any],
    artifacts: Iterable[Artifact] = (),
    *,
    weights: Literal["torch", "safetensors"] = "torch",
) -> None:
    """Writes a `.nemo` file that NVIDIA's toolkit 3.0.0 restores, if the config is one that it understands.

    The weights go straight into the file, one storage after the other; those on a GPU are first copied to the CPU.
    Equal content gives equal bytes. The file appears, or replaces an older one, only when it is complete and on the
    disk; models that still map the older one keep it.

    Args:
        path: the `.nemo` file.
        config: plain dicts, lists and scalars; artifacts stand in it as `artifact.reference`. `nemo_version` is added
            where it is missing.
        state_dict: tensors by name, such as `module.state_dict()`.
        artifacts: the files that belong to the model.
        weights: `torch` is a zip checkpoint in model_weights.ckpt; `safetensors`, in model_weights.safetensors, is
            what other programs read, but not NVIDIA's toolkit. It holds tensors alone, in row order; tied tensors stay
            tied, those that share only a part of their memory become separate.

    Raises:
        ArchiveError: if the config holds something that YAML has no plain type for, the state dict something that
            `load_state_dict` would refuse (a sparse tensor, an object of numpy), or two artifacts collide.
        ValueError: if `weights` is neither of the two.
        OSError: if the file cannot be written; what was there before is unchanged.
    """
    if weights not in ("torch", "safetensors"):
        raise ValueError(f"weights: {weights!r} is neither 'torch' nor 'safetensors'")
    member = WEIGHTS if weights == "torch" else SAFETENSORS
    for name, value in state_dict.items():
        if not _can_be_read_back(value):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            rule = f"the entry {name!r} of the state dict, a {kind}, could not be read back"
            raise ArchiveError(rule, path=os.fspath(path), member=member)
    content = _for_saving(state_dict)

    def write_weights(file: BinaryIO) -> None:
        if weights == "torch":
            torch.save(content, file)
            return
        try:
            _write_safetensors(file, content)
        except ArchiveError as error:
            raise ArchiveError(error.rule, path=os.fspath(path), member=member) from None

    with ArchiveWriter(path) as writer:
        writer.add_config({**config} if "nemo_version" in config else {**config, "nemo_version": NEMO_VERSION})
        for artifact in artifacts:
            writer.add_artifact(artifact)
        writer.add_stream(member, write_weights)


def _write_safetensors(file: BinaryIO, state_dict: OrderedDict[str, Any]) -> None:
    payloads: list[Payload] = []
    aliases: dict[str, str] = {}
    stored: dict[tuple[Any, ...], str] = {}
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ArchiveError(f"safetensors holds tensors alone; the entry {name!r} is a {type(value).__name__}")
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in stored:
            aliases[name] = stored[place]
            continue
        stored[place] = name
        dtype = str(value.dtype).removeprefix("torch.")
        payloads.append(Payload(name, dtype, tuple(value.shape), functools.partial(_write_elements, value=value)))
    write_payloads(file, payloads, aliases, list(state_dict), getattr(state_dict, "_metadata", None))


def _write_elements(file: BinaryIO, value: Tensor) -> None:
    """Row by row; through ctypes, which needs no numpy and makes no copy."""
    import ctypes

    packed = value.contiguous()
    if packed.numel():
        file.write(memoryview((ctypes.c_char * packed.nbytes).from_address(packed.data_ptr())))


def _can_be_read_back(value: Any) -> bool:
    """Whether unpickler.py knows what torch.save makes of it."""
    if isinstance(value, Tensor):
        plain = type(value.detach()) is Tensor and value.layout is torch.strided
        return plain and str(value.dtype).removeprefix("torch.") in ITEM_BYTES
    if type(value) in (dict, OrderedDict):
        return all(map(_can_be_read_back, (*value.keys(), *value.values())))
    if type(value) in (list, tuple):
        return all(map(_can_be_read_back, value))
    return type(value) in (type(None), bool, int, float, str, bytes, torch.dtype, torch.Size)


def _for_saving(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Plain tensors on the CPU. Equal strings become one object, since pickle writes a repeated object as a number."""
    moved: dict[int, torch.UntypedStorage] = {}
    weights = OrderedDict(
        (sys.intern(name), _plain_tensor(value, moved) if isinstance(value, Tensor) else value)
        for name, value in state_dict.items()
    )
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        weights._metadata = OrderedDict(  # type: ignore[attr-defined]
            (sys.intern(name), {sys.intern(key): value for key, value in entry.items()})
            for name, entry in metadata.items()
        )
    return weights


def _plain_tensor(value: Tensor, moved: dict[int, torch.UntypedStorage]) -> Tensor:
    """The tensor without gradient, on the CPU; those that share a storage still do."""
    value = value.detach().resolve_conj().resolve_neg()
    if value.device.type == "cpu":
        return value
    storage = value.untyped_storage()
    if storage._cdata not in moved:
        moved[storage._cdata] = storage.cpu()  # type: ignore[no-untyped-call]
    tensor = torch.empty(0, dtype=value.dtype)
    tensor.set_(moved[storage._cdata], value.storage_offset(), value.shape, value.stride())
    return tensor
