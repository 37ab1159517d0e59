"""Checkpoints of Megatron-core in zarr's format: chunks put together as numpy does it, and what is refused."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from nemo_archive import ArchiveError, open_archive
from nemo_archive.numpy import load_arrays
from nemo_archive.torch import load_state_dict


def members_of(name, array, chunks, changes=None):
    """The files of one tensor, as zarr writes them: chunks at the edges are padded."""
    described = {"zarr_format": 2, "shape": list(array.shape), "chunks": list(chunks), "dtype": array.dtype.str}
    described |= {"compressor": None, "filters": None, "order": "C", "fill_value": None, **(changes or {})}
    files = {f"model_weights/{name}/.zarray": json.dumps(described).encode()}
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
    for place in itertools.product(*map(range, counts)):
        box = tuple(slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(place, chunks, strict=True))
        padded = np.full(chunks, 7, array.dtype)
        part = array[box]
        padded[tuple(map(slice, part.shape))] = part
        files[f"model_weights/{name}/{'.'.join(map(str, place)) or '0'}"] = padded.tobytes()
    return files


ARRAYS = {
    "whole": (np.arange(12, dtype="<f4").reshape(3, 4), (3, 4)),
    "layers": (np.arange(24, dtype="<f8").reshape(2, 3, 4), (1, 3, 4)),
    "edges": (np.arange(35, dtype="<i8").reshape(5, 7), (2, 3)),
    "scalar": (np.array(3, dtype="<i4"), ()),
    "empty": (np.zeros((0, 4), "<f2"), (2, 4)),
    "flags": (np.array([True, False, True]), (2,)),
}


@pytest.fixture
def archive_path(make_tar):
    files = {
        "model_config.yaml": b"a: 1\n",
        "model_weights/common.pt": b"PK\x03\x04",
        "model_weights/metadata.json": b"{}",
    }
    for name, (array, chunks) in ARRAYS.items():
        files |= members_of(name, array, chunks)
    return make_tar(files)


def test_every_tensor_is_what_numpy_puts_together(archive_path):
    with open_archive(archive_path) as archive:
        assert archive.weights == "model_weights" and archive.checkpoints() == ("model_weights",)
        assert {name: info.shape for name, info in archive.tensors().items()} == {
            name: array.shape for name, (array, _) in ARRAYS.items()
        }
    arrays, tensors = load_arrays(archive_path), load_state_dict(archive_path)
    for name, (array, _) in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
        assert torch.equal(tensors[name], torch.from_numpy(array))


def test_bfloat16_is_read(make_tar):
    values = torch.randn(4, 6).bfloat16()
    files = members_of("w", values.view(torch.int16).numpy(), (2, 6), {"dtype": "bfloat16"})
    path = make_tar({"model_config.yaml": b"a: 1\n", **files})
    assert torch.equal(load_state_dict(path)["w"], values)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"compressor": {"id": "zlib"}}, "compressor .* is not supported"),
        ({"filters": [{"id": "delta"}]}, "filters .* is not supported"),
        ({"order": "F"}, "order 'F' is not supported"),
        ({"dtype": "|O"}, r"dtype '\|O' is not supported"),
        ({"zarr_format": 3}, "no description of an array in zarr's format 2"),
        ({"shape": [3]}, "chunks of"),
        ({"shape": [-1, 4]}, "a shape of"),
        ({"chunks": [0, 4]}, "a shape of"),
        ({"shape": [3, 5]}, "is not in the archive"),
        ({"chunks": [3, 3]}, "a chunk of 48 bytes where 36 belong"),
        ({"shape": [2**20, 4]}, "more than there are members"),
        ({"shape": [2**61, 2**61]}, "chunks of"),
    ],
)
def test_a_description_that_is_wrong_or_foreign_is_refused(make_tar, changes, rule):
    array = np.arange(12, dtype="<f4").reshape(3, 4)
    path = make_tar({"model_config.yaml": b"a: 1\n", **members_of("w", array, (3, 4), changes)})
    with open_archive(path) as archive, pytest.raises(ArchiveError, match=rule):
        archive.tensors()


def test_a_description_that_is_no_json_is_refused(make_tar):
    path = make_tar({"model_config.yaml": b"a: 1\n", "model_weights/w/.zarray": b"[" * 60000})
    with open_archive(path) as archive, pytest.raises(ArchiveError, match="is no JSON"):
        archive.tensors()
