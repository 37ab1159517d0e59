"""What an archive may hold, and what a file is that is no archive.

Nothing here unpacks or runs anything: a member's name is checked and normalised before it enters the index, so that
every later step (reading, or a caller's own unpacking) meets only relative names without `..`, each once.
"""

from __future__ import annotations

import stat

LONGEST_NAME = 4096  # characters of a member's name


class ArchiveError(Exception):
    """A file that is no sound `.nemo` archive, or a request that it cannot fulfil.

    Attributes:
        path: the archive, as the caller named it ("" where unknown).
        member: the member concerned ("" where it is the file as a whole).
        rule: what is wrong, in one clause.
    """

    def __init__(self, rule: str, *, path: str = "", member: str = "") -> None:
        super().__init__(rule)  # a pickled copy is made of this alone, and gets the attributes afterwards
        self.rule, self.path, self.member = rule, path, member

    def __str__(self) -> str:
        named = f"member {self.member!r}" if self.member else ""
        return ": ".join(part for part in (self.path, named, self.rule) if part)


def member_name(raw: str, path: str) -> str:
    """Normalises a member's name: `./` and doubled slashes go, "" is the archive's root.

    Raises:
        ArchiveError: if the name is absolute, climbs with `..`, or holds a backslash, drive or control character.
    """
    shown = raw if len(raw) <= 200 else raw[:200] + "..."
    if len(raw) > LONGEST_NAME:
        raise ArchiveError(f"names of over {LONGEST_NAME} characters are refused", path=path, member=shown)
    if raw.startswith("/"):
        raise ArchiveError("absolute names are refused", path=path, member=shown)
    if "\\" in raw or raw[1:2] == ":":
        raise ArchiveError("backslashes and drive letters in names are refused", path=path, member=shown)
    if any(ord(character) < 32 or ord(character) == 127 for character in raw):
        raise ArchiveError("control characters in names are refused", path=path, member=shown)
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveError("names that climb with '..' are refused", path=path, member=shown)
    return "/".join(parts)


def check_tensor_name(name: str) -> None:
    """Refuses a name that would do something to a terminal in which it is printed.

    Raises:
        ArchiveError: if it holds a control character.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ArchiveError(f"control characters in the name of tensor {name[:100]!r}")


def describe_special(mode: int) -> str:
    """What a file is, by its `st_mode`, that is neither a plain file nor a folder."""
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no plain file")


_SIGNATURES = (
    *((b"\x80%c" % version, "a Python pickle, perhaps an old PyTorch checkpoint") for version in range(2, 6)),
    (b"PK\x05\x06", "an empty zip file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"BZh", "a bzip2 file; .nemo archives are plain tar or gzip"),
    (b"\xfd7zXZ", "an xz file; .nemo archives are plain tar or gzip"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; .nemo archives are plain tar or gzip"),
    (b"RIFF", "a RIFF file, such as .wav audio"),
    (b"fLaC", "FLAC audio"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "an ELF program"),
)


def _describe_zip(head: bytes) -> str:
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]  # the name of its first record
    if first.endswith(b".npy"):
        return "an .npz file of numpy"
    return "a bare PyTorch checkpoint" if first.endswith(b"/data.pkl") else "a zip file"


def describe_file(head: bytes, size: int) -> str:
    """Says in a few words what a file really is, from its first bytes and its size."""
    if size == 0:
        return "an empty file (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the model itself: fetch it with `git lfs pull`"
    if head.startswith(b"PK\x03\x04"):
        return _describe_zip(head)
    for signature, meaning in _SIGNATURES:
        if head.startswith(signature):
            return meaning
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page, perhaps the error page of a failed download"
    if text.startswith(b"<?xml"):
        return "an XML document, perhaps the error message of a failed download"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return "a safetensors file"
    if text.startswith((b"{", b"[")):
        return "a JSON document, perhaps the error message of a failed download"
    if not any(head):
        return "a file that begins with zeros, perhaps an unfinished download"
    if text and all(9 <= byte < 127 for byte in text):
        return f"a text file that begins with {text[:30].decode('ascii')!r}"
    return "no tar archive"
