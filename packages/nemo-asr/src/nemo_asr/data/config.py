"""The sections `train_ds`, `validation_ds` and `test_ds` of a recogniser's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

BUCKETING_STRATEGIES = ("fixed_order", "synced_randomized", "fully_randomized")
SHARD_STRATEGIES = ("scatter", "replicate")


@dataclass
class AudioTextDataConfig:
    """Speech with transcripts. Keys, meanings and defaults are NVIDIA's, but where it says `own`.

    Attributes:
        manifest_filepath: a manifest, several by comma, or a list; for tar buckets a list for each bucket.
        sample_rate: rate in Hz that the model wants; other audio is resampled.
        labels: the model's characters; the tokenizer has them already.
        batch_size: utterances a batch; with `batch_duration` the largest number of them.
        shuffle: new order each epoch; None means yes for training and no otherwise.
        trim_silence: cuts silence off both ends of every utterance.
        min_duration, max_duration: utterances outside the limits (seconds) are left out.
        max_utts: so many utterances at most, 0 means all.
        channel_selector: which channel to take of several: a number from 0, or `average`.
        use_start_end_token: puts the tokenizer's <s> and </s>, where it has them, around a transcript.
        normalize_transcripts, parser: clean-up of transcripts for character models: base, en or ru.
        unknown_text: own; `error` names the line whose text the vocabulary cannot spell, `replace` does as NVIDIA does.
        return_sample_id: batches carry the utterances' numbers as a fifth element.
        augmentor: name of a perturbation -> its options and `prob`.
        is_tarred, tarred_audio_filepaths: audio in tar files, with braces or lists, for buckets a list each.
        tarred_shard_strategy: `scatter` gives each process tars of its own, `replicate` gives all to all.
        shuffle_n: how many utterances of a tar set are held back for shuffling; None is four batches.
        bucketing_strategy, bucketing_batch_size, bucketing_weights: order, batch sizes, repetitions of tar buckets.
        use_bucketing: batches of utterances of similar length.
        batch_duration: seconds of audio, padding included, that a batch may hold; implies bucketing.
        quadratic_duration: an utterance of d seconds counts as d + d * d / quadratic_duration.
        num_buckets, bucket_duration_bins, bucket_batch_size: how the lengths are divided, and a batch size for each.
        seed: of shuffling and augmentation.
    """

    manifest_filepath: Any = None
    sample_rate: int = 16000
    labels: list[str] | None = None
    batch_size: int | None = None
    shuffle: bool | None = None
    num_workers: int = 0
    pin_memory: bool = False
    drop_last: bool = False
    trim_silence: bool = False
    min_duration: float | None = None
    max_duration: float | None = None
    max_utts: int = 0
    channel_selector: int | str | None = None
    use_start_end_token: bool = True
    normalize_transcripts: bool = False
    parser: str = "en"
    unknown_text: str = "error"
    return_sample_id: bool = False
    augmentor: dict[str, Any] | None = None
    is_tarred: bool = False
    tarred_audio_filepaths: Any = None
    tarred_shard_strategy: str = "scatter"
    shuffle_n: int | None = None
    bucketing_strategy: str = "synced_randomized"
    bucketing_batch_size: int | list[int] | None = None
    bucketing_weights: list[int] | None = None
    is_concat: bool = False
    is_code_switched: bool = False
    use_lhotse: bool = False
    use_bucketing: bool = False
    batch_duration: float | None = None
    quadratic_duration: float | None = None
    num_buckets: int = 30
    bucket_duration_bins: list[float] | None = None
    bucket_batch_size: list[int] | None = None
    seed: int = 0

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        # NVIDIA's own loaders, and what its data sets do not read either
        "normalize shard_strategy shard_manifests defer_setup int_values blank_index unk_index bos_id eos_id pad_id "
        "use_dali tarred_audio_index_filepaths concat_sampling_technique concat_sampling_temperature "
        "concat_sampling_scale concat_sampling_probabilities concat_sampling_seed concat_shuffle code_switched "
        "use_semi_sorted_batching randomization_factor name val_loss_idx test_loss_idx "
        # how lhotse buffers, reads and shards: none of it changes which utterances there are
        "bucket_buffer_size shuffle_buffer_size num_cuts_for_bins_estimate concurrent_bucketing shard_seed "
        "max_open_streams cuda_expandable_segments pretokenize bucketing_2d_strict_mode force_finite "
        "force_map_dataset force_iterable_dataset measure_total_length sampler_fusion metadata_only "
        "keep_excessive_supervisions tarred_random_access use_multimodal_sampling slice_length".split()
    )

    def __post_init__(self) -> None:
        _check_positive(self, "sample_rate", "batch_size", "batch_duration", "quadratic_duration", "num_buckets")
        _check_choice("unknown_text", self.unknown_text, ("error", "replace"))
        _check_choice("bucketing_strategy", self.bucketing_strategy, BUCKETING_STRATEGIES)
        _check_choice("tarred_shard_strategy", self.tarred_shard_strategy, SHARD_STRATEGIES)
        if isinstance(self.channel_selector, str):
            _check_choice("channel_selector", self.channel_selector, ("average",))
        for key in ("is_concat", "is_code_switched"):
            if getattr(self, key):
                raise ValueError(f"{key}: true is not supported; list the manifests in manifest_filepath")
        if self.min_duration is not None and self.max_duration is not None and self.min_duration > self.max_duration:
            raise ValueError(f"min_duration: {self.min_duration} lies above max_duration {self.max_duration}")

    @property
    def wants_buckets(self) -> bool:
        """Whether batches are made by length."""
        return self.use_bucketing or self.batch_duration is not None

    def check_batching(self) -> None:
        """Raises ValueError where nothing says how large a batch is."""
        if self.batch_size is None and self.batch_duration is None and not self.bucket_batch_size:
            raise ValueError("batch_size: None must be given, or batch_duration")


def _check_positive(config: AudioTextDataConfig, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value is not None and value <= 0:
            raise ValueError(f"{key}: {value} must be positive")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}: {value!r} is none of {', '.join(choices)}")
