"""What the other files of this folder rely on."""

from __future__ import annotations

import pytest
import torch
import triton

from nemo_kernels.compilation import all_builds, inspect_build


def test_kernels_decorated_in_this_process_are_interpreted():
    assert not isinstance(triton.jit(len), triton.JITFunction)


def test_uninitialised_tensors_hold_nan():
    assert torch.empty(5).isnan().all()


def test_interpreted_kernels_are_not_compiled():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        inspect_build(all_builds()[0])
