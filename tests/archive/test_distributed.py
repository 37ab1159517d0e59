"""Sharded checkpoints inside archives, against torch.distributed.checkpoint."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from nemo_archive import ArchiveError, ArchiveWriter, open_archive
from nemo_archive.numpy import load_array, load_arrays
from nemo_archive.torch import load_state_dict

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


class Sharded(torch.Tensor):
    """A tensor that the checkpoint holds in boxes, through the protocol that DTensor implements."""

    def __new__(cls, whole: torch.Tensor, boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]):
        tensor = torch.Tensor._make_subclass(cls, whole)
        tensor.whole, tensor.boxes = whole, boxes
        return tensor

    def __create_write_items__(self, name, _value):
        properties = TensorProperties.create_from_tensor(self.whole)
        return [
            WriteItem(
                index=MetadataIndex(name, offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                    properties=properties,
                    size=self.whole.size(),
                ),
            )
            for offsets, sizes in self.boxes
        ]

    def __create_chunk_list__(self):
        return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in self.boxes]

    def __get_tensor_shard__(self, index):
        sizes = dict(self.boxes)[tuple(index.offset)]
        box = self.whole
        for axis, (start, size) in enumerate(zip(index.offset, sizes, strict=True)):
            box = box.narrow(axis, start, size)
        return box


def halves(whole: torch.Tensor, axis: int) -> Sharded:
    """Cut in two along one axis, unevenly."""
    cut = whole.shape[axis] // 3 + 1
    sizes = [list(whole.shape), list(whole.shape)]
    sizes[0][axis], sizes[1][axis] = cut, whole.shape[axis] - cut
    second = [0] * whole.dim()
    second[axis] = cut
    return Sharded(whole, [((0,) * whole.dim(), tuple(sizes[0])), (tuple(second), tuple(sizes[1]))])


def tensors() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = OrderedDict((f"plain.{dtype}", (torch.rand(3, 4) * 9).to(dtype)) for dtype in DTYPES)
    state["large"] = torch.arange(400_000.0)
    state["transposed"] = torch.arange(6.0).reshape(2, 3).t()
    state["part"] = torch.arange(60.0).reshape(3, 4, 5)[1:, ::2, 3]
    state["scalar"], state["none"] = torch.tensor(2.5), torch.zeros(0, 3)
    return state


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoint"


def save(state, folder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def load(empty, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(empty, checkpoint_id=folder, no_dist=True)
    return empty


def pack(folder: Path, path: Path, name: str = "model_weights") -> Path:
    with ArchiveWriter(path) as writer:
        writer.add_config({"a": 1})
        for file in sorted(folder.iterdir()):
            writer.add_member(f"{name}/{file.name}", file.read_bytes())
    return path


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("unpacked", [False, True])
def test_tensors_of_every_dtype_equal_what_torch_distributed_loads(folder, tmp_path, unpacked):
    state = tensors()
    save(state, folder)
    expected = load({name: torch.zeros_like(tensor) for name, tensor in state.items()}, folder)
    path = pack(folder, tmp_path / "m.nemo")
    if unpacked:
        (tmp_path / "m").mkdir()
        folder.rename(tmp_path / "m" / "model_weights")
        (tmp_path / "m" / "model_config.yaml").write_text("a: 1\n")
        path = tmp_path / "m"
    with open_archive(path) as archive:
        assert archive.checkpoints() == ("model_weights",)
        assert archive.weights == "model_weights"
        infos, arrays, loaded = archive.tensors(), load_arrays(archive), load_state_dict(archive)
        copied = load_state_dict(archive, mmap=False)
    assert set(infos) == set(arrays) == set(loaded) == set(state)
    for name, tensor in expected.items():
        assert (infos[name].shape, f"torch.{infos[name].dtype}") == (tuple(tensor.shape), str(tensor.dtype)), name
        assert bits(loaded[name]) == arrays[name].tobytes() == bits(copied[name]) == bits(tensor)
        assert (loaded[name].shape, loaded[name].dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.complex128], ids=str)
def test_pieces_are_put_together_along_any_axis(folder, tmp_path, dtype):
    whole = (torch.arange(5 * 7 * 6) % 250).reshape(5, 7, 6).to(dtype)
    corners = [((i, j, 0), (2 + i // 2, 3 + j // 3, 6)) for i in (0, 2) for j in (0, 3)]
    state = {
        **{f"axis{axis}": halves(whole, axis) for axis in range(3)},
        "corners": Sharded(whole, corners),
        "transposed": halves(whole.permute(2, 0, 1), 1),
        "rows": Sharded(whole[:, 0, 0], [((row,), (1,)) for row in range(5)]),
    }
    save(state, folder)
    expected = load({name: torch.zeros(value.whole.shape, dtype=dtype) for name, value in state.items()}, folder)
    with open_archive(pack(folder, tmp_path / "m.nemo")) as archive:
        arrays, loaded = load_arrays(archive), load_state_dict(archive)
        np.testing.assert_array_equal(load_array(archive, "axis1"), arrays["axis1"])
    for name, tensor in expected.items():
        assert torch.equal(tensor, state[name].whole)
        assert torch.equal(loaded[name], tensor)
        assert arrays[name].tobytes() == bits(tensor)


def test_what_two_processes_saved_of_their_shards_is_put_together(golden, tmp_path):
    folder = golden / "distributed_two_ranks"
    assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in folder.iterdir()}
    whole = torch.arange(35.0).reshape(5, 7)
    with open_archive(pack(folder, tmp_path / "m.nemo")) as archive:
        loaded, arrays = load_state_dict(archive), load_arrays(archive)
    assert loaded["step"] == 3
    for name in ("rows", "columns", "same"):
        assert torch.equal(loaded[name], whole)
        np.testing.assert_array_equal(arrays[name], whole.numpy())


def test_nested_names_and_small_values_come_back_and_what_is_not_allowed_stays_bytes(folder, tmp_path):
    sibling = io.BytesIO(b"opaque")
    state = {
        "model": {"w": torch.ones(2)}, "step": 3, "name": "x", "list": [1, torch.zeros(2)],
        "pair": (1, {"inner": torch.full((2,), 7.0)}), "extra": Opaque(tmp_path / "canary"), "stream": sibling,
    }  # fmt: skip
    save(state, folder)
    with open_archive(pack(folder, tmp_path / "m.nemo")) as archive:
        loaded, names = load_state_dict(archive), set(archive.tensors())
    assert names == {"model.w", "list.1", "pair.1.inner"}
    assert (loaded["step"], loaded["name"], loaded["list.0"]) == (3, "x", 1)
    assert loaded["list.1"].tolist() == [0, 0]
    assert isinstance(loaded["extra"], bytes)
    assert not (tmp_path / "canary").exists()
    assert loaded["pair"][1]["inner"].tolist() == [7, 7]


class Opaque:
    """A value that would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_metadata_that_would_run_code_are_refused_by_name_and_not_run(folder, tmp_path):
    save({"w": torch.ones(2)}, folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Opaque(tmp_path / "canary")))
    with open_archive(pack(folder, tmp_path / "m.nemo")) as archive:
        for read in (archive.tensors, lambda: load_state_dict(archive)):
            with pytest.raises(
                ArchiveError, match=r"member 'model_weights/\.metadata': the pickle names '(io|_io)\.open'"
            ):
                read()
    assert not (tmp_path / "canary").exists()


def test_megatrons_layout_is_listed_with_its_common_part(folder, tmp_path):
    save({"model.embedding.weight": halves(torch.arange(20.0).reshape(5, 4), 0)}, folder)
    torch.save({"iteration": 7, "args": [1, 2]}, folder / "common.pt")
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    with open_archive(pack(folder, tmp_path / "m.nemo")) as archive:
        assert archive.checkpoints() == ("model_weights", "model_weights/common.pt")
        assert load_state_dict(archive, member="model_weights/common.pt")["iteration"] == 7
        assert load_state_dict(archive)["model.embedding.weight"].sum() == 190


def test_listing_needs_neither_torch_nor_numpy_and_reads_no_piece(folder, tmp_path):
    save({"a": torch.ones(4), "b": halves(torch.ones(6, 2), 0)}, folder)
    path = pack(folder, tmp_path / "m.nemo")
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "numpy"]))
from nemo_archive import open_archive
with open_archive(sys.argv[1]) as archive:
    print([(info.name, info.shape, info.dtype) for info in archive.tensors().values()])
    print(bytes(archive.checkpoint().storages["b"].view()) == b"\\0\\0\\x80?" * 12)
"""
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[('a', (4,), 'float32'), ('b', (6, 2), 'float32')]", "True"]


def test_a_large_tensor_in_one_piece_is_mapped(folder, tmp_path):
    save({"large": torch.arange(400_000.0)}, folder)  # the first in its file, and so aligned
    path = pack(folder, tmp_path / "m.nemo")
    before = path.read_bytes()
    state = load_state_dict(path)
    maps = Path("/proc/self/maps").read_text().splitlines()
    low, high = next(line.split()[0].split("-") for line in maps if line.endswith(str(path)) and " rw-p " in line)
    assert int(low, 16) <= state["large"].data_ptr() < int(high, 16)
    state["large"].zero_()
    assert path.read_bytes() == before


def rewritten(folder: Path, change) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def place_of(metadata, name):
    return next(place for index, place in metadata.storage_data.items() if index.fqn == name)


DAMAGE = {
    "refers to bytes": lambda m: setattr(place_of(m, "w"), "offset", 10**9),
    "is not in the archive": lambda m: setattr(place_of(m, "w"), "relative_path", "gone.distcp"),
    "climb with": lambda m: setattr(place_of(m, "w"), "relative_path", "../../model_config.yaml"),
    "does not say where": lambda m: m.storage_data.clear(),
    "were transformed": lambda m: setattr(place_of(m, "w"), "transform_descriptors", ["zstd"]),
    "outside its shape": lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([2])),
    "pieces of 3 elements": lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([4])),
    "its dtype or its pieces": lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", 5),
    "no description of a state dict": lambda m: setattr(m, "state_dict_metadata", [1]),
    "neither a tensor nor bytes": lambda m: m.state_dict_metadata.update(w=1),
    "a shape or an offset is damaged": lambda m: setattr(m.state_dict_metadata["w"], "size", (2**70,)),
    "a piece is not what the metadata say": lambda m: setattr(
        m.state_dict_metadata["w"].properties, "dtype", torch.int32
    ),
    "no torch checkpoint": lambda m: setattr(place_of(m, "w"), "length", 20),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_metadata_that_do_not_fit_are_refused(folder, tmp_path, what):
    save({"w": torch.ones(3)}, folder)
    rewritten(folder, DAMAGE[what])
    with open_archive(pack(folder, tmp_path / "m.nemo")) as archive, pytest.raises(ArchiveError, match=what):
        load_arrays(archive)


def test_a_piece_that_repeats_few_bytes_over_a_huge_shape_takes_no_memory(folder, tmp_path):
    save({"w": torch.ones(3)}, folder)
    expanded = io.BytesIO()
    torch.save(torch.ones(1).expand(1 << 30, 2), expanded)
    (folder / "__0_0.distcp").write_bytes(expanded.getvalue())

    def change(metadata):
        tensor = metadata.state_dict_metadata["w"]
        tensor.size = tensor.chunks[0].sizes = torch.Size([1 << 30, 2])
        tensor.chunks[0].offsets = torch.Size([0, 0])
        place = place_of(metadata, "w")
        place.length = len(expanded.getvalue())
        metadata.storage_data = {MetadataIndex("w", [0, 0]): place}

    rewritten(folder, change)
    with open_archive(pack(folder, tmp_path / "m.nemo")) as archive:
        assert archive.tensors()["w"].shape == (1 << 30, 2)
        with pytest.raises(ArchiveError, match=r"by repeating them|more elements than bytes"):
            load_arrays(archive)


def test_random_changes_of_the_metadata_give_an_archive_error_or_tensors(folder, tmp_path):
    import random

    save({"a": torch.ones(4), "b": halves(torch.ones(6, 2), 0), "step": 3}, folder)
    data = (folder / ".metadata").read_bytes()
    generator = random.Random(1)
    refused = 0
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(generator.choice([1, 2, 8])):
            mutated[generator.randrange(len(data))] = generator.randrange(256)
        (folder / ".metadata").write_bytes(mutated)
        with open_archive(unpacked(folder)) as archive:
            try:
                load_arrays(archive), load_state_dict(archive)
            except ArchiveError:
                refused += 1
    assert refused > 100


def unpacked(folder: Path) -> Path:
    """A folder that reads as an archive whose weights are `folder`."""
    model = folder.parent / "model"
    model.mkdir(exist_ok=True)
    (model / "model_config.yaml").write_text("a: 1\n")
    weights = model / "model_weights"
    weights.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (weights / file.name).write_bytes(file.read_bytes())
    return model
