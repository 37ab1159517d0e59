"""The `decoding` section of transducers, with NVIDIA's spelling.  Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nemo_asr.decoding.confidence_config import (
    ConfidenceConfig,
    ConfidenceOptions,
    GreedyConfidenceKeys,
    confidence_options,
)
from nemo_asr.decoding.ctc_config import GREEDY_STRATEGIES
from nemo_asr.decoding.fusion_config import BoostingTreeConfig, FusionKeys

ADAPTIVE_STRATEGIES = ("maes", "maes_batch")
TRANSDUCER_BEAM_STRATEGIES = ("beam", "tsd", "alsd", "malsd_batch", *ADAPTIVE_STRATEGIES)
BLANK_MODES = ("no_score", "lm_weighted_full")
PRUNING_MODES = ("early", "late")


@dataclass
class TransducerGreedyConfig(GreedyConfidenceKeys):
    """The `decoding.greedy` section.

    Attributes:
        max_symbols, max_symbols_per_step: tokens at one frame. Where both are null there is no limit, and a network
            that never says blank is searched without end.
    """

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "tdt_include_token_duration loop_labels use_cuda_graph_decoder allow_cuda_graphs".split()
    )

    max_symbols: int | None = None
    max_symbols_per_step: int | None = 10
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    tdt_include_duration_confidence: bool | None = None
    ngram_lm_model: str | None = None
    ngram_lm_alpha: float | None = 0.0
    boosting_tree: BoostingTreeConfig | None = None
    boosting_tree_alpha: float | None = 0.0

    def __post_init__(self) -> None:
        _check_limit(self, "max_symbols", "max_symbols_per_step")

    @property
    def symbols_at_a_frame(self) -> int | None:
        """`max_symbols`, or by its newer name."""
        return self.max_symbols or self.max_symbols_per_step


@dataclass
class TransducerBeamConfig:
    """The `decoding.beam` section.

    Attributes:
        beam_size: hypotheses that are kept.
        score_norm: they are ranked by score over tokens + 1; the scores given are not divided.
        return_best_hypothesis: false gives all of them.
        softmax_temperature: divides the joint's scores.
        max_symbols, max_symbols_per_step: tokens at one frame.
        tsd_max_sym_exp: the same for the strategy `tsd`.
        maes_num_steps: tokens at one frame in `maes`.
        maes_prefix_alpha: 0, or 1 for a search among prefixes that are one token shorter.
        maes_expansion_beta: `maes` tries so many more tokens than beam_size.
        maes_expansion_gamma: `maes` leaves out tokens whose score is so much below the best one's.
        ngram_lm_model, ngram_lm_alpha: an ARPA file and its weight.
        boosting_tree, boosting_tree_alpha: phrases and their weight.
        blank_lm_score_mode: `lm_weighted_full` weighs blank with the language model, `no_score` does not.
        pruning_mode: `late` chooses tokens by fused scores, `early` by the network's.
        hat_subtract_ilm, hat_ilm_weight: subtracts the inner language model of a HAT joint, with this weight, where
            there is another language model.
        beam_beta: added to the score for each token, as for CTC; each token costs a language model's price and blanks
            cost none, so that without it words go missing.
        ilm_weight: as hat_ilm_weight, for every joint.

    `beam_beta` and `ilm_weight` are not NVIDIA's; its toolkit passes over them in a file.
    """

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "search_type alsd_max_target_len nsc_max_timesteps_expansion nsc_prefix_alpha language_model "
        "allow_cuda_graphs".split()
    )

    beam_size: int = 4
    score_norm: bool = True
    return_best_hypothesis: bool = True
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    preserve_frame_confidence: bool | None = None
    softmax_temperature: float = 1.0
    max_symbols: int | None = None
    max_symbols_per_step: int | None = 10
    tsd_max_sym_exp: int | None = None
    tsd_max_sym_exp_per_step: int | None = 50
    maes_num_steps: int = 2
    maes_prefix_alpha: int = 1
    maes_expansion_beta: int = 2
    maes_expansion_gamma: float = 2.3
    ngram_lm_model: str | None = None
    ngram_lm_alpha: float | None = 0.0
    boosting_tree: BoostingTreeConfig | None = None
    boosting_tree_alpha: float | None = 0.0
    blank_lm_score_mode: str | None = "lm_weighted_full"
    pruning_mode: str | None = "late"
    hat_subtract_ilm: bool = False
    hat_ilm_weight: float = 0.0
    beam_beta: float = 0.0
    ilm_weight: float = 0.0

    def __post_init__(self) -> None:
        _check_limit(self, "max_symbols", "max_symbols_per_step")
        _check_limit(self, "tsd_max_sym_exp", "tsd_max_sym_exp_per_step")
        for key, least in (("beam_size", 1), ("maes_num_steps", 1), ("maes_expansion_beta", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least {least}")
        for key in ("softmax_temperature", "maes_expansion_gamma"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}: {getattr(self, key)} must be above 0")
        if self.ilm_weight < 0:
            raise ValueError(f"ilm_weight: {self.ilm_weight} must not be below 0")
        if self.maes_prefix_alpha not in (0, 1):
            raise ValueError(f"maes_prefix_alpha: {self.maes_prefix_alpha} must be 0 or 1")
        for key, known in (("blank_lm_score_mode", BLANK_MODES), ("pruning_mode", PRUNING_MODES)):
            if getattr(self, key) not in (None, *known):
                raise ValueError(f"{key}: {getattr(self, key)!r} is none of {', '.join(known)}")


def _check_limit(section: TransducerGreedyConfig | TransducerBeamConfig, key: str, newer: str) -> None:
    """Of the two names of a limit the second counts where the first is null or 0."""
    counting = key if getattr(section, key) else newer
    limit = getattr(section, counting)
    if limit is not None and limit < 1:
        raise ValueError(f"{counting}: {limit} must be at least 1, or null for no limit")


@dataclass
class TransducerDecodingConfig:
    """The `decoding` section of a transducer."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "model_type fused_batch_size compute_hypothesis_token_set compute_langs tdt_include_token_duration".split()
    )

    strategy: str = "greedy_batch"
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    word_seperator: str = " "
    segment_seperators: list[str] | None = field(default_factory=lambda: [".", "!", "?"])
    segment_gap_threshold: int | None = None
    rnnt_timestamp_type: str = "all"
    greedy: TransducerGreedyConfig = field(default_factory=TransducerGreedyConfig)
    beam: TransducerBeamConfig = field(default_factory=TransducerBeamConfig)
    confidence_cfg: ConfidenceConfig | None = field(default_factory=ConfidenceConfig)
    temperature: float = 1.0
    durations: list[int] | None = None
    big_blank_durations: list[int] | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the strategy is a greedy one."""
        return self.strategy in GREEDY_STRATEGIES

    @property
    def fusion_keys(self) -> FusionKeys:
        """The section whose language model and phrases count."""
        return self.greedy if self.is_greedy else self.beam

    @property
    def confidence(self) -> ConfidenceOptions:
        """Which confidences hypotheses carry."""
        if self.is_greedy:
            durations = bool(self.greedy.tdt_include_duration_confidence)
            return confidence_options(self.confidence_cfg, self.greedy, durations=durations)
        return confidence_options(self.confidence_cfg, None, search_asks=bool(self.beam.preserve_frame_confidence))

    @property
    def wants_timestamps(self) -> bool:
        """Whether hypotheses carry timestamps although the caller does not ask for them."""
        if self.compute_timestamps is None:
            return bool((self.greedy if self.is_greedy else self.beam).compute_timestamps)
        return self.compute_timestamps

    @property
    def wants_alignments(self) -> bool:
        """Whether hypotheses carry the score and label of every step."""
        if self.preserve_alignments is None:
            return bool((self.greedy if self.is_greedy else self.beam).preserve_alignments)
        return self.preserve_alignments
