"""How many optimizer steps a run has, from its epochs."""

import math


def compute_max_steps(
    *,
    max_epochs: int,
    num_samples: int,
    batch_size: int,
    accumulate_grad_batches: int = 1,
    limit_train_batches: float = 1.0,
    num_workers: int = 1,
    drop_last: bool = False,
) -> int:
    """Optimizer steps in `max_epochs` epochs.

    Each of `num_workers` devices sees ceil(num_samples / num_workers) samples of an epoch. An int limit (or 0.0) is a
    number of batches, a float a share of them. An incomplete accumulation at the end of an epoch still makes a step.

    Raises:
        ValueError: a count that is not positive.
    """
    for name, count in (("batch_size", batch_size), ("accumulate_grad_batches", accumulate_grad_batches)):
        if count < 1:
            raise ValueError(f"{name}: {count} must be positive")
    batches = math.ceil(num_samples / max(1, num_workers)) / batch_size
    per_epoch = math.floor(batches) if drop_last else math.ceil(batches)
    if isinstance(limit_train_batches, int):
        per_epoch = min(per_epoch, limit_train_batches)
    else:
        per_epoch = int(per_epoch * limit_train_batches)
    return math.ceil(per_epoch / accumulate_grad_batches) * max_epochs
