"""Schedules against closed forms, against the rates of nemo_toolkit 3.0.0, and the way from a config to one."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_config import ConfigError
from nemo_expmgr.optim import (
    available_schedulers,
    build_schedule,
    register_scheduler,
    schedule_steps,
)

LR, M, W, H, MIN = 0.1, 50, 5, 7, 1e-3  # the optimizer's lr, max_steps, warm-up, hold, floor
STEPS = (0, 1, 4, 5, 6, 11, 12, 13, 25, 49, 50)
GOLDEN = Path(__file__).parents[1] / "golden" / "lr_schedules" / "nemo_toolkit_3.0.0.jsonl"


def sgd(lr=LR, groups=1):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=lr)


def rates(section, steps, lr=LR, max_steps=M):
    """The lr after construction and after each of `steps` updates."""
    optimizer = sgd(lr)
    scheduler = build_schedule(section, optimizer, max_steps=max_steps)["scheduler"]
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def progress(step, start=W):
    return (step - start) / (M - start)


CLOSED_FORMS = {
    "WarmupPolicy": ({}, lambda s: LR),
    "WarmupHoldPolicy": ({"hold_steps": H}, lambda s: LR),
    "SquareAnnealing": ({}, lambda s: max(LR * (1 - progress(s)) ** 2, MIN)),
    "SquareRootAnnealing": ({}, lambda s: max(LR * math.sqrt(1 - s / M), MIN)),
    "CosineAnnealing": ({}, lambda s: MIN + (LR - MIN) * (1 + math.cos(math.pi * progress(s))) / 2),
    "WarmupAnnealing": ({}, lambda s: LR + (MIN - LR) * progress(s)),
    "InverseSquareRootAnnealing": ({}, lambda s: LR * math.sqrt((W + 1) / (s + 1))),
    "PolynomialDecayAnnealing": ({"power": 2.0}, lambda s: MIN + (LR - MIN) * (1 - progress(s)) ** 2),
    "NoamHoldAnnealing": (
        {"hold_steps": H},
        lambda s: LR if s < W + H else max(LR * math.sqrt(W / (s - H)), MIN),
    ),
    "PolynomialHoldDecayAnnealing": (
        {"hold_steps": H},
        lambda s: LR if s < W + H else MIN + (LR - MIN) * (1 - progress(s, W + H)),
    ),
    "WarmupHoldAnnealLinear": (
        {"hold_steps": H},
        lambda s: LR if s < W + H else LR + (MIN - LR) * progress(s, W + H),
    ),
    "WarmupHoldAnnealOneMinusSquareRoot": (
        {"hold_steps": H},
        lambda s: LR if s < W + H else max(LR * (1 - math.sqrt(progress(s, W + H))), MIN),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_schedule_rises_linearly_and_then_follows_its_formula_and_ends_at_the_floor(name):
    options, formula = CLOSED_FORMS[name]
    found = rates({"name": name, "warmup_steps": W, "min_lr": MIN, **options}, M + 5)
    for step in STEPS:
        expected = LR * (step + 1) / (W + 1) if step <= W else formula(step)
        assert found[step] == pytest.approx(expected, rel=1e-12), step
    assert found[M + 1 :] == [MIN] * 5


def test_noam_is_the_transformers_formula():
    found = rates({"name": "NoamAnnealing", "d_model": 64, "warmup_steps": 10, "min_lr": 1e-6}, 60, lr=2.0)
    for step in (1, 5, 10, 11, 60):
        assert found[step] == pytest.approx(2.0 * 64**-0.5 * min(step**-0.5, step * 10**-1.5), rel=1e-12)
    assert found[0] == found[1]


def test_t5_is_the_inverse_square_root_of_the_step_whatever_the_lr():
    found = rates({"name": "T5InverseSquareRootAnnealing", "constant_steps": 9, "min_lr": MIN}, M + 1)
    assert found[3] == pytest.approx(1 / 3)
    assert found[25] == pytest.approx(1 / 5)
    assert found[M + 1] == MIN


def test_cosine_with_constant_steps_starts_at_zero_and_ends_on_the_floor():
    found = rates({"name": "CosineAnnealing", "warmup_steps": W, "constant_steps": 8, "min_lr": MIN}, M)
    decay_end = M - 8
    middle = (W + decay_end) // 2
    assert found[0] == 0.0
    assert found[W] == LR
    share = (1 + math.cos(math.pi * (middle - W) / (decay_end - W))) / 2
    assert found[middle] == pytest.approx(MIN + (LR - MIN) * share)
    assert found[decay_end + 1 :] == [MIN] * 8


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("StepLR", {"step_size": 10, "gamma": 0.5}, lambda s: LR * 0.5 ** (s // 10)),
        ("ExponentialLR", {"gamma": 0.9}, lambda s: LR * 0.9**s),
        (
            "CyclicLR",
            {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, "cycle_momentum": False},
            lambda s: 0.01 + 0.09 * (1 - abs((s % 10) / 5 - 1)),
        ),
    ],
)
def test_torchs_own_schedules_go_by_their_names(name, options, formula):
    found = rates({"name": name, **options}, 30)
    assert found == pytest.approx([formula(s) for s in range(31)])


def test_plateau_schedule_waits_for_the_monitored_value():
    built = build_schedule(
        {"name": "ReduceLROnPlateau", "factor": 0.5, "patience": 0, "monitor": "val_wer", "verbose": False}, sgd()
    )
    assert (built["interval"], built["monitor"], built["reduce_on_plateau"]) == ("epoch", "val_wer", True)
    scheduler = built["scheduler"]
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert scheduler.optimizer.param_groups[0]["lr"] == LR * 0.5


def golden_cases():
    return [json.loads(line) for line in GOLDEN.read_text().splitlines()]


@pytest.mark.parametrize("name", sorted({case["name"] for case in golden_cases()}))
def test_rates_equal_those_of_nemo_toolkit(name):
    cases = [case for case in golden_cases() if case["name"] == name]
    for case in cases:
        options = dict(case["options"])
        max_steps = options.pop("max_steps", None)
        last = max(map(int, case["rates"]))
        found = rates({"name": name, **options}, last, lr=case["lr"], max_steps=max_steps)
        for step, rate in case["rates"].items():
            assert found[int(step)] == pytest.approx(rate, rel=1e-12, abs=1e-15), (case["options"], step)


def test_all_eighteen_names_are_there():
    assert len(set(available_schedulers()) & (set(CLOSED_FORMS) | {case["name"] for case in golden_cases()})) == 17
    assert "ReduceLROnPlateau" in available_schedulers()


def test_ratios_are_shares_of_max_steps():
    by_steps = rates({"name": "PolynomialHoldDecayAnnealing", "warmup_steps": 5, "hold_steps": 10}, M)
    by_ratio = rates({"name": "PolynomialHoldDecayAnnealing", "warmup_ratio": 0.1, "hold_ratio": 0.2}, M)
    assert by_steps == by_ratio


def test_each_parameter_group_keeps_its_own_rate():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 0.2}])
    scheduler = build_schedule({"name": "WarmupAnnealing"}, optimizer, max_steps=10)["scheduler"]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])


def test_a_restored_schedule_goes_on_where_it_stood_and_follows_the_new_plan():
    whole = rates({"name": "CosineAnnealing"}, 20)
    optimizer = sgd()
    first = build_schedule({"name": "CosineAnnealing"}, optimizer, max_steps=M)["scheduler"]
    for _ in range(10):
        optimizer.step()
        first.step()
    again = build_schedule({"name": "CosineAnnealing"}, optimizer, max_steps=M)["scheduler"]
    again.load_state_dict({**first.state_dict(), "max_steps": 3, "warmup_steps": 99})  # NVIDIA's states hold a plan
    again.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(whole[11])


def test_lightning_gets_the_dict_that_it_expects():
    built = build_schedule({"name": "WarmupPolicy", "warmup_steps": 3}, sgd(), max_steps=10)
    assert {key: built[key] for key in built if key != "scheduler"} == {
        "interval": "step",
        "frequency": 1,
        "monitor": "loss",
        "reduce_on_plateau": False,
    }
    assert build_schedule(None, sgd()) is None


def test_numbers_as_text_run_time_keys_and_the_older_layout_are_read():
    new = {
        "name": "cosineannealing",
        "warmup_steps": 5,
        "warmup_ratio": None,
        "min_lr": "1e-3",
        "last_epoch": -1,
        "args": "auto",
        "iters_per_batch": None,
        "t_max_epochs": 3,
        "t_accumulate_grad_batches": 1,
        "t_limit_train_batches": 1.0,
        "t_num_workers": 1,
        "monitor": "val_loss",
        "reduce_on_plateau": False,
    }
    old = {
        "name": "CosineAnnealing",
        "max_steps": M,
        "args": {"name": "auto", "params": {"warmup_steps": 5, "min_lr": 1e-3}},
    }
    expected = rates({"name": "CosineAnnealing", "warmup_steps": 5, "min_lr": 1e-3}, M)
    assert rates(OmegaConf.create(new), M) == expected
    assert rates(old, M, max_steps=None) == expected


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "CosinAnnealing"},
            "sched.name: 'CosinAnnealing' is no known schedule; did you mean Cosine",
        ),
        (
            {"name": "CosineAnnealing", "warmup_step": 5},
            "optim.sched.warmup_step: 5 .*optim.sched.warmup_st",
        ),
        ({"name": "CosineAnnealing", "power": 5}, "model.optim.sched.power: 5 "),
        ({"name": "CosineAnnealing", "min_lr": 1.0}, "model.optim.sched.min_lr: 1.0 is above the optimizer's lr 0.1"),
        (
            {"name": "WarmupPolicy", "warmup_steps": 5, "warmup_ratio": 0.1},
            "warmup_steps: 5 and warmup_ratio 0.1",
        ),
        ({"name": "NoamAnnealing"}, "model.optim.sched.d_model: must be given"),
        ({"name": "NoamAnnealing", "d_model": "???"}, "model.optim.sched.d_model: "),
        ({"name": "NoamHoldAnnealing"}, "warmup_steps"),
        ({}, "model.optim.sched.name: None is no known schedule"),
    ],
)
def test_a_mistyped_schedule_is_an_error_with_path_and_value(section, message):
    with pytest.raises(ConfigError, match=message):
        build_schedule(section, sgd(), max_steps=M)


def test_a_decay_without_an_end_is_an_error():
    for endless in (None, -1, math.inf):
        with pytest.raises(ConfigError, match=r"model\.optim\.sched\.max_steps: None must be given"):
            build_schedule({"name": "CosineAnnealing"}, sgd(), max_steps=endless)
    assert build_schedule({"name": "CosineAnnealing", "max_steps": 9}, sgd())["scheduler"].plan.max_steps == 9


def test_a_registered_schedule_is_built_by_its_name_and_no_name_is_taken_twice():
    class Halving(torch.optim.lr_scheduler.LambdaLR):
        def __init__(self, optimizer, every, last_epoch=-1):
            super().__init__(optimizer, lambda step: 0.5 ** (step // every), last_epoch)

    register_scheduler("Halving", Halving)
    assert rates({"name": "Halving", "every": 2}, 4) == pytest.approx([LR, LR, LR / 2, LR / 2, LR / 4])
    for taken in ("Halving", "halving", "CosineAnnealing"):
        with pytest.raises(ValueError, match="taken"):
            register_scheduler(taken, Halving)


def trainer_for(**options):
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **options)


def test_schedule_steps_are_the_trainers_then_the_sections():
    assert schedule_steps(trainer_for(max_steps=7), {"max_steps": 9}) == 7
    assert schedule_steps(trainer_for(max_epochs=3), {"max_steps": 9}) == 9
    assert schedule_steps(trainer_for(max_epochs=-1), {"max_steps": -1}) is None
    assert schedule_steps(None, None) is None


class Counted(LightningModule):
    """Asks for the number of steps where a model does."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        self.found = schedule_steps(self.trainer, {"max_steps": None})
        return torch.optim.SGD(self.parameters(), 0.1)


def test_steps_are_counted_from_epochs_batches_and_accumulation():
    model, trainer = Counted(), trainer_for(max_epochs=3, accumulate_grad_batches=4)
    trainer.fit(model, DataLoader(torch.zeros(21, 1), batch_size=4))
    assert model.found == trainer.global_step == 6  # 6 batches an epoch, of which the last 2 make a step, too
