"""What holds for the workspace as a whole: names and floors of the members, and what importing them brings."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = ("config", "archive", "kernels", "expmgr", "asr", "nlp", "tts")


def project(member: str) -> dict:
    return tomllib.loads((ROOT / "packages" / f"nemo-{member}" / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_has_its_own_version_licence_and_papers(member):
    folder, described = ROOT / "packages" / f"nemo-{member}", project(member)
    assert described["name"] == f"nemo-{member}"
    assert described["version"] == "3.0.0"
    assert described["requires-python"] == ">=3.11"
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert (folder / "src" / f"nemo_{member}" / "py.typed").exists()
    assert "3.0.0" in (folder / "CHANGELOG.md").read_text()
    assert (folder / "README.md").read_text().startswith(f"# nemo-{member}")


@pytest.mark.parametrize("member", MEMBERS)
def test_dependencies_have_floors_and_no_caps(member):
    described = project(member)
    extras = described.get("optional-dependencies", {})
    for requirement in [*described["dependencies"], *(item for extra in extras.values() for item in extra)]:
        assert "<" not in requirement and "==" not in requirement, requirement
        assert ">=" in requirement, requirement
        if requirement.startswith("nemo-"):
            assert requirement.endswith(">=3"), f"PyPI holds strangers' {requirement} of older versions"
        if requirement.startswith("lightning"):
            assert "!=2.6.2" in requirement and "!=2.6.3" in requirement, "malicious uploads"


def test_no_module_imports_torchaudio_at_its_top():
    for path in (ROOT / "packages").glob("*/src/**/*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torchaudio" for name in names), path


def run_python(code: str, *arguments: str) -> str:
    """Runs a program in a new interpreter; gives what it prints."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_the_foundations_import_nothing_heavy_and_print_nothing():
    code = """
import sys, nemo_config, nemo_archive
heavy = {"torch", "numpy", "omegaconf", "hydra", "lightning", "torchaudio"} & set(sys.modules)
assert not heavy, heavy
"""
    assert run_python(code) == ""


def test_a_file_transcribes_where_lightning_hydra_and_torchaudio_are_missing():
    code = """
import importlib.abc, importlib.metadata, sys
HIDDEN = {"lightning", "lightning_fabric", "pytorch_lightning", "hydra", "torchaudio", "tensorboard", "nemo_expmgr",
          "webdataset", "scipy", "matplotlib"}
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)
sys.meta_path.insert(0, Hide())
installed = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **select: [
    entry_point for entry_point in installed(**select) if entry_point.module.split(".")[0] not in HIDDEN
]
from nemo_asr import load_model
model = load_model(sys.argv[1])
print(model.transcribe(sys.argv[2], verbose=False))
"""
    clip = next((ROOT / "tests" / "data" / "speech").rglob("*.flac"))
    model = ROOT / "tests" / "golden" / "fastconformer_ctc_bpe" / "model.nemo"
    (text,) = ast.literal_eval(run_python(code, str(model), str(clip)))
    assert isinstance(text, str) and text
