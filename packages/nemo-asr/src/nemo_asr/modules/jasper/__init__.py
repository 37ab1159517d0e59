"""Convolutional recognisers: Jasper (arXiv 1904.03288), QuartzNet (1910.10261), Citrinet (2104.01721), CarneliNet."""

from nemo_asr.modules.jasper.decoder import ConvASRDecoder
from nemo_asr.modules.jasper.encoder import ConvASREncoder
from nemo_asr.modules.jasper.parallel import ParallelConvASREncoder

__all__ = ["ConvASRDecoder", "ConvASREncoder", "ParallelConvASREncoder"]
