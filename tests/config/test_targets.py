import logging
import sys

import pytest
import torch

from nemo_config import ConfigError, nvidia_name, register_targets, resolve_target, targets

REFUSED = [
    "os.system",
    "builtins.eval",
    "eval",
    "torch.nn.utils.rnn.torch.os.system",
    "torch.load",
    "torch.hub.load",
    "torch.nn.Linear",
    "subprocess.Popen",
    "nemo_config.targets.importlib.import_module",
    "nemo.collections.asr.modules.os.system",
    "canary_module.Thing",
    "nemo.collections.canary_module.Thing",
    "",
    ".",
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_outside_the_table_is_refused_and_nothing_is_imported(name, speech_package, canary):
    with pytest.raises(ConfigError) as caught:
        resolve_target(name, "model.encoder._target_")
    assert caught.value.path == "model.encoder._target_"
    assert caught.value.value == name
    assert not canary.exists()
    assert "canary_module" not in sys.modules
    assert "speech_fixture.encoders" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "speech_fixture.encoders.Encoder",
        "nemo.collections.asr.modules.Encoder",
        "nemo.collections.asr.modules.encoders.Encoder",
        " nemo.collections.asr.modules.Encoder ",
        "nemo.collections.asr.modules.some_file_of_another_year.Encoder",
    ],
)
def test_our_name_and_nvidias_names_lead_to_one_class(name, speech_package):
    assert "speech_fixture.encoders" not in sys.modules
    found = resolve_target(name)
    assert (found.__module__, found.__qualname__) == ("speech_fixture.encoders", "Encoder")


def test_a_package_writes_the_first_of_nvidias_names(speech_package):
    first = "nemo.collections.asr.modules.Encoder"
    encoder = resolve_target(first)
    spellings = (first, "nemo.collections.asr.modules.encoders.Encoder", "speech_fixture.encoders.Encoder", encoder)
    assert {nvidia_name(spelling) for spelling in spellings} == {first}


def test_a_class_without_an_nvidia_name_keeps_its_own(speech_package):
    class Encoder:  # the name of a registered class, but another class
        pass

    anything = resolve_target("speech_fixture.encoders.Anything")
    assert nvidia_name(anything) == "speech_fixture.encoders.Anything"
    assert nvidia_name(Encoder) == f"{__name__}.{Encoder.__qualname__}"
    assert nvidia_name("some.other.Class") == "some.other.Class"


def test_lightnings_old_package_name_is_understood(speech_package):
    assert nvidia_name("pytorch_lightning.strategies.DDPStrategy") == "lightning.pytorch.strategies.DDPStrategy"


def test_torchs_losses_activations_and_optimizers_are_registered(fresh_tables):
    for name in targets.TORCH_LOSSES:
        assert resolve_target(f"torch.nn.{name}") is resolve_target(f"torch.nn.modules.loss.{name}")
        assert issubclass(resolve_target(f"torch.nn.{name}"), torch.nn.Module)
    for name in targets.TORCH_ACTIVATIONS:
        assert resolve_target(f"torch.nn.{name}") is getattr(torch.nn.modules.activation, name)
    assert resolve_target("torch.optim.adamw.AdamW") is torch.optim.AdamW
    assert nvidia_name(torch.optim.AdamW) == "torch.optim.AdamW"


def test_every_loss_activation_and_optimizer_that_torch_lists_is_in_the_table():
    from torch.nn.modules import loss

    losses = {name for name in vars(loss) if name.endswith("Loss") and not name.startswith("_")}
    optimizers = {name for name, value in vars(torch.optim).items() if isinstance(value, type)} - {"Optimizer"}
    assert losses - {"NLLLoss2d"} <= set(targets.TORCH_LOSSES)  # NLLLoss2d is an old name of NLLLoss
    assert optimizers <= set(targets.TORCH_OPTIMIZERS)
    assert set(torch.nn.modules.activation.__all__) - {"MultiheadAttention"} == set(targets.TORCH_ACTIVATIONS)


def test_a_users_class_is_known_after_registration(fresh_tables):
    @register_targets
    class Mine:
        pass

    name = f"{__name__}.{Mine.__qualname__}"
    assert resolve_target(name) is Mine
    assert nvidia_name(Mine) == nvidia_name(name) == name
    register_targets({"project.Mine": Mine, "torch.optim.Adam": Mine})
    assert resolve_target("project.Mine") is resolve_target("torch.optim.Adam") is Mine


def test_the_refusal_names_the_nearest_class_and_the_way_to_register(speech_package):
    with pytest.raises(ConfigError, match=r"nearest: nemo\.collections\.asr\.modules\.Encoder; .*register_targets"):
        resolve_target("nemo.collections.asr.modules.Encodr", "model.encoder._target_")


def test_a_broken_table_does_not_take_the_others_along(speech_package, caplog):
    (speech_package / "targets.py").write_text("import a_module_that_is_not_installed")
    with caplog.at_level(logging.WARNING, logger="nemo_config.targets"):
        assert resolve_target("torch.nn.ReLU") is torch.nn.ReLU
    assert "speech_fixture.targets:TARGETS" in caplog.text


def test_a_registered_class_that_is_not_installed_is_a_config_error(speech_package):
    encoders = speech_package / "encoders.py"
    encoders.write_text("class Other: pass")
    with pytest.raises(ConfigError, match=r"model\._target_: 'speech_fixture\.encoders\.Encoder' is registered"):
        resolve_target("speech_fixture.encoders.Encoder", "model._target_")
