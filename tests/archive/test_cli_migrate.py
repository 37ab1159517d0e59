"""nemo-archive migrate; oracle for Hydra 0.x: what NVIDIA's own conversion gave."""

from __future__ import annotations

import io
import tarfile

import pytest
import torch

from nemo_archive import Artifact, open_archive
from nemo_archive.commands.migrations import RULES, migrate_config, today
from nemo_archive.torch import load_state_dict, save_archive
from nemo_archive.yaml_config import write_config


def migrated(config):
    migrate_config(config)
    return config


@pytest.mark.parametrize("name", ["fastconformer_ctc_bpe", "conformer_ctc_bpe", "quartznet_ctc_char"])
def test_a_file_of_today_stays_as_it_is(name, golden, tmp_path, command):
    golden_file = golden / name / "model.nemo"
    path = tmp_path / "model.nemo"
    path.write_bytes(golden_file.read_bytes())
    inode = path.stat().st_ino
    assert command("migrate", path) == (0, "nothing changes\n", "")
    assert (path.stat().st_ino, path.read_bytes()) == (inode, golden_file.read_bytes())


# Computed with nemo_toolkit 3.0.0: OmegaConf.to_container(maybe_update_config_version(OmegaConf.create(before)))
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"enc": {"cls": "nemo.collections.asr.modules.ConvASREncoder", "params": {"feat_in": 64, "j": [{"r": 1}]}}},
            {"enc": {"_target_": "nemo.collections.asr.modules.ConvASREncoder", "feat_in": 64, "j": [{"r": 1}]}},
        ),
        ({"a": {"cls": "x.Y", "_target_": "x.Z"}}, {"a": {"cls": "x.Y", "_target_": "x.Z"}}),
        ({"params": {"b": 1}, "b": 2, "c": {"params": {"params": {"d": 3}}}}, {"b": 1, "c": {"params": {"d": 3}}}),
        (
            {"list": [{"cls": "x.Y"}], "n": {"params": {"e": {"cls": "x.Y"}}}},
            {"list": [{"cls": "x.Y"}], "n": {"e": {"_target_": "x.Y"}}},
        ),
    ],
)  # fmt: skip
def test_hydra_zero_becomes_hydra_one_as_nvidia_does_it(before, after):
    assert migrated(before) == after


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nemo_text_processing.g2p.modules.EnglishG2p", "nemo.collections.tts.g2p.models.en_us_arpabet.EnglishG2p"),
        ("nemo.collections.tts.torch.g2ps.EnglishG2p", "nemo.collections.tts.g2p.models.en_us_arpabet.EnglishG2p"),
        ("nemo.collections.tts.g2p.modules.IPAG2P", "nemo.collections.tts.g2p.models.i18n_ipa.IpaG2p"),
        ("nemo.collections.tts.torch.g2ps.ChineseG2p", "nemo.collections.tts.g2p.models.zh_cn_pinyin.ChineseG2p"),
        (
            "nemo.collections.tts.torch.tts_tokenizers.EnglishPhonemesTokenizer",
            "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers.EnglishPhonemesTokenizer",
        ),
        ("nemo.collections.tts.torch.data.TTSDataset", "nemo.collections.tts.data.dataset.TTSDataset"),
        (
            "nemo.collections.asr.parts.features.FilterbankFeatures",
            "nemo.collections.asr.parts.preprocessing.features.FilterbankFeatures",
        ),
        ("pytorch_lightning.callbacks.Timer", "lightning.pytorch.callbacks.Timer"),
        ("nemo.collections.asr.modules.ConformerEncoder", "nemo.collections.asr.modules.ConformerEncoder"),
        ("mine.pytorch_lightning.X", "mine.pytorch_lightning.X"),
    ],
)
def test_moved_classes_get_the_name_they_have_today(old, new):
    assert today(old) == new
    assert today(new) == new
    assert migrated({"a": [{"_target_": old}], "target": old}) == {"a": [{"_target_": new}], "target": new}


def test_multilingual_tokenizers_are_aggregate():
    langs = {"en": {"type": "bpe"}, "es": {"type": "bpe"}}
    assert migrated({"tokenizer": {"type": "multilingual", "langs": langs}}) == {
        "tokenizer": {"type": "agg", "langs": langs}
    }
    other = {"dataset": {"type": "multilingual"}}
    assert migrated({"dataset": {"type": "multilingual"}}) == other


def test_options_of_the_ctc_beam_search_are_renamed_where_they_are_set():
    beam = {"beam_size": 4, "beam_alpha": 0.5, "kenlm_path": "lm.bin", "ngram_lm_alpha": 1.0}
    now = {"beam_size": 4, "ngram_lm_alpha": 0.5, "ngram_lm_model": "lm.bin"}
    unset = {"beam_alpha": None, "kenlm_path": None, "ngram_lm_alpha": 1.0}
    assert migrated({"decoding": {"beam": dict(beam)}}) == {"decoding": {"beam": now}}
    assert migrated({"aux_ctc": {"decoding": {"beam": dict(beam)}}}) == {"aux_ctc": {"decoding": {"beam": now}}}
    assert migrated({"decoding": {"beam": dict(unset)}}) == {"decoding": {"beam": unset}}


def test_the_language_models_tokenizer_comes_to_where_restoring_looks(tmp_path, command):
    artifact = Artifact("tokenizer.model", b"spm")
    config = {
        "tokenizer": {"tokenizer_name": "sentencepiece", "tokenizer_model": "/home/them/tokenizer.model"},
        "cfg": {"tokenizer": {"tokenizer_model": artifact.reference}},
    }
    save_archive(tmp_path / "x.nemo", config, {"w": torch.ones(3)}, [artifact])
    assert command("migrate", tmp_path / "x.nemo").status == 0
    with open_archive(tmp_path / "x.nemo") as archive:
        assert archive.artifact("tokenizer.tokenizer_model").data == b"spm"
        assert "cfg" not in archive.config()
        assert set(archive.members) == {artifact.archive_name, "model_config.yaml", "model_weights.ckpt"}


def test_migrating_twice_is_migrating_once():
    config = {
        "cls": "nemo_text_processing.g2p.modules.IPAG2P", "tokenizer": {"type": "multilingual", "langs": {"en": {}}},
        "encoder": {"cls": "x.Y", "params": {"a": 1}}, "decoding": {"beam": {"kenlm_path": "x"}},
    }  # fmt: skip
    once = migrated(config)
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in once.items()}
    assert migrated(copy) == once
    assert len(RULES) == 5


@pytest.mark.parametrize("suffix", ["", "gz"])
def test_plain_artifact_names_and_gzip_become_todays(suffix, golden, tmp_path, command):
    source = golden / "fastconformer_ctc_bpe" / "model_legacy_artifact_names.nemo"
    path = tmp_path / "model.nemo"
    with open_archive(source) as archive:
        before = {key: artifact.data for key, artifact in archive.artifacts().items()}
        members = {name: archive.read(name) for name in archive.members}
    with tarfile.open(path, "w:" + suffix) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    result = command("migrate", path, "--json")
    assert (result.status, result.err) == (0, "")
    assert any("gz" in note or "plain tar" in note for note in result.json["notes"]) == bool(suffix)
    with tarfile.open(path, "r:") as tar:
        assert all(name.startswith("./") or name == "." for name in tar.getnames())
    with open_archive(path) as archive:
        config = archive.config()
        assert before
        for key, data in before.items():
            artifact = archive.artifact(key)
            assert artifact.data == data
            assert config["tokenizer"][key.removeprefix("tokenizer.")] == artifact.reference
            assert artifact.name == Artifact(artifact.name[33:], data).archive_name
        assert archive.read("model_weights.ckpt") == members["model_weights.ckpt"]
    assert command("migrate", path).out == "nothing changes\n"
    assert command("diff", source, path, "--only", "tensors").status == 0


def test_a_dry_run_writes_nothing_and_an_output_leaves_the_input(golden, tmp_path, command):
    path = tmp_path / "old.nemo"
    path.write_bytes((golden / "quartznet_ctc_char" / "model_legacy_gz.nemo").read_bytes())
    before = path.read_bytes()
    assert command("migrate", path, "--dry-run").out == "the archive becomes a plain tar file, which can be mapped\n"
    assert command("migrate", path, "--output", tmp_path / "new.nemo").status == 0
    assert path.read_bytes() == before
    assert command("diff", path, tmp_path / "new.nemo").status == 0
    with tarfile.open(tmp_path / "new.nemo", "r:") as tar:
        assert "./model_weights.ckpt" in tar.getnames()


def test_checkpoints_of_torch_before_one_point_six_become_zip(make_tar, command):
    state = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    path = make_tar({"model_config.yaml": write_config({"target": "a.B"}), "model_weights.ckpt": stream.getvalue()})
    result = command("migrate", path)
    assert (result.status, result.out) == (0, "model_weights.ckpt becomes a zip checkpoint\n")
    with open_archive(path) as archive:
        assert archive.read("model_weights.ckpt")[:4] == b"PK\3\4"
    again = load_state_dict(path)
    assert list(again) == list(state)
    assert all(torch.equal(again[name], state[name]) for name in state)
