"""The log-mel front end as a problem: forward alone, since features are computed without gradients."""

from __future__ import annotations

import importlib

import torch

from nemo_kernels.bench.eager import stft_features
from nemo_kernels.bench.problem import Operation, Problem, Results, Subject
from nemo_kernels.log_mel import analysis_window, log_mel, mel_filterbank
from nemo_kernels.log_mel.reference import log_mel_reference
from nemo_kernels.roofline import LogMelShape

TOOLKIT = "NEMO_TOOLKIT_PYTHON"


def front_end(shape: LogMelShape) -> Operation:
    """Noise of one length, of which the last utterance is a quarter shorter; 16 kHz, windows of 25 ms every 10."""
    rate = 16000

    def make(device: torch.device, dtype: torch.dtype) -> Problem:
        audio_len = torch.full((shape.batch,), shape.samples)
        audio_len[-1] -= shape.samples // 4
        constant = {
            "window": analysis_window("hann", 400).to(device, dtype),
            "filters": mel_filterbank(sample_rate=rate, n_fft=512, n_mels=shape.n_mels).to(device, dtype),
        }
        audio = torch.empty((shape.batch, shape.samples), device=device, dtype=dtype)
        return Problem(
            {"audio": audio}, {"audio_len": audio_len.to(device)}, {"audio": 0.1}, constant, frozenset(constant)
        )

    # features are in standard deviations, and the logarithm magnifies the rounding of faint bins
    return Operation(make, _SUBJECTS, ("NVIDIA", "torch.stft"), _reference, output_tolerance=100)


def _ours(problem: Problem) -> Results:
    features, _ = log_mel(
        problem.floating["audio"],
        problem.lengths["audio_len"],
        window=problem.constant["window"],
        filterbank=problem.constant["filters"],
    )
    return {"output": features}


def _stft(problem: Problem) -> Results:
    features = stft_features(
        problem.floating["audio"],
        problem.lengths["audio_len"],
        problem.constant["window"],
        problem.constant["filters"],
    )
    return {"output": features}


def _reference(problem: Problem) -> Results:
    n_mels = problem.constant["filters"].shape[0]
    audio = problem.floating["audio"].detach()
    features, _ = log_mel_reference(audio, problem.lengths["audio_len"], n_mels=n_mels)
    return {"output": features}


def _nvidia(problem: Problem) -> Results:
    audio = problem.floating["audio"]
    features, _ = _nvidia_preprocessor(problem)(input_signal=audio, length=problem.lengths["audio_len"])
    return {"output": features}


def _nvidia_preprocessor(problem: Problem) -> torch.nn.Module:
    """NVIDIA's front end in its own Python, built once for a problem."""
    modules = importlib.import_module("nemo.collections.asr.modules")
    n_mels = problem.constant["filters"].shape[0]
    if n_mels not in _preprocessors:
        module = modules.AudioToMelSpectrogramPreprocessor(
            sample_rate=16000, window_size=0.025, window_stride=0.01, n_fft=512, features=n_mels, dither=0.0, pad_to=0
        )
        _preprocessors[n_mels] = module.eval().to(problem.floating["audio"].device)
    return _preprocessors[n_mels]


_preprocessors: dict[int, torch.nn.Module] = {}
_SUBJECTS = (
    Subject("NVIDIA", _nvidia, "nemo", foreign=TOOLKIT),
    Subject("nemo_kernels beside NVIDIA", _ours, foreign=TOOLKIT),
    Subject("nemo_kernels", _ours, work="audio read once"),
    Subject("torch.stft", _stft, work="step by step"),
    Subject("reference", _reference, slow=True),
)
