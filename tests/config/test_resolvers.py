import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from nemo_config import register_resolvers, resolvers


@pytest.mark.parametrize(
    ("written", "value"),
    [("${multiply:3,4}", 12), ("${multiply:2,0.5,3}", 3.0), ("${sum:1,2}", 3), ("${sum:${a},${multiply:${a},2}}", 15)],
)
def test_multiply_and_sum_are_arithmetic(written, value):
    register_resolvers()
    assert OmegaConf.create({"a": 5, "b": written}).b == value


def test_multiply_takes_numbers_only():
    register_resolvers()
    with pytest.raises(InterpolationResolutionError, match="'x' is not a number"):
        _ = OmegaConf.create({"a": "${multiply:x,2}"}).a


def test_registering_again_keeps_a_meaning_that_the_program_gave():
    register_resolvers()
    OmegaConf.register_new_resolver("sum", lambda *values: "mine", replace=True)
    register_resolvers()
    assert OmegaConf.create({"a": "${sum:1,2}"}).a == "mine"
    OmegaConf.clear_resolver("sum")
    register_resolvers()
    assert OmegaConf.create({"a": "${sum:1,2}"}).a == 3


@pytest.mark.parametrize(("capability", "name"), [("8.0", "a100"), ("9.0", "h100"), ("8.6", None)])
def test_gpu_name_follows_the_compute_capability(tmp_path, monkeypatch, capability, name):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho {capability}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert resolvers.gpu_name() == name


def test_gpu_name_is_null_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    register_resolvers()
    assert OmegaConf.create({"a": "${gpu_name:}"}).a is None
