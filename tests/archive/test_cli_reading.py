"""nemo-archive ls, config, tensors, extract, hash; oracles: tarfile, torch, sha256sum."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from importlib import import_module

import pytest
import torch
import yaml

from nemo_archive import ArchiveWriter, open_archive
from nemo_archive.cli import SUMMARIES, main
from nemo_archive.torch import save_archive


@pytest.fixture
def model(golden):
    return golden / "fastconformer_ctc_bpe" / "model.nemo"


def tar_contents(path):
    with tarfile.open(path) as tar:
        return {m.name.removeprefix("./"): tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


def torch_weights(path):
    return torch.load(io.BytesIO(tar_contents(path)["model_weights.ckpt"]), weights_only=True)


def test_ls_names_every_member_with_its_size_and_counts_the_parameters(golden_file, command):
    result = command("ls", golden_file, "--json")
    contents, state = tar_contents(golden_file), torch_weights(golden_file)
    assert (result.status, result.err) == (0, "")
    assert {m["name"]: m["bytes"] for m in result.json["members"]} == {k: len(v) for k, v in contents.items()}
    (weights,) = result.json["weights"]
    unique = {(t.data_ptr(), t.shape): t for t in state.values()}.values()
    assert (weights["tensors"], weights["parameters"]) == (len(state), sum(t.numel() for t in unique))
    assert set(weights["dtypes"]) == {str(t.dtype).removeprefix("torch.") for t in state.values()}
    assert result.json["target"] == yaml.safe_load(contents["model_config.yaml"])["target"]


def test_ls_prints_an_aligned_table(model, command):
    lines = command("ls", model).out.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("member")))
    table = lines[start : start + 6]
    end = table[0].index("bytes") + len("bytes")
    sizes = [len(data) for _, data in sorted(tar_contents(model).items())]
    assert [int(row[:end].split()[-1].replace(",", "")) for row in table[1:]] == sizes
    assert all(row[end : end + 2] == "  " for row in table)
    assert "tokenizer.model_path" in command("ls", model).out


def test_ls_counts_tied_weights_once_and_says_what_is_unreadable(tmp_path, command):
    shared = torch.ones(5, 7)
    save_archive(tmp_path / "tied.nemo", {"a": 1}, {"x": shared, "y": shared, "z": torch.ones(3)})
    (weights,) = command("ls", tmp_path / "tied.nemo", "--json").json["weights"]
    assert (weights["tensors"], weights["parameters"]) == (3, 38)
    with ArchiveWriter(tmp_path / "broken.nemo") as writer:
        writer.add_config({"a": 1})
        writer.add_member("model_weights.ckpt", b"nothing of the kind, at all")
    result = command("ls", tmp_path / "broken.nemo")
    assert result.status == 0
    assert "model_weights.ckpt: is no torch checkpoint but a text file" in result.out


def test_config_prints_yaml_that_reads_back_as_the_same(golden_file, command):
    expected = yaml.safe_load(tar_contents(golden_file)["model_config.yaml"])
    assert yaml.safe_load(command("config", golden_file).out) == expected
    infinite = {"Infinity": float("inf"), "-Infinity": -float("inf")}
    with open_archive(golden_file) as archive:
        assert (
            json.loads(
                command("config", golden_file, "--json").out,
                object_hook=lambda section: {
                    key: infinite.get(value, value) if isinstance(value, str) else value
                    for key, value in section.items()
                },
            )
            == archive.config()
        )
    assert command("config", golden_file, "--raw").out.encode() == tar_contents(golden_file)["model_config.yaml"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model.rate", "0.001\n"),
        ("model.name", "straße\n"),
        ("model.flag", "true\n"),
        ("model.none", "null\n"),
        ("model.list.1.deep", "2\n"),
        ("model.words", "a\nb\n"),
        ("a.b.c", "dotted\n"),
        ("model.lines", "one\ntwo\n"),
    ],
)
def test_config_prints_one_key(tmp_path, command, key, text):
    model = {"rate": 1e-3, "name": "straße", "flag": True, "none": None, "list": [1, {"deep": 2}], "words": ["a", "b"],
             "lines": "one\ntwo"}  # fmt: skip
    with ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_config({"model": model, "a.b": {"c": "dotted"}})
    assert command("config", tmp_path / "x.nemo", key) == (0, text, "")


@pytest.mark.parametrize("key", ["tokeniser.type", "tokenizer.type.x", "encoder.d_modl", "train_ds.99", ""])
def test_config_says_in_one_line_that_a_key_is_missing(model, command, key):
    result = command("config", model, key)
    if key == "":
        assert yaml.safe_load(result.out)["target"]
        return
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"nemo-archive: {model}: model_config.yaml: there is no key {key}")
    assert result.err.count("\n") == 1
    assert key != "tokeniser.type" or result.err.endswith("nearest: tokenizer.type\n")


def test_json_writes_what_json_lacks_as_text(tmp_path, command):
    with ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_config({"a": float("inf"), "b": float("nan"), "c": -float("inf"), 3: "\x9b\x85"})
    printed = command("config", tmp_path / "x.nemo", "--json")
    assert printed.json == {"a": "Infinity", "b": "NaN", "c": "-Infinity", "3": "\x9b\x85"}
    assert "\x9b" not in printed.out


def test_tensors_lists_what_torch_finds(golden_file, command):
    report = command("tensors", golden_file, "--json").json["weights"]["model_weights.ckpt"]
    state = torch_weights(golden_file)
    assert list(report) == list(state)
    for name, tensor in state.items():
        assert report[name]["shape"] == list(tensor.shape)
        assert report[name]["dtype"] == str(tensor.dtype).removeprefix("torch.")
        assert report[name]["bytes"] == tensor.nbytes


def test_statistics_are_torchs(golden_file, command):
    report = command("tensors", golden_file, "--stats", "--json").json["weights"]["model_weights.ckpt"]
    for name, tensor in torch_weights(golden_file).items():
        wide, entry = tensor.double(), report[name]
        assert entry["min"] == wide.min().item()
        assert entry["max"] == wide.max().item()
        assert entry["mean"] == pytest.approx(wide.mean().item(), rel=1e-9, abs=1e-12)
        assert entry["std"] == pytest.approx(wide.std(correction=0).item(), rel=1e-9, abs=1e-12)
        assert (entry["nan"], entry["inf"]) == (0, 0)


def test_statistics_of_pieces_strides_and_odd_types(tmp_path, command):
    torch.manual_seed(0)
    large = torch.randn(700, 1000) * 3 + 100
    bad = torch.tensor([1.0, float("nan"), 3.0, float("inf"), -float("inf")])
    state = {
        "large": large, "view": large.T[::7, 3:], "bad": bad, "half": bad.half(), "brain": bad.bfloat16(),
        "int": torch.tensor([2**62, -1, 5]), "bool": torch.tensor([True, False]), "empty": torch.ones(0, 3),
        "complex": torch.tensor([1j, complex("nan")]), "all_nan": torch.full((2,), float("nan")),
    }  # fmt: skip
    save_archive(tmp_path / "x.nemo", {"a": 1}, state)
    report = command("tensors", tmp_path / "x.nemo", "--stats", "--json").json["weights"]["model_weights.ckpt"]
    for name in ("large", "view"):
        wide = state[name].double()
        assert report[name]["mean"] == pytest.approx(wide.mean().item(), rel=1e-12)
        assert report[name]["std"] == pytest.approx(wide.std(correction=0).item(), rel=1e-9)
    for name in ("bad", "half", "brain"):
        assert [report[name][key] for key in ("min", "max", "mean", "std", "nan", "inf")] == [1, 3, 2, 1, 1, 2]
    assert (report["int"]["max"], report["int"]["min"]) == (2**62, -1)
    assert (report["bool"]["min"], report["bool"]["max"], report["bool"]["mean"]) == (0, 1, 0.5)
    assert [report["empty"][key] for key in ("min", "mean", "std")] == [None] * 3
    assert [report["all_nan"][key] for key in ("min", "nan")] == [None, 2]
    assert (report["complex"]["min"], report["complex"]["nan"]) == (None, 1)
    assert command("tensors", tmp_path / "x.nemo", "--stats").status == 0


def test_a_pattern_chooses_tensors_and_none_is_an_error(model, command):
    report = command("tensors", model, "decoder.*", "*.fb", "--json").json["weights"]["model_weights.ckpt"]
    expected = [name for name in torch_weights(model) if name.startswith("decoder.") or name.endswith(".fb")]
    assert list(report) == expected
    result = command("tensors", model, "nothing*")
    assert (result.status, result.err) == (2, f"nemo-archive: {model}: no tensor is named nothing*\n")


def test_names_from_a_file_reach_no_terminal_as_commands(tmp_path, command):
    save_archive(tmp_path / "x.nemo", {"target": "a\x1b[2Jb"}, {"x": torch.ones(1)})
    for arguments in (("tensors",), ("ls",), ("verify", "--targets")):
        result = command(arguments[0], tmp_path / "x.nemo", *arguments[1:])
        assert "\x1b" not in result.out + result.err
    assert "a\\x1b[2Jb" in command("ls", tmp_path / "x.nemo").out
    assert "a\\x1b[2Jb is no dotted name" in command("verify", "--targets", tmp_path / "x.nemo").out
    assert command("ls", tmp_path / "\x1b[2J").err == f"nemo-archive: {tmp_path}/\\x1b[2J: No such file or directory\n"


def test_extract_writes_every_member(golden_file, tmp_path, command):
    result = command("extract", golden_file, "--into", tmp_path / "new" / "folder", "--json")
    contents = tar_contents(golden_file)
    assert result.status == 0
    written = {
        str(p.relative_to(tmp_path / "new/folder")): p for p in (tmp_path / "new/folder").rglob("*") if p.is_file()
    }
    assert {name: path.read_bytes() for name, path in written.items()} == contents
    assert sorted(result.json["files"]) == sorted(map(str, written.values()))
    with open_archive(tmp_path / "new/folder") as folder:
        assert set(folder.members) == set(contents)


def test_extract_takes_patterns_and_names_without_digits(model, tmp_path, command):
    assert command("extract", model, "tokenizer.*", "*.yaml", "--into", tmp_path).status == 0
    found = sorted(path.name.split("_", 1)[1] for path in tmp_path.iterdir())
    assert found == ["config.yaml", "tokenizer.model", "tokenizer.vocab"]
    printed = command("extract", model, "vocab.txt", "--stdout").out.encode()
    assert printed == next(data for name, data in tar_contents(model).items() if name.endswith("vocab.txt"))
    result = command("extract", model, "absent.txt", "--into", tmp_path / "x")
    assert (result.status, result.err) == (2, f"nemo-archive: {model}: absent.txt: is not in the archive\n")
    assert not (tmp_path / "x").exists()


def test_extract_replaces_nothing_unasked(model, tmp_path, command):
    (tmp_path / "model_config.yaml").write_text("mine")
    result = command("extract", model, "--into", tmp_path)
    assert result.status == 2
    assert "model_config.yaml: " in result.err
    assert "exists; --force replaces it" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["model_config.yaml"]
    assert (tmp_path / "model_config.yaml").read_text() == "mine"
    assert command("extract", model, "--into", tmp_path, "--force").status == 0
    assert (tmp_path / "model_config.yaml").read_bytes() == tar_contents(model)["model_config.yaml"]


def test_extract_follows_no_link_below_the_folder(tmp_path, command):
    with ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_config({"a": 1})
        writer.add_member("sub/file", b"from the archive")
        writer.add_member("plain", b"from the archive")
    outside, into = tmp_path / "outside", tmp_path / "into"
    outside.mkdir()
    into.mkdir()
    (into / "sub").symlink_to(outside)
    result = command("extract", tmp_path / "x.nemo", "--into", into, "--force")
    assert result.status == 2
    assert "is a link" in result.err
    assert list(outside.iterdir()) == []
    (into / "sub").unlink()
    (outside / "target").write_text("kept")
    (into / "plain").symlink_to(outside / "target")
    assert command("extract", tmp_path / "x.nemo", "--into", into, "--force").status == 0
    assert (outside / "target").read_text() == "kept"
    assert not (into / "plain").is_symlink()
    assert (into / "plain").read_bytes() == b"from the archive"


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "C:evil", "a\\evil"])
def test_extract_refuses_an_archive_that_climbs_out_of_the_folder(name, make_tar, tmp_path, command):
    path = make_tar({"model_config.yaml": b"a: 1\n", name: b"evil"})
    for arguments in ((), ("model_config.yaml",), ("--force",)):
        result = command("extract", path, *arguments, "--into", tmp_path / "deep" / "into")
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert result.err.startswith(f"nemo-archive: {path}: ")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_extract_leaves_no_half_written_file(model, tmp_path, command, monkeypatch):
    real = os.fsync

    def fail(descriptor):
        if os.fstat(descriptor).st_size > 500_000:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    result = command("extract", model, "--into", tmp_path)
    assert (result.status, result.err) == (2, "nemo-archive: No space left on device\n")
    assert all(path.read_bytes() == tar_contents(model)[path.name] for path in tmp_path.iterdir())
    assert not (tmp_path / "model_weights.ckpt").exists()


def test_hash_is_in_sha256sums_format(golden_file, tmp_path, command):
    printed = command("hash", golden_file).out
    contents = tar_contents(golden_file)
    expected = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in sorted(contents.items())]
    assert printed.splitlines()[:-1] == expected
    command("extract", golden_file, "--into", tmp_path)
    (tmp_path / "list").write_text(printed)
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "list"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout.count(": OK"), check.stderr) == (0, len(contents), "")


def test_the_contents_hash_knows_neither_order_nor_form(tmp_path, make_tar, command):
    contents = {"model_config.yaml": b"a: 1\n", "b.bin": bytes(3000), "c.txt": b"c"}
    one = make_tar(contents, name="one.nemo")
    two = make_tar({f"./{name}": contents[name] for name in reversed(contents)}, name="two.nemo", mode="w:gz")
    command("extract", one, "--into", tmp_path / "three")
    other = make_tar({**contents, "c.txt": b"d"}, name="other.nemo")
    moved = make_tar({"model_config.yaml": b"a: 1\n", "b.bin": bytes(3000), "d.txt": b"c"}, name="moved.nemo")
    hashes = [command("hash", path, "--json").json["content"] for path in (one, two, tmp_path / "three", other, moved)]
    assert len(set(hashes[:3])) == 1
    assert len(set(hashes)) == 3
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode() + hashlib.sha256(contents[name]).digest())
    assert hashes[0] == digest.hexdigest()


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_has_help_with_an_example_and_json(name, command):
    result = command(name, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"example:\n  nemo-archive {name} " in result.out
    assert "--json" in result.out
    assert "exit status:" in result.out


@pytest.mark.parametrize("name", [name for name in SUMMARIES if name not in ("convert", "edit", "diff")])
@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n" * 20, "a git-LFS pointer"),
        (None, "No such file or directory"),
    ],
)
def test_a_bad_file_is_one_line_on_stderr(name, content, rule, tmp_path, command):
    path = tmp_path / "bad.nemo"
    if content is not None:
        path.write_bytes(content)
    result = command(name, path)
    if name == "verify" and content is not None:
        assert (result.status, result.err) == (1, "")
        assert result.out.startswith(f"{path}: structure: FAILED: ")
        assert rule in result.out
        return
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(f"nemo-archive: {path}: ")
    assert rule in result.err


def test_usage_errors_have_status_two(command, model):
    assert command().status == 2
    assert command("lst", model).err == "nemo-archive: 'lst' is no command; did you mean ls?\n"
    for arguments in (["ls"], ["ls", model, "--nonsense"], ["diff", model], ["diff", model, model, "--atol", "-1"]):
        assert command(*arguments).status == 2
    assert command("--version").out.startswith("nemo-archive 3.")
    assert command("--help").out.count("\n  ") > len(SUMMARIES)


def test_statistics_without_numpy_say_what_to_install(model, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "nemo_archive.numpy", raising=False)
    result = command("tensors", model, "--stats")
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.endswith("pip install 'nemo-archive[numpy]'\n")


def test_an_interrupt_ends_quietly(model, command, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nemo_archive.commands.ls.open_archive", interrupt)
    assert command("ls", model) == (130, "", "")


def test_the_installed_script_is_this_function(golden):
    with (golden.parents[1] / "packages/nemo-archive/pyproject.toml").open("rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"]["nemo-archive"].partition(":")
    assert getattr(import_module(module), function) is main
