"""Hostile zip files where a checkpoint belongs: directories that lie, bombs, other programs' files."""

from __future__ import annotations

import struct
import zipfile

import pytest

END, DIRECTORY, LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"


def sound(made):
    return made.zip_bytes({"data.pkl": made.state_dict(made.tensor()), "data/0": bytes(16)})


def changed(data: bytes, signature: bytes, which: int, *fields: tuple[int, str, int]) -> bytes:
    """Overwrites numbers (offset from the header, struct format, value) in the header number `which` of its kind."""
    mutated, start = bytearray(data), -1
    for _ in range(which + 1):
        start = data.index(signature, start + 1)
    for offset, form, value in fields:
        struct.pack_into(form, mutated, start + offset, value)
    return bytes(mutated)


def encrypted(made):
    return made.weights(changed(sound(made), DIRECTORY, 0, (8, "<H", 1)))


def compressed_bomb(made):
    records = {"data.pkl": made.state_dict(made.tensor()), "data/0": bytes(64 << 20)}
    return made.weights(made.zip_bytes(records, method=zipfile.ZIP_DEFLATED))


def packed_by_its_local_header(made):
    return made.weights(changed(sound(made), LOCAL, 1, (8, "<H", 8)))


def two_sizes_in_the_directory(made):
    return made.weights(changed(sound(made), DIRECTORY, 1, (20, "<L", 8)))


def another_size_in_the_local_header(made):
    return made.weights(changed(sound(made), LOCAL, 1, (18, "<L", 8), (22, "<L", 8)))


def records_over_the_same_bytes(made):
    """Thousands of storages, each the whole file, would be a decompression bomb without any compression."""
    data = made.zip_bytes({"data.pkl": made.state_dict(made.tensor()), "data/0": bytes(16), "data/1": bytes(16)})
    data = changed(data, DIRECTORY, 1, (20, "<L", 40), (24, "<L", 40))
    return made.weights(changed(data, LOCAL, 1, (18, "<L", 40), (22, "<L", 40)))


def record_over_the_directory(made):
    data = sound(made)
    size = 16 + 60
    data = changed(data, DIRECTORY, 1, (20, "<L", size), (24, "<L", size))
    return made.weights(changed(data, LOCAL, 1, (18, "<L", size), (22, "<L", size)))


def record_beyond_the_end(made):
    data = changed(sound(made), DIRECTORY, 1, (20, "<L", 1 << 30), (24, "<L", 1 << 30))
    return made.weights(changed(data, LOCAL, 1, (18, "<L", 1 << 30), (22, "<L", 1 << 30)))


def local_header_elsewhere(made):
    return made.weights(changed(sound(made), DIRECTORY, 1, (42, "<L", 7)))


def local_header_of_another_name(made):
    return made.weights(changed(sound(made), LOCAL, 0, (30, "<B", ord("b"))))


def same_name_twice(made):
    data = made.zip_bytes({"data.pkl": made.state_dict(made.tensor()), "data/0": bytes(16), "data/1": bytes(16)})
    return made.weights(data.replace(b"archive/data/1", b"archive/data/0"))


def name_that_climbs(made):
    return made.weights(made.zip_bytes({"data.pkl": b"", "../../etc/cron.d/x": b""}))


def absolute_name(made):
    return made.weights(made.zip_bytes({"/etc/passwd": b""}, top=""))


def name_outside_the_folder(made):
    data = made.zip_bytes({"data.pkl": b"\x80\x02}.", "data/0": bytes(16)})
    return made.weights(data.replace(b"archive/data/0", b"brchive/data/0"))


def name_that_is_no_text(made):
    return made.weights(sound(made).replace(b"archive/data/0", b"archive/data/\xff"))


def uncounted_entry(made):
    return made.weights(changed(sound(made), END, 0, (8, "<H", 1), (10, "<H", 1)))


def more_entries_than_there_are(made):
    return made.weights(changed(sound(made), END, 0, (10, "<H", 3)))


def directory_beyond_the_end(made):
    return made.weights(changed(sound(made), END, 0, (16, "<L", 1 << 31)))


def directory_in_the_data(made):
    return made.weights(changed(sound(made), END, 0, (16, "<L", 0)))


def second_end_in_a_comment(made):  # which of two ends counts is for each program to guess
    data = sound(made)
    return made.weights(data + END + bytes(18) + b"PK")


def several_volumes(made):
    return made.weights(changed(sound(made), END, 0, (4, "<H", 1)))


def zip64_size_that_is_missing(made):
    return made.weights(changed(sound(made), DIRECTORY, 1, (20, "<L", 0xFFFFFFFF), (24, "<L", 0xFFFFFFFF)))


def zip64_directory_that_lies(made):
    data = sound(made)
    start = data.index(END)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, 1 << 60, 1 << 60)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start, 1)
    return made.weights(changed(data[:start] + end64 + locator + data[start:], END, 0, (16, "<L", 0xFFFFFFFF)))


def zip64_locator_that_leads_nowhere(made):
    data = sound(made)
    start = data.index(END)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 3, 1)
    return made.weights(changed(data[:start] + locator + data[start:], END, 0, (16, "<L", 0xFFFFFFFF)))


def truncated_zip(made):
    return made.weights(sound(made)[:-30])


def torch_script(made):
    return made.weights(made.zip_bytes({"data.pkl": b"\x80\x02}.", "constants.pkl": b"\x80\x02).", "code/x.py": b"1"}))


def numpy_archive(made):
    return made.weights(made.zip_bytes({"arrays/x.npy": b"\x93NUMPY"}, top=""))


def big_endian(made):
    return made.weights(
        made.zip_bytes({"data.pkl": made.state_dict(made.tensor()), "byteorder": b"big", "data/0": bytes(16)})
    )


ATTACKS = {
    encrypted: "record 'archive/data.pkl' is encrypted; torch only stores",
    compressed_bomb: "record 'archive/data.pkl' is compressed; torch only stores",
    packed_by_its_local_header: "record 'archive/data/0': its local header says that it is packed",
    two_sizes_in_the_directory: "record 'archive/data/0' has two sizes",
    another_size_in_the_local_header: "record 'archive/data/0': its local header gives another size than the directory",
    records_over_the_same_bytes: "record 'archive/data/1' overlaps another",
    record_over_the_directory: "record 'archive/data/0' overlaps the zip directory",
    record_beyond_the_end: "record 'archive/data/0' reaches beyond the checkpoint",
    local_header_elsewhere: "record 'archive/data/0': its local header does not fit the directory",
    local_header_of_another_name: "record 'archive/data.pkl': its local header does not fit the directory",
    same_name_twice: "record 'archive/data/0' stands twice",
    name_that_climbs: "record 'archive/../../etc/cron.d/x': names that climb with '..' are refused",
    absolute_name: "record '/etc/passwd': absolute names are refused",
    name_outside_the_folder: "record 'brchive/data/0' lies outside the checkpoint's folder 'archive'",
    name_that_is_no_text: "a record's name is not UTF-8",
    uncounted_entry: "the zip directory holds more than the records that it counts",
    more_entries_than_there_are: "damaged zip directory",
    directory_beyond_the_end: "damaged zip directory: it lies outside the checkpoint",
    directory_in_the_data: "damaged zip directory",
    second_end_in_a_comment: "damaged zip directory: something follows its end",
    several_volumes: "a part of a zip file in several volumes is refused",
    zip64_size_that_is_missing: "damaged zip directory: a zip64 size is missing",
    zip64_directory_that_lies: "damaged zip directory: it lies outside the checkpoint",
    zip64_locator_that_leads_nowhere: "damaged zip64 directory",
    truncated_zip: "truncated checkpoint: the zip directory at its end is missing",
    torch_script: "a TorchScript program, not weights",
    numpy_archive: "no torch checkpoint: the zip file has no data.pkl",
    big_endian: "its byte order is not this machine's (little)",
}
"""What makes each file: what is said of it."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_zip_file_is_refused_by_rule(attack, made, refused):
    error = refused(attack(made))
    assert error.member == "model_weights.ckpt"
    assert ATTACKS[attack] in error.rule


def test_the_sound_file_that_the_others_are_made_from_is_read(made, refused):
    with pytest.raises(AssertionError, match="without complaint"):
        refused(made.weights(sound(made)))
