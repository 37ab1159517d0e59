"""Speech recognition with NVIDIA NeMo's class names, configs and files.

`load_model(path)` gives a network that transcribes, with torch alone; `nemo_asr.models` has the trainable
classes and needs the extra `nemo-asr[train]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_asr.restore import load_model

__all__ = ["load_model"]
__version__ = "3.0.0"


def __getattr__(name: str) -> object:
    if name == "load_model":
        from nemo_asr.restore import load_model

        return load_model
    if name in ("models", "modules"):
        from importlib import import_module

        return import_module(f"nemo_asr.{name}")
    raise AttributeError(f"module 'nemo_asr' has no attribute {name!r}")
