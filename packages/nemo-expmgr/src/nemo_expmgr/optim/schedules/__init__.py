"""Learning-rate schedules by NVIDIA's names and keys."""

from nemo_expmgr.optim.schedules.build import (
    available_schedulers,
    build_schedule,
    register_scheduler,
    schedule_steps,
)
from nemo_expmgr.optim.schedules.schedulers import (
    CosineAnnealing,
    FormulaScheduler,
    InverseSquareRootAnnealing,
    NoamAnnealing,
    NoamHoldAnnealing,
    PolynomialDecayAnnealing,
    PolynomialHoldDecayAnnealing,
    SquareAnnealing,
    SquareRootAnnealing,
    T5InverseSquareRootAnnealing,
    WarmupAnnealing,
    WarmupHoldAnnealLinear,
    WarmupHoldAnnealOneMinusSquareRoot,
    WarmupHoldPolicy,
    WarmupPolicy,
)

__all__ = [
    "CosineAnnealing",
    "FormulaScheduler",
    "InverseSquareRootAnnealing",
    "NoamAnnealing",
    "NoamHoldAnnealing",
    "PolynomialDecayAnnealing",
    "PolynomialHoldDecayAnnealing",
    "SquareAnnealing",
    "SquareRootAnnealing",
    "T5InverseSquareRootAnnealing",
    "WarmupAnnealing",
    "WarmupHoldAnnealLinear",
    "WarmupHoldAnnealOneMinusSquareRoot",
    "WarmupHoldPolicy",
    "WarmupPolicy",
    "available_schedulers",
    "build_schedule",
    "register_scheduler",
    "schedule_steps",
]
