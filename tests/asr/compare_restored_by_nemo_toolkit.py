"""Models made and saved here, restored by NVIDIA's nemo_toolkit in its own environment: are the outputs the same?

    NEMO_TOOLKIT_PYTHON=/path/to/its/python hatch run compare

Not part of the tests, since it needs that toolkit (pip install 'nemo_toolkit[asr]==3.0.0').
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

SMALL_CONFORMER = ["model.encoder.n_layers=2", "model.encoder.d_model=64", "model.encoder.n_heads=4"]
CASES = {
    "quartznet_15x5": [],
    "citrinet_512": [],
    "conformer_ctc_char": SMALL_CONFORMER,
    "conformer_ctc_bpe": [*SMALL_CONFORMER, "model.encoder.self_attention_model=abs_pos"],
    "fastconformer_ctc_char": [*SMALL_CONFORMER, "model.encoder.conv_norm_type=layer_norm"],
    "fastconformer_ctc_bpe": [*SMALL_CONFORMER, "model.encoder.subsampling_conv_channels=32"],
}
THEIRS = """
import json, logging, sys, numpy, torch
from nemo.utils import logging as nemo_logging
nemo_logging.setLevel(logging.ERROR)
from nemo.collections.asr.models import ASRModel
for folder in sys.argv[1:]:
    model = ASRModel.restore_from(folder + "/model.nemo", map_location="cpu").eval()
    audio = numpy.load(folder + "/audio.npz")
    with torch.no_grad():
        signal, lengths = torch.tensor(audio["signal"]), torch.tensor(audio["length"])
        log_probs, length, ids = model(input_signal=signal, input_signal_length=lengths)
    texts = model.transcribe([s[:n] for s, n in zip(signal, lengths)], verbose=False)
    texts = [t if isinstance(t, str) else t.text for t in texts]
    texts = numpy.array(texts, dtype=str)
    numpy.savez(folder + "/theirs.npz", log_probs=log_probs, length=length, ids=ids, texts=texts)
"""


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    from nemo_asr.commands.train import CONFIGS

    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(name, overrides=overrides)


def make_case(name: str, overrides: list[str], tokenizer: Path, folder: Path) -> None:
    """Saves a model with random, unsettled weights, and what it says of two noisy signals."""
    from nemo_asr.models.family import model_class_for

    torch.manual_seed(0)
    if name.endswith("bpe") or "citrinet" in name:
        overrides = [*overrides, f"model.tokenizer.dir={tokenizer}"]
    config = compose_config(name, overrides)
    model = model_class_for(config.model)(cfg=config.model).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    folder.mkdir()
    model.save_to(str(folder / "model.nemo"))
    signal, length = 0.1 * torch.randn(2, 24000), torch.tensor([24000, 17000])
    signal[1, 17000:] = 0
    with torch.inference_mode():
        log_probs, encoded_len, ids = model(input_signal=signal, input_signal_length=length)
    texts = model.transcribe([s[:n] for s, n in zip(signal, length, strict=True)], verbose=False)
    np.savez(folder / "audio.npz", signal=signal, length=length)
    np.savez(
        folder / "ours.npz",
        log_probs=log_probs,
        length=encoded_len,
        ids=ids,
        texts=np.array(texts, dtype=str),
    )


def compare(name: str, folder: Path) -> bool:
    ours, theirs = np.load(folder / "ours.npz"), np.load(folder / "theirs.npz")
    valid = np.arange(ours["ids"].shape[1])[None] < ours["length"][:, None]
    frames = min(ours["log_probs"].shape[1], theirs["log_probs"].shape[1])
    valid = valid[:, :frames]
    difference = np.abs(ours["log_probs"][:, :frames] - theirs["log_probs"][:, :frames])[valid].max()
    same_ids = bool((ours["ids"][:, :frames] == theirs["ids"][:, :frames])[valid].all())
    same_text = ours["texts"].tolist() == theirs["texts"].tolist()
    same_length = ours["length"].tolist() == theirs["length"].tolist()
    print(
        f"{name:24} log-probabilities differ by {difference:.1e}; lengths {'equal' if same_length else 'DIFFER'}, "
        f"ids {'equal' if same_ids else 'DIFFER'}, texts {'equal' if same_text else 'DIFFER'}"
    )
    return difference < 5e-3 and same_ids and same_text and same_length


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
        folders = {name: Path(scratch) / name for name in CASES}
        for name, overrides in CASES.items():
            make_case(name, overrides, tokenizer, folders[name])
        result = subprocess.run([python, "-c", THEIRS, *map(str, folders.values())], capture_output=True, text=True)
        if result.returncode:
            print(result.stderr[-4000:], file=sys.stderr)
            return 1
        same = [compare(name, folder) for name, folder in folders.items()]
        return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
