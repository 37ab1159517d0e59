"""Torch's checkpoints read without torch, against torch.save and torch.load."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from nemo_archive import ArchiveError, open_archive
from nemo_archive.numpy import load_array, load_arrays
from nemo_archive.torch import load_state_dict
from nemo_archive.unpickler import load_pickle

DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@pytest.fixture
def archive_of(make_tar):
    """archive_of(state_dict) opens an archive whose weights torch.save wrote."""

    def make(content, *, raw: bytes | None = None, mmap: bool = True, **options):
        data = saved(content, **options) if raw is None else raw
        path = make_tar({"model_config.yaml": b"a: 1\n", "model_weights.ckpt": data})
        return open_archive(path, mmap=mmap)

    return make


@pytest.mark.parametrize("mmap", [True, False])
def test_golden_weights_equal_torch_load_bit_for_bit(golden_file, mmap):
    with open_archive(golden_file, mmap=mmap) as archive:
        expected = torch.load(io.BytesIO(archive.read("model_weights.ckpt")), weights_only=True)
        listed, arrays = archive.tensors(), load_arrays(archive)
        tensors = load_state_dict(archive, mmap=mmap)
    assert list(listed) == list(arrays) == list(tensors) == list(expected)
    assert tensors._metadata == expected._metadata
    for name, tensor in expected.items():
        assert (listed[name].shape, listed[name].strides) == (tuple(tensor.shape), tensor.stride())
        assert f"torch.{listed[name].dtype}" == str(tensor.dtype)
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_listed_and_loaded_bit_for_bit(archive_of, dtype):
    raw = torch.tensor(random.Random(0).choices(range(2), k=96), dtype=torch.uint8)
    if dtype != torch.bool:
        raw = torch.tensor(random.Random(0).choices(range(256), k=96), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(2, -1)
    with archive_of(OrderedDict(x=tensor, scalar=tensor[0, 0].clone(), empty=tensor[:0].clone())) as archive:
        infos, arrays, loaded = archive.tensors(), load_arrays(archive), load_state_dict(archive)
    assert f"torch.{infos['x'].dtype}" == str(dtype) == str(loaded["x"].dtype)
    assert infos["x"].nbytes == 96
    assert arrays["x"].tobytes() == bits(loaded["x"]) == bits(tensor)
    assert bits(loaded["scalar"]) == bits(tensor[0, 0]) == arrays["scalar"].tobytes()
    assert (loaded["scalar"].shape, loaded["empty"].shape) == ((), (0, tensor.shape[1]))
    assert arrays["empty"].shape == (0, tensor.shape[1])


def test_numpy_sees_bfloat16_as_ml_dtypes_does(archive_of):
    values = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    with archive_of({"x": values}) as archive:
        np.testing.assert_array_equal(load_array(archive, "x").astype(np.float32), values.float().numpy())


def test_shared_storages_stay_shared_and_strided_views_keep_offset_and_strides(archive_of):
    base = torch.arange(60.0).reshape(3, 4, 5)
    state = OrderedDict(
        base=base, tied=base, transposed=base.permute(2, 0, 1), part=base[1:, ::2, 3], repeated=base[0, 0, :1].expand(4)
    )
    with archive_of(state) as archive:
        infos, arrays, loaded = archive.tensors(), load_arrays(archive), load_state_dict(archive)
        for name, tensor in state.items():
            assert (infos[name].strides, infos[name].offset) == (tensor.stride(), tensor.storage_offset())
            assert loaded[name].stride() == tensor.stride()
            assert torch.equal(loaded[name], tensor)
            np.testing.assert_array_equal(arrays[name], tensor.numpy())
            np.testing.assert_array_equal(load_array(archive, name), tensor.numpy())
    assert {info.storage for info in infos.values()} == {"0"}
    loaded["base"][1, 2, 3] = -1
    assert loaded["tied"][1, 2, 3] == loaded["transposed"][3, 1, 2] == loaded["part"][0, 1] == -1
    assert np.shares_memory(arrays["base"], arrays["part"])


def test_file_offset_is_where_the_first_element_lies(archive_of, tmp_path):
    with archive_of({"x": torch.arange(7, dtype=torch.int16)[3:]}) as archive:
        info = archive.tensors()["x"]
    with open(archive.path, "rb") as file:  # noqa: PTH123
        file.seek(info.file_offset)
        assert np.frombuffer(file.read(8), np.int16).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_and_every_plain_value_is_read(archive_of, protocol):
    content = OrderedDict(
        tensor=torch.ones(2), nested={"list": [torch.zeros(1), 2], "pair": (1, torch.ones(1))}, none=None, yes=True,
        number=-70_000, large=2**40, small=-(2**70), fraction=0.1, text="ж" * 300, raw=b"\xff\0" * 200,
        dtype=torch.float16,
    )  # fmt: skip
    with archive_of(content, pickle_protocol=protocol) as archive:
        assert list(archive.tensors()) == ["tensor", "nested.list.0", "nested.pair.1"]
        loaded = load_state_dict(archive)
    assert {key: value for key, value in loaded.items() if key not in ("tensor", "nested")} == {
        key: value for key, value in content.items() if key not in ("tensor", "nested")
    }
    assert torch.equal(loaded["nested"]["pair"][1], torch.ones(1))


def test_parameters_keep_requires_grad(archive_of):
    with archive_of({"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(2), False)}) as archive:
        loaded = load_state_dict(archive)
    assert isinstance(loaded["a"], torch.nn.Parameter)
    assert (loaded["a"].requires_grad, loaded["b"].requires_grad) == (True, False)


def test_a_checkpoint_of_torch_before_1_6_is_loaded_through_torch_and_otherwise_refused_with_advice(archive_of):
    state = OrderedDict(a=torch.arange(5.0), b=torch.ones(2, dtype=torch.int64))
    with archive_of(state, _use_new_zipfile_serialization=False) as archive:
        loaded = load_state_dict(archive)
        assert all(torch.equal(loaded[name], state[name]) for name in state)
        with pytest.raises(ArchiveError, match=r"nemo_archive\.torch\.load_state_dict"):
            archive.tensors()


def test_an_old_checkpoint_that_runs_code_is_refused(archive_of, tmp_path):
    canary = tmp_path / "canary"
    data = saved({"a": Touch(canary)}, _use_new_zipfile_serialization=False)
    with archive_of(None, raw=data) as archive, pytest.raises(ArchiveError, match="cannot be loaded safely"):
        load_state_dict(archive)
    assert not canary.exists()


class Touch:
    """A pickle of it, loaded naively, creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_names_anything_else_is_refused_by_name_and_not_run(archive_of, tmp_path):
    canary = tmp_path / "canary"
    with archive_of({"a": torch.ones(1), "evil": Touch(canary)}) as archive:
        for read in (archive.tensors, lambda: load_state_dict(archive), lambda: load_arrays(archive)):
            with pytest.raises(ArchiveError, match=r"model_weights\.ckpt.*'(io|_io)\.open'"):
                read()
    assert not canary.exists()


BOMBS = {
    "a name outside the list": b"\x80\x02cos\nsystem\n(X\x04\0\0\0truetR.",
    "a name outside the list, stacked": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "a name that is no storage": b"\x80\x02(X\x07\0\0\0storagecbuiltins\neval\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ.",
    "an instance": b"\x80\x02(ios\nsystem\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "attributes of a state dict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\0\0\0__class__K\x01sb.",
    "metadata that is nested 5000 deep": (
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\0\0\0_metadata" + b"]" * 5000 + b"a" * 4999 + b"sb."
    ),
    "arguments that are no tuple": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "a function applied wrongly": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85R.",
    "a storage class applied": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "an unhashable key": b"\x80\x02}]K\x01s.",
    "a missing memo": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "a missing mark": b"\x80\x02t.",
    "no end": b"\x80\x02K\x01",
    "text beyond the end": b"\x80\x02X\xff\xff\xff\xffabc.",
    "an array of 2**60 bytes": b"\x80\x05\x96\0\0\0\0\0\0\0\x10.",
    "a text of 2**60 bytes": b"\x80\x04\x8d\0\0\0\0\0\0\0\x10.",
    "text that is no UTF-8": b"\x80\x02X\x02\0\0\0\xff\xfe.",
    "a list that holds itself": b"\x80\x02]q\0h\0a.",
    "items for a number": b"\x80\x02K\x01K\x01a.",
    "a future protocol": b"\x80\x09N.",
    "an unknown instruction": b"\x80\x02\xf7.",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=list(BOMBS))
def test_a_damaged_or_hostile_pickle_is_an_archive_error(archive_of, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with archive_of(None, raw=file.getvalue()) as archive, pytest.raises(ArchiveError):
        archive.tensors()


def test_containers_that_are_referred_to_billions_of_times_are_refused_quickly(archive_of):
    nested = [torch.ones(1)]
    for _ in range(40):
        nested = [nested, nested]
    with archive_of({"x": nested}) as archive, pytest.raises(ArchiveError, match="absurdly"):
        archive.tensors()


def test_a_large_memo_index_takes_no_memory():
    assert load_pickle(b"\x80\x02K\x05r\xff\xff\xff\x7fj\xff\xff\xff\x7f.") == 5


def rezipped(change, data: bytes, **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w", **options) as target:
        for record in source.infolist():
            changed = change(record.filename, source.read(record))
            if changed is not None:
                target.writestr(*changed)
    return file.getvalue()


CHANGES = {
    "storage '0' is missing": lambda name, data: None if name.endswith("data/0") else (name, data),
    "has 12 bytes where 16 belong": lambda name, data: (name, data[:-4] if name.endswith("data/0") else data),
    "outside the checkpoint's folder": lambda name, data: (name.replace("archive/data/", "other/data/"), data),
    "no data.pkl": lambda name, data: None if name.endswith("data.pkl") else (name, data),
    "byte order": lambda name, data: (name, b"big" if name.endswith("byteorder") else data),
    "TorchScript": lambda name, data: (name.replace("version", "constants.pkl"), data),
    "beyond its storage": lambda name, data: (name, data.replace(b"K\x02K\x02\x86", b"K\x02K\x09\x86")),
    "2 axes and 1 strides": lambda name, data: (name, data.replace(b"K\x02K\x01\x86", b"K\x02\x85")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(archive_of, what):
    data = rezipped(CHANGES[what], saved({"x": torch.ones(2, 2)}))
    with archive_of(None, raw=data) as archive, pytest.raises(ArchiveError, match=what):
        archive.tensors()


def test_compressed_records_are_refused(archive_of):
    data = rezipped(lambda *record: record, saved({"x": torch.ones(9)}), compression=zipfile.ZIP_DEFLATED)
    with archive_of(None, raw=data) as archive, pytest.raises(ArchiveError, match="compressed"):
        archive.tensors()


def test_zip64_directories_are_read(archive_of, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    data = rezipped(lambda *record: record, saved({"x": torch.arange(9)}))
    assert b"PK\x06\x06" in data
    with archive_of(None, raw=data) as archive:
        assert torch.equal(load_state_dict(archive)["x"], torch.arange(9))


@pytest.mark.parametrize("cut", [5, 30, 200, 900])
def test_a_truncated_checkpoint_is_refused(archive_of, cut):
    data = saved({"x": torch.ones(100)})
    with archive_of(None, raw=data[:-cut]) as archive, pytest.raises(ArchiveError):
        archive.tensors()


def test_a_checkpoint_that_is_something_else_is_called_what_it_is(archive_of):
    with archive_of(None, raw=b"<html>404</html>") as archive, pytest.raises(ArchiveError, match="an HTML page"):
        archive.tensors()
    with archive_of(None, raw=pickle.dumps({"a": 1})) as archive, pytest.raises(ArchiveError, match="no torch checkp"):
        load_state_dict(archive)


def test_random_changes_of_bytes_give_an_archive_error_or_tensors(archive_of):
    data = saved(torch.nn.LSTM(3, 4).state_dict())
    generator = random.Random(1)
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(generator.choice([1, 2, 8])):
            mutated[generator.randrange(len(data))] = generator.randrange(256)
        with archive_of(None, raw=bytes(mutated)) as archive:
            try:
                load_arrays(archive)
                load_state_dict(archive)
            except ArchiveError:
                pass
