"""Waveforms for the front end (real speech with the padding and lengths of the golden files), and runs of test folders.

`interpreted` and `compiled` need a process where Triton interprets, or compiles, from the first import on. They are
collected only where they are named: `pytest tests/kernels/interpreted`.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the folders that need a process of their own, unless they are named."""
    if collection_path not in (HERE / "interpreted", HERE / "compiled"):
        return None
    named = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(collection_path) for path in named) else True


@pytest.fixture
def run_folder() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the tests of a folder in a new process, with further environment variables."""

    def run(folder: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / folder)]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def speech() -> tuple[torch.Tensor, torch.Tensor]:
    """Three recorded prompts (3, L) at 16 kHz, zero after their lengths (3,)."""
    with np.load(GOLDEN / "fastconformer_ctc_bpe" / "io.npz") as arrays:
        return torch.from_numpy(arrays["in_audio"]), torch.from_numpy(arrays["in_audio_length"])


@pytest.fixture(scope="session")
def stored_filterbank() -> torch.Tensor:
    """The mel filters (1, 80, 257) that NVIDIA's toolkit took from librosa and stored with a model."""
    with tarfile.open(GOLDEN / "fastconformer_ctc_bpe" / "model.nemo") as archive:
        member = archive.extractfile("./model_weights.ckpt")
        assert member is not None
        weights = torch.load(io.BytesIO(member.read()), weights_only=True)
    return weights["preprocessor.featurizer.fb"]


@pytest.fixture(scope="session")
def stored_features() -> tuple[torch.Tensor, torch.Tensor]:
    """What NVIDIA's front end made of `speech`: (3, 80, T) and frames (3,)."""
    with np.load(GOLDEN / "fastconformer_ctc_bpe" / "io.npz") as arrays:
        lengths = torch.from_numpy(arrays["processed_signal_length"])
        return torch.from_numpy(arrays["processed_signal"]), lengths


@pytest.fixture
def draw_batch() -> Callable[..., tuple[torch.Tensor, ...]]:
    """Draws logits (B, T, U + 1, V), targets (B, U) without the blank, and ragged lengths; the first is whole."""

    def draw(B, T, U, V, *, blank=-1, dtype=torch.float64, seed=0):
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(B, T, U + 1, V, generator=generator, dtype=torch.float64)
        targets = torch.randint(V - 1, (B, U), generator=generator)
        targets += (targets >= blank % V).long()
        logit_len = torch.randint((T + 1) // 2, T + 1, (B,), generator=generator)
        target_len = torch.randint(U // 2, U + 1, (B,), generator=generator)
        logit_len[0], target_len[0] = T, U
        return logits.to(dtype), targets, logit_len, target_len

    return draw
