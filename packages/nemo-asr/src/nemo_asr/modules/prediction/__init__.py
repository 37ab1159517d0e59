"""Prediction networks of transducers: what the tokens so far say of the next (Graves, arXiv 1211.3711)."""

from nemo_asr.modules.prediction.lstm import RNNTDecoder
from nemo_asr.modules.prediction.network import PredictionNetwork, PredictionOptions, State
from nemo_asr.modules.prediction.stateless import StatelessTransducerDecoder

__all__ = ["PredictionNetwork", "PredictionOptions", "RNNTDecoder", "State", "StatelessTransducerDecoder"]
