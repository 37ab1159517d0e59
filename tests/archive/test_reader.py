"""Opening archives: every layout, against tarfile and OmegaConf."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile

import pytest
from omegaconf import OmegaConf

from nemo_archive import ArchiveError, Artifact, open_archive
from nemo_archive import sources as sources_module
from nemo_archive.sources import open_source, unpack_gzip

CONFIG = b"target: a.B\nrate: 1e-3\n"


def by_tarfile(path):
    with tarfile.open(path) as tar:
        return {member.name.removeprefix("./"): tar.extractfile(member).read() for member in tar if member.isfile()}


@pytest.mark.parametrize("mmap", [True, False])
def test_members_and_their_content_equal_tarfiles(golden_file, mmap):
    expected = by_tarfile(golden_file)
    with open_archive(golden_file, mmap=mmap) as archive:
        assert list(archive.members) == list(expected)
        for name, data in expected.items():
            assert archive.members[name].size == len(data)
            assert archive.read(name) == archive.read(f"./{name}") == data
            assert archive.open(name).read() == data


def test_member_offsets_point_into_the_file(golden):
    path = golden / "fastconformer_ctc_bpe" / "model.nemo"
    raw = path.read_bytes()
    with open_archive(path) as archive:
        for name, member in archive.members.items():
            assert raw[member.offset : member.offset + member.size] == archive.read(name)


def test_config_equals_omegaconfs(golden_file):
    expected = OmegaConf.load(io.BytesIO(by_tarfile(golden_file)["model_config.yaml"]))
    with open_archive(golden_file) as archive:
        config = archive.config()
    assert config == OmegaConf.to_container(expected, resolve=False)


def test_config_is_a_fresh_copy_each_time(golden):
    with open_archive(golden / "quartznet_ctc_char" / "model.nemo") as archive:
        archive.config()["labels"].clear()
        assert archive.config()["labels"]


@pytest.mark.parametrize("name", ["model.nemo", "model_resaved.nemo", "model_legacy_artifact_names.nemo"])
def test_artifacts_are_found_by_reference_and_by_old_plain_path(golden, name):
    path = golden / "fastconformer_ctc_bpe" / name
    expected = by_tarfile(path)
    with open_archive(path) as archive:
        artifacts = archive.artifacts()
        assert list(artifacts) == ["tokenizer.model_path", "tokenizer.vocab_path", "tokenizer.spe_tokenizer_vocab"]
        for config_path, artifact in artifacts.items():
            assert artifact.data == expected[artifact.name]
            assert archive.artifact(config_path) == artifact


def test_artifacts_inside_lists_have_dotted_indexes(make_tar):
    path = make_tar({"model_config.yaml": b"langs: [{p: nemo:a}, {p: [x, 'nemo:./b']}]\n", "a": b"1", "b": b"2"})
    with open_archive(path) as archive:
        assert archive.artifacts() == {"langs.0.p": Artifact("a", b"1"), "langs.1.p.1": Artifact("b", b"2")}


MODEL, VOCAB = "tokenizer.model", "vocab.txt"
OLD_TOKENIZERS = {
    "{dir: /train/tok, type: bpe}": {"tokenizer.model_path": MODEL, "tokenizer.vocab_path": VOCAB},
    "{dir: /train/tok/, type: WPE}": {"tokenizer.vocab_path": VOCAB},
    "{dir: /t, type: bpe, model_path: 'nemo:x'}": {"tokenizer.model_path": "x", "tokenizer.vocab_path": VOCAB},
    "{type: agg, langs: {en: {dir: /e, type: bpe}, de: {type: bpe}}}": {
        "tokenizer.langs.en.model_path": MODEL,
        "tokenizer.langs.en.vocab_path": VOCAB,
    },
    "{type: bpe, dir: null}": {},
    "{type: yttm, dir: /t}": {},
    "bpe": {},
}


@pytest.mark.parametrize("section", OLD_TOKENIZERS)
def test_the_files_of_a_tokenizer_that_is_named_by_its_folder_alone_are_found(make_tar, section):
    config = f"tokenizer: {section}\nother: {{dir: /t, type: bpe}}\n".encode()
    contents = {MODEL: b"m", VOCAB: b"v", "x": b"x"}
    path = make_tar(
        {"model_config.yaml": config, **{f"./{name}": data for name, data in contents.items()}}, mode="w:gz"
    )
    with open_archive(path) as archive:
        assert archive.references() == OLD_TOKENIZERS[section]
        for config_path, name in OLD_TOKENIZERS[section].items():
            assert archive.artifact(config_path) == Artifact(name, contents[name])


def test_an_artifact_that_the_archive_lacks_is_named_with_its_config_path(make_tar):
    path = make_tar({"model_config.yaml": b"tokenizer: {model_path: nemo:gone.model, type: bpe}\n"})
    with open_archive(path) as archive:
        assert archive.artifacts() == {}
        assert archive.references() == {"tokenizer.model_path": "gone.model"}
        with pytest.raises(ArchiveError, match=r"gone\.model.*tokenizer\.model_path"):
            archive.artifact("tokenizer.model_path")
        with pytest.raises(ArchiveError, match=r"tokenizer\.type: the config names no artifact"):
            archive.artifact("tokenizer.type")


def test_an_artifact_keeps_its_digits_or_gets_those_of_its_content(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"a\nb\n")
    fresh = Artifact.from_file(tmp_path / "vocab.txt")
    digits = hashlib.sha256(b"a\nb\n").hexdigest()[:32]
    assert (fresh.archive_name, fresh.reference) == (f"{digits}_vocab.txt", f"nemo:{digits}_vocab.txt")
    assert Artifact(fresh.archive_name, b"other").archive_name == fresh.archive_name


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_tar_format(make_tar, tar_format):
    names = ["model_config.yaml", "a" * 90, f"{'folder/' * 20}{'b' * 60}", "ünïcode_ж.model"]
    if tar_format != tarfile.USTAR_FORMAT:
        names.append("c" * 300)
    path = make_tar(dict.fromkeys(names, CONFIG), format=tar_format)
    with open_archive(path) as archive:
        assert list(archive.members) == names


@pytest.mark.parametrize("padding", [0, 5000])
def test_gzip_archives_of_several_streams_and_with_padding_are_read(golden, tmp_path, padding):
    import gzip

    raw = (golden / "quartznet_ctc_char" / "model.nemo").read_bytes()
    path = tmp_path / "two.nemo"
    path.write_bytes(gzip.compress(raw[:100_000]) + gzip.compress(raw[100_000:]) + bytes(padding))
    with open_archive(path) as archive, open_archive(golden / "quartznet_ctc_char" / "model.nemo") as plain:
        assert {name: archive.read(name) for name in archive.members} == {
            name: plain.read(name) for name in plain.members
        }


def test_a_gzip_archive_above_the_limit_goes_to_a_temporary_file_that_has_no_name(golden, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = golden / "quartznet_ctc_char" / "model_legacy_gz.nemo"
    unpacked = unpack_gzip(open_source(str(path), mmap=True), str(path), in_memory=100_000)
    assert isinstance(unpacked, sources_module.MappedSource)
    assert list(tmp_path.iterdir()) == []
    in_memory = unpack_gzip(open_source(str(path), mmap=False), str(path))
    assert bytes(unpacked.view(0, unpacked.size)) == bytes(in_memory.view(0, in_memory.size))


def test_an_unpacked_folder_reads_like_the_archive(golden_file, tmp_path):
    with tarfile.open(golden_file) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    with open_archive(golden_file) as packed, open_archive(tmp_path / "unpacked") as unpacked:
        assert unpacked.config() == packed.config()
        assert unpacked.artifacts() == packed.artifacts()
        assert list(unpacked.tensors()) == list(packed.tensors())


def test_everything_can_be_read_after_the_file_was_deleted(golden, tmp_path):
    path = shutil.copy(golden / "fastconformer_ctc_bpe" / "model.nemo", tmp_path)
    with open_archive(golden / "fastconformer_ctc_bpe" / "model.nemo") as original, open_archive(path) as archive:
        os.unlink(path)  # noqa: PTH108
        assert archive.artifacts() == original.artifacts()
        assert archive.read("model_weights.ckpt") == original.read("model_weights.ckpt")


def test_threads_share_an_archive(golden):
    expected = by_tarfile(golden / "fastconformer_ctc_bpe" / "model.nemo")
    for mmap in (True, False):
        with (
            open_archive(golden / "fastconformer_ctc_bpe" / "model.nemo", mmap=mmap) as archive,
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            names = list(expected) * 8
            assert list(pool.map(archive.read, names)) == [expected[name] for name in names]
            assert len({str(config) for config in pool.map(lambda _: archive.config(), range(16))}) == 1


def test_the_working_directory_and_the_folder_stay_as_they_are(golden_file):
    before = os.getcwd(), sorted(golden_file.parent.iterdir())  # noqa: PTH109
    with open_archive(golden_file) as archive:
        archive.config(), archive.artifacts(), archive.tensors()
    assert (os.getcwd(), sorted(golden_file.parent.iterdir())) == before  # noqa: PTH109


def test_a_closed_archive_says_so(golden):
    archive = open_archive(golden / "quartznet_ctc_char" / "model.nemo")
    archive.close()
    archive.close()
    with pytest.raises(ArchiveError, match="closed"):
        archive.read("model_weights.ckpt")


def test_reading_config_members_artifacts_and_tensors_imports_neither_torch_nor_numpy(golden):
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "numpy", "ml_dtypes"]))  # importing one would fail
from nemo_archive import open_archive
for path in sys.argv[1:]:
    with open_archive(path) as archive:
        assert archive.config() and archive.members and archive.tensors()
        archive.artifacts()
print(sorted(name for name in sys.modules if name.startswith("nemo_") and name.count(".") == 0))
"""
    files = [str(path) for path in sorted(golden.glob("*/*.nemo"))]
    run = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("['nemo_archive']\n", "")


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\n <html><head>", "an HTML page"),
        (b'{"error": "not found"}', "a JSON document"),
        (b"PK\x03\x04" + bytes(600), "a zip file"),
        (b"\x80\x02}q\x00." + bytes(600), "a Python pickle"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":1}         ', "a safetensors file"),
        (bytes(4096), "a file that begins with zeros"),
        (b"hello there", "a text file that begins with 'hello there'"),
        (b"\x93\x01\x02\x03" * 300, "no tar archive"),
    ],
)
def test_a_file_that_is_no_archive_is_called_what_it_is(tmp_path, content, meaning):
    path = tmp_path / "model.nemo"
    path.write_bytes(content)
    with pytest.raises(ArchiveError) as caught:
        open_archive(path)
    assert str(caught.value).startswith(f"{path}: this is {meaning}")
    assert "\n" not in str(caught.value)


def test_a_tar_without_config_says_what_it_holds(make_tar):
    with pytest.raises(ArchiveError, match=r"has no model_config\.yaml, but a\.txt, b\.txt"):
        open_archive(make_tar({"a.txt": b"", "b.txt": b""}))


def test_an_error_survives_pickling(tmp_path):
    with pytest.raises(ArchiveError) as caught:
        open_archive(shutil.copy(__file__, tmp_path / "no.nemo"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.path) == (ArchiveError, str(caught.value), str(tmp_path / "no.nemo"))


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_archive(tmp_path / "none.nemo")


@pytest.mark.parametrize("name", ["model.nemo", "model_legacy_gz.nemo"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(golden, tmp_path, name):
    data = (golden / "quartznet_ctc_char" / name).read_bytes()
    path = tmp_path / "cut.nemo"
    for size in (300, 511, 700, 5_000, 50_000, 150_000, 190_000):
        path.write_bytes(data[:size])
        with pytest.raises(ArchiveError):
            open_archive(path)


def test_where_torch_or_numpy_is_missing_the_error_says_what_to_install(golden):
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "numpy"]))
import nemo_archive.numpy
for attempt in (lambda: nemo_archive.numpy.load_arrays(sys.argv[1]), lambda: __import__("nemo_archive.torch")):
    try:
        attempt()
    except (ImportError, nemo_archive.ArchiveError) as error:
        print(error)
"""
    path = str(golden / "quartznet_ctc_char" / "model.nemo")
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "arrays of float32 need numpy: pip install 'nemo-archive[numpy]'",
        "nemo_archive.torch needs torch: pip install 'nemo-archive[torch]'",
    ]


def test_an_io_module_file_of_a_member_reads_seeks_and_is_read_only(make_tar):
    with (
        open_archive(make_tar({"model_config.yaml": b"a: 1\n", "b": bytes(range(100))})) as archive,
        archive.open("b") as file,
    ):
        assert file.seek(-10, io.SEEK_END) == 90
        assert file.read(5) == bytes(range(90, 95))
        assert (file.tell(), file.read(), file.read()) == (95, bytes(range(95, 100)), b"")
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
