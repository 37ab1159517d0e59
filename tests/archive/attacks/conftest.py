"""How hostile files are made, read, and watched: whoever runs anything from one of them is caught by the canary."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_archive import Archive, ArchiveError, open_archive
from nemo_archive.numpy import load_arrays
from nemo_archive.torch import load_state_dict

ONLY_TORCH = "only nemo_archive.torch.load_state_dict can read it"
CANARY = "NEMO_ARCHIVE_CANARY"  # what payloads would set in the environment
FORBIDDEN = (  # audit events, https://docs.python.org/3/library/audit_events.html
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.putenv", "os.remove", "os.rename", "os.mkdir",
    "os.chmod", "subprocess.", "socket.", "ctypes.", "shutil.", "pickle.find_class", "webbrowser.", "urllib.",
)  # fmt: skip


class _Watch:
    """An audit hook, which cannot be taken off again, and notes only while it is asked to."""

    def __init__(self) -> None:
        self.watching = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event.startswith(FORBIDDEN) or writes:
            self.seen.append(f"{event} {arguments!r:.200}")


_watch: list[_Watch] = []


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path that payloads try to make; also proves that nothing was imported, run, opened for writing, or sent."""
    if not _watch:
        _watch.append(_Watch())
    watch = _watch[0]
    monkeypatch.delenv(CANARY, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nemo_payload.py").write_text(
        "import os\nos.environ['NEMO_ARCHIVE_CANARY'] = 'imported'\ndef run(*a): ...\n"
    )
    path = tmp_path / "canary"
    watch.seen.clear()
    yield path
    watch.watching = False
    assert not path.exists(), "a payload ran and made the canary file"
    assert CANARY not in os.environ, "a payload ran and set the environment"
    assert "nemo_payload" not in sys.modules, "a module that the file names was imported"
    assert not watch.seen, f"what reading must not do: {watch.seen}"


@pytest.fixture
def refused(canary: Path) -> Callable[[Path], ArchiveError]:
    """refused(path) reads all that an archive offers under watch, and gives the first ArchiveError."""

    def read(path: Path) -> ArchiveError:
        open_archive(_warm).close()
        _watch[0].watching = True
        try:
            _read_everything(path)
        except ArchiveError as error:
            return error
        finally:
            _watch[0].watching = False
        raise AssertionError("it was read without complaint")

    _warm = canary.parent / "warm.nemo"
    _warm.write_bytes(Made(canary.parent, canary).tar_bytes({"model_config.yaml": b"a: 1\n"}))
    return read


def _read_everything(path: Path) -> None:
    for mmap in (True, False):
        with open_archive(path, mmap=mmap) as archive:
            archive.config()
            archive.artifacts()
            for name in archive.checkpoints():
                _read_weights(archive, name)


def _read_weights(archive: Archive, name: str) -> None:
    """Lists the tensors; what is refused here, arrays and tensors refuse for the same reason."""
    try:
        archive.tensors(name)
    except ArchiveError as error:
        if ONLY_TORCH in error.rule:
            load_state_dict(archive, member=name)
            return
        for read in (load_arrays, load_state_dict):
            with pytest.raises(ArchiveError) as again:
                read(archive, member=name)
            assert again.value.rule == error.rule
        raise
    load_arrays(archive, member=name)
    load_state_dict(archive, member=name)


class Made:
    """Makes hostile files in a folder."""

    def __init__(self, folder: Path, canary: Path) -> None:
        self.folder, self.canary = folder, canary
        self.command = f"touch {canary}"

    def file(self, data: bytes, name: str = "hostile.nemo") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def tar_bytes(
        self, members: dict[str, bytes], *more: tarfile.TarInfo, tar_format: int = tarfile.PAX_FORMAT
    ) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for info in more:
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        return stream.getvalue()

    def archive(
        self, members: dict[str, bytes] | None = None, *more: tarfile.TarInfo, config: bytes = b"a: 1\n", **options: Any
    ) -> Path:
        """An archive of a config, these members, and these headers with no content of their own."""
        return self.file(self.tar_bytes({"model_config.yaml": config, **(members or {})}, *more, **options))

    def weights(self, data: bytes) -> Path:
        return self.archive({"model_weights.ckpt": data})

    def checkpoint(self, program: bytes, records: dict[str, bytes] | None = None) -> Path:
        """An archive whose checkpoint has this pickle; the storage `0` has 16 bytes unless `records` say otherwise."""
        return self.weights(
            self.zip_bytes({"data.pkl": program, **({"data/0": bytes(16)} if records is None else records)})
        )

    def zip_bytes(self, records: dict[str, bytes], *, top: str = "archive/", method: int = zipfile.ZIP_STORED) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, data in records.items():
                archive.writestr(zipfile.ZipInfo(top + name), data, method)
        return stream.getvalue()

    def tensor(
        self,
        *,
        offset: int = 0,
        shape: tuple[int, ...] = (4,),
        strides: tuple[int, ...] = (1,),
        count: int = 4,
        key: str = "0",
    ) -> bytes:
        """The instructions that make one tensor of float32 over storage `key` of `count` elements."""
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + self.text("storage") + b"ctorch\nFloatStorage\n" + self.text(key) + self.text("cpu") + self.number(count)
            + b"tQ"
            + self.number(offset) + self.tuple(shape) + self.tuple(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
        )  # fmt: skip

    def state_dict(self, value: bytes, key: str = "w") -> bytes:
        """A whole pickle: a dict with one entry, made by these instructions."""
        return b"\x80\x02}" + self.text(key) + value + b"s."

    def text(self, text: str) -> bytes:
        data = text.encode()
        return b"X" + struct.pack("<L", len(data)) + data

    def number(self, value: int) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    def tuple(self, values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(self.number, values)) + b"t"


@pytest.fixture
def made(tmp_path: Path, canary: Path) -> Made:
    return Made(tmp_path, canary)
