"""Starting weights by the init_from_* keys of a training config."""

import logging

import pytest
import torch
from omegaconf import OmegaConf

from nemo_config import ConfigError
from nemo_expmgr.init_from import parse_sources
from nemo_expmgr.pretrained import PretrainedModelInfo


@pytest.fixture
def other(tiny_class, tiny_cfg):
    """A model with other weights than those of tiny_model."""
    torch.manual_seed(1)
    return tiny_class(tiny_cfg)


@pytest.fixture
def nemo_file(other, tmp_path):
    path = tmp_path / "base.nemo"
    other.save_to(path)
    return str(path)


@pytest.fixture
def ckpt_file(other, tmp_path):
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": other.state_dict(), "hyper_parameters": {}}, path)
    return str(path)


def test_without_a_key_or_with_null_nothing_is_loaded(tiny_model):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    tiny_model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"model": {}, "init_from_nemo_model": None}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


@pytest.mark.parametrize("form", ["string", "one mapping", "named mappings"])
def test_a_nemo_file_gives_all_its_weights_in_every_form(tiny_model, other, nemo_file, ids, form):
    value = {"string": nemo_file, "one mapping": {"path": nemo_file}, "named mappings": {"model0": {"path": nemo_file}}}
    cfg = OmegaConf.create({"init_from_nemo_model": value[form]})
    before = OmegaConf.to_yaml(cfg)
    tiny_model.maybe_init_from_pretrained_checkpoint(cfg)
    assert torch.equal(tiny_model(ids), other(ids))
    assert tiny_model.output.weight is tiny_model.embedding.weight
    assert OmegaConf.to_yaml(cfg) == before


def test_include_and_exclude_choose_by_parts_of_names(tiny_model, other, nemo_file):
    bias, embedding = tiny_model.inner.bias.clone(), tiny_model.embedding.weight.clone()
    source = {"path": nemo_file, "include": ["inner"], "exclude": ["bias"]}
    tiny_model.maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": {"base": source}})
    assert torch.equal(tiny_model.inner.weight, other.inner.weight)
    assert torch.equal(tiny_model.inner.bias, bias)
    assert torch.equal(tiny_model.embedding.weight, embedding)


def test_several_files_each_give_their_part(tiny_model, other, nemo_file, ckpt_file, tiny_class, tiny_cfg, tmp_path):
    third = tiny_class(tiny_cfg)
    third.save_to(tmp_path / "third.nemo")
    sources = {
        "model0": {"path": nemo_file, "include": ["inner"]},
        "model1": {"path": str(tmp_path / "third.nemo"), "include": ["embedding", "output"]},
    }
    tiny_model.maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": sources})
    assert torch.equal(tiny_model.inner.weight, other.inner.weight)
    assert torch.equal(tiny_model.embedding.weight, third.embedding.weight)


def test_a_lightning_checkpoint_gives_its_weights(tiny_model, other, ckpt_file, ids):
    tiny_model.maybe_init_from_pretrained_checkpoint({"init_from_ptl_ckpt": ckpt_file})
    assert torch.equal(tiny_model(ids), other(ids))


def test_a_pretrained_model_is_found_by_its_listed_name(tiny_class, tiny_cfg, other, nemo_file, ids):
    class Listed(tiny_class):
        @classmethod
        def list_available_models(cls):
            return [PretrainedModelInfo("tiny_en", "tiny", nemo_file)]

    model = Listed(tiny_cfg)
    model.maybe_init_from_pretrained_checkpoint({"init_from_pretrained_model": {"base": {"name": "tiny_en"}}})
    assert torch.equal(model(ids), other(ids))


def test_two_keys_are_refused(tiny_model, nemo_file, ckpt_file):
    with pytest.raises(ConfigError, match=r"init_from_nemo_model.*excludes init_from_ptl_ckpt"):
        tiny_model.maybe_init_from_pretrained_checkpoint(
            {"init_from_nemo_model": nemo_file, "init_from_ptl_ckpt": ckpt_file}
        )


def test_other_shapes_are_listed_unless_excluded(tiny_class, tiny_cfg, words_file, other, nemo_file):
    words_file.write_text("one two three")
    model = tiny_class(tiny_cfg)
    with pytest.raises(ConfigError, match=r"exclude.*embedding\.weight \(5, 8\), here \(3, 8\)"):
        model.maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": nemo_file})
    source = {"path": nemo_file, "exclude": ["embedding", "output"]}
    model.maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": source})
    assert torch.equal(model.inner.weight, other.inner.weight)


def test_a_file_without_a_common_parameter_is_an_error(tiny_model, nemo_file, tmp_path):
    torch.save({"state_dict": {"encoder.weight": torch.zeros(2)}}, tmp_path / "strange.ckpt")
    with pytest.raises(ConfigError, match="no parameter to load"):
        tiny_model.maybe_init_from_pretrained_checkpoint({"init_from_ptl_ckpt": str(tmp_path / "strange.ckpt")})
    with pytest.raises(ConfigError, match="0 are wanted"):
        source = {"path": nemo_file, "include": ["typo"]}
        tiny_model.maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": source})


def test_one_line_tells_what_was_loaded_left_out_and_left_as_it_is(tiny_class, tiny_cfg, nemo_file, caplog):
    class Larger(tiny_class):
        def __init__(self, cfg, trainer=None):
            super().__init__(cfg, trainer)
            self.extra = torch.nn.Linear(2, 2)

    with caplog.at_level(logging.INFO, logger="nemo_expmgr"):
        source = {"path": nemo_file, "exclude": ["inner.bias"]}
        Larger(tiny_cfg).maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": source})
    [message] = [record.getMessage() for record in caplog.records if record.name == "nemo_expmgr.init_from"]
    assert "3 parameters loaded" in message
    assert "1 left out by include and exclude (inner.bias)" in message
    assert "extra.weight" in message and "extra.bias" in message


def test_a_resumed_run_does_not_read_the_starting_weights(tiny_model):
    class Resuming:
        ckpt_path = "last.ckpt"

    tiny_model._trainer = Resuming()
    tiny_model.maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": "/nowhere.nemo"})
    tiny_model._trainer = None
    with pytest.raises(OSError, match="nowhere"):
        tiny_model.maybe_init_from_pretrained_checkpoint({"init_from_nemo_model": "/nowhere.nemo"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "must be a path or a mapping"),
        ({}, "must be a path or a mapping"),
        ({"model0": "a.nemo"}, r"model0: 'a\.nemo' must be a mapping with path"),
        ({"model0": {"path": "a.nemo", "includes": ["x"]}}, r"model0\.includes.*include"),
        ({"path": "a.nemo", "exclude": "decoder"}, r"exclude: 'decoder' must be a list"),
    ],
)
def test_a_wrong_form_names_the_place(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_sources("init_from_nemo_model", value)
