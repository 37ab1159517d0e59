"""Writes .nemo files anew with nemo_archive and restores them with NVIDIA's nemo_toolkit, comparing every weight.

Run it with the Python of an environment that holds nemo_toolkit 3.0.0 and torch; nemo-archive needs no installation:

    PYTHONPATH=packages/nemo-archive/src /path/to/python tests/archive/check_nvidia_restores.py FILE.nemo ...

For each file: our reader and writer make a copy, the toolkit restores the original and the copy, and the state dicts
must be equal bit for bit. Exit status 1 if one is not.
"""

from __future__ import annotations

import functools
import importlib
import sys
import tempfile
from pathlib import Path

import torch

from nemo_archive import open_archive
from nemo_archive.torch import load_state_dict, save_archive


def write_anew(source: Path, target: Path) -> None:
    with open_archive(source) as archive:
        config, artifacts = archive.config(), archive.artifacts()
        for path, artifact in artifacts.items():  # old files name artifacts by a path of the training machine
            *parents, key = path.split(".")
            functools.reduce(lambda section, name: section[name], parents, config)[key] = artifact.reference
        save_archive(target, config, load_state_dict(archive), artifacts.values())


def compare(path: Path, folder: Path) -> bool:
    copy = folder / "copy.nemo"
    write_anew(path, copy)
    with open_archive(path) as archive:
        module, _, name = archive.config()["target"].rpartition(".")
    model_class = getattr(importlib.import_module(module), name)
    theirs, ours = (model_class.restore_from(str(file), map_location="cpu") for file in (path, copy))
    before, after = theirs.state_dict(), ours.state_dict()
    equal = sum(torch.equal(before[name], after[name]) for name in before if name in after)
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    print(
        f"{path}: {type(ours).__name__} restored; {equal} of {len(before)} tensors equal, {len(after)} in the copy, "
        f"{parameters} parameters"
    )
    return equal == len(before) == len(after)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(Path(name), Path(folder)) for name in sys.argv[1:]]
    print(f"{sum(results)} of {len(results)} files restored with equal weights")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
