"""Mutates archives and reads them: whatever the bytes, the reader gives an answer or raises ArchiveError.

    hatch run fuzz                                     100,000 cases, a few minutes on one core
    python tests/archive/fuzz.py --cases 2000 --seed 7
    python tests/archive/fuzz.py --only 4711           one case, in this process, with its traceback

Each case is one mutation of one archive (fuzz_seeds.py, fuzz_mutations.py), made from the seed and the case's number
alone. It is opened, and its config, references, artifacts, tensors and arrays are read; a quarter of them also become
torch tensors. Wrong are: any exception but ArchiveError, an end of the process, more than LONGEST_S seconds of
processor time, and more than LARGEST_ALLOCATION bytes of memory. Of each wrong case the file is kept
(`fuzz-failure-<seed>-<case>.nemo`), and the exit status is 1.

The cases run in child processes, so that one that ends its process ends nothing else.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: F401 - before the memory is limited
from fuzz_mutations import mutate
from fuzz_seeds import golden_seeds, small_seeds

import nemo_archive
from nemo_archive import Archive, ArchiveError, open_archive
from nemo_archive.numpy import load_arrays
from nemo_archive.torch import load_state_dict

for module in pkgutil.iter_modules(nemo_archive.__path__):  # before the children, which are to share them
    if module.name != "__main__":
        importlib.import_module(f"nemo_archive.{module.name}")

LONGEST_S = 1.0  # of processor time, which other programs on the machine do not lengthen
LARGEST_ALLOCATION = 512 << 20  # bytes of address space that a case may add
GOLDEN_SHARE = 0.04  # of all cases; they take 10 times as long as the small ones
BATCH = 1000  # cases in one child process
STUCK_S = 60  # of real time without a sign from a child


class Hang(BaseException):
    """The processor time of a case is used up."""


def make_case(seed: int, case: int, small: list[bytes], golden: list[bytes]) -> bytes:
    generator = random.Random(f"{seed}:{case}")
    data = generator.choice(golden if generator.random() < GOLDEN_SHARE else small)
    return mutate(generator, data, small)


def read_everything(path: str, case: int) -> Iterator[str]:
    """Reads all that the archive offers; yields the rule of each refusal, `read` for each step that succeeds."""
    archive: Archive | None = None

    def opening() -> None:
        nonlocal archive
        archive = open_archive(path, mmap=case % 3 != 0)

    yield _outcome(opening)
    if archive is None:
        return
    with archive:
        yield _outcome(archive.config)
        yield _outcome(archive.artifacts)
        names: list[str] = []
        yield _outcome(lambda: names.extend(archive.checkpoints()))
        for name in names[:3]:
            yield _outcome(lambda name=name: [info.nbytes for info in archive.tensors(name).values()])  # type: ignore[misc]
            yield _outcome(lambda name=name: [array.shape for array in load_arrays(archive, member=name).values()])  # type: ignore[misc]
            if case % 4 == 0:
                yield _outcome(lambda name=name: load_state_dict(archive, member=name, mmap=case % 8 == 0))  # type: ignore[misc]


def _outcome(step: Callable[[], Any]) -> str:
    try:
        step()
    except ArchiveError as error:
        str(error)
        return error.rule
    return "read"


def check_seeds(seeds: dict[str, bytes]) -> None:
    """Every archive is sound before it is mutated: else its mutations would all fail at the same place.

    Raises:
        SystemExit: if a step refuses one, other than what only torch can read.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, data in seeds.items():
            _write(folder, data)
            refusals = {rule for rule in read_everything(f"{folder}/case.nemo", 0) if rule != "read"}
            if any("only nemo_archive.torch.load_state_dict" not in rule for rule in refusals):
                raise SystemExit(f"the archive {name!r} is refused as it is: {refusals}")


def kind_of(rule: str) -> str:
    """The rule without the numbers and names of the case."""
    rule = re.sub(r"(?s)(['\"]).*?(?<!\\)\1", "'…'", rule)
    rule = re.sub(r"(unreadable YAML|no model_config\.yaml|cannot be loaded safely|no checkpoint but).*", r"\1", rule)
    return re.sub(r"0x\w+|\d+", "N", rule)[:70]


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LARGEST_ALLOCATION
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_batch(
    seed: int, cases: range, small: list[bytes], golden: list[bytes], folder: str, report: Callable[[Any], None]
) -> None:
    """In a child: tells of each case's start, then of its end."""

    def out_of_time(_signal: int, _frame: Any) -> None:
        raise Hang(f"over {LONGEST_S} s of processor time")

    signal.signal(signal.SIGPROF, out_of_time)
    for case in cases[:1]:  # imports and caches are no part of a case's cost
        _write(folder, small[0])
        list(read_everything(f"{folder}/case.nemo", 0 * case))
    gc.collect()
    gc.freeze()
    _limit_memory()
    for case in cases:
        data = make_case(seed, case, small, golden)
        _write(folder, data)
        report({"start": case})
        outcomes: list[str] = []
        failure = ""
        before, started = _peak_bytes(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        try:
            outcomes.extend(read_everything(f"{folder}/case.nemo", case))
        except BaseException as error:
            failure = f"{type(error).__name__}: {str(error)[:200]}\n{traceback.format_exc(limit=-4)}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - started
        kinds = sorted({kind_of(outcome) for outcome in outcomes})
        grown = _peak_bytes() - before
        report({"end": case, "seconds": seconds, "grown": grown, "kinds": kinds, "failure": failure})


def _write(folder: str, data: bytes) -> None:
    path = Path(folder, "case.nemo")
    path.unlink(missing_ok=True)
    path.write_bytes(data)


class Report:
    """What the cases came to."""

    def __init__(self, keep: Callable[[int], Path]) -> None:
        self.keep = keep
        self.cases = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.slowest = (0.0, -1)
        self.largest = (0, -1)
        self.failures: list[str] = []

    def add(self, end: dict[str, Any]) -> None:
        self.cases += 1
        self.kinds.update(end["kinds"])
        self.slowest = max(self.slowest, (end["seconds"], end["end"]))
        self.largest = max(self.largest, (end["grown"], end["end"]))
        if end["failure"]:
            self.fail(end["end"], end["failure"])

    def fail(self, case: int, what: str) -> None:
        self.failures.append(f"case {case}: {what.strip()}\n  kept as {self.keep(case)}")
        print(self.failures[-1], flush=True)

    def text(self, seconds: float) -> str:
        listed = "\n".join(f"{count:8d}  {kind}" for kind, count in self.kinds.most_common())
        return (
            f"{listed}\n\n{self.cases} cases in {seconds:.0f} s, {len(self.kinds)} kinds of outcome; slowest "
            f"{self.slowest[0]:.3f} s (case {self.slowest[1]}); largest growth of memory in a case "
            f"{self.largest[0] / 2**20:.1f} MiB (case {self.largest[1]}); {len(self.failures)} failures"
        )


def run_child(work: Callable[[Callable[[Any], None]], None], report: Report) -> int | None:
    """Runs a batch in a child; returns the case that ended it before its time, if one did."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            work(lambda message: os.write(writing, _framed(message)))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    started: int | None = None
    with os.fdopen(reading, "rb") as pipe:
        while (message := _next(pipe, child)) is not None:
            if "start" in message:
                started = message["start"]
            else:
                report.add(message)
                started = None
    _, status = os.waitpid(child, 0)
    if status == 0:
        return None
    if started is None:
        raise SystemExit(f"a child ended with status {status} outside of any case")
    report.fail(started, f"the process ended with status {status}")
    return started


def _framed(message: Any) -> bytes:
    text = json.dumps(message).encode()
    return struct.pack("<L", len(text)) + text


def _next(pipe: Any, child: int) -> dict[str, Any] | None:
    def stuck(_signal: int, _frame: Any) -> None:
        os.kill(child, signal.SIGKILL)

    previous = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(STUCK_S)
    try:
        size = pipe.read(4)
        return json.loads(pipe.read(*struct.unpack("<L", size))) if len(size) == 4 else None
    except ValueError:
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads mutated archives; see the top of this file.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, in this process")
    parser.add_argument("--keep", default=".", help="where the files of wrong cases go")
    arguments = parser.parse_args()
    small, golden = list(small_seeds().values()), list(golden_seeds().values())
    seed = arguments.seed
    warnings.simplefilter("ignore")  # of zipfile and torch, about what the mutations did

    def keep(case: int) -> Path:
        path = Path(arguments.keep, f"fuzz-failure-{seed}-{case}.nemo")
        path.write_bytes(make_case(seed, case, small, golden))
        return path

    if arguments.only is not None:
        for outcome in read_everything(str(keep(arguments.only)), arguments.only):
            print(outcome)
        return 0
    check_seeds({**small_seeds(), **golden_seeds()})
    report, started = Report(keep), time.perf_counter()
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        first = 0
        while first < arguments.cases:
            cases = range(first, min(first + BATCH, arguments.cases))

            def work(tell: Callable[[Any], None], cases: range = cases) -> None:
                with contextlib.redirect_stdout(sys.stderr):
                    run_batch(seed, cases, small, golden, folder, tell)

            ended = run_child(work, report)
            first = cases.stop if ended is None else ended + 1
            print(f"\r{first} of {arguments.cases}", end="", file=sys.stderr, flush=True)
    print(report.text(time.perf_counter() - started))
    return 1 if report.failures or report.cases == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
