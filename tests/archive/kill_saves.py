"""Kills saves by SIGKILL at random points: the file is then the old or the new one, whole, and nothing else.

    hatch run kill-saves                               200 saves, about 3 minutes
    python tests/archive/kill_saves.py --saves 6 --seed 1

Three ways to save take turns: `save_archive`, an ArchiveWriter that streams, and the command `nemo-archive edit`. Each
runs in a process of its own that says when it begins; the kill follows after a part of the time that a save took
before. What was left behind under a temporary name is counted, and must be gone after a save that is not killed.
Exit status 1 if anything else is found.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from nemo_archive import ArchiveError, ArchiveWriter, open_archive
from nemo_archive.cli import main as command
from nemo_archive.torch import load_state_dict, save_archive

ELEMENTS = 1_000_000  # 4 MB of float32, so that a save takes some milliseconds


def by_save_archive(path: Path, version: int) -> None:
    save_archive(path, {"version": version}, {"w": torch.full((ELEMENTS,), float(version))})


def by_writer(path: Path, version: int) -> None:
    data = torch.full((ELEMENTS,), float(version)).numpy().tobytes()
    with ArchiveWriter(path) as writer:
        writer.add_config({"version": version})
        writer.add_stream(
            "weights.bin", lambda file: [file.write(data[at : at + 65536]) for at in range(0, len(data), 65536)]
        )


def by_edit(path: Path, version: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        if command(["edit", str(path), f"version={version}"]):
            raise SystemExit("edit failed")


WAYS: dict[str, Callable[[Path, int], None]] = {
    "save_archive": by_save_archive,
    "ArchiveWriter": by_writer,
    "edit": by_edit,
}


def save_in_child(way: str, path: Path, version: int, kill_after_s: float | None) -> tuple[bool, float]:
    """Saves in a child; returns whether it was killed before its end, and how long it lived after it began."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, b"x")
            WAYS[way](path, version)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    began = time.perf_counter()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"{way} ended with status {status}")
    return status != 0, time.perf_counter() - began


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills saves; see the top of this file.")
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        for way in WAYS:
            run(way, Path(name), generator, -(-arguments.saves // len(WAYS)), counts, wrong)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    for message in wrong:
        print(f"WRONG: {message}")
    return 1 if wrong or not counts["killed"] else 0


def run(
    way: str, folder: Path, generator: random.Random, saves: int, counts: collections.Counter[str], wrong: list[str]
) -> None:
    path, twin = folder / f"{way}.nemo", folder / f"{way}.twin.nemo"
    (by_save_archive if way == "edit" else WAYS[way])(path, 0)
    whole_s = min(save_in_child(way, path, 0, None)[1] for _ in range(3))
    for version in range(1, saves + 1):
        twin.write_bytes(path.read_bytes())
        save_in_child(way, twin, version, None)  # what the save would give: equal content gives equal bytes
        old, new = digest(path), digest(twin)
        killed, _ = save_in_child(way, path, version, generator.uniform(0, whole_s))
        found = digest(path)
        counts["killed" if killed else "finished before the kill"] += 1
        counts["old file" if found == old else "new file" if found == new else "other file"] += 1
        if found not in (old, new):
            wrong.append(f"{way}, save {version}: neither the old nor the new file")
        wrong.extend(f"{way}, save {version}: {message}" for message in check_leftovers(folder, path, counts))
        with open_archive(path) as archive:
            if archive.config()["version"] not in (version, *range(version)):
                wrong.append(f"{way}, save {version}: version {archive.config()['version']}")
    WAYS[way](path, saves + 1)
    if left := [file.name for file in folder.iterdir() if file.name.startswith(f".{path.name}")]:
        wrong.append(f"{way}: {left} are left after a whole save")
    if way != "ArchiveWriter" and load_state_dict(path, mmap=False)["w"].shape != (ELEMENTS,):
        wrong.append(f"{way}: other weights")


def check_leftovers(folder: Path, path: Path, counts: collections.Counter[str]) -> list[str]:
    """Counts what a killed save left behind under its temporary name: cut short, or complete but not yet renamed."""
    messages = []
    left = [file for file in folder.iterdir() if file.name.startswith(f".{path.name}.") and file.suffix == ".tmp"]
    counts["leftovers seen"] += len(left)
    if len(left) > 1:
        messages.append(f"{len(left)} leftovers at once")
    if strange := {file.name for file in folder.iterdir() if file.suffix not in (".tmp", ".nemo")}:
        messages.append(f"files of other names: {strange}")
    for file in left:
        try:
            with open_archive(file, mmap=False) as archive:
                archive.config()
                counts["leftovers that were complete"] += 1
        except ArchiveError:
            counts["leftovers that do not open"] += 1
    return messages


if __name__ == "__main__":
    sys.exit(main())
