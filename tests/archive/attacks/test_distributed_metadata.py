"""Hostile metadata of sharded checkpoints, which torch reads by a plain pickle.load."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)


def metadata(*, size=(4,), chunks=(((0,), (4,)),), path="__0_0.distcp", offset=0, length=None, step=1, name="w"):
    """Metadata of one tensor of float32; `chunks` are (first index, size) along each axis."""
    boxes = [ChunkStorageMetadata(torch.Size(start), torch.Size(extent)) for start, extent in chunks]
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(size), boxes)
    length = len(_piece()) - step * (len(chunks) - 1) if length is None else length
    places = {
        MetadataIndex(name, torch.Size(start), index): _StorageInfo(path, offset + step * index, length)
        for index, (start, _) in enumerate(chunks)
    }
    return pickle.dumps(Metadata({name: tensor}, storage_data=places))


def _piece():
    import io

    stream = io.BytesIO()
    torch.save(torch.arange(4.0), stream)
    return stream.getvalue()


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


MEMBER = "model_weights/.metadata"
ATTACKS = {
    "a call of os.system": (
        lambda made: pickle.dumps(Payload(made.command)),
        MEMBER,
        "the pickle names 'posix.system'",
    ),
    "an object of another class": (
        lambda _: pickle.dumps(pickle.PicklingError()),
        MEMBER,
        "the pickle names '_pickle.PicklingError'",
    ),
    "a dict where metadata belong": (lambda _: pickle.dumps({"w": 1}), MEMBER, "holds no description of a state dict"),
    "a file outside the folder": (lambda _: metadata(path="../../etc/passwd"), None, "climb"),
    "a file that is not there": (lambda _: metadata(path="__9_9.distcp"), None, "is not in the archive"),
    "a piece beyond its file": (
        lambda _: metadata(offset=1 << 40),
        "model_weights/__0_0.distcp",
        "refers to bytes 1099511627776",
    ),
    "a tensor of terabytes": (
        lambda _: metadata(size=(1 << 40,), chunks=[((0,), (1 << 40,))]),
        None,
        "a piece is not what the metadata say",
    ),
    "pieces that leave a gap": (lambda _: metadata(size=(8,)), MEMBER, "pieces of 4 elements for a shape of (8,)"),
    "pieces that overlap": (
        lambda _: metadata(size=(6,), chunks=[((0,), (4,)), ((2,), (4,))]),
        MEMBER,
        "pieces of 8 elements for a shape of (6,)",
    ),
    "a piece outside its tensor": (
        lambda _: metadata(size=(4,), chunks=[((2,), (4,))]),
        MEMBER,
        "a piece lies outside its shape (4,)",
    ),
    "pieces of the same bytes": (
        lambda _: metadata(size=(8,), chunks=[((0,), (4,)), ((4,), (4,))], step=0),
        MEMBER,
        "a piece has no place of its own",
    ),
    "an empty tensor of astronomic shape": (
        lambda _: metadata(size=(0, 1 << 61), chunks=[]),
        MEMBER,
        "tensor 'w': a shape of (0, 2305843009213693952)",
    ),
    "control characters": (lambda _: metadata(name="w\x1b[2J"), None, "control characters in the name of tensor"),
}
"""Kind: the metadata, the member that is named, what is said of it."""


@pytest.mark.parametrize(("make", "member", "rule"), ATTACKS.values(), ids=list(ATTACKS))
def test_hostile_metadata_are_refused_and_nothing_runs(made, refused, make, member, rule):
    path = made.archive({MEMBER: make(made), "model_weights/__0_0.distcp": _piece()})
    error = refused(path)
    assert rule in error.rule
    assert member in (None, error.member)


def test_the_sound_metadata_that_the_others_are_made_from_are_read(made, refused):
    with pytest.raises(AssertionError, match="without complaint"):
        refused(made.archive({MEMBER: metadata(), "model_weights/__0_0.distcp": _piece()}))
