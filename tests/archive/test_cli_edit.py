"""nemo-archive edit: what is asked for changes, everything else stays as it was, byte for byte."""

from __future__ import annotations

import errno
import os
import stat
import tarfile

import pytest
import torch

from nemo_archive import ArchiveError, ArchiveWriter, Artifact, open_archive
from nemo_archive.torch import load_state_dict, save_archive


@pytest.fixture
def model(golden, tmp_path):
    copy = tmp_path / "model.nemo"
    copy.write_bytes((golden / "fastconformer_ctc_bpe" / "model.nemo").read_bytes())
    return copy


def contents(path):
    with tarfile.open(path, "r:") as tar:
        return {m.name.removeprefix("./"): tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


def config(path):
    with open_archive(path) as archive:
        return archive.config()


def test_a_key_is_set_and_nothing_else_changes(golden_file, tmp_path, command):
    path = tmp_path / "model.nemo"
    path.write_bytes(golden_file.read_bytes())
    with open_archive(golden_file) as archive:
        before, members = archive.config(), {name: archive.read(name) for name in archive.members}
    result = command("edit", path, "preprocessor.dither=1e-3", "++note.deep=[1, two, {a: null}]", "~validation_ds")
    assert (result.status, result.err) == (0, "")
    expected = {key: value for key, value in before.items() if key != "validation_ds"}
    expected["preprocessor"] = {**before["preprocessor"], "dither": 0.001}
    expected["note"] = {"deep": [1, "two", {"a": None}]}
    assert config(path) == expected
    after = contents(path)
    assert after.keys() == members.keys()
    assert all(after[name] == members[name] for name in members if name != "model_config.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("'1e-3'", "1e-3"), ("true", True), ("null", None), ("", ""), ("a=b", "a=b"), ("[]", []),
        ("{a: 1}", {"a": 1}), ("straße", "straße"), ("a #b", "a #b"), ("#b", "#b"), ("2024-01-02", "2024-01-02"),
        ("${other.key}", "${other.key}"), ("???", "???"), ("'quoted # text'", "quoted # text"), ("-5", -5),
    ],
)  # fmt: skip
def test_values_are_read_by_the_configs_rules(text, value, model, command):
    assert command("edit", model, f"decoder.num_classes={text}").status == 0
    changed = config(model)["decoder"]["num_classes"]
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("edits", "rule"),
    [
        (["encoder.d_modl=3"], "there is no key encoder.d_modl; nearest: encoder.d_model; +encoder.d_modl=... adds it"),
        (["+encoder.d_model=3"], "encoder.d_model is there already"),
        (["~encoder.x"], "there is no key encoder.x"),
        (["encoder"], "the forms are key=value"),
        (["=3"], "the forms are key=value"),
        (["+++a=3"], "the forms are key=value"),
        (["encoder.d_model=a: b"], "unreadable YAML"),
        (["encoder.d_model=a\nb: c"], "one value is expected"),
        (["encoder.d_model=1\nb: c"], "one value is expected"),
        (["encoder.d_model=!!python/name:os.system"], "YAML"),
        (["+encoder.d_model.x.y=3"], "x cannot stand below a value of type int"),
        (["+decoder.vocabulary.5000.x=3"], "5000 cannot stand below a value of type list"),
        (["tokenizer.model_path=nemo:absent.model"], "nemo:absent.model is not in the archive"),
        ([], "nothing to do"),
    ],
)
def test_an_edit_that_cannot_be_made_leaves_the_file_alone(edits, rule, model, command):
    before = model.read_bytes()
    result = command("edit", model, *edits)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert rule in result.err
    assert model.read_bytes() == before
    assert list(model.parent.iterdir()) == [model]


def test_keys_with_dots_and_entries_of_lists_are_found(tmp_path, command):
    path = tmp_path / "x.nemo"
    save_archive(path, {"a.b": {"c": 1}, "list": [1, {"x": [5, 6]}, 3], "p": {"q": 1}}, {"w": torch.ones(1)})
    result = command("edit", path, "a.b.c=2", "list.1.x.0=7", "~list.2", "++p.new.deep=1", "--delete", "p.q", "--json")
    assert result.status == 0
    assert {key: value for key, value in config(path).items() if key != "nemo_version"} == {
        "a.b": {"c": 2}, "list": [1, {"x": [7, 6]}], "p": {"new": {"deep": 1}},
    }  # fmt: skip
    assert {c["key"] for c in result.json["changes"]} >= {"a.b.c", "p.q", "p.new.deep"}


def test_an_artifact_is_replaced_with_its_key(model, tmp_path, command):
    (tmp_path / "new.model").write_bytes(b"a new tokenizer")
    before = contents(model)
    assert command("edit", model, "--artifact", f"tokenizer.model_path={tmp_path / 'new.model'}").status == 0
    name = Artifact("new.model", b"a new tokenizer").archive_name
    after = contents(model)
    assert config(model)["tokenizer"]["model_path"] == f"nemo:{name}"
    assert after[name] == b"a new tokenizer"
    gone = next(key for key in before if key.endswith("tokenizer.model"))
    assert after.keys() == (before.keys() - {gone}) | {name}
    assert after["model_weights.ckpt"] == before["model_weights.ckpt"]


def test_an_extracted_and_changed_artifact_gets_a_name_of_its_own(model, tmp_path, command):
    command("extract", model, "vocab.txt", "--into", tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    file.write_bytes(b"changed")
    assert command("edit", model, "--artifact", f"tokenizer.vocab_path={file}").status == 0
    with open_archive(model) as archive:
        artifact = archive.artifact("tokenizer.vocab_path")
    assert artifact.data == b"changed"
    assert artifact.name == Artifact("vocab.txt", b"changed").archive_name
    assert file.name not in contents(model)


def test_an_artifact_that_another_key_or_a_sub_models_config_names_stays(tmp_path, command):
    shared, inner = Artifact("shared.txt", b"s"), Artifact("inner.txt", b"i")
    path = tmp_path / "x.nemo"
    with ArchiveWriter(path) as writer:
        writer.add_config({"a": shared.reference, "b": shared.reference, "c": inner.reference})
        writer.add_artifact(shared)
        writer.add_artifact(inner)
        writer.add_member("sub_config.yaml", f"d: {inner.reference}\n".encode())
    assert command("edit", path, "~a", "~c").status == 0
    assert {shared.archive_name, inner.archive_name} <= contents(path).keys()
    assert command("edit", path, "~b").status == 0
    assert shared.archive_name not in contents(path)


def test_the_output_is_another_file_and_a_dry_run_none(model, tmp_path, command):
    before = model.read_bytes()
    result = command("edit", model, "encoder.d_model=65", "--dry-run")
    assert result.out.splitlines()[1].split() == ["encoder.d_model", "64", "65"]
    assert command("edit", model, "encoder.d_model=65", "--output", tmp_path / "new.nemo").status == 0
    assert model.read_bytes() == before
    assert config(tmp_path / "new.nemo")["encoder"]["d_model"] == 65


def test_permissions_and_links_are_kept(model, tmp_path, command):
    model.chmod(0o640)
    link = tmp_path / "link.nemo"
    link.symlink_to(model)
    assert command("edit", link, "encoder.d_model=65").status == 0
    assert link.is_symlink()
    assert stat.S_IMODE(model.stat().st_mode) == 0o640
    assert config(model)["encoder"]["d_model"] == 65


def test_whoever_has_the_old_file_mapped_keeps_it(tmp_path, command):
    path = tmp_path / "x.nemo"
    save_archive(path, {"a": 1}, {"w": torch.arange(400_000.0)})
    inode = path.stat().st_ino
    with open_archive(path) as archive:
        mapped = load_state_dict(archive)["w"]
        assert command("edit", path, "a=2").status == 0
        assert path.stat().st_ino != inode
        assert archive.config()["a"] == 1
        assert torch.equal(mapped, torch.arange(400_000.0))
    assert torch.equal(load_state_dict(path)["w"], torch.arange(400_000.0))


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux")
def test_the_kernel_copies_the_weights(tmp_path, command, monkeypatch):
    path = tmp_path / "x.nemo"
    save_archive(path, {"a": 1}, {"w": torch.arange(400_000.0)})
    with open_archive(path) as archive:
        size = archive.members["model_weights.ckpt"].size
    copied = []
    real = os.copy_file_range

    def count(*arguments):
        copied.append(real(*arguments))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", count)
    assert command("edit", path, "a=2").status == 0
    assert sum(copied) == size


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux")
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL])
def test_where_the_kernel_cannot_the_bytes_are_copied_by_hand(after, code, tmp_path, command, monkeypatch):
    paths = [tmp_path / "a.nemo", tmp_path / "b.nemo"]
    for path in paths:
        save_archive(path, {"a": 1}, {"w": torch.arange(700_000.0)})
    assert command("edit", paths[0], "a=2").status == 0
    real, calls = os.copy_file_range, []

    def fail(source, target, count, *offsets):
        calls.append(count)
        if len(calls) > after:
            raise OSError(code, "no")
        return real(source, target, min(count, 1000), *offsets)

    monkeypatch.setattr(os, "copy_file_range", fail)
    assert command("edit", paths[1], "a=2").status == 0
    assert len(calls) == after + 1
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux")
@pytest.mark.parametrize("failure", ["full disk", "source became shorter"])
def test_a_failing_copy_leaves_the_old_file(failure, model, command, monkeypatch):
    before = model.read_bytes()

    def fail(*arguments):
        if failure == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return 0

    monkeypatch.setattr(os, "copy_file_range", fail)
    result = command("edit", model, "encoder.d_model=65")
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert model.read_bytes() == before
    assert list(model.parent.iterdir()) == [model]


def test_an_edited_archive_has_the_bytes_of_one_saved_with_that_config(tmp_path, command):
    artifact = Artifact("vocab.txt", b"a\nb\n")
    state = {"w": torch.arange(3000.0)}
    save_archive(tmp_path / "a.nemo", {"v": artifact.reference, "x": 1}, state, [artifact])
    save_archive(tmp_path / "b.nemo", {"v": artifact.reference, "x": 2}, state, [artifact])
    assert command("edit", tmp_path / "a.nemo", "x=2").status == 0
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()


def test_what_changes_nothing_writes_nothing(model, command):
    inode = model.stat().st_ino
    assert command("edit", model, "encoder.d_model=64").out == "nothing changes\n"
    assert model.stat().st_ino == inode


def test_a_gzip_archive_becomes_a_plain_one_and_a_folder_is_refused(golden, tmp_path, command):
    path = tmp_path / "old.nemo"
    path.write_bytes((golden / "quartznet_ctc_char" / "model_legacy_gz.nemo").read_bytes())
    with open_archive(path) as archive:
        weights = archive.read("model_weights.ckpt")
    assert command("edit", path, "++a=1").status == 0
    assert contents(path)["model_weights.ckpt"] == weights
    command("extract", path, "--into", tmp_path / "folder")
    result = command("edit", tmp_path / "folder", "a=2")
    assert (result.status, result.err.count("is a folder")) == (2, 1)


def test_a_copied_member_may_have_another_name_and_must_be_there(model, tmp_path):
    with open_archive(model) as archive:
        with ArchiveWriter(tmp_path / "x.nemo") as writer:
            writer.add_config({})
            writer.add_from(archive, "model_config.yaml", name="inner_config.yaml")
        assert contents(tmp_path / "x.nemo")["inner_config.yaml"] == archive.read("model_config.yaml")
        with pytest.raises(ArchiveError, match="is not in the archive"), ArchiveWriter(tmp_path / "y.nemo") as writer:
            writer.add_from(archive, "absent")
        with pytest.raises(ArchiveError, match="there already"), ArchiveWriter(tmp_path / "y.nemo") as writer:
            writer.add_member("a", b"")
            writer.add_from(archive, "model_config.yaml", name="a")
    with pytest.raises(ArchiveError, match="closed"), ArchiveWriter(tmp_path / "y.nemo") as writer:
        archive = open_archive(model)
        writer.add_from(archive, "model_weights.ckpt")
        archive.close()
    assert not (tmp_path / "y.nemo").exists()


@pytest.mark.parametrize("name", ["edit", "migrate"])
def test_a_url_is_not_written_to(name, command):
    result = command(name, "https://example.invalid/x.nemo", *(["a=1"] if name == "edit" else []))
    rule = "cannot be written where it is: give --output FILE"
    assert result == (2, "", f"nemo-archive: https://example.invalid/x.nemo: {rule}\n")
