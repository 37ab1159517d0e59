"""Mutations of archives, each drawn from a random generator: of raw bytes, and of every layer with its checksums right.

`mutate(generator, data, others)` takes the bytes of an archive (plain tar or gzip) and returns changed ones.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

NUMBERS = (0, 1, 2, 7, 63, 127, 128, 255, 256, 511, 512, 4095, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63)
YAML_PARTS = (
    "a: &a [*a]\n", "<<: *rates\n", "<<: [*rates, *rates]\n", "x: !!python/object/apply:os.system ['true']\n",
    "x: !!binary aGVsbG8=\n", "x: !!timestamp 2001-01-01\n", "x: !!bool maybe\n", "x: !!int ''\n", "x: !!float x\n",
    "x: ${oc.env:HOME}\n", "? [1]\n: 2\n", "? {a: b}\n: c\n", "x: " + "[" * 120 + "]" * 120 + "\n", "x: 1:1:1:1:1:1\n",
    "x: " + "9" * 5000 + "\n", "x: 1e999\n", "x: .nan\n", "---\n", "...\n", "%YAML 1.1\n", "\t", "\0", "\x85", "'", '"',
    "*b", "&b ", "!", "|", ">", "- ", ": ", "{", "}", "[", "]", "#", "\ufeff", "x: 'nemo:../../etc/passwd'\n",
    "<<: 1\n", "<<: [1]\n", "!!str a: 1\n", "!!python/object/apply:pathlib.PosixPath {a: 1}: 1\n", "=: 1\n",
)  # fmt: skip
PICKLE_PARTS = (
    b"cos\nsystem\n", b"c__builtin__\neval\n", b"\x8c\x02os\x8c\x06system\x93", b"X\x01\0\0\0x\x85R", b")R", b"(",
    b"t", b"0", b"2", b"\x81", b"\x92", b"b", b"}", b"]", b"N", b"\x88", b"Q", b"P0\n", b"\x82\x01", b"\x83\x01\0",
    b"\x84\x01\0\0\0", b"i__main__\nX\n", b"o", b"\x8b\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f",
    b"\x8a\xff" + b"\x7f" * 255, b"\x95" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"\x8d" + b"\xff" * 7, b"\x7f",
    b"B\xff\xff\xff\xff", b"X\xff\xff\xff\x7f", b"h\0h\0\x86q\0" * 60, b"]q\0h\0a", b"}q\0h\0h\0s", b"\x97",
    b"\x98", b"\x96\0\0\0\0\0\0\0\0", b"\x90", b"\x91", b"\x8f", b"I01\n", b"L99L\n", b"F1\n", b"S'x'\n",
    b"V\\u1234\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n", b"ctorch.storage\n_load_from_bytes\n", b"c_codecs\nencode\n",
    b"ccollections\nOrderedDict\n", b"j\xff\xff\xff\xff", b"K\x01", b"J\xff\xff\xff\xff", b"G\x7f\xf8\0\0\0\0\0\0",
    b"\x85", b"\x86", b"\x87", b"\x94", b"s", b"u", b"a", b"e", b"ctorch\nbool\n", b"U\x01x",
)  # fmt: skip


def number(generator: random.Random) -> int:
    return (
        generator.choice(NUMBERS) + generator.choice((0, 0, 0, 1, -1))
        if generator.random() < 0.8
        else generator.getrandbits(64)
    )


def flip(generator: random.Random, data: bytes, window: int | None = None) -> bytes:
    """Changes a few bytes, or a few numbers of 1 to 8 bytes."""
    mutated = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        position = generator.randrange(max(1, min(len(mutated), window or len(mutated))))
        if generator.random() < 0.5:
            mutated[position : position + 1] = bytes([generator.randrange(256)])
        else:
            width = generator.choice((1, 2, 4, 8))
            order = generator.choice(("little", "big"))
            mutated[position : position + width] = (number(generator) % 256**width).to_bytes(width, order)
    return bytes(mutated)


def splice(generator: random.Random, data: bytes, other: bytes) -> bytes:
    """Deletes, doubles or moves a piece, or puts in one of another file; sometimes whole tar blocks."""
    unit = generator.choice((1, 1, 512))
    start = generator.randrange(len(data) // unit + 1) * unit
    size = generator.choice((1, 2, 8, 64, 512, 1024)) * (unit if unit > 1 else 1)
    piece = data[start : start + size]
    place = generator.randrange(len(data) // unit + 1) * unit
    kind = generator.randrange(4)
    if kind == 0:
        return data[:start] + data[start + size :]
    if kind == 1:
        return data[:place] + piece + data[place:]
    source = generator.randrange(len(other) // unit + 1) * unit
    piece = other[source : source + size]
    return data[:place] + piece + data[place + (size if kind == 2 else 0) :]


def truncate(generator: random.Random, data: bytes) -> bytes:
    if generator.random() < 0.3:
        return data + bytes(generator.choice((1, 511, 512, 4096))) * generator.choice((0, 1, 2))
    return data[: generator.choice((generator.randrange(len(data) + 1), min(len(data), generator.randrange(4096))))]


def members_of(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info, tar.extractfile(info).read() if info.isfile() else b"") for info in tar]  # type: ignore[union-attr]


def rebuilt(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def with_checksum(block: bytes) -> bytes:
    total = sum(block) - sum(block[148:156]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def change_headers(generator: random.Random, data: bytes) -> bytes:
    """Changes the fields of one to three tar headers, and makes the checksums right again."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        offsets = [info.offset for info in tar]
    mutated = data
    for _ in range(generator.choice((1, 1, 2, 3))):
        offset = generator.choice(offsets)
        block = bytearray(mutated[offset : offset + 512])
        if len(block) < 512:
            continue
        start, size = generator.choice(
            ((0, 100), (0, 100), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1), (257, 8), (345, 155), (157, 100))
        )
        if start == 156:
            block[156] = generator.choice(b"\x000123456789xgLKSDMNVXZ")
        elif start in (124, 136) and generator.random() < 0.7:
            value = number(generator)
            block[start : start + size] = (
                b"\x80" + value.to_bytes(11, "big") if generator.random() < 0.4 else b"%011o\0" % (value % 8**11)
            )
        elif start == 0 and generator.random() < 0.6:
            name = generator.choice(
                (
                    b"/etc/passwd",
                    b"../x",
                    b"a/../../b",
                    b"model_config.yaml",
                    b"./model_weights.ckpt",
                    b"C:x",
                    b"a\\b",
                    b"",
                    b".",
                    b"x/",
                    b"\xff\xfe",
                )
            )
            block[:100] = name.ljust(100, b"\0")
        else:
            block[start : start + size] = flip(generator, bytes(block[start : start + size]))[:size].ljust(size, b"\0")
        mutated = mutated[:offset] + with_checksum(bytes(block)) + mutated[offset + 512 :]
    return mutated


def change_yaml(generator: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    for _ in range(generator.choice((1, 1, 2, 4))):
        kind = generator.randrange(4)
        lines = text.splitlines(keepends=True) or [""]
        at = generator.randrange(len(lines))
        if kind == 0:
            lines.insert(at, generator.choice(YAML_PARTS))
        elif kind == 1:
            lines.insert(at, lines[generator.randrange(len(lines))])
        elif kind == 2:
            position = generator.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:position] + generator.choice(YAML_PARTS) + lines[at][position:]
        else:
            lines[at] = flip(generator, lines[at].encode() or b" ").decode("utf-8", "replace")
        text = "".join(lines)
    return text.encode() if generator.random() < 0.95 else text.encode("utf-16")


def change_pickle(generator: random.Random, content: bytes) -> bytes:
    """Deletes, doubles, moves and inserts whole instructions, or changes their arguments."""
    try:
        starts = [position for _, _, position in pickletools.genops(content)] + [len(content)]
    except Exception:  # a mutation of a mutation
        return flip(generator, content)
    pieces = [content[start:end] for start, end in itertools.pairwise(starts)]
    for _ in range(generator.choice((1, 1, 2, 3, 8))):
        at, kind = generator.randrange(len(pieces)), generator.randrange(6)
        if kind == 0 and len(pieces) > 1:
            del pieces[at]
        elif kind == 1:
            pieces.insert(at, pieces[generator.randrange(len(pieces))])
        elif kind == 2:
            pieces.insert(at, generator.choice(PICKLE_PARTS))
        elif kind == 3:
            other = generator.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif kind == 4:
            pieces[at] = generator.choice(PICKLE_PARTS)
        else:
            pieces[at] = pieces[at][:1] + flip(generator, pieces[at][1:]) if len(pieces[at]) > 1 else pieces[at]
    return b"".join(pieces)


def change_zip(generator: random.Random, content: bytes) -> bytes:
    """A zip checkpoint with another pickle or record, or with wrong fields in its directory or local headers."""
    if generator.random() < 0.6:
        return _rezipped(generator, content)
    mutated = bytearray(content)
    end = content.rfind(b"PK\x05\x06")
    directory = struct.unpack_from("<L", content, end + 16)[0] if end >= 0 else 0
    regions = ((end, 22), (directory, max(1, end - directory)), (directory, 46), (0, 64))
    start, size = generator.choice(regions)
    for _ in range(generator.choice((1, 1, 2, 4))):
        position, width = start + generator.randrange(max(1, size)), generator.choice((1, 2, 4, 8))
        mutated[position : position + width] = (number(generator) % 256**width).to_bytes(width, "little")
    return bytes(mutated)


def _rezipped(generator: random.Random, content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = next((i for i, (name, _) in enumerate(records) if name.endswith("data.pkl")), 0)
    method = zipfile.ZIP_STORED
    if generator.random() < 0.85:
        records[at] = (records[at][0], change_pickle(generator, records[at][1]))
    else:
        other = generator.randrange(len(records))
        name, data = records[other]
        kind = generator.randrange(5)
        if kind == 0:
            del records[other]
        elif kind == 1:
            records[other] = (name + generator.choice(("x", "/", "/../..", "\x07")), data)
        elif kind == 2:
            records[other] = (name, truncate(generator, data))
        elif kind == 3:
            records.append((name.replace("data.pkl", "constants.pkl"), data))
        else:
            method = zipfile.ZIP_DEFLATED
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def change_safetensors(generator: random.Random, content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    for _ in range(generator.choice((1, 1, 2))):
        name = generator.choice(list(header))
        entry, kind = header[name], generator.randrange(6)
        if kind == 0:
            header[name] = generator.choice(
                (None, [], 1, "x", {"dtype": "F32"}, {**entry, "more": 1} if isinstance(entry, dict) else {})
            )
        elif kind == 1:
            header[name + generator.choice(("", ".x", "\x1b[2J"))] = header.pop(name)
        elif isinstance(entry, dict) and "shape" in entry:
            if kind == 2:
                entry["dtype"] = generator.choice(("F64", "I8", "F4", "", 3, "BOOL"))
            elif kind == 3:
                entry["data_offsets"] = generator.choice(
                    ([0, 0], [number(generator), number(generator)], [-1, 3], [0], "x", [0, 1.5])
                )
            else:
                entry["shape"] = generator.choice(
                    ([number(generator)], [0, number(generator)], [-1], [1] * 70, [True], None, [2**32, 2**32])
                )
        elif name == "__metadata__" and isinstance(entry, dict):
            entry[generator.choice((*entry, "x"))] = generator.choice(
                ("{}", "[", '{"a": "b"}', '["a"]', "[" * 2000, 3, '{"": []}')
            )
    text = json.dumps(header).encode()
    length = len(text) if generator.random() < 0.8 else number(generator) % 2**64
    return length.to_bytes(8, "little") + text + content[8 + size :]


def change_member(generator: random.Random, data: bytes) -> bytes:
    """Changes the content of one member by what it is, and packs the archive again."""
    members = members_of(data)
    choices = [index for index, (info, content) in enumerate(members) if info.isfile() and content]
    if not choices:
        return flip(generator, data)
    index = generator.choice(choices)
    info, content = members[index]
    members[index] = (info, _changed_content(generator, info.name, content))
    if generator.random() < 0.05:
        info.name = generator.choice(
            ("model_weights.ckpt", "model_weights.safetensors", "model_config.yaml", "a/.metadata")
        )
    return rebuilt(members)


def _changed_content(generator: random.Random, name: str, content: bytes) -> bytes:
    if generator.random() < 0.1:
        return generator.choice((flip, truncate))(generator, content)
    if name.endswith(".yaml"):
        return change_yaml(generator, content)
    if content.startswith(b"PK\x03\x04"):
        return change_zip(generator, content)
    if name.endswith(".safetensors"):
        return change_safetensors(generator, content)
    if content.startswith(b"\x80"):
        return _changed_legacy(generator, content)
    return flip(generator, content)


def _changed_legacy(generator: random.Random, content: bytes) -> bytes:
    """A bare pickle, or several in a row before raw data (torch before 1.6): changes one of them."""
    ends, stream = [0], io.BytesIO(content)
    while len(ends) < 6:
        try:
            for _ in pickletools.genops(stream):
                pass
        except Exception:  # what follows is no pickle
            break
        ends.append(stream.tell())
    if len(ends) == 1:
        return flip(generator, content, 512)
    at = generator.randrange(len(ends) - 1)
    return content[: ends[at]] + change_pickle(generator, content[ends[at] : ends[at + 1]]) + content[ends[at + 1] :]


def mutate(generator: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One mutation of an archive; sometimes two, sometimes packed by gzip."""
    for _ in range(generator.choice((1, 1, 1, 2))):
        try:
            data = _mutated_once(generator, data, others)
        except Exception:
            data = flip(generator, data or b"\0", 4096)  # the first mutation left nothing that can be taken apart
    if generator.random() < 0.08:
        data = gzip.compress(data, 1, mtime=0)
        if generator.random() < 0.7:
            data = generator.choice((flip, truncate))(generator, data)
    return data


def _mutated_once(generator: random.Random, data: bytes, others: list[bytes]) -> bytes:
    chance = generator.random()
    structured: Callable[[random.Random, bytes], bytes]
    if chance < 0.10:
        return flip(generator, data, generator.choice((None, 1024, 4096)))
    if chance < 0.15:
        return truncate(generator, data)
    if chance < 0.25:
        return splice(generator, data, generator.choice(others))
    structured = change_headers if chance < 0.40 else change_member
    return structured(generator, data)
