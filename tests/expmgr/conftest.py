"""A model of a few layers with all that a model has: an artifact, tied weights, a buffer that is not saved, data."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nemo_expmgr.model import NemoModel


class TinyModel(NemoModel):
    """Predicts the next word from one word; its words come from a file."""

    def __init__(self, cfg, trainer=None):
        super().__init__(cfg, trainer)
        if self.cfg.width % 2:
            raise ValueError(f"width: {self.cfg.width} must be even")
        self.words = self.artifact("words.path", self.cfg.words.path).data.decode().split()
        self.embedding = nn.Embedding(len(self.words), self.cfg.width)
        self.inner = nn.Linear(self.cfg.width, self.cfg.width)
        self.output = nn.Linear(self.cfg.width, len(self.words), bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("scale", torch.arange(self.cfg.width) / self.cfg.width, persistent=False)

    def derived_config(self):
        return {"words.count": len(self.words)}

    def forward(self, ids):
        return self.output(torch.tanh(self.inner(self.embedding(ids))) * self.scale)

    def _loss(self, batch):
        return nn.functional.cross_entropy(self(batch[:, 0]), batch[:, 1])

    def training_step(self, batch, batch_idx):
        return self._loss(batch)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        loss = self._loss(batch)
        wrong = (self(batch[:, 0]).argmax(-1) != batch[:, 1]).sum()
        return {"val_loss": loss, "val_wer_num": wrong, "val_wer_denom": len(batch), "val_wer": wrong / len(batch)}

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return {"test_loss": self._loss(batch)}

    def build_dataloader(self, section, path, training):
        with Path(section.manifest_filepath).open() as file:
            pairs = torch.tensor([json.loads(line) for line in file])
        return DataLoader(pairs, batch_size=section.batch_size)


@pytest.fixture
def tiny_class():
    return TinyModel


@pytest.fixture
def words_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the cat sat on mat")
    return path


@pytest.fixture
def manifest(tmp_path):
    """Makes a manifest of pairs of word ids."""

    def make(name, pairs=((0, 1), (1, 2), (2, 3), (3, 0), (0, 4))):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
        return str(path)

    return make


@pytest.fixture
def tiny_cfg(words_file):
    return {
        "width": 8,
        "copied_width": "${width}",
        "words": {"path": str(words_file)},
        "train_ds": {"manifest_filepath": "???", "batch_size": 2},
        "validation_ds": {"manifest_filepath": None, "batch_size": 2},
        "optim": {"name": "sgd", "lr": 0.1},
    }


@pytest.fixture
def tiny_model(tiny_cfg):
    torch.manual_seed(0)
    return TinyModel(tiny_cfg)


@pytest.fixture
def ids():
    return torch.tensor([0, 1, 2, 3, 4])
