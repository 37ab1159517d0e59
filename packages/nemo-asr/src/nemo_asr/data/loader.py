"""From a data section of a config to a torch DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nemo_asr.data.augment import build_augmentor
from nemo_asr.data.config import AudioTextDataConfig
from nemo_asr.data.dataset import AudioTextDataset
from nemo_asr.data.manifest import ManifestEntry, ManifestError, ManifestRules, read_manifest
from nemo_asr.data.paths import PathSpec, flatten_paths, group_paths
from nemo_asr.data.sampler import (
    BatchBudget,
    Bucket,
    UtteranceBatchSampler,
    binned_buckets,
    even_buckets,
    single_bucket,
)
from nemo_asr.data.tarred import TarBucket, TarredAudioTextDataset
from nemo_asr.data.utterance import SignalReader, TranscriptEncoder
from nemo_asr.text.char import CharTokenizer
from nemo_asr.text.tokenizer import Tokenizer
from nemo_config import ConfigError, plain, read_section

DEFAULT_SHUFFLE_BATCHES = 4
"""Batches of a tar set that are held back for shuffling where `shuffle_n` is not given."""

AudioTextLoader = DataLoader[tuple[Tensor, ...]]


def build_dataloader(
    section: Mapping[str, Any] | AudioTextDataConfig | None,
    tokenizer: Tokenizer,
    *,
    path: str = "train_ds",
    training: bool = True,
    strict: bool = True,
    sample_rate: int | None = None,
) -> AudioTextLoader | None:
    """Makes the loader of a data section.

    Batches are (signal (B, L), signal_len (B,), transcript (B, U), transcript_len (B,)), and the utterances' numbers
    (B,) where the section asks for them.

    Args:
        section: `train_ds`, `validation_ds` or `test_ds`.
        tokenizer: turns the transcripts into ids.
        path: where the section stands in the config, for messages.
        training: whether batches are shuffled where the section does not say.
        strict: whether an unknown key is an error.
        sample_rate: the model's rate, where the section does not give one.

    Returns:
        The loader; None where the section names no manifest.

    Raises:
        ConfigError: what is wrong in the section.
        ManifestError: what is wrong in a manifest, with its line.
    """
    values = section if isinstance(section, AudioTextDataConfig) else plain(section or {})
    if isinstance(values, dict):
        if "manifest_filepath" in values and not values["manifest_filepath"]:
            return None  # a set that is not there may be incomplete
        if sample_rate is not None and values.get("sample_rate") is None:
            values["sample_rate"] = sample_rate
    config = read_section(AudioTextDataConfig, values, path, strict=strict)
    if not config.manifest_filepath:
        return None
    try:
        config.check_batching()
        dataset = _build_dataset(config, tokenizer, path, training, strict)
        sampler = _build_sampler(config, dataset, training) if isinstance(dataset, AudioTextDataset) else None
    except ConfigError:
        raise
    except ValueError as error:
        raise _located(error, config, path) from error
    return _make_loader(config, dataset, sampler)


def _located(error: ValueError, config: AudioTextDataConfig, path: str) -> ValueError:
    """A message that begins with a key of the section gets the section's path; a manifest's stays as it is."""
    key, _, rest = str(error).partition(": ")
    if isinstance(error, ManifestError) or key not in AudioTextDataConfig.__dataclass_fields__:
        return error
    value = getattr(config, key)
    return ConfigError(f"{path}.{key}", value, rest.removeprefix(f"{value} "))


def _build_dataset(
    config: AudioTextDataConfig, tokenizer: Tokenizer, path: str, training: bool, strict: bool
) -> AudioTextDataset | TarredAudioTextDataset:
    augmentor = build_augmentor(config.augmentor, f"{path}.augmentor", strict=strict)
    reader = SignalReader(config.sample_rate, config.channel_selector, config.trim_silence, augmentor)  # type: ignore[arg-type]
    encoder = TranscriptEncoder(
        tokenizer,
        parser=config.parser if config.normalize_transcripts and isinstance(tokenizer, CharTokenizer) else None,
        unknown=config.unknown_text,  # type: ignore[arg-type]
        use_start_end_token=config.use_start_end_token,
    )
    if config.is_tarred:
        return _build_tarred(config, reader, encoder, training)
    entries = _utterances(config, config.manifest_filepath)
    return AudioTextDataset(entries, reader, encoder, seed=config.seed, return_sample_id=config.return_sample_id)


def _utterances(config: AudioTextDataConfig, manifest: PathSpec) -> list[ManifestEntry]:
    rules = ManifestRules(config.min_duration, config.max_duration, config.max_utts, tarred=config.is_tarred)
    entries = read_manifest(manifest, rules)
    if not entries:
        names = ", ".join(flatten_paths(manifest))
        raise ManifestError(f"{names}: no utterance is left; look at the manifest, min_duration and max_duration")
    return entries


def _build_tarred(
    config: AudioTextDataConfig, reader: SignalReader, encoder: TranscriptEncoder, training: bool
) -> TarredAudioTextDataset:
    if not config.tarred_audio_filepaths:
        raise ValueError("tarred_audio_filepaths: None must name the tars, since is_tarred is true")
    manifests, tars = group_paths(config.manifest_filepath), group_paths(config.tarred_audio_filepaths)
    if len(manifests) != len(tars):
        raise ValueError(f"tarred_audio_filepaths: {len(tars)} bucket(s) for the {len(manifests)} of manifest_filepath")
    shuffle = training if config.shuffle is None else config.shuffle
    held = DEFAULT_SHUFFLE_BATCHES * (config.batch_size or 1) if config.shuffle_n is None else config.shuffle_n
    entries = [_utterances(config, manifest) for manifest in manifests]
    return TarredAudioTextDataset(
        _tar_buckets(config, entries, tars),
        reader,
        encoder,
        shuffle_n=held if shuffle else 0,
        bucketing_strategy=config.bucketing_strategy,
        shard_strategy=config.tarred_shard_strategy,
        drop_last=config.drop_last,
        seed=config.seed,
        return_sample_id=config.return_sample_id,
    )


def _tar_buckets(
    config: AudioTextDataConfig, entries: Sequence[Sequence[ManifestEntry]], tars: Sequence[Sequence[str]]
) -> list[TarBucket]:
    sizes = _tar_batch_sizes(config, len(tars))
    weights = config.bucketing_weights or [1] * len(tars)
    if len(weights) != len(tars) or min(weights) < 1:
        raise ValueError(f"bucketing_weights: {weights} must be {len(tars)} positive numbers, one for each bucket")
    buckets = [TarBucket(shards, rows, size) for shards, rows, size in zip(tars, entries, sizes, strict=True)]
    return [bucket for bucket, weight in zip(buckets, weights, strict=True) for _ in range(weight)]


def _tar_batch_sizes(config: AudioTextDataConfig, buckets: int) -> list[int]:
    """A number n gives the last bucket batches of n, the one before it 2 n, and so on; a list gives each its own."""
    sizes = config.bucketing_batch_size
    if sizes is None or buckets == 1:
        if config.batch_size is None:
            raise ValueError("batch_size: None must be given for tarred data")
        return [config.batch_size] * buckets
    if isinstance(sizes, int):
        return [sizes * (buckets - place) for place in range(buckets)]
    if len(sizes) != buckets:
        raise ValueError(f"bucketing_batch_size: {sizes} must be {buckets} numbers, one for each bucket")
    return sizes


def _build_sampler(config: AudioTextDataConfig, dataset: AudioTextDataset, training: bool) -> UtteranceBatchSampler:
    return UtteranceBatchSampler(
        _buckets(config, dataset),
        shuffle=training if config.shuffle is None else config.shuffle,
        seed=config.seed,
        drop_last=config.drop_last,
    )


def _buckets(config: AudioTextDataConfig, dataset: AudioTextDataset) -> list[Bucket]:
    if not config.wants_buckets:
        if config.batch_size is None:
            raise ValueError("batch_size: None must be given")
        return single_bucket(len(dataset), config.batch_size)
    given = config.batch_size is not None or config.batch_duration is not None
    budget = BatchBudget(config.batch_size, config.batch_duration, config.quadratic_duration) if given else None
    if config.bucket_duration_bins:
        return binned_buckets(dataset.durations(), budget, config.bucket_duration_bins, config.bucket_batch_size)
    if budget is None or config.bucket_batch_size:
        raise ValueError("bucket_duration_bins: None must be given with bucket_batch_size")
    return even_buckets(dataset.durations(), budget, config.num_buckets)


def _make_loader(
    config: AudioTextDataConfig,
    dataset: AudioTextDataset | TarredAudioTextDataset,
    sampler: UtteranceBatchSampler | None,
) -> AudioTextLoader:
    import torch

    collate: Callable[[Any], tuple[Tensor, ...]] | None = getattr(dataset, "collate", None)
    made: Dataset[Any] = dataset
    # Workers' seeds come from here: the same on every process, another one each epoch.
    generator = torch.Generator().manual_seed(config.seed)
    return DataLoader(
        made,
        batch_size=None,  # the sampler, or the tar data set, makes whole batches
        sampler=sampler,
        collate_fn=collate,
        num_workers=config.num_workers,
        generator=generator,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
    )
