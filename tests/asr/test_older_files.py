"""Files as older releases wrote them, made from golden ones: what they lack or spell otherwise changes no text."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nemo_asr import load_model
from nemo_asr.models import ASRModel

GOLDEN = Path(__file__).parents[1] / "golden"
BPE, CHARACTERS = "fastconformer_ctc_bpe", "quartznet_ctc_char"


def rewritten(case, edit, path):
    """A golden file with an edited config and members."""
    with tarfile.open(GOLDEN / case / "model.nemo") as archive:
        members = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}
    config = yaml.safe_load(members["model_config.yaml"])
    edit(config, members)
    members["model_config.yaml"] = yaml.safe_dump(config, sort_keys=False).encode()
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def restore(path):
    return ASRModel.restore_from(path, map_location="cpu")


def without_sections_of_later_releases(config, members):
    for key in ("decoding", "interctc", "nemo_version", "spec_augment", "labels"):
        config.pop(key, None)


def without_the_tokenizers_companions(config, members):
    for key in ("vocab_path", "spe_tokenizer_vocab"):
        del members[config["tokenizer"].pop(key).removeprefix("nemo:")]


def with_sizes_left_to_the_tokenizer(config, members):
    config["decoder"] |= {"feat_in": None, "num_classes": -1}
    del config["decoder"]["vocabulary"]


def with_cls_and_params(config, members):
    for name in ("preprocessor", "encoder", "decoder", "spec_augment"):
        section = config[name]
        config[name] = {"cls": section.pop("_target_"), "params": section}
    del config["labels"]


def with_keys_of_other_releases(config, members):
    config["preprocessor"] |= {"stft_conv": True, "stft_exact_pad": False, "mel_basis": "htk"}
    config["interctc"] = {"loss_weights": [], "apply_at_layers": [], "mode": "all"}
    config["decoding"] = {"rnnt": {"beam": 4}, "greedy": {"preserve_word_confidence": True}}
    config["decoding"]["confidence_cfg"] = {"preserve_frame_confidence": True}
    config["distillation"] = {"teacher": None}


def with_a_stride_in_samples(config, members):
    section = config["preprocessor"]
    section |= {"n_window_stride": int(section["window_stride"] * section["sample_rate"]), "window_stride": None}


def with_the_weights_of_another_front_end(config, members):
    weights = torch.load(io.BytesIO(members["model_weights.ckpt"]), weights_only=True)
    for name in ("window", "fb"):
        del weights[f"preprocessor.featurizer.{name}"]
    weights["preprocessor.featurizer.stft.forward_basis"] = torch.zeros(3)
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    members["model_weights.ckpt"] = buffer.getvalue()


def with_the_oldest_name_of_the_class(config, members):
    config["target"] = "nemo.collections.asr.models." + config["target"].rpartition(".")[2]


@pytest.mark.parametrize("load", [load_model, restore])
@pytest.mark.parametrize(
    ("case", "edit"),
    [
        (BPE, without_sections_of_later_releases),
        (CHARACTERS, without_sections_of_later_releases),
        (BPE, without_the_tokenizers_companions),
        (BPE, with_sizes_left_to_the_tokenizer),
        (CHARACTERS, with_cls_and_params),
        (BPE, with_keys_of_other_releases),
        (BPE, with_a_stride_in_samples),
        (CHARACTERS, with_the_weights_of_another_front_end),
        (CHARACTERS, with_the_oldest_name_of_the_class),
    ],
)
def test_an_older_file_reads_as_the_golden_one(case, edit, load, tmp_path):
    meta = json.loads((GOLDEN / case / "meta.json").read_text())
    with np.load(GOLDEN / case / "io.npz") as arrays:
        audio = arrays["in_audio"][0, : arrays["in_audio_length"][0]]
    model = load(rewritten(case, edit, tmp_path / "older.nemo"))
    (hypothesis,) = model.transcribe(audio, timestamps=True, verbose=False)
    assert hypothesis.text == meta["transcribe"][0]
    assert hypothesis.timestamp["char"] == meta["transcribe_timestamps"][0]["timestamp"]["char"]


@pytest.mark.parametrize("load", [load_model, restore])
def test_a_file_without_its_tokenizer_is_named(load, tmp_path):
    def edit(config, members):
        del members[config["tokenizer"]["model_path"].removeprefix("nemo:")]

    path = rewritten(BPE, edit, tmp_path / "incomplete.nemo")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model_path: nemo:.*incomplete\.nemo"):
        load(path)


def test_the_vocabulary_of_a_file_with_cls_and_params_can_be_changed(tmp_path):
    model = restore(rewritten(CHARACTERS, with_cls_and_params, tmp_path / "older.nemo"))
    model.change_vocabulary(["a", "b", " "])
    model.save_to(tmp_path / "changed.nemo")
    assert load_model(tmp_path / "changed.nemo").tokenizer.vocabulary == ["a", "b", " "]
