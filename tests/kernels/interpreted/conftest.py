"""The kernels on CPU tensors: Triton reads this variable when a kernel is decorated, so it is set before any import."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
