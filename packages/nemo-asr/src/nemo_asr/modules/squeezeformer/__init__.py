"""Squeezeformer (arXiv 2206.00888)."""

from nemo_asr.modules.squeezeformer.encoder import SqueezeformerEncoder

__all__ = ["SqueezeformerEncoder"]
