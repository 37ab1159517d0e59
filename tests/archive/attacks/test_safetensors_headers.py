"""Hostile safetensors headers inside an archive."""

from __future__ import annotations

import json

import pytest


def safetensors(made, header: object, data: bytes = bytes(16), length: int | None = None) -> object:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return made.archive({"model_weights.safetensors": size.to_bytes(8, "little") + text + data})


def tensor(begin: int = 0, end: int = 16, shape: object = (4,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "header longer than the file": (({"w": tensor()}, bytes(16), 1 << 62), "is no safetensors file"),
    "header into the data": (({"w": tensor()}, bytes(16), 70), "unreadable safetensors header"),
    "header that is no JSON": ((b"{'w': 1}", bytes(16)), "unreadable safetensors header"),
    "header nested deep": ((b'{"w":' * 100_000, b""), "unreadable safetensors header"),
    "name twice": ((b'{"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"w":1}', b"x"), "'w' stands twice"),
    "number that is none": ((b'{"w": NaN}', b""), "NaN is no JSON"),
    "huge number": ((b'{"w": ' + b"9" * 5000 + b"}", b""), "unreadable safetensors header"),
    "entry that is no mapping": (({"w": [1]},), "an entry has dtype, shape and data_offsets"),
    "unknown dtype": (({"w": tensor(dtype="O")},), "dtype 'O' is unknown"),
    "dtype that is a list": (({"w": tensor(dtype=["F32"])},), "dtype ['F32'] is unknown"),
    "negative size": (({"w": tensor(shape=[-4])},), "a shape of [-4]"),
    "shape that overflows": (({"w": tensor(shape=[1 << 32, 1 << 32])},), "a shape of [4294967296, 4294967296]"),
    "empty tensor of astronomic shape": (({"w": tensor(end=0, shape=[0, 1 << 62])}, b""), "a shape of [0, 46116"),
    "hundred axes": (({"w": tensor(end=4, shape=[1] * 100)}, bytes(4)), "a shape of [1, 1, 1,"),
    "size of another kind": (({"w": tensor(shape=[True])},), "a shape of [True]"),
    "another number of bytes": (({"w": tensor(end=12)},), "12 bytes where 16 belong"),
    "end before the begin": (({"w": tensor(begin=16, end=0)},), "-16 bytes where 16 belong"),
    "beyond the data": (({"w": tensor()}, bytes(8)), "truncated: its tensors take 16 bytes, 8 are there"),
    "data of no tensor": (({"w": tensor()}, bytes(24)), "data that belong to no tensor"),
    "gap": (({"w": tensor(begin=4, end=20)}, bytes(20)), "leaves a gap before it"),
    "overlap": (({"v": tensor(), "w": tensor(begin=8, end=24)}, bytes(24)), "overlaps another"),
    "metadata that are no texts": (
        ({"__metadata__": {"format": 1}, "w": tensor()},), "__metadata__ is not a mapping of texts",
    ),
    "alias of nothing": (
        ({"__metadata__": {"nemo_archive.aliases": '{"v": "x"}'}, "w": tensor()},),
        "nemo_archive.aliases: 'v' cannot stand for 'x'",
    ),
    "control characters": (({"w\x1b[2J": tensor()},), "control characters in the name of tensor"),
}  # fmt: skip
"""Kind: header, data and length; what is said of it."""


@pytest.mark.parametrize(("arguments", "rule"), SAFETENSORS.values(), ids=list(SAFETENSORS))
def test_a_safetensors_header_that_lies_is_refused(made, refused, arguments, rule):
    error = refused(safetensors(made, *arguments))
    assert error.member == "model_weights.safetensors"
    assert rule in error.rule
