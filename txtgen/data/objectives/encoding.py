"""Texts -> token ids for training: as the tokenizer has it, or by segmentations that are drawn for each text."""

from collections.abc import Sequence

from txtgen.config.data import SubwordSampling
from txtgen.data.order import Use, keyed_word
from txtgen.errors import ConfigError
from txtgen.tokenizer import SentencePieceTokenizer, Tokenizer


class Encoder:
    """Encodes texts. With sampling, the segmentation of a text depends on its key alone.

    Raises:
        ConfigError: the tokenizer knows only one segmentation of a text.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SubwordSampling | None = None) -> None:
        self.tokenizer = tokenizer
        self._sampling = sampling
        if sampling is not None and not (isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.can_sample):
            raise ConfigError(
                "the tokenizer cannot draw segmentations: it is no SentencePiece model of kind unigram or bpe",
                "data.subword_sampling",
                "leave it out",
            )

    def __call__(self, texts: Sequence[str], keys: Sequence[int]) -> list[list[int]]:
        """The ids of each text. keys: below 2**63, one a text."""
        if self._sampling is None or not isinstance(self.tokenizer, SentencePieceTokenizer):
            return self.tokenizer.encode_batch(texts)
        alpha, nbest_size = self._sampling.alpha, self._sampling.nbest_size
        seeds = [keyed_word(Use.SUBWORDS, key) for key in keys]
        return [self.tokenizer.sample(text, seed, alpha, nbest_size) for text, seed in zip(texts, seeds, strict=True)]
