"""Attention with relative positions: against the textbook in float64, its derivatives, its memory, torch's compilers.

B batch, H heads, T queries, S keys, K head width
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_kernels.attention import RelativePosition, attention, function, tiles
from nemo_kernels.attention.key_ranges import KeyRanges
from nemo_kernels.attention.operation import relative_attention
from nemo_kernels.attention.reference import reference_attention

# B, H, T, S, K, and what is seen
CASES = {
    "one frame": (2, 2, 1, 1, 4, {}),
    "two frames": (1, 1, 2, 2, 3, {}),
    "full": (2, 3, 37, 37, 5, {}),
    "ragged": (3, 2, 41, 41, 8, {"query_len": [41, 17, 1], "key_len": [41, 17, 1]}),
    "window": (2, 2, 53, 53, 4, {"window": (7, 3), "query_len": [53, 29], "key_len": [53, 29]}),
    "causal": (1, 2, 33, 33, 6, {"window": (-1, 0)}),
    "no future beyond one": (1, 2, 33, 33, 6, {"window": (-1, 1)}),
    "chunks": (2, 2, 46, 46, 4, {"window": (8, 0), "chunk": 4, "query_len": [46, 31], "key_len": [46, 31]}),
    "chunks that look ahead": (1, 2, 46, 46, 4, {"window": (5, 2), "chunk": 3}),
    "cache": (2, 2, 9, 30, 4, {}),
    "one query, a cache": (2, 2, 1, 13, 4, {"key_start": [12, 5], "key_len": [13, 13]}),
    "cache of which items have a part": (
        3, 2, 8, 20, 4,
        {"window": (12, 0), "chunk": 4, "key_start": [0, 4, 12], "key_len": [20, 20, 17], "query_len": [8, 8, 5]},
    ),
    "items without anything": (3, 2, 19, 19, 4, {"query_len": [0, 19, 7], "key_len": [19, 0, 7]}),
}  # fmt: skip


@pytest.fixture(params=["matrix", "tiles", "small tiles"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All scores at once, in tiles, and in tiles whose borders are everywhere."""
    first = 10**9 if request.param == "matrix" else 0
    monkeypatch.setattr(function, "TILED_FROM_KEYS", {"learning": first, "inference": first})
    if request.param == "small tiles":
        for name, value in (("ROWS", 7), ("ROWS_OF_WINDOW", 5), ("WINDOW", 16), ("ELEMENTS", 150)):
            monkeypatch.setattr(tiles, name, value)
    return str(request.param)


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "TILED_FROM_KEYS", {"learning": 0, "inference": 0})


def problem(B: int, H: int, T: int, S: int, K: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """query, key, value, embedding and biases, to learn."""
    random = torch.Generator().manual_seed(B + H + T + S + K)
    shapes = [(B, H, T, K), (B, H, S, K), (B, H, S, K), (H, 2 * S - 1, K), (H, K), (H, K)]
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def seen_by(seen: dict[str, object]) -> dict[str, object]:
    return {name: torch.tensor(value) if isinstance(value, list) else value for name, value in seen.items()}


def ours(tensors: list[Tensor], **options: object) -> Tensor:
    query, key, value, *position = tensors
    return attention(query, key, value, position=RelativePosition(*position), **options)


def expected(tensors: list[Tensor], **seen: object) -> Tensor:
    query, key, value, *position = tensors
    ranges = KeyRanges.of(query.size(2), key.size(2), query.device, **seen)
    return reference_attention(query, key, value, ranges, RelativePosition(*position))


@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_the_textbooks(case, implementation):
    *shape, seen = CASES[case]
    tensors, seen = problem(*shape), seen_by(seen)
    found, wanted = ours(tensors, **seen), expected(tensors, **seen)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    upstream = torch.randn_like(wanted)
    for name, ours_, theirs in zip(
        ("query", "key", "value", "embedding", "u", "v"),
        torch.autograd.grad(found, tensors, upstream),
        torch.autograd.grad(wanted, tensors, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours_, theirs, atol=1e-12, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_what_a_window_sees_is_its_definition():
    T, S = 10, 17
    ranges = KeyRanges.of(
        T,
        S,
        torch.device("cpu"),
        window=(6, 1),
        chunk=3,
        key_start=torch.tensor([0, 5]),
        key_len=torch.tensor([17, 16]),
    )
    seen = ranges.seen(S)
    for item, (start, length) in enumerate([(0, 17), (5, 16)]):
        for i in range(T):
            begin = (i + S - T) // 3 * 3
            for j in range(S):
                assert seen[item, 0, i, j] == (max(start, begin - 6) <= j < min(length, begin + 3 + 1))


def test_the_embedding_may_hold_the_distances_of_the_window_alone(implementation):
    T, left, right = 40, 6, 3
    tensors = problem(2, 2, T, T, 4)
    query, key, value, embedding, u, v = tensors
    short = embedding[:, T - 1 - left : T + right]
    found = attention(query, key, value, position=RelativePosition(short, u, v, furthest=left), window=(left, right))
    wanted = expected(tensors, window=(left, right))
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    for mine, theirs in zip(
        torch.autograd.grad(found, tensors, upstream), torch.autograd.grad(wanted, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_padding_gives_zero_and_gets_exactly_zero_gradient(implementation):
    tensors = problem(2, 2, 21, 21, 4)
    length = torch.tensor([21, 8])
    found = ours(tensors, query_len=length, key_len=length)
    assert not found[1, :, 8:].any()
    for gradient in torch.autograd.grad(found, tensors[:3], torch.randn_like(found)):
        assert not gradient[1, :, 8:].any()
        assert gradient[1, :, :8].any()


def test_the_scale_is_the_callers(implementation):
    tensors = problem(1, 2, 9, 9, 4)
    query, key, value, *position = tensors
    scaled = [query * 3.0, key, value, position[0], position[1] * 3.0, position[2] * 3.0]
    torch.testing.assert_close(ours(tensors, scale=1.5), ours(scaled, scale=0.5))


def test_scores_far_from_zero_lose_nothing(implementation):
    tensors = [tensor * 30 for tensor in problem(1, 2, 40, 40, 8)]
    torch.testing.assert_close(ours(tensors), expected(tensors))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_gradients_are_finite_differences(dropout_p):
    tensors = problem(2, 2, 5, 8, 3)

    def with_the_same_mask(*inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        return ours(list(inputs), window=(4, 1), key_len=torch.tensor([8, 6]), dropout_p=dropout_p)

    assert torch.autograd.gradcheck(with_the_same_mask, tensors)


@pytest.mark.parametrize(("dropout_p", "bytes_of_dropout"), [(0.0, 0), (0.5, 4 + 1)])
def test_all_scores_at_once_keep_the_rows_of_positions_once_for_a_batch_and_a_byte_for_dropout(
    dropout_p, bytes_of_dropout
):
    B, H, T, K = 5, 2, 40, 8
    tensors = [tensor.detach().float().requires_grad_() for tensor in problem(B, H, T, T, K)]
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ours(tensors, dropout_p=dropout_p)
    rows = 4 * H * (2 * T - 1) * K
    queries_keys_and_values = 4 * 4 * B * H * T * K
    weights = (4 + bytes_of_dropout) * B * H * T * T
    masks = T + B * T
    assert sum(map(len, kept.values())) <= rows + queries_keys_and_values + weights + masks


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dropout_p", [0.1, 0.5])
def test_dropout_drops_as_often_as_it_says_and_repeats_with_torchs_seed(dropout_p):
    T = 300
    query, key, _, *position = problem(1, 1, T, T, 4)
    value = torch.eye(T, dtype=torch.float64)[None, None]  # what is gathered are the weights
    query, key = query.expand(1, 1, T, 4), key.expand(1, 1, T, 4)
    wide = [torch.cat([tensor, tensor.new_zeros(*tensor.shape[:-1], T - 4)], -1) for tensor in (query, key, *position)]

    def weights(p: float) -> Tensor:
        torch.manual_seed(5)
        return attention(wide[0], wide[1], value, position=RelativePosition(*wide[2:]), dropout_p=p)

    full, dropped = weights(0.0), weights(dropout_p)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept] * (1 - dropout_p), full[kept], rtol=1e-4, atol=0)
    assert kept.double().mean().item() == pytest.approx(1 - dropout_p, abs=4 * math.sqrt(0.25 / T**2))
    for axis in (2, 3):  # no query and no key is dropped as a whole
        assert kept.double().mean(axis).sub(1 - dropout_p).abs().max() < 6 * math.sqrt(0.25 / T)
    assert torch.equal(dropped, weights(dropout_p))
    torch.manual_seed(6)
    assert not torch.equal(
        dropped, attention(wide[0], wide[1], value, position=RelativePosition(*wide[2:]), dropout_p=0.5)
    )


def test_what_is_kept_for_the_backward_grows_with_the_length_and_not_its_square():
    def kept(T: int) -> int:
        query, key, value, *position = problem(1, 2, T, T, 16, torch.float32)
        sizes = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = attention(query, key, value, position=RelativePosition(*position), window=(-1, 50))
        assert result.requires_grad
        return sum(sizes.values())

    sizes = [kept(T) for T in (500, 1000, 2000)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=1e-3)
    assert sizes[2] < 2.001 * sizes[1] < 4.002 * sizes[0]
    assert sizes[2] < 2000 * 2000 * 2 * 4 / 8  # one matrix of scores is 32 MB


def test_keys_that_are_not_seen_are_not_touched():
    def touched(T: int, **seen: object) -> int:
        first, last = KeyRanges.of(T, T, torch.device("cpu"), **seen).for_each_query(1, T)
        return sum(
            tile.n_queries * tile.n_keys * (tile.heads.stop - tile.heads.start)
            for tile in tiles.tiles(first, last, 4, T)
        )

    everything = touched(2000)
    assert everything == 4 * 2000 * 2000
    assert touched(2000, window=(64, 64)) < 0.1 * everything
    assert touched(2000, window=(-1, 0)) < 0.55 * everything
    assert touched(2000, window=(70, 0), chunk=14) < 0.1 * everything
    length = torch.tensor([1000])
    assert touched(2000, query_len=length, key_len=length) == everything // 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(dtype, implementation):
    tensors = problem(2, 2, 60, 60, 16, dtype)
    found = ours(tensors)
    wanted = expected([tensor.detach().double().requires_grad_() for tensor in tensors])
    assert found.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, atol=step, rtol=step)
    for gradient, tensor in zip(torch.autograd.grad(found.sum(), tensors), tensors, strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == tensor.shape


def test_autocast_takes_biases_in_float32(implementation):
    tensors = problem(1, 2, 30, 30, 16, torch.float32)
    wanted = ours(tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours([*(tensor.bfloat16() for tensor in tensors[:4]), *tensors[4:]])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)


def test_strides_do_not_matter(implementation):
    tensors = problem(2, 3, 20, 20, 6)
    wanted = ours(tensors)
    strided = [torch.stack([tensor, tensor * 0], -1)[..., 0] for tensor in tensors]
    strided[0] = tensors[0].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    strided[1] = tensors[1][:1, :1].expand_as(tensors[1])
    plain = [*strided[:1], strided[1].contiguous(), *strided[2:]]
    assert not strided[3].is_contiguous()
    torch.testing.assert_close(ours([strided[0], tensors[1], *strided[2:]]), wanted)
    torch.testing.assert_close(ours(strided), ours(plain))
    gradient = torch.autograd.grad(ours(strided).transpose(2, 3).flatten().cumsum(0).sum(), tensors[0])[0]
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("tiled")
def test_torch_checks_the_operation():
    query, key, value, *position = problem(2, 2, 6, 9, 4, torch.float32)
    first, last = KeyRanges.of(6, 9, query.device, window=(3, 1)).for_each_query(2, 6)
    for dropout_p in (0.0, 0.3):
        arguments = (query, key, value, *position, first, last, torch.tensor(3), 5, 0.5, dropout_p)
        torch.library.opcheck(relative_attention, arguments)


@pytest.mark.usefixtures("tiled")
def test_a_compiled_graph_is_whole_and_gives_the_same():
    tensors = problem(2, 2, 12, 12, 4, torch.float32)
    length = torch.tensor([12, 7])

    def loss(*inputs: Tensor) -> Tensor:
        return ours(list(inputs), query_len=length, key_len=length, window=(4, 2)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), loss(*tensors))
    for found, wanted in zip(
        torch.autograd.grad(compiled(*tensors), tensors), torch.autograd.grad(loss(*tensors), tensors), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (3, 2)])
@pytest.mark.parametrize("T", [1, 9])
def test_without_positions_it_is_torchs(T, window):
    query, key, value, *_ = problem(3, 2, T, 9, 4)
    length = torch.tensor([9, 4, 9])
    found = attention(query, key, value, key_len=length, window=window)
    seen = KeyRanges.of(T, 9, query.device, key_len=length, window=window).seen(9).expand(3, 1, T, 9)
    wanted = scaled_dot_product_attention(query, key, value, seen)
    sees = seen.any(3, keepdim=True)
    torch.testing.assert_close(found, torch.where(sees, wanted, 0.0))
    for gradient in torch.autograd.grad(found.sum(), (query, key, value)):
        assert gradient.isfinite().all()


def test_queries_may_be_more_than_the_keys_where_neither_has_a_position():
    query, key, value, *_ = problem(2, 2, 9, 9, 4)
    found = attention(query, key[:, :, :3], value[:, :, :3])
    torch.testing.assert_close(found, scaled_dot_product_attention(query, key[:, :, :3], value[:, :, :3]))


WRONG = {
    "query: shape \\(2, 9, 4\\) is not": lambda q, k, v, p: {"query": q[:, 0]},
    "key: shape \\(2, 1, 9, 4\\) does not fit the query's": lambda q, k, v, p: {"key": k[:, :1], "value": v[:, :1]},
    "value: shape \\(2, 2, 8, 4\\) is not that of key": lambda q, k, v, p: {"value": v[:, :, 1:]},
    "key: torch.float64 on cpu is not of query's": lambda q, k, v, p: {"key": k.double()},
    "query: torch.int64 on cpu is not of": lambda q, k, v, p: {"query": q.long()},
    "key: 5 keys are fewer than the 9 queries": lambda q, k, v, p: {"key": k[:, :, :5], "value": v[:, :, :5]},
    "key_len: torch.int64 of shape \\(3,\\) is not integers": lambda q, k, v, p: {"key_len": torch.ones(3).long()},
    "query_len: torch.float32 of shape \\(2,\\) is not integers": lambda q, k, v, p: {"query_len": torch.ones(2)},
    "window: \\(-2, 1\\) is not \\(left, right\\)": lambda q, k, v, p: {"window": (-2, 1)},
    "chunk: 0 is less than 1": lambda q, k, v, p: {"chunk": 0},
    "dropout_p: 1.0 is not in \\[0, 1\\)": lambda q, k, v, p: {"dropout_p": 1.0},
    "position.embedding: shape \\(2, 17, 3\\) is not \\(2, P, 4\\)": lambda q, k, v, p: {
        "position": p._replace(embedding=p.embedding[..., :3])
    },
    "position.content_bias: shape \\(1, 4\\) is not \\(2, 4\\)": lambda q, k, v, p: {
        "position": p._replace(content_bias=p.content_bias[:1])
    },
    "position.embedding: 9 rows from distance 8 on do not hold all from 8 to -8": lambda q, k, v, p: {
        "position": p._replace(embedding=p.embedding[:, :9])
    },
    "rows from distance 2 on do not hold all from 3 to -1": lambda q, k, v, p: {
        "position": p._replace(furthest=2), "window": (3, 1)
    },
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_argument_is_named(message):
    query, key, value, *position = problem(2, 2, 9, 9, 4, torch.float32)
    arguments = {"query": query, "key": key, "value": value, "position": RelativePosition(*position)}
    with pytest.raises(ValueError, match=message):
        attention(**{**arguments, **WRONG[message](query, key, value, arguments["position"])})


def test_inference_does_without_torchs_compiler():
    program = """
import sys, torch
from nemo_kernels.attention import RelativePosition, attention
frames = torch.randn(1, 1, 600, 4)
position = RelativePosition(torch.randn(1, 1199, 4), torch.randn(1, 4), torch.randn(1, 4))
print(attention(frames, frames, frames, position=position).isfinite().all().item(), "torch._dynamo" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]
