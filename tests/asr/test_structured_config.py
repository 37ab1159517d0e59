"""Configs made in Python, as NVIDIA's structured scripts make theirs."""

from __future__ import annotations

import json
from dataclasses import asdict

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

import nemo_asr
from nemo_asr.models import EncDecCTCModel, configs
from nemo_asr.modules import ConvASREncoder
from nemo_config import ConfigError, plain, update_model_config
from nemo_expmgr import exp_manager
from nemo_expmgr.schema import modelPT, optimizers, schedulers

LABELS = [" ", "a", "b", "c"]


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "clip.wav", 0.1 * rng.standard_normal(16000), 16000)
    line = {"audio_filepath": str(tmp_path / "clip.wav"), "duration": 1.0, "text": "ab c"}
    (tmp_path / "manifest.jsonl").write_text(f"{json.dumps(line)}\n" * 2)
    return str(tmp_path / "manifest.jsonl")


def small_blocks():
    block = nemo_asr.modules.conv_asr.JasperEncoderConfig
    shape = {"dilation": [1], "dropout": 0.0, "separable": True}
    return [
        block(filters=16, repeat=1, kernel=[5], stride=[2], residual=False, **shape),
        block(filters=16, repeat=1, kernel=[5], stride=[1], residual=True, **shape),
        block(filters=24, repeat=1, kernel=[1], stride=[1], residual=False, **shape),
    ]


def one_step(cfg, tmp_path):
    """What the scripts do with a finished config, on this machine."""
    cfg.trainer.accelerator, cfg.trainer.strategy, cfg.trainer.max_steps = "cpu", "auto", 1
    cfg.trainer.enable_progress_bar = cfg.trainer.enable_model_summary = False
    cfg.exp_manager.exp_dir = str(tmp_path / "runs")
    trainer = pl.Trainer(**asdict(cfg.trainer))
    exp_manager(trainer, asdict(cfg.exp_manager))
    model = EncDecCTCModel(cfg=cfg.model, trainer=trainer)
    trainer.fit(model)
    assert trainer.global_step == 1
    return model, trainer


def test_a_script_that_fills_in_a_dataclass_trains_and_saves(manifest, tmp_path):
    cfg = configs.EncDecCTCModelConfig()
    cfg.name, cfg.model.labels = "tiny", LABELS
    for section in (cfg.model.train_ds, cfg.model.validation_ds, cfg.model.test_ds):
        section.sample_rate, section.labels, section.batch_size = cfg.model.sample_rate, LABELS, 2
    cfg.model.train_ds.manifest_filepath = cfg.model.validation_ds.manifest_filepath = manifest
    cfg.model.spec_augment.rect_masks, cfg.model.spec_augment.rect_freq = 5, 50
    cfg.model.encoder.feat_in, cfg.model.encoder.activation = cfg.model.preprocessor.features, "relu"
    cfg.model.encoder.jasper = small_blocks()
    cfg.model.decoder.feat_in, cfg.model.decoder.num_classes = cfg.model.encoder.jasper[-1].filters, len(LABELS)
    cfg.model.decoder.vocabulary = LABELS
    cfg.model.optim.name, cfg.model.optim.lr = "novograd", 0.01
    cfg.model.optim.betas, cfg.model.optim.weight_decay = [0.8, 0.5], 0.001
    cfg.model.optim.sched.name, cfg.model.optim.sched.warmup_ratio = "CosineAnnealing", 0.5
    cfg.exp_manager.name = cfg.name
    _, trainer = one_step(cfg, tmp_path)
    group = trainer.optimizers[0].param_groups[0]
    assert (group["betas"], group["weight_decay"], group["initial_lr"]) == ((0.8, 0.5), 0.001, 0.01)
    (path,) = (tmp_path / "runs").rglob("tiny.nemo")
    restored = EncDecCTCModel.restore_from(path)
    assert list(restored.tokenizer.vocabulary) == LABELS
    assert restored.cfg.encoder.jasper[1].residual is True


def test_a_script_with_the_builder_trains(manifest, tmp_path):
    cfg = modelPT.NemoConfig(name="Custom QuartzNet")
    builder = configs.EncDecCTCModelConfigBuilder(name="quartznet_15x5", encoder_cfg_func=small_blocks)
    builder.set_labels(LABELS)
    builder.set_optim(
        cfg=optimizers.NovogradParams(lr=0.01, betas=(0.8, 0.5), weight_decay=0.001),
        sched_cfg=schedulers.CosineAnnealingParams(warmup_steps=None, warmup_ratio=None, min_lr=0.0),
    )
    cfg.model = builder.build()
    cfg.model.train_ds.manifest_filepath = cfg.model.validation_ds.manifest_filepath = manifest
    cfg.exp_manager.create_checkpoint_callback = False
    model, trainer = one_step(cfg, tmp_path)
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.8, 0.5)
    assert type(trainer.lr_scheduler_configs[0].scheduler).__name__ == "CosineAnnealing"
    assert model.cfg.train_ds.labels == model.cfg.decoder.vocabulary == LABELS


@pytest.mark.parametrize(("name", "strides"), [("quartznet_15x5", 18), ("jasper_10x5dr", 13)])
def test_the_builders_networks_are_those_of_the_papers(name, strides):
    builder = configs.EncDecCTCModelConfigBuilder(name=name)
    builder.set_labels(LABELS)
    encoder = plain(builder.build())["encoder"]
    assert len(encoder["jasper"]) == strides
    assert {block["repeat"] for block in encoder["jasper"][1:-2]} == {5}
    assert [block["repeat"] for block in (encoder["jasper"][0], *encoder["jasper"][-2:])] == [1, 1, 1]
    assert encoder["jasper"][-1]["separable"] is False
    if name == "quartznet_15x5":  # 18.9 million weights with an English head, as published
        kernels = [block["kernel"][0] for block in encoder["jasper"]]
        assert kernels == [33, *[33] * 3, *[39] * 3, *[51] * 3, *[63] * 3, *[75] * 3, 87, 1]
        options = {key: value for key, value in encoder.items() if key != "_target_"}
        weights = sum(parameter.numel() for parameter in ConvASREncoder(**options).parameters())
        assert weights + 1024 * 29 + 29 == 18_924_381


def test_a_yaml_over_a_dataclass_keeps_types_and_takes_new_keys_of_the_optimizer():
    given = {
        "name": "small",
        "model": {
            "labels": LABELS,
            "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
            "train_ds": {"manifest_filepath": "train.json", "labels": LABELS, "sample_rate": 16000},
            "encoder": {"jasper": [{"filters": 16, "kernel": [5]}], "activation": "relu"},
            "optim": {"name": "novograd", "lr": 0.01, "betas": [0.8, 0.5], "sched": {"name": "x", "warmup_steps": 3}},
        },
    }
    merged = update_model_config(configs.EncDecCTCModelConfig(), given)
    assert merged.model.optim.betas == [0.8, 0.5]
    assert merged.model.optim.sched == {"name": "x", "warmup_steps": 3, "min_lr": 0.0, "last_epoch": -1}
    assert (merged.model.encoder.jasper[0].filters, merged.model.encoder.jasper[0].se) == (16, False)
    assert merged.model.preprocessor.features == 64
    assert "test_ds" not in merged.model and "validation_ds" not in merged.model and "target" not in merged.model
    kept = update_model_config(configs.EncDecCTCModelConfig(), given, drop_missing_subconfigs=False)
    assert kept.model.validation_ds.shuffle is False
    with pytest.raises(ConfigKeyError, match="activatoin"):
        update_model_config(configs.EncDecCTCModelConfig(), {"model": {"encoder": {"activatoin": "relu"}}})


def test_every_dataclass_is_one_that_omegaconf_accepts():
    for name in configs.__all__:
        if not name.endswith("Builder"):
            OmegaConf.structured(getattr(configs, name))
    OmegaConf.structured(modelPT.NemoConfig())


def test_a_whole_dataclass_in_place_of_its_model_section_is_refused():
    with pytest.raises(ConfigError, match=r"cfg\.model"):
        EncDecCTCModel(cfg=configs.EncDecCTCModelConfig())


def test_an_unknown_network_is_named():
    with pytest.raises(ValueError, match="name: 'citrinet' is none of quartznet_15x5"):
        configs.EncDecCTCModelConfigBuilder(name="citrinet")
