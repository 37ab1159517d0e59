"""A fixed sample of the two long commands, `hatch run fuzz` and `hatch run kill-saves`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, FOLDER / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_twelve_hundred_mutated_archives_are_read_or_refused(tmp_path):
    printed = run("fuzz.py", "--cases", 1200, "--seed", 20, "--keep", tmp_path)
    assert "1200 cases" in printed
    assert "0 failures" in printed
    assert not list(tmp_path.iterdir())


def test_a_finding_is_kept_as_a_file_and_ends_the_command_with_an_error(tmp_path):
    """The reader is made worse for this: it raises a KeyError where it would say what a file really is."""
    worse = (
        "import runpy, sys; sys.argv = sys.argv[1:]; import nemo_archive.tar_index as tar_index\n"
        "tar_index.describe_file = lambda head, size: {}[size]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", worse, FOLDER / "fuzz.py", "--cases", "60", "--keep", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    kept = list(tmp_path.glob("fuzz-failure-0-*.nemo"))
    assert kept
    assert f"kept as {kept[0].parent}" in done.stdout
    assert "KeyError" in done.stdout


def test_six_killed_saves_leave_the_old_or_the_new_file():
    printed = run("kill_saves.py", "--saves", 6, "--seed", 3)
    assert "killed" in printed
    assert "other file" not in printed
