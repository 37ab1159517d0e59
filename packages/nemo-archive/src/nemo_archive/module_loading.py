"""Building a module and filling it, without drawing random weights first and without copying the loaded ones."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nemo_archive.safety import ArchiveError

M = TypeVar("M", bound=nn.Module)
_MOST_NAMES = 10  # of each kind in an error message

# Only what draws random numbers: constants (zeros_, ones_, fill_) cost nothing worth a special case.
_RANDOM_FILLS = frozenset(
    {
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.exponential_,
        Tensor.bernoulli_,
        nn.init.uniform_,
        nn.init.normal_,
        nn.init.kaiming_uniform_,
    }
)
_DATA_OF = Tensor.data.__get__  # type: ignore[attr-defined]


class StateDictError(ArchiveError, RuntimeError):
    """Weights that do not fit the module; a RuntimeError, too, as torch's own load_state_dict raises one."""


class skip_init(TorchFunctionMode):  # noqa: N801 - a context manager, used like torch.no_grad
    """Within it, parameters are not filled with random numbers: their memory stays as it was allocated.

    Only in this thread, and only what draws random numbers in place into an `nn.Parameter` (or its `.data`), as
    `nn.init` and `reset_parameters` do. Buffers and constants are computed as always, and factories such as
    `torch.randn` draw as always. `nn.init.trunc_normal_` and `orthogonal_` compute with what they find, for nothing.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, nn.Parameter) or hasattr(target, "_data_of_parameter"):
                return target
        result = func(*args, **kwargs)
        if func == _DATA_OF and isinstance(args[0], nn.Parameter):
            result._data_of_parameter = True
        return result


@contextlib.contextmanager
def _adopting(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within it, `target.copy_(source)` makes each of these tensors look at the source's memory, where that fits.

    So `load_state_dict` runs as ever, with every hook and override, and each parameter stays the same object: tied
    weights stay tied, an LSTM's list of weights stays right, requires_grad and dtype stay. A memory that another
    tensor has adopted, another dtype, device or layout is copied.
    """
    targets = list({id(tensor): tensor for tensor in tensors}.values())
    adopted: set[int] = set()
    try:
        for target in targets:  # an attribute of the object goes before the method of its class
            target.copy_ = functools.partial(_adopt, adopted, target)  # type: ignore[method-assign]
        yield
    finally:
        for target in targets:
            del target.copy_


def _adopt(adopted: set[int], target: Tensor, source: Any, non_blocking: bool = False) -> Tensor:
    if _same_kind(target, source):
        memory = source.untyped_storage().data_ptr()
        if memory not in adopted:
            adopted.add(memory)
            target.data = source.detach()
            return target
        if target.data_ptr() == source.data_ptr():  # a shared module is loaded once for each of its names
            return target
    return Tensor.copy_(target, source, non_blocking)


def _same_kind(target: Tensor, source: Any) -> bool:
    return (
        isinstance(source, Tensor)
        and source.layout is target.layout is torch.strided
        and source.dtype is target.dtype
        and source.device == target.device
        and source.shape == target.shape
        and source.stride() == target.stride()
        and source.device.type != "meta"
        and source.numel() > 0
    )


def build_and_load(build: Callable[[], M], state_dict: Mapping[str, Any], *, strict: bool = True) -> M:
    """Builds a module and gives it the tensors of a state dict, without copying those that fit as they are.

    The module takes the tensors over: training it changes them, so load a state dict of its own for each module.
    Parameters that are one object in the built module stay one, and take what the file says for the last of their
    names; parameters that only the file shares become separate. The module's dtypes are kept.

    Args:
        build: makes the module; called under `skip_init`, and once more without it if weights are missing.
        state_dict: tensors by name.
        strict: whether a missing or unexpected name is an error; where it is not, what is missing is initialised.

    Raises:
        StateDictError: one for all missing and unexpected names, and all that have another shape.
    """
    with skip_init():
        module = build()
    missing = _load(module, state_dict, strict=strict)
    if missing:
        module = build()
        _load(module, state_dict, strict=strict)
    return module


def _load(module: nn.Module, state_dict: Mapping[str, Any], *, strict: bool) -> list[str]:
    """Loads in place; returns the names that are missing."""
    before = _named_tensors(module)
    missing: list[str] = []
    unexpected: list[str] = []

    def note(_module: nn.Module, keys: Any) -> None:  # load_state_dict raises on a wrong shape before it returns them
        missing.extend(keys.missing_keys)
        unexpected.extend(keys.unexpected_keys)

    hook = module.register_load_state_dict_post_hook(note)  # type: ignore[no-untyped-call]
    failure = ""
    try:
        with _adopting(before.values()):
            module.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        failure = str(error)
    finally:
        hook.remove()
    missing = _without_tied(missing, before)
    reshaped = [
        f"{name} (file {tuple(state_dict[name].shape)}, model {tuple(tensor.shape)})"
        for name, tensor in before.items()
        if isinstance(state_dict.get(name), Tensor) and state_dict[name].shape != tensor.shape
    ]
    if failure or (strict and (missing or unexpected)):
        kinds = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
        listed = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names)
        if failure and not reshaped:  # something else, such as a hook of the module's own
            listed = "; ".join(part for part in (listed, failure) if part)
        raise StateDictError(f"the weights do not fit {type(module).__name__}: {listed}")
    return missing


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + rest


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    named = dict(module.named_parameters(remove_duplicate=False))
    return {**named, **dict(module.named_buffers(remove_duplicate=False))}


def _without_tied(missing: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Drops the names whose parameter is present under another of its names."""
    absent = set(missing)
    present = {id(tensor) for name, tensor in tensors.items() if name not in absent}
    return [name for name in missing if name not in tensors or id(tensors[name]) not in present]
