"""nemo-archive diff; oracle: numpy's own subtraction, and edits whose effect is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_archive import ArchiveWriter, Artifact, open_archive
from nemo_archive.commands.tensor_differences import largest_difference
from nemo_archive.torch import load_state_dict, save_archive


@pytest.fixture
def model(golden):
    return golden / "fastconformer_ctc_bpe" / "model.nemo"


def test_an_archive_equals_itself_and_its_copies(golden_file, tmp_path, command):
    with open_archive(golden_file) as archive, ArchiveWriter(tmp_path / "copy.nemo") as writer:
        for name in archive.members:
            writer.add_from(archive, name)
    for other in (golden_file, tmp_path / "copy.nemo"):
        assert command("diff", golden_file, other) == (0, "", "")
    report = command("diff", golden_file, golden_file, "--json").json
    assert (report["equal"], report["config"], report["members"], report["tensors"]) == (True, [], [], [])


def test_the_format_of_the_weights_and_the_artifacts_digits_do_not_matter(golden, model, tmp_path, command):
    with open_archive(model) as archive:
        config, state = archive.config(), load_state_dict(archive)
        renamed = {path: Artifact(a.name[33:], a.data) for path, a in archive.artifacts().items()}
    for path, artifact in renamed.items():
        config["tokenizer"][path.removeprefix("tokenizer.")] = artifact.reference
    save_archive(tmp_path / "x.nemo", config, state, renamed.values(), weights="safetensors")
    assert command("diff", model, tmp_path / "x.nemo") == (0, "", "")
    assert command("diff", model, golden / "fastconformer_ctc_bpe" / "model_resaved.nemo").status == 0


def test_every_changed_key_is_shown_once(tmp_path, command):
    a = {"same": 1, "n": 1, "kind": 1, "gone": {"x": [1, 2]}, "list": [1, 2], "deep": [{"a": 1}, {"b": 2}],
         "nan": float("nan"), "empty": {}}  # fmt: skip
    b = {"same": 1, "n": 2, "kind": 1.0, "new": None, "list": [1, 3], "deep": [{"a": 1}, {"b": 3}],
         "nan": float("nan"), "empty": {}}  # fmt: skip
    save_archive(tmp_path / "a.nemo", a, {"w": torch.ones(1)})
    save_archive(tmp_path / "b.nemo", b, {"w": torch.ones(1)})
    result = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo", "--json")
    assert result.status == 1
    assert {(c["kind"], c["key"]): (c["a"], c["b"]) for c in result.json["config"]} == {
        ("changed", "n"): (1, 2), ("changed", "kind"): (1, 1.0), ("removed", "gone.x"): ([1, 2], None),
        ("changed", "list"): ([1, 2], [1, 3]), ("changed", "deep.1.b"): (2, 3), ("added", "new"): (None, None),
    }  # fmt: skip
    lines = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo").out.splitlines()
    assert next(line.split() for line in lines if line.startswith("gone.x")) == ["gone.x", "[1,", "2]", "-"]


def test_every_difference_of_tensors_is_shown_with_its_size(tmp_path, command):
    torch.manual_seed(0)
    w = torch.randn(40, 50)
    near, far = w.clone(), w.clone()
    near[3, 4] += 1e-4
    far[39, 49] -= 2.5
    nan = torch.tensor([1.0, float("nan"), float("inf")])
    a = {
        "same": w,
        "near": w,
        "far": w,
        "shape": w,
        "dtype": w,
        "only_a": w,
        "t": w.T,
        "nan": nan,
        "int": torch.tensor([2**62]),
    }
    b = {"same": w.clone(), "near": near, "far": far, "shape": w[1:], "dtype": w.half(), "t": w.T.contiguous(),
         "nan": torch.tensor([1.0, 2.0, float("inf")]), "int": torch.tensor([2**62 + 1]), "only_b": w}  # fmt: skip
    save_archive(tmp_path / "a.nemo", {"x": 1}, a)
    save_archive(tmp_path / "b.nemo", {"x": 1}, b)
    result = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo", "--json")
    found = {d["name"]: d for d in result.json["tensors"]}
    assert result.status == 1
    assert {name: d["kind"] for name, d in found.items()} == {
        "near": "values", "far": "values", "shape": "shape", "dtype": "dtype", "only_a": "only_in_a", "nan": "values",
        "int": "values", "only_b": "only_in_b",
    }  # fmt: skip
    assert found["near"]["max_abs_difference"] == np.abs(w.double().numpy() - near.double().numpy()).max()
    assert found["far"]["max_abs_difference"] == np.abs(w.double().numpy() - far.double().numpy()).max()
    assert found["dtype"]["max_abs_difference"] == np.abs(w.double().numpy() - w.half().double().numpy()).max()
    assert found["nan"]["max_abs_difference"] == "NaN"
    assert found["int"]["max_abs_difference"] == 1
    assert found["shape"]["b"] == {"shape": [39, 50], "dtype": "float32"}
    assert found["only_a"]["b"] is None
    lines = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo").out.splitlines()
    assert next(line for line in lines if line.startswith("far")).split() == ["far", *["40x50", "float32"] * 2, "2.5"]
    tolerant = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo", "--atol", "1e-3", "--json").json["tensors"]
    assert {d["name"] for d in tolerant} == found.keys() - {"near"}


def test_a_tolerance_can_make_two_archives_equal(tmp_path, command):
    save_archive(tmp_path / "a.nemo", {"x": 1}, {"w": torch.ones(9)})
    save_archive(tmp_path / "b.nemo", {"x": 1}, {"w": torch.ones(9) + 1e-5})
    assert command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo").status == 1
    assert command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo", "--atol", "1e-4") == (0, "", "")


def test_without_numpy_the_tensors_that_differ_are_still_named(tmp_path, command, monkeypatch):
    save_archive(tmp_path / "a.nemo", {"x": 1}, {"v": torch.zeros(2), "w": torch.ones(9)})
    save_archive(tmp_path / "b.nemo", {"x": 1}, {"v": torch.zeros(2), "w": torch.zeros(9)})
    monkeypatch.setattr("nemo_archive.commands.tensor_differences.has_numpy", lambda: False)
    result = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo")
    assert result.status == 1
    assert "by how much: needs numpy" in result.out
    report = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo", "--json").json
    assert [(d["name"], d["max_abs_difference"]) for d in report["tensors"]] == [("w", None)]


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_difference_is_numpys_over_many_pieces(seed):
    generator = np.random.default_rng(seed)
    a, b = (generator.standard_normal((3, 333_333)).astype(np.float32) for _ in "ab")
    assert largest_difference(a, b) == np.abs(a.astype(np.float64) - b).max()
    assert largest_difference(a.T[::5], b.T[::5]) == np.abs(a.T[::5].astype(np.float64) - b.T[::5]).max()
    assert largest_difference(a[:0], b[:0]) == 0


def test_artifacts_and_other_members_are_compared_by_content(model, tmp_path, command):
    with open_archive(model) as archive, ArchiveWriter(tmp_path / "x.nemo") as writer:
        for name in archive.members:
            if name.endswith("_vocab.txt"):
                writer.add_member(name, archive.read(name) + b"one more\n")
            else:
                writer.add_from(archive, name)
        writer.add_member("notes.txt", b"new")
    report = command("diff", model, tmp_path / "x.nemo", "--json").json
    assert [c["key"] for c in report["config"]] == ["tokenizer.vocab_path"]
    assert report["members"] == [{"kind": "added", "name": "notes.txt", "a": None, "b": "3 bytes"}]
    assert report["tensors"] == []
    for only, expected in (("config", 1), ("members", 1), ("tensors", 0)):
        assert command("diff", model, tmp_path / "x.nemo", "--only", only).status == expected


def test_shards_are_compared_under_their_own_names(tmp_path, command):
    def write(path, value):
        save_archive(tmp_path / "part.nemo", {"x": 1}, {"w": torch.full((3,), value)})
        with open_archive(tmp_path / "part.nemo") as part, ArchiveWriter(path) as writer:
            writer.add_config({"x": 1})
            for rank in range(2):
                writer.add_from(part, "model_weights.ckpt", name=f"mp_rank_0{rank}/model_weights.ckpt")

    write(tmp_path / "a.nemo", 1.0)
    write(tmp_path / "b.nemo", 3.0)
    report = command("diff", tmp_path / "a.nemo", tmp_path / "b.nemo", "--json").json["tensors"]
    assert [(d["name"], d["max_abs_difference"]) for d in report] == [
        ("mp_rank_00/model_weights:w", 2.0), ("mp_rank_01/model_weights:w", 2.0),
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_is_trouble_not_a_difference(model, tmp_path, command):
    (tmp_path / "bad.nemo").write_bytes(b"\0" * 5000)
    result = command("diff", model, tmp_path / "bad.nemo")
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
