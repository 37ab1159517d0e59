"""Safetensors inside archives, against the `safetensors` package."""

from __future__ import annotations

import io
import json
import random
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from nemo_archive import ArchiveError, open_archive
from nemo_archive.numpy import load_array, load_arrays
from nemo_archive.safetensors import DTYPES, write_safetensors
from nemo_archive.torch import build_and_load, load_state_dict, save_archive

CONFIG = b"a: 1\n"
MEMBER = "model_weights.safetensors"


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def state_of_every_dtype() -> OrderedDict[str, torch.Tensor]:
    generator = random.Random(0)
    state = OrderedDict()
    for index, dtype in enumerate(DTYPES.values()):
        largest = 1 if dtype == "bool" else 255
        raw = torch.tensor([generator.randint(0, largest) for _ in range(48)], dtype=torch.uint8)
        state[f"layer.{index % 3}.{dtype}"] = raw.view(getattr(torch, dtype)).reshape(2, -1)
    state["scalar"], state["empty"] = torch.tensor(3.5), torch.zeros(0, 7)
    return state


@pytest.fixture
def archive_of(make_tar):
    def make(data: bytes, *, mmap: bool = True):
        return open_archive(make_tar({"model_config.yaml": CONFIG, MEMBER: data}), mmap=mmap)

    return make


@pytest.mark.parametrize("mmap", [True, False])
def test_what_the_safetensors_package_wrote_is_read_bit_for_bit_in_every_dtype(archive_of, mmap):
    state = state_of_every_dtype()
    with archive_of(safetensors.torch.save(state, {"format": "pt"}), mmap=mmap) as archive:
        assert archive.weights == MEMBER
        assert archive.checkpoints() == (MEMBER,)
        infos, arrays, loaded = archive.tensors(), load_arrays(archive), load_state_dict(archive, mmap=mmap)
        raw = archive.read(MEMBER)
        start = archive.members[MEMBER].offset
    assert set(infos) == set(arrays) == set(loaded) == set(state)
    for name, tensor in state.items():
        info = infos[name]
        assert (info.shape, info.strides, f"torch.{info.dtype}") == (
            tuple(tensor.shape), tensor.stride(), str(tensor.dtype)
        ), name  # fmt: skip
        assert loaded[name].dtype == tensor.dtype
        assert (loaded[name].shape, arrays[name].shape) == (tensor.shape, tuple(tensor.shape))
        assert bits(loaded[name]) == arrays[name].tobytes() == bits(tensor)
        assert raw[info.file_offset - start :][: info.nbytes] == bits(tensor)


def test_what_is_written_is_read_bit_for_bit_by_the_safetensors_package(tmp_path):
    state = state_of_every_dtype()
    save_archive(tmp_path / "m.nemo", {"a": 1}, state, weights="safetensors")
    with open_archive(tmp_path / "m.nemo") as archive:
        data = archive.read(MEMBER)
        assert list(archive.tensors()) == list(state)
        assert archive.config() == {"a": 1, "nemo_version": "3.0.0"}
        assert all(info.file_offset % 8 == 0 for info in archive.tensors().values() if info.dtype == "float64")
    theirs = dict(safetensors.deserialize(data))  # its adapter for torch lacks some of its own dtypes
    assert set(theirs) == set(state)
    for name, tensor in state.items():
        assert DTYPES[theirs[name]["dtype"]] == str(tensor.dtype).removeprefix("torch.")
        assert theirs[name]["shape"] == list(tensor.shape)
        assert bytes(theirs[name]["data"]) == bits(tensor)
    assert int.from_bytes(data[:8], "little") % 64 == 56  # so that the elements begin at a multiple of 64


def test_a_checkpoint_is_converted_without_torch_or_numpy_into_the_same_bytes(golden, tmp_path):
    import subprocess
    import sys

    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "numpy", "safetensors"]))
from nemo_archive import ArchiveWriter, open_archive
from nemo_archive.safetensors import write_safetensors
with open_archive(sys.argv[1]) as archive, ArchiveWriter(sys.argv[2]) as writer:
    writer.add_config(archive.config())
    checkpoint = archive.checkpoint()
    writer.add_stream("model_weights.safetensors", lambda file: write_safetensors(file, checkpoint))
"""
    for path in sorted(golden.glob("*/model.nemo")):
        converted = tmp_path / f"{path.parent.name}.nemo"
        subprocess.run([sys.executable, "-c", program, str(path), str(converted)], check=True)
        expected = load_state_dict(path)
        loaded = load_state_dict(converted)
        assert list(loaded) == list(expected)
        assert loaded._metadata == expected._metadata
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        with open_archive(path) as archive:
            save_archive(tmp_path / "by_torch.nemo", archive.config(), expected, weights="safetensors")
        with open_archive(converted) as one, open_archive(tmp_path / "by_torch.nemo") as other:
            assert one.read(MEMBER) == other.read(MEMBER)


def test_torch_to_safetensors_and_back_gives_the_same_archive(golden, tmp_path):
    with open_archive(golden / "conformer_ctc_bpe" / "model.nemo") as archive:
        config, artifacts = archive.config(), list(archive.artifacts().values())
        save_archive(tmp_path / "a.nemo", config, load_state_dict(archive), artifacts)
    save_archive(tmp_path / "b.nemo", config, load_state_dict(tmp_path / "a.nemo"), artifacts, weights="safetensors")
    save_archive(tmp_path / "c.nemo", config, load_state_dict(tmp_path / "b.nemo"), artifacts)
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "c.nemo").read_bytes()
    assert (tmp_path / "b.nemo").stat().st_size <= (tmp_path / "a.nemo").stat().st_size


@pytest.mark.parametrize("via", ["torch", "checkpoint"])
def test_ties_are_stored_once_and_come_back(tmp_path, via):
    def build():
        return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False), nn.LSTM(8, 8))

    module = build()
    module[1].weight = module[0].weight
    path = tmp_path / "tied.nemo"
    if via == "torch":
        save_archive(path, {}, module.state_dict(), weights="safetensors")
    else:
        save_archive(tmp_path / "torch.nemo", {}, module.state_dict())
        path = convert(tmp_path / "torch.nemo", path)
    with open_archive(path) as archive:
        infos, arrays, loaded = archive.tensors(), load_arrays(archive), load_state_dict(archive)
        assert "1.weight" not in safetensors.torch.load(archive.read(MEMBER))
    assert list(infos) == list(loaded) == list(module.state_dict())
    assert infos["0.weight"].storage == infos["1.weight"].storage
    assert np.shares_memory(arrays["0.weight"], arrays["1.weight"])
    assert loaded["0.weight"].data_ptr() == loaded["1.weight"].data_ptr()
    assert loaded._metadata == module.state_dict()._metadata
    rebuilt = build_and_load(
        lambda: nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False), nn.LSTM(8, 8)), loaded
    )
    assert torch.equal(rebuilt[1].weight, module[0].weight)


def convert(source, target):
    from nemo_archive import ArchiveWriter

    with open_archive(source) as archive, ArchiveWriter(target) as writer:
        checkpoint = archive.checkpoint()
        writer.add_config({})
        writer.add_stream(MEMBER, lambda file: write_safetensors(file, checkpoint))
    return target


def test_strided_and_overlapping_views_are_stored_in_row_order(tmp_path):
    base = torch.arange(60.0, dtype=torch.float64).reshape(3, 4, 5)
    state = OrderedDict(
        base=base, transposed=base.permute(2, 0, 1), part=base[1:, ::2, 3], repeated=base[0, 0, :1].expand(4, 3),
        half=base.to(torch.float16).t_() if base.dim() == 2 else base.to(torch.float16)[..., ::2],
        complex=torch.complex(base, -base)[0].t().to(torch.complex64), byte=base.to(torch.uint8).permute(1, 2, 0),
        one=base[1, 1:2, 1:2], none=base[:, :0].transpose(0, 1),
    )  # fmt: skip
    save_archive(tmp_path / "torch.nemo", {}, state)
    save_archive(tmp_path / "direct.nemo", {}, state, weights="safetensors")
    convert(tmp_path / "torch.nemo", tmp_path / "converted.nemo")
    for name in ("direct.nemo", "converted.nemo"):
        loaded = load_state_dict(tmp_path / name)
        assert all(torch.equal(loaded[key], state[key]) and loaded[key].is_contiguous() for key in state)
        loaded["base"].zero_()
        assert loaded["part"].any()


def test_large_safetensors_weights_are_mapped_and_copy_on_write(tmp_path):
    path = tmp_path / "large.nemo"
    save_archive(path, {}, {"x": torch.arange(400_000.0), "y": torch.ones(3)}, weights="safetensors")
    before = path.read_bytes()
    state = load_state_dict(path)
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        assert any(line.rstrip().endswith(str(path)) for line in maps)
    module = build_and_load(lambda: nn.ParameterDict({"x": torch.empty(400_000), "y": torch.empty(3)}), state)
    assert module["x"].data_ptr() == state["x"].data_ptr()
    state["x"].zero_()
    assert path.read_bytes() == before


def test_a_safetensors_member_of_another_name_is_read_by_its_name(make_tar):
    members = {"model_config.yaml": CONFIG, "adapters/lora.safetensors": safetensors.torch.save({"a": torch.ones(2)})}
    with open_archive(make_tar(members)) as archive:
        assert archive.checkpoints() == ("adapters/lora.safetensors",)
        assert load_array(archive, "a", member="adapters/lora.safetensors").tolist() == [1, 1]
        with pytest.raises(ArchiveError, match=r"its checkpoints: adapters/lora\.safetensors"):
            archive.tensors()


def test_what_safetensors_cannot_hold_is_refused_by_name_and_nothing_is_written(tmp_path):
    for state, match in (
        ({"a": torch.ones(1, dtype=torch.complex128)}, "tensor 'a': safetensors has no complex128"),
        ({"a": torch.ones(1), "_extra_state": {"b": 1}}, "the entry '_extra_state' is a dict"),
    ):
        with pytest.raises(ArchiveError, match=match):
            save_archive(tmp_path / "m.nemo", {}, state, weights="safetensors")
        save_archive(tmp_path / "torch.nemo", {}, state)
        with open_archive(tmp_path / "torch.nemo") as archive, pytest.raises(ArchiveError, match=match):
            write_safetensors(io.BytesIO(), archive.checkpoint())
        assert [path.name for path in tmp_path.iterdir()] == ["torch.nemo"]
    with pytest.raises(ValueError, match="weights: 'onnx' is neither"):
        save_archive(tmp_path / "m.nemo", {}, {}, weights="onnx")


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NEXT = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
BROKEN = {
    "leaves a gap": ({"a": F32, "b": {**NEXT, "data_offsets": [12, 20]}}, 20),
    "leaves a gap before it: it begins at 4, not at 0": ({"a": {**F32, "data_offsets": [4, 12]}}, 12),
    "overlaps another": ({"a": F32, "b": {**NEXT, "data_offsets": [4, 12]}}, 12),
    "truncated: its tensors take 8 bytes, 7 are there": ({"a": F32}, 7),
    "data that belong to no tensor": ({"a": F32}, 9),
    "8 bytes where 12 belong": ({"a": {**F32, "shape": [3]}}, 8),
    "-8 bytes where 8 belong": ({"a": {**F32, "data_offsets": [8, 0]}}, 8),
    "dtype 'F4' is unknown": ({"a": {**F32, "dtype": "F4"}}, 8),
    r"dtype \['F32'\] is unknown": ({"a": {**F32, "dtype": ["F32"]}}, 8),
    r"a shape of \[-2\]": ({"a": {**F32, "shape": [-2]}}, 8),
    r"a shape of \[2.0\]": ({"a": {**F32, "shape": [2.0]}}, 8),
    r"a shape of \[True, 2\]": ({"a": {**F32, "shape": [True, 2]}}, 8),
    r"a shape of \[4294967296, 4294967296\]": ({"a": {**F32, "shape": [2**32, 2**32]}}, 8),
    "an entry has dtype, shape and data_offsets": ({"a": [1]}, 8),
    "'a': an entry has dtype": ({"a": {"dtype": "F32", "shape": [2]}}, 8),
    r"data_offsets of \[0\]": ({"a": {**F32, "data_offsets": [0]}}, 8),
    "__metadata__ is not a mapping of texts": ({"__metadata__": {"a": 1}, "a": F32}, 8),
    "cannot stand for 'a'": ({"__metadata__": {"nemo_archive.aliases": '{"a": "a"}'}, "a": F32}, 8),
    "cannot stand for 'gone'": ({"__metadata__": {"nemo_archive.aliases": '{"b": "gone"}'}, "a": F32}, 8),
    "aliases holds something other": ({"__metadata__": {"nemo_archive.aliases": '{"b": 1}'}, "a": F32}, 8),
    "aliases is unreadable": ({"__metadata__": {"nemo_archive.aliases": "{"}, "a": F32}, 8),
    "names are not those": ({"__metadata__": {"nemo_archive.names": '["b"]'}, "a": F32}, 8),
    "versions is no mapping": ({"__metadata__": {"nemo_archive.versions": "[1]"}, "a": F32}, 8),
    "versions is unreadable": ({"__metadata__": {"nemo_archive.versions": "1e"}, "a": F32}, 8),
}


def packed(header: object, size: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.mark.parametrize("what", BROKEN)
def test_a_header_that_breaks_a_rule_is_refused_with_that_rule(archive_of, what):
    data = packed(*BROKEN[what])
    with archive_of(data) as archive, pytest.raises(ArchiveError, match=what) as caught:
        archive.tensors()
    assert str(caught.value).startswith(f"{archive.path}: member 'model_weights.safetensors': ")
    if "nemo_archive" not in str(BROKEN[what]):
        with pytest.raises(safetensors.SafetensorError):
            safetensors.torch.load(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"<html>404</html>", "an HTML page"),
        (packed({"a": F32}, 0)[:40], "truncated: a safetensors header of 61 bytes in 40"),
        (packed(b'{"a":' + b"[" * 100_000, 0), "unreadable safetensors header"),
        (packed(b'{"a":1,"a":1}', 0), "'a' stands twice"),
        (packed(b'{"a":NaN}', 0), "NaN is no JSON"),
        (packed(b'{"a":' + b"1" * 5000 + b"}", 0), "unreadable safetensors header"),
        (packed(b'{"\xff":1}', 0), "unreadable safetensors header"),
        (packed(b"{" + b" " * (17 << 20) + b"}", 0), "a safetensors header of 17825794 bytes is refused"),
        (b"\xff" * 8 + b"{}", "no safetensors file"),
    ],
)
def test_a_member_that_is_no_safetensors_file_says_what_it_is(archive_of, data, what):
    with archive_of(data) as archive, pytest.raises(ArchiveError, match=what):
        archive.tensors()


def test_random_changes_of_the_header_give_an_archive_error_or_tensors(archive_of):
    data = safetensors.torch.save(state_of_every_dtype())
    size = 8 + int.from_bytes(data[:8], "little")
    generator = random.Random(1)
    refused = 0
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(generator.choice([1, 2, 8])):
            mutated[generator.randrange(size)] = generator.randrange(256)
        with archive_of(bytes(mutated)) as archive:
            try:
                load_arrays(archive), load_state_dict(archive)
            except ArchiveError:
                refused += 1
    assert refused > 100
