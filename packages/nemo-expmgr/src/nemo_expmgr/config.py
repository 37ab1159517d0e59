"""The `exp_manager` section of a config: every field of NVIDIA's ExpManagerConfig, with its default.

A feature that this version does not have is an error when it is turned on (`NOT_BUILT`); its parameters are accepted,
since configs carry them with the feature off.
"""

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from nemo_config import ConfigError

# Switches of features that are not there yet: dotted field -> what to use meanwhile.
NOT_BUILT: dict[str, str] = {
    "create_wandb_logger": "pass a lightning.pytorch.loggers.WandbLogger to the Trainer",
    "create_mlflow_logger": "pass a lightning.pytorch.loggers.MLFlowLogger to the Trainer",
    "create_dllogger_logger": "use TensorBoard",
    "create_clearml_logger": "use TensorBoard",
    "create_neptune_logger": "pass a lightning.pytorch.loggers.NeptuneLogger to the Trainer",
    "create_ipl_epoch_stopper_callback": "leave it out",
    "create_straggler_detection_callback": "leave it out",
    "create_fault_tolerance_callback": "leave it out",
    "ema.enable": "pass a lightning.pytorch.callbacks.EMAWeightAveraging (Lightning 2.6) to the Trainer",
    "checkpoint_callback_params.async_save": "leave it out",
}

# Keys that are accepted and change nothing: the value that asks for something, and why it is not done.
WITHOUT_EFFECT: dict[str, tuple[bool, str]] = {
    "disable_validation_on_resume": (False, "a validation that was complete before the run ended is not repeated"),
    "log_tflops_per_sec_per_gpu": (True, "no model here counts its operations"),
}


@dataclass
class EarlyStoppingParams:
    """Arguments of Lightning's EarlyStopping."""

    monitor: str = "val_loss"
    mode: str = "min"
    min_delta: float = 0.001
    patience: int = 10
    verbose: bool = True
    strict: bool = True
    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None
    check_on_train_epoch_end: bool | None = None
    log_rank_zero_only: bool = False

    def __post_init__(self) -> None:
        _check_mode(self.mode)


@dataclass
class CheckpointParams:
    """When checkpoints are written, and what they are called.

    Attributes:
        filepath: the old way to give dirpath/filename.
        dirpath: folder; None is `<log folder>/checkpoints`.
        filename: Lightning's pattern; None is `<name>--{<monitor>:.4f}-{epoch}`.
        monitor: logged value by which checkpoints are ranked; None ranks none (save_top_k is then 1, 0 or -1).
        save_last: keeps `<filename>-last.ckpt` up to date.
        save_top_k: how many of the best are kept; -1 for all.
        every_n_epochs: counted at the end of validation, or of training with save_on_train_epoch_end.
        every_n_train_steps: in place of every_n_epochs.
        train_time_interval: in place of both: seconds, or the arguments of a timedelta, {minutes: 30}.
        prefix: name of the .nemo file; None is the experiment's name.
        postfix: its ending.
        save_best_model: the .nemo holds the best weights instead of the last.
        always_save_nemo: writes the .nemo with each checkpoint, not only at the end of training.
        save_nemo_on_train_end: writes it then.
        save_last_n_optim_states: -1; nothing else is offered.
    """

    filepath: str | None = None
    dirpath: str | None = None
    filename: str | None = None
    monitor: str | None = "val_loss"
    verbose: bool | None = True
    save_last: bool | None = True
    save_top_k: int | None = 3
    save_weights_only: bool | None = False
    mode: str | None = "min"
    auto_insert_metric_name: bool = True
    every_n_epochs: int | None = 1
    every_n_train_steps: int | None = None
    train_time_interval: Any = None
    prefix: str | None = None
    postfix: str = ".nemo"
    save_best_model: bool = False
    always_save_nemo: bool = False
    save_nemo_on_train_end: bool | None = True
    model_parallel_size: int | None = None
    save_on_train_epoch_end: bool | None = False
    async_save: bool | None = False
    save_last_n_optim_states: int | None = -1

    def __post_init__(self) -> None:
        if isinstance(self.train_time_interval, str):
            rule = "must be seconds, or a section such as {minutes: 30}"
            raise ValueError(f"train_time_interval: {self.train_time_interval!r} {rule}")
        _check_mode(self.mode)
        if self.monitor is None and self.save_top_k not in (None, -1, 0, 1):
            rule = "must be 1, 0 or -1 where monitor is null: nothing ranks the checkpoints"
            raise ValueError(f"save_top_k: {self.save_top_k} {rule}")
        if self.save_last_n_optim_states != -1:
            raise ValueError(f"save_last_n_optim_states: {self.save_last_n_optim_states} must be -1 in this version")
        if self.model_parallel_size not in (None, 1):
            raise ValueError(f"model_parallel_size: {self.model_parallel_size} must be 1 in this version")

    @property
    def time_interval(self) -> timedelta | None:
        """train_time_interval as a timedelta."""
        interval = self.train_time_interval
        if interval is None or isinstance(interval, timedelta):
            return interval
        if isinstance(interval, dict):
            return timedelta(**{key: value for key, value in interval.items() if key != "_target_"})
        return timedelta(seconds=interval)


@dataclass
class StepTimingParams:
    """How step times are measured.

    Attributes:
        reduction: of the times in the window: mean, min, max, sum or none (the list's last).
        sync_cuda: waits for the GPU before each reading.
        buffer_size: steps in the window; 0 or less for all.
    """

    reduction: str | None = "mean"
    sync_cuda: bool | None = False
    buffer_size: int | None = 1


@dataclass
class EMAParams:
    """Averages of the weights; not built yet."""

    enable: bool | None = False
    decay: float | None = 0.999
    cpu_offload: bool | None = False
    validate_original_weights: bool | None = False
    every_n_steps: int = 1


@dataclass
class ExpManagerConfig:
    """Where a run logs, what it resumes from, and which callbacks and loggers it has. None takes the default.

    Attributes:
        explicit_log_dir: the log folder; in place of exp_dir/name/version.
        exp_dir: parent folder; None is ./nemo_experiments.
        name: of the experiment, its folder and its .nemo file; None is "default".
        version: last folder; None is the environment's NEMO_EXPM_VERSION, else the time or version_N.
        use_datetime_version: the time, rather than version_0, version_1, ...
        resume_if_exists: no version folder, and the run goes on from the newest complete `*last.ckpt` in it.
        resume_past_end: also from `*end.ckpt`, which otherwise says that the run is complete, an error.
        resume_ignore_no_checkpoint: starts anew, rather than with an error, where there is none.
        resume_from_checkpoint: this file and no other.
        max_time_per_run: "DD:HH:MM:SS"; the run then writes its last checkpoint and stops.
        seconds_to_sleep: how long other processes wait for the first one to set up the folder.
        disable_validation_on_resume, log_tflops_per_sec_per_gpu: see WITHOUT_EFFECT.
        log_local_rank_0_only, log_global_rank_0_only: accepted; only the first process writes log files.
    """

    explicit_log_dir: str | None = None
    exp_dir: str | None = None
    name: str | None = None
    version: str | None = None
    use_datetime_version: bool | None = True
    resume_if_exists: bool | None = False
    resume_past_end: bool | None = False
    resume_ignore_no_checkpoint: bool | None = False
    resume_from_checkpoint: str | None = None
    create_tensorboard_logger: bool | None = True
    summary_writer_kwargs: dict[str, Any] | None = None
    create_wandb_logger: bool | None = False
    wandb_logger_kwargs: dict[str, Any] | None = None
    create_mlflow_logger: bool | None = False
    mlflow_logger_kwargs: dict[str, Any] | None = None
    create_dllogger_logger: bool | None = False
    dllogger_logger_kwargs: dict[str, Any] | None = None
    create_clearml_logger: bool | None = False
    clearml_logger_kwargs: dict[str, Any] | None = None
    create_neptune_logger: bool | None = False
    neptune_logger_kwargs: dict[str, Any] | None = None
    create_checkpoint_callback: bool | None = True
    checkpoint_callback_params: CheckpointParams | None = field(default_factory=CheckpointParams)
    create_early_stopping_callback: bool | None = False
    create_ipl_epoch_stopper_callback: bool | None = False
    early_stopping_callback_params: EarlyStoppingParams | None = field(default_factory=EarlyStoppingParams)
    ipl_epoch_stopper_callback_params: dict[str, Any] | None = None
    create_preemption_callback: bool | None = True
    files_to_copy: list[str] | None = None
    log_local_rank_0_only: bool | None = False
    log_global_rank_0_only: bool | None = False
    log_step_timing: bool | None = True
    log_delta_step_timing: bool | None = False
    step_timing_kwargs: StepTimingParams | None = field(default_factory=StepTimingParams)
    disable_validation_on_resume: bool | None = True
    ema: EMAParams | None = field(default_factory=EMAParams)
    max_time_per_run: str | None = None
    seconds_to_sleep: float = 5
    create_straggler_detection_callback: bool | None = False
    straggler_detection_params: dict[str, Any] | None = None
    create_fault_tolerance_callback: bool | None = False
    fault_tolerance: dict[str, Any] | None = None
    log_tflops_per_sec_per_gpu: bool | None = True

    def __post_init__(self) -> None:
        limit = self.max_time_per_run
        if limit is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", limit.strip()):
            raise ValueError(f"max_time_per_run: {limit!r} must be DD:HH:MM:SS, such as 00:03:30:00")

    @property
    def checkpoint(self) -> CheckpointParams:
        """checkpoint_callback_params, or its defaults for None."""
        return self.checkpoint_callback_params or CheckpointParams()


def _check_mode(mode: str | None) -> None:
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode: {mode!r} must be min or max")


def refuse_not_built(config: ExpManagerConfig, path: str = "exp_manager") -> None:
    """Raises ConfigError for a feature that is turned on and not there: better than a run without it."""
    for name, instead in NOT_BUILT.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value:
            raise ConfigError(f"{path}.{name}", value, f"is not available in this version; {instead}")
