"""`nemo-kernels bench`: what it measures, what it refuses, and what it prints."""

from __future__ import annotations

import json
import os
import textwrap

import pytest
import torch

from nemo_kernels import cli
from nemo_kernels.bench import eager, report
from nemo_kernels.bench.catalogue import (
    OPERATIONS,
    complete_shape,
    numbers_in,
    operation_of,
    shape_of,
    warm_up_shape,
    works_of,
)
from nemo_kernels.bench.command import Document
from nemo_kernels.bench.measurement import timed, with_memory
from nemo_kernels.bench.problem import Difference, expected_results
from nemo_kernels.bench.session import Row, Session
from nemo_kernels.builds import KernelBuild
from nemo_kernels.compilation import BuildReport
from nemo_kernels.rnnt_loss.reference import rnnt_loss_reference
from nemo_kernels.roofline import H100, device_named
from nemo_kernels.tdt_loss.reference import tdt_loss_reference

CPU = torch.device("cpu")
QUICK = [(name, shape) for name, entry in OPERATIONS.items() for shape in entry.quick]


@pytest.fixture
def own_subject(tmp_path, monkeypatch):
    """A module `subjects` that workers can import, with a wrong gradient, and one that fails."""
    (tmp_path / "subjects.py").write_text(
        textwrap.dedent("""
        from nemo_kernels.bench.transducer import _eager

        def doubled_gradient(problem):
            results = problem.gradients_of(_eager(problem.floating["logits"], problem))
            return {**results, "logits": 2 * results["logits"]}

        def crash(problem):
            raise MemoryError("no memory is left")
        """)
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def solved(name, shape, dtype=torch.float32):
    operation = operation_of(name, shape)
    problem = operation.make(CPU, dtype)
    problem.refill()
    return operation, problem, expected_results(operation, problem)


@pytest.mark.parametrize(("name", "shape"), QUICK)
def test_every_subject_gives_the_float64_results(name, shape):
    operation, problem, expected = solved(name, shape)
    for subject in operation.subjects:
        if subject.foreign:
            continue
        if subject.module:
            pytest.importorskip(subject.module)
        problem.refill()
        difference = Difference.between(operation, problem, subject.run(problem), expected)
        assert difference.wrong == "", subject.name
        assert difference.output < 1e-4


@pytest.mark.parametrize(("name", "shape"), QUICK)
def test_float64_results_are_those_of_the_whole_batch(name, shape):
    """They are made one utterance after the other, and summed for what utterances share."""
    operation, problem, expected = solved(name, shape, torch.float64)
    together = operation.expected(problem)
    assert set(together) == set(expected)
    for tensor, value in expected.items():
        torch.testing.assert_close(value, together[tensor].detach(), rtol=1e-10, atol=1e-10)


def test_the_eager_losses_equal_the_textbook_ones():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 7, 4, 9, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 5, (3, 3), generator=generator)
    frame_len, target_len = torch.tensor([7, 4, 1]), torch.tensor([3, 2, 0])
    ours = eager.transducer_losses(logits, targets, frame_len, target_len)
    torch.testing.assert_close(ours, rnnt_loss_reference(logits, targets, frame_len, target_len))
    durations = (0, 1, 3)
    ours = eager.transducer_losses(logits, targets, frame_len, target_len, durations)
    torch.testing.assert_close(ours, tdt_loss_reference(logits, targets, frame_len, target_len, durations))


def test_wrong_missing_misshapen_and_undefined_results_are_found():
    operation, problem, expected = solved("rnnt", "B=2,T=9,U=3,V=11")
    right = operation.subjects[-1].run(problem)

    def wrong(**changed):
        return Difference.between(operation, problem, {**right, **changed}, expected).wrong

    assert wrong() == ""
    assert wrong(logits=right["logits"] * 1.01).startswith("logits is off by")
    assert wrong(output=right["output"] * (1 + 3e-5)).startswith("output is off by")
    assert wrong(output=right["output"][:, None]).startswith("output has shape")
    undefined = right["logits"].clone()
    undefined[0, 0, 0, 0] = torch.nan
    assert wrong(logits=undefined).startswith("logits is off by nan")
    del right["logits"]
    assert wrong() == "logits is missing"


def test_a_wrong_result_gets_no_speed_and_fails_the_command(own_subject, capsys):
    subjects = ["--only", "nemo_kernels", "--own", "twice=subjects:doubled_gradient", "--own", "dead=subjects:crash"]
    status = cli.main(["bench", "rnnt", "--quick", "--shape", "B=2,T=9,U=3,V=11", *subjects, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert status == 1
    good, twice, dead = document["measured"][0]["rows"]
    assert good["state"] == "measured"
    assert good["wall_s"] > 0
    assert good["cpu_s"] > 0
    assert good["output_error"] < 1e-5
    assert twice["state"] == "WRONG"
    assert twice["note"].startswith("logits is off by")
    assert twice["wall_s"] is None
    assert twice["cpu_s"] is None
    assert dead["state"] == "failed"
    assert dead["note"] == "MemoryError: no memory is left"
    assert document["machine"]["torch"] == torch.__version__
    assert document["not_compiled"] == "not asked for"
    (works,) = document["roofline"].values()
    assert {"moved", "operations", "intensity", "bound_ms"} <= set(works[0])
    if not torch.cuda.is_available():
        assert "Neither is a timing" in document["note"]


def test_a_right_result_passes_and_tables_are_printed(capsys):
    assert cli.main(["bench", "tdt", "--quick", "--shape", "V=11,B=2,T=9,U=3", "--only", "torch eager"]) == 0
    text = capsys.readouterr().out
    assert "ratios to torch eager" in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("torch eager")]
    assert line[5] == "1.00"
    assert "Roofline of B=2,T=9,U=3,V=11" in text


def rows():
    """One that others are compared with, one twice as fast in a tenth of the memory, one wrong, one absent."""
    return [
        Row("torchaudio", wall_s=2.0, cpu_s=1.0, extra_bytes=5e6, output_error=1e-6, gradient_error=1e-5),
        Row("ours", wall_s=1.9, cpu_s=0.5, extra_bytes=5e5, output_error=1e-7, gradient_error=1e-6, work="w"),
        Row("bad", "WRONG", "output is off by 1e+00", extra_bytes=5e5, output_error=1.0, gradient_error=1.0),
        Row("none", "absent", "pip install none"),
    ]


def test_ratios_are_of_cpu_time_for_one_thread_and_never_of_a_wrong_row():
    session = Session("rnnt", "B=8", rounds=3)
    lines = report.timing_table(session, rows(), ("missing", "torchaudio"), ()).splitlines()
    assert lines[0].endswith("1 thread, 3 rounds in turn; ratios to torchaudio")
    assert lines[3].split() == ["ours", "1900", "500", "0.5", "2.00", "0.10", "1.0e-07", "1.0e-06"]
    assert lines[4].split()[:6] == ["bad", "WRONG", "-", "0.5", "-", "-"]
    assert lines[5].split()[:3] == ["none", "absent", "-"]
    assert lines[6:] == ["bad: WRONG: output is off by 1e+00", "none: absent: pip install none"]
    two_threads = Session("rnnt", "B=8", threads=2)
    assert report.timing_table(two_threads, rows(), ("torchaudio",), ()).splitlines()[3].split()[4] == "1.05"


def test_on_a_gpu_the_share_of_the_bound_is_shown(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    shape = "B=32,T=200,U=60,V=1024"
    works = works_of("rnnt", shape)
    row = Row("ours", wall_s=1.446e-3, cpu_s=1e-4, extra_bytes=1.0, work="gradient in place")
    text = report.timing_table(Session("rnnt", shape, device="cuda"), [row], ("ours",), works)
    assert text.splitlines()[-1].split()[-2:] == ["50", "%"]  # 0.723 ms at best
    assert device_named("NVIDIA H100 80GB HBM3") is H100
    assert device_named("NVIDIA GeForce RTX 4090") is None


def test_a_build_that_spills_fails_the_command_and_is_named():
    build = KernelBuild("scores", "nemo_kernels.rnnt_loss.triton:scores", 90, {})
    fine = BuildReport(build, 32, 0, 0, 1024, 0, 4, "", 1.0)
    spilling = BuildReport(build, 255, 184, 157, 1024, 0, 4, "", 0.125)
    assert Document({}, [], {}, [fine], "").is_sound
    assert not Document({}, [], {}, [fine, spilling], "").is_sound
    text = report.build_table([fine, spilling])
    assert text.splitlines()[2].split()[1:6] == ["sm_90", "255", "184", "157", "1024"]
    assert "184 bytes of stack and 157 local accesses" in text


def test_memory_of_a_call_is_what_it_adds_at_its_peak():
    def call():
        a = torch.ones(6_000_000)  # 24 MB, and as much again
        return (a + 1).sum()

    kept = torch.ones(1_000_000)
    with_memory(call, CPU)
    result, extra = with_memory(call, CPU)
    assert float(result) == 12_000_000
    assert kept.sum() == 1_000_000
    if extra is not None:  # Linux
        assert extra == pytest.approx(48e6, rel=0.1)


def test_waiting_takes_wall_time_and_working_takes_both():
    import time

    waited = timed(lambda: time.sleep(0.05), CPU)
    assert waited.wall_s >= 0.05
    assert waited.cpu_s < 0.04


def test_shapes_are_spelled_by_letters_and_filled_up_with_defaults():
    assert numbers_in("rnnt", "V=256") == {"B": 8, "T": 200, "U": 40, "V": 256}
    assert shape_of("rnnt", "V=256").width == 0
    assert shape_of("rnnt", "V=256,H=64").width == 64
    assert shape_of("attention", "T=1000").frames == 1000
    assert shape_of("log_mel", "L=160000").frames == 1001
    assert complete_shape("rnnt", "H=64,V=256") == "B=8,T=200,U=40,V=256,H=64"
    assert warm_up_shape("rnnt", "V=256,H=64") == "B=2,T=6,U=2,V=256,H=64"


def test_an_operation_that_overwrites_its_inputs_gets_them_anew():
    operation, problem, _ = solved("rnnt", "B=2,T=9,U=3,V=11")
    before = problem.floating["logits"].detach().clone()
    (in_place,) = [subject for subject in operation.subjects if subject.name.endswith("in place")]
    in_place.run(problem)
    assert not torch.equal(problem.floating["logits"], before)
    problem.refill()
    assert torch.equal(problem.floating["logits"], before)
