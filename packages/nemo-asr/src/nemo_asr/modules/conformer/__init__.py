"""Conformer and FastConformer: `ConformerEncoder` and the layers it is made of."""

from nemo_asr.modules.conformer.encoder import ConformerEncoder, Encoded

__all__ = ["ConformerEncoder", "Encoded"]
