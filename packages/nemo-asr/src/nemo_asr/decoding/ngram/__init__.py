"""N-gram language models over a recogniser's tokens: ARPA files read into tensors, and trained in Python."""

from nemo_asr.decoding.ngram.arpa import Arpa, read_arpa, write_arpa
from nemo_asr.decoding.ngram.model import load_ngram
from nemo_asr.decoding.ngram.training import estimate, train

__all__ = ["Arpa", "estimate", "load_ngram", "read_arpa", "train", "write_arpa"]
