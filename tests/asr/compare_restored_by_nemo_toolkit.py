"""Models made and saved here, restored by NVIDIA's nemo_toolkit in its own environment: are the outputs the same?

    NEMO_TOOLKIT_PYTHON=/path/to/its/python hatch run compare [CASE ...]

Not part of the tests, since it needs that toolkit (pip install 'nemo_toolkit[asr]==3.0.0').
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

SMALL_CONFORMER = ["model.encoder.n_layers=2", "model.encoder.d_model=64", "model.encoder.n_heads=4"]
SMALL_JOINT = ["model.model_defaults.pred_hidden=48", "model.model_defaults.joint_hidden=40"]
SMALL_TRANSDUCER = [*SMALL_CONFORMER, *SMALL_JOINT, "model.encoder.subsampling_conv_channels=32"]
STATELESS = [
    "model.decoder._target_=nemo.collections.asr.modules.StatelessTransducerDecoder",
    "+model.decoder.context_size=2",
    "model.decoder.normalization_mode=layer",
    "~model.decoder.random_state_sampling",
    "~model.decoder.blank_as_pad",
]
SAMPLED = ["model.joint._target_=nemo.collections.asr.modules.SampledRNNTJoint", "+model.joint.n_samples=20"]
LAYER_NORMS = ["model.decoder.normalization_mode=layer", "model.decoder.prednet.dropout=0"]
BATCH_NORMS = ["model.decoder.normalization_mode=batch", "model.decoder.prednet.pred_rnn_layers=2"]
ONE_BY_ONE = ["model.decoding.strategy=greedy"]  # NVIDIA's batched search cannot read the states of norms
CASES = {
    "quartznet_15x5": [],
    "citrinet_512": [],
    "conformer_ctc_char": SMALL_CONFORMER,
    "conformer_ctc_bpe": [*SMALL_CONFORMER, "model.encoder.self_attention_model=abs_pos"],
    "fastconformer_ctc_char": [*SMALL_CONFORMER, "model.encoder.conv_norm_type=layer_norm"],
    "fastconformer_ctc_bpe": [*SMALL_CONFORMER, "model.encoder.subsampling_conv_channels=32"],
    "fastconformer_transducer_bpe": SMALL_TRANSDUCER,
    "fastconformer_transducer_char": SMALL_TRANSDUCER,
    "conformer_transducer_bpe": [*SMALL_CONFORMER, *SMALL_JOINT, *STATELESS],
    "fastconformer_transducer_bpe, layer norms": [*SMALL_TRANSDUCER, *LAYER_NORMS, *ONE_BY_ONE],
    "fastconformer_transducer_bpe, batch norms": [*SMALL_TRANSDUCER, *BATCH_NORMS, *ONE_BY_ONE],
    "fastconformer_transducer_bpe, sampled": [*SMALL_TRANSDUCER, *SAMPLED, "model.decoder.blank_as_pad=false"],
    "contextnet_rnnt": ["model.model_defaults.filters=48", "model.model_defaults.enc_hidden=40", *SMALL_JOINT],
    "fastconformer_tdt_bpe": SMALL_TRANSDUCER,
    "fastconformer_hybrid_transducer_ctc_bpe": SMALL_TRANSDUCER,
    "fastconformer_hybrid_transducer_ctc_char": SMALL_TRANSDUCER,
    "fastconformer_hybrid_tdt_ctc_bpe": SMALL_TRANSDUCER,
}
"""Overrides by config; what follows a comma tells cases of one config apart."""
WITH_TOKENIZER = ("bpe", "citrinet", "contextnet")
OUTPUTS = """
import numpy, torch
def outputs(model, signal, length):
    '''What a model of either toolkit says of audio (B, L): arrays (B, T, ...) with their lengths, texts.'''
    found = {}
    with torch.no_grad():
        first, found["length"] = model(input_signal=signal, input_signal_length=length)[:2]
        if hasattr(model, "joint"):
            targets, target_len = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 0]]), torch.tensor([4, 3])
            predicted = model.decoder(targets=targets, target_length=target_len)[0]
            found["encoded"] = first.transpose(1, 2)
            found["joint"] = model.joint.joint(first.transpose(1, 2), predicted.transpose(1, 2))
            if not model.joint.num_extra_outputs:
                lengths = dict(input_lengths=found["length"], target_lengths=target_len)
                with torch.enable_grad():  # NVIDIA's counts FastEmit in the loss only with a gradient
                    scores = found["joint"].clone().requires_grad_()
                    loss = model.loss(log_probs=scores, targets=targets, **lengths)
                found["loss"] = loss.detach().reshape(1, 1)
        else:
            found["log_probs"] = first
        if hasattr(model, "ctc_decoder"):
            found["ctc_log_probs"] = model.ctc_decoder(encoder_output=first)
    clips = [row[:n] for row, n in zip(signal, length)]
    texts = [getattr(text, "text", text) for text in model.transcribe(clips, verbose=False)]
    return {**found, "texts": numpy.array(texts, dtype=str)}
"""
"""Run in both environments: the two toolkits answer to the same calls."""
THEIRS = """
import logging, sys
from nemo.utils import logging as nemo_logging
nemo_logging.setLevel(logging.ERROR)
from nemo.collections.asr.models import ASRModel
from nemo.core.classes.common import typecheck
for folder in sys.argv[1:]:
    model = ASRModel.restore_from(folder + "/model.nemo", map_location="cpu").eval()
    normed = type(model.decoder).__name__ == "RNNTDecoder" and model.cfg.decoder.normalization_mode is not None
    typecheck.set_typecheck_enabled(not normed)  # the type checks refuse the states of norms, and so train none,
    if normed: model.decoder.batch_select_state = lambda states, row: None  # and a search cannot pack them at its end
    audio = numpy.load(folder + "/audio.npz")
    found = outputs(model, torch.tensor(audio["signal"]), torch.tensor(audio["length"]))
    numpy.savez(folder + "/theirs.npz", **found)
"""


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    from nemo_asr.commands.train import CONFIGS

    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(name, overrides=overrides)


def make_case(name: str, overrides: list[str], tokenizer: Path, folder: Path) -> None:
    """Saves a model with random, unsettled weights, and what it says of two noisy signals."""
    from nemo_asr.models.family import model_class_for

    torch.manual_seed(0)
    if any(part in name for part in WITH_TOKENIZER):
        overrides = [*overrides, f"model.tokenizer.dir={tokenizer}"]
    config = compose_config(name.split(",")[0], overrides)
    model = model_class_for(config.model)(cfg=config.model).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    folder.mkdir()
    model.save_to(str(folder / "model.nemo"))
    signal, length = 0.1 * torch.randn(2, 24000), torch.tensor([24000, 17000])
    signal[1, 17000:] = 0
    np.savez(folder / "audio.npz", signal=signal, length=length)
    scope: dict[str, Any] = {}
    exec(OUTPUTS, scope)
    np.savez(folder / "ours.npz", **scope["outputs"](model, signal, length))


def compare(name: str, folder: Path) -> bool:
    ours, theirs = np.load(folder / "ours.npz"), np.load(folder / "theirs.npz")
    same = {key: ours[key].tolist() == theirs[key].tolist() for key in ("length", "texts")}
    worst = {key: difference(ours[key], theirs[key], ours["length"]) for key in ours.files if key not in same}
    listed = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
    equal = ", ".join(f"{key} {'equal' if value else 'DIFFER'}" for key, value in same.items())
    print(f"{name:42} {listed}; {equal}")
    return max(worst.values()) < 5e-3 and all(same.values()) and set(ours.files) == set(theirs.files)


def difference(ours: np.ndarray, theirs: np.ndarray, length: np.ndarray) -> float:
    """Greatest absolute difference inside the lengths."""
    frames = min(ours.shape[1], theirs.shape[1])
    distance = np.abs(ours[:, :frames] - theirs[:, :frames])
    return float(max(row[:n].max() for row, n in zip(distance, length, strict=False)))  # a loss is one row


def main() -> int:
    python = os.environ.get("NEMO_TOOLKIT_PYTHON")
    if not python:
        print("set NEMO_TOOLKIT_PYTHON to the python of an environment with nemo_toolkit[asr]", file=sys.stderr)
        return 2
    speech = Path(__file__).parents[1] / "data" / "speech"
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = Path(scratch) / "tokenizer"
        command = [sys.executable, "-m", "nemo_asr", "tokenizer", "--manifest", str(speech / "train.jsonl")]
        subprocess.run([*command, "--out", str(tokenizer), "--vocab-size", "64"], check=True, capture_output=True)
        folders = {name: Path(scratch) / name for name in sys.argv[1:] or CASES}
        for name in folders:
            make_case(name, CASES[name], tokenizer, folders[name])
        result = subprocess.run(
            [python, "-c", OUTPUTS + THEIRS, *map(str, folders.values())], capture_output=True, text=True
        )
        if result.returncode:
            print(result.stderr[-4000:], file=sys.stderr)
            return 1
        same = [compare(name, folder) for name, folder in folders.items()]
        return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
