"""What `nemo-asr transcribe` and `evaluate` can be told: the keys of NVIDIA's scripts, and a few of our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nemo_asr.decoding.ctc_config import CtcDecodingConfig
from nemo_asr.decoding.transducer_config import TransducerDecodingConfig


@dataclass
class TranscriptionConfig:
    """NVIDIA's keys of `transcribe_speech.py`, and a few of our own (`audio`, `device`, `json`)."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "audio_key eval_config_yaml presort_manifest random_seed return_hypotheses compute_langs compute_dtype "
        "matmul_precision multitask_decoding prompt att_context_size model_change "
        "clean_groundtruth_text langid return_transcriptions gt_lang_attr_name extract_nbest warmup_steps run_steps "
        "allow_partial_transcribe".split()
    )

    model_path: str | None = None
    pretrained_name: str | None = None
    audio: list[str] | None = None
    audio_dir: str | None = None
    audio_type: str = "wav"
    dataset_manifest: str | None = None
    channel_selector: int | str | None = None
    output_filename: str | None = None
    overwrite_transcripts: bool = True
    append_pred: bool = False
    pred_name_postfix: str | None = None
    batch_size: int = 32
    num_workers: int = 0
    timestamps: bool | None = None
    ctc_decoding: CtcDecodingConfig = field(default_factory=CtcDecodingConfig)
    rnnt_decoding: TransducerDecodingConfig = field(default_factory=TransducerDecodingConfig)
    decoder_type: str | None = None
    device: str | None = None
    cuda: int | None = None
    allow_mps: bool = False
    amp: bool = False
    amp_dtype: str = "float16"
    json: bool = False
    calculate_wer: bool = True
    use_cer: bool = False
    gt_text_attr_name: str = "text"
    calculate_rtfx: bool = False


@dataclass
class TextProcessingConfig:
    """What is done to references and hypotheses before they are compared."""

    punctuation_marks: str = ".,?"
    separate_punctuation: bool = False
    do_lowercase: bool = False
    rm_punctuation: bool = False


@dataclass
class EvaluationConfig(TranscriptionConfig):
    """NVIDIA's keys of `speech_to_text_eval.py`, and two of our own (`report`, `show`)."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = TranscriptionConfig.IGNORED_KEYS | {"use_punct_er"}

    only_score_manifest: bool = False
    scores_per_sample: bool = False
    tolerance: float | None = None
    text_processing: TextProcessingConfig = field(default_factory=TextProcessingConfig)
    report: str | None = None
    show: int = 0
