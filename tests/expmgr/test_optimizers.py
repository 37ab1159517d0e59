"""Optimizers against torch's own or a float64 reference of the paper, and the way from a config to one."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nemo_config import ConfigError
from nemo_expmgr.optim import Adafactor, Adan, Novograd, available_optimizers, build_optimizer, register_optimizer

SHAPES = ((4, 3), (5,), (2, 3, 4))


def weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def gradients(steps):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES] for _ in range(steps)]


def run(section, steps=6, dtype=torch.float64):
    """The parameters after `steps` updates with random gradients."""
    params = [torch.nn.Parameter(weight) for weight in weights(dtype)]
    optimizer = build_optimizer(section, params) if isinstance(section, dict) else section(params)
    for grads in gradients(steps):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.to(dtype)
        optimizer.step()
    return [param.detach() for param in params]


def reference(update, steps=6):
    """The same by a function (w, g, state, step) -> w on one numpy array at a time."""
    found = [weight.numpy() for weight in weights()]
    states = [{} for _ in found]
    for step, grads in enumerate(gradients(steps), start=1):
        found = [update(w, g.numpy(), s, step) for w, g, s in zip(found, grads, states, strict=True)]
    return [torch.from_numpy(np.asarray(w)) for w in found]


def assert_same(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("section", "torchs"),
    [
        (
            {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
        ),
        ({"name": "adam", "lr": 0.1}, lambda p: torch.optim.Adam(p, 0.1)),
        ({"name": "AdamW", "lr": "1e-1", "betas": [0.9, 0.98]}, lambda p: torch.optim.AdamW(p, 0.1, (0.9, 0.98))),
        ({"name": "adadelta", "lr": 0.1, "rho": 0.8}, lambda p: torch.optim.Adadelta(p, 0.1, 0.8)),
        ({"name": "adamax", "lr": 0.1}, lambda p: torch.optim.Adamax(p, 0.1)),
        ({"name": "adagrad", "lr": 0.1}, lambda p: torch.optim.Adagrad(p, 0.1)),
        ({"name": "rmsprop", "lr": 0.1, "alpha": 0.9}, lambda p: torch.optim.RMSprop(p, 0.1, 0.9)),
        ({"name": "rprop", "lr": 0.1}, lambda p: torch.optim.Rprop(p, 0.1)),
        ({"name": "RAdam", "lr": 0.1}, lambda p: torch.optim.RAdam(p, 0.1)),
        ({"lr": 0.1}, lambda p: torch.optim.Adam(p, 0.1)),
        ({"_target_": "torch.optim.AdamW", "lr": "1e-1"}, lambda p: torch.optim.AdamW(p, 0.1)),
    ],
)
def test_names_stand_for_torchs_optimizers(section, torchs):
    assert_same(run({**section, "sched": {"name": "StepLR"}}), run(torchs), tolerance=0)


@pytest.mark.parametrize("grad_averaging", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("luc", [False, True])
def test_novograd_is_the_papers(grad_averaging, amsgrad, luc):
    lr, (beta1, beta2), eps, decay = 0.02, (0.9, 0.6), 1e-8, 0.01

    def update(w, g, state, step):
        norm = np.sum(g * g)
        state["v"] = norm if step == 1 else beta2 * state["v"] + (1 - beta2) * norm
        state["max"] = max(state.get("max", 0), state["v"])
        term = g / (np.sqrt(state["max"] if amsgrad else state["v"]) + eps) + decay * w
        state["m"] = beta1 * state.get("m", 0) + (1 - beta1 if grad_averaging else 1) * term
        bound = 1e-3 * np.linalg.norm(w) / (np.linalg.norm(state["m"]) + 1e-8)
        return w - (min(bound, lr) if luc else lr) * state["m"]

    section = {
        "name": "novograd",
        "lr": lr,
        "betas": [beta1, beta2],
        "weight_decay": decay,
        "grad_averaging": grad_averaging,
        "amsgrad": amsgrad,
        "luc": luc,
    }
    assert_same(run(section), reference(update), tolerance=1e-6)  # the moment of a tensor is kept in float32


@pytest.mark.parametrize("scale_parameter", [False, True])
@pytest.mark.parametrize("relative_step", [False, True])
@pytest.mark.parametrize("beta1", [None, 0.9])
def test_adafactor_is_the_papers(scale_parameter, relative_step, beta1):
    eps1, eps2, lr, decay = 1e-30, 1e-3, 0.02, 0.05

    def rms(x):
        return np.sqrt(np.mean(x * x))

    def update(w, g, state, step):
        rate = min(1e-2, 1 / np.sqrt(step)) if relative_step else lr
        rate *= max(eps2, rms(w)) if scale_parameter else 1
        beta2 = 1 - step**-0.8
        square = g * g + eps1
        if g.ndim == 1:
            state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * square
            second = state["v"]
        else:
            state["r"] = beta2 * state.get("r", 0) + (1 - beta2) * square.mean(-1)
            state["c"] = beta2 * state.get("c", 0) + (1 - beta2) * square.mean(-2)
            rows = state["r"] / state["r"].mean(-1, keepdims=True)
            second = rows[..., None] * state["c"][..., None, :]
        u = g / np.sqrt(second)
        u = rate * u / max(1, rms(u))
        if beta1 is not None:
            state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * u
            u = state["m"]
        return w - decay * rate * w - u

    section = {"name": "adafactor", "weight_decay": decay, "scale_parameter": scale_parameter, "beta1": beta1}
    section |= {} if relative_step else {"lr": lr, "relative_step": False}
    assert_same(run(section), reference(update))


@pytest.mark.parametrize("no_prox", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_adan_is_the_papers(no_prox, foreach):
    lr, (b1, b2, b3), eps, decay = 0.02, (0.9, 0.8, 0.95), 1e-8, 0.1

    def update(w, g, state, step):
        change = g - state.get("g", g)
        state["g"] = g
        state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
        state["v"] = b2 * state.get("v", 0) + (1 - b2) * change
        state["n"] = b3 * state.get("n", 0) + (1 - b3) * (g + b2 * change) ** 2
        denominator = np.sqrt(state["n"] / (1 - b3**step)) + eps
        move = lr * (state["m"] / (1 - b1**step) + b2 * state["v"] / (1 - b2**step)) / denominator
        return w * (1 - lr * decay) - move if no_prox else (w - move) / (1 + lr * decay)

    section = {"name": "adan", "lr": lr, "betas": [b1, b2, b3], "weight_decay": decay}
    assert_same(run({**section, "no_prox": no_prox, "foreach": foreach}), reference(update))


def test_adan_bounds_the_norm_of_all_gradients_together():
    params = [torch.nn.Parameter(weight) for weight in weights()]
    optimizer = Adan(params, lr=0.1, max_grad_norm=1.0)
    scaled = [torch.nn.Parameter(weight) for weight in weights()]
    unbounded = Adan(scaled, lr=0.1)
    for grads in gradients(3):
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        for param, other, grad in zip(params, scaled, grads, strict=True):
            param.grad, other.grad = grad, grad / (norm + 1e-8)
        optimizer.step()
        unbounded.step()
    assert_same([p.detach() for p in params], [p.detach() for p in scaled])


@pytest.mark.parametrize("optimizer", [Novograd, Adafactor, Adan])
def test_a_step_leaves_the_gradient_as_it_was(optimizer):
    param = torch.nn.Parameter(torch.ones(3, 2))
    param.grad = torch.full((3, 2), 5.0)
    optimizer([param]).step()
    assert torch.equal(param.grad, torch.full((3, 2), 5.0))


@pytest.mark.parametrize("name", ["novograd", "adafactor", "adan"])
def test_a_restored_optimizer_goes_on_as_if_never_stopped(name):
    def fresh():
        params = [torch.nn.Parameter(weight) for weight in weights()]
        return params, build_optimizer({"name": name}, params)

    def advance(params, optimizer, steps):
        for grads in steps:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()

    params, optimizer = fresh()
    advance(params, optimizer, gradients(3))
    again, restored = fresh()
    for param, other in zip(again, params, strict=True):
        param.data.copy_(other.data)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(params, optimizer, gradients(2))
    advance(again, restored, gradients(2))
    assert_same([p.detach() for p in again], [p.detach() for p in params], tolerance=1e-7)


def test_adafactor_updates_half_precision_in_float32():
    half = run({"name": "adafactor"}, dtype=torch.bfloat16, steps=1)
    full = run({"name": "adafactor"}, dtype=torch.float32, steps=1)
    assert_same([p.float() for p in half], full, tolerance=2e-2)
    assert half[0].dtype == torch.bfloat16


def test_parameter_groups_and_the_older_layout_are_read():
    param = torch.nn.Parameter(torch.zeros(2))
    section = OmegaConf.create(
        {"name": "novograd", "lr": "1e-2", "args": {"name": "auto", "params": {"betas": [0.8, 0.5]}}}
    )
    group = build_optimizer(section, [{"params": [param], "lr": 0.5}]).param_groups[0]
    assert (group["lr"], group["betas"]) == (0.5, (0.8, 0.5))
    assert build_optimizer({"name": "adamw", "lr": None, "args": "auto"}, [param]).param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adamv"}, r"model\.optim\.name: 'adamv' is no known optimizer; did you mean adam"),
        ({"name": "adamw", "weight_decy": 0.1}, r"model\.optim\.weight_decy: 0\.1 .*model\.optim\.weight_decay"),
        ({"name": "adamw", "lr": "fast"}, r"model\.optim\.lr: 'fast' must be a number"),
        ({"name": "adamw", "lr": "???"}, r"model\.optim\.lr: \?\?\?"),
        ({"name": "adafactor", "lr": 0.1}, r"model\.optim\.lr: 0\.1 and relative_step: true exclude each other"),
        ({"name": "novograd", "betas": [0.9, 1.0]}, r"model\.optim\.betas: \(0\.9, 1\.0\) must be two numbers in"),
        ({"name": "adamw", "lr": -1.0}, r"model\.optim: Invalid learning rate: -1\.0"),
        ({"_target_": "os.system", "lr": 0.1}, r"model\.optim\._target_"),
        ({"_target_": "torch.nn.ReLU"}, r"model\.optim"),
    ],
)
def test_a_mistyped_optimizer_is_an_error_with_path_and_value(section, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(section, [torch.nn.Parameter(torch.zeros(2))])


def test_a_registered_optimizer_is_built_by_its_name_and_no_name_is_taken_twice():
    class Plain(torch.optim.SGD):
        pass

    register_optimizer("Plain", Plain)
    assert isinstance(build_optimizer({"name": "plain", "lr": 0.1}, [torch.nn.Parameter(torch.zeros(2))]), Plain)
    assert "plain" in available_optimizers()
    for taken in ("plain", "adamW"):
        with pytest.raises(ValueError, match="taken"):
            register_optimizer(taken, Plain)
