"""The table of classes that a config may name: `_target_` and `target` to an object, and back to NVIDIA's spelling.

A config is data from somebody else, so a name in it is looked up, never imported. The table is filled by

- packages, through entry points in the group `nemo.targets`, each a dict of strings
  `{"nemo_asr.modules.ConformerEncoder": ("nemo.collections.asr.modules.ConformerEncoder", ...)}`:
  our importable path to NVIDIA's names, of which the first is the one written into files;
- torch's losses, activations and optimizers, named one by one below;
- `register_targets`, for the classes of whoever writes the program.

Only the path found in the table is imported, and only then.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

from nemo_config.errors import ConfigError, nearest

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "nemo.targets"
T = TypeVar("T", type, Callable[..., Any], Mapping[str, Any])

TORCH_LOSSES = (
    "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss "
    "HuberLoss KLDivLoss L1Loss LinearCrossEntropyLoss MSELoss MarginRankingLoss MultiLabelMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss PoissonNLLLoss SmoothL1Loss SoftMarginLoss TripletMarginLoss "
    "TripletMarginWithDistanceLoss"
).split()
TORCH_ACTIVATIONS = (
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU RReLU "
    "ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold"
).split()
TORCH_OPTIMIZERS = (
    "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam"
).split()


class _Table(NamedTuple):
    path_of: dict[str, str]  # every accepted name -> our importable path
    names_of: dict[str, tuple[str, ...]]  # our importable path -> NVIDIA's names


_registered: dict[str, Any] = {}


def register_targets(*targets: T) -> T:
    """Lets configs name your own classes or functions; usable as a decorator.

    A class is known by its dotted path (`my_project.encoders.MyEncoder`). To give it another name, or several, pass
    a dict `{"dotted.name": object}`. A name registered here wins over the packages' names.

    Returns:
        the first argument.
    """
    for target in targets:
        if isinstance(target, Mapping):
            _registered.update(target)
        else:
            _registered[own_name(target)] = target
    return targets[0]


def own_name(target: Any) -> str:
    """The dotted path under which a class or function was defined."""
    return f"{target.__module__}.{target.__qualname__}"


def resolve_target(name: str, path: str = "") -> Any:
    """The class or function that `name` stands for in the table.

    Args:
        name: our dotted path, one of NVIDIA's, torch's, or a registered one.
        path: where the name stands in the config, for the message.

    Raises:
        ConfigError: the name is not in the table; nothing has been imported or called then.
    """
    found = check_target(name, path)
    return _registered[found] if found in _registered else _load(found, path)


def check_target(name: object, path: str = "") -> str:
    """The key of the table that `name` leads to; raises like `resolve_target`, but imports nothing in any case."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(path, name, "must be the dotted name of a class")
    if name.strip() in _registered:
        return name.strip()
    found = _find(name)
    if found is None:
        raise ConfigError(path, name, "is not among the registered classes" + _advice(name))
    return found


def nvidia_name(target: Any) -> str:
    """NVIDIA's spelling of a class or of a dotted name; the own dotted path where NVIDIA has none."""
    if isinstance(target, str):
        found = None if target.strip() in _registered else _find(target)
        return target if found is None else _canonical(found)
    own = own_name(target)
    for path in _table().names_of:
        if path == own or (path.endswith("." + target.__name__) and _is(path, target)):
            return _canonical(path)
    return own


def _canonical(path: str) -> str:
    names = _table().names_of[path]
    return names[0] if names else path


def _is(path: str, target: Any) -> bool:
    # Only a package that has the class can be the one that names it: no other is imported for the comparison.
    return path.split(".")[0] == target.__module__.split(".")[0] and _load(path, path) is target


def _load(dotted: str, path: str) -> Any:
    module, _, attribute = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise ConfigError(path, dotted, f"is registered, but the installed {module} does not have it") from error


def _find(name: str) -> str | None:
    table = _table()
    for spelling in _spellings(name.strip()):
        if spelling in table.path_of:
            return table.path_of[spelling]
    return _same_class_elsewhere(name.strip(), table)


def _spellings(name: str) -> list[str]:
    """Ways in which configs of several years write one name."""
    if name.startswith("pytorch_lightning."):  # Lightning's package name before 2.0
        return [name, name.replace("pytorch_lightning.", "lightning.pytorch.", 1)]
    return [name]


def _same_class_elsewhere(name: str, table: _Table) -> str | None:
    """NVIDIA moves classes between files: within one collection, the class name decides if only one class has it."""
    start, last = name.split(".")[:3], name.split(".")[-1]
    if len(start) < 3 or start[0] != "nemo":
        return None
    paths = {
        path for alias, path in table.path_of.items() if alias.split(".")[:3] == start and alias.split(".")[-1] == last
    }
    return paths.pop() if len(paths) == 1 else None


def _advice(name: str) -> str:
    near = nearest(name, [*_registered, *_table().path_of])
    mine = "a class of your own needs nemo_config.register_targets"
    return f"; nearest: {near}; {mine}" if near else f"; {mine}"


@cache
def _table() -> _Table:
    table = _Table({}, {})
    for names in (*_torch_names(), *_packages_names()):
        for path, aliases in names.items():
            table.names_of.setdefault(path, aliases)
            for name in (path, *aliases):
                table.path_of.setdefault(name, path)
    return table


def _torch_names() -> list[dict[str, tuple[str, ...]]]:
    return [
        _torch_group("torch.nn", TORCH_LOSSES, lambda name: f"torch.nn.modules.loss.{name}"),
        _torch_group("torch.nn", TORCH_ACTIVATIONS, lambda name: f"torch.nn.modules.activation.{name}"),
        _torch_group("torch.optim", TORCH_OPTIMIZERS, lambda name: f"torch.optim.{name.lower()}.{name}"),
    ]


def _torch_group(module: str, names: list[str], defined_in: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    return {f"{module}.{name}": (f"{module}.{name}", defined_in(name)) for name in names}


def _packages_names() -> list[dict[str, tuple[str, ...]]]:
    import importlib.metadata

    entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    found = []
    for entry_point in sorted(entry_points, key=lambda entry_point: entry_point.name):
        try:
            names = entry_point.load()
        except (ImportError, AttributeError) as error:
            log.warning("the classes of %s cannot be named in configs: %s", entry_point.value, error)
            continue
        found.append({path: tuple(aliases) for path, aliases in names.items()})
    return found
