"""Text to token ids and back: train, load, encode, decode."""

from txtgen.tokenizer.bpe_files import from_bpe_files
from txtgen.tokenizer.export import export_tokenizer
from txtgen.tokenizer.extending import extended, row_origins
from txtgen.tokenizer.framing import never_written, own_framing
from txtgen.tokenizer.huggingface import HuggingFaceTokenizer
from txtgen.tokenizer.huggingface_folder import ImportedTokenizer, tokenizer_from_hf_folder
from txtgen.tokenizer.incremental import IncrementalDecoder, first_stop
from txtgen.tokenizer.loading import load_tokenizer, tokenizer_from_files
from txtgen.tokenizer.names import SpecialNames
from txtgen.tokenizer.sentencepiece import SentencePieceTokenizer
from txtgen.tokenizer.training import TrainingSample, train_sentencepiece
from txtgen.tokenizer.types import Ids, Special, Tokenizer, TokenizerFiles

__all__ = [
    "HuggingFaceTokenizer",
    "Ids",
    "ImportedTokenizer",
    "IncrementalDecoder",
    "SentencePieceTokenizer",
    "Special",
    "SpecialNames",
    "Tokenizer",
    "TokenizerFiles",
    "TrainingSample",
    "export_tokenizer",
    "extended",
    "first_stop",
    "from_bpe_files",
    "load_tokenizer",
    "never_written",
    "own_framing",
    "row_origins",
    "tokenizer_from_files",
    "tokenizer_from_hf_folder",
    "train_sentencepiece",
]
