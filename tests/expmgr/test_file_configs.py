"""What the config of a file that is restored may refer to."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from nemo_archive import ArchiveWriter, open_archive
from nemo_config import ConfigError

SECRET = "NEMO_EXPMGR_SECRET"


@pytest.fixture
def hostile_file(tiny_model, tmp_path, monkeypatch):
    """A model's file into whose config somebody has put an interpolation that reads the environment."""
    monkeypatch.setenv(SECRET, "s3cret")
    tiny_model.save_to(tmp_path / "good.nemo")
    with open_archive(tmp_path / "good.nemo") as archive, ArchiveWriter(tmp_path / "hostile.nemo") as writer:
        writer.add_config({**archive.config(), "note": {"who": f"${{oc.env:{SECRET}}}"}})
        for name in archive.members:
            if name != "model_config.yaml":
                writer.add_from(archive, name)
    return tmp_path / "hostile.nemo"


@pytest.mark.parametrize("return_config", [False, True])
def test_restoring_a_file_reads_no_environment(tiny_class, hostile_file, return_config):
    with pytest.raises(ConfigError, match=r"note\.who: .*oc\.env.* which the config of a file must not.*hostile\.nemo"):
        tiny_class.restore_from(hostile_file, return_config=return_config)


def test_restoring_a_lightning_checkpoint_reads_no_environment(tiny_class, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv(SECRET, "s3cret")
    config = {**tiny_model.plain_cfg(), "note": f"${{oc.env:{SECRET}}}"}
    for held in (config, OmegaConf.create(config)):
        checkpoint = {"state_dict": tiny_model.state_dict(), "hyper_parameters": {"cfg": held}}
        torch.save(checkpoint, tmp_path / "hostile.ckpt")
        with pytest.raises(ConfigError, match=r"note: .*oc\.env.* which the config of a file must not"):
            tiny_class.load_from_checkpoint(tmp_path / "hostile.ckpt")


def test_a_config_that_a_person_types_still_reads_the_environment(tiny_class, hostile_file, tiny_model, monkeypatch):
    override = OmegaConf.create({**tiny_model.plain_cfg(), "note": f"${{oc.env:{SECRET}}}"})
    good = hostile_file.with_name("good.nemo")
    assert tiny_class.restore_from(good, override).cfg.note == "s3cret"
