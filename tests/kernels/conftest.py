"""Waveforms for the front end: real speech with the padding and lengths of the golden files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"


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
