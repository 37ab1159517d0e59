"""Class names in a config that no known registry or framework has.

`_target_` (and `target` of a model or sub-model, `cls` of old files) says which class is to be built. Whoever builds
it without looking runs what a stranger's file names, so that `verify --targets` lists every name that is not

- registered by an installed package (entry points in the group `nemo.targets`),
- below one of the prefixes in `KNOWN`, without a way back out of it through an imported module
  (`nemo.collections.asr.parts.subprocess.Popen`), or
- allowed by the caller.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

# The first that fits counts.
KNOWN = (
    "nemo.collections.tts.torch.", "nemo.collections.", "nemo.core.", "nemo.lightning.io.", "nemo.lightning.",
    "torch.nn.", "torch.optim.", "torch.utils.data.", "torch.distributed.fsdp.", "torchmetrics.",
    "lightning.pytorch.", "pytorch_lightning.", "megatron.core.",
    "nemo_text_processing.g2p.", "nemo_text_processing.text_normalization.normalize.Normalizer",
)  # fmt: skip
# What a module may have imported, and must not be reached through it. No module below a prefix has such a name.
_FOREIGN = sys.stdlib_module_names | frozenset(
    "cloudpickle dill h5py hydra joblib lightning_fabric megatron np numpy omegaconf pandas pd requests scipy sh torch "
    "transformers wandb yaml".split()
)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_SURELY_NAMES = ("_target_", "cls")


def unknown_targets(config: Any, allowed: Collection[str] = ()) -> list[tuple[str, str, str]]:
    """(dotted config path, name, what is wrong with it) for each class name that is not known.

    Args:
        config: plain dicts, lists and scalars.
        allowed: names, or prefixes that end in a dot, of the caller's own.
    """
    registered: Collection[str] | None = None
    found = []
    for path, name in _names(config):
        rule = _broken_rule(name)
        if rule and not _is_allowed(name, allowed):
            registered = _registered() if registered is None else registered
            if name not in registered:
                found.append((path, name, rule))
    return found


def _names(config: Any) -> Iterator[tuple[str, str]]:
    stack: list[tuple[str, Any]] = [("", config)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            for key, entry in value.items():
                if isinstance(entry, str) and _is_name(path, key, entry):
                    yield f"{path}.{key}".lstrip("."), entry
        if isinstance(value, dict | list):
            entries = list(value.items() if isinstance(value, dict) else enumerate(value))
            stack.extend((f"{path}.{key}".lstrip("."), entry) for key, entry in reversed(entries))


def _is_name(path: str, key: Any, text: str) -> bool:
    """`target` is a class name at the top; further down only where it looks like one."""
    return key in _SURELY_NAMES or (key == "target" and (not path or _DOTTED.fullmatch(text) is not None))


def _is_allowed(name: str, allowed: Collection[str]) -> bool:
    return any(name == entry or (entry.endswith(".") and name.startswith(entry)) for entry in allowed)


def _broken_rule(name: str) -> str:
    if "${" in name:
        return "is put together when it is read"
    if not _DOTTED.fullmatch(name):
        return "is no dotted name"
    prefix = next(
        (prefix for prefix in KNOWN if name == prefix or (prefix[-1] == "." and name.startswith(prefix))), None
    )
    if prefix is None:
        return "is neither registered nor NVIDIA's nor torch's"
    foreign = [part for part in name.removeprefix(prefix).split(".") if part in _FOREIGN or part.startswith("__")]
    return f"leads through {foreign[0]} to something else" if foreign else ""


def _registered() -> frozenset[str]:
    """Every name that an installed package registers, in its own and NVIDIA's spelling."""
    from importlib.metadata import entry_points

    names: set[str] = set()
    for entry_point in entry_points(group="nemo.targets"):
        try:
            registry = entry_point.load()
        except (ImportError, AttributeError):  # a package that is only half there registers nothing
            continue
        names.update(registry, *registry.values())
    return frozenset(names)
