"""Small FastConformer models, trained on the bundled training clips by the package's own commands."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SPEECH = Path(__file__).parents[1] / "data" / "speech"
SMALL = """
    model.sample_rate=8000 model.log_prediction=false model.train_ds.num_workers=0 model.train_ds.pin_memory=false
    model.train_ds.batch_size=null +model.train_ds.batch_duration=12 model.validation_ds.num_workers=0
    model.validation_ds.pin_memory=false model.preprocessor.features=64 model.preprocessor.n_fft=256
    model.spec_augment.freq_masks=1 model.spec_augment.freq_width=10 model.spec_augment.time_masks=1
    model.encoder.n_layers=3 model.encoder.d_model=96 model.encoder.n_heads=4 model.encoder.subsampling_factor=4
    model.encoder.subsampling_conv_channels=16 model.model_defaults.pred_hidden=96 model.model_defaults.joint_hidden=128
    trainer.enable_progress_bar=false trainer.gradient_clip_val=1.0 +seed=1
    exp_manager.create_tensorboard_logger=false exp_manager.resume_if_exists=true
    exp_manager.resume_ignore_no_checkpoint=true
""".split()


def nemo_asr(*arguments: str) -> None:
    """Runs a command of nemo-asr; where it fails it has said why, and this ends, too."""
    if subprocess.run([sys.executable, "-m", "nemo_asr", *arguments]).returncode:
        raise SystemExit(1)


def trained_model(folder: Path, config: str, epochs: int, *overrides: str, vocabulary: int = 64) -> Path:
    """The `.nemo` of a config of the wheel, trained if it is not in the folder yet."""
    tokenizer, model = folder / "tokenizer", folder / config / "checkpoints" / f"{config}.nemo"
    if model.exists():
        return model
    started = time.monotonic()
    manifest = str(SPEECH / "train.jsonl")
    nemo_asr("tokenizer", "--manifest", manifest, "--out", str(tokenizer), "--vocab-size", str(vocabulary))
    nemo_asr(
        *("train", "--config-name", config, *SMALL, f"model.tokenizer.dir={tokenizer}"),
        *(f"trainer.max_epochs={epochs}", f"trainer.check_val_every_n_epoch={epochs}"),
        *(f"name={config}", f"exp_manager.exp_dir={folder}", f"model.train_ds.manifest_filepath={manifest}"),
        *(f"model.validation_ds.manifest_filepath={SPEECH / 'heldout_repeated.jsonl'}", *overrides),
    )
    print(f"trained {config} for {epochs} epochs in {time.monotonic() - started:.0f} s", flush=True)
    return model
