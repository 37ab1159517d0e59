"""nemo-archive verify; oracles: torch's isfinite, sha256sum, NVIDIA's class names in the golden files."""

from __future__ import annotations

import subprocess
import tarfile

import numpy as np
import pytest
import torch

from nemo_archive import ArchiveWriter, open_archive
from nemo_archive.commands.finite import PIECE, count_not_finite
from nemo_archive.commands.targets import unknown_targets
from nemo_archive.torch import save_archive


@pytest.fixture
def model(golden):
    return golden / "fastconformer_ctc_bpe" / "model.nemo"


def failed(result):
    return [line.split(": ", 1)[1] for line in result.out.splitlines() if ": FAILED: " in line]


def test_golden_files_are_sound_and_name_known_classes(golden_file, command):
    result = command("verify", golden_file, "--targets")
    assert (result.status, failed(result), result.err) == (0, [], "")
    report = command("verify", golden_file, "--targets", "--json").json
    assert [check["name"] for check in report[0]["checks"]] == ["structure", "artifacts", "targets", "weights"]
    assert report[0]["ok"]


def test_several_archives_are_checked_in_one_call(model, tmp_path, command):
    (tmp_path / "bad.nemo").write_bytes(b"PK\3\4 and so on")
    result = command("verify", model, tmp_path / "bad.nemo", model)
    assert result.status == 1
    assert len(failed(result)) == 1
    assert result.out.count("structure: ok") == 2


def test_a_cut_file_fails(model, tmp_path, command):
    (tmp_path / "cut.nemo").write_bytes(model.read_bytes()[:700_000])
    result = command("verify", tmp_path / "cut.nemo")
    assert result.status == 1
    assert failed(result)[0].startswith("structure: FAILED: ")
    assert "truncated" in failed(result)[0]


def test_a_missing_artifact_is_named_with_its_key(model, tmp_path, command):
    with open_archive(model) as archive, ArchiveWriter(tmp_path / "x.nemo") as writer:
        gone = archive.references()["tokenizer.vocab_path"]
        for name in archive.members:
            if name != gone:
                writer.add_from(archive, name)
    result = command("verify", tmp_path / "x.nemo")
    assert result.status == 1
    assert failed(result) == [f"artifacts: FAILED: tokenizer.vocab_path: {gone} is not in the archive"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_every_nan_and_infinity_is_found(dtype, tmp_path, command):
    torch.manual_seed(1)
    state = {"good": torch.randn(31, 7).to(dtype), "bad": torch.randn(31, 7).to(dtype), "int": torch.full((9,), -1)}
    state["bad"].view(-1)[torch.tensor([0, 50, 216])] = torch.tensor([float("nan"), float("inf"), -float("inf")]).to(
        dtype
    )
    save_archive(tmp_path / "x.nemo", {"a": 1}, state)
    result = command("verify", tmp_path / "x.nemo")
    assert result.status == 1
    assert failed(result) == ["weights: FAILED: model_weights.ckpt: bad: 3 of 217 elements are NaN or infinite"]


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
     torch.float8_e5m2fnuz],
)  # fmt: skip
def test_every_bit_pattern_is_judged_as_torch_judges_it(dtype):
    bits = torch.arange(2 ** (8 * dtype.itemsize)).to(torch.uint16 if dtype.itemsize == 2 else torch.uint8)
    values = bits.view(dtype)
    expected = int((~values.float().isfinite()).sum())
    assert 0 < expected < len(bits)
    assert count_not_finite(memoryview(bits.numpy().tobytes()), str(dtype)[6:]) == expected
    for start in (0, 2**7, 2**8 - 16):
        part = bits.numpy()[start : start + 16]
        own = int((~values[start : start + 16].float().isfinite()).sum())
        assert count_not_finite(memoryview(part.tobytes()), str(dtype)[6:]) == own


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_random_bits_are_judged_as_numpy_judges_them(dtype):
    bits = np.random.default_rng(0).integers(0, 256, 64_000, dtype=np.uint8)
    bits[3::8] |= 0x7F  # exponents of ones in every second number
    bits[2::16] |= 0x80
    bits[7::16] |= 0x7F
    bits[6::16] |= 0xF0
    values = bits.view(dtype)
    parts = values.view(values.real.dtype) if values.dtype.kind == "c" else values
    expected = int((~np.isfinite(parts)).sum())
    assert expected > 100
    assert count_not_finite(memoryview(bits.tobytes()), np.dtype(dtype).name) == expected


def test_pieces_do_not_cut_elements():
    values = np.ones(PIECE // 4 + 5, np.float32)
    values[[PIECE // 4 - 1, PIECE // 4, -1]] = np.nan
    assert count_not_finite(memoryview(values.tobytes()), "float32") == 3
    assert count_not_finite(memoryview(values.tobytes()), "int32") == 0


def test_elements_that_no_tensor_holds_do_not_count(tmp_path, command):
    whole = torch.full((6, 6), float("nan"))
    whole[1::2, ::3] = 1
    save_archive(tmp_path / "x.nemo", {"a": 1}, {"part": whole[1::2, ::3]})
    assert command("verify", tmp_path / "x.nemo").status == 0
    save_archive(tmp_path / "x.nemo", {"a": 1}, {"part": whole[1::2, ::2]})
    assert failed(command("verify", tmp_path / "x.nemo"))[0].endswith("part: 6 of 9 elements are NaN or infinite")


def test_unreadable_weights_and_their_absence_fail(tmp_path, command):
    with ArchiveWriter(tmp_path / "none.nemo") as writer:
        writer.add_config({"a": 1})
    assert failed(command("verify", tmp_path / "none.nemo")) == ["weights: FAILED: the archive holds no checkpoint"]
    with ArchiveWriter(tmp_path / "bad.nemo") as writer:
        writer.add_config({"a": 1})
        writer.add_member("model_weights.ckpt", b"<html><body>404</body></html>")
    assert "an HTML page" in failed(command("verify", tmp_path / "bad.nemo"))[0]


def test_a_config_that_is_refused_fails(make_tar, command):
    path = make_tar({"model_config.yaml": b"a: !!python/object/apply:os.system [id]\n", "model_weights.ckpt": b""})
    result = command("verify", path)
    assert result.status == 1
    assert failed(result)[0].startswith("config: FAILED: model_config.yaml: ")
    assert "os.system" in failed(result)[0]


def test_sha256_accepts_the_list_of_sha256sum(golden_file, tmp_path, command):
    with tarfile.open(golden_file) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    files = [str(p.relative_to(tmp_path / "folder")) for p in (tmp_path / "folder").rglob("*") if p.is_file()]
    for number, names in enumerate((files, [f"./{name}" for name in files])):
        run = subprocess.run(
            ["sha256sum", *(["--binary"] if number else []), *names],
            cwd=tmp_path / "folder",
            capture_output=True,
            check=True,
        )
        (tmp_path / "list").write_bytes(run.stdout)
        result = command("verify", golden_file, "--sha256", tmp_path / "list")
        assert (result.status, failed(result)) == (0, [])
        assert "sha256: ok" in result.out


def test_sha256_finds_what_was_changed_added_or_removed(model, tmp_path, command):
    listed = command("hash", model).out
    (tmp_path / "list").write_text(listed)
    assert command("verify", model, "--sha256", tmp_path / "list").status == 0
    with open_archive(model) as archive, ArchiveWriter(tmp_path / "x.nemo") as writer:
        for name in archive.members:
            if name.endswith("vocab.txt"):
                writer.add_member(name, b"changed")
            elif not name.endswith("tokenizer.vocab"):
                writer.add_from(archive, name)
        writer.add_member("new.py", b"import os")
    faults = failed(command("verify", tmp_path / "x.nemo", "--sha256", tmp_path / "list"))
    faults = [fault for fault in faults if fault.startswith("sha256: ")]
    assert len(faults) == 4
    assert any("tokenizer.vocab: is listed, but not in the archive" in fault for fault in faults)
    assert any("vocab.txt: SHA-256 is " in fault for fault in faults)
    assert "sha256: FAILED: new.py: is not listed" in faults
    assert "sha256: FAILED: the content's hash is not the listed one" in faults
    (tmp_path / "list").write_text(listed.splitlines()[-1] + "\n")  # the content's hash alone is enough
    assert command("verify", model, "--sha256", tmp_path / "list").status == 0
    assert command("verify", tmp_path / "x.nemo", "--sha256", tmp_path / "list").status == 1


@pytest.mark.parametrize("line", ["", "abc  x", "g" * 64 + "  x", "0" * 64 + " x", "0" * 64 + "  ", "0" * 63 + "   x"])
def test_a_list_in_another_format_is_a_usage_error(line, model, tmp_path, command):
    (tmp_path / "list").write_text(line + "\n")
    result = command("verify", model, "--sha256", tmp_path / "list")
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(f"nemo-archive: {tmp_path / 'list'}: ")


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.hub.load", "nemo.utils.anything.Here",
        "nemo.collections.asr.models.os.system", "nemo.core.config.sys.exit", "torch.nn.modules.module.torch.load",
        "torch.nn.Module.__init__.__globals__", "mine.Encoder", "eval", "${oc.env:X}", "nemo.collections.asr.${x}",
        "nemo.collections.", "torch.nn", "nemo.collections.asr models.X", "nemo.collections.common.parts.np.load",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_reported(name, tmp_path, command):
    config = {"target": "nemo.collections.asr.models.EncDecCTCModel", "a": [{"b": {"_target_": name, "x": 1}}]}
    assert [(path, found) for path, found, _ in unknown_targets(config)] == [("a.0.b._target_", name)]
    save_archive(tmp_path / "x.nemo", config, {"w": torch.ones(1)})
    result = command("verify", tmp_path / "x.nemo", "--targets")
    assert result.status == 1
    assert failed(result)[0].startswith(f"targets: FAILED: a.0.b._target_: {name} ")
    assert command("verify", tmp_path / "x.nemo").status == 0


@pytest.mark.parametrize(
    "name",
    [
        "nemo.collections.asr.modules.ConformerEncoder", "torch.nn.CTCLoss", "torch.optim.adamw.AdamW",
        "nemo.collections.tts.torch.g2ps.EnglishG2p", "nemo.core.optim.lr_scheduler.CosineAnnealing",
        "pytorch_lightning.callbacks.Timer", "lightning.pytorch.loggers.WandbLogger", "torchmetrics.text.WordErrorRate",
        "nemo.collections.asr.modules.transformer.get_nemo_transformer", "nemo_asr.modules.ConformerEncoder",
    ],
)  # fmt: skip
def test_classes_of_nvidia_torch_lightning_and_installed_packages_are_known(name):
    assert unknown_targets({"_target_": name, "target": name, "x": {"cls": name, "target": name}}) == []


def test_a_caller_allows_own_names_exactly_or_by_prefix(tmp_path, command):
    config = {"target": "mine.Model", "enc": {"_target_": "mine.parts.Encoder"}, "dec": {"_target_": "mine.Other"}}
    save_archive(tmp_path / "x.nemo", config, {"w": torch.ones(1)})
    result = command("verify", tmp_path / "x.nemo", "--allow", "mine.parts.", "--allow", "mine.Model")
    assert [fault.split()[2] for fault in failed(result)] == ["dec._target_:"]
    assert command("verify", tmp_path / "x.nemo", "--allow", "mine.").status == 0
    assert len(failed(command("verify", tmp_path / "x.nemo", "--allow", "min"))) == 3


def test_a_target_that_is_no_class_name_is_left_alone_below_the_top():
    assert unknown_targets({"loss": {"target": "text"}, "x": {"target": 3}, "_target_": None}) == []
    assert [path for path, _, _ in unknown_targets({"target": "text", "sub": {"target": "evil.Model"}})] == [
        "target", "sub.target",
    ]  # fmt: skip


def test_a_tensor_blown_up_by_its_strides_is_refused_before_it_takes_memory(tmp_path, command):
    save_archive(tmp_path / "x.nemo", {"a": 1}, {"w": torch.ones(1).expand(3000, 3000), "v": torch.ones(1).expand(9)})
    rule = "tensor 'w': 36000000 bytes made of 4 stored ones"
    assert failed(command("verify", tmp_path / "x.nemo")) == [f"weights: FAILED: model_weights.ckpt: {rule}"]
    save_archive(tmp_path / "y.nemo", {"a": 1}, {"w": torch.zeros(1).expand(3000, 3000)})
    for arguments in (("diff", tmp_path / "x.nemo", tmp_path / "y.nemo"), ("tensors", tmp_path / "x.nemo", "--stats")):
        result = command(*arguments)
        assert (result.status, result.err) == (2, f"nemo-archive: {tmp_path / 'x.nemo'}: model_weights.ckpt: {rule}\n")
