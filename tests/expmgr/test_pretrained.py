"""Finding a pretrained model: local path, listed name, Hugging Face repository."""

import importlib
import os
import subprocess
import sys
import types

import pytest
import torch

from nemo_expmgr.pretrained import PretrainedModelInfo, hub_file, locate_pretrained


class RepositoryNotFoundError(Exception):
    pass


class EntryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(EntryNotFoundError):
    pass


class FakeHub(types.ModuleType):
    """huggingface_hub with repositories in a folder; offline, only what is in its cache."""

    def __init__(self, root):
        super().__init__("huggingface_hub")
        self.root, self.cache, self.offline, self.forced = root, root / "cache", False, []
        self.errors = types.ModuleType("huggingface_hub.errors")
        for error in (RepositoryNotFoundError, EntryNotFoundError, LocalEntryNotFoundError):
            setattr(self.errors, error.__name__, error)

    def publish(self, repository, *files, cached=False):
        for name in files:
            path = (self.cache if cached else self.root) / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())

    def hf_hub_download(self, repository, filename, force_download=False):
        self.forced.append(force_download)
        cached = self.cache / repository / filename
        if self.offline:
            if cached.exists():
                return str(cached)
            raise LocalEntryNotFoundError(filename)
        if not (self.root / repository).is_dir():
            raise RepositoryNotFoundError(repository)
        if not (self.root / repository / filename).exists():
            raise EntryNotFoundError(filename)
        return str(self.root / repository / filename)

    def list_repo_files(self, repository):
        return [path.name for path in (self.root / repository).iterdir()]

    def snapshot_download(self, repository, local_files_only, allow_patterns):
        assert local_files_only and allow_patterns == ["*.nemo"]
        if not (self.cache / repository).is_dir():
            raise LocalEntryNotFoundError(repository)
        return str(self.cache / repository)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", fake.errors)
    return fake


def test_a_path_is_itself_and_a_listed_name_or_alias_is_its_location(tmp_path):
    path = tmp_path / "m.nemo"
    path.touch()
    listed = [PretrainedModelInfo("stt_en_tiny", "tiny", str(path), aliases=("tiny",))]
    assert locate_pretrained(path) == locate_pretrained(str(path)) == path
    assert locate_pretrained("stt_en_tiny", listed) == locate_pretrained("tiny", listed) == path


def test_an_unknown_name_is_an_error_with_the_nearest_names():
    listed = [PretrainedModelInfo(f"stt_{lang}_conformer_ctc", "", "x") for lang in ("en", "de", "fr")]
    with pytest.raises(ValueError, match=r"stt_en_conformer.*nearest: stt_en_conformer_ctc"):
        locate_pretrained("stt_en_conformer", listed)
    with pytest.raises(FileNotFoundError, match=r"absent\.nemo"):
        locate_pretrained("some/absent.nemo")


def test_a_repository_gives_the_file_of_its_name_or_its_only_one(hub):
    hub.publish("org/model", "model.nemo", "other.nemo", "README.md")
    hub.publish("org/odd", "weights_v2.nemo", "README.md")
    assert locate_pretrained("org/model").name == "model.nemo"
    assert locate_pretrained("org/odd").name == "weights_v2.nemo"
    hub_file("org/model", refresh=True)
    assert hub.forced[0] is False and hub.forced[-1] is True


def test_a_repository_without_or_with_several_files_is_an_error_that_says_so(hub):
    hub.publish("org/none", "README.md")
    hub.publish("org/two", "a.nemo", "b.nemo")
    with pytest.raises(FileNotFoundError, match=r"org/none: holds no \.nemo file"):
        hub_file("org/none")
    with pytest.raises(ValueError, match=r"org/two: holds several \.nemo files.*a\.nemo, b\.nemo"):
        hub_file("org/two")
    with pytest.raises(FileNotFoundError, match="org/absent: no such repository"):
        hub_file("org/absent")


def test_offline_only_the_cache_is_used(hub):
    hub.publish("org/model", "model.nemo")
    hub.publish("org/cached", "weights_v2.nemo", cached=True)
    hub.offline = True
    assert hub_file("org/cached").name == "weights_v2.nemo"
    with pytest.raises(FileNotFoundError, match="org/model: not in the local cache"):
        hub_file("org/model")


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"org/model: .*pip install 'nemo-expmgr\[hub\]'"):
        locate_pretrained("org/model")


def test_a_model_is_restored_from_a_repository(hub, tiny_class, tiny_model, ids):
    hub.publish("org/tiny", "README.md")
    tiny_model.save_to(hub.root / "org/tiny/tiny.nemo")
    assert torch.equal(tiny_class.from_pretrained("org/tiny")(ids), tiny_model(ids))
    assert tiny_class.from_pretrained("org/tiny", return_config=True).width == 8
    assert tiny_class.from_pretrained("org/tiny", return_model_file=True).endswith("tiny.nemo")


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="needs nemo-expmgr[hub]")
def test_the_real_library_finds_a_cached_file_offline_and_says_what_is_missing(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "model.nemo").write_bytes(b"x")
    script = (
        "from nemo_expmgr.pretrained import hub_file\n"
        "print(hub_file('org/model'))\n"
        "try: hub_file('org/absent')\n"
        "except FileNotFoundError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, missing = done.stdout.splitlines()
    assert found.endswith(f"{commit}/model.nemo")
    assert missing.startswith("org/absent: not in the local cache")


def test_importing_the_package_imports_neither_torch_nor_lightning():
    script = "import sys, nemo_expmgr.pretrained; print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
