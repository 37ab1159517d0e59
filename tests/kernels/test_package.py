"""The package as a whole: its names, what importing it costs, and that it does without Triton."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nemo_kernels

FOLDERS = ("attention", "log_mel", "multiblank_rnnt_loss", "rnnt_loss", "tdt_loss")
IS_FUNCTION = "; ".join(
    [f"from nemo_kernels import {name}; assert callable({name}), {name}" for name in FOLDERS]
    + ["import nemo_kernels"]
    + [f"assert callable(nemo_kernels.{name})" for name in FOLDERS]
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "first",
    [
        "from nemo_kernels.tdt_loss.reference import tdt_loss_reference; import nemo_kernels.rnnt_loss.reference",
        "import pkgutil, importlib, nemo_kernels\n"
        "for m in pkgutil.walk_packages(nemo_kernels.__path__, 'nemo_kernels.'):\n"
        "    if '.triton' not in m.name and not m.name.endswith('__main__'): importlib.import_module(m.name)",
    ],
)
def test_a_name_is_the_function_whatever_was_imported_before(first):
    run(f"{first}\n{IS_FUNCTION}")


def test_every_public_name_is_there():
    missing = [name for name in nemo_kernels.__all__ if not callable(getattr(nemo_kernels, name, None))]
    assert missing == []
    assert set(FOLDERS) <= set(nemo_kernels.__all__)


def test_importing_needs_neither_triton_nor_torchaudio_and_prints_nothing():
    code = """
import sys
sys.modules["triton"] = sys.modules["torchaudio"] = None  # to import one of them is an error from here on
import nemo_kernels, nemo_kernels.cli
import torch
loss = nemo_kernels.rnnt_loss(torch.zeros(1, 2, 2, 3), torch.zeros(1, 1).long(), torch.tensor([2]), torch.tensor([1]))
assert loss.isfinite()
"""
    assert run(code) == ""
