"""What NVIDIA's scripts do with a model that is there: take a hybrid apart, change its encoder, predict, test."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from omegaconf import OmegaConf

from nemo_asr import load_model
from nemo_asr.metrics.wer import WER
from nemo_asr.models import ASRModel, EncDecCTCModelBPE, EncDecRNNTBPEModel, EncDecRNNTModel
from nemo_asr.modules import SpectrogramAugmentation

SPEECH = Path(__file__).parents[1] / "data" / "speech"
TRANSDUCERS = Path(__file__).parents[1] / "golden" / "transducers"


@pytest.fixture
def hybrid(golden):
    return golden("fastconformer_hybrid_tdt_ctc_bpe")


@pytest.fixture
def contextnet():
    return ASRModel.restore_from(TRANSDUCERS / "contextnet_stateless.nemo", map_location="cpu")


@pytest.fixture
def section(tmp_path):
    """A data section of three clips."""
    lines = [json.loads(line) for line in (SPEECH / "train.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
    for line in lines:
        line["audio_filepath"] = str(SPEECH / line["audio_filepath"])
    (tmp_path / "three.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = {"manifest_filepath": str(tmp_path / "three.jsonl"), "sample_rate": 8000, "batch_size": 2, "shuffle": False}
    return OmegaConf.create({**data, "num_workers": 0})


def audio_of(case):
    return [row[:length] for row, length in zip(case.io["in_audio"], case.io["in_audio_length"], strict=True)]


def test_a_hybrids_file_is_restored_as_its_ctc_model(hybrid, tmp_path):
    whole = ASRModel.restore_from(hybrid.path, map_location="cpu")
    config = OmegaConf.to_container(whole.cfg)
    config["decoder"] = config["aux_ctc"]["decoder"]
    for key in ("joint", "decoding", "aux_ctc", "loss", "model_defaults", "target", "nemo_version"):
        config.pop(key, None)
    options = {"map_location": "cpu", "override_config_path": OmegaConf.create(config), "strict": False}
    ctc = EncDecCTCModelBPE.restore_from(hybrid.path, **options)
    assert type(ctc) is EncDecCTCModelBPE
    ctc.decoder.load_state_dict(whole.ctc_decoder.state_dict())
    ctc.save_to(tmp_path / "ctc.nemo")
    found = load_model(tmp_path / "ctc.nemo").transcribe(audio_of(hybrid), verbose=False)
    assert found == hybrid.meta["transcribe_ctc"]


def test_a_hybrids_file_is_restored_as_its_transducer(hybrid):
    config = ASRModel.restore_from(hybrid.path, return_config=True)
    for key in ("aux_ctc", "target"):
        del config[key]
    options = {"map_location": "cpu", "override_config_path": config, "strict": False}
    transducer = EncDecRNNTBPEModel.restore_from(hybrid.path, **options)
    assert type(transducer) is EncDecRNNTBPEModel
    assert transducer.transcribe(audio_of(hybrid), verbose=False) == hybrid.meta["transcribe"]
    config.target = "nemo.collections.asr.models.EncDecRNNTBPEModel"
    assert type(ASRModel.restore_from(hybrid.path, **options)) is EncDecRNNTBPEModel


def test_subsampling_in_pieces_gives_the_same_and_is_saved(hybrid):
    model = ASRModel.restore_from(hybrid.path, map_location="cpu").eval()
    before = model.plain_cfg()
    model.change_subsampling_conv_chunking_factor(2, update_config=False)
    assert model.plain_cfg() == before
    model.change_subsampling_conv_chunking_factor(2)
    assert model.cfg.encoder.subsampling_conv_chunking_factor == 2
    assert model.transcribe(audio_of(hybrid), batch_size=3, verbose=False) == hybrid.meta["transcribe"]


def test_an_encoder_without_attention_or_convolutions_says_so(contextnet, hybrid):
    with pytest.raises(TypeError, match="ConvASREncoder has no attention"):
        contextnet.change_attention_model("rel_pos_local_attn", [8, 8])
    with pytest.raises(TypeError, match="ConvASREncoder subsamples without convolutions"):
        contextnet.change_subsampling_conv_chunking_factor(2)
    with pytest.raises(TypeError, match="ConformerEncoder has no squeeze and excitation"):
        ASRModel.restore_from(hybrid.path, map_location="cpu").change_conv_asr_se_context_window(64)


def test_squeezing_over_less_than_a_frame_is_refused_and_changes_nothing(contextnet):
    before = contextnet.plain_cfg()
    with pytest.raises(ValueError, match="change_conv_asr_se_context_window: 3 must be negative, or at least the 4 fr"):
        contextnet.change_conv_asr_se_context_window(3)
    assert contextnet.plain_cfg() == before
    assert 0 not in [getattr(module, "context_window", None) for module in contextnet.encoder.modules()]


def test_squeezing_over_a_window_of_features_counts_the_frames_after_each_stride(contextnet, tmp_path):
    contextnet.change_conv_asr_se_context_window(64)
    windows = [64, 32, 16, 16]  # the second and the third block halve the frames
    assert [block.se_context_size for block in contextnet.cfg.encoder.jasper] == windows
    contextnet.save_to(tmp_path / "window.nemo")
    restored = EncDecRNNTModel.restore_from(tmp_path / "window.nemo", map_location="cpu")
    found = [module.context_window for module in restored.encoder.modules() if hasattr(module, "context_window")]
    assert found == windows


def test_predicting_gives_each_utterances_number_and_what_transcribe_says(contextnet, section):
    numbered = OmegaConf.merge(section, {"return_sample_id": True})
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    found = trainer.predict(contextnet, contextnet.build_dataloader(numbered, "predict_ds", False))
    pairs = [pair for batch in found for pair in batch]
    assert [number for number, _ in pairs] == [0, 1, 2]
    clips = [json.loads(line)["audio_filepath"] for line in Path(section.manifest_filepath).read_text().splitlines()]
    assert [hypothesis.text for _, hypothesis in pairs] == contextnet.transcribe(clips, batch_size=2, verbose=False)
    with pytest.raises(ValueError, match="return_sample_id"):
        trainer.predict(contextnet, contextnet.build_dataloader(section, "predict_ds", False))


def test_a_test_is_prepared_where_there_is_data_and_one_device(contextnet, section):
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert not contextnet.prepare_test(trainer), "the file's own test_ds names no data"
    contextnet.setup_multiple_test_data(section)
    assert contextnet.prepare_test(trainer) and contextnet.trainer is trainer
    assert not contextnet.prepare_test(
        lightning.Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    )


def test_a_part_is_built_from_its_config():
    part = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 2, "freq_width": 5}
    assert isinstance(ASRModel.from_config_dict(OmegaConf.create(part)), SpectrogramAugmentation)


def test_a_metric_of_one_batch_keeps_nothing(golden):
    case = golden("conformer_rnnt_char")
    model = ASRModel.restore_from(case.path, map_location="cpu").eval()
    batch = (case.io["encoded"], case.io["encoded_length"], case.io["in_targets"], case.io["in_target_length"])
    metric = WER(model.decoding)
    metric.update(*batch)
    expected = [value.item() for value in metric.compute()]
    assert [value.item() for value in metric.of_batch(*batch)] == expected
    metric.update(*batch)
    assert [value.item() for value in metric.compute()] == expected
    whole = (case.io["in_audio"], case.io["in_audio_length"], case.io["in_targets"], case.io["in_target_length"])
    with torch.no_grad():
        metrics = model.validation_pass(whole, 0, 0)
    assert metrics["val_wer"] == metrics["val_wer_num"] / metrics["val_wer_denom"]


def test_a_training_step_of_a_hybrid_logs_under_nvidias_names(hybrid, monkeypatch):
    config = ASRModel.restore_from(hybrid.path, return_config=True)
    config.interctc = {"loss_weights": [0.2], "apply_at_layers": [0]}
    model = ASRModel.restore_from(hybrid.path, override_config_path=config, map_location="cpu")
    logged = {}
    monkeypatch.setattr(model, "log_step", lambda loss, metrics: logged.update(metrics))
    batch = (
        hybrid.io["in_audio"],
        hybrid.io["in_audio_length"],
        hybrid.io["in_targets"],
        hybrid.io["in_target_length"],
    )
    model.training_step(batch, 0)
    assert set(logged) == {
        "train_rnnt_loss",
        "train_ctc_loss",
        "final_loss",
        "inter_ctc_loss_l0",
        "inter_wer_l0",
        "training_batch_wer",
        "training_batch_wer_ctc",
    }
