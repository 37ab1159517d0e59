"""The script of NVIDIA's page on its fundamentals, with our packages' names, and the command line printed there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_asr import load_model
from nemo_asr.commands import tokenizer as tokenizer_command
from nemo_asr.commands.train import CONFIGS
from nemo_asr.metrics import word_error_rate

SPEECH = Path(__file__).parents[1] / "data" / "speech"
SCRIPT = """
import lightning.pytorch as pl
from nemo_asr.models import EncDecRNNTBPEModel
from nemo_config import hydra_runner
from nemo_expmgr import exp_manager

@hydra_runner(config_path="conf", config_name="fastconformer_transducer_bpe")
def main(cfg):
    trainer = pl.Trainer(**cfg.trainer)
    exp_manager(trainer, cfg.get("exp_manager"))
    model = EncDecRNNTBPEModel(cfg=cfg.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(cfg)
    trainer.fit(model)

if __name__ == "__main__":
    main()
"""
SMALL = """
    name=small model.sample_rate=8000 model.preprocessor.features=64 model.preprocessor.n_fft=256
    model.preprocessor.dither=0 ~model.spec_augment model.encoder.n_layers=1 model.encoder.d_model=64
    model.encoder.n_heads=2 model.encoder.subsampling_factor=4 model.encoder.subsampling_conv_channels=8
    model.encoder.dropout=0 model.encoder.dropout_pre_encoder=0 model.encoder.dropout_att=0
    model.model_defaults.pred_hidden=32 model.model_defaults.joint_hidden=64 model.decoder.prednet.dropout=0
    model.joint.jointnet.dropout=0 model.train_ds.num_workers=0 model.train_ds.pin_memory=false
    model.validation_ds.num_workers=0 model.validation_ds.pin_memory=false ~model.optim.sched
    trainer.enable_progress_bar=false trainer.check_val_every_n_epoch=1000 +seed=1
    exp_manager.create_tensorboard_logger=false exp_manager.checkpoint_callback_params.save_top_k=0
""".split()


@pytest.fixture
def project(tmp_path):
    """A folder with the script, a config in a folder of its own, a manifest of four clips, and a tokenizer."""
    (tmp_path / "run_example_training.py").write_text(SCRIPT)
    rows = [json.loads(line) for line in (SPEECH / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: row["duration"])[:4]
    for row in rows:
        row["audio_filepath"] = str(SPEECH / row["audio_filepath"])
    (tmp_path / "your_train_data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--manifest", str(SPEECH / "train.jsonl"), "--out", str(tmp_path / "tokenizer"), "--vocab-size", "48"]
    assert tokenizer_command.main(arguments) == 0
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("fastconformer_transducer_bpe", [*SMALL, f"model.tokenizer.dir={tmp_path / 'tokenizer'}"])
    config.model.validation_ds.manifest_filepath = str(tmp_path / "your_train_data.json")
    (tmp_path / "different_folder").mkdir()
    OmegaConf.save(config, tmp_path / "different_folder" / "different_name.yaml")
    return tmp_path


def run_script(project: Path, run: str, steps: int, *more: str) -> Path:
    """Runs the printed command line; gives the `.nemo` that it left."""
    command = [
        *(sys.executable, "run_example_training.py"),
        *("--config_path=different_folder", "--config_name=different_name"),
        *("model.optim.lr=0.005", "model.train_ds.manifest_filepath=your_train_data.json"),
        *("~trainer.max_epochs", f"+trainer.max_steps={steps}", f"exp_manager.exp_dir={run}", *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (project / run).rglob("*.nemo")
    return found


def test_the_script_fine_tunes_a_transducer_from_a_file_to_better_transcripts(project):
    rows = [json.loads(line) for line in (project / "your_train_data.json").read_text().splitlines()]
    said = [row["text"] for row in rows]

    def errors(path: Path) -> float:
        return word_error_rate(load_model(path).transcribe([row["audio_filepath"] for row in rows]), said, use_cer=True)

    base = run_script(project, "base", 20)
    tuned = run_script(project, "tuned", 150, f"+init_from_nemo_model={base}")
    assert errors(tuned) < 0.5 * errors(base)
