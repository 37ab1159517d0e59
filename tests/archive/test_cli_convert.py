"""nemo-archive convert; oracles: the safetensors package, torch, tarfile."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import warnings

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from nemo_archive import ArchiveWriter, open_archive
from nemo_archive.torch import load_state_dict, save_archive


@pytest.fixture
def model(golden):
    return golden / "fastconformer_ctc_bpe" / "model.nemo"


def contents(path):
    with open_archive(path) as archive:
        return {name: archive.read(name) for name in archive.members}


def assert_equal_state(ours, theirs):
    assert list(ours) == list(theirs)
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_weights_become_safetensors_and_torch_again(golden_file, tmp_path, command):
    there, back = tmp_path / "there.nemo", tmp_path / "back.nemo"
    assert command("convert", golden_file, there, "--weights", "safetensors").status == 0
    held, before = contents(there), contents(golden_file)
    weights = safetensors.torch.load(held.pop("model_weights.safetensors"))
    state = torch.load(io.BytesIO(before.pop("model_weights.ckpt")), weights_only=True)
    assert held == before
    assert {
        name: state[name] is not None and torch.equal(weights[name], state[name]) for name in weights
    } == dict.fromkeys(weights, True)
    assert command("convert", there, back, "--weights", "torch").status == 0
    again = torch.load(io.BytesIO(contents(back)["model_weights.ckpt"]), weights_only=True)
    assert_equal_state(again, state)
    assert again._metadata == state._metadata
    assert command("diff", golden_file, back).status == 0


def test_an_archive_becomes_a_folder_and_the_same_archive_again(golden_file, tmp_path, command):
    assert command("convert", golden_file, f"{tmp_path}/folder/").status == 0
    files = {str(p.relative_to(tmp_path / "folder")): p.read_bytes() for p in (tmp_path / "folder").rglob("*")}
    assert files == contents(golden_file)
    assert command("convert", tmp_path / "folder", tmp_path / "again.nemo").status == 0
    with tarfile.open(tmp_path / "again.nemo", "r:") as tar:
        assert {m.name[2:]: tar.extractfile(m).read() for m in tar if m.isfile()} == files
    result = command("convert", golden_file, tmp_path / "once.nemo", "--json")
    assert result.json["bytes"] == (tmp_path / "once.nemo").stat().st_size
    assert (tmp_path / "once.nemo").read_bytes() == (tmp_path / "again.nemo").read_bytes()


def test_a_folder_may_get_other_weights(model, tmp_path, command):
    assert command("convert", model, tmp_path / "folder", "--folder", "--weights", "safetensors").status == 0
    assert not (tmp_path / "folder" / "model_weights.ckpt").exists()
    weights = safetensors.torch.load_file(tmp_path / "folder" / "model_weights.safetensors")
    assert_equal_state(dict(sorted(weights.items())), dict(sorted(load_state_dict(model).items())))


def test_the_weights_alone_become_a_safetensors_file(model, tmp_path, command):
    assert command("convert", model, tmp_path / "w.safetensors").status == 0
    weights = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert_equal_state(dict(sorted(weights.items())), dict(sorted(load_state_dict(model).items())))


def test_strides_ties_and_odd_types_survive(tmp_path, command):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "base": base, "tied": base, "turned": base.T, "part": base[1:3, ::2], "brain": base.bfloat16(),
        "flag": base > 3, "scalar": torch.tensor(3, dtype=torch.int16), "empty": torch.ones(0, 5),
        "eight": base.to(torch.float8_e4m3fn),
    }  # fmt: skip
    save_archive(tmp_path / "x.nemo", {"a": 1}, state)
    assert command("convert", tmp_path / "x.nemo", tmp_path / "y.nemo", "--weights", "safetensors").status == 0
    assert command("convert", tmp_path / "y.nemo", tmp_path / "z.nemo", "--weights", "torch").status == 0
    again = load_state_dict(tmp_path / "z.nemo")
    assert list(again) == list(state)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name].float(), tensor.float())
    assert again["base"].data_ptr() == again["tied"].data_ptr()


def test_shards_are_converted_where_they_are(tmp_path, command):
    save_archive(tmp_path / "part.nemo", {"x": 1}, {"w": torch.ones(3)})
    with open_archive(tmp_path / "part.nemo") as part, ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_config({"x": 1})
        for rank in range(2):
            writer.add_from(part, "model_weights.ckpt", name=f"mp_rank_0{rank}/model_weights.ckpt")
    assert command("convert", tmp_path / "x.nemo", tmp_path / "y.nemo", "--weights", "safetensors").status == 0
    names = {"model_config.yaml", *(f"mp_rank_0{rank}/model_weights.safetensors" for rank in range(2))}
    assert contents(tmp_path / "y.nemo").keys() == names


def test_a_sharded_checkpoint_of_torch_distributed_becomes_one_file(tmp_path, command):
    torch.manual_seed(0)
    state = {"w": torch.randn(40, 30), "b": torch.arange(7)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(state), checkpoint_id=tmp_path / "shards", no_dist=True)
    with ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_config({"a": 1})
        for file in (tmp_path / "shards").iterdir():
            writer.add_member(f"model_weights/{file.name}", file.read_bytes())
    (weights,) = command("ls", tmp_path / "x.nemo", "--json").json["weights"]
    assert (weights["name"], weights["tensors"], weights["parameters"]) == ("model_weights", 2, 1207)
    assert command("verify", tmp_path / "x.nemo").status == 0
    save_archive(tmp_path / "plain.nemo", {"a": 1}, state)
    assert command("diff", tmp_path / "x.nemo", tmp_path / "plain.nemo", "--only", "tensors") == (0, "", "")
    for name in ("safetensors", "torch"):
        target = tmp_path / f"{name}.nemo"
        assert command("convert", tmp_path / "x.nemo", target, "--weights", name).status == 0
        suffix = "ckpt" if name == "torch" else name
        assert contents(target).keys() == {"model_config.yaml", f"model_weights.{suffix}"}
        assert all(torch.equal(load_state_dict(target)[key], state[key]) for key in state)


def test_what_exists_is_replaced_only_with_force(model, tmp_path, command):
    target = tmp_path / "there.nemo"
    target.write_bytes(b"mine")
    result = command("convert", model, target)
    assert (result.status, result.err) == (2, f"nemo-archive: {target}: exists; --force replaces it\n")
    assert target.read_bytes() == b"mine"
    assert command("convert", model, target, "--force").status == 0
    assert command("diff", model, target).status == 0
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model_weights.safetensors").write_bytes(b"mine")
    assert command("convert", model, tmp_path / "folder", "--weights", "safetensors").status == 2
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model_weights.safetensors"]


def test_a_collision_and_an_impossible_request_are_errors(tmp_path, command):
    save_archive(tmp_path / "part.nemo", {"x": 1}, {"w": torch.ones(3)})
    with open_archive(tmp_path / "part.nemo") as part, ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_from(part, "model_config.yaml")
        writer.add_from(part, "model_weights.ckpt")
        writer.add_stream(
            "model_weights.safetensors", lambda file: file.write(safetensors.torch.save({"w": torch.ones(3)}))
        )
    result = command("convert", tmp_path / "x.nemo", tmp_path / "y.nemo", "--weights", "safetensors")
    assert (result.status, result.out) == (2, "")
    assert "model_weights.safetensors, which is there already" in result.err
    assert command("convert", tmp_path / "x.nemo", tmp_path / "y.safetensors", "--weights", "torch").status == 2
    save_archive(tmp_path / "s.nemo", {"x": 1}, {"w": torch.ones(3), "step": 7})
    result = command("convert", tmp_path / "s.nemo", tmp_path / "y.nemo", "--weights", "safetensors")
    assert "the entry 'step' is a int" in result.err
    assert not (tmp_path / "y.nemo").exists()


def test_into_safetensors_needs_neither_torch_nor_numpy_and_back_says_so(model, tmp_path):
    program = """
import sys
for name in ("torch", "numpy"):
    sys.modules[name] = None
from nemo_archive.cli import main
assert main(["convert", sys.argv[1], sys.argv[2] + "/a.nemo", "--weights", "safetensors"]) == 0
sys.exit(main(["convert", sys.argv[2] + "/a.nemo", sys.argv[2] + "/b.nemo", "--weights", "torch"]))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(model), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == (
        f"nemo-archive: {tmp_path}/a.nemo: model_weights.safetensors: writing a torch checkpoint needs torch: "
        "pip install 'nemo-archive[torch]'\n"
    )
    weights = safetensors.torch.load(contents(tmp_path / "a.nemo")["model_weights.safetensors"])
    assert_equal_state(dict(sorted(weights.items())), dict(sorted(load_state_dict(model).items())))
