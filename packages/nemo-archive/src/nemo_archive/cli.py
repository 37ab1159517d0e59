"""The command `nemo-archive`: looks into `.nemo` files, checks, compares, converts and edits them.

    nemo-archive ls model.nemo

Only the module of the command that was asked for is imported, and numpy or torch only by what cannot do without, so
that `nemo-archive config model.nemo` costs little more than starting Python.

Exit status: 0 done, or nothing found to differ; 1 the files differ, or a check failed; 2 wrong usage, or a file that
cannot be read or written, with one line on stderr; 130 interrupted; 141 whoever read the output has closed it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser

PROGRAM = "nemo-archive"
SUMMARIES = {
    "ls": "list the members, their sizes, and what the weights hold",
    "config": "print model_config.yaml, or one key of it",
    "tensors": "list the tensors of the weights, with statistics if asked for",
    "extract": "write members into a folder, or one to the standard output",
    "verify": "check structure, artifacts, weights, checksums and class names; for CI",
    "diff": "compare two archives: config, artifacts, tensors",
    "convert": "turn an archive into a folder and back, its weights into safetensors and back",
    "edit": "set or delete config keys, replace artifacts; the weights are copied as they are",
    "migrate": "bring an old archive to today's keys, names and format",
    "hash": "print the SHA-256 of each member, and one of the content as a whole",
}
STATUS = """exit status:
  0  done; nothing differs, every check passed
  1  something differs, or a check failed
  2  wrong usage, or a file that cannot be read or written (one line on stderr)"""
FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (`sys.argv` without the program's name by default) and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _silence(sys.stdout)
        return 141
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    from nemo_archive.safety import ArchiveError

    try:
        if not arguments or arguments[0] not in SUMMARIES:
            return _without_command(arguments)
        return _run_command(arguments[0], arguments[1:])
    except SystemExit as stop:  # how argparse ends, after it has said why
        return stop.code if isinstance(stop.code, int) else 0
    except ArchiveError as error:
        return _fail(error.path, error.member, error.rule)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(str(error.filename or ""), "", error.strerror or str(error))


def _run_command(name: str, arguments: list[str]) -> int:
    from importlib import import_module

    command: Any = import_module(f"nemo_archive.commands.{name}")
    parser = _parser(
        prog=f"{PROGRAM} {name}",
        description=f"{SUMMARIES[name].capitalize()}.",
        epilog=f"example:\n  {command.EXAMPLE}\n\n{STATUS}",
    )
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    status: int = command.run(parser.parse_args(arguments))
    return status


def _parser(**options: Any) -> ArgumentParser:
    """argparse's parser, whose help fills the description and leaves examples as they are."""
    import argparse

    class Formatter(argparse.HelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=_terminal_width())  # or argparse would import shutil: 10 ms

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text if "\n" in text else super()._fill_text(text, width, indent)

    return argparse.ArgumentParser(**options, formatter_class=Formatter, allow_abbrev=False)


def _terminal_width() -> int:
    try:
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size().columns
    except (ValueError, OSError):  # no number, or no terminal
        columns = 80
    return min(max(columns - 2, 40), 100)


def _without_command(arguments: list[str]) -> int:
    """`--help`, `--version`, or a usage error."""
    from argparse import SUPPRESS

    width = max(map(len, SUMMARIES))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in SUMMARIES.items())
    parser = _parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND PATH ... [--json]",
        description="Looks into .nemo model archives; nothing inside them is run.",
        epilog=f"commands:\n{listing}\n\n`{PROGRAM} COMMAND --help` says more. A PATH is a .nemo file or a folder into "
        f"which one was\nunpacked.\n\nexample:\n  {PROGRAM} ls model.nemo\n\n{STATUS}",
    )
    parser.add_argument("--version", action="store_true", help="print the version of this package")
    parser.add_argument("command", nargs="*", help=SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.version:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('nemo-archive')}")
        return 0
    if parsed.command:
        from difflib import get_close_matches

        near = get_close_matches(parsed.command[0], SUMMARIES, 1)
        advice = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(SUMMARIES)}"
        _explain(f"{parsed.command[0]!r} is no command{advice}")
        return FAILED
    return _print_usage(parser)


def _print_usage(parser: ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return FAILED


def _fail(path: str, member: str, rule: str) -> int:
    _explain(": ".join(part for part in (path, member, rule) if part))
    return FAILED


def _explain(message: str) -> None:
    """One line on stderr, whatever a file's name or content put into the message."""
    from nemo_archive.commands.output import printable

    try:
        print(f"{PROGRAM}: {printable(' '.join(message.split()))}", file=sys.stderr)
    except BrokenPipeError:
        _silence(sys.stderr)


def _silence(stream: Any) -> None:
    """Lets Python flush at its end into nothing, where the reader of a pipe has gone."""
    with contextlib.suppress(OSError):  # a stream without a descriptor, as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
