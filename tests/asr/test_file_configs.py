"""What the config of a file that is loaded may refer to."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_archive import ArchiveWriter, open_archive
from nemo_asr import load_model
from nemo_config import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden/quartznet_ctc_char/model.nemo"


def with_note(path: Path, note: str) -> Path:
    """The golden file with one more key in its preprocessor's section."""
    with open_archive(GOLDEN) as archive, ArchiveWriter(path) as writer:
        config = archive.config()
        config["preprocessor"]["dither"] = note
        writer.add_config(config)
        for name in archive.members:
            if name != "model_config.yaml":
                writer.add_from(archive, name)
    return path


def test_loading_a_model_reads_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_ASR_SECRET", "0.5")
    path = with_note(tmp_path / "hostile.nemo", "${oc.env:NEMO_ASR_SECRET}")
    with pytest.raises(ConfigError, match=r"preprocessor\.dither: .*oc\.env, which the config of a file must not"):
        load_model(path)


def test_a_reference_within_the_file_is_resolved(tmp_path):
    load_model(with_note(tmp_path / "good.nemo", "${multiply:${sample_rate},0.0}"))
