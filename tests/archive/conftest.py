"""Golden files, and tar archives made by hand."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

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
