"""NemoModel: its file, its class, its artifacts, its data and its training."""

import copy
import gc
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nemo_archive import open_archive
from nemo_config import ConfigError, register_targets
from nemo_config import targets as targets_module
from nemo_expmgr import NemoModel
from nemo_expmgr.restore_context import is_restoring


@pytest.fixture
def trainer(tmp_path):
    def make(**arguments):
        return Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"enable_checkpointing": False, **arguments},
        )

    return make


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What a test registers is forgotten after it."""
    names = dict(targets_module._registered)
    monkeypatch.setattr(targets_module, "_registered", names)


# The config


def test_the_given_config_is_copied_resolved_and_never_edited(tiny_class, tiny_cfg):
    root = OmegaConf.create({"width": 6, "model": {**tiny_cfg, "width": "${width}", "copied_width": "${width}"}})
    before = copy.deepcopy(root)
    model = tiny_class(root.model)
    model.cfg.width = 99
    model.setup_optimization({"name": "adam", "lr": 1.0})
    assert root == before
    assert model.cfg.copied_width == 6 and model.embedding.embedding_dim == 6
    assert model.cfg.optim.name == "adam"


def test_a_whole_config_in_place_of_its_model_section_is_refused(tiny_class, tiny_cfg):
    with pytest.raises(ConfigError, match=r"cfg\.model"):
        tiny_class({"model": tiny_cfg})


# Saving and restoring


def test_a_restored_model_computes_the_same(tiny_class, tiny_model, tmp_path, ids):
    tiny_model.save_to(tmp_path / "a.nemo")
    restored = tiny_class.restore_from(str(tmp_path / "a.nemo"))
    assert torch.equal(restored(ids), tiny_model(ids))
    assert restored.words == tiny_model.words
    assert restored.output.weight is restored.embedding.weight
    assert torch.equal(restored.scale, tiny_model.scale)
    assert restored.training and restored.inner.weight.requires_grad


def test_a_file_names_its_class_version_artifacts_and_derived_values(tiny_class, tiny_model, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    with open_archive(tmp_path / "a.nemo") as archive:
        config = archive.config()
        artifacts = archive.artifacts()
    assert config["target"] == f"{tiny_class.__module__}.TinyModel"
    assert config["nemo_version"] == "3.0.0"
    assert config["words"]["count"] == 5
    assert config["copied_width"] == 8
    assert config["words"]["path"].startswith("nemo:") and config["words"]["path"].endswith("_words.txt")
    assert artifacts["words.path"].data == b"the cat sat on mat"
    assert config["train_ds"]["manifest_filepath"] == "???"


def test_restoring_opens_no_data_and_changes_no_directory(tiny_class, tiny_cfg, tmp_path):
    tiny_cfg["train_ds"]["manifest_filepath"] = "/nowhere/train.json"
    tiny_class(tiny_cfg).save_to(tmp_path / "a.nemo")
    directory = Path.cwd()
    restored = tiny_class.restore_from(tmp_path / "a.nemo")
    assert Path.cwd() == directory
    assert restored.cfg.train_ds.manifest_filepath == "/nowhere/train.json"


def test_saving_a_restored_model_needs_neither_the_archive_nor_the_source(
    tiny_class, tiny_model, words_file, tmp_path, ids
):
    expected = tiny_model(ids).detach()
    words_file.unlink()
    tiny_model.save_to(tmp_path / "a.nemo")
    restored = tiny_class.restore_from(tmp_path / "a.nemo")
    (tmp_path / "a.nemo").unlink()
    restored.save_to(tmp_path / "b.nemo")
    again = tiny_class.restore_from(tmp_path / "b.nemo")
    assert torch.equal(again(ids), expected)
    with open_archive(tmp_path / "b.nemo") as archive:
        assert archive.config()["words"]["path"] == restored.cfg.words.path  # the name stays


def test_saving_over_the_file_that_a_model_was_restored_from_works(tiny_class, tiny_model, tmp_path, ids):
    tiny_model.save_to(tmp_path / "a.nemo")
    restored = tiny_class.restore_from(tmp_path / "a.nemo")
    with torch.no_grad():
        restored.inner.weight.add_(1)
    expected = restored(ids).detach()
    restored.save_to(tmp_path / "a.nemo")
    assert torch.equal(restored(ids), expected)
    assert torch.equal(tiny_class.restore_from(tmp_path / "a.nemo")(ids), expected)


def test_a_local_file_of_the_same_name_does_not_replace_the_archives(tiny_class, tiny_model, words_file, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    words_file.write_text("other words on this machine now")
    assert tiny_class.restore_from(tmp_path / "a.nemo").words == ["the", "cat", "sat", "on", "mat"]


def test_return_config_gives_the_files_config(tiny_class, tiny_model, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    config = NemoModel.restore_from(tmp_path / "a.nemo", return_config=True)
    assert isinstance(config, DictConfig)
    assert config.width == 8 and config.target.endswith("TinyModel")


def test_a_config_given_to_restore_overrides_the_files(tiny_class, tiny_model, tmp_path, ids):
    tiny_model.save_to(tmp_path / "a.nemo")
    config = tiny_class.restore_from(tmp_path / "a.nemo", return_config=True)
    config.optim.lr = 7.0
    assert tiny_class.restore_from(tmp_path / "a.nemo", config).cfg.optim.lr == 7.0
    whole = OmegaConf.create({"rate": 5.0, "model": {**config, "optim": {"lr": "${rate}"}}})
    OmegaConf.save(whole, tmp_path / "override.yaml")
    restored = tiny_class.restore_from(tmp_path / "a.nemo", override_config_path=str(tmp_path / "override.yaml"))
    assert restored.cfg.optim.lr == 5.0
    assert torch.equal(restored(ids), tiny_model(ids))


def test_weights_that_do_not_match_are_named(tiny_class, tiny_model, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    config = tiny_class.restore_from(tmp_path / "a.nemo", return_config=True)
    config.width = 4
    with pytest.raises(Exception, match=r"inner\.weight"):
        tiny_class.restore_from(tmp_path / "a.nemo", config)


def test_a_constructors_error_is_its_own_and_names_the_file(tiny_class, tiny_model, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    config = tiny_class.restore_from(tmp_path / "a.nemo", return_config=True)
    config.width = 7
    with pytest.raises(ValueError, match="width: 7 must be even") as caught:
        tiny_class.restore_from(tmp_path / "a.nemo", config)
    assert any("a.nemo" in note for note in caught.value.__notes__)


def test_after_a_failed_restore_a_typed_model_is_strict_and_has_no_artifacts_of_the_file(
    tiny_class, tiny_model, tiny_cfg, tmp_path
):
    tiny_model.save_to(tmp_path / "a.nemo")
    config = tiny_class.restore_from(tmp_path / "a.nemo", return_config=True)
    config.width = 7
    with pytest.raises(ValueError, match="width"):
        tiny_class.restore_from(tmp_path / "a.nemo", config)
    assert not is_restoring()
    config.width = 8
    with pytest.raises(FileNotFoundError, match=r"words\.path: nemo:"):
        tiny_class(config)
    assert tiny_class(tiny_cfg).strict_config
    assert not tiny_class.restore_from(tmp_path / "a.nemo").strict_config


def test_models_inside_a_restored_model_do_not_take_its_artifacts(tiny_class, tiny_model, tiny_cfg, tmp_path):
    class Outer(tiny_class):
        def __init__(self, cfg, trainer=None):
            super().__init__(cfg, trainer)
            self.second = tiny_class(tiny_cfg)

    outer = Outer(tiny_cfg)
    outer.save_to(tmp_path / "outer.nemo")
    restored = Outer.restore_from(tmp_path / "outer.nemo")
    assert restored.artifacts["words.path"].name.endswith("_words.txt")
    assert restored.second.artifacts["words.path"].name == "words.txt"
    assert not restored.second.strict_config


def test_restores_in_threads_do_not_disturb_each_other(tiny_class, tiny_cfg, tmp_path, ids):
    files, outputs = [], []
    for index in range(4):
        words = tmp_path / str(index) / "words.txt"
        words.parent.mkdir()
        words.write_text(" ".join(f"w{index}{n}" for n in range(5)))
        model = tiny_class({**tiny_cfg, "words": {"path": str(words)}})
        files.append(tmp_path / f"{index}.nemo")
        model.save_to(files[-1])
        outputs.append(model(ids).detach())
    barrier = threading.Barrier(4)

    def restore(index):
        barrier.wait()
        for _ in range(5):
            model = tiny_class.restore_from(files[index])
            assert model.words[0] == f"w{index}0"
            assert torch.equal(model(ids), outputs[index])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(restore, range(4)))


def test_restoring_again_and_again_does_not_keep_memory(tiny_class, tiny_cfg, tmp_path):
    tiny_class({**tiny_cfg, "width": 1024}).save_to(tmp_path / "a.nemo")  # 4 MB

    def resident_after(restores):
        for _ in range(restores):
            model = tiny_class.restore_from(tmp_path / "a.nemo")
            model(torch.tensor([0])).sum().item()
            model.register_artifact("words.path", model.cfg.words.path)
        del model
        gc.collect()
        return psutil.Process().memory_info().rss

    start = resident_after(10)
    assert resident_after(50) - start < 40e6


# The class of a file


def test_a_users_subclass_in_main_needs_no_registration(tiny_class, tiny_cfg, tmp_path, ids):
    mine = type("Mine", (tiny_class,), {"__module__": "__main__", "__qualname__": "Mine"})
    model = mine(tiny_cfg)
    model.save_to(tmp_path / "mine.nemo")
    restored = mine.restore_from(tmp_path / "mine.nemo")
    assert type(restored) is mine
    assert torch.equal(restored(ids), model(ids))
    assert mine.restore_from(tmp_path / "mine.nemo", return_config=True).target == "__main__.Mine"


def test_an_unregistered_class_is_not_found_from_a_base_class(tiny_model, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    with pytest.raises(ConfigError, match=r"TinyModel.*register_targets"):
        NemoModel.restore_from(tmp_path / "a.nemo")


def test_a_registered_class_is_found_from_a_base_class(tiny_class, tiny_model, tiny_cfg, tmp_path):
    register_targets(tiny_class)
    tiny_model.save_to(tmp_path / "a.nemo")
    assert type(NemoModel.restore_from(tmp_path / "a.nemo")) is tiny_class
    target = f"{tiny_class.__module__}.{tiny_class.__qualname__}"
    assert type(NemoModel.from_config_dict({**tiny_cfg, "target": target})) is tiny_class
    assert type(tiny_class.from_config_dict(tiny_cfg)) is tiny_class


def test_a_subclass_restores_a_file_of_its_registered_base(tiny_class, tiny_model, tmp_path):
    register_targets(tiny_class)
    tiny_model.save_to(tmp_path / "a.nemo")
    derived = type("Derived", (tiny_class,), {})
    assert type(derived.restore_from(tmp_path / "a.nemo")) is derived


def test_the_wrong_class_is_an_error_that_names_both(tiny_class, tiny_model, tmp_path):
    class Unrelated(NemoModel):
        def forward(self, x):
            return x

    register_targets(tiny_class)
    tiny_model.save_to(tmp_path / "a.nemo")
    with pytest.raises(ConfigError, match=r"TinyModel.*not a .*Unrelated"):
        Unrelated.restore_from(tmp_path / "a.nemo")


# Artifacts


def test_a_missing_artifact_names_config_path_and_file(tiny_class, tiny_cfg, words_file):
    words_file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"words\.path: {words_file} does not exist"):
        tiny_class(tiny_cfg)


def test_register_artifact_gives_a_path(tiny_class, tiny_model, words_file, tmp_path):
    assert tiny_model.register_artifact("words.path", str(words_file)) == str(words_file)
    assert tiny_model.register_artifact("x", "/nowhere", verify_src_exists=False) is None
    assert tiny_model.register_artifact("x", None) is None
    assert tiny_model.register_artifact("x", "") == ""
    with pytest.raises(FileNotFoundError, match="x: /nowhere does not exist"):
        tiny_model.register_artifact("x", "/nowhere")


def test_a_restored_artifacts_path_is_private_and_goes_with_the_model(tiny_class, tiny_model, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    model = tiny_class.restore_from(tmp_path / "a.nemo")
    path = Path(model.register_artifact("words.path", model.cfg.words.path))
    assert path.read_text() == "the cat sat on mat"
    assert path.parent.stat().st_mode & 0o077 == 0
    twin = copy.deepcopy(model)
    del model
    gc.collect()
    assert not path.exists() and not path.parent.exists()
    assert Path(twin.register_artifact("words.path", twin.cfg.words.path)).read_text() == "the cat sat on mat"


def test_a_replaced_artifact_is_what_the_next_file_holds(tiny_class, tiny_model, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    model = tiny_class.restore_from(tmp_path / "a.nemo")
    new = tmp_path / "new.txt"
    new.write_text("un chat sur le tapis")
    assert model.artifact("words.path", str(new)).data == new.read_bytes()
    new.unlink()
    model.save_to(tmp_path / "b.nemo")
    assert tiny_class.restore_from(tmp_path / "b.nemo").words == ["un", "chat", "sur", "le", "tapis"]


def test_artifacts_that_the_config_no_longer_names_are_left_out(tiny_class, tiny_cfg, words_file, tmp_path):
    extra = tmp_path / "extra.txt"
    extra.write_text("extra")
    model = tiny_class(tiny_cfg)
    model.cfg.extra = {"path": str(extra)}
    model.artifact("extra.path", str(extra))
    model.save_to(tmp_path / "a.nemo")
    kept = tiny_class.restore_from(tmp_path / "a.nemo")  # whose constructor never asks for extra.path
    kept.save_to(tmp_path / "b.nemo")
    del kept.cfg["extra"]
    kept.save_to(tmp_path / "c.nemo")
    model.forget_artifacts("extra")
    del model.cfg["extra"]
    model.save_to(tmp_path / "d.nemo")
    held = {}
    for name in "abcd":
        with open_archive(tmp_path / f"{name}.nemo") as archive:
            held[name] = set(archive.artifacts())
    both = {"words.path", "extra.path"}
    assert held == {"a": both, "b": both, "c": {"words.path"}, "d": {"words.path"}}


# Data and training


def test_training_writes_a_checkpoint_that_loads_without_any_other_file(
    tiny_class, tiny_cfg, words_file, manifest, trainer, tmp_path, ids
):
    tiny_cfg["train_ds"]["manifest_filepath"] = manifest("train.json")
    tiny_cfg["optim"]["sched"] = {"name": "CosineAnnealing", "warmup_steps": 1}
    run = trainer(max_steps=2)
    model = tiny_class(tiny_cfg, run)
    before = model.inner.weight.detach().clone()
    run.fit(model)
    assert run.global_step == 2
    assert not torch.equal(model.inner.weight, before)
    run.save_checkpoint(tmp_path / "last.ckpt")
    words_file.unlink()

    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["cfg"]["width"] == 8
    assert content["hyper_parameters"]["cfg"]["target"].endswith("TinyModel")
    loaded = tiny_class.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.output.weight is loaded.embedding.weight
    loaded.save_to(tmp_path / "a.nemo")
    assert torch.equal(tiny_class.restore_from(tmp_path / "a.nemo")(ids), model(ids))


def test_a_restored_model_trains_on(tiny_class, tiny_model, manifest, trainer, tmp_path):
    tiny_model.save_to(tmp_path / "a.nemo")
    model = tiny_class.restore_from(tmp_path / "a.nemo")
    run = trainer(max_steps=2)
    model.set_trainer(run)
    model.setup_training_data({"manifest_filepath": manifest("train.json"), "batch_size": 1})
    model.setup_optimization({"name": "adamw", "lr": 0.01, "sched": {"name": "CosineAnnealing"}})
    run.fit(model)
    assert isinstance(run.optimizers[0], torch.optim.AdamW)
    assert not torch.equal(model.inner.weight, tiny_model.inner.weight)
    assert model.cfg.train_ds.batch_size == 1
    assert torch.equal(tiny_class.restore_from(tmp_path / "a.nemo").inner.weight, tiny_model.inner.weight)


def test_validation_data_of_a_file_is_not_opened_unless_it_is_set(tiny_class, tiny_cfg, manifest, trainer, tmp_path):
    tiny_cfg["validation_ds"] = {"manifest_filepath": "/of/another/machine.json"}
    tiny_class(tiny_cfg).save_to(tmp_path / "a.nemo")
    model = tiny_class.restore_from(tmp_path / "a.nemo")
    model.setup_training_data({"manifest_filepath": manifest("train.json"), "batch_size": 1})
    trainer(max_steps=1).fit(model)
    assert model.val_dataloader() == []
    model.setup_validation_data({"manifest_filepath": manifest("dev.json"), "batch_size": 1})
    assert len(model.val_dataloader()) > 0


def test_a_missing_manifest_is_an_error_only_when_training_starts(tiny_class, tiny_cfg, trainer):
    model = tiny_class(tiny_cfg)
    with pytest.raises(ConfigError, match=r"model\.train_ds\.manifest_filepath: \?\?\?"):
        trainer(max_steps=1).fit(model)


def test_steps_of_a_schedule_follow_from_epochs_and_data(tiny_class, tiny_cfg, manifest, trainer):
    tiny_cfg["train_ds"]["manifest_filepath"] = manifest("train.json")  # 5 pairs, 3 batches
    tiny_cfg["optim"]["sched"] = {"name": "PolynomialDecayAnnealing", "min_lr": 0.0, "power": 1.0}
    model = tiny_class(tiny_cfg)
    run = trainer(max_epochs=2)
    run.fit(model)
    assert run.global_step == 6
    assert run.lr_scheduler_configs[0].interval == "step"
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_one_validation_set_logs_plain_names_and_sums_of_counts(tiny_class, tiny_cfg, manifest, trainer):
    tiny_cfg["validation_ds"]["manifest_filepath"] = manifest("dev.json")
    model = tiny_class(tiny_cfg)
    [metrics] = trainer().validate(model, verbose=False)
    pairs = torch.tensor([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4)])
    wrong = (model(pairs[:, 0]).argmax(-1) != pairs[:, 1]).float().mean()
    assert set(metrics) == {"val_loss", "val_wer"}
    assert metrics["val_wer"] == pytest.approx(wrong.item())


@pytest.mark.parametrize(("main", "names"), [(0, None), (1, ["clean", "other"])])
def test_several_validation_sets_log_with_their_names_and_the_main_one_plainly(
    tiny_class, tiny_cfg, manifest, trainer, main, names
):
    paths = [manifest("dev-a_manifest.json", [(0, 1), (1, 2)]), manifest("dev_b/manifest.json", [(2, 3)])]
    section = {"manifest_filepath": paths, "batch_size": 2, "val_dl_idx": main}
    tiny_cfg["validation_ds"] = {**section, **({"name": names} if names else {})}
    model = tiny_class(tiny_cfg)
    run = trainer()
    run.validate(model, verbose=False)
    metrics = run.callback_metrics
    first, second = names or ("dev_a", "dev_b")
    alone = [trainer().validate(tiny_like(model, path), verbose=False)[0]["val_loss"] for path in paths]
    assert metrics[f"{first}_val_loss"].item() == pytest.approx(alone[0])
    assert metrics[f"{second}_val_loss"].item() == pytest.approx(alone[1])
    assert metrics["val_loss"].item() == pytest.approx(alone[main])
    assert model.cfg.validation_ds.manifest_filepath == paths


def tiny_like(model, path):
    """The same weights with one validation set."""
    other = copy.deepcopy(model)
    other.set_trainer(None)
    other.setup_multiple_validation_data({"manifest_filepath": path, "batch_size": 2})
    return other


def test_a_subclass_that_collects_its_outputs_itself_gets_them_once(tiny_class, tiny_cfg, manifest, trainer):
    seen = []

    class Collecting(tiny_class):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            metrics = super().validation_step(batch, batch_idx)
            if isinstance(self.trainer.val_dataloaders, list) and len(self.trainer.val_dataloaders) > 1:
                self.validation_step_outputs[dataloader_idx].append(metrics)
            else:
                self.validation_step_outputs.append(metrics)
            return metrics

        def multi_validation_epoch_end(self, outputs, dataloader_idx=0):
            seen.append((dataloader_idx, len(outputs)))
            loss = torch.stack([output["val_loss"] for output in outputs]).mean()
            return {"val_loss": loss, "log": {"val_loss": loss}}

    tiny_cfg["validation_ds"]["manifest_filepath"] = [manifest("a.json"), manifest("b.json", [(0, 1)])]
    run = trainer()
    run.validate(Collecting(tiny_cfg), verbose=False)
    assert seen == [(0, 3), (1, 1)]
    assert {"val_loss", "a_val_loss", "b_val_loss"} <= set(run.callback_metrics)


def test_a_subclass_may_set_its_loaders_itself(tiny_class, tiny_cfg, manifest, trainer):
    class Own(tiny_class):
        def setup_validation_data(self, val_data_config):
            self._validation_dl = self.build_dataloader(val_data_config, "mine", False)

    tiny_cfg["validation_ds"]["manifest_filepath"] = [manifest("a.json"), manifest("b.json")]
    model = Own(tiny_cfg)
    assert len(model.val_dataloader()) == 2
    assert model.get_validation_dataloader_prefix(1) == "b_"


def test_a_section_that_names_no_set_is_an_error(tiny_model):
    with pytest.raises(ConfigError, match=r"model\.test_ds: \{'ds_item': \[\]\} names no set of data"):
        tiny_model.setup_multiple_test_data({"ds_item": []})


def test_test_sets_log_too(tiny_class, tiny_cfg, manifest, trainer):
    model = tiny_class(tiny_cfg)
    model.setup_multiple_test_data({"manifest_filepath": [manifest("a.json"), manifest("b.json")], "batch_size": 2})
    run = trainer()
    run.test(model, verbose=False)
    assert {"test_loss", "a_test_loss", "b_test_loss"} <= set(run.callback_metrics)


def test_loaders_given_to_the_trainer_are_used_without_any_section(tiny_class, tiny_cfg, manifest, trainer):
    model = tiny_class(tiny_cfg)
    section = OmegaConf.create({"manifest_filepath": manifest("a.json"), "batch_size": 2})
    loader = model.build_dataloader(section, "mine", True)
    run = trainer(max_steps=1)
    run.fit(model, loader)
    run.validate(model, [loader, loader], verbose=False)
    assert {"val_loss", "val_0_val_loss", "val_1_val_loss"} <= set(run.callback_metrics)


def test_parameter_groups_of_the_config_have_their_own_rate(tiny_class, tiny_cfg):
    tiny_cfg["optim_param_groups"] = {"inner": {"lr": 0.5}}
    optimizer, schedule = tiny_class(tiny_cfg).setup_optimization()
    assert schedule is None
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 1), (0.5, 2)]
    tiny_cfg["optim_param_groups"] = {"nothing": {"lr": 0.5}}
    with pytest.raises(ConfigError, match=r"optim_param_groups\.nothing"):
        tiny_class(tiny_cfg).setup_optimization()


def test_as_frozen_leaves_everything_as_it_was(tiny_model):
    tiny_model.inner.bias.requires_grad_(False)
    tiny_model.output.eval()
    weights = tiny_model.num_weights
    with tiny_model.as_frozen():
        assert tiny_model.num_weights == 0 and not tiny_model.training
    assert tiny_model.num_weights == weights == 5 * 8 + 64
    assert tiny_model.inner.training and not tiny_model.output.training


def test_with_several_processes_only_the_first_writes_and_all_wait(tiny_class, tiny_model, tmp_path):
    calls = []

    class Strategy:
        def barrier(self, name):
            calls.append(((tmp_path / "a.nemo").exists(), name))

    class Process:
        world_size, strategy = 2, Strategy()

        def __init__(self, first):
            self.is_global_zero = first

    for first in (False, True):
        tiny_model._trainer = Process(first)
        tiny_model.save_to(tmp_path / "a.nemo")
    tiny_model._trainer = None
    assert [exists for exists, _ in calls] == [False, True]


def test_a_checkpoint_with_omegaconf_containers_loads_and_one_with_code_does_not(tiny_class, tiny_model, tmp_path, ids):
    config = OmegaConf.create({**tiny_model.cfg, "target": "nemo.collections.mine.Unknown"})
    content = {"state_dict": tiny_model.state_dict(), "hyper_parameters": OmegaConf.create({"cfg": config})}
    torch.save({**content, "hparams_type": DictConfig}, tmp_path / "nvidia.ckpt")
    loaded = tiny_class.load_from_checkpoint(tmp_path / "nvidia.ckpt", map_location="cpu")
    assert torch.equal(loaded(ids), tiny_model(ids))

    torch.save({**content, "hook": os.getcwd}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt: holds objects that are not loaded for safety"):
        tiny_class.load_from_checkpoint(tmp_path / "bad.ckpt")


def test_a_model_without_data_or_optimizer_says_what_is_missing(tiny_cfg, trainer):
    class Bare(NemoModel):
        def __init__(self, cfg, trainer=None):
            super().__init__(cfg, trainer)
            self.layer = nn.Linear(2, 2)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

    with pytest.raises(ConfigError, match=r"model\.optim"):
        trainer(max_steps=1).fit(Bare({}), torch.utils.data.DataLoader(torch.zeros(2, 2)))
    with pytest.raises(ConfigError, match=r"model\.train_ds"):
        trainer(max_steps=1).fit(Bare({"optim": {"lr": 0.1}}))
    with pytest.raises(NotImplementedError, match=r"Bare must define build_dataloader to load model\.train_ds"):
        trainer(max_steps=1).fit(Bare({"optim": {"lr": 0.1}, "train_ds": {"manifest_filepath": "x"}}))


def test_a_run_resumes_from_its_checkpoint(tiny_class, tiny_cfg, manifest, trainer, tmp_path):
    tiny_cfg["train_ds"]["manifest_filepath"] = manifest("train.json")
    whole, first, second = trainer(max_steps=6), trainer(max_steps=3), trainer(max_steps=6)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(tiny_class(tiny_cfg))
    whole.fit(models[0])
    first.fit(models[1])
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = tiny_class(tiny_cfg)
    second.fit(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert second.global_step == 6
    assert torch.equal(resumed.inner.weight, models[0].inner.weight)


def test_the_example_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    readme = Path(__file__).parents[2] / "packages/nemo-expmgr/README.md"
    code = readme.read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(readme), "exec"), {"__name__": "__main__"})
    printed = re.findall(r"tensor\(\[\[([\d.]+)", capsys.readouterr().out)
    assert float(printed[-1]) == pytest.approx(2.5, abs=0.05)
    assert (tmp_path / "line.nemo").stat().st_size > 0
