# ruff: noqa: N999 (scripts know the module by this name)
"""The whole config of a run, and the base of builders that make its `model` section."""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Generic, TypeVar

from nemo_config.errors import MISSING
from nemo_expmgr.config import ExpManagerConfig
from nemo_expmgr.schema.optimizers import OptimizerParams
from nemo_expmgr.schema.schedulers import SchedulerParams
from nemo_expmgr.schema.trainer import TrainerConfig


@dataclass
class DatasetConfig:
    """What all data sections have in common."""

    batch_size: int | None = 32
    drop_last: bool = False
    shuffle: bool | None = False
    num_workers: int = 0
    pin_memory: bool = True


@dataclass
class SchedConfig:
    """The `optim.sched` section; its other keys are set on it as attributes, or come from a SchedulerParams."""

    name: str = MISSING
    min_lr: float = 0.0
    last_epoch: int = -1


@dataclass
class OptimConfig:
    """The `optim` section; its other keys are set on it as attributes, or come from an OptimizerParams."""

    name: str = MISSING
    sched: SchedConfig | None = None


@dataclass
class ModelConfig:
    """The `model` section."""

    train_ds: DatasetConfig | None = None
    validation_ds: DatasetConfig | None = None
    test_ds: DatasetConfig | None = None
    optim: OptimConfig | None = None


@dataclass
class HydraConfig:
    """What NVIDIA's configs say to Hydra: no folder and no log file of its own."""

    run: dict[str, Any] = field(default_factory=lambda: {"dir": "."})
    job_logging: dict[str, Any] = field(default_factory=lambda: {"root": {"handlers": None}})


def _trainer_of_a_run() -> TrainerConfig:
    # exp_manager brings logger and checkpoints
    return TrainerConfig(
        strategy="ddp", enable_checkpointing=False, logger=False, log_every_n_steps=1, accelerator="gpu"
    )


@dataclass
class NemoConfig:
    """A whole config."""

    name: str = MISSING
    model: Any = MISSING
    trainer: TrainerConfig = field(default_factory=_trainer_of_a_run)
    exp_manager: Any = field(default_factory=ExpManagerConfig)
    hydra: HydraConfig = field(default_factory=HydraConfig)


Section = TypeVar("Section", bound=ModelConfig)


class ModelConfigBuilder(Generic[Section]):
    """Collects what a `model` section says; `build` fills in what follows from it.

    Args:
        model_cfg: the section to begin with; it is edited.
    """

    def __init__(self, model_cfg: Section) -> None:
        self.model_cfg = model_cfg

    def set_train_ds(self, cfg: DatasetConfig | None = None) -> None:
        """Takes a `train_ds` section."""
        self.model_cfg.train_ds = cfg

    def set_validation_ds(self, cfg: DatasetConfig | None = None) -> None:
        """Takes a `validation_ds` section."""
        self.model_cfg.validation_ds = cfg

    def set_test_ds(self, cfg: DatasetConfig | None = None) -> None:
        """Takes a `test_ds` section."""
        self.model_cfg.test_ds = cfg

    def set_optim(self, cfg: OptimizerParams, sched_cfg: SchedulerParams | None = None) -> None:
        """Takes an optimizer and a schedule; their names are those of the classes, without `Params`."""
        name = type(cfg).__name__.removesuffix("Params").lower()
        section = _merged(OptimConfig(name=name), cfg)
        if sched_cfg is not None:
            sched_name = type(sched_cfg).__name__.removesuffix("Params")
            section.sched = _merged(SchedConfig(name=sched_name), sched_cfg)
        self.model_cfg.optim = section

    def _finalize_cfg(self) -> None:
        """Sets what follows from other values; a subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} has no _finalize_cfg")

    def build(self) -> Section:
        """The finished section."""
        self._finalize_cfg()
        return self.model_cfg


Base = TypeVar("Base", OptimConfig, SchedConfig)


def _merged(base: Base, params: Any) -> Base:
    """A dataclass of the kind of `base` with the values of both; those of `params` win."""
    own = {one.name: (one.type, getattr(params, one.name)) for one in fields(params)}
    kind = make_dataclass(f"{type(params).__name__}Section", [(name, Any, None) for name in own], bases=(type(base),))
    values = {one.name: getattr(base, one.name) for one in fields(base)}
    merged: Base = kind(**values | {name: value for name, (_, value) in own.items()})
    return merged
