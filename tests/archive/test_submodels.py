"""Models inside a model's archive: pairs of files, sections of the config, archives in archives."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import OrderedDict

import pytest
import torch
import yaml
from torch import nn

from nemo_archive import ArchiveError, Artifact, open_archive
from nemo_archive.numpy import load_arrays
from nemo_archive.torch import build_and_load, load_state_dict, save_archive

LARGE = 300_000


def saved(state, **options) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def config(**keys) -> bytes:
    return yaml.safe_dump(keys).encode()


@pytest.fixture
def canary(make_tar):
    """Two models in one archive, as Canary's files have them."""
    name = Artifact("tokenizer.model", b"t").archive_name
    return make_tar(
        {
            "./model_config.yaml": config(target="a.Canary", tokenizer={"model_path": "nemo:own"}),
            "./model_weights.ckpt": saved(OrderedDict(w=torch.ones(2))),
            "./own": b"o",
            f"./{name}": b"t",
            "./timestamps_asr_model_config.yaml": config(target="a.Ctc", tokenizer={"model_path": f"nemo:{name}"}),
            "./timestamps_asr_model_weights.ckpt": saved(OrderedDict(v=torch.zeros(3))),
            "./train_config.yaml": config(unrelated=1),
        }
    )


def test_a_second_pair_of_files_is_a_model_with_its_own_config_weights_and_artifacts(canary):
    with open_archive(canary) as archive:
        assert archive.submodels() == ("timestamps_asr_model",)
        assert archive.checkpoints() == ("model_weights.ckpt", "timestamps_asr_model_weights.ckpt")
        assert list(archive.tensors()) == ["w"]
        with archive.submodel("timestamps_asr_model") as inner:
            assert inner.config()["target"] == "a.Ctc"
            assert inner.artifact("tokenizer.model_path").data == b"t"
            assert inner.weights == "timestamps_asr_model_weights.ckpt"
            assert list(inner.tensors()) == list(load_arrays(inner)) == ["v"]
            assert load_state_dict(inner)["v"].shape == (3,)
            assert inner.submodels() == ()
        assert list(load_state_dict(archive)) == ["w"]


def test_a_submodel_ends_with_its_archive(canary):
    archive = open_archive(canary)
    inner = archive.submodel("timestamps_asr_model")
    inner.tensors()
    archive.close()
    for read in (inner.tensors, lambda: inner.read("own")):
        with pytest.raises(ArchiveError, match=r"made\.nemo!timestamps_asr_model: the archive is closed"):
            read()
    assert "closed" in repr(inner)


def test_an_unknown_submodel_is_refused_with_the_names_of_those_that_exist(canary):
    with open_archive(canary) as archive:
        for name in ("tts_model", "model", "own", "../x"):
            with pytest.raises(ArchiveError, match=r"it has no sub-model .*; it has timestamps_asr_model"):
                archive.submodel(name)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.table = nn.Embedding(LARGE // 4, 4)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tts_model = Inner()
        self.encoder = nn.Linear(2, 2)


@pytest.fixture(params=["torch", "safetensors"])
def registered(tmp_path, request):
    """As NVIDIA's register_nemo_submodule saves: one state dict, the section has target and nemo_version."""
    torch.manual_seed(0)
    vocab, lexicon = Artifact("vocab.txt", b"v"), Artifact("lexicon", b"l")
    deeper = {"target": "a.Vocoder", "nemo_version": "1.0", "path": lexicon.reference}
    section = {"target": "a.Tts", "nemo_version": "1.0", "vocab": vocab.reference, "parts": {"vocoder": deeper}}
    whole = {"target": "a.Outer", "encoder": {"target": "b.Encoder"}, "tts_model": section}
    state = Outer().state_dict()
    state["tts_model.parts.vocoder.gain"] = torch.ones(1)
    save_archive(tmp_path / "m.nemo", whole, state, [vocab, lexicon], weights=request.param)
    return tmp_path / "m.nemo", section, state


def test_a_section_with_target_and_version_is_a_model_and_its_tensors_lose_their_prefix(registered):
    path, section, state = registered
    with open_archive(path) as archive:
        assert archive.submodels() == ("tts_model", "tts_model.parts.vocoder")
        inner = archive.submodel("tts_model")
        assert inner.config() == section
        assert inner.artifact("vocab").data == b"v"
        assert inner.references() == {
            "vocab": Artifact("vocab.txt", b"v").archive_name,
            "parts.vocoder.path": Artifact("lexicon", b"l").archive_name,
        }
        loaded = load_state_dict(inner)
        expected = {name.removeprefix("tts_model."): name for name in state if name.startswith("tts_model.")}
        assert list(inner.tensors()) == list(loaded) == list(load_arrays(inner)) == list(expected)
        assert inner.submodels() == ("parts.vocoder",)
        for vocoder in (inner.submodel("parts.vocoder"), archive.submodel("tts_model.parts.vocoder")):
            assert load_state_dict(vocoder)["gain"].tolist() == [1]
            assert vocoder.artifact("path").data == b"l"
    for name, full in expected.items():
        assert torch.equal(loaded[name], state[full])
    assert loaded._metadata["norm"] == {"version": 2}
    assert loaded._metadata[""] == {"version": 1}
    del loaded["parts.vocoder.gain"]
    assert build_and_load(Inner, loaded).table.weight.data_ptr() == loaded["table.weight"].data_ptr()


def test_a_section_in_an_old_checkpoint_is_cut_out_too(make_tar):
    state = saved(OrderedDict({"sub.w": torch.ones(2), "w": torch.zeros(1)}), _use_new_zipfile_serialization=False)
    members = {
        "model_config.yaml": config(
            sub={"target": "a.B", "nemo_version": "1"}, other={"target": "a.C", "nemo_version": 1}
        ),
        "model_weights.ckpt": state,
    }
    with open_archive(make_tar(members)) as archive:
        assert load_state_dict(archive.submodel("sub"))["w"].tolist() == [1, 1]


def test_a_section_without_tensors_of_its_name_says_so(registered):
    path, _, _ = registered
    save_archive(path, {"gone": {"target": "a.B", "nemo_version": "1"}}, {"w": torch.ones(1)})
    with open_archive(path) as archive, pytest.raises(ArchiveError, match=r"no tensor's name begins with 'gone\.'"):
        archive.submodel("gone").tensors()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("unpacked_outside", [False, True])
def test_an_archive_in_an_archive_is_read_and_mapped_in_place(make_tar, tmp_path, packed, unpacked_outside):
    save_archive(tmp_path / "inner.nemo", {"a": 1}, {"x": torch.arange(float(LARGE)), "y": torch.ones(2)})
    data = (tmp_path / "inner.nemo").read_bytes()
    (tmp_path / "inner.nemo").unlink()
    outer = make_tar({"model_config.yaml": b"a: 2\n", "models/nmt.nemo": gzip.compress(data, 1) if packed else data})
    if unpacked_outside:
        with tarfile.open(outer) as tar:
            tar.extractall(tmp_path / "folder", filter="data")
        outer = tmp_path / "folder"
    with open_archive(outer) as archive:
        assert archive.submodels() == ("models/nmt.nemo",)
        inner = archive.submodel("models/nmt.nemo")
        assert inner.config()["a"] == 1
        state, arrays = load_state_dict(inner), load_arrays(inner)
        if not packed:
            info, name = inner.tensors()["y"], "made.nemo" if not unpacked_outside else "folder/models/nmt.nemo"
            with (tmp_path / name).open("rb") as file:
                file.seek(info.file_offset)
                assert file.read(8) == b"\0\0\x80?" * 2
            with open("/proc/self/maps") as maps:  # noqa: PTH123
                assert "w-p" in next(line for line in maps if line.rstrip().endswith(name) and "rw-p" in line)
    assert torch.equal(state["x"], torch.arange(float(LARGE)))
    assert arrays["y"].tolist() == [1, 1]
    state["x"].zero_()
    with open_archive(outer) as archive:
        assert load_state_dict(archive.submodel("models/nmt.nemo"))["x"][-1] == LARGE - 1


def test_a_damaged_archive_in_an_archive_is_named_with_its_path(make_tar):
    path = make_tar({"model_config.yaml": b"a: 2\n", "nmt.nemo": b"<html>", "empty.nemo": b"", "tar.nemo": bytes(1024)})
    with open_archive(path) as archive:
        assert archive.submodels() == ("nmt.nemo", "empty.nemo", "tar.nemo")
        for name, what in (("nmt.nemo", "an HTML page"), ("empty.nemo", "an empty file"), ("tar.nemo", "zeros")):
            with pytest.raises(ArchiveError, match=rf"made\.nemo!{name}: this is .*{what}"):
                archive.submodel(name)
        assert archive.config() == {"a": 2}
