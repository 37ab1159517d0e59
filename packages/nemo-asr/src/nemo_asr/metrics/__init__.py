"""Word and character error rates."""

from nemo_asr.metrics.wer import (
    WER,
    EditCounts,
    count_edits,
    word_error_rate,
    word_error_rate_detail,
    word_error_rate_per_utt,
)

__all__ = [
    "WER",
    "EditCounts",
    "count_edits",
    "word_error_rate",
    "word_error_rate_detail",
    "word_error_rate_per_utt",
]
