"""linear(dropout(silu(h))) that keeps only h and bytes: torch's own operations are the oracle, gradcheck the other."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from nemo_asr.modules.conformer import ConformerEncoder
from nemo_asr.modules.conformer.activated_linear import activated_linear
from nemo_asr.modules.conformer.byte_dropout import ByteDropout
from nemo_asr.modules.conformer.convolution import ConformerConvolution
from nemo_asr.modules.conformer.layer import ConformerFeedForward


def plain(hidden, weight, bias, dropout_p=0.0):
    return F.linear(F.dropout(F.silu(hidden), dropout_p), weight, bias)


def tensors(*shape, width=5, dtype=torch.float32):
    draw = torch.Generator().manual_seed(3)
    shapes = (shape, (width, shape[-1]), (width,))
    return [torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes]


def seeded(function, dropout_p):
    def run(*inputs):
        torch.manual_seed(7)
        return function(*inputs, dropout_p)

    return run


def learned(function, inputs, dropout_p, *, autocast=False):
    """The output and the gradients of a loss that weighs every element differently."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = seeded(function, dropout_p)(*inputs)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    given = [x for x in inputs if x is not None and x.requires_grad]
    return output, torch.autograd.grad((output * weights).sum(), given)


def kept_by(function, parameters=()):
    """Output and bytes of the distinct storages that autograd keeps, without those of the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function()
    return output, sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("dropout_p", "bias"), product((0.0, 0.3), (True, False)))
def test_gradients_of_both_orders_and_modes_pass_gradcheck(dropout_p, bias):
    inputs = tensors(2, 3, 4, dtype=torch.float64)
    inputs = inputs if bias else [*inputs[:2], None]
    function = seeded(activated_linear, dropout_p)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(8,), (7, 8), (2, 9, 64), (2, 3, 4, 8)])
def test_output_and_draws_are_those_of_torch_bit_for_bit(shape, dropout_p):
    inputs = tensors(*shape)
    expected, expected_grads = learned(plain, inputs, dropout_p)
    output, grads = learned(activated_linear, inputs, dropout_p)
    assert torch.equal(output, expected)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))
    with torch.no_grad():
        assert torch.equal(seeded(activated_linear, dropout_p)(*inputs), expected)


@pytest.mark.parametrize("frozen", product((False, True), repeat=3))
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen):
    inputs = tensors(2, 9, 16)
    for x, is_frozen in zip(inputs, frozen, strict=True):
        x.requires_grad_(not is_frozen)
    if all(frozen):
        assert not activated_linear(*inputs).requires_grad
        return
    for ours, theirs in zip(*(learned(f, inputs, 0.2)[1] for f in (activated_linear, plain)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_autocast_computes_in_bfloat16_as_torch_does(dropout_p):
    hidden, *parameters = tensors(2, 9, 64)
    hidden = hidden.detach().bfloat16().requires_grad_()  # what a linear map before gives, under autocast
    results = []
    for function in (plain, activated_linear):
        results.append(learned(function, [hidden, *parameters], dropout_p, autocast=True))
        assert results[-1][0].dtype == torch.bfloat16
    (expected, expected_grads), (output, grads) = results
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_leaves_float32_and_float64_inputs_to_torch(dtype):
    inputs = tensors(2, 9, 64, dtype=dtype)
    results = [learned(function, inputs, 0.2, autocast=True) for function in (plain, activated_linear)]
    for expected, ours in zip(*([output, *grads] for output, grads in results), strict=True):
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)


class CodedWeight(torch.Tensor):
    """A weight that has its own way to be multiplied, as quantised ones have."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        output = super().__torch_function__(function, types, args, kwargs or {})
        return output.as_subclass(torch.Tensor) * 100 if function is F.linear else output


def test_a_weight_of_another_class_is_multiplied_in_its_own_way():
    hidden, weight, bias = tensors(2, 3, 4)
    coded = nn.Parameter(weight.detach().as_subclass(CodedWeight))
    (expected, expected_grads), (output, grads) = (
        learned(function, [hidden, matrix, bias], 0.2)
        for function, matrix in ((plain, weight), (activated_linear, coded))
    )
    torch.testing.assert_close(output, 100 * expected)
    torch.testing.assert_close(grads[0], 100 * expected_grads[0])


def test_function_transforms_give_what_torchs_operations_give():
    hidden, weight, bias = (x.detach() for x in tensors(3, 6))

    def transformed(function):
        def loss(hidden, weight, bias):
            return function(hidden, weight, bias).square().sum()

        return (
            grad(loss, argnums=(0, 1, 2))(hidden, weight, bias),
            vmap(grad(loss, argnums=1), in_dims=(0, None, None))(hidden, weight, bias),
            jvp(loss, (hidden, weight, bias), (hidden.cos(), weight.sin(), bias.cos())),
            jvp(lambda hidden: loss(hidden, weight, bias), (hidden,), (hidden.cos(),)),
            hessian(loss, argnums=(0, 1))(hidden, weight, bias),
        )

    torch.testing.assert_close(transformed(activated_linear), transformed(plain))


def test_function_transforms_of_the_module_draw_masks():
    module = ConformerFeedForward(4, 8, 0.5)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    x = torch.ones(64, 3, 4)

    def loss(parameters, x):
        return functional_call(module, parameters, (x,)).sum()

    each = vmap(grad(loss), in_dims=(None, 0), randomness="different")(parameters, x)["linear2.weight"]
    assert len(each.flatten(1).unique(dim=0)) > 32  # equal items, other masks


def test_compilers_and_exporters_see_torchs_own_operations():
    module = ConformerFeedForward(4, 8, 0.0)
    x = torch.randn(2, 3, 4, requires_grad=True)
    expected = module(x)
    compiled = torch.compile(module, backend="eager", fullgraph=True)(x)
    assert torch.equal(compiled, expected)
    assert "ActivatedLinear" in type(expected.grad_fn).__name__
    assert "ActivatedLinear" not in type(compiled.grad_fn).__name__
    exported = torch.export.export(module, (x,))
    assert "silu" in str(exported.graph)
    assert torch.equal(exported.module()(x), expected)
    assert "aten::silu" in str(torch.jit.trace(module, (x,)).inlined_graph)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_keeps_the_input_alone_and_repeats_the_draws(reentrant):
    module = ConformerFeedForward(16, 64, 0.3)
    x = torch.randn(2, 9, 16, requires_grad=True)
    results = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        output, kept = kept_by(lambda run=run: run(x), module.parameters())
        output.square().sum().backward()
        learning = [x, *module.parameters()]
        results.append([output, *(tensor.grad for tensor in learning)])
        for tensor in learning:
            tensor.grad = None
    assert kept <= x.untyped_storage().nbytes()
    for alone, checkpointed in zip(*results, strict=True):
        assert torch.equal(alone, checkpointed)


def test_a_seed_repeats_a_run_and_draws_go_on_without_one():
    module = ConformerFeedForward(16, 64, 0.3)
    x = torch.randn(2, 9, 16)
    torch.manual_seed(1)
    first, second = module(x), module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(module.eval()(x), module.linear2(F.silu(module.linear1(x))))


@pytest.mark.parametrize(("dropout_p", "bytes_of_mask"), [(0.0, 0), (0.1, 1)])
def test_feed_forward_keeps_its_input_the_hidden_and_a_byte_for_dropout(dropout_p, bytes_of_mask):
    module = ConformerFeedForward(16, 64, dropout_p)
    x = torch.randn(2, 9, 16, requires_grad=True)
    _, kept = kept_by(lambda: module(x), module.parameters())
    assert kept == 2 * 9 * (4 * 16 + 4 * 64 + bytes_of_mask * 64)


def test_convolution_keeps_no_result_of_its_last_swish():
    module = ConformerConvolution(16, (2, 2))
    x = torch.randn(2, 9, 16, requires_grad=True)
    padded = torch.zeros(2, 9, dtype=torch.bool)
    _, kept = kept_by(lambda: module(x, padded), [*module.parameters(), *module.buffers()])
    # the inputs of five operations, one of them 2 D wide; the padding; mean and deviation of the batch norm
    assert kept == 2 * 9 * 4 * (5 + 1) * 16 + 2 * 9 + 2 * 4 * 16


def observed(module):
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def test_hooks_and_other_classes_are_called_as_ever():
    x = torch.randn(2, 3, 4)
    for name in ("linear2", "dropout"):
        module = ConformerFeedForward(4, 8, 0.0)
        expected = module(x)
        seen = observed(getattr(module, name))
        assert torch.equal(module(x), expected)
        assert seen == [1]
    quantised = ConformerFeedForward(4, 8, 0.0)
    expected = quantised(x)

    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    quantised.linear2.__class__ = Doubled
    assert torch.equal(quantised(x), 2 * expected)
    parametrised = ConformerFeedForward(4, 8, 0.0)
    parametrizations.weight_norm(parametrised.linear2)
    parametrised(x).sum().backward()
    assert parametrised.linear2.parametrizations.weight.original0.grad is not None
    patched = ConformerFeedForward(4, 8, 0.0)
    patched.linear2.forward = lambda input: input
    assert patched(x).shape == (2, 3, 8)


def test_hooks_on_all_modules_see_the_second_linear_map():
    module, names = ConformerFeedForward(4, 8, 0.0), []
    handle = nn.modules.module.register_module_forward_hook(lambda called, *_: names.append(called))
    try:
        module(torch.randn(2, 3, 4))
    finally:
        handle.remove()
    assert names == [module.linear1, module.dropout, module.linear2, module]


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 1.0])
def test_byte_dropout_is_torchs_bit_for_bit_and_keeps_a_byte_per_element(dropout_p):
    x = torch.randn(5, 7, requires_grad=True)
    results = []
    for module in (nn.Dropout(dropout_p), ByteDropout(dropout_p)):
        torch.manual_seed(2)
        output, kept = kept_by(lambda module=module: module(x))
        results.append((output, *torch.autograd.grad(output.square().sum(), x)))
        assert module.eval()(x) is x
    assert kept == x.numel()
    for theirs, ours in zip(*results, strict=True):
        assert torch.equal(theirs, ours)


def test_byte_dropout_is_torchs_own_on_other_devices_than_a_cpu(monkeypatch):
    monkeypatch.setattr("nemo_asr.modules.conformer.byte_dropout.draw_kept", None)
    assert ByteDropout(0.5)(torch.empty(2, 3, device="meta")).shape == (2, 3)


def test_byte_dropout_is_seen_by_compilers_as_torchs():
    compiled = torch.compile(ByteDropout(0.5), backend="eager", fullgraph=True)
    output = compiled(torch.ones(1000))
    assert sorted(output.unique().tolist()) == [0.0, 2.0]
    assert 400 < int(output.count_nonzero()) < 600


def test_files_hold_the_names_that_they_held():
    encoder = ConformerEncoder(feat_in=8, n_layers=1, d_model=16, subsampling_conv_channels=4)
    names = [name for name in encoder.state_dict() if "feed_forward1" in name]
    assert names == [
        f"layers.0.{part}.{kind}"
        for part in ("norm_feed_forward1", "feed_forward1.linear1", "feed_forward1.linear2")
        for kind in ("weight", "bias")
    ]
