"""`nemo-archive convert`: between a `.nemo` file, a folder, and weights as a torch checkpoint or as safetensors.

Into safetensors needs neither torch nor numpy: the elements go from the mapped archive into the new file. Into a torch
checkpoint needs torch.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from nemo_archive.artifacts import CONFIG
from nemo_archive.commands.output import human_size, print_json, printable
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

EXAMPLE = """nemo-archive convert model.nemo new.nemo --weights safetensors
  nemo-archive convert model.nemo folder/          # and back: nemo-archive convert folder/ model.nemo
  nemo-archive convert model.nemo model.safetensors   # the weights alone"""
_SUFFIX = {"torch": ".ckpt", "safetensors": ".safetensors"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file, or a folder into which one was unpacked")
    parser.add_argument(
        "output",
        help="a file to write; a folder, where it ends in a slash or --folder is given; the "
        "weights alone, where it ends in .safetensors",
    )
    parser.add_argument(
        "--weights",
        choices=(*_SUFFIX, "keep"),
        default="keep",
        help="the format of the weights (default: as they are); torch needs torch",
    )
    parser.add_argument("--folder", action="store_true", help="write a folder")
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def run(arguments: Namespace) -> int:
    from nemo_archive.writer import write_file

    output: str = arguments.output
    as_folder = arguments.folder or output.endswith(("/", os.sep)) or os.path.isdir(output)  # noqa: PTH112
    if not as_folder and not arguments.force and os.path.lexists(output):
        raise ArchiveError("exists; --force replaces it", path=output)
    with open_archive(arguments.path) as archive:
        if as_folder:
            _to_folder(archive, Path(output), arguments)
        elif output.endswith(".safetensors"):
            if arguments.weights == "torch":
                raise ArchiveError("a .safetensors file cannot hold a torch checkpoint", path=output)
            write_file(output, safetensors_writer(archive, archive.weights))
        else:
            _to_archive(archive, output, arguments.weights)
    _report(arguments, output)
    return 0


def _report(arguments: Namespace, output: str) -> None:
    files = (
        sorted(path for path in Path(output).rglob("*") if path.is_file()) if Path(output).is_dir() else [Path(output)]
    )
    size = sum(path.stat().st_size for path in files)
    if arguments.json:
        print_json({"path": arguments.path, "output": output, "files": [str(path) for path in files], "bytes": size})
    else:
        print(printable(f"{output}  {human_size(size)}"))


def members(archive: Archive, weights: str) -> dict[str, Callable[[BinaryIO], object] | None]:
    """The members of the converted archive: name to what writes it, None where it is copied under the name it has.

    Raises:
        ArchiveError: if weights cannot be converted.
    """
    found: dict[str, Callable[[BinaryIO], object] | None] = {}
    converted = (
        {name: _converter(archive, name, weights) for name in archive.checkpoints()} if weights != "keep" else {}
    )
    folders = tuple(f"{name}/" for name, writer in converted.items() if writer and name not in archive.members)
    for name in archive.members:
        if name not in converted and not (folders and name.startswith(folders)):
            found[name] = None
    for name, writer in converted.items():
        new_name = name if writer is None else _stem(name) + _SUFFIX[weights]
        if new_name in found:
            raise ArchiveError(f"would become {new_name}, which is there already", path=archive.path, member=name)
        found[new_name] = writer
    return found


def _stem(name: str) -> str:
    return name.removesuffix(".ckpt").removesuffix(".safetensors")


def _converter(archive: Archive, name: str, weights: str) -> Callable[[BinaryIO], object] | None:
    """What writes a checkpoint in the wanted format; None where it has it."""
    from nemo_archive.safetensors import looks_like_safetensors

    if name in archive.members and looks_like_safetensors(archive.span(name)) == (weights == "safetensors"):
        return None
    if weights == "safetensors":
        return safetensors_writer(archive, name)
    from nemo_archive.commands.torch_weights import checkpoint_writer

    return checkpoint_writer(archive, name)


def safetensors_writer(archive: Archive, name: str) -> Callable[[BinaryIO], object]:
    """A function that writes a checkpoint of `archive` as safetensors, tensor by tensor."""
    from nemo_archive.safetensors import write_safetensors

    checkpoint: Any = archive.checkpoint(name)
    return lambda file: write_safetensors(file, checkpoint)


def _to_archive(archive: Archive, output: str, weights: str) -> None:
    from nemo_archive.writer import ArchiveWriter

    with ArchiveWriter(output) as writer:
        for name, write in members(archive, weights).items():
            if write is not None:
                writer.add_stream(name, write)
            elif name == CONFIG:
                writer.add_member(name, archive.read(name))
            else:
                writer.add_from(archive, name)


def _to_folder(archive: Archive, folder: Path, arguments: Namespace) -> None:
    from nemo_archive.commands.extract import extract
    from nemo_archive.writer import write_file

    found = members(archive, arguments.weights)
    written = [name for name, write in found.items() if write is not None]
    for name in written:
        if not arguments.force and os.path.lexists(folder / name):
            raise ArchiveError(f"{folder / name} exists; --force replaces it", path=archive.path, member=name)
    extract(archive, [name for name, write in found.items() if write is None], folder, force=arguments.force)
    for name in written:
        target = folder.joinpath(*name.split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        write = found[name]
        if write is not None:
            write_file(target, write, overwrite=arguments.force, follow_link=False)
