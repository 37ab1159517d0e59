"""wav2vec 2.0 (arXiv 2006.11477): convolutions over the waveform in place of a spectrogram, then a Transformer."""

from nemo_asr.modules.wav2vec.feature_encoder import ConvFeatureEncoder
from nemo_asr.modules.wav2vec.transformer import Wav2VecTransformerEncoder

__all__ = ["ConvFeatureEncoder", "Wav2VecTransformerEncoder"]
