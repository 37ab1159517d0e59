import copy
from dataclasses import dataclass, field

import pytest
import yaml
from omegaconf import OmegaConf

from nemo_config import ConfigError, plain, saved_config

CONFIG = """
sample_rate: 16000
labels: [a, b]
train_ds:
  manifest_filepath: ???
  sample_rate: ${model.sample_rate}
  path: ${model.train_ds.manifest_filepath}.x
tokenizer: {dir: /train/here, type: bpe, model_path: tokenizer.model}
files: [{path: a.txt}, {path: b.txt}]
encoder:
  _target_: speech_fixture.encoders.Encoder
  d_model: "${multiply:4,2}"
  norms: [{_target_: nemo.collections.asr.parts.any_file.Norm}]
optim: {_target_: torch.optim.AdamW, lr: "${sum:0.1,0.2}"}
decoder: {target: a value that is no class, num_classes: -1}
"""


@pytest.fixture
def model():
    return OmegaConf.create({"model": OmegaConf.create(CONFIG)}).model


def test_plain_resolves_interpolations_and_keeps_what_is_missing(model):
    resolved = plain(model)
    assert resolved["train_ds"] == {"manifest_filepath": "???", "sample_rate": 16000, "path": "???"}
    assert resolved["encoder"]["d_model"] == 8
    assert resolved["optim"]["lr"] == pytest.approx(0.3)
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved


def test_plain_takes_mappings_and_dataclasses_too():
    @dataclass
    class Section:
        a: int = 1
        twice: str = "${multiply:${a},2}"
        more: tuple[int, ...] = (1, 2)
        inner: dict[str, object] = field(default_factory=lambda: {"list": OmegaConf.create([1, "???"])})

    assert plain(Section()) == {"a": 1, "twice": 2, "more": [1, 2], "inner": {"list": [1, "???"]}}
    assert plain({"a": 1, "b": {"c": "${a}"}}) == {"a": 1, "b": {"c": 1}}
    assert plain({"none": OmegaConf.create({"x": None})}) == {"none": {"x": None}}


def test_plain_gives_a_copy():
    given = {"a": {"b": [1]}}
    plain(given)["a"]["b"].append(2)
    assert given == {"a": {"b": [1]}}


@pytest.mark.parametrize("written", ["${nowhere.to.be.found}", "${multiply:a,2}", "${no_such_resolver:1}"])
def test_an_interpolation_that_cannot_be_resolved_is_named_with_its_path(written):
    for config in ({"a": {"b": written}}, OmegaConf.create({"a": {"b": written}})):
        with pytest.raises(ConfigError, match=r"^model\.a\.b: '\$\{.*' cannot be resolved: ") as caught:
            plain(config, "model")
        assert caught.value.value == written


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_saved_config_is_what_nvidias_toolkit_reads(model, speech_package, as_dict):
    given = plain(model) if as_dict else model
    before = copy.deepcopy(given)
    saved = saved_config(
        given,
        target="speech_fixture.encoders.Encoder",
        references={
            "tokenizer.model_path": "nemo:0_tok.model",
            "files.1.path": "nemo:1_b.txt",
            "new.path": "nemo:2",
        },
        derived={"decoder.num_classes": 28, "decoder.vocabulary": ("a", "b"), "aux.decoder.num_classes": 3},
    )
    assert given == before
    assert saved["encoder"]["_target_"] == "nemo.collections.asr.modules.Encoder"
    assert saved["encoder"]["norms"] == [{"_target_": "nemo.collections.asr.parts.Norm"}]
    assert saved["optim"]["_target_"] == "torch.optim.AdamW"
    assert saved["tokenizer"] == {"dir": "/train/here", "type": "bpe", "model_path": "nemo:0_tok.model"}
    assert saved["files"] == [{"path": "a.txt"}, {"path": "nemo:1_b.txt"}]
    assert saved["new"] == {"path": "nemo:2"}
    assert saved["decoder"] == {"target": "a value that is no class", "num_classes": 28, "vocabulary": ["a", "b"]}
    assert saved["aux"] == {"decoder": {"num_classes": 3}}
    assert list(saved.items())[-1] == ("target", "nemo.collections.asr.modules.Encoder")
    assert yaml.safe_load(yaml.safe_dump(saved)) == saved


def test_saving_a_saved_config_again_changes_nothing(model, speech_package):
    arguments = {"target": "nemo.collections.asr.modules.encoders.Encoder", "references": {}, "derived": {}}
    saved = saved_config(model, **arguments)
    assert saved_config(saved, **arguments) == saved


@pytest.mark.parametrize("path", ["sample_rate.x", "files.2.path", "files.first.path"])
def test_a_path_that_leads_into_a_value_is_an_error(model, path):
    with pytest.raises(ConfigError, match=r"sample_rate|files"):
        saved_config(model, target="x.Y", references={path: "nemo:1"}, derived={})
