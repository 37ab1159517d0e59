"""`nemo-archive config`: model_config.yaml as YAML or JSON, whole or one dotted key."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from nemo_archive.artifacts import CONFIG
from nemo_archive.commands.output import print_json, print_text
from nemo_archive.reader import open_archive
from nemo_archive.safety import ArchiveError

EXAMPLE = "nemo-archive config model.nemo tokenizer.type"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file, or a folder into which one was unpacked")
    parser.add_argument("key", nargs="?", help="print this key alone: a dotted path such as encoder.d_model")
    parser.add_argument("--raw", action="store_true", help="print model_config.yaml byte for byte, unread")


def run(arguments: Namespace) -> int:
    with open_archive(arguments.path) as archive:
        if arguments.raw:
            if arguments.key is not None or arguments.json:
                raise ArchiveError("--raw prints the whole file as it is: it goes with neither a key nor --json")
            sys.stdout.flush()
            sys.stdout.buffer.write(archive.read(CONFIG))
            sys.stdout.buffer.flush()
            return 0
        value: Any = archive.config()
    if arguments.key is not None:
        value = find(value, arguments.key, arguments.path)
    if arguments.json:
        print_json(value)
    else:
        print_text(as_text(value))
    return 0


def find(config: Any, key: str, path: str) -> Any:
    """The value at a dotted path; keys that hold dots themselves are found, too.

    Raises:
        ArchiveError: if there is none; the message names the nearest key.
    """
    value, rest = config, key
    while rest:
        name, rest = _next_key(value, rest)
        if name is None:
            raise ArchiveError(f"there is no key {key}{_advice(config, key)}", path=path, member=CONFIG)
        value = value[name]
    return value


def _next_key(value: Any, rest: str) -> tuple[Any, str]:
    """The key of `value` with which a dotted path begins, and what follows it; None where there is none."""
    if isinstance(value, list):
        head, _, tail = rest.partition(".")
        index = int(head) if head.isascii() and head.isdigit() and len(head) < 9 else len(value)
        return (index, tail) if index < len(value) else (None, rest)
    if isinstance(value, dict):
        for name in sorted(value, key=lambda name: -len(str(name))):
            if rest == str(name) or (str(name) and rest.startswith(f"{name}.")):
                return name, rest[len(str(name)) + 1 :]
    return None, rest


def _advice(config: Any, key: str) -> str:
    from difflib import get_close_matches

    paths = list(all_paths(config))
    near = get_close_matches(key, paths, 1, 0.7) or [path for path in paths if path.endswith(f".{key}")]
    return f"; nearest: {near[0]}" if near else ""


def all_paths(config: Any) -> list[str]:
    """Every dotted path of a config, sections included."""
    paths, stack = [], [("", config)]
    while stack:
        path, value = stack.pop()
        if path:
            paths.append(path)
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        stack.extend((f"{path}.{key}" if path else str(key), entry) for key, entry in entries)
    return paths


def as_text(value: Any) -> str:
    """Sections as YAML, a text as it is, other values as YAML writes them."""
    if isinstance(value, str):
        return value
    from nemo_archive.yaml_config import write_config

    if isinstance(value, dict):
        return write_config(value).decode().rstrip("\n")
    if isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        return write_config({"list": value}).decode().removeprefix("list:\n").rstrip("\n")
    if isinstance(value, list):
        return "\n".join(as_text(entry) for entry in value)
    return write_config({"value": value}).decode().removeprefix("value: ").rstrip("\n")
