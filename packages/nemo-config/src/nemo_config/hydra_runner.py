"""The decorator that turns a function of a config into a command, on top of `hydra.main`.

    @hydra_runner(config_path="conf", config_name="fastconformer_ctc_bpe")
    def main(cfg): ...

    python train.py --config-name=other model.optim.lr=0.1 +new.key=1 ++any.key=2 ~model.spec_augment -m seed=1,2

Of Hydra's habits, those that touch the disk and the process are off: no `outputs/`, `.hydra/` or `multirun/` folder, no
log file, no change of directory, no handlers of its own on the root logger. What Hydra says in a traceback about an
error of the config becomes one line (`HYDRA_FULL_ERROR=1` brings the traceback back).
"""

import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nemo_config.resolvers import register_resolvers

log = logging.getLogger(__name__)
Task = Callable[..., Any]
SCHEMA_NAME, PRIMARY_NAME = "nemo_config_schema", "nemo_config_primary"
FULL_ERROR = "HYDRA_FULL_ERROR"
# In front of the user's overrides, so that what is asked for on the command line still wins.
QUIET_HYDRA = (
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.job.chdir=false",
    "++hydra.job_logging.root=null",
    "++hydra.hydra_logging.root=null",
)


class _CommandLine(NamedTuple):
    config_dir: str  # absolute, or pkg://...
    config_name: str | None
    named_by_user: bool  # whether --config-name was given
    options: list[str]  # of Hydra: -m, --cfg job, ...
    overrides: list[str]


def hydra_runner(
    config_path: str | None = None, config_name: str | None = None, schema: type | None = None
) -> Callable[[Task], Task]:
    """Makes a function of a config callable without one: then the config comes from the command line.

    `main(cfg)` runs the function on `cfg` and returns its result. `main()` reads `sys.argv`: Hydra's options (also as
    `--config_path` and `--config_name`), overrides `key=value`, `+key=value`, `++key=value`, `~key`, and `-m` to run
    it once for each combination of comma-separated values.

    Args:
        config_path: folder of the configs: absolute, `pkg://package.folder`, or relative to the file of the function;
            by default that file's own folder. `--config-path` on the command line takes its place; if it is
            relative, it is looked for below the function's folder first and then below the current directory.
        config_name: the YAML file without its extension; `--config-name` takes its place.
        schema: a dataclass that gives names, types and defaults. With no YAML of this name it is the whole config;
            with one, the YAML is checked against it. A `--config-name` must then be a file.

    Raises:
        SystemExit: status 1, for an error in the config: one line with the dotted path, the value and the nearest
            valid key.
    """

    def decorate(task: Task) -> Task:
        @functools.wraps(task)
        def main(cfg: Any = None) -> Any:
            if cfg is not None:
                return task(cfg)
            return _run(task, config_path, config_name, schema)

        return main

    return decorate


def _run(task: Task, config_path: str | None, config_name: str | None, schema: type | None) -> None:
    from hydra import main as hydra_main

    from nemo_config.hydra_errors import is_about_config, one_line

    register_resolvers()
    _log_to_the_terminal()
    command = _command_line(sys.argv[1:], _folder_of(task), config_path, config_name)
    name = _primary_config(command, schema)
    wants_traceback = os.environ.get(FULL_ERROR) == "1"
    failed: dict[Exception, str] = {}  # to the job of the sweep that raised it
    with _sweep_folder([*command.options, *command.overrides]) as sweep:
        argv = [sys.argv[0], *command.options, "--", *QUIET_HYDRA, *sweep, *command.overrides]
        run = _in_process_of(list(sys.argv), os.environ.get(FULL_ERROR), task, wants_traceback, failed)
        try:
            with _replaced(argv, "1"):  # "1": Hydra raises its errors instead of printing them
                hydra_main(version_base="1.3", config_path=command.config_dir, config_name=name)(run)()
        except Exception as error:
            if wants_traceback or not is_about_config(error, composing=True):
                raise
            if error in failed:  # told already
                raise SystemExit(f"of the sweep's jobs these failed: {', '.join(failed.values())}") from error
            raise SystemExit(one_line(error, command.config_dir, command.config_name)) from error


def _in_process_of(
    argv: list[str], full_error: str | None, task: Task, wants_traceback: bool, failed: dict[Exception, str]
) -> Task:
    """The function, run with the user's own `sys.argv` and environment: Lightning starts `sys.argv` again for DDP.

    Hydra goes on with the next job of a sweep where one fails, and raises the first error at the end: each is logged
    at once, and its job added to `failed`.
    """

    @functools.wraps(task)
    def run(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from nemo_config.hydra_errors import is_about_config, one_line

        with _replaced(argv, full_error):
            try:
                return task(cfg)
            except Exception as error:
                about_config = is_about_config(error, composing=False)
                hydra = HydraConfig.get()
                if hydra.mode == RunMode.MULTIRUN:
                    failed[error] = f"#{hydra.job.num}"
                    said = one_line(error) if about_config else f"{type(error).__name__}: {error}"
                    log.error("job %s: %s", failed[error], said)
                    raise
                if wants_traceback or not about_config:
                    raise
                # SystemExit is no Exception, so Hydra does not put a line of its own before it.
                raise SystemExit(one_line(error)) from error

    return run


@contextmanager
def _replaced(argv: list[str], full_error: str | None) -> Iterator[None]:
    before = sys.argv, os.environ.get(FULL_ERROR)
    _set(argv, full_error)
    try:
        yield
    finally:
        _set(*before)


def _set(argv: list[str], full_error: str | None) -> None:
    sys.argv = argv
    if full_error is None:
        os.environ.pop(FULL_ERROR, None)
    else:
        os.environ[FULL_ERROR] = full_error


def _folder_of(task: Task) -> Path:
    """The folder of the file that defines the function; the current one in a notebook."""
    try:
        file = Path(inspect.getfile(inspect.unwrap(task)))
    except TypeError:
        return Path.cwd()
    return file.resolve().parent if file.is_file() else Path.cwd()


def _command_line(
    arguments: Sequence[str], folder: Path, config_path: str | None, config_name: str | None
) -> _CommandLine:
    """Takes the options that name the config out of the arguments; the rest is Hydra's."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for long, short in (("path", "-cp"), ("name", "-cn"), ("dir", "-cd")):
        parser.add_argument(f"--config-{long}", f"--config_{long}", short)
    given, rest = parser.parse_known_args(list(arguments))
    name = given.config_name or config_name
    name = name and name.removesuffix(".yaml")
    bases = (folder,) if given.config_path is None else (folder, Path.cwd())
    # argparse takes positional arguments in one run only: options first, so that `a=1 -m b=2,3` is no error.
    options = [argument for argument in rest if not _is_override(argument)]
    if given.config_dir is not None:
        options += ["--config-dir", given.config_dir]
    return _CommandLine(
        _config_dir(given.config_path or config_path or ".", bases, name),
        name,
        given.config_name is not None,
        options,
        [_adding_or_setting(argument) for argument in rest if _is_override(argument)],
    )


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def _adding_or_setting(override: str) -> str:
    """`+trainer.max_steps=1000` as `++trainer.max_steps=1000`, which sets a key that is there already, too.

    NVIDIA's page on its training scripts prints the former, and its configs have that key, where Hydra refuses it.
    What has no dot is left as it is: `+model=big` adds a part to the config, and `++` does not.
    """
    key = override.partition("=")[0]
    return f"+{override}" if re.fullmatch(r"\+[^+/@]+\.[^/@]+", key) else override


def _config_dir(config_path: str, bases: tuple[Path, ...], name: str | None) -> str:
    """The first of the folders that has the config, or else that exists."""
    if config_path.startswith("pkg://"):
        return config_path
    folders = [(base / Path(config_path).expanduser()).resolve() for base in bases]
    having = [folder for folder in folders if (folder / f"{name}.yaml").is_file()]
    existing = [folder for folder in folders if folder.is_dir()]
    return str([*having, *existing, *folders][0])


def _primary_config(command: _CommandLine, schema: type | None) -> str | None:
    """The name under which Hydra finds the config; a schema is put into its store, below the YAML if there is one."""
    if schema is None:
        return command.config_name
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name=SCHEMA_NAME, node=schema)
    if not _has_yaml(command):
        return SCHEMA_NAME
    store.store(name=PRIMARY_NAME, node={"defaults": [SCHEMA_NAME, f"{command.config_name}@_global_", "_self_"]})
    return PRIMARY_NAME


def _has_yaml(command: _CommandLine) -> bool:
    if command.config_name is None:
        return False
    if command.named_by_user or command.config_dir.startswith("pkg://"):
        return True
    return Path(command.config_dir, f"{command.config_name}.yaml").is_file()


@contextmanager
def _sweep_folder(arguments: Sequence[str]) -> Iterator[list[str]]:
    """An override that sends what Hydra writes about a sweep to a folder that is removed afterwards."""
    if not any(argument in ("-m", "--multirun") or "hydra.mode=" in argument for argument in arguments):
        yield []
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="nemo_sweep_") as folder:
        yield [f"hydra.sweep.dir='{folder}'"]


def _log_to_the_terminal() -> None:
    """Log lines from INFO on go to stderr, unless the program has set up its logging."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(name)s: %(message)s")
