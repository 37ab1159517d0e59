"""Which members are checkpoints, and which of them is the model's."""

from __future__ import annotations

import io

import pytest
import torch

from nemo_archive import ArchiveError, open_archive

CONFIG = {"model_config.yaml": b"a: 1\n"}


def saved(value: float, **options) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.full((2,), value)}, file, **options)
    return file.getvalue()


def test_checkpoints_are_known_by_name_or_by_how_they_begin(make_tar):
    members = {
        "model_weights.ckpt": saved(0), "sub/adapter.safetensors": b"", "mp_rank_00/model_weights.ckpt": saved(1),
        "tp_rank_00_pp_rank_001/model_weights.ckpt": saved(2), "extra.pt": saved(3),
        "old.bin": saved(4, _use_new_zipfile_serialization=False), "language_model.bin": b"mmap lm", "empty.pt": b"",
        "dist/.metadata": b"", "dist/__0_0.distcp": b"", ".metadata": b"", "tokenizer.model": saved(5),
    }  # fmt: skip
    with open_archive(make_tar(CONFIG | members)) as archive:
        assert archive.checkpoints() == (
            "model_weights.ckpt", "sub/adapter.safetensors", "mp_rank_00/model_weights.ckpt",
            "tp_rank_00_pp_rank_001/model_weights.ckpt", "extra.pt", "old.bin", "dist",
        )  # fmt: skip


ORDER = ["model_weights.ckpt", "model_weights.safetensors", "model_weights/.metadata", "mp_rank_00/model_weights.ckpt"]


@pytest.mark.parametrize("count", range(1, 5))
def test_the_weights_are_the_first_of_the_usual_names_that_is_there(make_tar, count):
    there = ORDER[-count:]
    with open_archive(make_tar(CONFIG | dict.fromkeys(there, saved(0)) | {"other.ckpt": b""})) as archive:
        assert archive.weights == there[0].removesuffix("/.metadata")


@pytest.mark.parametrize("shard", ["mp_rank_00", "tp_rank_00_pp_rank_000"])
def test_a_single_shard_is_the_model(make_tar, shard):
    with open_archive(make_tar(CONFIG | {f"./{shard}/model_weights.ckpt": saved(7)})) as archive:
        assert archive.weights == f"{shard}/model_weights.ckpt"
        assert archive.tensors()["w"].shape == (2,)


NONE = {
    "split into 2 shards, none of which is the whole: mp_rank_00/w.pt, mp_rank_01/w.pt": [
        "mp_rank_00/w.pt",
        "mp_rank_01/w.pt",
    ],
    "it holds no checkpoint at all": ["vocab.txt"],
    "its checkpoints: a.ckpt, b/c.safetensors": ["a.ckpt", "b/c.safetensors"],
}


@pytest.mark.parametrize("what", NONE)
def test_without_weights_of_its_own_the_archive_says_what_it_has(make_tar, what):
    with open_archive(make_tar(CONFIG | dict.fromkeys(NONE[what], saved(0)))) as archive:
        for read in (archive.tensors, archive.checkpoint, lambda: archive.weights):
            with pytest.raises(ArchiveError, match=what):
                read()
