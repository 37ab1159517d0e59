"""`hatch run bench NAME [OPTIONS]`: runs the benchmark of that name in this folder."""

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent

if __name__ == "__main__":
    names = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        raise SystemExit(f"usage: hatch run bench {{{','.join(names)}}} [OPTIONS]")
    del sys.argv[0]
    runpy.run_path(str(FOLDER / f"{sys.argv[0]}.py"), run_name="__main__")
