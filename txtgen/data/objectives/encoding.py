"""Texts -> token ids for training: as the tokenizer has it, or by segmentations that are drawn for each text."""

from collections.abc import Sequence

import numpy as np

from txtgen.config.data import SubwordSampling
from txtgen.data.order import Use, keyed_word
from txtgen.errors import ConfigError
from txtgen.tokenizer import Ids, SentencePieceTokenizer, Tokenizer


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

    @property
    def draws(self) -> bool:
        """Whether segmentations are drawn."""
        return self._sampling is not None

    def __call__(self, texts: Sequence[str], keys: Sequence[int]) -> list[Ids]:
        """The ids of each text. keys: below 2**63, one a text."""
        tokenizer, sampling = self.tokenizer, self._sampling
        if sampling is None or not isinstance(tokenizer, SentencePieceTokenizer):
            return tokenizer.encode_batch(texts)
        seeds = [keyed_word(Use.SUBWORDS, key) for key in keys]
        return [
            np.array(tokenizer.sample(text, seed, sampling.alpha, sampling.nbest_size), np.int32)
            for text, seed in zip(texts, seeds, strict=True)
        ]
