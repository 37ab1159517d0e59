import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_config import hydra_runner

TRAIN = """
defaults: [{model: small}, _self_]
name: run
data: {manifest: "???", batch_size: 4}
model: {lr: 0.1, optim: {name: adam, betas: [0.9, 0.98]}}
hydra:
  run: {dir: outputs/here}
  job: {chdir: true}
  job_logging: {root: {handlers: null}}
"""
FILES = {
    "conf/train.yaml": TRAIN,
    "conf/other.yaml": "name: other",
    "conf/broken.yaml": "name: [1",
    "conf/model/small.yaml": 'size: 1\ntwice: "${multiply:${.size},2}"',
    "conf/model/big.yaml": 'size: 9\ntwice: "${multiply:${.size},2}"',
    "elsewhere/train.yaml": "name: elsewhere",
    "elsewhere/mistyped.yaml": "epochs: x",
}
SCRIPT = """
import logging, os, sys
from nemo_config import hydra_runner

@hydra_runner(config_path="conf", config_name="train")
def main(cfg):
    logging.getLogger("script").info("a line of the log")
    assert sys.argv[1:] == ARGUMENTS and "HYDRA_FULL_ERROR" not in os.environ
    print(cfg.name, cfg.model.size, cfg.model.twice, os.getcwd())
    if cfg.name == "reads":
        cfg.data.manifest

ARGUMENTS = sys.argv[1:]
main()
"""


@dataclass
class Optim:
    lr: float = 0.5


@dataclass
class Schema:
    name: str = "schema"
    epochs: int = 3
    optim: Optim = field(default_factory=Optim)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with configs, which is also the current one; whatever a run leaves in it can be seen."""
    for name, text in FILES.items():
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path / "project"


@pytest.fixture
def run(project, monkeypatch):
    """Runs a decorated function as a console script would, `sys.argv` set by the caller; gives the configs it got."""

    def run(*arguments, config_name="train", schema=None, config_path=str(project / "conf")):
        seen = []

        def task(cfg):
            seen.append(OmegaConf.to_container(cfg, resolve=True))

        monkeypatch.setattr(sys, "argv", ["nemo-asr train", *arguments])
        hydra_runner(config_path=config_path, config_name=config_name, schema=schema)(task)()
        assert sys.argv[1:] == list(arguments)
        assert "HYDRA_FULL_ERROR" not in os.environ
        return seen

    return run


def files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_script_runs_with_overrides_and_sweeps_and_leaves_nothing_behind(project):
    (project / "train.py").write_text(SCRIPT)
    before, folders = files_in(project), {path.name for path in project.iterdir()}

    def script(*arguments):
        command = [sys.executable, "train.py", *arguments]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    sweep = script("name=a", "-m", "model=small,big", "++model.size=3,4")
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.stdout.splitlines() == [f"a {size} {2 * size} {project}" for size in (3, 4, 3, 4)]
    failed = script("name=reads")
    assert (failed.returncode, failed.stdout) == (1, f"reads 1 2 {project}\n")
    assert failed.stderr.splitlines() == [
        "[INFO] script: a line of the log",
        "data.manifest: ??? stands for a value that must be given, as in data.manifest=<value> (train.py, line 11)",
    ]
    assert files_in(project) == before
    assert {path.name for path in project.iterdir()} == folders


def test_called_with_a_config_the_function_just_runs(monkeypatch):
    @hydra_runner(config_path="conf", config_name="train")
    def main(cfg):
        return cfg["a"] + 1

    monkeypatch.setattr(sys, "argv", ["script", "--no-such-option"])
    assert main({"a": 1}) == 2
    assert main.__name__ == "main"


def test_overrides_of_every_kind_reach_a_config_composed_from_parts(run, project):
    (config,) = run("model=big", "name=b", "+new.key=[1,2]", "++model.lr=5", "~model.optim", "data.manifest=m.json")
    assert config == {
        "name": "b",
        "data": {"manifest": "m.json", "batch_size": 4},
        "model": {"size": 9, "twice": 18, "lr": 5},
        "new": {"key": [1, 2]},
    }
    assert files_in(project) == set(FILES)


def test_a_plus_also_sets_what_is_there_as_the_line_that_nvidia_prints_needs_it(run, project):
    (config,) = run("+model.lr=0.3", "~model.optim", "+model.sched.steps=1000", "data.manifest=m.json")
    assert (config["model"]["lr"], config["model"]["sched"]) == (0.3, {"steps": 1000})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config-name", "other"],
        ["--config-name=other"],
        ["--config_name=other"],
        ["--config_name", "other.yaml"],
        ["-cn", "other"],
        ["--config-path=elsewhere"],
        ["--config_path", "../project/elsewhere"],
        ["-cp", "{project}/elsewhere"],
        ["++hydra.searchpath=[]", "--config_path=elsewhere", "--config-name=train"],
    ],
)
def test_another_config_in_every_spelling(run, project, arguments):
    expected = "other" if any("other" in argument for argument in arguments) else "elsewhere"
    assert run(*[argument.format(project=project) for argument in arguments]) == [{"name": expected}]


def test_a_relative_config_path_is_looked_for_beside_the_script_and_then_here(project, monkeypatch):
    beside, here = Path(__file__).parent, project
    with pytest.raises(SystemExit, match=rf"^config_path: '{beside}/nowhere' is not a folder$"):
        monkeypatch.setattr(sys, "argv", ["script", "--config-path=nowhere", "--config-name=train"])
        hydra_runner()(lambda cfg: None)()
    seen = []
    monkeypatch.setattr(sys, "argv", ["script", f"--config-path={os.path.relpath(here / 'elsewhere', here)}"])
    hydra_runner(config_name="train")(seen.append)()
    assert seen == [{"name": "elsewhere"}]


def test_an_additional_folder_adds_parts(run, project):
    (project / "mine" / "model").mkdir(parents=True)
    (project / "mine" / "model" / "huge.yaml").write_text("size: 99\ntwice: 0")
    (config,) = run("--config_dir=mine", "model=huge", "data.manifest=m")
    assert config["model"]["size"] == 99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.lrr=0.2"], "model.lrr: 0.2 is given, but model has no such key; nearest valid key: model.lr"),
        (
            ["model.optimm.name=sgd"],
            "model.optimm.name: 'sgd' is given, but model has no such key; nearest valid key: model.optim.name",
        ),
        (
            ["optim.name=sgd"],
            "optim.name: 'sgd' is given, but the config has no such key; nearest valid key: model.optim.name",
        ),
        (["zzz=[1]"], "zzz: [1] is given, but the config has no such key; valid keys: data, model, name"),
        (["~model.optm"], "model.optm: cannot be removed: the config has no such key; nearest valid key: model.optim"),
        (["+name=3"], "name: is in the config already: leave out the +"),
        (["model=bigg"], "model: 'bigg' is not one of its configs; nearest: big"),
        (["name"], "'name' is not an override (key=value): missing EQUAL at '<EOF>'"),
        (["-m", "model.lrr=1,2"], "model.lrr: 1 is given, but model has no such key; nearest valid key: model.lr"),
        (["--config-name=trian"], "config_name: 'trian' is not a config in {conf}; nearest: train"),
        (["--config-name=broken"], 'while parsing a flow sequence in "{conf}/broken.yaml", line 1, column 7'),
    ],
)
def test_an_error_of_the_user_is_one_line_and_status_1(run, project, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    # A text as the code of SystemExit is printed by Python, and the status is 1.
    assert caught.value.code.startswith(message.format(conf=project / "conf"))
    assert "\n" not in caught.value.code


def test_an_interpolation_that_fails_names_the_line_of_the_program_that_read_it(project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "name=${no_such_resolver:1}"])
    with pytest.raises(SystemExit, match=r"^name: Unsupported .*no_such_resolver \(test_hydra_runner\.py, line \d+\)$"):
        hydra_runner(config_path=str(project / "conf"), config_name="train")(lambda cfg: cfg.name)()


def test_each_job_of_a_sweep_tells_its_error_once_and_the_others_run(project, monkeypatch, caplog):
    seen = []

    def task(cfg):
        seen.append(cfg.model.lr)
        if cfg.model.lr != 2:
            _ = cfg.data.manifest

    monkeypatch.setattr(sys, "argv", ["script", "-m", "model.lr=1,2,3"])
    with pytest.raises(SystemExit) as caught:
        hydra_runner(config_path=str(project / "conf"), config_name="train")(task)()
    assert seen == [1, 2, 3]
    assert caught.value.code == "of the sweep's jobs these failed: #0, #2"
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [error.partition(": ???")[0] for error in errors] == [
        "job #0: data.manifest",
        "job #2: data.manifest",
    ]


def test_hydra_full_error_brings_the_traceback_back(project, monkeypatch):
    from hydra.errors import ConfigCompositionException

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["script", "model.lrr=1"])
    with pytest.raises(ConfigCompositionException):
        hydra_runner(config_path=str(project / "conf"), config_name="train")(lambda cfg: None)()
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_an_error_of_the_program_is_not_touched(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script"])

    def task(cfg):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        hydra_runner(schema=Schema, config_name="none")(task)()


@pytest.mark.parametrize("schema_name", [None, "script_config"])
def test_a_schema_alone_is_the_config(run, schema_name):
    assert run("optim.lr=1", config_name=schema_name, schema=Schema) == [
        {"name": "schema", "epochs": 3, "optim": {"lr": 1.0}}
    ]


def test_a_schema_checks_the_yaml_and_fills_it_up(run):
    assert run("epochs=5", config_name="other", schema=Schema) == [{"name": "other", "epochs": 5, "optim": {"lr": 0.5}}]
    swept = run("-m", "epochs=1,2", "--config-path=elsewhere", schema=Schema)
    assert [(config["name"], config["epochs"]) for config in swept] == [("elsewhere", 1), ("elsewhere", 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epochs=many"], "epochs: 'many' must be an int"),
        (["optim.lr=[1]"], "optim.lr: [1] must be a float"),
        (["epoch=1"], "epoch: 1 is given, but the config has no such key; nearest valid key: epochs"),
        (["--config-path=elsewhere", "--config-name=mistyped"], "epochs: 'x' must be an int (in mistyped.yaml)"),
        (["--config-name=none"], "config_name: 'none' is not a config in "),
    ],
)
def test_a_value_that_the_schema_refuses_is_one_line(run, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run(*arguments, config_name="other", schema=Schema)
    assert caught.value.code.startswith(message)


def test_the_programs_own_logging_is_left_alone(run, monkeypatch):
    handler = logging.NullHandler()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    level = root.level
    run("data.manifest=m")
    assert (root.handlers, root.level) == ([handler], level)
