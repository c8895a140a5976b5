"""Decoding by joining the bytes of tokens: what all tokenizers share."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from txtgen.errors import CheckpointError, DataError
from txtgen.tokenizer.names import SpecialNames
from txtgen.tokenizer.types import Special, TokenizerFiles

MISSING = ""
"""The piece of an id that no token has."""


class ByteJoiner:
    """The half of a tokenizer that turns ids into text.

    A subclass sets `_pieces`, the tokens as they are displayed, `_bytes`, the UTF-8 of each, and `leading_space`.
    """

    leading_space: bool
    _pieces: list[str]
    _bytes: list[bytes]

    def __len__(self) -> int:
        """The vocabulary size V."""
        return len(self._pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Special and control ids give nothing; bytes that are not UTF-8 give U+FFFD.

        Raises:
            CheckpointError: an id outside the vocabulary.
        """
        text = b"".join(self._all_bytes(ids)).decode(errors="replace")
        return text.removeprefix(" ") if self.leading_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 of one token, perhaps a part of a character only; empty for special and control ids.

        Raises:
            CheckpointError: an id outside the vocabulary.
        """
        return self._all_bytes([token_id])[0]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The tokens as they are displayed, such as U+2581 for a space in SentencePiece, <0x41> for a byte.

        Raises:
            CheckpointError: an id outside the vocabulary.
        """
        self._check(ids)
        return [self._pieces[token_id] for token_id in ids]

    def offsets(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each token begins and ends, in bytes of the UTF-8 of `decode(ids)`.

        Where the tokens' bytes are not valid UTF-8, the bytes before their replacement are counted.

        Raises:
            CheckpointError: an id outside the vocabulary.
        """
        parts = self._all_bytes(ids)
        removed = int(self.leading_space and b"".join(parts).startswith(b" "))
        ends = [max(0, end - removed) for end in accumulate(map(len, parts), initial=0)]
        return list(pairwise(ends))

    def _all_bytes(self, ids: Sequence[int]) -> list[bytes]:
        self._check(ids)
        return [self._bytes[token_id] for token_id in ids]

    def _check(self, ids: Sequence[int]) -> None:
        """Refuse ids outside the vocabulary; a negative one would silently count from the end."""
        if len(ids) and not 0 <= min(ids) <= max(ids) < len(self._pieces):
            wrong = next(token_id for token_id in ids if not 0 <= token_id < len(self._pieces))
            raise CheckpointError(
                f"token {wrong} is outside the tokenizer's vocabulary of {len(self._pieces)}",
                fix="use the tokenizer that the model was trained with",
            )


def pieces_by_id(vocabulary: Mapping[str, int]) -> list[str]:
    """The pieces in the order of their ids, MISSING where no token has the id."""
    pieces = [MISSING] * (max(vocabulary.values(), default=-1) + 1)
    for piece, token_id in vocabulary.items():
        pieces[token_id] = piece
    return pieces


def special_ids(names: SpecialNames, vocabulary: Mapping[str, int], where: str) -> Special:
    """The ids of the special tokens, the missing ones replaced.

    The end stands for a missing beginning, padding or unknown token, the beginning for a missing end.

    Raises:
        CheckpointError: there is neither a beginning nor an end.
    """
    found = {key: vocabulary[name] for key, name in names.roles().items() if name in vocabulary}
    eos = found.get("eos_token", found.get("bos_token"))
    if eos is None:
        raise CheckpointError(
            "the tokenizer has neither a beginning nor an end token, so that no text could ever end",
            where,
            "name its eos_token in tokenizer_config.json",
        )
    return Special(
        pad_id=found.get("pad_token", eos),
        unk_id=found.get("unk_token", eos),
        bos_id=found.get("bos_token", eos),
        eos_id=eos,
    )


def files_fingerprint(files: TokenizerFiles) -> str:
    """SHA-256 of a tokenizer's files and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def refuse_surrogates(texts: Sequence[str]) -> None:
    """Refuse a text that cannot be written in UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise lone_surrogate(error) from error


def lone_surrogate(error: UnicodeEncodeError) -> DataError:
    """The error for a text that cannot be written in UTF-8."""
    return DataError(
        f"the text holds U+{ord(error.object[error.start]):04X}, half a surrogate pair and no character",
        f"character {error.start + 1} of the text",
        "decode the text as UTF-8 again, or remove it",
    )
