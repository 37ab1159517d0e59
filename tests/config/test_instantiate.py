import copy
import functools
import logging

import pytest
import torch
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import OmegaConf

from nemo_config import ConfigError, instantiate, register_targets

ENCODER = "nemo.collections.asr.modules.Encoder"
NORM = "nemo.collections.asr.parts.Norm"


@pytest.mark.parametrize("as_omegaconf", [False, True])
def test_a_section_with_nested_sections_and_lists_is_built(speech_package, as_omegaconf):
    section = {
        "_target_": ENCODER,
        "d_model": 8,
        "dropout": 0,
        "context": [3, 4],
        "norm": {"_target_": NORM, "size": "${..d_model}" if as_omegaconf else 8},
        "layers": [{"_target_": NORM, "size": 1}, {"inner": {"_target_": NORM, "size": 2}}, 5],
    }
    config = OmegaConf.create({"model": {"encoder": section}}).model.encoder if as_omegaconf else section
    before = copy.deepcopy(config)
    encoder = instantiate(config, path="model.encoder")
    assert (type(encoder).__name__, encoder.d_model, encoder.context) == ("Encoder", 8, [3, 4])
    assert type(encoder.dropout) is float
    assert (type(encoder.context), encoder.norm.size) == (list, 8)
    assert (encoder.layers[0].size, encoder.layers[1]["inner"].size, encoder.layers[2]) == (1, 2, 5)
    assert config == before


def test_hydras_own_instantiate_builds_the_same(speech_package):
    section = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.5, "_partial_": True}
    ours, theirs = instantiate(section), hydra_instantiate(section)
    assert isinstance(ours, functools.partial)
    assert (ours.func, ours.keywords) == (theirs.func, theirs.keywords)
    relu = {"_target_": "torch.nn.LeakyReLU", "_args_": [0.2], "_convert_": "all"}
    assert repr(instantiate(relu)) == repr(hydra_instantiate(relu))
    loss = {"_target_": "torch.nn.CTCLoss", "blank": 3, "zero_infinity": True}
    assert vars(instantiate(loss)).items() >= {"blank": 3, "zero_infinity": True}.items()


@pytest.mark.parametrize(
    "name", ["os.system", "torch.nn.utils.rnn.torch.os.system", "canary_module.Thing", "builtins.print"]
)
@pytest.mark.parametrize("place", ["top", "nested", "list"])
def test_a_forbidden_class_is_refused_with_its_path_before_anything_is_built(name, place, speech_package, canary):
    built = []
    register_targets({"tests.note": lambda **kwargs: built.append(kwargs)})
    bad = {"_target_": name, "command": "true"}
    section, path = {
        "top": (bad, "model._target_"),
        "nested": ({"_target_": "tests.note", "a": {"_target_": "tests.note"}, "b": bad}, "model.b._target_"),
        "list": ({"_target_": "tests.note", "a": [{"_target_": "tests.note"}, bad]}, "model.a.1._target_"),
    }[place]
    with pytest.raises(ConfigError) as caught:
        instantiate(section, path="model")
    assert (caught.value.path, caught.value.value) == (path, name)
    assert built == []
    assert not canary.exists()


def test_an_unknown_key_names_the_nearest_one(speech_package):
    with pytest.raises(ConfigError) as caught:
        instantiate({"_target_": ENCODER, "d_model": 8, "n_headz": 2}, path="model.encoder")
    assert str(caught.value) == (
        "model.encoder.n_headz: 2 is given, but Encoder has no such key; nearest valid key: model.encoder.n_heads"
    )


def test_where_a_file_speaks_unknown_keys_are_dropped_with_one_line(speech_package, caplog):
    section = {"_target_": ENCODER, "d_model": 8, "future": {"_target_": "nemo.unknown.Thing"}, "other": "???"}
    with caplog.at_level(logging.INFO, logger="nemo_config"):
        encoder = instantiate(section, path="encoder", strict=False)
    assert encoder.d_model == 8
    assert [record.getMessage() for record in caplog.records] == [
        "encoder: keys that Encoder does not know are left out: future, other"
    ]


def test_where_a_file_speaks_a_value_of_another_type_is_passed_on_with_one_line(speech_package, caplog):
    with caplog.at_level(logging.INFO, logger="nemo_config"):
        encoder = instantiate({"_target_": ENCODER, "d_model": 8, "dropout": "none"}, path="encoder", strict=False)
    assert encoder.dropout == "none"
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("encoder.dropout: 'none'") and line.endswith("it is passed on as it stands in the file")


@pytest.mark.parametrize("strict", [True, False])
def test_a_key_without_meaning_here_is_dropped_with_one_line(speech_package, caplog, strict):
    section = {"_target_": ENCODER, "d_model": 8, "use_pytorch_sdpa": False}
    with caplog.at_level(logging.INFO, logger="nemo_config"):
        instantiate(section, path="encoder", strict=strict)
    assert [record.getMessage() for record in caplog.records] == [
        "encoder: keys without a meaning for Encoder are ignored: use_pytorch_sdpa"
    ]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"d_model": "8"}, "e.d_model: '8' must be an int"),
        ({"d_model": 8.0}, "e.d_model: 8.0 must be an int"),
        ({"d_model": True}, "e.d_model: True must be an int"),
        ({"d_model": None}, "e.d_model: None must be an int"),
        ({"dropout": "0.1"}, "e.dropout: '0.1' must be a float"),
        ({"xscaling": 1}, "e.xscaling: 1 must be a bool"),
        ({"name": 3}, "e.name: 3 must be a str or null"),
        ({"context": 3}, "e.context: 3 must be list[int] or null"),
        ({"context": [1, "2"]}, "e.context.1: '2' must be an int"),
        ({"norm": {"_target_": NORM, "size": "1"}}, "e.norm.size: '1' must be an int"),
        ({"d_model": "???"}, "e.d_model: ??? stands for a value that must be given, as in e.d_model=<value>"),
        (
            {"layers": [{"a": "???"}]},
            "e.layers.0.a: ??? stands for a value that must be given, as in e.layers.0.a=<value>",
        ),
        ({"n_heads": 7}, "e.n_heads: 7 does not divide d_model 8"),
        ({"norm": {"_target_": NORM}}, "e.norm.size: must be given: Norm needs it"),
        ({"_args_": 5}, "e._args_: 5 must be a list"),
        ({"_partial_": "false"}, "e._partial_: 'false' must be a bool"),
        ({"norm": {"_target_": None}}, "e.norm._target_: None must be the dotted name of a class"),
    ],
)
def test_a_wrong_value_is_reported_with_path_value_and_rule(speech_package, extra, message):
    with pytest.raises(ConfigError) as caught:
        instantiate({"_target_": ENCODER, "d_model": 8, **extra}, path="e")
    assert str(caught.value) == message


def test_arguments_of_the_program_win_and_are_not_checked(speech_package):
    section = {"_target_": ENCODER, "d_model": "???", "name": {"_target_": "os.system"}, "n_heads": 2}
    norm = object()
    encoder = instantiate(section, 6, name="mine", norm=norm)
    assert (encoder.d_model, encoder.name, encoder.n_heads) == (6, "mine", 2)
    assert encoder.norm is norm
    network = torch.nn.Linear(2, 2)
    optimizer = instantiate({"_target_": "torch.optim.AdamW", "lr": 1, "betas": [0.9, 0.98]}, network.parameters())
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_null_is_fine_where_it_is_the_default(speech_package):
    encoder = instantiate({"_target_": ENCODER, "d_model": 8, "window": None, "context": None, "name": None})
    assert (encoder.window, encoder.context, encoder.name) == (None, None, None)


@pytest.mark.parametrize("key", ["cls", "target"])
def test_the_form_of_nvidias_oldest_files_is_read(speech_package, key):
    encoder = instantiate({key: ENCODER, "params": {"d_model": 8, "n_heads": 2}})
    assert (encoder.d_model, encoder.n_heads) == (8, 2)
    with pytest.raises(ConfigError, match=r"^model\._target_: 'os\.system' is not among"):
        instantiate({key: "os.system", "params": {"command": "true"}}, path="model")


def test_a_class_with_open_keywords_takes_every_key(speech_package):
    section = {"_target_": "speech_fixture.encoders.Anything", "a": 1, "b": [1, {"c": 2}]}
    assert instantiate(section).options == {"a": 1, "b": [1, {"c": 2}]}


def test_not_recursive_leaves_nested_sections_alone(speech_package):
    norm = {"_target_": NORM, "size": 1}
    encoder = instantiate({"_target_": ENCODER, "_recursive_": False, "d_model": 8, "norm": norm})
    assert encoder.norm == norm


@pytest.mark.parametrize(
    ("section", "message"),
    [({"d_model": 8}, "model: has no _target_, the name of the class to build"), ([1], "model: [1] must be a section")],
)
def test_what_is_no_section_is_a_config_error(section, message):
    with pytest.raises(ConfigError) as caught:
        instantiate(section, path="model")
    assert str(caught.value).startswith(message)


def test_torchs_own_annotations_catch_text_for_a_number():
    with pytest.raises(ConfigError, match=r"^model\.optim\.lr: 'abc' must be "):
        instantiate({"_target_": "torch.optim.Adam", "lr": "abc"}, [], path="model.optim")
