"""Archives behind URLs, against the same files on the disk; what a server was asked for is counted."""

from __future__ import annotations

import concurrent.futures
import gzip
import http.server
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from nemo_archive import ArchiveError, open_archive
from nemo_archive.numpy import load_array, load_arrays
from nemo_archive.torch import load_state_dict, save_archive


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder, in ranges, unless the server is told not to; keeps account of the bytes sent."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked and self.server.ranges else (0, size)
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("Content-Length", str(end - start))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_header("Accept-Ranges", "none")
        self.end_headers()
        if body:
            self.send(path, start, end)

    def send(self, path, start, end):
        request = [start, end - start]  # noted first: the client may look as soon as it has the last byte
        self.server.requests.append(request)
        sent = 0
        try:
            with path.open("rb") as file:
                file.seek(start)
                while start + sent < end:
                    sent += self.wfile.write(file.read(min(1 << 16, end - start - sent)))
        except ConnectionError:
            request[1] = sent


@pytest.fixture
def server(tmp_path):
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.folder, running.ranges, running.requests = tmp_path, True, []
    running.url = f"http://127.0.0.1:{running.server_address[1]}"
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def in_memory(path: Path, name: str) -> str:
    with fsspec.open(f"memory://{name}", "wb") as file:
        file.write(path.read_bytes())
    return f"memory://{name}"


def test_a_golden_file_behind_a_url_reads_like_the_one_on_the_disk(golden_file):
    url = in_memory(golden_file, golden_file.name)
    with open_archive(golden_file) as local, open_archive(url) as remote:
        assert dict(remote.members) == dict(local.members)
        assert remote.config() == local.config()
        assert remote.artifacts() == local.artifacts()
        assert remote.tensors() == local.tensors()
        expected, loaded, arrays = load_state_dict(local), load_state_dict(remote), load_arrays(remote)
        assert remote.open(next(iter(remote.members))).read() == local.read(next(iter(local.members)))
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


@pytest.fixture
def five_gigabytes(tmp_path):
    """A sparse file: tokenizer, config, weights of 5 GB, of which nothing may be fetched."""
    path = tmp_path / "large.nemo"
    with path.open("wb") as file:
        for name, data in (
            ("./tokenizer.model", bytes(300_000)),
            ("./model_config.yaml", b"rate: 1e-3\n" * 1 + b"#" * 20_000),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.write(info.tobuf() + data + bytes(-len(data) % 512))
        info = tarfile.TarInfo("./model_weights.ckpt")
        info.size = 5 << 30
        file.write(info.tobuf())
        file.truncate(file.tell() + info.size + 1024)
    return path


def test_the_config_of_five_gigabytes_costs_a_few_kilobytes(server, five_gigabytes):
    with open_archive(f"{server.url}/{five_gigabytes.name}") as archive:
        opened = sum(length for _, length in server.requests)
        assert archive.config() == {"rate": 1e-3}
        assert archive.members["model_weights.ckpt"].size == 5 << 30
    total = sum(length for _, length in server.requests)
    assert opened <= 40_000
    assert total <= 20_000 + 50_000
    assert len(server.requests) <= 8


def test_one_tensor_is_fetched_alone_and_all_of_them_in_few_requests(server, tmp_path):
    state = OrderedDict((f"layer.{index}", torch.full((5_000,), float(index))) for index in range(300))
    path = tmp_path / "m.nemo"
    save_archive(path, {"a": 1}, state)
    with open_archive(f"{server.url}/m.nemo") as archive:
        assert len(archive.tensors()) == 300
        server.requests.clear()
        assert load_array(archive, "layer.150")[0] == 150
        assert sum(length for _, length in server.requests) < 5_000 * 4 + 3 * 4096
        server.requests.clear()
        loaded = load_state_dict(archive)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert len(server.requests) < 60
    assert sum(length for _, length in server.requests) < 2 * path.stat().st_size


def test_a_packed_archive_is_streamed_in_large_parts(server, tmp_path):
    save_archive(tmp_path / "m.nemo", {"a": 1}, {"w": torch.randn(700_000)})
    expected = load_state_dict(tmp_path / "m.nemo", mmap=False)
    (tmp_path / "m.nemo").write_bytes(gzip.compress((tmp_path / "m.nemo").read_bytes(), 1))
    with open_archive(f"{server.url}/m.nemo") as archive:
        assert len(server.requests) < 6
        assert torch.equal(load_state_dict(archive)["w"], expected["w"])


def test_threads_share_an_archive_behind_a_url(server, golden):
    path = golden / "conformer_ctc_bpe" / "model.nemo"
    (server.folder / "m.nemo").write_bytes(path.read_bytes())
    with (
        open_archive(path) as local,
        open_archive(f"{server.url}/m.nemo") as remote,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        names = list(local.members) * 6
        assert list(pool.map(remote.read, names)) == [local.read(name) for name in names]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_on(server, golden):
    (server.folder / "m.nemo").write_bytes((golden / "conformer_ctc_bpe" / "model.nemo").read_bytes())
    program = """
import os, sys
from nemo_archive import open_archive
archive = open_archive(sys.argv[1])
child = os.fork()
weights = archive.read("model_weights.ckpt")
if child == 0:
    with open_archive(sys.argv[2]) as local:
        os._exit(0 if weights == local.read("model_weights.ckpt") else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(weights))
"""
    url, path = f"{server.url}/m.nemo", str(server.folder / "m.nemo")
    run = subprocess.run(
        [sys.executable, "-c", program, url, path], capture_output=True, text=True, timeout=60, check=True
    )
    with open_archive(path) as archive:
        assert run.stdout.split() == ["0", str(archive.members["model_weights.ckpt"].size)]


def test_a_server_without_ranges_is_refused_with_advice(server, five_gigabytes):
    server.ranges = False
    with pytest.raises(ArchiveError, match=r"large\.nemo: the server does not send parts of a file: download it"):
        open_archive(f"{server.url}/{five_gigabytes.name}")
    for _ in range(600):  # until the server notices that nobody listens
        if all(length < 50_000_000 for _, length in server.requests):
            return
        time.sleep(0.05)
    raise AssertionError(f"the server went on sending: {server.requests}")


def test_a_missing_file_is_an_oserror_and_another_page_is_called_what_it_is(server):
    with pytest.raises(FileNotFoundError):
        open_archive(f"{server.url}/none.nemo")
    (server.folder / "page.nemo").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ArchiveError, match="this is an HTML page"):
        open_archive(f"{server.url}/page.nemo")
    (server.folder / "empty.nemo").write_bytes(b"")
    with pytest.raises(ArchiveError):
        open_archive(f"{server.url}/empty.nemo")


def test_an_unknown_protocol_and_missing_packages_say_what_to_do(golden):
    with pytest.raises(ArchiveError, match="nosuch://x: Protocol not known: nosuch"):
        open_archive("nosuch://x")
    program = """
import sys
sys.modules["s3fs"] = None
from nemo_archive import ArchiveError, open_archive
for url in ("s3://bucket/x.nemo", "memory://x"):
    try:
        open_archive(url)
    except ArchiveError as error:
        print(error)
    sys.modules["fsspec.core"] = sys.modules["fsspec"] = None
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = run.stdout.splitlines()
    assert first.startswith("s3://bucket/x.nemo: its protocol needs another package: Install s3fs")
    assert second == "memory://x: URLs need fsspec: pip install 'nemo-archive[remote]'"


def test_a_file_that_becomes_shorter_meanwhile_is_an_archive_error(tmp_path):
    save_archive(tmp_path / "m.nemo", {"a": 1}, {"w": torch.randn(70_000)})
    url = in_memory(tmp_path / "m.nemo", "shrinking.nemo")
    with open_archive(url) as archive:
        store = fsspec.filesystem("memory").store["/shrinking.nemo"]
        store.seek(20_000)
        store.truncate()
        with pytest.raises(ArchiveError, match=r"shrinking\.nemo: the server sent \d+ bytes where"):
            archive.read("model_weights.ckpt")
    with pytest.raises(ArchiveError, match="closed"):
        archive.read("model_config.yaml")
