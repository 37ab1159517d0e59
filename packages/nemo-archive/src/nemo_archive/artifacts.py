"""Artifacts: the files that a model carries besides its weights, such as a tokenizer; bytes and a name.

In the config they stand as `nemo:<32 hex digits>_<file name>`, the name of a member. NVIDIA's digits are random; ours
are a hash of the content, so that equal models give equal bytes. A name that already has digits is kept on saving.
Before 2021 the config held the path on the training machine, and the member was its last component.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

PREFIX = "nemo:"
CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
SAFETENSORS = "model_weights.safetensors"
_OF_TOKENIZER = {  # the files in `tokenizer.dir`
    "bpe": {"model_path": "tokenizer.model", "vocab_path": "vocab.txt", "spe_tokenizer_vocab": "tokenizer.vocab"},
    "wpe": {"vocab_path": "vocab.txt"},
}


class Artifact(NamedTuple):
    """One file that belongs to a model.

    Attributes:
        name: as in the archive, without `nemo:` and `./`; for a file that is not in an archive yet, its file name.
        data: its content.
    """

    name: str
    data: bytes

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Artifact:
        """Reads a file, once.

        Raises:
            OSError: if it cannot be read.
        """
        with open(path, "rb") as file:  # noqa: PTH123
            return cls(os.path.basename(os.fspath(path)), file.read())  # noqa: PTH119

    def __repr__(self) -> str:
        return f"Artifact(name={self.name!r}, {len(self.data)} bytes)"

    @property
    def archive_name(self) -> str:
        """The member's name on saving: `<32 hex digits>_<file name>`."""
        basename = self.name.rsplit("/", 1)[-1]
        if basename[32:33] == "_" and not basename[:32].strip("0123456789abcdefABCDEF"):
            return basename
        import hashlib

        return f"{hashlib.sha256(self.data).hexdigest()[:32]}_{basename}"

    @property
    def reference(self) -> str:
        """What the config says: `nemo:<archive_name>`."""
        return PREFIX + self.archive_name


def find_references(config: Any, members: Collection[str]) -> dict[str, str]:
    """Dotted config path (list indexes included) to member name, for every artifact that the config names.

    A `nemo:` value is always one, whether or not the member exists; any other string only where its last path
    component is a member, which is how old archives name their artifacts. The oldest name only the folder of the
    tokenizer: then its files are found where they are members, under the keys that today's configs have.
    """
    found = {}
    for keys, text in _strings(config):
        if text.startswith(PREFIX):
            found[".".join(map(str, keys))] = _member_part(text.removeprefix(PREFIX))
        elif (name := _last_component(text)) in members and name not in (CONFIG, WEIGHTS, SAFETENSORS):
            found[".".join(map(str, keys))] = name
    return found | {path: name for path, name in _tokenizer_files(config) if name in members}


def _tokenizer_files(config: Any) -> Iterator[tuple[str, str]]:
    """What a tokenizer section with a `dir` stands for, besides what its keys say."""
    tokenizer = config.get("tokenizer") if isinstance(config, dict) else None
    languages = tokenizer.get("langs") if isinstance(tokenizer, dict) else None
    sections = {"tokenizer": tokenizer}
    if isinstance(languages, dict):
        sections |= {f"tokenizer.langs.{language}": section for language, section in languages.items()}
    for path, section in sections.items():
        if isinstance(section, dict) and isinstance(section.get("dir"), str):
            for key, name in _OF_TOKENIZER.get(str(section.get("type")).lower(), {}).items():
                if key not in section:
                    yield f"{path}.{key}", name


def _member_part(reference: str) -> str:
    return "/".join(part for part in reference.split("/") if part not in ("", "."))


def _last_component(text: str) -> str:
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _strings(config: Any) -> Iterator[tuple[list[Any], str]]:
    """Every string of the config with the keys that lead to it (one list, which changes), in the config's order."""
    keys: list[Any] = [None]
    stack: list[Iterator[tuple[Any, Any]]] = [iter([("", config)])]
    while stack:
        for key, value in stack[-1]:
            keys[-1] = key
            if isinstance(value, str):
                yield keys[1:], value
            elif isinstance(value, dict | list):
                keys.append(None)
                stack.append(iter(value.items()) if isinstance(value, dict) else iter(enumerate(value)))
                break
        else:
            stack.pop()
            keys.pop()
