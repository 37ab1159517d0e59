"""Sets of a data section and their names; metrics of an epoch."""

import pytest
import torch
from omegaconf import OmegaConf

from nemo_config import ConfigError
from nemo_expmgr.dataloaders import dataset_section, is_given, split_sets
from nemo_expmgr.epoch_end import mean_metrics, merge_sets

KEY = "manifest_filepath"
PATH = "model.validation_ds"


def prefixes(section):
    return [part.prefix for part in split_sets(section, PATH, KEY)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["/data/dev-clean.json", "/data/dev_other_manifest.json"], ["dev_clean_", "dev_other_"]),
        (["/data/dev/manifest.json", "/data/test/manifest.json"], ["dev_", "test_"]),
        (["/a/dev.json", "/b/dev.json"], ["dev_0_", "dev_1_"]),
        (["/data/dev.json"], ["dev_"]),
        ("/data/dev.json", ["dev_"]),
    ],
)
def test_sets_are_named_after_their_files(files, expected):
    assert prefixes({KEY: files}) == expected


def test_names_in_the_section_win_and_there_must_be_one_for_each_set():
    section = {KEY: ["a.json", "b.json"], "name": ["clean", "other-set"], "batch_size": 4}
    assert prefixes(section) == ["clean_", "other_set_"]
    assert [dict(part.section) for part in split_sets(section, PATH, KEY)] == [
        {KEY: "a.json", "batch_size": 4},
        {KEY: "b.json", "batch_size": 4},
    ]
    with pytest.raises(ConfigError, match=r"validation_ds\.name: .*2 entries"):
        prefixes({**section, "name": ["only"]})


def test_ds_item_is_another_key_or_a_list_of_whole_sections():
    assert prefixes({"split": ["dev", "test"], "ds_item": "split"}) == ["dev_", "test_"]
    parts = split_sets({"ds_item": [{"name": "one", KEY: "a"}, {"name": "two", KEY: "b", "x": 1}]}, PATH, KEY)
    assert [(part.prefix, dict(part.section)) for part in parts] == [("one_", {KEY: "a"}), ("two_", {KEY: "b", "x": 1})]


def test_a_data_section_is_resolved_and_has_none_of_the_keys_read_here():
    config = OmegaConf.create({"rate": 8000, "validation_ds": {"rate": "${rate}", "val_dl_idx": 1, KEY: "a"}})
    section = dataset_section(config.validation_ds, PATH)
    assert dict(section) == {"rate": 8000, KEY: "a"}
    assert "val_dl_idx" in config.validation_ds


@pytest.mark.parametrize(
    ("section", "given"),
    [(None, False), ({}, False), ({KEY: None}, False), ({KEY: []}, False), ({KEY: "a"}, True), ({"other": 1}, True)],
)
def test_a_section_is_given_unless_it_is_empty_or_its_file_null_or_an_empty_list(section, given):
    config = None if section is None else OmegaConf.create(section)
    assert is_given(config, PATH, KEY) is given


def test_a_mandatory_value_that_is_missing_is_an_error_when_it_is_needed():
    with pytest.raises(ConfigError, match=r"model\.validation_ds\.manifest_filepath: \?\?\?"):
        is_given(OmegaConf.create({KEY: "???"}), PATH, KEY)


def test_scalars_are_averaged_and_counts_summed_and_divided():
    outputs = [
        {"val_loss": torch.tensor(1.0), "val_wer_num": 1, "val_wer_denom": 2, "val_wer": 0.5, "texts": ["a"]},
        {"val_loss": torch.tensor([3.0]), "val_wer_num": 0, "val_wer_denom": 8, "val_wer": 0.0, "texts": ["b"]},
    ]
    assert {name: value.item() for name, value in mean_metrics(outputs).items()} == {
        "val_loss": 2.0,
        "val_wer": pytest.approx(0.1),
    }
    assert mean_metrics([]) == {}


def test_of_several_sets_the_main_one_is_logged_plainly_too():
    logs = [{"val_loss": 1.0}, {"val_loss": 2.0}]
    assert merge_sets(logs[:1], ["a_"]) == {"val_loss": 1.0}
    assert merge_sets(logs, ["a_", "b_"], main=1) == {"a_val_loss": 1.0, "b_val_loss": 2.0, "val_loss": 2.0}
