"""rnnt_loss_fused against torch's own joint followed by rnnt_loss, and the memory that neither may take."""

from __future__ import annotations

import pytest
import torch

from nemo_kernels.rnnt_loss import joint_tiles, rnnt_loss, rnnt_loss_fused

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


@pytest.fixture
def draw_joint(draw_batch):
    """Draws encoder (B, T, D), predictor (B, U + 1, D), weight (V, D), bias (V,), and targets with lengths."""

    def draw(B, T, U, V, D=6, dtype=torch.float64, **options):
        _, *batch = draw_batch(B, T, U, V, **options)
        generator = torch.Generator().manual_seed(1)
        shapes = ((B, T, D), (B, U + 1, D), (V, D), (V,))
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes], batch

    return draw


def plain(joint, batch, activation="relu", **options):
    """The same loss with all logits in memory."""
    encoder, predictor, weight, bias = joint
    hidden = ACTIVATIONS[activation](encoder[:, :, None] + predictor[:, None])
    return rnnt_loss(torch.nn.functional.linear(hidden, weight, bias), *batch, **options)


def with_gradients(function, joint, batch, **options):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in joint]
    losses = function(leaves, batch, **options) if function is plain else function(*leaves, *batch, **options)
    (losses * torch.arange(1, 1 + losses.numel()).view(losses.shape)).sum().backward()
    return losses.detach(), [x.grad for x in leaves if x is not None]


@pytest.mark.parametrize("max_rows", [None, 1, 7, 20])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_loss_and_all_four_gradients_equal_the_unfused(draw_joint, activation, max_rows):
    joint, batch = draw_joint(3, 8, 5, 17)
    options = {"activation": activation, "reduction": "none"}
    expected = with_gradients(plain, joint, batch, **options)
    found = with_gradients(rnnt_loss_fused, joint, batch, max_rows=max_rows, **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1, 0, 2), (2, 1, 3, 5), (2, 6, 0, 7), (5, 9, 6, 29)])
def test_extreme_lattices(draw_joint, shape):
    joint, batch = draw_joint(*shape)
    expected = with_gradients(plain, joint, batch, reduction="none")
    torch.testing.assert_close(
        with_gradients(rnnt_loss_fused, joint, batch, reduction="none", max_rows=10), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("blank", [0, 4, -1])
def test_the_rules_of_the_gradient_are_those_of_rnnt_loss(draw_joint, blank):
    joint, batch = draw_joint(3, 8, 5, 17, blank=blank)
    options = {"blank": blank, "clamp": 0.05, "fastemit_lambda": 0.3, "reduction": "mean_volume"}
    expected = with_gradients(plain, joint, batch, **options)
    found = with_gradients(rnnt_loss_fused, joint, batch, max_rows=13, **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_bias_may_be_missing(draw_joint):
    (encoder, predictor, weight, _), batch = draw_joint(2, 5, 3, 9)
    joint = (encoder, predictor, weight, None)
    expected = with_gradients(plain, joint, batch)
    found = with_gradients(rnnt_loss_fused, joint, batch)
    assert len(found[1]) == 3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_padding_gets_exactly_zero_gradient_whatever_is_in_it(draw_joint):
    joint, batch = draw_joint(4, 9, 6, 29)
    expected = with_gradients(rnnt_loss_fused, joint, batch)
    _, logit_len, target_len = batch
    frames = torch.arange(9) >= logit_len[:, None]
    steps = torch.arange(7) > target_len[:, None]
    assert frames.any()
    assert steps.any()
    joint[0][frames] = float("nan")
    joint[1][steps] = float("inf")
    found = with_gradients(rnnt_loss_fused, joint, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (found[1][0][frames] == 0).all()
    assert (found[1][1][steps] == 0).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_gradcheck_passes_with_dropout(draw_joint, activation):
    joint, batch = draw_joint(2, 3, 2, 4, D=3)

    def loss(*inputs):
        torch.manual_seed(3)
        options = {"activation": activation, "dropout_p": 0.3, "max_rows": 5, "reduction": "none"}
        return rnnt_loss_fused(*inputs, *batch, **options)

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in joint])


def test_dropout_zeroes_its_share_keeps_the_mean_and_differs_between_calls():
    one = torch.ones(1, 50, 400)
    joint = joint_tiles.Joint(one, one[:, :20], torch.ones(3, 400), None, "relu", 0.3, 12345)
    mask, again, other = (torch.empty(50, 20, 400) for _ in range(3))
    joint_tiles._fill_mask(mask, joint, 0)
    joint_tiles._fill_mask(again[7:], joint, 7)
    joint_tiles._fill_mask(other, joint_tiles.Joint(*_with_seed(joint, 99)), 0)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float((mask == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert torch.equal(again[7:], mask[7:])
    assert float((mask == other).float().mean()) == pytest.approx(0.3**2 + 0.7**2, abs=0.01)
    assert float((mask[0] == mask[1]).float().mean()) == pytest.approx(0.3**2 + 0.7**2, abs=0.02)


def _with_seed(joint, seed):
    return joint.encoder, joint.predictor, joint.weight, joint.bias, joint.activation, joint.dropout_p, seed


def test_dropout_follows_torchs_random_state_and_not_the_size_of_the_tiles(draw_joint):
    joint, batch = draw_joint(3, 8, 5, 17)
    results = []
    for seed, max_rows in ((1, None), (1, 6), (1, 17), (2, None)):
        torch.manual_seed(seed)
        results.append(with_gradients(rnnt_loss_fused, joint, batch, dropout_p=0.2, max_rows=max_rows))
    for other in results[1:3]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)
    assert abs(float(results[3][0] - results[0][0])) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(draw_joint, dtype):
    joint, batch = draw_joint(2, 9, 4, 33, dtype=dtype)
    loss, gradients = with_gradients(rnnt_loss_fused, joint, batch)
    exact, exact_gradients = with_gradients(rnnt_loss_fused, [x.float() for x in joint], batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, expected.to(dtype))


def test_autocast_casts_the_inputs_and_not_the_loss(draw_joint):
    joint, batch = draw_joint(2, 9, 4, 33, dtype=torch.float32)
    leaves = [x.clone().requires_grad_() for x in joint]
    with torch.autocast("cpu", torch.bfloat16):
        loss = rnnt_loss_fused(*leaves, *batch)
        loss.backward()
    exact, gradients = with_gradients(rnnt_loss_fused, [x.bfloat16() for x in joint], batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss.detach(), exact)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert leaf.grad.dtype == torch.float32
        assert torch.equal(leaf.grad, gradient.float())


def test_a_kept_graph_can_be_gone_through_twice(draw_joint):
    joint, batch = draw_joint(2, 5, 3, 9)
    leaves = [x.requires_grad_() for x in joint]
    loss = rnnt_loss_fused(*leaves, *batch, dropout_p=0.5)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True))


def largest_allocation(function):
    """Bytes of the largest allocation of any operation in a call, those inside of custom operations among them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    return max(event.self_cpu_memory_usage for event in profile.events())


def test_no_tensor_of_a_quarter_of_the_logits_is_ever_made(draw_joint):
    B, T, U, V = 4, 60, 20, 256
    joint, batch = draw_joint(B, T, U, V, D=32, dtype=torch.float32)
    logits = B * T * (U + 1) * V * 4
    leaves = [x.requires_grad_() for x in joint]
    fused = largest_allocation(lambda: rnnt_loss_fused(*leaves, *batch, max_rows=512).backward())
    assert 512 * V * 4 <= fused < logits // 4
    default = largest_allocation(lambda: rnnt_loss_fused(*leaves, *batch).backward())
    assert joint_tiles.ROWS * V * 4 <= default < logits // 4
    assert largest_allocation(lambda: plain(leaves, batch).backward()) >= logits  # the same watch sees the unfused


def test_what_is_saved_for_backward_does_not_grow_with_the_vocabulary(draw_joint):
    saved = {}
    for V in (64, 512):
        joint, batch = draw_joint(2, 20, 6, V, dtype=torch.float32)
        kept = {}
        watch = torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.setdefault(x.data_ptr(), x), id)
        with watch:
            rnnt_loss_fused(*[x.requires_grad_() for x in joint], *batch)
        own = {id(x) for x in joint}
        saved[V] = sum(x.numel() for x in kept.values() if id(x) not in own and x.shape != joint[2].shape)
    assert saved[512] == saved[64] > 3 * 2 * 20 * 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_out": torch.zeros(2, 4)}, r"encoder_out: torch.float32 of shape \(2, 4\) must be floating"),
        ({"predictor_out": torch.zeros(2, 3, 7)}, r"predictor_out: shape \(2, 3, 7\) must be \(B, U \+ 1, D\)"),
        ({"predictor_out": torch.zeros(3, 3, 6)}, "with B 2 and D 6"),
        ({"weight": torch.zeros(5, 7)}, r"weight: shape \(5, 7\) must be \(V, D\) with D 6"),
        ({"bias": torch.zeros(6)}, r"bias: shape \(6,\) must be \(V,\) with V 5"),
        ({"weight": torch.zeros(5, 6).double()}, "weight: torch.float64 must be encoder_out's type, torch.float32"),
        ({"targets": torch.full((2, 2), 5)}, "targets: 5 is not a token of a vocabulary of 5"),
        ({"logit_lengths": torch.tensor([4, 5])}, "logit_lengths: 5 must lie between 1 and 4"),
        ({"activation": "gelu"}, "activation: 'gelu' must be one of relu, tanh, sigmoid"),
        ({"dropout_p": 1.5}, "dropout_p: 1.5 must lie between 0 and 1"),
        ({"max_rows": 0}, "max_rows: 0 must be positive"),
        ({"blank": 7}, "blank: 7 is not an index into a vocabulary of 5"),
        ({"reduction": "all"}, "reduction: 'all' must be one of"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_the_rule(change, message):
    arguments = {
        "encoder_out": torch.zeros(2, 4, 6),
        "predictor_out": torch.zeros(2, 3, 6),
        "weight": torch.zeros(5, 6),
        "bias": torch.zeros(5),
        "targets": torch.zeros(2, 2, dtype=torch.int64),
        "logit_lengths": torch.tensor([4, 3]),
        "target_lengths": torch.tensor([2, 1]),
    }
    with pytest.raises(ValueError, match=message):
        rnnt_loss_fused(**{**arguments, **change})
