"""The kernels on CPU tensors: Triton reads this variable when a kernel is decorated, so it is set before any import."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True)
def _new_tensors_hold_nan() -> Iterator[None]:
    """torch.empty gives NaN: an element that a kernel forgets to write, or reads before it is written, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
