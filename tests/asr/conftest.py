"""Golden cases: a config, its weights, and what NVIDIA's toolkit computed with them, stage by stage."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

GOLDEN = Path(__file__).parents[1] / "golden"
CTC_CASES = ("quartznet_ctc_char", "fastconformer_ctc_bpe", "conformer_ctc_bpe")


@dataclass(frozen=True)
class Golden:
    """One golden case, read with nothing but tarfile, yaml and torch."""

    path: Path
    config: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    io: dict[str, torch.Tensor]
    meta: dict[str, Any]

    def section(self, name: str) -> dict[str, Any]:
        """The keywords of a module's constructor: its section without `_target_`."""
        return {key: value for key, value in self.config[name].items() if key != "_target_"}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of a CTC case."""
        from nemo_asr.text.char import CharTokenizer
        from nemo_asr.text.sentence_piece import SentencePieceTokenizer

        if "tokenizer" not in self.config:
            return CharTokenizer(self.config["decoder"]["vocabulary"])
        with tarfile.open(self.path) as archive:
            return SentencePieceTokenizer(
                _member(archive, self.config["tokenizer"]["model_path"].removeprefix("nemo:"))
            )

    def weights(self, prefix: str) -> dict[str, torch.Tensor]:
        """The part of the state dict under `prefix`, with the prefix taken off."""
        start = prefix + "."
        return {key.removeprefix(start): value for key, value in self.state_dict.items() if key.startswith(start)}


@cache
def read_golden(case: str) -> Golden:
    folder = GOLDEN / case
    with tarfile.open(folder / "model.nemo") as archive:
        config = yaml.safe_load(_member(archive, "model_config.yaml"))
        weights = torch.load(io.BytesIO(_member(archive, "model_weights.ckpt")), weights_only=True)
    with np.load(folder / "io.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return Golden(folder / "model.nemo", config, weights, tensors, meta)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile("./" + name)
    assert file is not None
    return file.read()


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """`golden("quartznet_ctc_char")` gives config, state_dict, io (tensors) and meta; treat them as read-only."""
    return read_golden


@pytest.fixture(params=CTC_CASES)
def ctc_case(request: pytest.FixtureRequest) -> Golden:
    """Each of the golden CTC cases in turn."""
    return read_golden(request.param)


def assert_equal_when_valid(
    ours: torch.Tensor, expected: torch.Tensor, lengths: torch.Tensor, tolerance: float
) -> None:
    """Compares (B, D, T) tensors inside of the lengths (B,)."""
    assert ours.shape == expected.shape
    for row, frames in enumerate(lengths.tolist()):
        torch.testing.assert_close(ours[row, :, :frames], expected[row, :, :frames], rtol=0, atol=tolerance)


@pytest.fixture(scope="session")
def equal_when_valid() -> Callable[..., None]:
    """`equal_when_valid(ours, expected, lengths, tolerance)` for (B, D, T) tensors."""
    return assert_equal_when_valid


@dataclass(frozen=True)
class StoredModule:
    """An encoder or front end of tests/golden/encoders: options, and what NVIDIA's toolkit computed with them."""

    kind: str
    options: dict[str, Any]
    arrays: dict[str, torch.Tensor]

    def build(self) -> torch.nn.Module:
        """Ours, with the stored weights, in eval mode."""
        from nemo_asr import modules

        module: torch.nn.Module = getattr(modules, self.kind)(**self.options).eval()
        state = {key[6:]: value for key, value in self.arrays.items() if key.startswith("state.")}
        assert list(module.state_dict()) == list(state)
        module.load_state_dict(state)
        return module

    def assert_equal(self, module: torch.nn.Module) -> None:
        """Output and lengths in eval mode; output and the gradient of the input in training mode, where stored."""
        arrays = self.arrays
        out, out_len = module(arrays["x"], arrays["length"])
        torch.testing.assert_close(out, arrays["out"], atol=5e-6, rtol=1e-5)
        assert out_len.tolist() == arrays["out_length"].tolist()
        if "train" in arrays:
            x = arrays["x"].clone().requires_grad_()
            out, _ = module.train()(x, arrays["length"])
            torch.testing.assert_close(out, arrays["train"], atol=5e-6, rtol=1e-5)
            (out * torch.arange(out.shape[2]).cos()).square().mean().backward()
            scale = float(arrays["gradient"].abs().max())
            torch.testing.assert_close(x.grad, arrays["gradient"], atol=2e-5 * scale, rtol=1e-4)
            module.eval()


@pytest.fixture
def stored_module() -> Callable[[str], StoredModule]:
    """Reads a file of tests/golden/encoders."""

    def read(name: str) -> StoredModule:
        with np.load(GOLDEN / "encoders" / f"{name}.npz") as stored:
            description = json.loads(str(stored["description"]))
            arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "description"}
        return StoredModule(description["class"], description["options"], arrays)

    return read
