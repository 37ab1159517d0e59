"""Fixtures of nemo-config's tests: a table of classes as an installed package would register it."""

import importlib.metadata
import sys
import textwrap

import pytest

from nemo_config import targets

ENCODERS = """
class Norm:
    def __init__(self, size: int, eps: float = 1e-5):
        self.size, self.eps = size, eps


class Encoder:
    IGNORED_KEYS = frozenset({"use_pytorch_sdpa"})

    def __init__(self, d_model: int, n_heads: int = 4, dropout: float = 0.1, name: str | None = None,
                 xscaling: bool = True, window: int = None, context: "list[int] | None" = None, norm=None, layers=()):
        if d_model % n_heads:
            raise ValueError(f"n_heads: {n_heads} does not divide d_model {d_model}")
        self.__dict__.update(locals())


class Anything:
    def __init__(self, **options):
        self.options = options


class Plain:
    pass
"""
TABLE = """
TARGETS = {
    "speech_fixture.encoders.Encoder": (
        "nemo.collections.asr.modules.Encoder",
        "nemo.collections.asr.modules.encoders.Encoder",
    ),
    "speech_fixture.encoders.Norm": ("nemo.collections.asr.parts.Norm",),
    "speech_fixture.encoders.Anything": (),
    "lightning.pytorch.strategies.DDPStrategy": (),
}
"""


@pytest.fixture
def fresh_tables(monkeypatch):
    """The table of targets is read anew, and what a test registers is forgotten."""
    monkeypatch.setattr(targets, "_registered", {})
    targets._table.cache_clear()
    yield
    targets._table.cache_clear()


@pytest.fixture
def speech_package(tmp_path, monkeypatch, fresh_tables):
    """An importable package `speech_fixture` whose table is an entry point; nothing of it is imported yet."""
    package = tmp_path / "site" / "speech_fixture"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "encoders.py").write_text(textwrap.dedent(ENCODERS))
    (package / "targets.py").write_text(textwrap.dedent(TABLE))
    monkeypatch.syspath_prepend(str(package.parent))
    entry_point = importlib.metadata.EntryPoint("speech", "speech_fixture.targets:TARGETS", "nemo.targets")
    installed = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **select: [entry_point] if select == {"group": "nemo.targets"} else installed(**select),
    )
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "speech_fixture"]:
        del sys.modules[name]


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module `canary_module` that leaves a file when it is imported; the fixture is that file's path."""
    trace = tmp_path / "imported"
    folder = tmp_path / "canaries"
    folder.mkdir()
    (folder / "canary_module.py").write_text(
        f"import pathlib\npathlib.Path({str(trace)!r}).touch()\nclass Thing:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield trace
    sys.modules.pop("canary_module", None)
