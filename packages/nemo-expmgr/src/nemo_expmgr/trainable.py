"""What Lightning asks of a model, answered from its config: data loaders, metrics of an epoch, optimizer and schedule.

Method and attribute names are those that users of NVIDIA's toolkit override: setup_training_data sets `_train_dl`,
setup_validation_data `_validation_dl`, multi_validation_epoch_end makes the metrics of one validation set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from nemo_config import ConfigError, nvidia_name, plain
from nemo_config.errors import ABSENT
from nemo_expmgr import optimization
from nemo_expmgr.dataloaders import TEST, VALIDATION, Phase, dataset_section, is_given, setup_sets
from nemo_expmgr.epoch_end import collect_output, loader_count, mean_metrics, merge_epoch, open_outputs

logger = logging.getLogger(__name__)

Config = DictConfig | Mapping[str, Any]


class TrainableModule(LightningModule):
    """A LightningModule that is described by `self.cfg`; NemoModel is the class to derive from.

    A subclass defines `build_dataloader`, and as for any LightningModule `training_step` and `validation_step`. What
    validation_step and test_step return (a dict of scalars such as val_loss) is collected, averaged and logged.

    Attributes:
        several_sets_key: the key of validation_ds and test_ds whose list of values means several sets.
    """

    several_sets_key = "manifest_filepath"

    def __init__(self, cfg: Config, trainer: Trainer | None = None) -> None:
        super().__init__()
        if hasattr(cfg, "model") if is_dataclass(cfg) else "model" in cfg:
            raise ConfigError("model", ABSENT, "is the section to pass: cfg.model, not the whole config")
        self._given_cfg = plain(cfg)
        self._cfg: DictConfig | None = None  # made when it is first asked for: it takes a third of a restore's time
        self._log_hyperparams = True  # Lightning's switch: its loggers get `hparams`
        self._sections_of_file: set[str] = set()  # name data of the machine where a restored file was made
        self._train_dl: Any = None
        self._validation_dl: Any = None
        self._test_dl: Any = None
        self._validation_names: list[str] = []
        self._test_names: list[str] = []
        self._val_dl_idx = self._test_dl_idx = 0
        self._step_outputs: dict[Phase, list[Any]] = {}
        self.set_trainer(trainer)

    # The config

    @property
    def cfg(self) -> DictConfig:
        """The model's config; changing it does not change modules that are built."""
        if self._cfg is None:
            self._cfg = OmegaConf.create(self._given_cfg)
        return self._cfg

    @cfg.setter
    def cfg(self, cfg: Config) -> None:
        self._given_cfg, self._cfg = plain(cfg), None

    def plain_cfg(self) -> dict[str, Any]:
        """A copy of the config as it is now, in plain containers."""
        return plain(self._given_cfg if self._cfg is None else self._cfg)

    def keep_section(self, key: str, section: Config) -> None:
        """Replaces one section of the config by a copy of `section`."""
        self._sections_of_file.discard(key)
        if self._cfg is None:
            self._given_cfg[key] = plain(section)
        else:
            OmegaConf.update(self._cfg, key, plain(section), merge=False, force_add=True)

    @property
    def hparams(self) -> AttributeDict:
        """What Lightning writes into checkpoints and loggers: `cfg` as it is now, in plain containers."""
        return AttributeDict(cfg={**self.plain_cfg(), "target": nvidia_name(type(self))})

    @property
    def hparams_initial(self) -> AttributeDict:
        """The same as hparams."""
        return self.hparams

    def set_trainer(self, trainer: Trainer | None) -> None:
        """Attaches a Lightning trainer."""
        self.trainer = trainer  # Lightning's getter, for its part, raises while there is none

    @property
    def world_size(self) -> int:
        """How many processes train; 1 without a trainer."""
        return 1 if self._trainer is None else self._trainer.world_size

    # Data

    def build_dataloader(self, section: DictConfig, path: str, training: bool) -> DataLoader[Any] | None:
        """The loader of one set; a subclass defines it.

        Args:
            section: what describes the set, e.g. `train_ds`.
            path: dotted path of the section, for messages.
            training: whether it is for training: shuffled, augmented.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build_dataloader to load {path}")

    def setup_training_data(self, train_data_config: Config) -> None:
        """Builds the training loader and keeps its section in the config."""
        self._train_dl = self.build_dataloader(
            dataset_section(train_data_config, "model.train_ds"), "model.train_ds", True
        )
        self.keep_section("train_ds", train_data_config)

    def setup_validation_data(self, val_data_config: Config) -> None:
        """Builds the loader of one validation set."""
        self._validation_dl = self.build_dataloader(
            dataset_section(val_data_config, VALIDATION.path), VALIDATION.path, False
        )
        self.keep_section("validation_ds", val_data_config)

    def setup_test_data(self, test_data_config: Config) -> None:
        """Builds the loader of one test set."""
        self._test_dl = self.build_dataloader(dataset_section(test_data_config, TEST.path), TEST.path, False)
        self.keep_section("test_ds", test_data_config)

    def setup_multiple_validation_data(self, val_data_config: Config) -> None:
        """Builds a loader for each validation set that the section names (nemo_expmgr.dataloaders)."""
        setup_sets(self, VALIDATION, val_data_config)

    def setup_multiple_test_data(self, test_data_config: Config) -> None:
        """Builds a loader for each test set that the section names."""
        setup_sets(self, TEST, test_data_config)

    def train_dataloader(self) -> Any:
        """The training loader, built when training starts."""
        if self._train_dl is None:
            section = self.cfg.get("train_ds")
            if not is_given(section, "model.train_ds", self.several_sets_key):
                raise ConfigError(f"model.train_ds.{self.several_sets_key}", None, "must be given: nothing to train on")
            self.setup_training_data(section)
        return self._train_dl

    def val_dataloader(self) -> Any:
        """The validation loaders; an empty list where the config names no data, or only the restored file does."""
        if self._validation_dl is None and (section := self._own_section(VALIDATION)) is not None:
            self.setup_multiple_validation_data(section)
        return [] if self._validation_dl is None else self._validation_dl

    def test_dataloader(self) -> Any:
        """The test loaders, like val_dataloader."""
        if self._test_dl is None and (section := self._own_section(TEST)) is not None:
            self.setup_multiple_test_data(section)
        return [] if self._test_dl is None else self._test_dl

    def prepare_test(self, trainer: Trainer | None) -> bool:
        """Whether `trainer.test(model)` can follow; attaches the trainer if so.

        With several devices it is not done: the sampler gives some utterances twice, so that the figures are not exact.
        """
        if self._test_dl is None and self._own_section(TEST) is None:
            logger.info("%s names no data: nothing to test on", TEST.path)
            return False
        if trainer is not None and trainer.num_devices > 1:
            logger.warning("with %d devices there is no test: it counts some utterances twice", trainer.num_devices)
            return False
        self.set_trainer(trainer)
        return True

    def _own_section(self, phase: Phase) -> DictConfig | None:
        """The section of a phase if it names data here."""
        key = f"{phase.name}_ds"
        if key in self._sections_of_file:
            logger.info("%s came with the file and is not opened; setup_%s_data sets one", phase.path, phase.name)
            return None
        section = self.cfg.get(key)
        return section if is_given(section, phase.path, self.several_sets_key) else None

    def get_validation_dataloader_prefix(self, dataloader_idx: int = 0) -> str:
        """What the metrics of a validation set begin with in the logs."""
        return self._validation_names[dataloader_idx] if self._validation_names else f"val_{dataloader_idx}_"

    def get_test_dataloader_prefix(self, dataloader_idx: int = 0) -> str:
        """What the metrics of a test set begin with in the logs."""
        return self._test_names[dataloader_idx] if self._test_names else f"test_{dataloader_idx}_"

    # Metrics of an epoch

    @property
    def validation_step_outputs(self) -> list[Any]:
        """Outputs of validation_step in this epoch: a list, or a list for each loader where there are several."""
        loaders = None if self._trainer is None else self._trainer.val_dataloaders
        return self._step_outputs.setdefault(VALIDATION, open_outputs(loader_count(loaders)))

    @property
    def test_step_outputs(self) -> list[Any]:
        """Outputs of test_step in this epoch, like validation_step_outputs."""
        loaders = None if self._trainer is None else self._trainer.test_dataloaders
        return self._step_outputs.setdefault(TEST, open_outputs(loader_count(loaders)))

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collects what validation_step returned."""
        collect_output(self.validation_step_outputs, outputs, batch_idx, dataloader_idx)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collects what test_step returned."""
        collect_output(self.test_step_outputs, outputs, batch_idx, dataloader_idx)

    def multi_validation_epoch_end(self, outputs: list[Any], dataloader_idx: int = 0) -> dict[str, Any] | None:
        """The metrics of one validation set, under `log` of the result, from the outputs of its steps."""
        return {"log": mean_metrics(outputs, self)}

    def multi_test_epoch_end(self, outputs: list[Any], dataloader_idx: int = 0) -> dict[str, Any] | None:
        """The metrics of one test set, under `log` of the result, from the outputs of its steps."""
        return {"log": mean_metrics(outputs, self)}

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of all validation sets (nemo_expmgr.epoch_end says under which names)."""
        outputs = self._step_outputs.pop(VALIDATION, [])
        ends = (self.multi_validation_epoch_end, self.get_validation_dataloader_prefix)
        self.log_dict(merge_epoch(outputs, *ends, main=self._val_dl_idx), sync_dist=self.world_size > 1)

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of all test sets."""
        outputs = self._step_outputs.pop(TEST, [])
        ends = (self.multi_test_epoch_end, self.get_test_dataloader_prefix)
        self.log_dict(merge_epoch(outputs, *ends, main=self._test_dl_idx), sync_dist=self.world_size > 1)

    # The optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer, in groups by `cfg.optim_param_groups` where that is given."""
        return optimization.split_parameters(self, self.cfg.get("optim_param_groups"))

    def setup_optimization(self, optim_config: Config | None = None) -> tuple[Optimizer, dict[str, Any] | None] | None:
        """Builds the optimizer and schedule of `cfg.optim`, or of a section that takes its place; else None."""
        if optim_config is not None:
            self.keep_section("optim", optim_config)
        section = self.cfg.get("optim")
        return None if section is None else optimization.make_optimizer(self, section)

    def configure_optimizers(self) -> Any:
        """The optimizer and schedule of `cfg.optim`, as Lightning asks for them when training starts."""
        built = self.setup_optimization()
        if built is None:
            raise ConfigError("model.optim", None, "must be given: nothing says how to train")
        optimizer, schedule = built
        return optimizer if schedule is None else ([optimizer], [schedule])

    # The weights

    @property
    def num_weights(self) -> int:
        """How many trainable values the model has."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def summarize(self, max_depth: int = 1) -> ModelSummary:
        """A table of the modules, their kinds and sizes."""
        return ModelSummary(self, max_depth=max_depth)

    @contextmanager
    def as_frozen(self) -> Iterator[None]:
        """Within the block nothing is trainable and every module is in eval mode; afterwards all is as before."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        training = [module for module in self.modules() if module.training]
        self.freeze()
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True
