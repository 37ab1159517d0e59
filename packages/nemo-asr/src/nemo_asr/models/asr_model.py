"""ASRModel: what every recogniser's training has in common, its data above all."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from nemo_asr.text.tokenizer import Tokenizer
from nemo_expmgr import NemoModel

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""signal (B, L), signal_len (B,), transcript (B, U), transcript_len (B,)"""


class ASRModel(NemoModel):
    """Base of the trainable recognisers; `ASRModel.restore_from(path)` gives the class that the file names."""

    tokenizer: Tokenizer

    def build_dataloader(self, section: DictConfig, path: str, training: bool) -> DataLoader[Any] | None:
        """The loader of a `train_ds`, `validation_ds` or `test_ds` section."""
        from nemo_asr.data.loader import build_dataloader

        return build_dataloader(
            section,
            self.tokenizer,
            sample_rate=int(self.cfg.get("sample_rate") or self.cfg.preprocessor.get("sample_rate", 16000)),
            path=path,
            training=training,
            strict=self.strict_config,
        )

    @property
    def log_every_n_steps(self) -> int:
        """How often the trainer logs; 1 without a trainer."""
        return int(getattr(self._trainer, "log_every_n_steps", 1))

    def log_step(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Logs a training step under NVIDIA's names."""
        if self._trainer is None:
            return
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("learning_rate", self._trainer.optimizers[0].param_groups[0]["lr"], prog_bar=True)
        self.log("global_step", float(self._trainer.global_step))
        self.log_dict({name: value.detach() for name, value in metrics.items()})

    def validation_pass(self, batch: Batch) -> dict[str, Tensor]:
        """Metrics of a batch by name (`val_…`); each family has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no validation_pass")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a validation batch."""
        return self.validation_pass(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Metrics of a test batch."""
        return {name.replace("val_", "test_", 1): value for name, value in self.validation_pass(batch).items()}
