"""ASRModel: what every recogniser's training has in common, its data above all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nemo_asr.models.encoder_changes import change_attention, change_chunking, change_squeeze_windows
from nemo_asr.text.tokenizer import Tokenizer
from nemo_expmgr import NemoModel

if TYPE_CHECKING:
    from nemo_asr.decoding.hypothesis import Hypothesis

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, ...]
"""signal (B, L), signal_len (B,), transcript (B, U), transcript_len (B,); the utterances' numbers may follow"""


class ASRModel(NemoModel):
    """Base of the trainable recognisers; `ASRModel.restore_from(path)` gives the class that the file names."""

    encoder: nn.Module
    tokenizer: Tokenizer
    sample_rate: int

    def build_dataloader(self, section: DictConfig, path: str, training: bool) -> DataLoader[Any] | None:
        """The loader of a `train_ds`, `validation_ds` or `test_ds` section."""
        from nemo_asr.data.loader import build_dataloader

        return build_dataloader(
            section,
            self.tokenizer,
            sample_rate=self.sample_rate,
            path=path,
            training=training,
            strict=self.strict_config,
        )

    def change_attention_model(
        self,
        self_attention_model: str | None = None,
        att_context_size: Sequence[int] | None = None,
        update_config: bool = True,
    ) -> None:
        """Replaces the encoder's attention, keeping its weights.

        Args:
            self_attention_model: rel_pos, abs_pos or rel_pos_local_attn (for long audio); the same one where None.
            att_context_size: [left, right] frames that it sees; the same where None.
            update_config: the config follows, so that the model is saved as it is.
        """
        self._keep_in_encoder(change_attention(self.encoder, self_attention_model, att_context_size), update_config)

    def change_subsampling_conv_chunking_factor(
        self, subsampling_conv_chunking_factor: int, update_config: bool = True
    ) -> None:
        """Sets in how many pieces the encoder subsamples: 1 decides by size, -1 never splits, or a power of two."""
        self._keep_in_encoder(change_chunking(self.encoder, subsampling_conv_chunking_factor), update_config)

    def change_conv_asr_se_context_window(self, context_window: int, update_config: bool = True) -> None:
        """Sets over how many frames of the features a Jasper encoder squeezes in training; negative for all."""
        section = self.plain_cfg()["encoder"]
        self._keep_in_encoder(change_squeeze_windows(self.encoder, section, context_window), update_config)

    def _keep_in_encoder(self, changed: Mapping[str, Any], update_config: bool) -> None:
        if update_config:
            config = self.plain_cfg()
            self.cfg = {**config, "encoder": {**config["encoder"], **changed}}

    def logs_step(self, batch_idx: int) -> bool:
        """Whether the trainer logs after this batch; without a trainer always."""
        interval: int = getattr(self._trainer, "log_every_n_steps", 1)
        return interval > 0 and (batch_idx + 1) % interval == 0

    def log_step(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Logs a training step under NVIDIA's names."""
        if self._trainer is None:
            return
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("learning_rate", self._trainer.optimizers[0].param_groups[0]["lr"], prog_bar=True)
        self.log("global_step", float(self._trainer.global_step))
        self.log_dict({name: value.detach() for name, value in metrics.items()})

    def on_after_backward(self) -> None:
        """With `skip_nan_grad`, a step with gradients that are not finite on some process is made with zeros."""
        if not self.cfg.get("skip_nan_grad"):
            return
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all().int()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
        if not finite:
            logger.warning("gradients are not finite: this step is made with zeros (skip_nan_grad)")
            for gradient in gradients:
                gradient.zero_()

    def validation_pass(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a batch by name (`val_…`); each family has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no validation_pass")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a validation batch."""
        return self.validation_pass(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a test batch."""
        metrics = self.validation_pass(batch, batch_idx, dataloader_idx)
        return {name.replace("val_", "test_", 1): value for name, value in metrics.items()}

    def predict_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> list[tuple[int, Hypothesis]]:
        """The utterances' numbers and hypotheses, for `trainer.predict`.

        Raises:
            ValueError: the batch has no numbers, since its section says no `return_sample_id: true`.
        """
        if len(batch) < 5:
            raise ValueError("predict: the section of the data must say return_sample_id: true")
        recognizer: Any = self
        encoded, encoded_len = recognizer.encode(batch[0], batch[1])
        hypotheses = recognizer.decode(encoded, encoded_len, timestamps=None, keep_log_probs=False)
        return list(zip(batch[4].tolist(), hypotheses, strict=True))
