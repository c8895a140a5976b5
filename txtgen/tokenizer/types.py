"""What the rest of the package knows of a tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from txtgen.tokenizer.names import SpecialNames

TokenizerFiles: TypeAlias = dict[str, bytes]
"""The files of a tokenizer by name; with its kind they are enough to rebuild it."""

Ids: TypeAlias = NDArray[np.int32]
"""Token ids, [T] int32."""


@dataclass(frozen=True, slots=True)
class Special:
    """The ids that stand for no text. All distinct in the models trained here."""

    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def kind(self) -> str:
        """The family of tokenizers, such as "sentencepiece"."""

    @property
    def special(self) -> Special:
        """Padding, unknown, beginning and end."""

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Control symbol -> id, such as "<|user|>". No text encodes to them."""

    @property
    def names(self) -> SpecialNames:
        """How the special tokens and control symbols are spelled."""

    @property
    def byte_ids(self) -> frozenset[int]:
        """The ids that stand for one byte each, for characters without a piece."""

    @property
    def leading_space(self) -> bool:
        """Whether `encode` puts a space before every text, which `decode` takes away again."""

    def __len__(self) -> int:
        """The vocabulary size V."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without beginning or end; never a special or control id, whatever it spells.

        Raises:
            DataError: the text holds half a surrogate pair, which is no Unicode character.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of every text, faster than one by one, each as an array."""

    def encode_with_special(self, text: str) -> list[int]:
        """The ids of a text in which the special and control tokens that it spells count as such.

        For the output of a chat template, and for a user who asks for it; never for what others wrote.
        """

    def special_places(self, text: str) -> list[int]:
        """Where the spellings begin that `encode_with_special` takes for tokens, overlapping ones too."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Special and control ids give nothing; bytes that are not UTF-8 give U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 of one token, perhaps a part of a character only; empty for special and control ids."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The tokens as they are displayed, one for each id."""

    def offsets(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each token begins and ends, in bytes of the UTF-8 of `decode(ids)`.

        Where the tokens' bytes are not valid UTF-8, the bytes before their replacement are counted.
        """

    def files(self) -> TokenizerFiles:
        """The files that the tokenizer is rebuilt from."""

    def fingerprint(self) -> str:
        """SHA-256 of the files, in hexadecimal: equal for equal tokenizers."""
