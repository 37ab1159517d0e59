"""`nemo-asr train`: a config, a trainer, a model; leaves the run's logs, checkpoints and `.nemo`.

    nemo-asr train --config-name fastconformer_ctc_bpe model.tokenizer.dir=tokenizer \
        model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=dev.json

Any key can be overridden (`key=value`), added (`+key=value`) or deleted (`~key`); `--config-path DIR` takes a
config of your own, NVIDIA's included; `+init_from_nemo_model=base.nemo` starts from another model's weights.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from omegaconf import DictConfig

CONFIGS = Path(__file__).parent.parent / "conf"
IGNORED_TRAINER_KEYS = frozenset({"amp_backend", "amp_level"})
"""Keys of older Lightning versions that NVIDIA's configs still carry."""


def build_trainer(section: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Trainer:
    """A Lightning trainer of the `trainer` section; `devices: -1` means all there are, on a CPU machine one."""
    import inspect

    import torch
    from lightning.pytorch import Trainer

    from nemo_config import check_keys, instantiate

    valid = inspect.signature(Trainer.__init__).parameters.keys() - {"self"}
    options = check_keys(section, valid, "trainer", ignored=IGNORED_TRAINER_KEYS)
    if isinstance(options.get("strategy"), Mapping):
        options["strategy"] = instantiate(options["strategy"], path="trainer.strategy")
    if options.get("devices") == -1 and not torch.cuda.is_available():
        options["devices"] = "auto"
    if options.get("accelerator") in ("cpu", "auto") and not torch.cuda.is_available():
        options["sync_batchnorm"] = False  # batch norm is synchronised between GPUs only
    return Trainer(**options, callbacks=list(callbacks))


def train(config: DictConfig, callbacks: Sequence[Callback] = ()) -> None:
    """Trains the model that a whole config describes, then tests it if there is a test set."""
    import lightning.pytorch as lightning

    from nemo_asr.models.family import model_class_for
    from nemo_config import plain
    from nemo_expmgr import exp_manager

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # they print each line once more
    if config.get("seed") is not None:
        lightning.seed_everything(int(config["seed"]), workers=True)
    trainer = build_trainer(plain(config.get("trainer") or {}), callbacks)
    exp_manager(trainer, config.get("exp_manager"))
    model = model_class_for(config.model)(cfg=config.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(config)
    trainer.fit(model)
    if (plain(config.model).get("test_ds") or {}).get("manifest_filepath") not in (None, "", "???"):
        trainer.test(model)


def main(arguments: list[str]) -> int:
    """Runs the command with the given arguments (without its name)."""
    try:
        import nemo_expmgr  # noqa: F401
    except ModuleNotFoundError:
        print("nemo-asr train needs Lightning: pip install 'nemo-asr[train]'", file=sys.stderr)
        return 2
    from nemo_config import hydra_runner

    if arguments in (["-h"], ["--help"]):
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        print(f"{__doc__}\nConfigs here: {names}.")
        return 0
    sys.argv = ["nemo-asr train", *arguments]
    hydra_runner(config_path=str(CONFIGS), config_name="fastconformer_ctc_bpe")(train)()
    return 0
