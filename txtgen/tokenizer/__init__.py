"""Text to token ids and back: train, load, encode, decode."""

from txtgen.tokenizer.framing import own_framing
from txtgen.tokenizer.incremental import IncrementalDecoder
from txtgen.tokenizer.loading import load_tokenizer, tokenizer_from_files
from txtgen.tokenizer.sentencepiece import SentencePieceTokenizer
from txtgen.tokenizer.training import TrainingSample, train_sentencepiece
from txtgen.tokenizer.types import Special, Tokenizer, TokenizerFiles

__all__ = [
    "IncrementalDecoder",
    "SentencePieceTokenizer",
    "Special",
    "Tokenizer",
    "TokenizerFiles",
    "TrainingSample",
    "load_tokenizer",
    "own_framing",
    "tokenizer_from_files",
    "train_sentencepiece",
]
