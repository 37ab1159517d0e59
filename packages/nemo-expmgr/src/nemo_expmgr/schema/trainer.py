"""The `trainer` section: arguments of lightning.pytorch.Trainer."""

from dataclasses import dataclass
from typing import Any


@dataclass
class TrainerConfig:
    """`Trainer(**asdict(config))`; Lightning's documentation says what the arguments mean."""

    accelerator: str | None = "auto"
    strategy: Any = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: Any = 32
    logger: Any = True
    callbacks: Any = None
    fast_dev_run: Any = False
    max_epochs: int | None = 1000
    min_epochs: int | None = 1
    max_steps: int = -1
    min_steps: int | None = None
    max_time: Any = None
    limit_train_batches: Any = 1.0
    limit_val_batches: Any = 1.0
    limit_test_batches: Any = 1.0
    limit_predict_batches: Any = 1.0
    overfit_batches: Any = 0.0
    val_check_interval: Any = 1.0
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = 2
    log_every_n_steps: int = 50
    enable_checkpointing: bool = False
    enable_progress_bar: bool = True
    enable_model_summary: bool = True
    accumulate_grad_batches: Any = 1
    gradient_clip_val: float | None = 0.0
    gradient_clip_algorithm: str | None = "norm"
    deterministic: Any = False
    benchmark: bool | None = False
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: Any = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: Any = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | None = None
