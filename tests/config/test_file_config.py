"""The config inside a model file: what it may refer to."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from nemo_config import ConfigError, file_config, plain

SECRET = "NEMO_CONFIG_SECRET"


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv(SECRET, "s3cret")


@pytest.mark.parametrize(
    "text",
    [
        f"${{oc.env:{SECRET}}}",
        f"${{ oc.env : {SECRET} }}",
        f"a ${{oc.env:{SECRET}}} b",
        f"${{oc.env:NO_SUCH,${{oc.env:{SECRET}}}}}",
        f"${{multiply:2,${{oc.env:{SECRET}}}}}",
        f"${{oc.decode:'${{oc.env:{SECRET}}}'}}",
        "${oc.create:{a: 1}}",
        f"${{${{prefix}}.env:{SECRET}}}",
        "${gpu_name:}",
        "${no_such_resolver:1}",
    ],
)
def test_a_resolver_that_reads_outside_the_file_is_refused_with_path_value_rule_and_file(text):
    config = {"prefix": "oc", "encoder": {"layers": [{"d_model": text}]}}
    with pytest.raises(ConfigError) as caught:
        file_config(config, "some/model.nemo")
    message = str(caught.value)
    assert message.startswith(f"encoder.layers.0.d_model: {text!r} uses the resolver ")
    assert "which the config of a file must not" in message
    assert message.endswith("in some/model.nemo")
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "config",
    [
        {"a": "\\${oc.env:" + SECRET + "}"},
        {"dollar": "$", "a": "${dollar}{oc.env:" + SECRET + "}"},
        {"section": {"${oc.env:" + SECRET + "}": 1}, "a": "${oc.dict.keys:section}"},
    ],
    ids=["escaped", "of pieces", "by a key"],
)
def test_what_would_become_an_interpolation_the_next_time_is_refused(config):
    with pytest.raises(ConfigError, match=r"in some/model\.nemo"):
        file_config(config, "some/model.nemo")


def test_references_and_arithmetic_are_resolved_as_ever():
    config = {
        "depth": 2,
        "encoder": {"n": "${depth}", "m": "${multiply:${.n},3}", "s": "${sum:1,${..depth}}", "t": "n${.n}", "x": "???"},
        "keys": "${oc.dict.keys:encoder}",
        "or": "${oc.select:nothing,7}",
    }
    assert file_config(config, "x.nemo") == plain(OmegaConf.create(config))
    assert file_config(config, "x.nemo")["encoder"] == {"n": 2, "m": 6, "s": 3, "t": "n2", "x": "???"}


def test_a_config_without_interpolations_comes_back_equal():
    config = {"a": [1, {"b": "$5"}], "c": None}
    assert file_config(config, "x.nemo") == config


def test_what_a_person_types_still_reads_the_environment():
    assert plain({"token": f"${{oc.env:{SECRET}}}"}) == {"token": "s3cret"}


@pytest.mark.parametrize(
    "config",
    [
        {"x0": "ab", **{f"x{i}": f"${{x{i - 1}}}${{x{i - 1}}}" for i in range(1, 40)}},
        {"x0": ["ab"], **{f"x{i}": [f"${{x{i - 1}}}", f"${{x{i - 1}}}"] for i in range(1, 40)}},
        {"large": ["x"] * 1000, "many": ["${large}"] * 1000},
        {"a": "${b}", "b": "${a}"},
        {"a": {"b": "${a}"}},
        {"a": "${a" * 1000},
        {"a": "${"},
    ],
    ids=["doubled texts", "doubled lists", "large lists", "a circle", "a section in itself", "long", "unfinished"],
)
def test_references_that_stand_for_too_much_are_refused_quickly(config):
    with pytest.raises(ConfigError):
        file_config(config, "some/model.nemo")
