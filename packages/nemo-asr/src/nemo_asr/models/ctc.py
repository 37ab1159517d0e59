"""EncDecCTCModel and EncDecCTCModelBPE: the CTC network made trainable (NVIDIA's class names, keys and metrics)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor

from nemo_asr.decoding.ctc_config import CtcDecodingConfig
from nemo_asr.losses.ctc import CTCLoss
from nemo_asr.metrics.wer import WER
from nemo_asr.models.asr_model import ASRModel, Batch
from nemo_asr.models.inter_ctc import InterCtc, step_metrics
from nemo_asr.models.vocabulary import derived_vocabulary, require_tokenizer, take_tokenizer
from nemo_asr.networks.ctc import CtcNetwork, build_ctc_decoder, build_ctc_parts
from nemo_asr.networks.recognizer import section_of
from nemo_asr.text.char import CharTokenizer
from nemo_asr.text.tokenizer import Tokenizer
from nemo_config import plain

logger = logging.getLogger(__name__)


class EncDecCTCModel(CtcNetwork, ASRModel):
    """A CTC model; its tokenizer, characters or SentencePiece, is what the config says.

    Args:
        cfg: the `model` section of a config.
        trainer: the trainer that will fit it, if there is one yet.
    """

    def __init__(self, cfg: DictConfig | Mapping[str, Any], trainer: Trainer | None = None) -> None:
        ASRModel.__init__(self, cfg, trainer)
        config = self.plain_cfg()
        if not config.get("decoding"):
            self.keep_section("decoding", {"strategy": CtcDecodingConfig.strategy})  # scripts edit model.cfg.decoding
        self.assemble(build_ctc_parts(config, self.artifact, strict=self.strict_config))
        self.inter_ctc = InterCtc(config.get("interctc"), self.encoder, strict=self.strict_config)
        self.loss = self._make_loss()
        self.wer = self._make_metric()

    def _make_loss(self) -> CTCLoss:
        reduction = self.plain_cfg().get("ctc_reduction", "mean_batch")
        return CTCLoss(self.tokenizer.vocab_size, zero_infinity=True, reduction=reduction)

    def _make_metric(self) -> WER:
        config = self.plain_cfg()
        log_prediction = config.get("log_prediction", False)
        return WER(self.decoding, use_cer=config.get("use_cer", False), log_prediction=log_prediction)

    def derived_config(self) -> dict[str, Any]:
        """What a saved config must say of vocabulary and sizes, for NVIDIA's toolkit to restore it."""
        vocabulary = list(self.tokenizer.vocabulary)
        return {
            "decoder.feat_in": self.decoder._feat_in,
            "decoder.num_classes": len(vocabulary),
            "decoder.vocabulary": vocabulary,
            **derived_vocabulary(self),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch (signal (B, L), signal_len (B,), transcript (B, U), transcript_len (B,))."""
        counts_errors = self.logs_step(batch_idx)
        loss, metrics, predictions = self._losses(batch, counts_errors)
        metrics = step_metrics(metrics)
        if counts_errors:
            metrics["training_batch_wer"] = self._error_counts(predictions, batch)[0]
        self.log_step(loss, metrics)
        return loss

    def validation_pass(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a batch: `val_loss`, and the counts that give `val_wer` over all batches."""
        loss, metrics, predictions = self._losses(batch, counts_errors=True)
        rate, errors, words = self._error_counts(predictions, batch)
        return {**metrics, "val_loss": loss, "val_wer": rate, "val_wer_num": errors, "val_wer_denom": words}

    def _losses(self, batch: Batch, counts_errors: bool) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Loss, the metrics of inner layers, and (log-probabilities, lengths)."""
        signal, signal_len, transcript, transcript_len = batch[:4]
        targets = {"targets": transcript, "target_lengths": transcript_len}
        if not self.inter_ctc.layers:
            log_probs, encoded_len, _ = self(input_signal=signal, input_signal_length=signal_len)
            loss = self.loss(log_probs=log_probs, input_lengths=encoded_len, **targets)
            return loss, {}, (log_probs, encoded_len)
        features, features_len = self.features(signal, signal_len)
        encoded, encoded_len, captured = self.inter_ctc.encode(self.encoder, features, features_len)
        log_probs = self.decoder(encoder_output=encoded)
        loss = self.loss(log_probs=log_probs, input_lengths=encoded_len, **targets)
        metric = self.wer if counts_errors else None
        loss, metrics = self.inter_ctc.add_losses(
            loss, captured, self.decoder, self.loss, transcript, transcript_len, metric
        )
        return loss, metrics, (log_probs, encoded_len)

    def _error_counts(self, predictions: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Error rate, errors and reference words of a batch."""
        return self.wer.of_batch(predictions[0].detach(), predictions[1], batch[2], batch[3])

    def change_vocabulary(self, new_vocabulary: Sequence[str], decoding_cfg: Mapping[str, Any] | None = None) -> None:
        """Replaces the characters, and the decoder by a new one for them; front end and encoder stay.

        Args:
            new_vocabulary: the characters; nothing happens if they are the present ones.
            decoding_cfg: another `decoding` section; None keeps the present one.
        """
        if list(new_vocabulary) != list(self.tokenizer.vocabulary):
            labels = list(new_vocabulary)
            self._replace_tokenizer(CharTokenizer(labels), {"labels": labels}, decoding_cfg)

    def _replace_tokenizer(
        self, tokenizer: Tokenizer, changes: Mapping[str, Any], decoding_cfg: Mapping[str, Any] | None
    ) -> None:
        config = {**self.plain_cfg(), **changes}
        vocabulary = list(tokenizer.vocabulary)
        config["decoder"] = {**config["decoder"], "num_classes": len(vocabulary), "vocabulary": vocabulary}
        feat_in: Any = self.decoder._feat_in
        decoder = build_ctc_decoder(section_of(config, "decoder"), feat_in, tokenizer, strict=False)
        self.decoder = decoder.to(next(self.encoder.parameters()).device).train(self.decoder.training)
        self.tokenizer = tokenizer
        self.cfg = config
        self.loss = self._make_loss().train(self.loss.training)
        self.change_decoding_strategy(decoding_cfg)

    def change_decoding_strategy(self, decoding_cfg: Mapping[str, Any] | None = None, verbose: bool = True) -> None:
        """Takes another `decoding` section; None keeps the present one. With `verbose` it is logged."""
        section = plain(decoding_cfg) if decoding_cfg is not None else self.plain_cfg().get("decoding") or {}
        self.set_decoding(section, strict=decoding_cfg is not None)
        self.decoder.temperature = self.decoding.config.temperature  # type: ignore[assignment]
        self.keep_section("decoding", section)
        self.wer = self._make_metric()
        if verbose:
            logger.info("decoding: %s", section)


class EncDecCTCModelBPE(EncDecCTCModel):
    """A CTC model on SentencePiece tokens: the name that files and scripts use."""

    def __init__(self, cfg: DictConfig | Mapping[str, Any], trainer: Trainer | None = None) -> None:
        require_tokenizer(cfg, "EncDecCTCModelBPE")
        super().__init__(cfg, trainer)

    def change_vocabulary(  # type: ignore[override]
        self,
        new_tokenizer_dir: str | Mapping[str, Any],
        new_tokenizer_type: str = "bpe",
        decoding_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        """Replaces the tokenizer, and the decoder by a new one for it; front end and encoder stay.

        Args:
            new_tokenizer_dir: folder of a tokenizer, or a whole `tokenizer` section (aggregate tokenizers).
            new_tokenizer_type: `bpe`, for a folder.
            decoding_cfg: another `decoding` section; None keeps the present one.
        """
        tokenizer, section = take_tokenizer(self, new_tokenizer_dir, new_tokenizer_type)
        self._replace_tokenizer(tokenizer, {"tokenizer": section}, decoding_cfg)
