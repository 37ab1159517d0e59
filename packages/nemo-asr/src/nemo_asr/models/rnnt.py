"""EncDecRNNTModel and EncDecRNNTBPEModel: the transducer made trainable (NVIDIA's class names, keys and metrics)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor

from nemo_asr.losses.rnnt import FAMILIES, RNNTLoss
from nemo_asr.metrics.wer import WER
from nemo_asr.models.asr_model import ASRModel, Batch
from nemo_asr.models.gradients import GradientOptions
from nemo_asr.models.vocabulary import derived_vocabulary, require_tokenizer, take_tokenizer
from nemo_asr.networks.transducer import TransducerNetwork, build_prediction_and_joint, build_transducer_parts
from nemo_asr.text.char import CharTokenizer
from nemo_asr.text.tokenizer import Tokenizer
from nemo_config import plain

logger = logging.getLogger(__name__)


class EncDecRNNTModel(TransducerNetwork, ASRModel):
    """A transducer; its tokenizer, characters or SentencePiece, is what the config says.

    Args:
        cfg: the `model` section of a config.
        trainer: the trainer that will fit it, if there is one yet.
    """

    def __init__(self, cfg: DictConfig | Mapping[str, Any], trainer: Trainer | None = None) -> None:
        ASRModel.__init__(self, cfg, trainer)
        config = self.plain_cfg()
        if not config.get("decoding"):
            self.keep_section("decoding", {"strategy": "greedy_batch"})  # scripts edit model.cfg.decoding
        self._build(config)
        self.compute_eval_loss = bool(config.get("compute_eval_loss", True))
        self._gradient_options = GradientOptions.of(config)
        self._longest = (0, 0)
        self._set_loss()
        self._set_metric()

    def _build(self, config: Mapping[str, Any]) -> None:
        self.assemble(build_transducer_parts(config, self.artifact, strict=self.strict_config))

    def _set_loss(self) -> None:
        name, options = self.loss_section
        blank = self.joint.num_classes_with_blank - 1
        if FAMILIES[name] == "tdt":
            blank -= self.joint.num_extra_outputs
        reduction = self.plain_cfg().get("rnnt_reduction", "mean_batch")
        self.loss = RNNTLoss(blank, reduction=reduction, loss_name=name, loss_kwargs=options)
        self.joint.set_loss(self.loss)

    def _set_metric(self) -> None:
        config = self.plain_cfg()
        log_prediction = config.get("log_prediction", True)
        self.wer = WER(self.decoding, use_cer=config.get("use_cer", False), log_prediction=log_prediction)
        self.joint.set_wer(self.wer)

    def derived_config(self) -> dict[str, Any]:
        """What a saved config must say of vocabulary and sizes, for NVIDIA's toolkit to restore it."""
        vocabulary = list(self.tokenizer.vocabulary)
        return {
            "decoder.vocab_size": len(vocabulary),
            "joint.num_classes": len(vocabulary),
            "joint.vocabulary": vocabulary,
            "joint.jointnet.encoder_hidden": self.joint.options.encoder_hidden,
            "joint.jointnet.pred_hidden": self.joint.options.pred_hidden,
            **derived_vocabulary(self),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch (signal (B, L), signal_len (B,), transcript (B, U), transcript_len (B,))."""
        encoded, encoded_len = self(input_signal=batch[0], input_signal_length=batch[1])
        loss = self._transducer_loss(encoded, encoded_len, batch)
        metrics = {}
        if self.logs_step(batch_idx):
            metrics["training_batch_wer"] = self._count_errors(self.wer, encoded, encoded_len, batch)[0]
        self.log_step(loss, metrics)
        return loss

    def validation_pass(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a batch: `val_loss`, and the counts that give `val_wer` over all batches."""
        encoded, encoded_len = self(input_signal=batch[0], input_signal_length=batch[1])
        rate, errors, words = self._count_errors(self.wer, encoded, encoded_len, batch)
        metrics = {"val_wer": rate, "val_wer_num": errors, "val_wer_denom": words}
        if self.compute_eval_loss:
            metrics["val_loss"] = self._transducer_loss(encoded, encoded_len, batch)
        return metrics

    def _transducer_loss(self, encoded: Tensor, encoded_len: Tensor, batch: Batch) -> Tensor:
        transcript, transcript_len = batch[2], batch[3]
        if self._gradient_options.by_lengths:
            self._longest = (int(encoded_len.max()), int(transcript_len.max()))
        predictions, _, _ = self.decoder(targets=transcript, target_length=transcript_len)
        return self.loss.of_joint(self.joint, encoded, predictions, transcript, encoded_len, transcript_len)

    @staticmethod
    def _count_errors(
        metric: WER, predictions: Tensor, predictions_len: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Error rate, errors and reference words of a batch."""
        return metric.of_batch(predictions.detach(), predictions_len, batch[2], batch[3])

    def on_after_backward(self) -> None:
        """As every recogniser's, and what the config does to gradients (`variational_noise`, `normalize_*`)."""
        super().on_after_backward()
        step = 0 if self._trainer is None else self._trainer.global_step
        self._gradient_options.apply(self, step, self._longest)

    def change_vocabulary(self, new_vocabulary: Sequence[str], decoding_cfg: Mapping[str, Any] | None = None) -> None:
        """Replaces the characters, and prediction network and joint by new ones; front end and encoder stay.

        Args:
            new_vocabulary: the characters; nothing happens if they are the present ones.
            decoding_cfg: another `decoding` section; None keeps the present one.
        """
        if list(new_vocabulary) != list(self.tokenizer.vocabulary):
            labels = list(new_vocabulary)
            self._replace_tokenizer(CharTokenizer(labels), {"labels": labels})
            self.change_decoding_strategy(decoding_cfg)

    def _replace_tokenizer(self, tokenizer: Tokenizer, changes: Mapping[str, Any]) -> None:
        config = {**self.plain_cfg(), **changes}
        encoder_width = self.joint.options.encoder_hidden
        decoder, joint = build_prediction_and_joint(config, tokenizer, encoder_width, strict=False)
        device, training = next(self.encoder.parameters()).device, self.joint.training
        self.decoder, self.joint = decoder.to(device).train(training), joint.to(device).train(training)
        self.tokenizer = tokenizer
        self.cfg = config
        self._set_loss()

    def change_decoding_strategy(self, decoding_cfg: Mapping[str, Any] | None = None, verbose: bool = True) -> None:
        """Takes another `decoding` section; None keeps the present one.  With `verbose` it is logged."""
        section = plain(decoding_cfg) if decoding_cfg is not None else self.plain_cfg().get("decoding") or {}
        self.set_decoding(section, strict=decoding_cfg is not None)
        self.keep_section("decoding", section)
        self._set_metric()
        if verbose:
            logger.info("decoding: %s", section)


class EncDecRNNTBPEModel(EncDecRNNTModel):
    """A transducer on SentencePiece tokens: the name that files and scripts use."""

    def __init__(self, cfg: DictConfig | Mapping[str, Any], trainer: Trainer | None = None) -> None:
        require_tokenizer(cfg, "EncDecRNNTBPEModel")
        super().__init__(cfg, trainer)

    def change_vocabulary(  # type: ignore[override]
        self,
        new_tokenizer_dir: str | Mapping[str, Any],
        new_tokenizer_type: str = "bpe",
        decoding_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        """Replaces the tokenizer, and prediction network and joint by new ones; front end and encoder stay.

        Args:
            new_tokenizer_dir: folder of a tokenizer, or a whole `tokenizer` section (aggregate tokenizers).
            new_tokenizer_type: `bpe`, for a folder.
            decoding_cfg: another `decoding` section; None keeps the present one.
        """
        tokenizer, section = take_tokenizer(self, new_tokenizer_dir, new_tokenizer_type)
        self._replace_tokenizer(tokenizer, {"tokenizer": section})
        self.change_decoding_strategy(decoding_cfg)
