"""Hostile configs: tags that would run something, a few lines that stand for billions of values, names of programs."""

from __future__ import annotations

import os

import pytest

from nemo_archive import open_archive
from nemo_archive.cli import main as command
from nemo_config import ConfigError, instantiate


def python_object_apply(made):
    return f"a: !!python/object/apply:os.system [{made.command!r}]\n"


def python_object_new(made):
    return f"a: !!python/object/new:os.system [{made.command!r}]\n"


def python_object(_made):
    return "a: !!python/object:nemo_payload.run {}\n"


def python_name(_made):
    return "a: !!python/name:os.system\n"


def python_module(_made):
    return "a: !!python/module:nemo_payload\n"


def python_tuple(_made):
    return "a: !!python/tuple [1]\n"


def local_tag(_made):
    return "a: !run [1]\n"


def tag_by_a_directive(_made):
    return "%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system\n"


def binary(_made):
    return "a: !!binary aGVsbG8=\n"


def set_of_keys(_made):
    return "a: !!set {b}\n"


def time_stamp(_made):
    return "a: !!timestamp 2001-01-01\n"


def boolean_that_is_none(_made):
    return "a: !!bool perhaps\n"


def number_that_is_none(_made):
    return "a: !!int ''\n"


def billion_laughs(_made):
    lines = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 10)]
    return "x0: &x0 [lol]\n" + "".join(lines)


def alias_of_itself(_made):
    return "a: &a [*a]\n"


def merge_key_bomb(_made):
    many = ", ".join(f"k{index}: 1" for index in range(2000))
    return f"base: &base {{{many}}}\n" + "".join(f"x{i}: {{<<: [{', '.join(['*base'] * 20)}]}}\n" for i in range(20))


def merge_of_itself(_made):
    return "a: &a\n  <<: *a\n"


def merge_of_a_number(_made):
    return "a:\n  <<: 1\n"


def duplicate_key(_made):
    return "a: 1\nb: 2\na: 3\n"


def deep_brackets(_made):
    return "a: " + "[" * 100_000


def deep_aliases(_made):
    return "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 300))


def huge_number(_made):
    return f"a: {'9' * 100_000}\n"


def number_of_base_60(_made):
    return "a: 1" + ":1" * 50_000 + "\n"


def keys_of_equal_hash(_made):
    return "a:\n" + "".join(f"  {index * (2**61 - 1)}: 1\n" for index in range(1, 100))


def key_of_megabytes(_made):
    return "k" * 1000 + "k: 1\n"


def list_as_a_key(_made):
    return "? [1, 2]\n: 3\n"


def million_values(_made):
    return "a: [" + "1," * 450_000 + "]\n"


def list_where_a_mapping_belongs(_made):
    return "- 1\n"


def text_where_a_mapping_belongs(_made):
    return "just text\n"


def nothing(_made):
    return ""


def null_byte(_made):
    return "a: \x00\n"


def unfinished(_made):
    return "a: [1\n"


ATTACKS = {
    python_object_apply: "the YAML tag '!!python/object/apply:os.system' in line 1 is refused",
    python_object_new: "the YAML tag '!!python/object/new:os.system' in line 1 is refused",
    python_object: "the YAML tag '!!python/object:nemo_payload.run' in line 1 is refused",
    python_name: "the YAML tag '!!python/name:os.system' in line 1 is refused",
    python_module: "the YAML tag '!!python/module:nemo_payload' in line 1 is refused",
    python_tuple: "the YAML tag '!!python/tuple' in line 1 is refused",
    local_tag: "the YAML tag '!run' in line 1 is refused",
    tag_by_a_directive: "the YAML tag '!!python/name:os.system' in line 3 is refused",
    binary: "the YAML tag '!!binary' in line 1 is refused",
    set_of_keys: "the YAML tag '!!set' in line 1 is refused",
    time_stamp: "the YAML tag '!!timestamp' in line 1 is refused",
    boolean_that_is_none: "unreadable YAML: 'perhaps'",
    number_that_is_none: "unreadable YAML: ",
    billion_laughs: "a config of over 200000 values or 100 levels is refused",
    alias_of_itself: "a config of over 200000 values or 100 levels is refused",
    merge_key_bomb: "unreadable YAML: too many merged keys",
    merge_of_itself: "unreadable YAML: maximum recursion depth exceeded",
    merge_of_a_number: "unreadable YAML: a merge key names no mapping",
    duplicate_key: "unreadable YAML: duplicate key a",
    deep_brackets: "a config of over 100 levels is refused",
    deep_aliases: "a config of over 200000 values or 100 levels is refused",
    huge_number: "unreadable YAML: a number of 100000 characters",
    number_of_base_60: "unreadable YAML: a number of 100001 characters",
    keys_of_equal_hash: "unreadable YAML: a huge number as a key",
    key_of_megabytes: "unreadable YAML: a key of 1001 characters (at most 1000)",
    list_as_a_key: "unreadable YAML: a list or mapping as a key",
    million_values: "a config of over 200000 values is refused",
    list_where_a_mapping_belongs: "holds a list where a mapping is expected",
    text_where_a_mapping_belongs: "holds a str where a mapping is expected",
    nothing: "holds a NoneType where a mapping is expected",
    null_byte: "unreadable YAML: unacceptable character #x0000",
    unfinished: "unreadable YAML: while parsing a flow sequence",
}
"""What makes each config: what is said of it."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_config_is_refused_by_rule_and_nothing_runs(attack, made, refused):
    error = refused(made.archive(config=attack(made).encode()))
    assert error.member == "model_config.yaml"
    assert ATTACKS[attack] in error.rule


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "nemo_payload.run",
        "torch.load",
        "nemo.utils.app_state.os.system",
    ],
)
def test_a_target_outside_the_table_is_read_as_text_and_never_built(made, canary, name):
    """As in CVE-2025-23304: the config says which program to call, and with what."""
    config = f"target: {name}\nencoder:\n  _target_: {name}\n  _args_: [{made.command!r}]\n"
    with open_archive(made.archive(config=config.encode())) as archive:
        section = archive.config()["encoder"]
    assert section["_target_"] == name
    with pytest.raises(ConfigError, match=r"encoder\._target_: .* is not among the registered classes"):
        instantiate(section, path="encoder")
    with pytest.raises(ConfigError, match="is not among the registered classes"):
        instantiate({"_target_": "torch.nn.ReLU", "inplace": section}, path="encoder")


def test_verify_reports_targets_that_are_not_in_the_table(made, canary, capsys):
    config = f"target: a.b.C\nencoder:\n  _target_: os.system\n  command: {made.command}\n"
    path = made.archive({"model_weights.ckpt": made.zip_bytes({"data.pkl": b"\x80\x02}."})}, config=config.encode())
    assert command(["verify", str(path), "--targets"]) == 1
    printed = capsys.readouterr().out
    assert "encoder._target_" in printed
    assert "os.system" in printed


def test_an_interpolation_that_reads_the_environment_stays_text(made, canary, monkeypatch):
    monkeypatch.setenv("NEMO_ARCHIVE_SECRET", "s3cret")
    with open_archive(made.archive(config=b"a: ${oc.env:NEMO_ARCHIVE_SECRET}\nb: ${a}\n")) as archive:
        assert archive.config() == {"a": "${oc.env:NEMO_ARCHIVE_SECRET}", "b": "${a}"}
    assert os.environ["NEMO_ARCHIVE_SECRET"] == "s3cret"
