"""The networks of this package as plain `torch.nn.Module`s: what an application that transcribes needs."""

from nemo_asr.networks.ctc import CtcNetwork
from nemo_asr.networks.hybrid import HybridNetwork
from nemo_asr.networks.recognizer import RecognizerNetwork
from nemo_asr.networks.transducer import TransducerNetwork

__all__ = ["CtcNetwork", "HybridNetwork", "RecognizerNetwork", "TransducerNetwork"]
