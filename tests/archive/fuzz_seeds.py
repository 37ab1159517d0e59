"""The archives that fuzz.py mutates: golden files, and small ones made here of every form that the reader knows."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from nemo_archive import Artifact
from nemo_archive.torch import save_archive

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = """\
target: nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE
sample_rate: 16000
defaults: &rates {lr: 1e-3, betas: [0.9, 0.98], weight_decay: .5e-2}
optim:
  <<: *rates
  name: adamw
  sched: {name: CosineAnnealing, warmup_steps: null, min_lr: 1.0e-06}
encoder: {_target_: nemo.collections.asr.modules.ConformerEncoder, d_model: 176, n_heads: '4', n_layers: '${depth}'}
depth: 0x10
train_ds:
  manifest_filepath: ???
  cache: !!python/object/apply:pathlib.PosixPath [/, tmp]
labels: [' ', a, "b", 'é', "\\u1234"]
text: |-
  several
  lines
tokenizer: {model_path: 'nemo:0123456789abcdef0123456789abcdef_tokenizer.model', vocab_path: /data/old/vocab.txt}
"""
ARTIFACTS = {
    "0123456789abcdef0123456789abcdef_tokenizer.model": b"\n\x0b\n\x05<unk>\x15\0\0\0\0",
    "vocab.txt": b"a\nb\n",
}


def tar_of(members: dict[str, bytes], *, tar_format: int = tarfile.PAX_FORMAT, prefix: str = "./") -> bytes:
    """A tar file of these members with times of 0."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def state_dict() -> OrderedDict[str, Any]:
    """A few small tensors of several kinds: tied, transposed, with an offset, empty, a parameter, many dtypes."""
    weight = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    content: OrderedDict[str, Any] = OrderedDict(
        {
            "encoder.weight": weight,
            "decoder.weight": weight,
            "encoder.transposed": weight.T,
            "encoder.part": weight[1:3, 2:],
            "encoder.bias": torch.nn.Parameter(torch.ones(3)),
            "norm.num_batches_tracked": torch.tensor(7),
            "empty": torch.empty(0, 5),
            "bfloat16": torch.ones(2, dtype=torch.bfloat16),
            "float8": torch.ones(2).to(torch.float8_e4m3fn),
            "complex": torch.ones(2, dtype=torch.complex64),
            "flags": torch.tensor([True, False]),
            "expanded": torch.ones(1).expand(5),
        }
    )
    content._metadata = OrderedDict({"": {"version": 1}, "encoder": {"version": 2}})  # type: ignore[attr-defined]
    return content


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, stream, **options)
    return stream.getvalue()


def _safetensors() -> bytes:
    config = {"target": "a.b.C", "lr": 1e-3}
    content = {name: tensor for name, tensor in state_dict().items() if tensor.dtype != torch.complex64}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made.nemo")
        save_archive(path, config, content, [Artifact("vocab.txt", b"a\n")], weights="safetensors")
        return path.read_bytes()


def _distributed() -> dict[str, bytes]:
    """The members of a sharded checkpoint, as torch.distributed writes it in a process of its own."""
    import torch.distributed.checkpoint as distributed

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.save({"a": torch.ones(2, 3), "b": torch.arange(5), "steps": 3}, checkpoint_id=folder, no_dist=True)
        return {f"model_weights/{file.name}": file.read_bytes() for file in sorted(Path(folder).iterdir())}


def _zarr() -> dict[str, bytes]:
    """The members of a zarr checkpoint of one tensor (3, 4) in two chunks, the second of them padded."""
    described = {"zarr_format": 2, "shape": [3, 4], "chunks": [2, 4], "dtype": "<f4", "fill_value": None}
    described |= {"compressor": None, "filters": None, "order": "C"}
    chunks = {f"model_weights/w/{row}.0": torch.ones(2, 4).numpy().tobytes() for row in (0, 1)}
    return {"model_weights/w/.zarray": json.dumps(described).encode(), **chunks}


def small_seeds() -> dict[str, bytes]:
    """Archives of a few kilobytes, by name."""
    config = CONFIG.encode()
    weights = saved(state_dict())
    nested = {"state_dict": {"a": torch.ones(2)}, "epoch": 3, "hyper": [1, 2.5, None, True, b"x", ("y", {3: "z"})]}
    members = {"model_config.yaml": config, **ARTIFACTS, "model_weights.ckpt": weights}
    inner = tar_of({"model_config.yaml": b"a: 1\n", "model_weights.ckpt": saved({"w": torch.ones(1)})})
    shards = {f"mp_rank_0{rank}/model_weights.ckpt": saved({"w": torch.ones(2) * rank}) for rank in (0, 1)}
    old_kinds = {name: tensor for name, tensor in state_dict().items() if name != "float8"}  # torch cannot read it back
    legacy = saved(old_kinds, _use_new_zipfile_serialization=False)
    long_name = "folder/" + "n" * 150 + ".txt"
    plain = {"model_config.yaml": config}
    return {
        "plain": tar_of(members),
        "without prefix": tar_of(members, prefix=""),
        "nested dicts": tar_of({**plain, "model_weights.ckpt": saved(nested)}),
        "legacy torch": tar_of({**plain, "model_weights.ckpt": legacy}),
        "safetensors": _safetensors(),
        "shards": tar_of({**plain, **shards}),
        "distributed": tar_of({**plain, **_distributed()}),
        "zarr": tar_of({**plain, **_zarr()}),
        "sub-model": tar_of({**members, "encoder.nemo": inner, "notes.json": json.dumps({"a": 1}).encode()}),
        "long names, pax": tar_of({**plain, long_name: b"x"}),
        "long names, GNU": tar_of({**plain, long_name: b"x"}, tar_format=tarfile.GNU_FORMAT),
    }


def golden_seeds() -> dict[str, bytes]:
    """The archives that NVIDIA's toolkit wrote, by name."""
    return {f"golden {path.parent.name}/{path.name}": path.read_bytes() for path in sorted(GOLDEN.glob("*/*.nemo"))}
