"""EncDecCTCModel as a user meets it: made from a config, trained, saved, restored, changed."""

import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

from nemo_asr import load_model
from nemo_asr.commands import tokenizer as tokenizer_command
from nemo_asr.commands.train import CONFIGS, build_trainer, train
from nemo_asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from nemo_asr.models.family import model_class_for
from nemo_config import ConfigError

SPEECH = Path(__file__).parents[1] / "data" / "speech"
TINY = ["model.encoder.n_layers=1", "model.encoder.d_model=32", "model.encoder.n_heads=2"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    manifest = str(SPEECH / "train.jsonl")
    assert tokenizer_command.main(["--manifest", manifest, "--out", str(folder), "--vocab-size", "64"]) == 0
    return folder


def config_of(name, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(name, overrides=list(overrides))


def small_bpe(tokenizer, *overrides):
    return config_of("quickstart", f"model.tokenizer.dir={tokenizer}", *TINY, *overrides)


def noise(*lengths):
    signal = 0.1 * torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
    return {"input_signal": signal, "input_signal_length": torch.tensor(lengths)}


SHIPPED = {  # the class, and millions of parameters
    "quartznet_15x5": ("EncDecCTCModel", 18.5, 19.5),  # 18.9 in the paper, table 1
    "citrinet_512": ("EncDecCTCModelBPE", 36, 37.5),  # 36.3 in the paper, table 2
    "conformer_ctc_bpe": ("EncDecCTCModelBPE", 115, 125),
    "conformer_ctc_char": ("EncDecCTCModel", 25, 32),
    "conformer_transducer_bpe": ("EncDecRNNTBPEModel", 115, 125),
    "conformer_transducer_char": ("EncDecRNNTModel", 115, 125),
    "contextnet_rnnt": ("EncDecRNNTBPEModel", 140, 150),
    "fastconformer_ctc_bpe": ("EncDecCTCModelBPE", 112, 118),
    "fastconformer_ctc_char": ("EncDecCTCModel", 112, 118),
    "fastconformer_hybrid_tdt_ctc_bpe": ("EncDecHybridRNNTCTCBPEModel", 110, 118),  # 114 with NVIDIA's 1024 tokens
    "fastconformer_hybrid_transducer_ctc_bpe": ("EncDecHybridRNNTCTCBPEModel", 110, 118),
    "fastconformer_hybrid_transducer_ctc_char": ("EncDecHybridRNNTCTCModel", 110, 118),
    "fastconformer_tdt_bpe": ("EncDecRNNTBPEModel", 110, 118),
    "fastconformer_transducer_bpe": ("EncDecRNNTBPEModel", 110, 118),
    "fastconformer_transducer_char": ("EncDecRNNTModel", 110, 118),
    "quickstart": ("EncDecCTCModelBPE", 0.9, 1.05),
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_config_makes_the_model_it_names(path, tokenizer):
    bpe = "tokenizer" in config_of(path.stem).model
    config = config_of(path.stem, *([f"model.tokenizer.dir={tokenizer}"] if bpe else []))
    with torch.device("meta"):
        model = model_class_for(config.model)(cfg=config.model)
    name, low, high = SHIPPED[path.stem]
    assert type(model).__name__ == name
    assert low < sum(parameter.numel() for parameter in model.parameters()) / 1e6 < high


def test_saving_and_restoring_gives_the_same_outputs_without_the_tokenizers_folder(tokenizer, tmp_path):
    folder = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    model = EncDecCTCModelBPE(cfg=small_bpe(folder).model).eval()
    model.save_to(tmp_path / "first.nemo")
    shutil.rmtree(folder)
    again = ASRModel.restore_from(tmp_path / "first.nemo", map_location="cpu").eval()
    (tmp_path / "first.nemo").rename(tmp_path / "moved.nemo")
    again.save_to(tmp_path / "second.nemo")
    audio = noise(12000, 9000)
    with torch.inference_mode():
        expected = model(**audio)
        for restored in (again, load_model(tmp_path / "second.nemo")):
            for one, other in zip(expected, restored(**audio), strict=True):
                torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert (tmp_path / "moved.nemo").read_bytes() == (tmp_path / "second.nemo").read_bytes()


def test_training_leaves_logs_checkpoints_and_a_file_that_transcribes(tokenizer, tmp_path):
    overrides = [
        f"model.train_ds.manifest_filepath={SPEECH / 'heldout_sentences.jsonl'}",
        f"model.validation_ds.manifest_filepath={SPEECH / 'heldout_sentences.jsonl'}",
        "model.test_ds=null",
        f"exp_manager.exp_dir={tmp_path}",
        "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    ]
    train(small_bpe(tokenizer, *overrides))
    checkpoints = tmp_path / "quickstart" / "checkpoints"
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    assert list(checkpoints.glob("*-last.ckpt"))
    network = load_model(checkpoints / "quickstart.nemo")
    (text,) = network.transcribe(next(SPEECH.rglob("*.flac")), verbose=False)
    assert isinstance(text, str)
    restored = EncDecCTCModelBPE.load_from_checkpoint(next(checkpoints.glob("*-last.ckpt")), map_location="cpu")
    torch.testing.assert_close(
        restored.state_dict(),
        ASRModel.restore_from(checkpoints / "quickstart.nemo", map_location="cpu").state_dict(),
        atol=0,
        rtol=0,
    )


def test_intermediate_ctc_weighs_the_losses_of_inner_layers(tokenizer):
    plain_config = small_bpe(tokenizer, "model.encoder.n_layers=2")
    config = small_bpe(
        tokenizer, "model.encoder.n_layers=2", "model.interctc.loss_weights=[0.3]", "model.interctc.apply_at_layers=[0]"
    )
    torch.manual_seed(0)
    model = EncDecCTCModelBPE(cfg=plain_config.model).eval()
    inner = EncDecCTCModelBPE(cfg=config.model).eval()
    inner.load_state_dict(model.state_dict())
    audio = noise(12000, 9000)
    batch = (*audio.values(), torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2]))
    loss, metrics = model.validation_pass(batch)["val_loss"], inner.validation_pass(batch)
    torch.testing.assert_close(metrics["val_final_loss"], loss)
    torch.testing.assert_close(metrics["val_loss"], 0.7 * loss + 0.3 * metrics["val_inter_ctc_loss_l0"])
    assert not torch.equal(metrics["val_inter_ctc_loss_l0"], loss)
    encoded, encoded_len, captured = inner.inter_ctc.encode(inner.encoder, *inner.features(*audio.values()))
    for name, (frames, length) in (("val_wer", (encoded, encoded_len)), ("val_inter_wer_l0", captured[0])):
        counts = inner.wer.of_batch(inner.decoder(encoder_output=frames), length, *batch[2:])
        assert [metrics[key] for key in (name, f"{name}_num", f"{name}_denom")] == list(counts)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("quickstart", [*TINY, "model.interctc.apply_at_layers=[4]"], "must be layers from 0 to 0"),
        ("quickstart", [*TINY, "model.interctc.apply_at_layers=[0,0]"], "as many as loss_weights"),
        ("citrinet_512", ["+model.interctc.apply_at_layers=[4]"], "ConvASREncoder is not"),
    ],
)
def test_intermediate_ctc_that_does_not_fit_the_encoder_is_an_error_at_once(tokenizer, name, overrides, says):
    weights = ["++model.interctc.loss_weights=[0.3]", f"model.tokenizer.dir={tokenizer}"]
    with torch.device("meta"), pytest.raises(ConfigError, match=rf"model\.interctc\.apply_at_layers: .*{says}"):
        EncDecCTCModelBPE(cfg=config_of(name, *overrides, *weights).model)


def test_numbers_of_the_utterances_may_follow_in_a_batch(tokenizer):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model).eval()
    batch = (*noise(12000, 9000).values(), torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2]))
    numbered = (*batch, torch.tensor([17, 4]))
    assert model.training_step(numbered, 0) == model.training_step(batch, 0)
    assert model.validation_step(numbered, 0) == model.validation_step(batch, 0)


@pytest.mark.parametrize(("interval", "logged"), [(3, [2, 5]), (1, [0, 1, 2, 3, 4, 5]), (0, [])])
def test_the_error_rate_of_a_batch_is_computed_where_the_trainer_logs(tokenizer, interval, logged):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model, trainer=Trainer(log_every_n_steps=interval, logger=False))
    assert [step for step in range(6) if model.logs_step(step)] == logged


@pytest.mark.parametrize("skip", [True, False])
def test_gradients_that_are_not_finite_become_zero_on_request(tokenizer, skip):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer, f"+model.skip_nan_grad={skip}").model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.on_after_backward()
    assert all(parameter.grad.eq(1).all() for parameter in model.parameters())
    next(model.parameters()).grad.view(-1)[0] = torch.nan
    model.on_after_backward()
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters()) is skip


def test_a_new_vocabulary_replaces_the_head_and_keeps_the_encoder(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model)
    encoder = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    arguments = ["--manifest", str(SPEECH / "train.jsonl"), "--out", str(tmp_path / "other"), "--vocab-size", "48"]
    assert tokenizer_command.main(arguments) == 0
    model.change_vocabulary(str(tmp_path / "other"), "bpe")
    assert model.decoder.num_classes_with_blank == 49
    torch.testing.assert_close(dict(model.encoder.state_dict()), encoder, atol=0, rtol=0)
    model.save_to(tmp_path / "changed.nemo")
    shutil.rmtree(tmp_path / "other")
    restored = ASRModel.restore_from(tmp_path / "changed.nemo", map_location="cpu")
    assert restored.tokenizer.vocabulary == model.tokenizer.vocabulary
    assert len(restored.tokenizer.vocabulary) == 48
    assert len(restored.artifacts) == 3


def test_a_vocabulary_that_is_not_there_leaves_the_model_as_it_was(tokenizer, tmp_path):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model_path: .*nowhere"):
        model.change_vocabulary(str(tmp_path / "nowhere"), "bpe")
    model.save_to(tmp_path / "model.nemo")
    restored = ASRModel.restore_from(tmp_path / "model.nemo", map_location="cpu")
    assert restored.tokenizer.vocabulary == model.tokenizer.vocabulary
    assert len(restored.artifacts) == 3


def test_a_new_head_is_in_the_mode_of_the_old_one_and_decodes_as_asked(tokenizer, tmp_path):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model).eval()
    model.change_vocabulary(str(tokenizer), "bpe", decoding_cfg={"compute_timestamps": True})
    assert not any(module.training for module in model.modules())
    assert model.cfg.decoding.compute_timestamps
    assert model.decoding.config.wants_timestamps


def test_another_decoding_sets_the_temperature_of_the_head(tokenizer):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model).eval()
    audio = noise(12000)
    before = model(**audio)[0]
    model.change_decoding_strategy({"temperature": 2.0}, verbose=False)
    torch.testing.assert_close(model(**audio)[0], (before / 2.0).log_softmax(-1))
    model.change_decoding_strategy(model.cfg.decoding)
    assert model.decoder.temperature == 2.0


@pytest.mark.parametrize("kind", ["agg", "multilingual"])
def test_a_vocabulary_of_several_languages_is_saved_and_read(tokenizer, tmp_path, kind):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model).eval()
    one = {"dir": str(tokenizer), "type": "bpe"}
    model.change_vocabulary(OmegaConf.create({"type": kind, "langs": {"en": one, "es": one}}), "agg")
    model.save_to(tmp_path / "two.nemo")
    assert ASRModel.restore_from(tmp_path / "two.nemo", return_config=True).tokenizer.type == "agg"
    network = load_model(tmp_path / "two.nemo")
    ids = network.tokenizer.encode("thank you", "es")
    assert min(ids) >= 64 and network.tokenizer.decode(ids) == " thank you"
    torch.testing.assert_close(network(**noise(12000))[0], model(**noise(12000))[0], atol=0, rtol=0)


def test_a_character_model_takes_its_labels_and_can_change_them(tmp_path):
    config = config_of("fastconformer_ctc_char", *TINY, "model.encoder.subsampling_conv_channels=8")
    model = EncDecCTCModel(cfg=config.model)
    assert model.tokenizer.vocabulary == list(config.model.labels)
    model.change_vocabulary(["a", "b", " "])
    model.save_to(tmp_path / "abc.nemo")
    restored = EncDecCTCModel.restore_from(tmp_path / "abc.nemo", map_location="cpu")
    assert restored.tokenizer.vocabulary == ["a", "b", " "]
    assert restored.decoder.num_classes_with_blank == 4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+model.encoder.n_headz=4", ["model.encoder.n_headz", "n_heads"]),
        ("model.encoder.n_heads=5", ["model.encoder.n_heads", "5", "32"]),
        ("model.encoder.d_model=wide", ["model.encoder.d_model", "wide"]),
        ("+model.otpim.lr=1", ["model.otpim", "optim"]),
        ("+model.preprocessor.feature=80", ["model.preprocessor.feature", "features"]),
        ("model.encoder._target_=os.system", ["model.encoder._target_", "os.system"]),
        ("+model.decoding.strategy=beem", ["model.decoding.strategy", "beem"]),
        (
            "+model.decoding.greedy={ngram_lm_model:en.arpa,ngram_lm_alpha:0.5}",
            ["model.decoding.greedy.ngram_lm_model", "en.arpa", "there is no such file"],
        ),
        ("+model.decoding.confidence_cfg.aggregation=median", ["decoding.confidence_cfg.aggregation", "median", "min"]),
        ("+model.adapters.linear={}", ["model.adapters"]),
        ("model.encoder=null", ["model.encoder", "must be a section"]),
    ],
)
def test_a_typing_error_names_path_value_and_rule(tokenizer, override, says):
    with pytest.raises(ConfigError) as error:
        EncDecCTCModelBPE(cfg=small_bpe(tokenizer, override).model)
    for word in says:
        assert word in str(error.value)


def test_the_config_that_was_given_is_not_edited(tokenizer):
    config = small_bpe(tokenizer)
    before = OmegaConf.to_yaml(config)
    EncDecCTCModelBPE(cfg=config.model)
    assert OmegaConf.to_yaml(config) == before


def test_the_trainer_section_is_checked():
    assert isinstance(build_trainer({"devices": -1, "accelerator": "cpu", "logger": False}), Trainer)
    with pytest.raises(ConfigError, match=r"trainer\.max_epoch\b.*max_epochs"):
        build_trainer({"max_epoch": 1})


def test_a_frozen_encoder_does_not_learn(tokenizer):
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model)
    model.encoder.freeze()
    assert not model.encoder.training and model.encoder.num_weights == 0
    batch = (*noise(12000, 9000).values(), torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2]))
    model.training_step(batch, 0).backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    model.encoder.unfreeze()
    assert model.encoder.training and model.encoder.num_weights > 0


def test_a_changed_attention_is_saved_as_it_is(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = EncDecCTCModelBPE(cfg=small_bpe(tokenizer).model).eval()
    audio = noise(16000)
    with torch.inference_mode():
        before = model(**audio)[0]
        model.change_attention_model("rel_pos_local_attn", [4, 4])
        local = model(**audio)[0]
        model.save_to(tmp_path / "local.nemo")
        restored = load_model(tmp_path / "local.nemo")(**audio)[0]
    assert not torch.allclose(before, local)
    torch.testing.assert_close(restored, local, atol=0, rtol=0)
