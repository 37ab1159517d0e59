"""Mapped tensors, and modules built around them, against torch's own load_state_dict."""

from __future__ import annotations

import copy
import gc
import shutil
import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from nemo_archive import ArchiveError, open_archive
from nemo_archive.torch import build_and_load, load_state_dict, save_archive, skip_init

LARGE = 300_000  # elements: above the size from which weights are mapped


@pytest.fixture
def large_file(tmp_path):
    path = tmp_path / "large.nemo"
    save_archive(path, {"a": 1}, OrderedDict(x=torch.arange(float(LARGE)), y=torch.ones(3)))
    return path


def mapped_kilobytes(path) -> int:
    """How much of a file this process has mapped, by the kernel's account."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        ranges = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(str(path))]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges) // 1024


def test_large_weights_are_mapped_and_the_map_goes_with_the_last_tensor(large_file):
    state = load_state_dict(large_file)
    assert mapped_kilobytes(large_file) >= LARGE * 4 // 1024
    del state["x"]
    assert torch.equal(state["y"], torch.ones(3))
    del state
    gc.collect()
    assert mapped_kilobytes(large_file) == 0


def test_without_mmap_nothing_stays_mapped(large_file):
    state = load_state_dict(large_file, mmap=False)
    assert mapped_kilobytes(large_file) == 0
    assert torch.equal(state["x"], torch.arange(float(LARGE)))


@pytest.mark.parametrize("mmap", [True, False])
def test_writing_to_a_tensor_changes_neither_the_file_nor_another_load(large_file, mmap):
    before = large_file.read_bytes()
    with open_archive(large_file) as archive:
        first, second = (load_state_dict(archive, mmap=mmap) for _ in range(2))
        first["x"].fill_(7)
        assert torch.equal(second["x"], torch.arange(float(LARGE)))
    assert large_file.read_bytes() == before
    assert (first["x"] == 7).all()


def test_tensors_outlive_the_archive_and_the_file(large_file):
    with open_archive(large_file) as archive:
        state = load_state_dict(archive)
    large_file.unlink()
    assert torch.equal(state["x"], torch.arange(float(LARGE)))


def test_an_open_archive_loads_its_own_file_even_if_another_has_its_name_now(large_file):
    with open_archive(large_file) as archive:
        save_archive(large_file, {"a": 2}, {"x": torch.zeros(LARGE)})
        assert torch.equal(load_state_dict(archive)["x"], torch.arange(float(LARGE)))


def test_map_location_puts_tensors_on_a_device_and_keeps_sharing(tmp_path):
    base = torch.arange(6.0)
    save_archive(tmp_path / "m.nemo", {}, {"a": base, "b": base[2:]})
    state = load_state_dict(tmp_path / "m.nemo", map_location="meta")
    assert {tensor.device.type for tensor in state.values()} == {"meta"}
    assert state["b"].storage_offset() == 2
    assert load_state_dict(tmp_path / "m.nemo", map_location=None)["a"].device.type == "cpu"


def test_shards_are_read_by_member_name(make_tar, tmp_path):
    import io

    members = {"model_config.yaml": b"a: 1\n"}
    for rank in range(2):
        file = io.BytesIO()
        torch.save(OrderedDict(w=torch.full((2,), rank)), file)
        members[f"mp_rank_0{rank}/model_weights.ckpt"] = file.getvalue()
    with open_archive(make_tar(members)) as archive:
        for rank in range(2):
            member = f"./mp_rank_0{rank}/model_weights.ckpt"
            assert archive.tensors(member)["w"].shape == (2,)
            assert load_state_dict(archive, member=member)["w"].tolist() == [rank, rank]
        assert archive.checkpoints() == ("mp_rank_00/model_weights.ckpt", "mp_rank_01/model_weights.ckpt")
        with pytest.raises(ArchiveError, match=r"split into 2 shards, none of which is the whole: mp_rank_00/model_w"):
            load_state_dict(archive)


def test_saving_detaches_parameters_and_keeps_ties_and_metadata(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    module[1].weight = module[0].weight
    save_archive(tmp_path / "m.nemo", {}, module.state_dict(keep_vars=True))
    with open_archive(tmp_path / "m.nemo") as archive:
        infos, state = archive.tensors(), load_state_dict(archive)
    assert infos["0.weight"].storage == infos["1.weight"].storage != infos["0.bias"].storage
    assert not any(tensor.requires_grad for tensor in state.values())
    assert state._metadata == module.state_dict()._metadata
    assert state._metadata["2"] == {"version": 2}


UNREADABLE = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "subclass": lambda: torch.ones(2).as_subclass(type("Own", (torch.Tensor,), {})),
    "numpy": lambda: {"inside": [np.float32(1)]},
    "set": lambda: {1, 2},
    "device": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_could_not_be_read_back_is_refused_before_anything_is_written(tmp_path, kind):
    with pytest.raises(ArchiveError, match=r"m\.nemo: member 'model_weights\.ckpt': the entry 'b' .*not be read back"):
        save_archive(tmp_path / "m.nemo", {}, {"a": torch.ones(1), "b": UNREADABLE[kind]()})
    assert list(tmp_path.iterdir()) == []


def test_plain_values_beside_tensors_are_read_back(tmp_path):
    extra = {"seen": 3, "name": "x", "scales": [0.5, None], "kind": torch.float16, "raw": b"1"}
    save_archive(tmp_path / "m.nemo", {}, {"a": torch.ones(1), "extra": extra})
    assert load_state_dict(tmp_path / "m.nemo")["extra"] == extra


class Tied(nn.Module):
    """Everything that loading has to keep: ties, shared modules, an LSTM, buffers, a plain list of a parameter."""

    def __init__(self, dtype=torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5, padding_idx=0, dtype=dtype)
        self.output = nn.Linear(5, 7, bias=False, dtype=dtype)
        self.output.weight = self.embedding.weight
        self.lstm = nn.LSTM(5, 5, num_layers=2)
        self.alias = self.lstm
        self.norm = nn.BatchNorm1d(5)
        self.convolution = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(5, 5, 3))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.listed = [self.frozen]
        self.register_buffer("table", torch.empty(4).normal_().sigmoid(), persistent=False)
        self.register_buffer("window", torch.hann_window(8))
        self.embedding.weight.data.normal_(0, 0.02)


def random_state(seed=0):
    torch.manual_seed(seed)
    return Tied().state_dict()


@pytest.fixture
def state(tmp_path):
    expected = random_state()
    save_archive(tmp_path / "tied.nemo", {}, expected)
    return load_state_dict(tmp_path / "tied.nemo")


def test_a_built_module_equals_one_that_torch_loaded(state):
    reference = Tied()
    reference.load_state_dict(copy.deepcopy(state))
    module = build_and_load(Tied, state)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name
    x = torch.randn(3, 2, 5)
    assert torch.equal(module.lstm(x)[0], reference.lstm(x)[0])
    assert torch.equal(module.convolution(x.permute(0, 2, 1).repeat(1, 1, 3)[:, :5]), reference.convolution(
        x.permute(0, 2, 1).repeat(1, 1, 3)[:, :5]))  # fmt: skip


def test_weights_are_taken_over_without_a_copy(state):
    module = build_and_load(Tied, state)
    for name in ("embedding.weight", "lstm.weight_ih_l0", "norm.running_mean", "window", "frozen"):
        assert module.state_dict()[name].data_ptr() == state[name].data_ptr(), name


def test_what_was_one_object_stays_one(state):
    module = build_and_load(Tied, state)
    assert module.output.weight is module.embedding.weight
    assert module.alias is module.lstm
    assert module.listed[0] is module.frozen
    assert module.lstm._flat_weights[0] is module.lstm.weight_ih_l0
    assert [parameter.requires_grad for parameter in module.parameters()] == [
        parameter.requires_grad for parameter in Tied().parameters()
    ]


def test_the_optimizer_steps_once_on_a_tied_weight(state):
    module = build_and_load(Tied, state)
    before = module.embedding.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    (module.output.weight.sum() + module.embedding.weight.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(module.output.weight.detach(), before - 2)


def test_parameters_that_only_the_file_shares_become_separate():
    shared = torch.randn(4, 4)
    module = build_and_load(
        lambda: nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]),
        {"0.weight": shared, "1.weight": shared},
    )
    assert torch.equal(module[0].weight, module[1].weight)
    with torch.no_grad():
        module[0].weight.zero_()
    assert module[1].weight.abs().sum() > 0


def test_a_name_that_is_missing_but_tied_to_a_present_one_is_no_error(state):
    del state["output.weight"]
    module = build_and_load(Tied, state)
    assert module.output.weight is module.embedding.weight
    assert module.output.weight.data_ptr() == state["embedding.weight"].data_ptr()


def test_the_modules_dtype_is_kept(state):
    module = build_and_load(lambda: Tied(torch.float16), state)
    assert module.embedding.weight.dtype == module.output.weight.dtype == torch.float16
    torch.testing.assert_close(module.output.weight.float(), state["output.weight"], atol=1e-4, rtol=1e-3)


def test_one_error_lists_all_that_does_not_fit(state):
    del state["norm.bias"], state["window"]
    state["extra"] = torch.zeros(1)
    state["frozen"] = torch.zeros(4)
    with pytest.raises(ArchiveError) as caught:
        build_and_load(Tied, state)
    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value) == (
        "the weights do not fit Tied: 2 missing: window, norm.bias; 1 unexpected: extra; "
        "1 of another shape: frozen (file (4,), model (3,))"
    )


def test_what_is_missing_is_initialised_when_not_strict(state):
    del state["frozen"], state["lstm.weight_hh_l1"], state["window"]
    state["extra"] = torch.zeros(1)
    module = build_and_load(Tied, state, strict=False)
    assert torch.equal(module.window, torch.hann_window(8))
    assert 0 < module.lstm.weight_hh_l1.abs().max() <= 5**-0.5
    assert module.frozen.abs().max() > 0
    assert torch.equal(module.lstm.weight_ih_l1, state["lstm.weight_ih_l1"])


def test_hooks_that_rename_old_keys_run(state):
    class Renaming(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.register_load_state_dict_pre_hook(
                lambda module, state, prefix, *rest: state.update(window=state.pop("old_window"))
            )

    state["old_window"] = state.pop("window")
    assert build_and_load(Renaming, state).window.data_ptr() == state["old_window"].data_ptr()


def test_non_persistent_buffers_are_computed_and_no_random_number_is_drawn_for_parameters():
    torch.manual_seed(3)
    expected = torch.empty(4).normal_().sigmoid()
    torch.manual_seed(3)

    class OnlyTheTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(50, 50)
            self.convolution = nn.Conv2d(3, 3, 3)
            self.attention = nn.MultiheadAttention(4, 2)
            nn.init.xavier_normal_(self.linear.weight)
            self.linear.weight.data.normal_()
            self.register_buffer("table", torch.empty(4).normal_().sigmoid(), persistent=False)
            self.zeros = nn.Parameter(torch.empty(100))
            nn.init.zeros_(self.zeros)

    with skip_init():
        module = OnlyTheTable()
    assert torch.equal(module.table, expected)
    assert not module.zeros.any()


def test_skip_init_is_local_to_its_thread():
    entered, drawn = threading.Event(), threading.Event()
    results = {}

    def other():
        entered.wait(30)
        results["weight"] = nn.Linear(64, 64).weight.detach().clone()
        drawn.set()

    thread = threading.Thread(target=other)
    thread.start()
    parameter = nn.Parameter(torch.zeros(100))
    with skip_init():
        entered.set()
        assert drawn.wait(30)
        nn.init.normal_(parameter)
    thread.join()
    assert 0.05 < results["weight"].std() < 0.1  # uniform within 1/8: 0.072
    assert not parameter.any()
    nn.init.normal_(parameter)
    assert parameter.any()


def test_threads_build_and_load_side_by_side(tmp_path):
    path = tmp_path / "tied.nemo"
    expected = random_state(5)
    save_archive(path, {}, expected)
    failures = []

    def restore():
        for _ in range(5):
            module = build_and_load(Tied, load_state_dict(path))
            if not all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items()):
                failures.append(threading.current_thread().name)

    threads = [threading.Thread(target=restore) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_module_restored_and_saved_after_its_file_was_deleted_is_the_same(tmp_path, large_file):
    restored = tmp_path / "again.nemo"
    copied = shutil.copy(large_file, tmp_path / "copy.nemo")
    state = load_state_dict(copied)
    (tmp_path / "copy.nemo").unlink()
    save_archive(restored, {"a": 1}, state)
    assert restored.read_bytes() == large_file.read_bytes()


def test_training_on_mapped_weights_changes_the_module_and_not_the_file(tmp_path):
    path = tmp_path / "m.nemo"
    torch.manual_seed(0)
    save_archive(path, {}, nn.Linear(600, 600).state_dict())
    before = path.read_bytes()
    module = build_and_load(lambda: nn.Linear(600, 600), load_state_dict(path))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    start = module.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(1, 600)).pow(2).sum().backward()
        optimizer.step()
    assert (module.weight.detach() - start).abs().max() > 0.01
    assert path.read_bytes() == before
