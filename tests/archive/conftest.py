"""Golden files, and tar archives made by hand."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(params=sorted(GOLDEN.glob("*/*.nemo")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def golden_file(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """make_tar({name: bytes}, *more TarInfo, mode=, name=) writes a tar file with Python's tarfile."""

    def make(
        members: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w", name: str = "made.nemo", **options: object
    ) -> Path:
        path = tmp_path / name
        with tarfile.open(path, mode, **options) as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for info in more:
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        return path

    return make


class CommandResult(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def command(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., CommandResult]:
    """command("ls", path) runs `nemo-archive ls path` in this process."""
    from nemo_archive.cli import main

    def run(*arguments: object) -> CommandResult:
        capfdbinary.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return CommandResult(status, out.decode(), err.decode())

    return run
