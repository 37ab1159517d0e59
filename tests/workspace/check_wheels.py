"""Installs the built wheels as users do, each with only what it declares, and looks inside (not part of the tests).

    hatch run build && hatch run check-wheels

nemo-config and nemo-archive go each into an empty environment; the others, one after the other, into one that
holds torch, nemo-asr before anything that would bring Lightning.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LOOK_INSIDE = """
import importlib, importlib.metadata as metadata, importlib.resources as resources, json, sys
package, configs = sys.argv[1], sys.argv[2:]
module = importlib.import_module(package)
root = resources.files(package)
assert (root / "py.typed").is_file(), f"{package}: no py.typed"
for name in configs:
    assert (root / "conf" / name).is_file(), f"{package}: no conf/{name}"
print(json.dumps(sorted(d.metadata["Name"].lower().replace("_", "-") for d in metadata.distributions())))
"""

ASR_CONFIGS = (
    "quartznet_15x5.yaml",
    "citrinet_512.yaml",
    "conformer_ctc_char.yaml",
    "conformer_ctc_bpe.yaml",
    "fastconformer_ctc_char.yaml",
    "fastconformer_ctc_bpe.yaml",
    "shared/run.yaml",
)


class Environment:
    """A new virtual environment that installs from the given folder of wheels first."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin, self.wheels = folder / "bin", wheels

    def run(self, *command: str) -> str:
        result = subprocess.run([str(self.bin / command[0]), *command[1:]], capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)[:200]}\n{result.stdout}{result.stderr}")
        return result.stdout

    def install(self, *requirements: str) -> None:
        self.run("python", "-m", "pip", "install", "-q", "--find-links", str(self.wheels), *requirements)

    def distributions(self, package: str, *configs: str) -> set[str]:
        """Imports the package, looks for its files, and gives the names of all that is installed."""
        return set(json.loads(self.run("python", "-I", "-c", LOOK_INSIDE, package, *configs)))


def expect(fact: bool, message: str) -> None:
    if not fact:
        raise SystemExit(f"FAILED: {message}")
    print(f"ok: {message}", flush=True)


def check_alone(package: str, wheels: Path, scratch: Path, allowed: set[str]) -> None:
    environment = Environment(scratch / package, wheels)
    environment.install(package)
    found = environment.distributions(package.replace("-", "_")) - {"pip", "setuptools"}
    expect(found <= allowed | {package}, f"{package} alone brings {', '.join(sorted(found - {package}))}")


def check_with_torch(wheels: Path, scratch: Path) -> None:
    environment = Environment(scratch / "torch", wheels)
    environment.install("torch<2.15")
    environment.install("nemo-kernels")
    environment.distributions("nemo_kernels")
    expect(True, "nemo-kernels imports with torch")
    environment.install("nemo-asr")
    found = environment.distributions("nemo_asr", *ASR_CONFIGS)
    unwanted = {name for name in found if "lightning" in name or "tensorboard" in name or name == "nemo-expmgr"}
    expect(not unwanted, "nemo-asr without [train] brings neither Lightning nor TensorBoard")
    for command in ("transcribe", "evaluate", "tokenizer"):
        environment.run("nemo-asr", command, "--help")
    expect("transcribe" in environment.run("nemo-asr", "--help"), "nemo-asr and its commands give --help")
    for package in ("nemo-nlp", "nemo-tts", "nemo-expmgr"):
        environment.install(package)
        environment.distributions(package.replace("-", "_"))
        expect(True, f"{package} imports")
    environment.install("nemo-asr[train]")
    environment.run("python", "-I", "-c", "import nemo_asr.models")
    expect("fastconformer_ctc_bpe" in environment.run("nemo-asr", "train", "--help"), "nemo-asr[train] trains")


def main() -> None:
    wheels = Path(sys.argv[1] if len(sys.argv) > 1 else "dist").resolve()
    for package in ("config", "archive", "kernels", "expmgr", "asr", "nlp", "tts"):
        kinds = {path.suffix for path in wheels.glob(f"nemo_{package}-*")}
        expect({".whl", ".gz"} <= kinds, f"nemo-{package} has a wheel and an sdist")
    with tempfile.TemporaryDirectory(prefix="check-wheels-") as scratch:
        check_alone("nemo-archive", wheels, Path(scratch), {"pyyaml"})
        hydra = {"omegaconf", "hydra-core", "antlr4-python3-runtime", "pyyaml", "packaging"}
        check_alone("nemo-config", wheels, Path(scratch), hydra)
        check_with_torch(wheels, Path(scratch))
    print("all wheels install and import with what they declare")


if __name__ == "__main__":
    main()
