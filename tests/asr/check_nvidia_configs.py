"""NVIDIA's own CTC and transducer configs, with their values but for sizes and paths: does each build and train a step?

    python tests/asr/check_nvidia_configs.py NeMo/examples/asr/conf [NAME ...]

The folder is that of a checkout of NVIDIA/NeMo (not distributed here). Not part of the tests. The names that begin with
`structured/` are the scripts of examples/asr/experimental/structured, run as they are but for the packages' names,
`speech_to_text_hybrid` with the QuartzNet config beside it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import soundfile
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from nemo_asr.commands import tokenizer as tokenizer_command
from nemo_asr.commands.train import train

SMALL = ["model.encoder.n_layers=2", "model.encoder.d_model=64", "model.encoder.n_heads=4"]
SPE = ["model.tokenizer.dir={tokenizer}", "model.tokenizer.type=bpe"]
LANGUAGES = [f"model.tokenizer.langs.{lang}.{key}" for lang in ("en", "es") for key in ("dir={tokenizer}", "type=bpe")]
NOISE = "model.train_ds.augmentor.rir_noise_aug"
JOINT = ["++model.model_defaults.pred_hidden=48", "++model.model_defaults.joint_hidden=48"]
CONTEXTNET = ["++model.model_defaults.filters=32", "++model.model_defaults.enc_hidden=48", *JOINT]
TRANSDUCER = [*SMALL, *JOINT]
LSTM = ["model.encoder.n_layers=2", "model.encoder.d_model=48", "model.encoder.proj_size=32"]
SQUEEZEFORMER = ["model.encoder.n_layers=4", "model.encoder.d_model=64", "model.encoder.n_heads=4"]
SQUEEZEFORMER += ["model.encoder.time_reduce_idx=2"]
CARNELINET = ["model.model_defaults.filters=32", "model.model_defaults.encoder_final_filters=48"]
WAV2VEC = [
    "model.encoder.transformer.num_layers=2",
    "model.encoder.transformer.inner_size=128",
    "model.encoder.transformer.hidden_size=64",
    "model.encoder.pos_embed.embedding_dim=64",
    "model.preprocessor.embedding_dim=64",
    "model.decoder.feat_in=64",
]
ROOM = [
    f"{NOISE}.prob=1.0",
    f"{NOISE}.rir_manifest_path={{noise}}",
    f"{NOISE}.rir_tar_filepaths=null",
    f"{NOISE}.noise_manifest_paths=[{{noise}}]",
    f"{NOISE}.noise_tar_filepaths=null",
    f"{NOISE}.orig_sample_rate=[16000]",
    f"{NOISE}.bg_noise_manifest_paths=[{{noise}}]",
    f"{NOISE}.bg_noise_tar_filepaths=null",
    f"{NOISE}.bg_orig_sample_rate=[16000]",
    f"{NOISE}.min_snr_db=[0]",
    f"{NOISE}.max_snr_db=[30]",
    f"{NOISE}.bg_min_snr_db=[10]",
    f"{NOISE}.bg_max_snr_db=[40]",
    "model.train_ds.augmentor.transcode_aug.prob=1.0",
]
CONFIGS = {
    "config": [],
    "jasper/jasper_10x5dr": [],
    "quartznet/quartznet_15x5": [],
    "quartznet/quartznet_15x5_aug": ROOM,
    "quartznet/quartznet_15x5_ru": [],
    "quartznet/quartznet_15x5_zh": [],
    "citrinet/config_bpe": SPE,
    "citrinet/citrinet_384": SPE,
    "citrinet/citrinet_512": SPE,
    "citrinet/citrinet_1024": SPE,
    "conformer/conformer_ctc_char": SMALL,
    "conformer/conformer_ctc_bpe": SMALL + SPE,
    "conformer/multilang/conformer_ctc_bpe_multilang": SMALL + LANGUAGES,
    "conformer/cache_aware_streaming/conformer_ctc_bpe_streaming": SMALL + SPE,
    "fastconformer/fast-conformer_ctc_bpe": SMALL + SPE,
    "fastconformer/long_fastconformer/fast-conformer-long_ctc_bpe": SMALL + SPE,
    "fastconformer/cache_aware_streaming/fastconformer_ctc_bpe_streaming": SMALL + SPE,
    "fastconformer/cache_aware_streaming/fastconformer_ctc_char_streaming": SMALL,
    "carnelinet/carnelinet_384": CARNELINET + SPE,
    "lstm/lstm_ctc_bpe": LSTM + SPE,
    "squeezeformer/squeezeformer_ctc_bpe": SQUEEZEFORMER + SPE,
    "squeezeformer/squeezeformer_ctc_char": SQUEEZEFORMER,
    "wav2vec_ctc/wav2vecCTC": WAV2VEC + SPE,
    "wav2vec_ctc/wav2vecCTC_large": WAV2VEC + SPE,
    "contextnet_rnnt/config_rnnt": CONTEXTNET,
    "contextnet_rnnt/config_rnnt_bpe": CONTEXTNET + SPE,
    "contextnet_rnnt/contextnet_rnnt": CONTEXTNET + SPE,
    "contextnet_rnnt/contextnet_rnnt_char": CONTEXTNET,
    "contextnet_rnnt/contextnet_rnnt_multilang": CONTEXTNET + LANGUAGES,
    "conformer/conformer_transducer_bpe": TRANSDUCER + SPE,
    "conformer/conformer_transducer_char": TRANSDUCER,
    "conformer/cache_aware_streaming/conformer_transducer_bpe_streaming": TRANSDUCER + SPE,
    "conformer/hat/conformer_hat_bpe": TRANSDUCER + SPE,
    "conformer/hat/conformer_hat_char": TRANSDUCER,
    "conformer/hybrid_transducer_ctc/conformer_hybrid_transducer_ctc_bpe": TRANSDUCER + SPE,
    "conformer/hybrid_transducer_ctc/conformer_hybrid_transducer_ctc_char": TRANSDUCER,
    "conformer/multiblank/conformer_multiblank_transducer_bpe": TRANSDUCER + SPE,
    "conformer/multilang/conformer_transducer_bpe_multilang": TRANSDUCER + LANGUAGES,
    "conformer/tdt/conformer_tdt_bpe": TRANSDUCER + SPE,
    "conformer/tdt/conformer_tdt_bpe_stateless": TRANSDUCER + SPE,
    "fastconformer/fast-conformer_transducer_bpe": TRANSDUCER + SPE,
    "fastconformer/cache_aware_streaming/fastconformer_transducer_bpe_streaming": TRANSDUCER + SPE,
    "fastconformer/cache_aware_streaming/fastconformer_transducer_char_streaming": TRANSDUCER,
    "fastconformer/hybrid_cache_aware_streaming/fastconformer_hybrid_transducer_ctc_bpe_streaming": TRANSDUCER + SPE,
    "fastconformer/hybrid_cache_aware_streaming/fastconformer_hybrid_transducer_ctc_char_streaming": TRANSDUCER,
    "fastconformer/hybrid_transducer_ctc/fastconformer_hybrid_tdt_ctc_bpe": TRANSDUCER + SPE,
    "fastconformer/hybrid_transducer_ctc/fastconformer_hybrid_transducer_ctc_bpe": TRANSDUCER + SPE,
    "fastconformer/hybrid_transducer_ctc/fastconformer_hybrid_transducer_ctc_char": TRANSDUCER,
    "fastconformer/long_fastconformer/fast-conformer-long_transducer_bpe": TRANSDUCER + SPE,
    "lstm/lstm_transducer_bpe": LSTM + JOINT + SPE,
}
STRUCTURED = {
    "structured/speech_to_text_structured": [],
    "structured/speech_to_text_structured_v2": [],
    "structured/speech_to_text_hybrid": ["--config-path={folder}/conf", "--config-name=quartznet_15x5"],
}
PACKAGES = {
    "import nemo.collections.asr as nemo_asr": "import nemo_asr",
    "nemo.collections.asr": "nemo_asr",
    "nemo.core.config import hydra_runner": "nemo_config import hydra_runner",
    "nemo.core.config": "nemo_expmgr.schema",
    "nemo.utils.config_utils": "nemo_config",
    "nemo.utils.exp_manager": "nemo_expmgr",
}
ON_A_CPU = """
    cfg.trainer.accelerator, cfg.trainer.strategy, cfg.trainer.max_steps = "cpu", "auto", 1
    cfg.model.train_ds.batch_size = 2
    cfg.model.train_ds.manifest_filepath = cfg.model.validation_ds.manifest_filepath = "{manifest}"
    cfg.exp_manager.create_checkpoint_callback = False
"""
EVERY = [
    "model.train_ds.manifest_filepath={manifest}",
    "model.validation_ds.manifest_filepath={manifest}",
    "model.train_ds.batch_size=2",
    "model.validation_ds.batch_size=2",
    "++model.test_ds.manifest_filepath=null",
    "++model.train_ds.num_workers=0",
    "++model.validation_ds.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.strategy=auto",
    "trainer.max_steps=1",
    "++trainer.enable_progress_bar=false",
    "exp_manager.exp_dir={run}",
    "exp_manager.create_checkpoint_callback=false",
]


class StepCount(lightning.Callback):
    """Remembers the loss of the last step and how many there were."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))


def write_speech(folder: Path, text: str) -> Path:
    """Four clips of noise with the given text, and their manifest."""
    folder.mkdir(exist_ok=True)
    rng, lines = np.random.default_rng(0), []
    for index in range(4):
        path = folder / f"{index}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(32000), 16000)
        lines.append({"audio_filepath": str(path), "duration": 2.0, "text": text, "lang": "en", "offset": 0})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def load(folder: Path, name: str, values: dict[str, str]) -> DictConfig:
    overrides = [override.format(**values) for override in [*EVERY, *CONFIGS[name]]]
    path = folder / f"{name}.yaml"
    with initialize_config_dir(str(path.parent.resolve()), version_base=None):
        return compose(path.stem, overrides=overrides)


def run_script(conf: Path, name: str, scratch: Path, manifest: str) -> str:
    """Runs one of NVIDIA's scripts for a step, with our packages' names and this machine's settings; its output."""
    folder = conf.resolve().parent / "experimental" / "structured"
    text = (folder / f"{Path(name).name}.py").read_text(encoding="utf-8")
    for theirs, ours in PACKAGES.items():
        text = text.replace(theirs, ours)
    settings = ON_A_CPU.format(manifest=manifest)
    text = re.sub(r"\n    cfg\.trainer\.max_epochs = 5\n", lambda _: settings, text)
    script = scratch / f"{Path(name).name}.py"
    script.write_text(text, encoding="utf-8")
    overrides = [option.format(folder=folder) for option in STRUCTURED[name]]
    if overrides:
        sizes = [one.format(manifest=manifest, run=".").removeprefix("++") for one in EVERY if "test_ds" not in one]
        overrides += [f"++{one}" for one in sizes]
    command = [sys.executable, "-W", "ignore", str(script), *overrides]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode or "`max_steps=1` reached" not in output:
        raise RuntimeError(output[-3000:])
    return output


def characters(path: Path) -> str:
    """A text of the config's own characters."""
    config = OmegaConf.load(path)
    labels = config.model.get("labels") or config.get("labels") or list("ab ")
    return "".join([label for label in labels if label.strip()][:4])


def text_for(folder: Path, name: str) -> str:
    """What the clips say: something that the config's vocabulary can spell."""
    if name in STRUCTURED or any(override.startswith("model.tokenizer") for override in CONFIGS[name]):
        return "thank you"
    return characters(folder / f"{name}.yaml")


def main() -> int:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or [*CONFIGS, *STRUCTURED]
    speech = Path(__file__).parents[1] / "data" / "speech"
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = Path(scratch) / "tokenizer"
        manifest = str(speech / "train.jsonl")
        tokenizer_command.main(["--manifest", manifest, "--out", str(tokenizer), "--vocab-size", "64"])
        noise = write_speech(Path(scratch) / "noise", "")
        for name in names:
            values = {
                "tokenizer": str(tokenizer),
                "noise": str(noise),
                "manifest": str(write_speech(Path(scratch) / "speech", text_for(folder, name))),
                "run": str(Path(scratch) / "run" / name),
            }
            steps = StepCount()
            try:
                if name in STRUCTURED:
                    run_script(folder, name, Path(scratch), values["manifest"])
                    print(f"ok      {name}", flush=True)
                    continue
                train(load(folder, name, values), callbacks=[steps])
                print(f"ok      {name}: loss {steps.losses}", flush=True)
                if len(steps.losses) != 1:
                    failed.append(name)
            except Exception:
                traceback.print_exc()
                failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} trained a step; failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
