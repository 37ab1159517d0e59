"""Commands that take flags as well as Hydra's overrides: `nemo-asr transcribe m.nemo a.wav batch_size=8`.

The config is a dataclass with NVIDIA's names of the keys. Overrides set it as everywhere (`key=value`, `+key=value`,
`--config-path`, `-m`); flags are short names for some of its keys and win over them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")
HYDRA_OPTIONS = ("config-path", "config-name", "config-dir")


def run_command(
    parser: argparse.ArgumentParser,
    schema: type[Config],
    task: Callable[[Config], int],
    arguments: Sequence[str],
    place_words: Callable[[list[str], bool], dict[str, Any]],
) -> int:
    """Reads a command line and runs the task on the config.

    Args:
        parser: its flags' destinations are keys of the schema, None where a flag is not given.
        schema: the config's dataclass; its IGNORED_KEYS are accepted and have no effect.
        task: gives the exit status.
        arguments: the command line without the command's name.
        place_words: config values of the arguments that are neither flags nor overrides; its second argument says
            whether an override names the model already.

    Returns:
        the exit status; 1 after an error about the input, which is printed in a line.
    """
    from nemo_config import hydra_runner, plain, read_section

    logging.basicConfig(level=logging.WARNING, format="[%(levelname)s] %(name)s: %(message)s")
    overrides, rest = _split(arguments)
    overrides = _without_ignored(overrides, schema, parser.prog)
    flags, hydra_options = _parse(parser, rest)
    words = flags.pop("words", [])
    named = any(_key(override) in ("model_path", "pretrained_name") for override in overrides)
    given = place_words(words, named) | {key: value for key, value in flags.items() if value is not None}
    statuses: list[int] = []

    def run(config: Any) -> None:
        values = {key: None if value == "None" else value for key, value in plain(config).items()}
        statuses.append(_status(task, read_section(schema, values | given, ""), parser.prog))

    before, sys.argv = sys.argv, [parser.prog, *hydra_options, *overrides]
    try:
        hydra_runner(config_name=schema.__name__, schema=schema)(run)()
    finally:
        sys.argv = before
    return max(statuses, default=0)


def _status(task: Callable[[Config], int], config: Config, program: str) -> int:
    from nemo_archive import ArchiveError

    try:
        return task(config)
    except BrokenPipeError:  # whoever read the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ArchiveError, ValueError, TypeError, FileNotFoundError) as error:
        if not _is_about_input(error):
            raise
        print(f"{program}: {error}", file=sys.stderr)
        return 1


def _is_about_input(error: Exception) -> bool:
    """Whether it was raised by this project's code, which says what is wrong with the input, and by no library's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("nemo_")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and all else; a file whose name looks like an override is a file."""
    overrides: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        assigns = "=" in argument and not argument.startswith("-")
        deletes = argument.startswith("~") and not argument.startswith("~/")
        is_override = (assigns or deletes) and not Path(argument).exists()
        (overrides if is_override else rest).append(argument)
    return overrides, rest


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _without_ignored(overrides: list[str], schema: type, program: str) -> list[str]:
    ignored: frozenset[str] = getattr(schema, "IGNORED_KEYS", frozenset())
    dropped = [override for override in overrides if _key(override).split(".")[0] in ignored]
    if dropped:
        print(f"{program}: without effect here: {' '.join(dropped)}", file=sys.stderr)
    return [override for override in overrides if override not in dropped]


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The parser's flags, and the options that are Hydra's."""
    for name in HYDRA_OPTIONS:
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", help=argparse.SUPPRESS)
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)
    flags = vars(parser.parse_intermixed_args(arguments))
    hydra_options = ["-m"] if flags.pop("multirun") else []
    for name in HYDRA_OPTIONS:
        value = flags.pop(name.replace("-", "_"))
        if value is not None:
            hydra_options += [f"--{name}", value]
    return flags, hydra_options
