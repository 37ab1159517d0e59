"""The RNN-T losses as operations of torch: registrations, torch.compile, autocast, memory."""

from __future__ import annotations

import pytest
import torch

from nemo_kernels.rnnt_loss import fused, loss, rnnt_loss, rnnt_loss_from_scores, rnnt_loss_fused, scores


@pytest.fixture
def operations(draw_batch):
    """Each operation with arguments: name to (operation, arguments), inputs requiring gradients."""
    logits, targets, *lengths = draw_batch(2, 5, 3, 7, dtype=torch.float32)
    logits.requires_grad_()
    planes = [(logits[..., k].detach() - 3).clone().requires_grad_() for k in (0, 1)]
    generator = torch.Generator().manual_seed(1)
    joint = [torch.randn(s, generator=generator).requires_grad_() for s in ((2, 5, 4), (2, 4, 4), (7, 4), (7,))]
    rules = (6, -1.0, 0.1)
    seed = torch.tensor(5)
    stored = [x.detach() for x in loss.losses_and_occupancies(logits, targets, *lengths, *rules)]
    plain = [x.detach() for x in joint]
    stored_joint = fused.joint_losses(*plain, targets, *lengths, seed, *rules, "tanh", 0.2, 8, True)
    return {
        "loss": (loss.losses_and_occupancies, (logits, targets, *lengths, *rules)),
        "gradient": (
            loss.logits_gradient,
            (torch.ones(2), logits.detach(), *stored[1:], targets, *lengths, *rules),
        ),
        "lattice": (scores.lattice_losses, (*planes, *lengths, 0.1)),
        "fused": (fused.joint_losses, (*joint, targets, *lengths, seed, *rules, "tanh", 0.2, 8, True)),
        "fused without bias": (
            fused.joint_losses,
            (*joint[:3], None, targets, *lengths, seed, *rules, "relu", 0.0, None, True),
        ),
        "fused gradients": (
            fused.joint_gradients,
            (torch.ones(2), *plain, *stored_joint[1:], targets, *lengths, seed, *rules, "tanh", 0.2, 8),
        ),
    }


@pytest.mark.parametrize("name", ["loss", "gradient", "lattice", "fused", "fused without bias", "fused gradients"])
def test_operation_passes_all_of_torchs_checks(operations, name):
    operation, arguments = operations[name]
    results = torch.library.opcheck(operation, arguments)
    assert len(results) == 4
    assert set(results.values()) == {"SUCCESS"}


def compiled_and_eager(function, inputs):
    """Value and gradients of both, by torch.compile without a break in the graph."""
    results = []
    for call in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        torch.manual_seed(0)
        value = call(*leaves)
        value.backward()
        results.append((value.detach(), [x.grad for x in leaves]))
    return results


@pytest.mark.parametrize("inplace", [False, True])
def test_rnnt_loss_compiles_without_a_break(draw_batch, inplace):
    logits, *arguments = draw_batch(2, 6, 3, 9, dtype=torch.float32)

    def function(x):
        options = {"fastemit_lambda": 0.1, "clamp": 0.5, "reduction": "mean_volume", "inplace": inplace}
        return rnnt_loss(x.sin(), *arguments, **options)

    compiled, eager = compiled_and_eager(function, [logits])
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_rnnt_loss_from_scores_compiles_without_a_break(draw_batch):
    logits, _, *lengths = draw_batch(2, 6, 3, 9, dtype=torch.float32)

    def function(x):
        log_p = x.log_softmax(-1)
        return rnnt_loss_from_scores(log_p[..., 8], log_p[..., 2], *lengths)

    compiled, eager = compiled_and_eager(function, [logits])
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_rnnt_loss_fused_compiles_without_a_break(draw_batch):
    _, *arguments = draw_batch(2, 6, 3, 9)
    inputs = [torch.randn(shape) for shape in ((2, 6, 4), (2, 4, 4), (9, 4), (9,))]

    def function(*joint):
        return rnnt_loss_fused(*joint, *arguments, activation="tanh", max_rows=6)

    compiled, eager = compiled_and_eager(function, inputs)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_rnnt_loss_fused_with_dropout_and_autocast_compiles_without_a_break(draw_batch):
    _, *arguments = draw_batch(2, 6, 3, 9)
    inputs = [torch.randn(shape) for shape in ((2, 6, 4), (2, 4, 4), (9, 4), (9,))]

    def function(*joint):
        with torch.autocast("cpu", torch.bfloat16):
            return rnnt_loss_fused(*joint, *arguments, dropout_p=0.3)

    (value, gradients), _ = compiled_and_eager(function, inputs)
    assert value.isfinite()
    assert all(x.isfinite().all() and x.abs().max() > 0 for x in gradients)


def test_a_wrong_length_is_an_error_in_a_compiled_function_as_well(draw_batch):
    logits, targets, logit_len, target_len = draw_batch(2, 6, 3, 9, dtype=torch.float32)
    function = torch.compile(lambda x, n: rnnt_loss(x, targets, n, target_len), fullgraph=True, backend="aot_eager")
    assert function(logits, logit_len).isfinite()
    with pytest.raises(ValueError, match="logit_lengths: 7 must lie between 1 and 6"):
        function(logits, torch.tensor([6, 7]))


def test_under_autocast_half_logits_give_a_float32_loss(draw_batch):
    logits, *arguments = draw_batch(2, 6, 3, 9, dtype=torch.float32)
    leaf = logits.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made = leaf @ torch.eye(9)
        value = rnnt_loss(made, *arguments)
        value.backward()
    assert made.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), rnnt_loss(logits.bfloat16(), *arguments))
    assert leaf.grad.isfinite().all()


def test_of_the_logits_only_themselves_are_saved_and_one_gradient_is_made(draw_batch):
    logits, *arguments = draw_batch(2, 60, 20, 256, dtype=torch.float32)
    logits.requires_grad_()
    size = logits.numel() * 4

    def allocated(function):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            function()
        return [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage >= size // 2]

    assert allocated(lambda: torch.autograd.grad(rnnt_loss(logits, *arguments), logits)) == [size]
    made = logits.detach().clone().requires_grad_()
    assert allocated(lambda: torch.autograd.grad(rnnt_loss(made, *arguments, inplace=True), made)) == []
