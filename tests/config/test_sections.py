import enum
import importlib
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from omegaconf import OmegaConf

from nemo_config import ConfigError, check_keys, instantiate, read_section, register_targets


class Mode(enum.Enum):
    MIN = "min"
    MAX = "max"


@dataclass
class Augment:
    prob: float = 0.5
    kind: Literal["speed", "noise"] = "speed"

    def __post_init__(self):
        if not 0 <= self.prob <= 1:
            raise ValueError(f"prob: {self.prob} is not between 0 and 1")


@dataclass
class Data:
    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset({"use_dali"})
    manifest_filepath: str
    batch_size: int = 4
    max_duration: float | None = None
    sample_rate: int | float = 16000
    labels: list[str] = field(default_factory=list)
    context: tuple[int, int] = (-1, -1)
    mode: Mode = Mode.MIN
    folder: Path = Path()
    augment: Augment | None = None
    stages: list[Augment] = field(default_factory=list)
    named: dict[str, Augment] = field(default_factory=dict)
    chain: list[Augment] | None = None
    worker: int = None
    anything: Any = None


FULL = {
    "manifest_filepath": "a.json",
    "max_duration": 16,
    "labels": ["a", "b"],
    "context": [70, 2],
    "mode": "max",
    "folder": "/data",
    "augment": {"prob": 1},
    "stages": [{"kind": "noise"}],
    "named": {"x": {"prob": 0}},
    "chain": [{"prob": 0}],
    "worker": None,
    "anything": {"deep": [1]},
}


@pytest.mark.parametrize("make", [dict, OmegaConf.create])
def test_a_section_becomes_a_dataclass_of_the_annotated_types(make):
    data = read_section(Data, make(FULL), "model.train_ds")
    assert data == Data(
        manifest_filepath="a.json",
        max_duration=16.0,
        labels=["a", "b"],
        context=(70, 2),
        mode=Mode.MAX,
        folder=Path("/data"),
        augment=Augment(1.0),
        stages=[Augment(kind="noise")],
        named={"x": Augment(0.0)},
        chain=[Augment(0.0)],
        anything={"deep": [1]},
    )
    assert [type(value) for value in (data.max_duration, data.sample_rate, data.labels)] == [float, int, list]


def test_no_section_gives_the_defaults_and_an_object_is_passed_on():
    assert read_section(Augment, None, "augment") == Augment()
    given = Augment(0.1)
    assert read_section(Augment, given, "augment") is given


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"batch_sice": 8}, "d.batch_sice: 8 is given, but Data has no such key; nearest valid key: d.batch_size"),
        (
            {"stages": [{}, {"probe": 1}]},
            "d.stages.1.probe: 1 is given, but Augment has no such key; nearest valid key: d.stages.1.prob",
        ),
        ({"batch_size": "8"}, "d.batch_size: '8' must be an int"),
        ({"batch_size": None}, "d.batch_size: None must be an int"),
        ({"max_duration": "x"}, "d.max_duration: 'x' must be a float or null"),
        ({"labels": "abc"}, "d.labels: 'abc' must be list[str]"),
        ({"labels": ["a", 1]}, "d.labels.1: 1 must be a str"),
        ({"context": [1]}, "d.context: [1] must be tuple[int, int], 2 values"),
        ({"mode": "best"}, "d.mode: 'best' must be one of MIN, MAX"),
        ({"augment": {"kind": "sped"}}, "d.augment.kind: 'sped' must be one of 'speed', 'noise'"),
        ({"augment": {"prob": 2}}, "d.augment.prob: 2.0 is not between 0 and 1"),
        ({"augment": 3}, "d.augment: 3 must be a section with the keys of Augment"),
        ({"stages": 3}, "d.stages: 3 must be list["),
        ({"named": {"y": {"prob": "1"}}}, "d.named.y.prob: '1' must be a float"),
        ({"manifest_filepath": "???"}, "d.manifest_filepath: ??? stands for a value"),
        ({"anything": {"deep": ["???"]}}, "d.anything.deep.0: ??? stands for a value"),
    ],
)
def test_what_does_not_fit_is_named_with_path_value_and_rule(extra, message):
    with pytest.raises(ConfigError) as caught:
        read_section(Data, {**FULL, **extra}, "d")
    assert str(caught.value).startswith(message)


def test_a_field_without_default_must_be_given():
    with pytest.raises(ConfigError, match=r"^d\.manifest_filepath: must be given: Data needs it$"):
        read_section(Data, {}, "d")


def test_where_a_file_speaks_unknown_and_meaningless_keys_cost_one_line_each(caplog):
    section = {"manifest_filepath": "a", "use_dali": True, "future": 1, "augment": {"prob": 1, "newer": 2}}
    with caplog.at_level(logging.INFO, logger="nemo_config"):
        data = read_section(Data, section, "d", strict=False)
    assert data == Data("a", augment=Augment(1.0))
    assert [record.getMessage() for record in caplog.records] == [
        "d: keys that Data does not know are left out: future",
        "d: keys without a meaning for Data are ignored: use_dali",
        "d.augment: keys that Augment does not know are left out: newer",
    ]


@pytest.mark.parametrize("evaluable", [True, False])
def test_fields_that_a_dataclass_inherits_are_checked_by_their_own_modules_names(tmp_path, monkeypatch, evaluable):
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    later = "" if evaluable else "    loader: NameForTheTypeCheckerOnly = None\n"
    (tmp_path / "base_section.py").write_text(
        f"{head}from pathlib import Path as Folder\n@dataclass\nclass Base:\n    folder: Folder | None = None\n{later}"
    )
    (tmp_path / "derived_section.py").write_text(
        f"{head}from base_section import Base\n@dataclass\nclass Derived(Base):\n    size: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("base_section", "derived_section"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    derived = importlib.import_module("derived_section").Derived
    assert read_section(derived, {"folder": "/data"}, "d").folder == Path("/data")
    with pytest.raises(ConfigError, match=r"^d\.size: 'x' must be an int$"):
        read_section(derived, {"size": "x"}, "d")
    with pytest.raises(ConfigError, match=r"^d\.folder: 3 must be a Path or null$"):
        read_section(derived, {"folder": 3}, "d")


def test_a_constructor_that_a_dataclass_writes_itself_is_read_by_its_own_annotations(fresh_tables):
    @dataclass(init=False)
    class Odd:
        size: int

        def __init__(self, size: str):
            self.size = len(size)

    register_targets({"tests.Odd": Odd})
    assert instantiate({"_target_": "tests.Odd", "size": "abc"}).size == 3
    with pytest.raises(ConfigError, match=r"size: 3 must be a str"):
        instantiate({"_target_": "tests.Odd", "size": 3})


def test_check_keys_gives_the_known_part(caplog):
    section = OmegaConf.create({"a": 1, "twice": "${a}", "later": "???", "old": 2})
    assert check_keys(section, ["a", "twice", "later"], "s", ignored=["old"]) == {"a": 1, "twice": 1, "later": "???"}
    with pytest.raises(ConfigError, match=r"^s\.old: 2 is given, but s has no such key"):
        check_keys(section, ["a", "twice", "later"], "s")
    assert check_keys(section, ["a"], "s", strict=False) == {"a": 1}
