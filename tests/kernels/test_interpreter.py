"""Triton's kernels equal the CPU results: ./interpreted in a process where Triton interprets them."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(1800)
def test_interpreted_kernels_equal_the_cpu_results(run_folder):
    run = run_folder("interpreted", TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stdout + run.stderr
