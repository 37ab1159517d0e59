"""nemo-archive as a process of its own: exit status, pipes, encodings, terminals, and what it does not import."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from nemo_archive import ArchiveWriter, open_archive


@pytest.fixture
def model(golden):
    return golden / "fastconformer_ctc_bpe" / "model.nemo"


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "nemo_archive", *map(str, arguments)],
        capture_output=True, encoding="utf-8", check=False, timeout=120, **options,
    )  # fmt: skip


def test_the_exit_status_says_whether_it_worked(model, tmp_path):
    assert run("ls", model).returncode == 0
    assert run("verify", tmp_path / "absent.nemo").returncode == 2
    (tmp_path / "empty.nemo").touch()
    failed = run("verify", tmp_path / "empty.nemo")
    assert (failed.returncode, failed.stderr) == (1, "")
    usage = run("ls", "--nonsense")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "Traceback" not in usage.stderr


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (("config", "{}"), ()), (("config", "{}", "target"), ()), (("config", "{}", "--json"), ()), (("ls", "{}"), ()),
        (("tensors", "{}"), ()), (("verify", "{}"), ()), (("hash", "{}"), ()), (("diff", "{}", "{}"), ()),
        (("edit", "{}", "encoder.d_model=65", "--output", "{out}"), ()), (("migrate", "{}", "--output", "{out}"), ()),
        (("convert", "{}", "{out}", "--weights", "safetensors"), ()), (("tensors", "{}", "--stats"), ("numpy",)),
    ],
)  # fmt: skip
def test_no_array_library_is_imported_unless_it_is_needed(arguments, allowed, model, tmp_path):
    program = """
import sys
from nemo_archive.cli import main
status = main(sys.argv[1:])
print("status", status, sorted({"torch", "numpy", "nemo_config", "omegaconf"} & set(sys.modules)), file=sys.stderr)
"""
    filled = [argument.replace("{}", str(model)).replace("{out}", str(tmp_path / "out.nemo")) for argument in arguments]
    result = subprocess.run(
        [sys.executable, "-c", program, *filled], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.stderr == f"status 0 {list(allowed)}\n"


def test_config_imports_little_besides_yaml(model):
    program = """
import sys
from nemo_archive.cli import main
before = set(sys.modules)
main(["config", sys.argv[1], "target"])
print(" ".join(sorted(set(sys.modules) - before)))
"""
    result = subprocess.run([sys.executable, "-c", program, model], capture_output=True, text=True, check=True)
    target, modules = result.stdout.splitlines()
    assert target.endswith("EncDecCTCModelBPE")
    imported = set(modules.split())
    assert "yaml" in imported
    costly = (
        "shutil tempfile tarfile zipfile json hashlib subprocess difflib inspect importlib.metadata dataclasses "
        "textwrap nemo_archive.checkpoint nemo_archive.writer"
    )
    assert imported & set(costly.split()) == set()


def test_a_reader_that_goes_away_early_is_no_error(tmp_path):
    with ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_config({"words": ["a word " * 50] * 5000})
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_archive", "config", str(tmp_path / "x.nemo")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"words:\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_output_is_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "modèle.nemo"
    with ArchiveWriter(path) as writer:
        writer.add_config({"name": "▁straße"})
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    assert run("config", path, "name", env=environment).stdout == "▁straße\n"
    assert run("ls", path, env=environment).stdout.startswith("member ")
    assert run("config", path, "absent", env=environment).stderr.startswith(
        f"nemo-archive: {path}: model_config.yaml: "
    )


def on_a_terminal(*arguments, **environment):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_archive", *map(str, arguments)],
        stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    output = b""
    try:
        while piece := os.read(ours, 4096):
            output += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return output.decode()


def test_colour_and_escaping_are_for_terminals_alone(tmp_path):
    with ArchiveWriter(tmp_path / "x.nemo") as writer:
        writer.add_config({"evil": "a\x1b[31mb"})
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    assert "\x1b[1mmember" in on_a_terminal("ls", tmp_path / "x.nemo")
    assert "\x1b" not in on_a_terminal("ls", tmp_path / "x.nemo", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("ls", tmp_path / "x.nemo", TERM="dumb")
    assert on_a_terminal("config", tmp_path / "x.nemo", "evil").strip() == "a\\x1b[31mb"
    assert "\x1b" not in run("ls", tmp_path / "x.nemo", env=environment).stdout
    assert run("config", tmp_path / "x.nemo", "evil").stdout == "a\x1b[31mb\n"


def test_a_member_goes_through_a_pipe_unchanged(model):
    with open_archive(model) as archive:
        weights = archive.read("model_weights.ckpt")
    result = subprocess.run(
        [sys.executable, "-m", "nemo_archive", "extract", model, "model_weights.ckpt", "--stdout"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert result.stdout == weights
