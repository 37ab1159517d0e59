"""What the other files of this folder rely on."""

from __future__ import annotations

import torch
import triton


def test_kernels_decorated_in_this_process_are_interpreted():
    assert not isinstance(triton.jit(len), triton.JITFunction)


def test_uninitialised_tensors_hold_nan():
    assert torch.empty(5).isnan().all()
