import pickle

import pytest

from nemo_config import ConfigError
from nemo_config.errors import ABSENT, from_constructor, nearest, unknown_key


def test_the_message_is_path_value_rule():
    error = ConfigError("model.encoder.n_heads", 7, "does not divide d_model 512")
    assert str(error) == "model.encoder.n_heads: 7 does not divide d_model 512"
    assert (error.path, error.value, error.rule) == ("model.encoder.n_heads", 7, "does not divide d_model 512")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("a.b", "x", "must be an int"), "a.b: 'x' must be an int"),
        (ConfigError("a.b", ABSENT, "must be given"), "a.b: must be given"),
        (ConfigError("", ABSENT, "is no config"), "is no config"),
        (ConfigError("a", "x" * 500, "is long"), "a: '" + "x" * 196 + "... is long"),
    ],
)
def test_the_message_of_text_of_nothing_and_of_long_values(error, message):
    assert str(error) == message


def test_an_error_survives_pickling():
    copy = pickle.loads(pickle.dumps(ConfigError("a.b", 3, "is odd")))
    assert (type(copy), str(copy)) == (ConfigError, "a.b: 3 is odd")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("n_headz", "n_heads"), ("N-Heads", "n_heads"), ("dmodel", "d_model"), ("zzz", None)],
)
def test_the_nearest_name(typed, expected):
    assert nearest(typed, ["n_heads", "d_model", "dropout"]) == expected


def test_an_unknown_key_names_the_nearest_or_lists_the_valid_ones():
    valid = ["d_model", "n_heads"]
    near = unknown_key("model.encoder", "n_head", 8, valid, "Encoder")
    assert str(near) == (
        "model.encoder.n_head: 8 is given, but Encoder has no such key; nearest valid key: model.encoder.n_heads"
    )
    assert str(unknown_key("", "zzz", 8, valid, "Encoder")).endswith("valid keys: d_model, n_heads")


@pytest.mark.parametrize(
    ("raised", "message", "value"),
    [
        (ValueError("n_heads: 7 does not divide d_model 512"), "m.n_heads: 7 does not divide d_model 512", 7),
        (ValueError("n_heads: must be even"), "m.n_heads: must be even", ABSENT),
        (ValueError("something: else is wrong"), "m: something: else is wrong", ABSENT),
        (ValueError("no colon"), "m: no colon", ABSENT),
        (ConfigError("m.deeper.key", 1, "is odd"), "m.deeper.key: 1 is odd", 1),
        (ConfigError("deeper.key", 1, "is odd"), "m.deeper.key: 1 is odd", 1),
    ],
)
def test_a_constructors_error_gets_the_sections_path(raised, message, value):
    error = from_constructor(raised, "m", {"n_heads": 7})
    assert str(error) == message
    assert error.value == value
