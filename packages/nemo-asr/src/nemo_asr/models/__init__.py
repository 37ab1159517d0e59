"""The trainable models, by NVIDIA's class names; they need `pip install 'nemo-asr[train]'`."""

try:
    import nemo_expmgr  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "nemo_asr.models trains models and needs Lightning: pip install 'nemo-asr[train]'. "
        "To transcribe, nemo_asr.load_model(path) does without."
    ) from error

from nemo_asr.models.asr_model import ASRModel
from nemo_asr.models.ctc import EncDecCTCModel, EncDecCTCModelBPE
from nemo_asr.models.hybrid import EncDecHybridRNNTCTCBPEModel, EncDecHybridRNNTCTCModel
from nemo_asr.models.rnnt import EncDecRNNTBPEModel, EncDecRNNTModel

__all__ = [
    "ASRModel",
    "EncDecCTCModel",
    "EncDecCTCModelBPE",
    "EncDecHybridRNNTCTCBPEModel",
    "EncDecHybridRNNTCTCModel",
    "EncDecRNNTBPEModel",
    "EncDecRNNTModel",
]
