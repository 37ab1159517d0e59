"""Learning rate as a pure function of the step: lr = formula(step, base_lr, plan).

A run has up to four phases, in steps: warm-up `[0, warmup]`, hold `[warmup, hold_end)`, decay, and the floor `min_lr`
after `max_steps`. The formulas, their edges included (`<=` or `<`, which phase wins, what the decay counts from), give
the numbers of NVIDIA's nemo.core.optim.lr_scheduler, so that a config trains with the rates it always had. References:
Noam 1706.03762, Noam-hold 2206.00888, T5 1910.10683, warmup-stable-decay 2404.06395, 1-sqrt cooldown 2408.11029.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Decay = Callable[[float, float, "Plan"], float]


@dataclass(frozen=True)
class Plan:
    """The numbers of one schedule, ratios already turned into steps.

    Attributes:
        max_steps: last step of the decay; None for a run without end.
        warmup_steps: last step of the linear rise; 0 for none.
        hold_end: first step after the hold, warm-up included; 0 for no hold.
        constant_steps: steps at a constant rate (at the end for cosine, at the start for T5).
        min_lr: the floor.
    """

    max_steps: float | None = None
    warmup_steps: float = 0
    hold_end: float = 0
    constant_steps: float = 0
    min_lr: float = 0.0
    power: float = 1.0
    cycle: bool = False
    decay_rate: float = 0.5
    d_model: float = 1.0

    @property
    def end(self) -> float:
        """Last step of the decay; infinite where the run has no end."""
        return math.inf if self.max_steps is None else self.max_steps


def with_warmup(decay: Decay) -> Decay:
    """Linear rise to base_lr, then `decay`, then min_lr."""

    def formula(step: float, base_lr: float, plan: Plan) -> float:
        if plan.warmup_steps > 0 and step <= plan.warmup_steps:
            return warmup(step, base_lr, plan)
        return plan.min_lr if step > plan.end else decay(step, base_lr, plan)

    return formula


def with_hold(decay: Decay) -> Decay:
    """Linear rise, base_lr kept until hold_end, then `decay`, then min_lr."""

    def after_warmup(step: float, base_lr: float, plan: Plan) -> float:
        return plan.min_lr if step > plan.end else decay(step, base_lr, plan)

    def formula(step: float, base_lr: float, plan: Plan) -> float:
        if plan.warmup_steps > 0 and step <= plan.warmup_steps:
            return warmup(step, base_lr, plan)
        return base_lr if plan.warmup_steps <= step < plan.hold_end else after_warmup(step, base_lr, plan)

    return formula


def warmup(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr (step + 1) / (warmup + 1): never zero, and base_lr exactly at the last step of the warm-up."""
    return base_lr * (step + 1) / (plan.warmup_steps + 1)


def constant(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr."""
    return base_lr


def _progress(done: float, total: float) -> float:
    """done / total; a phase of no length is over."""
    return done / total if total else 1.0


def square(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr (1 - progress)^2 after the warm-up, not below min_lr."""
    remaining = 1 - _progress(step - plan.warmup_steps, plan.end - plan.warmup_steps)
    return max(base_lr * remaining**2, plan.min_lr)


def square_root(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr sqrt(1 - step / max_steps), not below min_lr; counted from step 0, so it falls at the warm-up's end."""
    return max(base_lr * (1 - _progress(step, plan.end)) ** 0.5, plan.min_lr)


def linear_to_floor(step: float, base_lr: float, plan: Plan) -> float:
    """From base_lr at the warm-up's end to min_lr at max_steps, in a line."""
    progress = _progress(step - plan.warmup_steps, plan.end - plan.warmup_steps)
    return plan.min_lr + (1 - progress) * (base_lr - plan.min_lr)


def linear_after_hold(step: float, base_lr: float, plan: Plan) -> float:
    """From base_lr at the hold's end to min_lr at max_steps, in a line."""
    return base_lr - (base_lr - plan.min_lr) * _progress(step - plan.hold_end, plan.end - plan.hold_end)


def one_minus_square_root(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr (1 - sqrt(progress)) after the hold, not below min_lr."""
    progress = _progress(step - plan.hold_end, plan.end - plan.hold_end)
    return max(plan.min_lr, base_lr * (1 - progress**0.5))


def inverse_square_root(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr sqrt((warmup + 1) / (step + 1))."""
    return base_lr / ((step + 1) / (plan.warmup_steps + 1)) ** 0.5


def polynomial(step: float, base_lr: float, plan: Plan) -> float:
    """(base_lr - min_lr) (1 - progress)^power + min_lr after the warm-up; see `_polynomial` for cycle."""
    return _polynomial(step - plan.warmup_steps, plan.end - plan.warmup_steps, base_lr, plan)


def polynomial_after_hold(step: float, base_lr: float, plan: Plan) -> float:
    """The same after the hold."""
    decay_steps = plan.end - max(plan.warmup_steps, plan.hold_end)
    return _polynomial(step - plan.hold_end, decay_steps, base_lr, plan)


def _polynomial(step: float, decay_steps: float, base_lr: float, plan: Plan) -> float:
    """`cycle` stretches the decay to the next multiple of decay_steps instead of staying at the floor."""
    if plan.cycle:
        decay_steps *= 1 if step == 0 else math.ceil(_progress(step, decay_steps))
    else:
        step = min(step, decay_steps)
    remaining: float = (1 - _progress(step, decay_steps)) ** plan.power
    return (base_lr - plan.min_lr) * remaining + plan.min_lr


def noam_hold(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr (warmup / (step - hold))^decay_rate, not below min_lr."""
    hold_steps = plan.hold_end - plan.warmup_steps if plan.hold_end > 0 else 0
    peak = max(1, plan.warmup_steps**plan.decay_rate)
    return max(base_lr * peak / max(1, (step - hold_steps) ** plan.decay_rate), plan.min_lr)


def noam(step: float, base_lr: float, plan: Plan) -> float:
    """base_lr / sqrt(d_model) min(1 / sqrt(step), step / warmup^1.5); min_lr bounds it only after the warm-up."""
    step = max(1, step)
    factor = step**-0.5
    if plan.warmup_steps > 0:
        factor = min(factor, step * plan.warmup_steps**-1.5)
    lr = base_lr * plan.d_model**-0.5 * factor
    return max(lr, plan.min_lr) if step > plan.warmup_steps else lr


def t5_inverse_square_root(step: float, base_lr: float, plan: Plan) -> float:
    """1 / sqrt(max(step, constant_steps)), then min_lr after max_steps; base_lr plays no part."""
    if step > plan.constant_steps and step > plan.end:
        return plan.min_lr
    return max(step, plan.constant_steps) ** -0.5


def cosine(step: float, base_lr: float, plan: Plan) -> float:
    """Half a cosine from base_lr to min_lr; with constant_steps, Megatron's form (see `_megatron_cosine`)."""
    if plan.constant_steps > 0:
        return _megatron_cosine(step, base_lr, plan)
    return _plain_cosine(step, base_lr, plan)


def _half_cosine(step: float, base_lr: float, plan: Plan) -> float:
    decay_steps = plan.end - plan.warmup_steps - plan.constant_steps
    share = 0.5 * (1 + math.cos(math.pi * _progress(step - plan.warmup_steps, decay_steps)))
    return (base_lr - plan.min_lr) * share + plan.min_lr


_plain_cosine = with_warmup(_half_cosine)


def _megatron_cosine(step: float, base_lr: float, plan: Plan) -> float:
    """The warm-up starts at zero (step / warmup), and min_lr is kept for the last constant_steps."""
    if plan.warmup_steps > 0 and step <= plan.warmup_steps:
        return base_lr * step / plan.warmup_steps
    return plan.min_lr if step > plan.end - plan.constant_steps else _half_cosine(step, base_lr, plan)
