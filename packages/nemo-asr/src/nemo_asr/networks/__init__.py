"""The networks of this package as plain `torch.nn.Module`s: what an application that transcribes needs."""

from nemo_asr.networks.ctc import CtcNetwork

__all__ = ["CtcNetwork"]
