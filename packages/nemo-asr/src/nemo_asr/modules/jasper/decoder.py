"""Linear head of a CTC model, as a convolution of width 1.  B batch, D width, T frames, V vocabulary with blank"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nemo_asr.modules.jasper.initialization import initialize_weights
from nemo_asr.modules.neural_module import NeuralModule


class ConvASRDecoder(NeuralModule):
    """Log-probabilities of tokens, with the blank as the last class.

    Args:
        feat_in: D.
        num_classes: tokens without the blank; 0 or less takes the length of the vocabulary.
        init_mode: as in ConvASREncoder.
        vocabulary: the tokens, kept for whoever asks.
        add_blank: adds a class for the blank.

    Attributes:
        temperature: the logits are divided by it; 1 unless somebody sets it.

    Raises:
        ValueError: there is no vocabulary to count, or another number of tokens in it.
    """

    def __init__(
        self,
        feat_in: int,
        num_classes: int,
        init_mode: str | None = "xavier_uniform",
        vocabulary: Sequence[str] | None = None,
        add_blank: bool = True,
    ) -> None:
        super().__init__()
        if num_classes <= 0:
            if not vocabulary:
                raise ValueError(f"num_classes: {num_classes} leaves it to the vocabulary, and there is none")
            num_classes = len(vocabulary)
        if vocabulary is not None and len(vocabulary) != num_classes:
            raise ValueError(f"num_classes: {num_classes} differs from the {len(vocabulary)} tokens of vocabulary")
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self.num_classes_with_blank = num_classes + 1 if add_blank else num_classes
        self.temperature = 1.0
        self._feat_in = feat_in
        self.decoder_layers = nn.Sequential(nn.Conv1d(feat_in, self.num_classes_with_blank, kernel_size=1))
        initialize_weights(self, init_mode)

    def forward(self, encoder_output: Tensor) -> Tensor:
        """Log-probabilities (B, T, V) of encoder_output (B, D, T)."""
        logits = self.decoder_layers(encoder_output).transpose(1, 2)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.log_softmax(dim=-1)
