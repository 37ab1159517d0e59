"""Training a small FastConformer transducer, beside NVIDIA's toolkit where it is installed.

    NEMO_TOOLKIT_PYTHON=/path/to/python hatch run bench training

One `.nemo` is made, without dropout, SpecAugment and dither.  Each toolkit restores it in a process of its own, and
Lightning's trainer fits it to the same batches in the same order: do the losses agree, how long is a step (the median
of those after the first three), and how much memory did the process need at its highest?  The encoder alone is timed as
well, forward and backward, on the same batches: what the loss and the joint cost is the rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _subject import OURS, OURS_THERE, PEER, Subject, subjects

SPEECH = Path(__file__).parents[1] / "data" / "speech" / "train.jsonl"
MODEL = """
    model.sample_rate=8000 model.preprocessor.features=64 model.preprocessor.n_fft=256 model.preprocessor.dither=0
    model.encoder.subsampling_factor=4 model.encoder.dropout=0 model.encoder.dropout_pre_encoder=0
    model.encoder.dropout_att=0 model.decoder.prednet.dropout=0 model.joint.jointnet.dropout=0 ~model.spec_augment
    model.train_ds.manifest_filepath=null model.validation_ds.manifest_filepath=null
""".split()
SIZES = {
    "small": "n_layers=4 d_model=96 n_heads=4 subsampling_conv_channels=32 pred=96 joint=128",
    "medium": "n_layers=8 d_model=256 n_heads=4 subsampling_conv_channels=128 pred=320 joint=320",
}
MAKE = """
import pathlib, sys, nemo_asr
from hydra import compose, initialize_config_dir
from lightning.pytorch import seed_everything
from nemo_asr.models import EncDecRNNTBPEModel
seed_everything(1)
with initialize_config_dir(str(pathlib.Path(nemo_asr.__file__).parent / "conf"), version_base=None):
    cfg = compose(sys.argv[2], sys.argv[3:])
model = EncDecRNNTBPEModel(cfg.model)
model.save_to(sys.argv[1])
print("RESULT" + str(sum(parameter.numel() for parameter in model.parameters())))
"""
FIT = """
import json, logging, resource, sys, time, warnings
warnings.filterwarnings("ignore")
{imports}
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
path, data, optim, steps = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])

class Recorder(Callback):
    losses, seconds = [], []
    def on_train_batch_start(self, *_): self.start = time.perf_counter()
    def on_train_batch_end(self, trainer, model, outputs, *_):
        self.seconds.append(time.perf_counter() - self.start)
        self.losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
recorder, imported = Recorder(), peak()
trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[recorder],
                  enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=steps + 1)
model = EncDecRNNTBPEModel.restore_from(path, map_location=torch.device("cpu"))
model.set_trainer(trainer)
model.setup_training_data(OmegaConf.create(data))
model.setup_optimization(OmegaConf.create(optim))
trainer.fit(model)
fitted = peak()

encoder, batches = [], list(model._train_dl)
for number in range(10):
    batch = batches[number % len(batches)]
    start = time.perf_counter()
    encoded, _ = model(input_signal=batch[0], input_signal_length=batch[1])
    encoded.square().mean().backward()
    encoder.append(time.perf_counter() - start)
print("RESULT" + json.dumps(dict(losses=recorder.losses, seconds=recorder.seconds, encoder=encoder, imported=imported,
                                 peak=fitted)))
"""
IMPORTS = {
    OURS: "from nemo_asr.models import EncDecRNNTBPEModel",
    PEER: "from nemo.collections.asr.models import EncDecRNNTBPEModel\n"
    "from nemo.utils import logging as nemo_logging\nnemo_logging.setLevel(logging.ERROR)",
}


def make_model(folder: Path, config: str, size: str, manifest: Path, vocabulary: int) -> Path:
    """A `.nemo` with random weights."""
    given = dict(item.split("=") for item in SIZES[size].split())
    tokenizer, path = folder / "tokenizer", folder / "initial.nemo"
    command = [sys.executable, "-m", "nemo_asr", "tokenizer", "--manifest", str(manifest), "--out", str(tokenizer)]
    subprocess.run([*command, "--vocab-size", str(vocabulary)], check=True, capture_output=True)
    sizes = [f"model.model_defaults.{key}_hidden={given.pop(key)}" for key in ("pred", "joint")]
    sizes += [f"model.encoder.{key}={value}" for key, value in given.items()]
    overrides = [*MODEL, *sizes, f"model.tokenizer.dir={tokenizer}"]
    parameters: Any = Subject(OURS, sys.executable).measure(MAKE, path, config, *overrides)
    print(f"{config}, {size}, {vocabulary} tokens, {parameters / 1e6:.2f} M parameters")
    return path


def fixed_batches(folder: Path, manifest: Path, clips: int) -> Path:
    """A manifest of the first clips, by absolute paths."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()][:clips]
    for row in rows:
        row["audio_filepath"] = str((manifest.parent / row["audio_filepath"]).resolve())
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def report(found: dict[str, dict[str, Any]]) -> None:
    def middle(name: str, key: str) -> float:
        return statistics.median(found[name][key][3:])

    print(f"\n{'':20}step s  encoder alone s  after import MB  peak MB   loss: first    last")
    for name, row in found.items():
        print(
            f"{name:20}{middle(name, 'seconds'):6.3f}  {middle(name, 'encoder'):15.3f}  {row['imported']:15.0f}  "
            f"{row['peak']:7.0f}  {row['losses'][0]:12.4f}  {row['losses'][-1]:6.4f}"
        )
    theirs = found.get(PEER)
    for name in [name for name in (OURS, OURS_THERE) if theirs and name in found]:
        ours = found[name]
        apart = [abs(one / other - 1) for one, other in zip(ours["losses"], theirs["losses"], strict=True)]
        above = (ours["peak"] - ours["imported"]) / (theirs["peak"] - theirs["imported"])
        print(
            f"{name}: losses apart by at most {max(apart):.3%} over {len(apart)} steps; a step "
            f"{middle(PEER, 'seconds') / middle(name, 'seconds'):.1f} times faster, the encoder alone "
            f"{middle(PEER, 'encoder') / middle(name, 'encoder'):.2f}; peak memory "
            f"{ours['peak'] / theirs['peak']:.2f} of theirs, {above:.2f} of what theirs takes above its imports"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8, help="different ones, each seen steps / batches times")
    parser.add_argument("--manifest", type=Path, default=SPEECH)
    parser.add_argument("--vocabulary", type=int, default=1024, help="tokens")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--config", default="fastconformer_transducer_bpe")
    parser.add_argument("--lr", type=float, default=0.001)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = make_model(folder, arguments.config, arguments.size, arguments.manifest, arguments.vocabulary)
        manifest = fixed_batches(folder, arguments.manifest, arguments.batch_size * arguments.batches)
        data = {"manifest_filepath": str(manifest), "sample_rate": 8000, "batch_size": arguments.batch_size}
        data |= {"shuffle": False, "num_workers": 0, "pin_memory": False}
        optim = {"name": "adamw", "lr": arguments.lr, "betas": [0.9, 0.98], "weight_decay": 0.001}
        found = {}
        for subject in subjects(folder, in_their_environment=True):
            code = FIT.replace("{imports}", IMPORTS[PEER if subject.is_peer else OURS])
            settings = (path, json.dumps(data), json.dumps(optim), arguments.steps)
            found[subject.name] = subject.measure(code, *settings)
    report(found)


if __name__ == "__main__":
    main()
