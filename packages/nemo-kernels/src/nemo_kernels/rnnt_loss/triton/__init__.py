"""Triton's kernels of the RNNT loss: scores, lattice and gradient; joint states, and scores straight from them.

They run on CUDA tensors, and on CPU tensors where TRITON_INTERPRET=1 was set before this import.
"""

from nemo_kernels.rnnt_loss.triton.fused_scores import joint_scores
from nemo_kernels.rnnt_loss.triton.joint_state import join, join_backward
from nemo_kernels.rnnt_loss.triton.softmax import gradient, scores
from nemo_kernels.rnnt_loss.triton.wavefront import lattice

__all__ = ["gradient", "join", "join_backward", "joint_scores", "lattice", "scores"]
