"""From a `.nemo` file to a network that transcribes, with torch and without Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    import torch

    from nemo_archive import Artifact
    from nemo_asr.networks import RecognizerNetwork

NETWORKS = {
    "nemo_asr.models.EncDecCTCModel": "CtcNetwork",
    "nemo_asr.models.EncDecCTCModelBPE": "CtcNetwork",
    "nemo_asr.models.EncDecHybridRNNTCTCBPEModel": "HybridNetwork",
    "nemo_asr.models.EncDecHybridRNNTCTCModel": "HybridNetwork",
    "nemo_asr.models.EncDecRNNTBPEModel": "TransducerNetwork",
    "nemo_asr.models.EncDecRNNTModel": "TransducerNetwork",
}
"""The network inside each trainable model."""


def _network_class(target: object, path: str | PathLike[str]) -> type[RecognizerNetwork]:
    """The network class for a file's `target`, in our spelling or NVIDIA's."""
    from nemo_asr import networks
    from nemo_asr.targets import TARGETS
    from nemo_config import ConfigError

    for model, network in NETWORKS.items():
        if target == model or target in TARGETS[model]:
            return getattr(networks, network)
    known = ", ".join(model.rpartition(".")[2] for model in NETWORKS)
    raise ConfigError("target", target, f"is not among the models that can be loaded ({known}); the file is {path}")


def load_model(
    path: str | PathLike[str], *, device: str | torch.device = "cpu", mmap: bool = True
) -> RecognizerNetwork:
    """The network of a `.nemo` file, in eval mode.

    Args:
        path: a file saved by this package or by NVIDIA's toolkit.
        device: where the weights go.
        mmap: weights of an uncompressed archive stay in the file and are read when touched; with False they
            are copied, for a file that may be overwritten in place.

    Raises:
        nemo_archive.ArchiveError: the file is no archive, or its weights do not fit its config.
        nemo_config.ConfigError: the file's model class or a value of its config is not supported.
        FileNotFoundError: there is no such file, or it lacks its tokenizer.
    """
    from nemo_archive import open_archive
    from nemo_archive.torch import build_and_load, load_state_dict
    from nemo_config import file_config

    with open_archive(path, mmap=mmap) as archive:
        config = file_config(archive.config(), path)
        network_class = _network_class(config.get("target"), path)
        artifacts = archive.artifacts()
        state_dict = load_state_dict(archive, mmap=mmap)

    def fetch(config_path: str, source: str) -> Artifact:
        if config_path not in artifacts:
            raise FileNotFoundError(f"{config_path}: {source} is not in {path}")
        return artifacts[config_path]

    network = build_and_load(lambda: network_class.from_config(config, fetch, strict=False), state_dict)
    return network.to(device).eval()
