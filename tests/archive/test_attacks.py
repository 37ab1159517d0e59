"""Hostile archives: each refused with an error that names the member and the rule."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from nemo_archive import ArchiveError, open_archive
from nemo_archive import sources as sources_module

CONFIG = {"model_config.yaml": b"a: 1\n"}


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in fields.items():
        setattr(info, key, value)
    return info


ATTACKS = {
    "absolute name": ([entry("/etc/passwd")], "'/etc/passwd': absolute"),
    "climbing name": ([entry("../../evil")], r"'\.\./\.\./evil': names that climb"),
    "climbing in the middle": ([entry("a/../../evil")], "climb"),
    "Windows drive": ([entry("C:evil")], "drive letters"),
    "backslashes": ([entry("..\\evil")], "backslashes"),
    "control character": ([entry("a\x1b[2Jb")], "control characters"),
    "symbolic link": ([entry("x", tarfile.SYMTYPE, "/etc/passwd")], "'x': symbolic links"),
    "symbolic link for the config": ([entry("model_config.yaml", tarfile.SYMTYPE, "/etc/passwd")], "symbolic links"),
    "hard link": ([entry("x", tarfile.LNKTYPE, "model_config.yaml")], "'x': hard links"),
    "hard link with a long target": ([entry("x", tarfile.LNKTYPE, "y" * 300)], "'x': hard links"),
    "character device": ([entry("x", tarfile.CHRTYPE)], "'x': devices"),
    "block device": ([entry("x", tarfile.BLKTYPE)], "'x': devices"),
    "FIFO": ([entry("x", tarfile.FIFOTYPE)], "'x': FIFOs"),
    "duplicate": ([entry("model_config.yaml")], "'model_config.yaml': duplicate"),
    "duplicate by another spelling": ([entry(".//./model_config.yaml")], "'model_config.yaml': duplicate"),
    "file and folder": ([entry("model_config.yaml", tarfile.DIRTYPE)], "'model_config.yaml': is a folder and a file"),
    "old sparse file": ([entry("x", tarfile.GNUTYPE_SPARSE)], "sparse"),
    "new sparse file": ([entry("x", pax_headers={"GNU.sparse.major": "1"})], "sparse"),
    "global header of zeros": ([entry("x", tarfile.XGLTYPE)], "pax record"),
    "unknown kind": ([entry("x", b"Z")], "type b'Z'"),
    "size by pax record": ([entry("x", pax_headers={"size": "99999999"})], "'x': truncated"),
    "negative size by pax record": ([entry("x", pax_headers={"size": "-512"})], "size '-512'"),
    "name by pax record": ([entry("x", pax_headers={"path": "/etc/passwd"})], "absolute"),
}


@pytest.mark.parametrize(("members", "rule"), ATTACKS.values(), ids=list(ATTACKS))
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hostile_member_is_refused_by_name_and_rule(make_tar, members, rule, mode):
    for info in members:
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_SPARSE):
            info.size = 512
    tar_format = tarfile.GNU_FORMAT if "link" in rule else tarfile.PAX_FORMAT
    path = make_tar(CONFIG, *members, mode=mode, format=tar_format)
    with pytest.raises(ArchiveError, match=rule) as caught:
        open_archive(path)
    assert str(caught.value).startswith(str(path))


def header_of(data: bytes, **changes: tuple[int, bytes]) -> bytes:
    block = bytearray(data[:512])
    for offset, value in changes.values():
        block[offset : offset + len(value)] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


@pytest.mark.parametrize(
    "change",
    [
        (124, b"\x80" + bytes([0x7F] * 11)),
        (124, b"\xff" * 12),
        (124, b"77777777777\0"),
        (124, b"9x_+-.,;:!?\0"),
        (136, b"not a time \0"),
        (0, b"\xff\xfe\xfd\0"),
        (156, b"L"),
        (156, b"x"),
    ],
    ids=repr,
)
def test_a_header_with_a_right_checksum_and_wrong_fields_is_refused(make_tar, change):
    path = make_tar(CONFIG)
    path.write_bytes(header_of(path.read_bytes(), change=change))
    with pytest.raises(ArchiveError):
        open_archive(path)


def with_extension(path, kind: bytes, *records: tuple[str, bytes]) -> None:
    """Puts an extended header of these records before the first member of a tar file."""
    data = b""
    for key, value in records:
        body = b" " + key.encode() + b"=" + value + b"\n"
        length = next(n for n in range(len(body) + 1, len(body) + 9) if len(str(n)) + len(body) == n)
        data += str(length).encode() + body
    header = entry("PaxHeaders/x", kind)
    header.size = len(data)
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + path.read_bytes())


@pytest.mark.parametrize("record", [("path", b"other"), ("size", b"1")])
def test_a_global_header_that_renames_or_resizes_is_refused(make_tar, record):
    path = make_tar(CONFIG)
    with_extension(path, tarfile.XGLTYPE, ("comment", b"git commit"), record)
    with pytest.raises(ArchiveError, match="a global header that renames or resizes"):
        open_archive(path)


def test_attributes_that_are_no_text_are_no_attack(make_tar):
    path = make_tar(CONFIG)
    with_extension(path, tarfile.XHDTYPE, ("SCHILY.xattr.com.apple.lastuseddate#PS", b"\xde\xad\n\0\xff"))
    with tarfile.open(path) as tar, open_archive(path) as archive:
        assert tar.getnames() == list(archive.members) == ["model_config.yaml"]
        assert archive.config() == {"a": 1}


def test_a_damaged_second_header_is_refused_with_its_place(make_tar):
    path = make_tar({**CONFIG, "b": b"1"})
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="no tar header at byte 1024"):
        open_archive(path)


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "GZIP_ALWAYS_FINE", 1 << 20)
    path = tmp_path / "bomb.nemo"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(ArchiveError, match="gzip bomb"):
        open_archive(path)


def test_a_folder_with_a_link_is_refused(tmp_path):
    (tmp_path / "model_config.yaml").write_text("a: 1\n")
    (tmp_path / "model_weights.ckpt").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match=r"'model_weights\.ckpt': symbolic links"):
        open_archive(tmp_path)


def test_nothing_outside_the_archive_can_be_asked_for(make_tar, tmp_path):
    (tmp_path / "secret").write_text("x")
    with open_archive(make_tar(CONFIG)) as archive:
        for name in ("../secret", str(tmp_path / "secret"), "secret", "", "."):
            with pytest.raises(ArchiveError):
                archive.read(name)


def test_a_reference_that_climbs_reaches_nothing(make_tar):
    path = make_tar({"model_config.yaml": b"a: nemo:../../etc/passwd\nb: nemo:/etc/passwd\n"})
    with open_archive(path) as archive:
        assert archive.artifacts() == {}
        for config_path in "ab":
            with pytest.raises(ArchiveError, match="not in the archive"):
                archive.artifact(config_path)


def test_random_changes_of_bytes_give_an_archive_or_an_archive_error(golden, tmp_path):
    import random

    generator = random.Random(0)
    path = tmp_path / "mutated.nemo"
    for name in ("model.nemo", "model_legacy_gz.nemo"):
        data = (golden / "quartznet_ctc_char" / name).read_bytes()
        for _ in range(60):
            mutated = bytearray(data)
            for _ in range(generator.choice([1, 3, 30])):
                mutated[generator.randrange(generator.choice([8192, len(data)]))] = generator.randrange(256)
            path.write_bytes(mutated)
            try:
                with open_archive(path, mmap=False) as archive:
                    archive.config(), archive.artifacts(), archive.tensors()
            except ArchiveError:
                pass


def test_an_io_module_file_of_a_member_reads_seeks_and_is_read_only(make_tar):
    with open_archive(make_tar({**CONFIG, "b": bytes(range(100))})) as archive, archive.open("b") as file:
        assert file.seek(-10, io.SEEK_END) == 90
        assert file.read(5) == bytes(range(90, 95))
        assert (file.tell(), file.read(), file.read()) == (95, bytes(range(95, 100)), b"")
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
