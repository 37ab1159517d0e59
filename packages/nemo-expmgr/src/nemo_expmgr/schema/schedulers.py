"""Arguments of schedules as dataclasses: `CosineAnnealingParams` for the schedule `CosineAnnealing`.

max_steps is computed from the trainer where it is None (NVIDIA's classes say 0).
"""

from dataclasses import dataclass


@dataclass
class SchedulerParams:
    """What every schedule takes."""

    last_epoch: int = -1


@dataclass
class WarmupSchedulerParams(SchedulerParams):
    """A rise over the first steps, in number or as a share of all."""

    max_steps: int | None = None
    warmup_steps: float | None = None
    warmup_ratio: float | None = None


@dataclass
class WarmupHoldSchedulerParams(WarmupSchedulerParams):
    """Then a while at the top."""

    hold_steps: float | None = None
    hold_ratio: float | None = None
    min_lr: float = 0.0


@dataclass
class WarmupAnnealingHoldSchedulerParams(WarmupSchedulerParams):
    """A while at the bottom, at the end."""

    constant_steps: float | None = None
    constant_ratio: float | None = None
    min_lr: float = 0.0


@dataclass
class SquareAnnealingParams(WarmupSchedulerParams):
    """The square of what is left."""

    min_lr: float = 1e-5


@dataclass
class SquareRootAnnealingParams(WarmupSchedulerParams):
    """The square root of what is left."""

    min_lr: float = 0.0


@dataclass
class CosineAnnealingParams(WarmupAnnealingHoldSchedulerParams):
    """Half a cosine."""


@dataclass
class NoamAnnealingParams(WarmupSchedulerParams):
    """Vaswani et al. 2017; takes d_model, too."""

    d_model: int | None = None
    min_lr: float = 0.0


@dataclass
class NoamHoldAnnealingParams(WarmupHoldSchedulerParams):
    """Kim et al. 2022 (Squeezeformer)."""

    decay_rate: float = 0.5


@dataclass
class WarmupAnnealingParams(WarmupSchedulerParams):
    """A straight line down."""


@dataclass
class InverseSquareRootAnnealingParams(WarmupSchedulerParams):
    """One over the square root of the steps."""


@dataclass
class PolynomialDecayAnnealingParams(WarmupSchedulerParams):
    """A power of what is left."""

    power: float = 1.0
    cycle: bool = False


@dataclass
class PolynomialHoldDecayAnnealingParams(WarmupHoldSchedulerParams):
    """The same, after a while at the top."""

    power: float = 1.0
    cycle: bool = False
