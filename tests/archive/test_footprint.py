"""What reading touches, by the kernel's own account: pages, bytes read and written, maps, memory that stays."""

from __future__ import annotations

import ctypes
import gc
import gzip
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from nemo_archive import open_archive
from nemo_archive.numpy import load_array
from nemo_archive.torch import build_and_load, load_state_dict, save_archive

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")

ROWS = 16_384  # of 256 float32: 16 MiB


@pytest.fixture(scope="module", params=["torch", "safetensors"])
def large_file(request, tmp_path_factory):
    """64 MiB in four tensors, and one of 256 KiB between them."""
    path = tmp_path_factory.mktemp("large") / f"{request.param}.nemo"
    state = OrderedDict((f"layer.{index}", torch.full((ROWS, 256), float(index))) for index in range(4))
    state["small"] = torch.arange(65_536.0)
    save_archive(path, {"a": 1}, state, weights=request.param)
    return path


def resident(path: Path) -> int:
    """Bytes of a file's pages that this process has touched through a map."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            ours = line.endswith(str(path))
        elif ours and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def counted(kind: str) -> int:
    return int(
        next(line.split()[1] for line in Path("/proc/self/io").read_text().splitlines() if line.startswith(kind))
    )


def test_reading_one_tensor_of_a_mapped_file_touches_only_its_pages(large_file):
    with open_archive(large_file) as archive:
        archive.config(), archive.tensors()
        assert resident(large_file) < 1 << 20
        assert load_array(archive, "small").sum() == 65_535 * 32_768
        assert resident(large_file) < 2 << 20
        state = load_state_dict(archive)
        assert resident(large_file) < 2 << 20
        assert (state["layer.2"] == 2).all()
        assert 16 << 20 <= resident(large_file) < 20 << 20


def test_without_a_map_only_the_asked_for_bytes_are_read(large_file):
    before = counted("rchar")
    with open_archive(large_file, mmap=False) as archive:
        archive.config(), archive.tensors()
        listed = counted("rchar") - before
        small = load_array(archive, "small")
        read = counted("rchar") - before
        assert small.sum() == 65_535 * 32_768
        assert resident(large_file) == 0
    assert listed < 64 << 10
    assert read < listed + (256 << 10) + (16 << 10)


def test_reading_a_plain_archive_writes_nothing(large_file):
    before = counted("write_bytes"), counted("wchar")
    with open_archive(large_file) as archive:
        archive.config(), archive.artifacts(), archive.tensors()
        state = load_state_dict(archive)
    build_and_load(lambda: model(ROWS, 4), {**state, "extra": torch.ones(1)}, strict=False)
    assert (counted("write_bytes"), counted("wchar")) == before


def model(rows: int, layers: int) -> nn.Module:
    module = nn.Module()
    module.layer = nn.ParameterList([torch.empty(rows, 256) for _ in range(layers)])
    module.small = nn.Parameter(torch.empty(65_536))
    return module


@pytest.mark.parametrize(("how", "times"), [("mapped", 50), ("copied", 20), ("gzip", 8)])
def test_restoring_and_dropping_a_model_leaves_no_memory_even_without_the_collector(large_file, tmp_path, how, times):
    import psutil

    path = large_file
    if how == "gzip":
        path = tmp_path / "packed.nemo"
        path.write_bytes(gzip.compress(large_file.read_bytes(), 1))
    process, used = psutil.Process(), []
    gc.collect()
    gc.disable()
    try:
        for _ in range(times):
            module = build_and_load(lambda: model(ROWS, 4), load_state_dict(path, mmap=how != "copied"))
            assert module.layer[3][0, 0] == 3
            del module
            ctypes.CDLL(None).malloc_trim(0)  # else the allocator keeps what was freed, now more, now less
            used.append(process.memory_info().rss)
            assert mapped(path) == 0
    finally:
        gc.enable()
    later, earlier = min(used[times // 2 :]), min(used[2 : times // 2])
    assert later - earlier < 16 << 20  # a quarter of one model


def mapped(path: Path) -> int:
    return sum(line.endswith(str(path)) for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("mmap", ["mapped", "copied"])
def test_forked_children_read_on_while_threads_read(golden, mmap):
    program = """
import os, sys, threading
from nemo_archive import open_archive
archive = open_archive(sys.argv[1], mmap=sys.argv[2] == "mapped")
expected = {name: archive.read(name) for name in archive.members}
stop = threading.Event()
def read():
    while not stop.is_set():
        assert all(archive.read(name) == data for name, data in expected.items())
threads = [threading.Thread(target=read) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        right = all(archive.read(name) == data for name, data in expected.items())
        archive.close()
        os._exit(0 if right and archive.closed else 1)
    children.append(child)
results = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
for thread in threads:
    thread.join()
assert archive.config()
print(results)
"""
    command = [sys.executable, "-W", "ignore", "-c", program, str(golden / "conformer_ctc_bpe" / "model.nemo"), mmap]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.stderr) == (f"{[0] * 8}\n", "")


def test_opening_and_reading_the_config_imports_nothing_that_can_wait(golden):
    program = """
import sys
import nemo_archive
parts = "artifacts folder reader safety sources tar_index".split()
known = {"nemo_archive", *(f"nemo_archive.{name}" for name in parts)}
assert {name for name in sys.modules if name.startswith("nemo_archive")} == known
with nemo_archive.open_archive(sys.argv[1]) as archive:
    archive.config(), archive.members, archive.references()
late = {"nemo_archive.yaml_config"}
assert {name for name in sys.modules if name.startswith("nemo_archive")} == known | late
heavy = {"torch", "numpy", "fsspec", "tarfile", "json", "hashlib", "tempfile", "asyncio", "pickle", "ctypes", "zipfile"}
print(sorted(heavy & sys.modules.keys()))
"""
    path = str(golden / "conformer_ctc_bpe" / "model.nemo")
    # -S: no .pth file, such as those of editable packages, imports anything before.
    program = "import sys; sys.path[:0] = sys.argv.pop().split('|')\n" + program
    folders = "|".join(entry for entry in sys.path if entry)
    command = [sys.executable, "-S", "-c", program, path, folders]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("[]\n", "")
