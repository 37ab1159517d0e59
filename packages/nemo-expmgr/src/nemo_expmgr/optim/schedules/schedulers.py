"""The schedules under NVIDIA's names: one LRScheduler, and per name a formula and the keys it takes.

    scheduler = CosineAnnealing(optimizer, max_steps=100_000, warmup_steps=5_000, min_lr=1e-6)

Steps may be given as a number (`warmup_steps`) or as a share of max_steps (`warmup_ratio`), not both. A scheduler's
state holds where it stands, not its plan: a run that is resumed with another max_steps follows the new one.
"""

from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nemo_expmgr.optim.schedules import formulas
from nemo_expmgr.optim.schedules.formulas import Plan

_WARMUP = frozenset({"max_steps", "min_lr", "warmup_steps", "warmup_ratio"})
_HOLD = _WARMUP | {"hold_steps", "hold_ratio"}
_CONSTANT = frozenset({"constant_steps", "constant_ratio"})


class FormulaScheduler(LRScheduler):
    """Sets lr = formula(step, base_lr, plan) on each parameter group, step = 0, 1, 2, ...

    Args:
        optimizer: whose groups' lr at construction is base_lr.
        last_epoch: step of the last update; -1 for a new run (torch's name for the step counter).
        options: the keys in `keys`; one left out or None takes its default.

    Raises:
        ValueError: an option that this schedule does not take or cannot work with.
    """

    formula: "ClassVar[staticmethod[[float, float, Plan], float]]"
    keys: ClassVar[frozenset[str]] = _WARMUP
    needs_max_steps: ClassVar[bool] = True
    min_lr: ClassVar[float] = 0.0

    def __init__(self, optimizer: Optimizer, *, last_epoch: int = -1, **options: Any) -> None:
        self.plan = self._plan({key: value for key, value in options.items() if value is not None})
        self._check_base_lr(optimizer)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The rate of each group at this step."""
        formula = type(self).formula
        return [formula(self.last_epoch, float(base_lr), self.plan) for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The position only, as plain numbers."""
        names = ("last_epoch", "_step_count", "_last_lr", "base_lrs")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position; whatever else a state of NVIDIA's holds (its plan) is left alone."""
        self.__dict__.update({name: state_dict[name] for name in self.state_dict() if name in state_dict})

    @classmethod
    def _plan(cls, options: dict[str, Any]) -> Plan:
        unknown = sorted(options.keys() - cls.keys)
        if unknown:
            raise ValueError(f"{unknown[0]}: {cls.__name__} takes only {', '.join(sorted(cls.keys))}")
        max_steps = options.get("max_steps")
        if max_steps is None and cls.needs_max_steps:
            raise ValueError(f"max_steps: None must be given: {cls.__name__} needs the number of steps of the run")
        warmup = _phase_steps("warmup", options)
        hold = _phase_steps("hold", options)
        names = ("power", "cycle", "decay_rate", "d_model")
        return Plan(
            max_steps=max_steps,
            warmup_steps=warmup or 0,
            hold_end=0 if hold is None else hold + (warmup or 0),
            constant_steps=_phase_steps("constant", options) or 0,
            min_lr=options.get("min_lr", cls.min_lr),
            **{name: options[name] for name in names if name in options},
        )

    def _check_base_lr(self, optimizer: Optimizer) -> None:
        """A hook for formulas that cannot start from every rate."""


def _phase_steps(phase: str, options: dict[str, Any]) -> float | None:
    """Steps of a phase from `<phase>_steps` or `<phase>_ratio`; None where neither is given."""
    steps, ratio = options.get(f"{phase}_steps"), options.get(f"{phase}_ratio")
    if steps is not None and ratio is not None:
        raise ValueError(f"{phase}_steps: {steps} and {phase}_ratio {ratio} exclude each other")
    if ratio is None:
        return steps
    if options.get("max_steps") is None:
        raise ValueError(f"{phase}_ratio: {ratio} needs max_steps")
    return int(ratio * options["max_steps"])


class _AboveFloor(FormulaScheduler):
    """A schedule whose rates must start at or above min_lr."""

    def _check_base_lr(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            base_lr = group.get("initial_lr", group["lr"])
            if base_lr < self.plan.min_lr:
                raise ValueError(f"min_lr: {self.plan.min_lr} is above the optimizer's lr {base_lr}")


class WarmupPolicy(FormulaScheduler):
    """Warm-up, then a constant rate."""

    formula = staticmethod(formulas.with_warmup(formulas.constant))
    needs_max_steps = False


class WarmupHoldPolicy(FormulaScheduler):
    """Warm-up, then a constant rate; `hold_steps` is accepted and changes nothing."""

    formula = staticmethod(formulas.with_hold(formulas.constant))
    keys = _HOLD
    needs_max_steps = False


class SquareAnnealing(FormulaScheduler):
    """Warm-up, then a parabola down to min_lr (1e-5 by default)."""

    formula = staticmethod(formulas.with_warmup(formulas.square))
    min_lr = 1e-5


class SquareRootAnnealing(FormulaScheduler):
    """Warm-up, then sqrt(1 - step / max_steps)."""

    formula = staticmethod(formulas.with_warmup(formulas.square_root))


class CosineAnnealing(_AboveFloor):
    """Warm-up, half a cosine down to min_lr, and min_lr for the last `constant_steps`."""

    formula = staticmethod(formulas.cosine)
    keys = _WARMUP | _CONSTANT


class NoamAnnealing(_AboveFloor):
    """The Transformer's schedule; the optimizer's lr is a factor (typically 1 to 5), not the peak."""

    formula = staticmethod(formulas.noam)
    keys = _WARMUP | {"d_model"}
    needs_max_steps = False

    def __init__(self, optimizer: Optimizer, *, d_model: float, last_epoch: int = -1, **options: Any) -> None:
        super().__init__(optimizer, last_epoch=last_epoch, d_model=d_model, **options)


class NoamHoldAnnealing(FormulaScheduler):
    """Warm-up, hold, then an inverse power `decay_rate` of the step (Squeezeformer)."""

    formula = staticmethod(formulas.with_hold(formulas.noam_hold))
    keys = _HOLD | {"decay_rate"}

    def _check_base_lr(self, optimizer: Optimizer) -> None:
        if not self.plan.warmup_steps:
            raise ValueError(f"warmup_steps: {self.plan.warmup_steps} must be positive for NoamHoldAnnealing")


class WarmupAnnealing(FormulaScheduler):
    """Warm-up, then a line to min_lr."""

    formula = staticmethod(formulas.with_warmup(formulas.linear_to_floor))


class InverseSquareRootAnnealing(FormulaScheduler):
    """Warm-up, then sqrt((warmup + 1) / (step + 1))."""

    formula = staticmethod(formulas.with_warmup(formulas.inverse_square_root))
    needs_max_steps = False


class T5InverseSquareRootAnnealing(FormulaScheduler):
    """1 / sqrt(max(step, constant_steps)); the optimizer's lr plays no part."""

    formula = staticmethod(formulas.t5_inverse_square_root)
    keys = _CONSTANT | {"max_steps", "min_lr"}
    needs_max_steps = False

    def _check_base_lr(self, optimizer: Optimizer) -> None:
        if self.plan.constant_steps <= 0:
            raise ValueError(f"constant_steps: {self.plan.constant_steps} must be positive")


class PolynomialDecayAnnealing(FormulaScheduler):
    """Warm-up, then (1 - progress)^power, repeated where `cycle` is true."""

    formula = staticmethod(formulas.with_warmup(formulas.polynomial))
    keys = _WARMUP | {"power", "cycle"}


class PolynomialHoldDecayAnnealing(FormulaScheduler):
    """Warm-up, hold, then (1 - progress)^power."""

    formula = staticmethod(formulas.with_hold(formulas.polynomial_after_hold))
    keys = _HOLD | {"power", "cycle"}


class WarmupHoldAnnealLinear(FormulaScheduler):
    """Warm-up, hold, then a line to min_lr (warmup-stable-decay)."""

    formula = staticmethod(formulas.with_hold(formulas.linear_after_hold))
    keys = _HOLD


class WarmupHoldAnnealOneMinusSquareRoot(FormulaScheduler):
    """Warm-up, hold, then 1 - sqrt(progress)."""

    formula = staticmethod(formulas.with_hold(formulas.one_minus_square_root))
    keys = _HOLD
