"""Arguments of optimizers as dataclasses: `NovogradParams` for the optimizer `novograd`.

Where a value is not given the optimizer's own default holds in NVIDIA's toolkit and here.
"""

from dataclasses import dataclass

from nemo_config.errors import MISSING


@dataclass
class OptimizerParams:
    """What every optimizer takes."""

    lr: float | None = MISSING  # type: ignore[assignment]  # `???` until it is given


@dataclass
class SGDParams(OptimizerParams):
    """torch.optim.SGD."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


@dataclass
class AdamParams(OptimizerParams):
    """torch.optim.Adam."""

    eps: float = 1e-08
    weight_decay: float = 0.0
    amsgrad: bool = False


@dataclass
class AdamWParams(OptimizerParams):
    """torch.optim.AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-08
    weight_decay: float = 0.0
    amsgrad: bool = False


@dataclass
class AdadeltaParams(OptimizerParams):
    """torch.optim.Adadelta."""

    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0


@dataclass
class AdamaxParams(OptimizerParams):
    """torch.optim.Adamax."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass
class AdagradParams(OptimizerParams):
    """torch.optim.Adagrad."""

    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10


@dataclass
class RMSpropParams(OptimizerParams):
    """torch.optim.RMSprop."""

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False


@dataclass
class RpropParams(OptimizerParams):
    """torch.optim.Rprop."""

    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50)


@dataclass
class NovogradParams(OptimizerParams):
    """nemo_expmgr's Novograd."""

    betas: tuple[float, float] = (0.95, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_averaging: bool = False
    amsgrad: bool = False
    luc: bool = False
    luc_trust: float = 1e-3
    luc_eps: float = 1e-8
