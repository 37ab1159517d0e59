"""Training with two processes, started as Lightning starts them, against plain torch with twice the batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nemo_archive.torch import load_state_dict

SCRIPT = """
import json
import logging
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from nemo_expmgr import NemoModel, exp_manager

logging.basicConfig(level=logging.INFO)


class Line(NemoModel):
    def __init__(self, cfg, trainer=None):
        super().__init__(cfg, trainer)
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        wer = {"val_wer_num": 1, "val_wer_denom": 1 + self.trainer.global_rank}
        return {"val_loss": self.training_step(batch, batch_idx), **wer}

    def build_dataloader(self, section, path, training):
        x = torch.arange(16.0).unsqueeze(1)[self.trainer.global_rank :: self.world_size] / 16
        return DataLoader(TensorDataset(x, 3 * x.square() + 1), batch_size=2)


trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, num_sanity_val_steps=0, use_distributed_sampler=False,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
folder = exp_manager(trainer, {"exp_dir": "exp", "name": "line", "seconds_to_sleep": 0})
model = Line({"train_ds": {"any": 1}, "validation_ds": {"any": 1}, "optim": {"name": "sgd", "lr": 0.1}}, trainer)
trainer.fit(model)
loss, rate = (trainer.callback_metrics[name].item() for name in ("val_loss", "val_wer"))
Path(f"rank{trainer.global_rank}.json").write_text(json.dumps([trainer.global_step, loss, rate, str(folder)]))
"""


def line_trained_by_torch_alone():
    """The same line and its loss, trained with batches of four."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(1, 1)
    x = torch.arange(16.0).unsqueeze(1) / 16
    y = 3 * x.square() + 1
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for start in (0, 4, 8, 12) * 2:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(x[start : start + 4]), y[start : start + 4]).backward()
        optimizer.step()
    return layer, torch.nn.functional.mse_loss(layer(x), y).item()


def test_two_processes_train_one_model_into_one_folder(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "NEMO_EXPM_VERSION"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    steps, loss, word_error_rate, log_dir = first
    assert steps == 8
    assert done.stderr.count("Saved ") == 1, done.stderr

    (folder,) = (tmp_path / "exp" / "line").iterdir()
    assert folder == tmp_path / log_dir
    assert len(list(folder.glob("events.out.*"))) == len(list(folder.rglob("*-last.ckpt"))) == 1
    layer, expected_loss = line_trained_by_torch_alone()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert word_error_rate == pytest.approx(8 / (4 * 1 + 4 * 2))  # of all words, not the mean of two rates
    for name, tensor in load_state_dict(folder / "checkpoints" / "line.nemo").items():
        torch.testing.assert_close(tensor, layer.state_dict()[name.removeprefix("layer.")])
