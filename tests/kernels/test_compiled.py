"""Every shipped kernel compiles for every GPU and spills nothing: ./compiled in a process where Triton compiles."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(3600)
def test_every_shipped_kernel_compiles_without_spills(run_folder, pytestconfig):
    cache = os.environ.get("TRITON_CACHE_DIR") or str(pytestconfig.rootpath / ".pytest_cache" / "triton")
    run = run_folder("compiled", TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)
    assert run.returncode == 0, run.stdout + run.stderr
