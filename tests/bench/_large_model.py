"""The file that the benchmarks of reading use: FastConformer-L, 115 M random weights, 460 MB, a small tokenizer.

It is made in a process of its own, since a child's highest resident memory begins with its parent's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAME = "fastconformer_l.nemo"


def large_model(folder: Path) -> Path:
    """Makes the file in a folder and gives its path; what was made says how large it is."""
    subprocess.run([sys.executable, __file__, str(folder)], check=True)
    return folder / NAME


def make_tokenizer(folder: Path) -> None:
    manifest = Path(__file__).parents[1] / "data" / "speech" / "train.jsonl"
    command = [sys.executable, "-m", "nemo_asr", "tokenizer", "--manifest", str(manifest), "--out", str(folder)]
    subprocess.run([*command, "--vocab-size", "128"], check=True, capture_output=True)


def make_model(path: Path, tokenizer_folder: Path) -> None:
    from hydra import compose, initialize_config_dir

    from nemo_asr.commands.train import CONFIGS
    from nemo_asr.models import EncDecCTCModelBPE

    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("fastconformer_ctc_bpe", overrides=[f"model.tokenizer.dir={tokenizer_folder}"])
    model = EncDecCTCModelBPE(cfg=config.model)
    model.save_to(str(path))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    scratch = Path(sys.argv[1])
    make_tokenizer(scratch / "tokenizer")
    make_model(scratch / NAME, scratch / "tokenizer")
