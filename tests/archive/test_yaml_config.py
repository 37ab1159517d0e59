"""The YAML reader and writer, against OmegaConf."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_archive import ArchiveError
from nemo_archive.yaml_config import parse_config, write_config

KEYS = st.text("abz_09 -é", min_size=1, max_size=5)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@pytest.mark.parametrize(
    "text",
    "1e-3 1E5 -1e3 1.5e-7 .5 1_000 0x1f 010 1:30 1:30.5 yes off null ~ .inf 2020-01-01 '1e-3' ??? ${a.b} 1e 1.".split(),
)
def test_scalars_read_as_omegaconf_reads_them(text):
    document = f"value: {text}\n".encode()
    expected = OmegaConf.to_container(OmegaConf.load(io.BytesIO(document)), resolve=False)["value"]
    value = parse_config(document)["value"]
    assert (value, type(value)) == (expected, type(expected))


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example(
    {"lr": "1e-3", "on": "yes", "date": "2020-01-01", "n": "1_000", "f": 1e-5, "big": 1e22, "s": "  ", "m": "a\nb"}
)
def test_what_is_written_is_read_back_equal(config):
    assert parse_config(write_config(config)) == config


@pytest.mark.parametrize(
    "value", ["1e-3", "1e3", ".5e1", "yes", "null", "2020-01-01", "0x10", "nemo:a", "a: b", "#", ""]
)
def test_omegaconf_reads_a_written_string_as_that_string(value):
    assert OmegaConf.load(io.BytesIO(write_config({"v": value}))).v == value


def test_the_order_of_keys_and_unicode_are_kept():
    assert write_config({"b": "ж", "a": (1, 2)}) == "b: ж\na:\n- 1\n- 2\n".encode()


def test_paths_and_number_subclasses_are_written_as_plain_values():
    assert parse_config(write_config({"p": pathlib.PurePosixPath("/a/b"), "x": np.float64(0.5)})) == {
        "p": "/a/b",
        "x": 0.5,
    }


def test_a_path_that_omegaconf_wrote_is_read_as_text():
    text = OmegaConf.to_yaml(OmegaConf.create({"p": pathlib.Path("/a/b")})).encode()
    assert b"pathlib" in text
    assert parse_config(text) == {"p": "/a/b"}


def test_a_value_that_yaml_has_no_type_for_is_named_with_its_path():
    with pytest.raises(ArchiveError, match=r"a\.b\.1: a object cannot be written"):
        write_config({"a": {"b": [0, object()]}})


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "- 1\n",
        "a: [1\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "a: !!python/name:os.system\n",
        "a: !custom 1\n",
        "a: &a [*a]\n",
        "x0: &x0 [1, 1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40)),
        "a: !!binary aGVsbG8=\n",
        "a: !!set {b}\n",
        "a: !!bool perhaps\n",
        "a: !!int ''\n",
        "a: " + "[" * 500 + "]" * 500,
        "a: " + "[" * 100_000,
        "a: \x00\n",
        "? [1, 2]\n: 3\n",
        "a: 2020-13-45 12:99:99\nb: 1:99999999999\n? {a: b}\n: c\n",
    ],
)
def test_a_config_with_other_than_plain_types_is_refused(text):
    with pytest.raises(ArchiveError):
        parse_config(text.encode())


def test_merge_keys_that_repeat_themselves_stay_small():
    text = "x0: &x0 {k: 1}\n" + "".join(f"x{i}: &x{i}\n  <<: [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40))
    assert set(map(str, parse_config(text.encode()).values())) == {"{'k': 1}"}


def test_own_keys_win_over_merged_ones_and_the_first_of_several_sources_over_the_next():
    text = "b: &b {x: 1, y: 1}\nc: &c {x: 2, z: 2}\nd: {inner: &d {<<: [*b, *c], z: 3}}\ne: {<<: *d}\n"
    config = parse_config(text.encode())
    assert config["d"] == yaml.safe_load(text)["d"]
    assert config["d"]["inner"] == config["e"] == {"x": 1, "y": 1, "z": 3}  # PyYAML 6.0.4 itself has 2 for z in e
