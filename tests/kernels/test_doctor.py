"""`nemo-kernels doctor` and the command itself."""

from __future__ import annotations

import json

import pytest
import torch

import nemo_kernels
from nemo_kernels import cli, dispatch, doctor


@pytest.fixture
def plain(monkeypatch):
    """No override, no GPU."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return monkeypatch


def test_every_operation_has_a_path_on_every_device(plain):
    diagnosis = doctor.diagnose()
    named = {path.operation.split(",")[0] for path in diagnosis.paths if path.device == "cpu"}
    assert named == set(nemo_kernels.__all__) - {"RelativePosition", "mel_filterbank"}
    assert diagnosis.problem == ""
    assert diagnosis.versions["torch"] == torch.__version__


def test_a_cpu_runs_torch_because_the_kernels_need_cuda(plain, capsys):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.strip().startswith("rnnt_loss ")]
    assert "torch operations" in line
    assert "cpu device: Triton's kernels need CUDA" in line or "triton is not installed" in line


def test_the_paths_are_what_dispatch_chooses(plain):
    plain.setenv(dispatch.VARIABLE, "torch")
    reasons = {path.reason for path in doctor.diagnose().paths if path.operation == "tdt_loss"}
    assert reasons == {"NEMO_KERNELS_BACKEND=torch"}


def test_a_gpu_runs_the_kernels_where_triton_is(plain):
    plain.setattr(torch.cuda, "device_count", lambda: 1)
    plain.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    plain.setattr(dispatch, "find_spec", lambda name: object())
    diagnosis = doctor.diagnose()
    runs = {path.operation: path.runs for path in diagnosis.paths if path.device == "cuda:0"}
    assert runs["attention"].startswith("Triton kernels")
    assert runs["log_mel"].startswith("FFT")
    plain.setattr(dispatch, "find_spec", lambda name: None)
    (path,) = [p for p in doctor.diagnose().paths if (p.device, p.operation) == ("cuda:0", "attention")]
    assert path.reason.startswith("triton is not installed")


def test_an_override_that_cannot_be_is_said_and_fails(plain, capsys):
    plain.setenv(dispatch.VARIABLE, "triton")
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problem"].startswith("cpu: NEMO_KERNELS_BACKEND=triton: ")
    assert found["override"] == "triton"
    plain.setenv(dispatch.VARIABLE, "cuda")
    assert cli.main(["doctor"]) == 1
    assert "'cuda' must be torch, triton or interpret" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["bench", "ctc"], "invalid choice: 'ctc'"),
        (["bench", "rnnt", "--shape", "B=2,X=3"], "'X=3' must be LETTER=NUMBER with a letter of B, T, U, V, H"),
        (["bench", "log_mel", "--shape", "L=-1"], "'L=-1' must give a positive whole number"),
        (["bench", "tdt", "--only", "warp"], "'warp' is none of nemo_kernels, "),
    ],
)
def test_a_wrong_call_is_explained_and_has_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_what_can_be_measured_and_how_shapes_are_spelled(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("rnnt", "tdt", "attention", "log_mel", "B=8,T=200", "float64", "NEMO_TOOLKIT_PYTHON"):
        assert word in text
