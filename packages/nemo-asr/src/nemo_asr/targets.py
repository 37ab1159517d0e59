"""Which class of this package answers to which of NVIDIA's dotted names (first: the one written when saving)."""

_NVIDIA = "nemo.collections.asr.modules"

MODULES: dict[str, tuple[str, ...]] = {
    f"nemo_asr.modules.{name}": (f"{_NVIDIA}.{name}", f"{_NVIDIA}.{file}.{name}", f"nemo.collections.asr.{name}")
    for name, file in {
        "AudioToMelSpectrogramPreprocessor": "audio_preprocessing",
        "ConformerEncoder": "conformer_encoder",
        "ConvASRDecoder": "conv_asr",
        "ConvASREncoder": "conv_asr",
        "HATJoint": "hybrid_autoregressive_transducer",
        "ParallelConvASREncoder": "conv_asr",
        "RNNEncoder": "rnn_encoder",
        "RNNTDecoder": "rnnt",
        "RNNTJoint": "rnnt",
        "SampledRNNTJoint": "rnnt",
        "SpectrogramAugmentation": "audio_preprocessing",
        "SqueezeformerEncoder": "squeezeformer_encoder",
        "StatelessTransducerDecoder": "rnnt",
    }.items()
}

MODULES |= {
    # NVIDIA's package does not have these without the file's name
    f"nemo_asr.modules.{name}": (f"{_NVIDIA}.wav2vec_modules.{name}",)
    for name in ("ConvFeatureEncoder", "Wav2VecTransformerEncoder")
}

_NVIDIA_MODELS = "nemo.collections.asr.models"

MODELS: dict[str, tuple[str, ...]] = {
    f"nemo_asr.models.{name}": (f"{_NVIDIA_MODELS}.{file}.{name}", f"{_NVIDIA_MODELS}.{name}")
    for name, file in {
        "ASRModel": "asr_model",
        "EncDecCTCModel": "ctc_models",
        "EncDecCTCModelBPE": "ctc_bpe_models",
        "EncDecHybridRNNTCTCBPEModel": "hybrid_rnnt_ctc_bpe_models",
        "EncDecHybridRNNTCTCModel": "hybrid_rnnt_ctc_models",
        "EncDecRNNTBPEModel": "rnnt_bpe_models",
        "EncDecRNNTModel": "rnnt_models",
    }.items()
}

TARGETS: dict[str, tuple[str, ...]] = {**MODULES, **MODELS}
