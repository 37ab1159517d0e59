"""exp_manager on a plain LightningModule: folders, logs, checkpoints, the .nemo file, resume, time limit, SIGTERM."""

import logging
import os
import re
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_config import ConfigError
from nemo_expmgr import exp_manager
from nemo_expmgr.callbacks.checkpoint import NeMoModelCheckpoint
from nemo_expmgr.callbacks.time_limit import StatelessTimer
from nemo_expmgr.callbacks.timing import StepTiming
from nemo_expmgr.config import NOT_BUILT, CheckpointParams, ExpManagerConfig
from nemo_expmgr.loggers import LOG_FILES


class Plain(LightningModule):
    """Fits a line; 4 batches an epoch; val_loss is what `losses` says for each validation in turn."""

    def __init__(self, losses=(3.0, 1.0, 2.0, 4.0)):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.losses = losses
        self.validations = 0
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.global_step)
        return (self.layer(batch) - batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.losses[min(self.current_epoch, len(self.losses) - 1)])

    def on_validation_epoch_start(self):
        if not self.trainer.sanity_checking:
            self.validations += 1

    def test_step(self, batch, batch_idx):
        self.log("weight", self.layer.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

    def train_dataloader(self):
        return DataLoader(torch.arange(1.0, 9.0)[:, None], batch_size=2)

    def val_dataloader(self):
        return DataLoader(torch.ones(1, 1))

    test_dataloader = val_dataloader


class Saving(Plain):
    """With the one method that the experiment manager asks for."""

    def save_to(self, path):
        torch.save({"weight": self.layer.weight.item(), "step": self.global_step}, path)


class StopAt(Callback):
    """Does something once at a step: what ends a run early."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            self.action()


def make_trainer(max_epochs=2, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    return Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEMO_EXPM_VERSION", raising=False)


def run(section, model=None, fit=True, **options):
    """One run in ./exp; returns its folder, model and trainer."""
    trainer = make_trainer(**options)
    folder = exp_manager(trainer, {"exp_dir": "exp", "name": "tiny", **section})
    model = model or Saving()
    if fit:
        trainer.fit(model)
    return folder, model, trainer


RESUME = {"resume_if_exists": True, "resume_ignore_no_checkpoint": True}


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


# Folders


def test_default_folder_is_named_by_the_time():
    folder = exp_manager(make_trainer(), {})
    assert folder.parent == Path.cwd() / "nemo_experiments" / "default"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)


def test_versions_are_counted_without_datetime():
    section = {"exp_dir": "exp", "name": "n", "use_datetime_version": False}
    found = [exp_manager(make_trainer(), section).name for _ in range(3)]
    assert found == ["version_0", "version_1", "version_2"]


def test_runs_that_start_within_one_second_have_their_own_folders(monkeypatch):
    monkeypatch.setattr("nemo_expmgr.paths.time.strftime", lambda _: "2026-11-22_17-03-59")
    found = [exp_manager(make_trainer(), {"exp_dir": "exp"}).name for _ in range(3)]
    assert found == ["2026-11-22_17-03-59", "2026-11-22_17-03-59_1", "2026-11-22_17-03-59_2"]


def test_a_version_is_handed_to_the_processes_of_one_run_and_not_to_the_next_run():
    several = {"devices": 2, "strategy": "ddp"}
    section = {"exp_dir": "exp", "name": "n", "use_datetime_version": False}
    for expected in ("version_0", "version_1"):
        assert exp_manager(make_trainer(**several), section).name == expected
        assert os.environ["NEMO_EXPM_VERSION"] == expected
    assert exp_manager(make_trainer(**several), {**section, **RESUME}).name == "n"
    assert "NEMO_EXPM_VERSION" not in os.environ


def test_version_comes_from_the_config_before_the_environment(monkeypatch):
    monkeypatch.setenv("NEMO_EXPM_VERSION", "from_environment")
    assert exp_manager(make_trainer(), {"name": "n"}).name == "from_environment"
    assert exp_manager(make_trainer(), {"name": "n", "version": "mine"}).name == "mine"


def test_explicit_folder_is_the_folder():
    folder, _, trainer = run({"explicit_log_dir": "here", "exp_dir": None}, max_epochs=1)
    assert folder == Path("here")
    assert names(folder, "checkpoints/*.nemo") == ["tiny.nemo"]
    assert Path(trainer.logger.log_dir) == folder
    assert names(folder, "events.out.*")


def test_in_an_explicit_folder_only_what_a_run_left_is_moved_aside():
    Path("train.py").write_text("mine")
    for _ in range(2):
        folder, _, _ = run({"explicit_log_dir": ".", "exp_dir": None}, fit=False)
    assert {"cmd-args.log", "nemo_log.txt"} <= set(names(folder / "run_0")) <= set(LOG_FILES)
    assert Path("train.py").read_text() == "mine"


def test_a_trainers_own_logger_decides_the_folder_where_ours_is_off(tmp_path):
    trainer = make_trainer(logger=CSVLogger(tmp_path / "csv", name="mine", version=7))
    folder = exp_manager(trainer, {"create_tensorboard_logger": False})
    assert folder == tmp_path / "csv" / "mine" / "version_7"


def test_without_a_section_or_in_a_fast_dev_run_nothing_is_done(tmp_path):
    assert exp_manager(make_trainer(), None) is None
    assert exp_manager(make_trainer(fast_dev_run=True), {}) is None
    assert list(tmp_path.iterdir()) == []


# What a run leaves


def test_a_run_leaves_logs_checkpoints_and_the_nemo_file():
    folder, model, trainer = run({"use_datetime_version": False}, max_epochs=4)
    assert folder == Path("exp/tiny/version_0")
    assert names(folder, "events.out.tfevents*")
    assert "cmd-args.log" in names(folder, "*.log")
    assert "This run logs to" in (folder / "nemo_log.txt").read_text()
    assert names(folder / "checkpoints") == [
        "tiny--val_loss=1.0000-epoch=1.ckpt",
        "tiny--val_loss=2.0000-epoch=2.ckpt",
        "tiny--val_loss=3.0000-epoch=0.ckpt",
        "tiny--val_loss=4.0000-epoch=3-last.ckpt",
        "tiny.nemo",
    ]
    assert torch.load(folder / "checkpoints" / "tiny.nemo") == {"weight": model.layer.weight.item(), "step": 16}
    assert trainer.checkpoint_callback.best_model_score == 1.0


def test_step_times_are_logged_and_shown():
    _, _, trainer = run({}, max_epochs=1)
    logged = trainer.logged_metrics.keys() | trainer.callback_metrics.keys()
    assert {"train_step_timing in s", "train_backward_timing in s", "validation_step_timing in s"} <= logged
    assert "train_step_timing in s" in trainer.progress_bar_metrics
    assert not any(isinstance(c, StepTiming) for c in run({"log_step_timing": False}, fit=False)[2].callbacks)


def test_delta_step_times_go_to_the_log_file():
    folder, _, _ = run({"log_delta_step_timing": True}, max_epochs=1)
    assert (folder / "nemo_log.txt").read_text().count("train_step_timing in s=") == 4


def test_the_best_weights_are_saved_where_asked_for():
    folder, _, trainer = run({"checkpoint_callback_params": {"save_best_model": True}}, max_epochs=4)
    best = torch.load(trainer.checkpoint_callback.best_model_path)
    saved = torch.load(folder / "checkpoints" / "tiny.nemo")
    assert best["global_step"] == 8
    assert saved["weight"] == best["state_dict"]["layer.weight"].item()


@pytest.mark.parametrize(("best", "steps"), [(False, [4, 4, 8, 8, 12, 12]), (True, [4, 8])])
def test_the_nemo_file_is_written_with_each_checkpoint_where_asked_for(best, steps):
    class Counting(Plain):
        def __init__(self):
            super().__init__()
            self.saved_at = []

        def save_to(self, path):
            self.saved_at.append(self.global_step)

    params = {"always_save_nemo": True, "save_best_model": best, "save_nemo_on_train_end": False}
    _, model, _ = run({"checkpoint_callback_params": params}, Counting(), max_epochs=3)
    assert model.saved_at == steps


def test_prefix_postfix_folder_and_pattern_of_checkpoints_are_the_configs():
    params = {"dirpath": "ckpts", "filename": "{epoch}-{step}", "prefix": "best", "postfix": ".model", "save_top_k": 1}
    run({"checkpoint_callback_params": params}, max_epochs=2)
    found = names(Path("ckpts"))
    assert "best.model" in found
    assert {name for name in found if "last" in name} == {"epoch=1-step=8-last.ckpt"}
    assert len(found) == 3


def test_steps_past_the_last_validation_are_in_the_last_checkpoint():
    folder, _, _ = run({}, max_epochs=10, max_steps=6)
    (last,) = (folder / "checkpoints").glob("*-last.ckpt")
    assert torch.load(last)["global_step"] == 6


def test_a_model_without_save_to_is_told_once_and_trained(caplog):
    with caplog.at_level(logging.WARNING, logger="nemo_expmgr"):
        folder, _, _ = run({"checkpoint_callback_params": {"always_save_nemo": True}}, Plain())
    assert [record.message for record in caplog.records if "save_to" in record.message] == [
        "Plain has no save_to(path): no .nemo file is written."
    ]
    assert names(folder, "checkpoints/*-last.ckpt")


def test_early_stopping_stops():
    section = {"create_early_stopping_callback": True, "early_stopping_callback_params": {"patience": 1}}
    _, _, trainer = run(section, Saving((1.0, 2.0, 2.0, 2.0)), max_epochs=9)
    assert trainer.current_epoch == 2
    (early,) = (c for c in trainer.callbacks if isinstance(c, EarlyStopping))
    assert (early.monitor, early.mode, early.min_delta) == ("val_loss", "min", -0.001)


def test_files_are_copied_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    folder, _, _ = run({"files_to_copy": ["notes.txt"]}, fit=False)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"exp_manager\.files_to_copy\.0: 'gone\.txt' is no file"):
        run({"files_to_copy": ["gone.txt"]}, fit=False)


def test_warnings_of_any_library_are_in_the_error_log():
    folder, _, _ = run({}, fit=False)
    logging.getLogger("some.library").warning("careful")
    logging.getLogger("lightning.pytorch.anything").info("hello")
    assert "careful" in (folder / "nemo_error_log.txt").read_text()
    assert "hello" in (folder / "lightning_logs.txt").read_text()
    second, _, _ = run({"version": "second"}, fit=False)
    logging.getLogger("some.library").warning("only in the second")
    assert "only in the second" not in (folder / "nemo_error_log.txt").read_text()
    assert "only in the second" in (second / "nemo_error_log.txt").read_text()


# Resume


def test_a_resumed_run_counts_on_and_ends_with_the_same_weights():
    torch.manual_seed(0)
    _, whole, _ = run({"version": "whole"}, max_epochs=4)
    torch.manual_seed(0)
    folder, _, _ = run(RESUME, max_epochs=2)
    assert folder == Path("exp/tiny")
    again, second, trainer = run(RESUME, max_epochs=4)
    assert (again, trainer.global_step) == (folder, 16)
    assert second.seen == list(range(8, 16))
    assert second.validations == 2
    torch.testing.assert_close(second.layer.weight, whole.layer.weight, rtol=0, atol=0)
    assert names(folder, "checkpoints/*-last.ckpt") == ["tiny--val_loss=4.0000-epoch=3-last.ckpt"]
    assert trainer.checkpoint_callback.best_model_score == 1.0
    assert len(trainer.checkpoint_callback.best_k_models) == 3
    assert "cmd-args.log" in names(folder / "run_0")
    assert len(names(folder, "events.out.tfevents*")) == 2


def test_a_checkpoint_with_an_omegaconf_config_as_nvidias_have_it_is_resumed():
    folder, _, _ = run(RESUME, max_epochs=1)
    (last,) = (folder / "checkpoints").glob("*-last.ckpt")
    config = OmegaConf.create({"cfg": {"encoder": {"layers": [1, 2.5, None, "${encoder}"]}}})
    torch.save({**torch.load(last), "hyper_parameters": config, "hparams_type": type(config)}, last)
    _, model, _ = run(RESUME, max_epochs=2)
    assert model.seen == [4, 5, 6, 7]


def test_a_run_that_ended_at_max_steps_goes_on_with_the_next_epoch():
    run(RESUME, max_epochs=3, max_steps=6)
    _, model, _ = run(RESUME, max_epochs=3)
    assert model.seen == [6, 7, 8, 9]


def test_the_last_checkpoint_is_up_to_date_also_where_validation_gets_worse():
    section = {**RESUME, "checkpoint_callback_params": {"save_top_k": 1}}
    with pytest.raises(RuntimeError, match="killed"):
        run(section, Saving((1.0, 2.0, 3.0, 4.0)), callbacks=[StopAt(13, kill)], max_epochs=4)
    _, model, trainer = run(section, Saving((9.0,)), max_epochs=4)
    assert model.seen == [12, 13, 14, 15]
    assert trainer.checkpoint_callback.best_model_score == 1.0


def test_a_validation_that_was_complete_is_not_repeated():
    interval = {"val_check_interval": 2}
    with pytest.raises(RuntimeError, match="killed"):
        run(RESUME, max_epochs=2, callbacks=[StopAt(2, kill)], **interval)
    _, model, _ = run(RESUME, max_epochs=2, **interval)
    assert model.seen == list(range(2, 8))
    assert model.validations == 3


def kill():
    raise RuntimeError("killed")


def test_testing_after_a_resumed_fit_tests_the_new_weights():
    run(RESUME, max_epochs=1)
    _, model, trainer = run(RESUME, max_epochs=3)
    (found,) = trainer.test(model, verbose=False)
    assert found["weight"] == pytest.approx(model.layer.weight.item())
    assert torch.load(Path("exp/tiny/checkpoints/tiny.nemo"))["weight"] == pytest.approx(found["weight"])


def test_of_two_last_files_the_one_with_more_steps_is_taken():
    folder, _, _ = run(RESUME, max_epochs=2)
    (newest,) = (folder / "checkpoints").glob("*-last.ckpt")
    older = newest.with_name("tiny--val_loss=9.0000-epoch=0-last.ckpt")
    torch.save({**torch.load(newest), "global_step": 4}, older)
    os.utime(newest, (0, 0))
    assert Path(run(RESUME, fit=False)[2].ckpt_path) == newest


def test_truncated_and_marked_checkpoints_are_passed_over():
    folder, _, _ = run(RESUME, max_epochs=2)
    (good,) = (folder / "checkpoints").glob("*-last.ckpt")
    truncated = good.with_name("tiny--val_loss=0.1000-epoch=8-last.ckpt")
    truncated.write_bytes(good.read_bytes()[:-200])
    marked = good.with_name("tiny--val_loss=0.1000-epoch=9-last.ckpt")
    torch.save({**torch.load(good), "global_step": 99}, marked)
    marked.with_name("tiny--val_loss=0.1000-epoch=9-last-unfinished").touch()
    _, _, trainer = run(RESUME, max_epochs=3)
    assert trainer.global_step == 12
    assert not marked.exists()
    good = next(path for path in (folder / "checkpoints").glob("*-last.ckpt") if path != truncated)
    good.unlink()
    with pytest.raises(ConfigError, match="finds only incomplete checkpoints"):
        run(RESUME, fit=False)


def test_a_checkpoint_that_lightning_numbered_is_found():
    folder, _, _ = run(RESUME, max_epochs=1)
    (last,) = (folder / "checkpoints").glob("*-last.ckpt")
    numbered = last.rename(last.with_name(f"{last.stem}-v1.ckpt"))
    assert Path(run(RESUME, fit=False)[2].ckpt_path) == numbered


def test_an_end_checkpoint_means_complete_unless_told_to_go_on():
    folder, _, _ = run(RESUME, max_epochs=1)
    (last,) = (folder / "checkpoints").glob("*-last.ckpt")
    end = last.rename(last.with_name("tiny--end.ckpt"))
    with pytest.raises(ConfigError, match=r"exp_manager\.resume_if_exists: True finds .*tiny--end\.ckpt"):
        run(RESUME, fit=False)
    _, model, trainer = run({**RESUME, "resume_past_end": True}, max_epochs=2)
    assert trainer.global_step == 8
    assert end.exists()
    assert model.seen == [4, 5, 6, 7]


def test_an_explicit_checkpoint_wins():
    folder, _, _ = run(RESUME, max_epochs=3)
    explicit = folder / "checkpoints" / "tiny--val_loss=3.0000-epoch=0.ckpt"
    _, model, _ = run({**RESUME, "resume_from_checkpoint": str(explicit)}, max_epochs=3)
    assert model.seen == list(range(4, 12))
    with pytest.raises(ConfigError, match=r"exp_manager\.resume_from_checkpoint: 'gone\.ckpt' does not exist"):
        run({"resume_from_checkpoint": "gone.ckpt"}, fit=False)


def test_nothing_to_resume_is_an_error_unless_ignored():
    with pytest.raises(ConfigError, match=r"finds no checkpoint in .*set resume_ignore_no_checkpoint"):
        run({"resume_if_exists": True}, fit=False)
    assert run(RESUME, fit=False)[2].ckpt_path is None


# Runs that end early


def test_a_time_limit_saves_and_stops_within_the_epoch_and_the_next_run_goes_on(monkeypatch):
    section = {**RESUME, "max_time_per_run": "00:00:00:30"}
    trainer = make_trainer(max_epochs=3, callbacks=[StopAt(5, lambda: expire(trainer))])
    folder = exp_manager(trainer, {"exp_dir": "exp", "name": "tiny", **section})
    model = Saving()
    trainer.fit(model)
    assert (trainer.global_step, model.validations) == (6, 1)
    assert not names(folder, "checkpoints/*.nemo")
    _, model, trainer = run(section, max_epochs=3)
    assert model.seen == list(range(6, 12))
    assert names(folder, "checkpoints/*.nemo") == ["tiny.nemo"]


def expire(trainer):
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, StatelessTimer))
    timer._duration = 0.0


def test_sigterm_saves_the_step_that_was_reached():
    send = StopAt(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(RESUME, max_epochs=3, callbacks=[send])
    _, model, _ = run(RESUME, max_epochs=3)
    assert model.seen == list(range(6, 12))


def test_sigterm_is_not_saved_where_turned_off():
    send = StopAt(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run({**RESUME, "create_preemption_callback": False}, max_epochs=3, callbacks=[send])
    _, model, _ = run(RESUME, max_epochs=3)
    assert model.seen == list(range(4, 12))


# Mistakes


def test_a_trainer_with_a_logger_or_a_checkpoint_of_its_own_is_an_error():
    with pytest.raises(ConfigError, match="create_tensorboard_logger: True is set, but the trainer has a CSVLogger"):
        exp_manager(make_trainer(logger=CSVLogger(".")), {})
    with pytest.raises(ConfigError, match="explicit_log_dir: 'here' names the log folder"):
        exp_manager(
            make_trainer(logger=CSVLogger(".")), {"create_tensorboard_logger": False, "explicit_log_dir": "here"}
        )
    with pytest.raises(ConfigError, match="create_checkpoint_callback: True is set, but the trainer has a Model"):
        exp_manager(make_trainer(enable_checkpointing=True), {})
    trainer = make_trainer(callbacks=[ModelCheckpoint()], enable_checkpointing=True)
    exp_manager(trainer, {"create_checkpoint_callback": False})
    assert not any(isinstance(callback, NeMoModelCheckpoint) for callback in trainer.callbacks)


@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_feature_that_is_not_there_is_an_error_when_turned_on(name, tmp_path):
    section = OmegaConf.create()
    OmegaConf.update(section, name, True, force_add=True)
    with pytest.raises(ConfigError, match=rf"exp_manager\.{name}: True is not available"):
        exp_manager(make_trainer(), section)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"exp_dirr": "x"}, r"exp_manager\.exp_dirr: 'x' .*exp_manager\.exp_dir"),
        ({"checkpoint_callback_params": {"save_topk": 1}}, r"checkpoint_callback_params\.save_topk: 1 .*save_top_k"),
        ({"checkpoint_callback_params": {"mode": "best"}}, r"checkpoint_callback_params\.mode: 'best' must be min or"),
        ({"resume_if_exists": "perhaps"}, r"exp_manager\.resume_if_exists: 'perhaps'"),
        ({"summary_writer_kwargs": {"log_dir": "x"}}, r"summary_writer_kwargs\.log_dir: 'x' must be left out"),
        (
            {"checkpoint_callback_params": {"monitor": None}},
            r"save_top_k: 3 must be 1, 0 or -1 where",
        ),
        ({"early_stopping_callback_params": {"mode": "up"}}, r"early_stopping_callback_params\.mode: 'up' must be min"),
        ({"max_time_per_run": "4h"}, r"exp_manager\.max_time_per_run: '4h' must be DD:HH:MM:SS"),
        ({"step_timing_kwargs": {"reduction": "median"}}, r"step_timing_kwargs\.reduction: 'median' must be one of"),
    ],
)
def test_a_mistyped_section_is_an_error_with_path_and_value(section, message):
    with pytest.raises(ConfigError, match=message):
        exp_manager(make_trainer(), section)


def test_a_wish_that_has_no_effect_is_told_and_a_default_is_not(caplog):
    with caplog.at_level(logging.INFO, logger="nemo_expmgr"):
        exp_manager(make_trainer(), {"version": "a", "disable_validation_on_resume": True})
        exp_manager(make_trainer(), {"version": "b", "disable_validation_on_resume": False})
        exp_manager(make_trainer(), {"version": "c", "log_tflops_per_sec_per_gpu": True})
    assert [record.message.partition(" has ")[0] for record in caplog.records if "has no effect" in record.message] == [
        "exp_manager.disable_validation_on_resume: False",
        "exp_manager.log_tflops_per_sec_per_gpu: True",
    ]


def test_defaults_and_accepted_keys_are_nvidias():
    config = ExpManagerConfig()
    assert (config.checkpoint.monitor, config.checkpoint.save_top_k, config.checkpoint.save_last) == (
        "val_loss",
        3,
        True,
    )
    nvidias = {
        "create_wandb_logger": False,
        "wandb_logger_kwargs": {"name": None, "project": None},
        "mlflow_logger_kwargs": {"experiment_name": "x"},
        "ema": {"enable": False, "decay": 0.999},
        "checkpoint_callback_params": {"monitor": "val_wer", "model_parallel_size": 1, "always_save_nemo": False},
        "resume_from_checkpoint": None,
        "log_tflops_per_sec_per_gpu": False,
        "fault_tolerance": {"max_rank_restarts": 0},
    }
    assert exp_manager(make_trainer(), OmegaConf.create(nvidias)).is_dir()


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), (90, timedelta(seconds=90)), ({"_target_": "datetime.timedelta", "hours": 2}, timedelta(hours=2))],
)
def test_a_time_interval_may_be_seconds_or_a_section(given, expected):
    assert CheckpointParams(train_time_interval=given).time_interval == expected
