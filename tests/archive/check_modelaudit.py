"""Lets `modelaudit` (PyPI) look at archives that this package writes, with the weights in either form.

    python -m venv /somewhere/else && /somewhere/else/bin/pip install modelaudit
    python tests/archive/check_modelaudit.py /somewhere/else/bin/modelaudit

It is to find nothing in the safetensors form. In the torch form it is to find nothing but what it says of any file that
`torch.save` writes: version 0.2.54 warns of `torch._utils._rebuild_tensor_v2`, which stands in all of them. A bare
`torch.save` of the same tensors is scanned for comparison. Exit status 1 if there is more.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nemo_archive import open_archive
from nemo_archive.torch import load_state_dict, save_archive

GOLDEN = Path(__file__).parents[1] / "golden"
LONGEST_S = 120


def findings(modelaudit: str, path: Path) -> list[str]:
    """Severity and message of each finding, without the position."""
    report = path.with_suffix(".json")
    quiet = {**os.environ, "PROMPTFOO_DISABLE_TELEMETRY": "1", "NO_ANALYTICS": "1"}
    command = [modelaudit, "scan", "--strict", "--format", "json", "--timeout", str(LONGEST_S), "-o", report, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LONGEST_S, env=quiet, check=False)
    if not report.exists():
        raise SystemExit(f"{path.name}: no report; {done.stderr[-500:]}")
    found = json.loads(report.read_text())
    if found["files_scanned"] == 0 or found["has_errors"]:
        raise SystemExit(f"{path.name}: was not scanned")
    return [f"{issue['severity']}: {re.sub('[0-9]+', 'N', issue['message'])}" for issue in found["issues"]]


def main() -> int:
    modelaudit = sys.argv[1]
    failed = False
    with tempfile.TemporaryDirectory() as name:
        for path in sorted(GOLDEN.glob("*/model.nemo")):
            with open_archive(path) as archive:
                config, artifacts = archive.config(), list(dict.fromkeys(archive.artifacts().values()))
            state_dict = load_state_dict(path, mmap=False)
            case = path.parent.name
            bare = Path(name, f"{case}_bare.pt")
            torch.save(state_dict, bare)
            usual = set(findings(modelaudit, bare))
            for form in ("torch", "safetensors"):
                written = Path(name, f"{case}_{form}.nemo")
                save_archive(written, config, state_dict, artifacts, weights=form)
                found = findings(modelaudit, written)
                more = [finding for finding in found if form == "safetensors" or finding not in usual]
                failed |= bool(more)
                print(
                    f"{case}, {form}: {len(found)} findings, {len(more)} beyond those of a bare torch.save",
                    *more,
                    sep="\n  ",
                )
            print(f"{case}, a bare torch.save: {len(usual)} findings", *sorted(usual), sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
