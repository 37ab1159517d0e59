"""Joint networks of transducers: scores of the next token at a frame, after some tokens (Graves, arXiv 1211.3711).

    z(t, u) = W act(enc(f_t) + pred(g_u)) + b

`HATJoint` (arXiv 2003.07705) gives blank a probability of its own, and the tokens share the rest.

B batch, T frames, U target steps with the start, D width, H joint width, V vocabulary with blank (the last; TDT's
durations come after it, multi-blank's big blanks before it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nemo_asr.modules.nested_options import read_options
from nemo_asr.modules.neural_module import NeuralModule

if TYPE_CHECKING:
    from nemo_asr.losses.rnnt import RNNTLoss
    from nemo_asr.metrics.wer import WER
    from nemo_asr.modules.sampled_joint import SampledHead

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


@dataclass(frozen=True)
class JointOptions:
    """The `jointnet` section: widths of encoder, prediction network and sum; activation, and dropout after it."""

    encoder_hidden: int
    pred_hidden: int
    joint_hidden: int
    activation: str
    dropout: float = 0.0


class RNNTJoint(NeuralModule):
    """Joint network.

    Args:
        jointnet: as `JointOptions`.
        num_classes: tokens without blank.
        num_extra_outputs: TDT's durations, or multi-blank's big blanks.
        vocabulary: the tokens, kept for whoever asks.
        log_softmax: true gives log-probabilities, false logits; null gives log-probabilities on a CPU alone, as
            NVIDIA's toolkit does.  The losses take either.
        preserve_memory: without meaning here.
        fuse_loss_wer: `forward` gives the loss and the error counts instead of scores.
        fused_batch_size: utterances that a fused step computes at a time where it must hold the scores.
        experimental_fuse_loss_wer: the old name of fuse_loss_wer.
        masking_prob: in training, the probability that a step of the prediction network is masked (arXiv
            2410.02597); none where not positive.

    Attributes:
        temperature: logits are divided by it before a softmax; 1 unless somebody sets it.

    Raises:
        ValueError: an option out of its range, named as in the config.
    """

    IGNORED_KEYS = frozenset({"preserve_memory"})

    def __init__(
        self,
        jointnet: Mapping[str, Any],
        num_classes: int,
        num_extra_outputs: int = 0,
        vocabulary: Sequence[str] | None = None,
        log_softmax: bool | None = None,
        preserve_memory: bool = False,
        fuse_loss_wer: bool = False,
        fused_batch_size: int | None = None,
        experimental_fuse_loss_wer: bool | None = None,
        masking_prob: float = -1.0,
    ) -> None:
        super().__init__()
        fused = fuse_loss_wer if experimental_fuse_loss_wer is None else experimental_fuse_loss_wer
        if fused and (fused_batch_size is None or fused_batch_size < 1):
            raise ValueError(f"fused_batch_size: {fused_batch_size!r} must be above 0 with fuse_loss_wer")
        if masking_prob >= 1:
            raise ValueError(f"masking_prob: {masking_prob} must be below 1")
        self.options = read_options(JointOptions, jointnet, "jointnet")
        if self.options.activation not in ACTIVATIONS:
            raise ValueError(f"jointnet.activation: {self.options.activation!r} is none of {', '.join(ACTIVATIONS)}")
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self.num_classes_with_blank = num_classes + 1 + num_extra_outputs
        self.num_extra_outputs = num_extra_outputs
        self.log_softmax = log_softmax
        self.fuse_loss_wer, self.fused_batch_size = fused, fused_batch_size
        self.masking_prob = masking_prob
        self.temperature = 1.0
        self.loss: RNNTLoss | None = None
        self.wer: WER | None = None
        self.pred = nn.Linear(self.options.pred_hidden, self.options.joint_hidden)
        self.enc = nn.Linear(self.options.encoder_hidden, self.options.joint_hidden)
        self._build_outputs(num_classes)

    def _build_outputs(self, num_classes: int) -> None:
        self.joint_net = _head(self.options, self.num_classes_with_blank)

    @property
    def is_linear(self) -> bool:
        """Whether the scores are a linear map of the activated sum, so that a fused loss can compute them."""
        return True

    def set_loss(self, loss: RNNTLoss) -> None:
        """The loss of a fused step."""
        self.loss = loss

    def set_wer(self, wer: WER) -> None:
        """The metric of a fused step."""
        self.wer = wer

    def set_fuse_loss_wer(self, fuse_loss_wer: bool, loss: RNNTLoss | None = None, metric: WER | None = None) -> None:
        """Makes `forward` a fused step or an ordinary one; loss and metric stay where they are not given."""
        self.fuse_loss_wer = fuse_loss_wer
        if loss is not None:
            self.set_loss(loss)
        if metric is not None:
            self.set_wer(metric)

    def set_fused_batch_size(self, fused_batch_size: int | None) -> None:
        """Utterances that a fused step computes at a time where it must hold the scores."""
        self.fused_batch_size = fused_batch_size

    def forward(
        self,
        encoder_outputs: Tensor,
        decoder_outputs: Tensor | None,
        encoder_lengths: Tensor | None = None,
        transcripts: Tensor | None = None,
        transcript_lengths: Tensor | None = None,
        compute_wer: bool = False,
    ) -> Tensor | tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Scores of all tokens; or, with `fuse_loss_wer`, loss and error counts.

        Args:
            encoder_outputs: (B, D, T).
            decoder_outputs: (B, D, U); may be None in a fused step, which then has no loss.
            encoder_lengths: frames of each (B,), for a fused step.
            transcripts: tokens (B, U - 1), for a fused step.
            transcript_lengths: tokens of each (B,), for a fused step.
            compute_wer: a fused step counts errors, too.

        Returns:
            (B, T, U, V); or the loss, error rate, errors and reference words, None where not computed.
        """
        if not self.fuse_loss_wer:
            if decoder_outputs is None:
                raise ValueError("decoder_outputs: is None, which only a fused step allows")
            return self.joint(encoder_outputs.transpose(1, 2), decoder_outputs.transpose(1, 2))
        if encoder_lengths is None or transcripts is None or transcript_lengths is None:
            raise ValueError("a fused step needs encoder_lengths, transcripts and transcript_lengths")
        loss = None
        if decoder_outputs is not None:
            if self.loss is None:
                raise ValueError("a fused step needs a loss: call set_loss first")
            loss = self.loss.of_joint(
                self, encoder_outputs, decoder_outputs, transcripts, encoder_lengths, transcript_lengths
            )
        if not compute_wer:
            return loss, None, None, None
        if self.wer is None:
            raise ValueError("a fused step with compute_wer needs a metric: call set_wer first")
        return (loss, *self.wer.of_batch(encoder_outputs.detach(), encoder_lengths, transcripts, transcript_lengths))

    def project_encoder(self, encoder_output: Tensor) -> Tensor:
        """(B, T, H) of encoder outputs (B, T, D)."""
        projected: Tensor = self.enc(encoder_output)
        return projected

    def project_prednet(self, prednet_output: Tensor) -> Tensor:
        """(B, U, H) of outputs of the prediction network (B, U, D)."""
        projected: Tensor = self.pred(prednet_output)
        return projected

    def joint(self, f: Tensor, g: Tensor) -> Tensor:
        """Scores (B, T, U, V) of encoder outputs (B, T, D) and outputs of the prediction network (B, U, D)."""
        return self.joint_after_projection(self.project_encoder(f), self.project_prednet(g))

    def joint_after_projection(self, f: Tensor, g: Tensor) -> Tensor:
        """Scores (B, T, U, V) of projected encoder outputs (B, T, H) and predictions (B, U, H)."""
        return self.normalized(self.logits(f, self.mask_predictions(g)))

    def normalized(self, logits: Tensor) -> Tensor:
        """The scores that `forward` gives of unnormalised ones (..., V): log-probabilities where `log_softmax` says so,
        or where it says nothing, on a CPU."""
        if self.log_softmax or (self.log_softmax is None and not logits.is_cuda):
            return (logits / self.temperature if self.temperature != 1.0 else logits).log_softmax(dim=-1)
        return logits

    def logits(self, f: Tensor, g: Tensor) -> Tensor:
        """Unnormalised scores (B, T, U, V) of projections (B, T, H) and (B, U, H)."""
        scores: Tensor = self.joint_net(f.unsqueeze(2) + g.unsqueeze(1))
        return scores

    def internal_language_model(self, g: Tensor) -> Tensor:
        """Log-probabilities (B, U, V - 1) of the tokens after projected predictions (B, U, H), without the audio: the
        joint of an encoder output of zeros, its blanks left out (Meng et al., arXiv 2011.01991)."""
        silent = self.project_encoder(g.new_zeros(1, 1, self.options.encoder_hidden))
        tokens = self.num_classes_with_blank - 1 - self.num_extra_outputs
        return self.logits(silent, g)[:, 0, :, :tokens].float().log_softmax(dim=-1)

    def sampled_head(self, targets: Tensor, target_lengths: Tensor) -> SampledHead | None:
        """The outputs that the loss of targets (B, U) with their lengths (B,) is computed over; None for all."""
        return None

    def mask_predictions(self, g: Tensor) -> Tensor:
        """Projected predictions (B, U, H), some steps zeroed in training with `masking_prob`."""
        if not self.training or self.masking_prob <= 0:
            return g
        return g * (torch.rand(*g.shape[:2], 1, device=g.device) > self.masking_prob)


class HATJoint(RNNTJoint):
    """Joint network of a hybrid autoregressive transducer; its scores are log-probabilities.

    Arguments as RNNTJoint's, of which num_extra_outputs must be 0.
    """

    def _build_outputs(self, num_classes: int) -> None:
        if self.num_extra_outputs:
            raise ValueError(f"num_extra_outputs: {self.num_extra_outputs} must be 0 in a HATJoint")
        self.joint_net = _head(self.options, num_classes)
        self.blank_pred = nn.Sequential(
            nn.Tanh(), nn.Dropout(self.options.dropout), nn.Linear(self.options.joint_hidden, 1), nn.LogSigmoid()
        )

    @property
    def is_linear(self) -> bool:
        return False

    def normalized(self, logits: Tensor) -> Tensor:
        return logits

    def logits(self, f: Tensor, g: Tensor) -> Tensor:
        hidden = f.unsqueeze(2) + g.unsqueeze(1)
        blank = self.blank_pred(hidden)
        left = torch.clamp(1 - blank.exp(), min=1e-6).log()
        return torch.cat([left + self.joint_net(hidden).log_softmax(dim=-1), blank], dim=-1)

    def internal_language_model(self, g: Tensor) -> Tensor:
        """As RNNTJoint's, without the encoder projection's bias, by HAT's definition."""
        scores: Tensor = self.joint_net(g)
        return scores.float().log_softmax(dim=-1)


def _head(options: JointOptions, outputs: int) -> nn.Sequential:
    dropout = [nn.Dropout(options.dropout)] if options.dropout else []
    return nn.Sequential(ACTIVATIONS[options.activation](), *dropout, nn.Linear(options.joint_hidden, outputs))
