"""Hostile tar files, gzip streams and folders; files that are no archive at all."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import zipfile

import pytest

from nemo_archive import ArchiveError, open_archive
from nemo_archive import sources as sources_module


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in fields.items():
        setattr(info, key, value)
    return info


IN_TAR = {
    "absolute name": (entry("/etc/passwd"), "/etc/passwd", "absolute names"),
    "climbing name": (entry("../../evil"), "../../evil", "names that climb"),
    "climbing in the middle": (entry("a/../../evil"), "a/../../evil", "names that climb"),
    "Windows drive": (entry("C:evil"), "C:evil", "drive letters"),
    "backslashes": (entry("..\\evil"), "..\\evil", "backslashes"),
    "control character": (entry("a\x1b[2Jb"), "a\x1b[2Jb", "control characters"),
    "endless name": (entry("n" * 5000), "n" * 200 + "...", "names of over 4096 characters"),
    "no name": (entry("./"), "", "a file without a name"),
    "symbolic link": (entry("x", tarfile.SYMTYPE, "/etc/passwd"), "x", "symbolic links"),
    "link for the config": (
        entry("model_config.yaml", tarfile.SYMTYPE, "/etc/x"),
        "model_config.yaml",
        "symbolic links",
    ),
    "hard link": (entry("x", tarfile.LNKTYPE, "model_config.yaml"), "x", "hard links"),
    "hard link with a long target": (entry("x", tarfile.LNKTYPE, "y" * 300), "x", "hard links"),
    "character device": (entry("x", tarfile.CHRTYPE), "x", "devices"),
    "block device": (entry("x", tarfile.BLKTYPE), "x", "devices"),
    "FIFO": (entry("x", tarfile.FIFOTYPE), "x", "FIFOs"),
    "duplicate": (entry("model_config.yaml"), "model_config.yaml", "duplicate"),
    "duplicate by another spelling": (entry(".//./model_config.yaml"), "model_config.yaml", "duplicate"),
    "file and folder": (entry("model_config.yaml", tarfile.DIRTYPE), "model_config.yaml", "is a folder and a file"),
    "old sparse file": (entry("x", tarfile.GNUTYPE_SPARSE, size=512), "x", "sparse"),
    "new sparse file": (entry("x", pax_headers={"GNU.sparse.major": "1"}), "", "sparse"),
    "global header of zeros": (entry("x", tarfile.XGLTYPE, size=512), "", "pax record"),
    "unknown kind": (entry("x", b"Z"), "x", "type b'Z'"),
    "size by pax record": (entry("x", pax_headers={"size": "99999999"}), "x", "truncated"),
    "negative size by pax record": (entry("x", pax_headers={"size": "-512"}), "", "size '-512'"),
    "name by pax record": (entry("x", pax_headers={"path": "/etc/passwd"}), "/etc/passwd", "absolute"),
}
"""Kind: a header behind a sound config, the member that is named, what is said of it."""


@pytest.mark.parametrize(("info", "member", "rule"), IN_TAR.values(), ids=list(IN_TAR))
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_hostile_member_is_refused_by_name_and_rule(made, refused, info, member, rule, packed):
    tar_format = tarfile.GNU_FORMAT if "link" in rule else tarfile.PAX_FORMAT
    path = made.archive({}, info, tar_format=tar_format)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    error = refused(path)
    assert (error.member, str(error).startswith(str(path))) == (member, True)
    assert rule in error.rule


def header_of(data: bytes, offset: int, value: bytes) -> bytes:
    block = bytearray(data[:512])
    block[offset : offset + len(value)] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


HEADERS = {
    "size of 2**95": (124, b"\x80" + bytes([0x7F] * 11), "truncated: needs"),
    "negative size": (124, b"\xff" * 12, "is no octal number"),
    "size of 8 GiB": (124, b"77777777777\0", "truncated: needs 8589935103 bytes"),
    "size of other signs": (124, b"9x_+-.,;:!?\0", "b'9x_+-.,;:!?\\x00' is no octal number"),
    "time of other signs": (136, b"not a time \0", "b'not a time \\x00' is no octal number"),
    "name of other bytes": (0, b"\xff\xfe\xfd\0", "a name is not UTF-8"),
    "long name without a member": (156, b"L", "not a .nemo archive"),
    "pax records of other text": (156, b"x", "unreadable pax record"),
}


@pytest.mark.parametrize(("offset", "value", "rule"), HEADERS.values(), ids=list(HEADERS))
def test_a_header_with_a_right_checksum_and_wrong_fields_is_refused(made, refused, offset, value, rule):
    path = made.archive()
    path.write_bytes(header_of(path.read_bytes(), offset, value))
    assert rule in refused(path).rule


def gzip_bomb(made):
    return made.file(gzip.compress(bytes(300 << 20), 9))


def gzip_of_many_streams(made):
    return made.file(gzip.compress(made.archive().read_bytes()) + gzip.compress(b"") * 3000)


def damaged_gzip(made):
    data = bytearray(gzip.compress(made.archive().read_bytes()))
    data[40] ^= 255
    return made.file(bytes(data))


def truncated_gzip(made):
    return made.file(gzip.compress(os.urandom(20_000))[:-900])


def git_lfs_pointer(made):
    return made.file(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 460000000\n")


def html_page(made):
    return made.file(b"<!DOCTYPE html><html><body>404: model not found</body></html>")


def xml_document(made):
    return made.file(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")


def json_document(made):
    return made.file(b'{"error": "Repository not found"}')


def empty_file(made):
    return made.file(b"")


def zeros(made):
    return made.file(bytes(10240))


def bare_checkpoint(made):
    return made.file(made.zip_bytes({"data.pkl": b"\x80\x02}."}))


def numpy_file(made):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY")
    return made.file(stream.getvalue(), "hostile.npz")


def other_zip(made):
    return made.file(made.zip_bytes({"payload.py": b"1"}), "hostile.zip")


def empty_zip(made):
    return made.file(b"PK\x05\x06" + bytes(18))


def bare_safetensors(made):
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return made.file(len(header).to_bytes(8, "little") + header + bytes(4))


def pdf(made):
    return made.file(b"%PDF-1.7\n")


def program(made):
    return made.file(b"\x7fELF\2\1\1" + bytes(60))


def hdf5(made):
    return made.file(b"\x89HDF\r\n\x1a\n" + bytes(600))


def wave(made):
    return made.file(b"RIFF\x24\0\0\0WAVEfmt ")


def bzip2(made):
    return made.file(b"BZh91AY&SY")


def python_script(made):
    return made.file(f"import os\nos.system({made.command!r})\n".encode())


def noise(made):
    return made.file(b"\x99\x98\x97\x96" * 200)


def tar_of_other_things(made):
    return made.file(made.tar_bytes({"payload.py": b"import os\n"}))


def archive_in_an_archive(made):
    return made.file(made.tar_bytes({"inner.nemo": made.archive().read_bytes()}))


def device(_made):
    return "/dev/zero"


def fifo(made):
    os.mkfifo(made.folder / "fifo.nemo")
    return made.folder / "fifo.nemo"


def folder_with_a_link(made):
    (made.folder / "model").mkdir()
    (made.folder / "model/model_config.yaml").write_text("a: 1\n")
    (made.folder / "model/model_weights.ckpt").symlink_to("/etc/passwd")
    return made.folder / "model"


def folder_with_a_link_to_a_folder(made):
    (made.folder / "model").mkdir()
    (made.folder / "model/model_config.yaml").write_text("a: 1\n")
    (made.folder / "model/more").symlink_to("/")
    return made.folder / "model"


def folder_with_a_fifo(made):
    (made.folder / "model").mkdir()
    os.mkfifo(made.folder / "model/model_config.yaml")
    return made.folder / "model"


def folder_with_a_socket(made):
    (made.folder / "model").mkdir()
    descriptor = os.open(made.folder / "model", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{descriptor}/s")  # names of sockets are short
    os.close(descriptor)
    return made.folder / "model"


def folder_with_a_name_of_control_characters(made):
    (made.folder / "model").mkdir()
    (made.folder / "model/model_config.yaml").write_text("a: 1\n")
    (made.folder / "model/a\x1b[2J").write_text("")
    return made.folder / "model"


def empty_folder(made):
    (made.folder / "model").mkdir()
    return made.folder / "model"


FILES = {
    gzip_bomb: "unpacks to over 200 times its size: a gzip bomb?",
    gzip_of_many_streams: "made of over 1000 gzip streams",
    damaged_gzip: "damaged gzip stream",
    truncated_gzip: "truncated: the gzip stream ends early",
    git_lfs_pointer: "this is a git-LFS pointer, not the model itself: fetch it with `git lfs pull`",
    html_page: "this is an HTML page, perhaps the error page of a failed download",
    xml_document: "this is an XML document, perhaps the error message of a failed download",
    json_document: "this is a JSON document, perhaps the error message of a failed download",
    empty_file: "this is an empty file (0 bytes)",
    zeros: "this is a file that begins with zeros, perhaps an unfinished download",
    bare_checkpoint: "this is a bare PyTorch checkpoint",
    numpy_file: "this is an .npz file of numpy",
    other_zip: "this is a zip file",
    empty_zip: "this is an empty zip file",
    bare_safetensors: "this is a safetensors file",
    pdf: "this is a PDF",
    program: "this is an ELF program",
    hdf5: "this is an HDF5 file",
    wave: "this is a RIFF file, such as .wav audio",
    bzip2: "this is a bzip2 file; .nemo archives are plain tar or gzip",
    python_script: 'this is a text file that begins with "import os',
    noise: "this is no tar archive",
    tar_of_other_things: "not a .nemo archive: it has no model_config.yaml, but payload.py",
    archive_in_an_archive: "not a .nemo archive: it has no model_config.yaml, but inner.nemo",
    device: "this is a device, neither a file nor a folder",
    fifo: "this is a FIFO, neither a file nor a folder",
    folder_with_a_link: "symbolic links are refused",
    folder_with_a_link_to_a_folder: "symbolic links are refused",
    folder_with_a_fifo: "is a FIFO; only files and folders are read",
    folder_with_a_socket: "is a socket; only files and folders are read",
    folder_with_a_name_of_control_characters: "control characters in names are refused",
    empty_folder: "not a .nemo archive: it has no model_config.yaml, but nothing",
}
"""What makes each file or folder: what is said of it."""


@pytest.mark.parametrize("attack", FILES, ids=lambda attack: attack.__name__)
def test_what_is_no_archive_is_called_what_it_is(attack, made, refused):
    path = attack(made)
    error = refused(path)
    assert str(error).startswith(str(path))
    assert FILES[attack] in error.rule


def test_a_sound_archive_cut_short_anywhere_is_refused(made, canary):
    weights = made.zip_bytes({"data.pkl": made.state_dict(made.tensor()), "data/0": bytes(16)})
    whole = made.archive({"model_weights.ckpt": weights}).read_bytes()
    for size in range(0, len(whole.rstrip(b"\0")), 61):
        path = made.file(whole[:size])
        with pytest.raises(ArchiveError) as caught, open_archive(path) as archive:
            archive.config()
            archive.tensors()
        assert str(caught.value).startswith(str(path))


def test_a_member_larger_than_is_allowed_is_refused_before_it_is_read(made, canary):
    """A sparse file of 1 TiB takes no room on a disk; to read it would take all memory."""
    block = made.tar_bytes({"model_config.yaml": b"a: 1\n"})[:512]
    path = made.file(header_of(block, 124, b"\x80" + (1 << 40).to_bytes(11, "big")))
    os.truncate(path, 512 + (1 << 40))
    with open_archive(path) as archive, pytest.raises(ArchiveError, match=f"a config of {1 << 40} bytes is refused"):
        archive.config()


@pytest.mark.parametrize("record", [b"10 path=x\n", b"10 size=1\n"])
def test_a_global_header_that_renames_or_resizes_is_refused(made, refused, record):
    header = entry("PaxHeaders/x", tarfile.XGLTYPE, size=len(record))
    path = made.archive()
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + path.read_bytes())
    assert "a global header that renames or resizes" in refused(path).rule


def test_a_damaged_second_header_is_refused_with_its_place(made, refused):
    path = made.archive({"b": b"1"})
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1
    path.write_bytes(data)
    assert "no tar header at byte 1024" in refused(path).rule


def test_attributes_that_are_no_text_are_no_attack(made):
    attribute = b"SCHILY.xattr.com.apple.lastuseddate#PS=\xde\xad\n\0\xff\n"
    record = b"%d " % (len(attribute) + 3) + attribute
    header = entry("PaxHeaders/x", tarfile.XHDTYPE, size=len(record))
    path = made.archive()
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + path.read_bytes())
    with tarfile.open(path) as tar, open_archive(path) as archive:
        assert tar.getnames() == list(archive.members) == ["model_config.yaml"]
        assert archive.config() == {"a": 1}


def test_no_environment_variable_turns_refusal_off(made, refused, monkeypatch):
    for name in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        monkeypatch.setenv(name, "1" if "NO" in name else "0")
    assert "which is not on the list" in refused(made.checkpoint(b"\x80\x02cos\nsystem\n.")).rule


def test_nothing_outside_the_archive_can_be_asked_for(made, tmp_path):
    (tmp_path / "secret").write_text("x")
    with open_archive(made.archive()) as archive:
        for name in ("../secret", str(tmp_path / "secret"), "secret", "", "."):
            with pytest.raises(ArchiveError):
                archive.read(name)


def test_a_reference_that_climbs_reaches_nothing(made):
    with open_archive(made.archive(config=b"a: nemo:../../etc/passwd\nb: nemo:/etc/passwd\n")) as archive:
        assert archive.artifacts() == {}
        for config_path in "ab":
            with pytest.raises(ArchiveError, match="not in the archive"):
                archive.artifact(config_path)


def test_an_artifact_with_a_pickle_in_it_is_bytes_and_stays_bytes(made, canary):
    """As in CVE-2026-24157: what a loader of artifacts unpickles, this one hands over."""
    import pickle

    payload = pickle.dumps(os.system) + made.command.encode()
    name = f"{'0' * 32}_tokenizer.pkl"
    with open_archive(made.archive({name: payload}, config=f"tokenizer: nemo:{name}\n".encode())) as archive:
        assert archive.artifact("tokenizer").data == payload


def test_a_large_gzip_bomb_is_stopped_early(made, monkeypatch, refused):
    monkeypatch.setattr(sources_module, "GZIP_ALWAYS_FINE", 1 << 20)
    assert "gzip bomb" in refused(made.file(gzip.compress(bytes(8 << 20)))).rule
