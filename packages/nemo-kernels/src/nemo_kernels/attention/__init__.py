"""Attention with relative positions (Transformer-XL, arXiv 1901.02860), windows, chunks and caches.

`reference` is the textbook; `full_matrix` holds all scores at once, `tiled` and `triton` a tile of them.
"""

from nemo_kernels.attention.function import attention
from nemo_kernels.attention.positions import RelativePosition

__all__ = ["RelativePosition", "attention"]
