"""EncDecHybridRNNTCTCModel and its BPE form: transducer and CTC trained on one encoder (NVIDIA's names and keys).

loss = (1 - w) * transducer loss + w * CTC loss      w: aux_ctc.ctc_loss_weight
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor

from nemo_asr.losses.ctc import CTCLoss
from nemo_asr.metrics.wer import WER
from nemo_asr.models.asr_model import Batch
from nemo_asr.models.inter_ctc import InterCtc, step_metrics
from nemo_asr.models.rnnt import EncDecRNNTModel
from nemo_asr.models.vocabulary import require_tokenizer, take_tokenizer
from nemo_asr.networks.ctc import build_ctc_decoder
from nemo_asr.networks.hybrid import HybridNetwork, build_hybrid_parts
from nemo_asr.text.char import CharTokenizer
from nemo_asr.text.tokenizer import Tokenizer
from nemo_config import plain

logger = logging.getLogger(__name__)

DEFAULT_CTC_WEIGHT = 0.5
PARTS = ("rnnt_loss", "ctc_loss")
"""What training logs with a prefix; inner layers have none, as in NVIDIA's toolkit."""


class EncDecHybridRNNTCTCModel(HybridNetwork, EncDecRNNTModel):
    """A transducer with an auxiliary CTC head; either can transcribe.

    Args:
        cfg: the `model` section of a config.
        trainer: the trainer that will fit it, if there is one yet.
    """

    def __init__(self, cfg: DictConfig | Mapping[str, Any], trainer: Trainer | None = None) -> None:
        EncDecRNNTModel.__init__(self, cfg, trainer)
        section = self._ctc_section()
        self.ctc_loss_weight = float(section.get("ctc_loss_weight", DEFAULT_CTC_WEIGHT))
        self.inter_ctc = InterCtc(self.plain_cfg().get("interctc"), self.encoder, strict=self.strict_config)

    def _build(self, config: Mapping[str, Any]) -> None:
        parts = build_hybrid_parts(config, self.artifact, strict=self.strict_config)
        self.assemble(parts.transducer)
        self.add_ctc(parts)

    def _ctc_section(self) -> Mapping[str, Any]:
        section: Mapping[str, Any] = self.plain_cfg().get("aux_ctc") or {}
        return section

    def _set_loss(self) -> None:
        super()._set_loss()
        reduction = self._ctc_section().get("ctc_reduction", "mean_batch")
        self.ctc_loss = CTCLoss(self.tokenizer.vocab_size, zero_infinity=True, reduction=reduction)

    def _set_metric(self) -> None:
        super()._set_metric()
        use_cer = self._ctc_section().get("use_cer", False)
        log_prediction = self.plain_cfg().get("log_prediction", False)
        self.ctc_wer = WER(self.ctc_decoding, use_cer=use_cer, log_prediction=log_prediction)

    def derived_config(self) -> dict[str, Any]:
        """As a transducer's, and the sizes of the CTC head."""
        derived = super().derived_config()
        vocabulary = derived["joint.vocabulary"]
        head: dict[str, Any] = {
            "feat_in": self.ctc_decoder._feat_in,
            "num_classes": len(vocabulary),
            "vocabulary": vocabulary,
        }
        return {**derived, **{f"aux_ctc.decoder.{key}": value for key, value in head.items()}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch (signal (B, L), signal_len (B,), transcript (B, U), transcript_len (B,))."""
        encoded, encoded_len, captured = self._encode_batch(batch)
        log_probs = self.ctc_decoder(encoder_output=encoded)
        counts_errors = self.logs_step(batch_idx)
        loss, metrics = self._losses(encoded, encoded_len, log_probs, captured, batch, counts_errors)
        metrics = {f"train_{name}" if name in PARTS else name: value for name, value in step_metrics(metrics).items()}
        if counts_errors:
            metrics["training_batch_wer"] = self._count_errors(self.wer, encoded, encoded_len, batch)[0]
            metrics["training_batch_wer_ctc"] = self._count_errors(self.ctc_wer, log_probs, encoded_len, batch)[0]
        self.log_step(loss, metrics)
        return loss

    def validation_pass(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a batch: losses, and the counts that give `val_wer` and `val_wer_ctc` over all batches."""
        encoded, encoded_len, captured = self._encode_batch(batch)
        log_probs = self.ctc_decoder(encoder_output=encoded)
        rate, errors, words = self._count_errors(self.wer, encoded, encoded_len, batch)
        ctc_rate, ctc_errors, ctc_words = self._count_errors(self.ctc_wer, log_probs, encoded_len, batch)
        counts = {"val_wer": rate, "val_wer_num": errors, "val_wer_denom": words}
        counts |= {"val_wer_ctc": ctc_rate, "val_wer_ctc_num": ctc_errors, "val_wer_ctc_denom": ctc_words}
        if not self.compute_eval_loss:
            return counts
        loss, metrics = self._losses(encoded, encoded_len, log_probs, captured, batch, counts_errors=True)
        return {**counts, **metrics, "val_loss": loss}

    def _encode_batch(self, batch: Batch) -> tuple[Tensor, Tensor, Mapping[int, tuple[Tensor, Tensor]]]:
        """Encoder outputs, their lengths, and those of the inner layers that `interctc` names."""
        if not self.inter_ctc.layers:
            return (*self(input_signal=batch[0], input_signal_length=batch[1]), {})
        features, features_len = self.features(batch[0], batch[1])
        return self.inter_ctc.encode(self.encoder, features, features_len)

    def _losses(
        self,
        encoded: Tensor,
        encoded_len: Tensor,
        log_probs: Tensor,
        captured: Mapping[int, tuple[Tensor, Tensor]],
        batch: Batch,
        counts_errors: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss; its parts, and errors of inner layers, by the names they are logged with in validation."""
        transcript, transcript_len = batch[2], batch[3]
        transducer = self._transducer_loss(encoded, encoded_len, batch)
        ctc = self.ctc_loss(
            log_probs=log_probs, targets=transcript, input_lengths=encoded_len, target_lengths=transcript_len
        )
        loss = (1 - self.ctc_loss_weight) * transducer + self.ctc_loss_weight * ctc
        metrics = {"val_rnnt_loss": transducer.detach(), "val_ctc_loss": ctc.detach()}
        if not captured:
            return loss, metrics
        metric = self.ctc_wer if counts_errors else None
        loss, inner = self.inter_ctc.add_losses(
            loss, captured, self.ctc_decoder, self.ctc_loss, transcript, transcript_len, metric
        )
        return loss, {**metrics, **inner}

    def change_vocabulary(
        self,
        new_vocabulary: Sequence[str],
        decoding_cfg: Mapping[str, Any] | None = None,
        ctc_decoding_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        """Replaces the characters, and all heads by new ones; front end and encoder stay.

        Args:
            new_vocabulary: the characters; nothing happens if they are the present ones.
            decoding_cfg: another `decoding` section of the transducer; None keeps the present one.
            ctc_decoding_cfg: another one of the CTC head.
        """
        if list(new_vocabulary) != list(self.tokenizer.vocabulary):
            labels = list(new_vocabulary)
            self._replace_tokenizer(CharTokenizer(labels), {"labels": labels})
            self._change_decodings(decoding_cfg, ctc_decoding_cfg)

    def _change_decodings(self, transducer: Mapping[str, Any] | None, ctc: Mapping[str, Any] | None) -> None:
        used = self.cur_decoder
        self.change_decoding_strategy(ctc, decoder_type="ctc")
        self.change_decoding_strategy(transducer, decoder_type="rnnt")
        self.use_decoder(used)

    def _replace_tokenizer(self, tokenizer: Tokenizer, changes: Mapping[str, Any]) -> None:
        section, vocabulary = dict(self._ctc_section()), list(tokenizer.vocabulary)
        section["decoder"] = {**section["decoder"], "num_classes": len(vocabulary), "vocabulary": vocabulary}
        feat_in: Any = self.ctc_decoder._feat_in
        head = build_ctc_decoder(section["decoder"], feat_in, tokenizer, strict=False, path="model.aux_ctc.decoder")
        super()._replace_tokenizer(tokenizer, {**changes, "aux_ctc": section})
        self.ctc_decoder = head.to(next(self.encoder.parameters()).device).train(self.joint.training)

    def change_decoding_strategy(  # type: ignore[override]
        self, decoding_cfg: Mapping[str, Any] | None = None, decoder_type: str | None = None, verbose: bool = True
    ) -> None:
        """Takes another `decoding` section, and uses that decoder from now on.

        Args:
            decoding_cfg: the section; None keeps the present one.
            decoder_type: `rnnt` or `ctc`; None for the one in use.
            verbose: logs it.
        """
        self.use_decoder(decoder_type or self.cur_decoder)
        if self.cur_decoder == "rnnt":
            super().change_decoding_strategy(decoding_cfg, verbose)
            return
        present = self._ctc_section()
        section = plain(decoding_cfg) if decoding_cfg is not None else present.get("decoding") or {}
        self.set_ctc_decoding(section, strict=decoding_cfg is not None)
        self.keep_section("aux_ctc", {**present, "decoding": section})
        self._set_metric()
        if verbose:
            logger.info("decoding of the CTC head: %s", section)


class EncDecHybridRNNTCTCBPEModel(EncDecHybridRNNTCTCModel):
    """The hybrid on SentencePiece tokens: the name that files and scripts use."""

    def __init__(self, cfg: DictConfig | Mapping[str, Any], trainer: Trainer | None = None) -> None:
        require_tokenizer(cfg, "EncDecHybridRNNTCTCBPEModel")
        super().__init__(cfg, trainer)

    def change_vocabulary(  # type: ignore[override]
        self,
        new_tokenizer_dir: str | Mapping[str, Any],
        new_tokenizer_type: str = "bpe",
        decoding_cfg: Mapping[str, Any] | None = None,
        ctc_decoding_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        """Replaces the tokenizer, and all heads by new ones for it; front end and encoder stay.

        Args:
            new_tokenizer_dir: folder of a tokenizer, or a whole `tokenizer` section (aggregate tokenizers).
            new_tokenizer_type: `bpe`, for a folder.
            decoding_cfg: another `decoding` section of the transducer; None keeps the present one.
            ctc_decoding_cfg: another one of the CTC head.
        """
        tokenizer, section = take_tokenizer(self, new_tokenizer_dir, new_tokenizer_type)
        self._replace_tokenizer(tokenizer, {"tokenizer": section})
        self._change_decodings(decoding_cfg, ctc_decoding_cfg)
