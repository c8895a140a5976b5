"""A SentencePiece model as a tokenizer that loses nothing and that no text can deceive.

SentencePiece writes a space as U+2581, so a text that holds U+2581 itself would come back with a space there.
Such a text is cut at that character, which goes through its byte pieces instead.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate, compress, pairwise

import sentencepiece

from txtgen.errors import CheckpointError, DataError
from txtgen.tokenizer.types import Special, TokenizerFiles

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

MODEL_FILE = "tokenizer.model"
"""The name of the only file of this kind of tokenizer."""

MAX_MODEL_BYTES = 256 * 1024 * 1024
"""Far above any real model; a larger file is refused before it fills the memory."""

_FAULTS = {
    "unk is not defined": "it has no piece for unknown text (<unk>)",
    "piece is too long": "one of its pieces is far too long",
    "null character": "one of its pieces holds a NUL character",
    "already defined": "it holds the same piece twice",
    "byte pieces": "its byte pieces are incomplete",
    "score is NaN or Inf": "one of its pieces has a score that is not a number",
}


class SentencePieceTokenizer:
    """A SentencePiece model.

    A model from elsewhere keeps its own normalisation, and may lack some special ids: without a beginning
    token, the end token stands for it (and the other way round); without padding, the end token does.

    A model without byte pieces encodes a character that it does not know as the unknown id, which decodes to
    U+FFFD. With byte pieces no text encodes to the unknown id, and it decodes to nothing.

    Args:
        model: the content of a .model file.
        where: what to call it in an error.

    Raises:
        CheckpointError: the content is not a usable SentencePiece model.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str = MODEL_FILE) -> None:
        self._model = model
        self._processor = _open(model, where)
        ids = list(range(len(self._processor)))
        try:
            self._pieces = self._processor.id_to_piece(ids)
        except UnicodeDecodeError as error:
            raise _unusable("one of its pieces is not UTF-8", where) from error
        self.special = _special_ids(self._processor, where)
        special = {self.special.pad_id, self.special.unk_id, self.special.bos_id, self.special.eos_id}
        control = list(compress(ids, self._processor.is_control(ids)))
        self.control_ids = {self._pieces[i]: i for i in control if i not in special}
        self.byte_ids = frozenset(compress(ids, self._processor.is_byte(ids)))
        self.leading_space = self._processor.normalize("a").startswith((SPACE, " "))
        self._bytes = [piece.replace(SPACE, " ").encode() for piece in self._pieces]
        for token_id in self.byte_ids:
            self._bytes[token_id] = bytes.fromhex(self._pieces[token_id][3:5])  # <0x41>
        for token_id in control:
            self._bytes[token_id] = b""
        self._bytes[self.special.unk_id] = b"" if self.byte_ids else "\ufffd".encode()
        self._space_ids = self._ids_of_space_character()

    def _ids_of_space_character(self) -> list[int]:
        """The ids that U+2581 in a text becomes."""
        if not self.byte_ids:
            return [self.special.unk_id]
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes]]:
        """Pickled as the model alone, so that it can be sent to another process."""
        return type(self), (self._model,)

    def __len__(self) -> int:
        """The vocabulary size V."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without beginning or end; never a special or control id, whatever it spells.

        Raises:
            DataError: the text holds half a surrogate pair, which is no Unicode character.
        """
        if SPACE in text and not self.leading_space:
            return self._encode_parts(text.split(SPACE))
        try:
            ids: list[int] = self._processor.encode(text)
        except (RuntimeError, TypeError):
            _refuse_surrogates([text])
            raise
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, faster than one by one.

        Raises:
            DataError: as for `encode`.
        """
        try:
            batch: list[list[int]] = self._processor.encode(list(texts))
        except (RuntimeError, TypeError):
            _refuse_surrogates(texts)
            raise
        if not self.leading_space:
            for row, text in enumerate(texts):
                if SPACE in text:
                    batch[row] = self._encode_parts(text.split(SPACE))
        return batch

    def _encode_parts(self, parts: list[str]) -> list[int]:
        """The ids of texts that U+2581 parts."""
        first, *others = self.encode_batch(parts)
        for ids in others:
            first += self._space_ids
            first += ids
        return first

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
        """The tokens as they are displayed: U+2581 for a space, <0x41> for a byte.

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

    def files(self) -> TokenizerFiles:
        """The .model file."""
        return {MODEL_FILE: self._model}

    def fingerprint(self) -> str:
        """SHA-256 of the .model file, in hexadecimal."""
        return hashlib.sha256(self._model).hexdigest()

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


def _open(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    if not model:
        raise _unusable("it is empty", where)
    if len(model) > MAX_MODEL_BYTES:
        raise _unusable(f"it is larger than {MAX_MODEL_BYTES:,} bytes", where)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except RuntimeError as error:
        reasons = [reason for fragment, reason in _FAULTS.items() if fragment in str(error)]
        raise _unusable(reasons[0] if reasons else "it is damaged, or something else", where) from error
    return processor


def _special_ids(processor: sentencepiece.SentencePieceProcessor, where: str) -> Special:
    """The special ids, the missing ones replaced.

    SentencePiece gives -1 for a missing one, and for one that is a piece of text instead of a control symbol.
    """
    bos, eos, pad = processor.bos_id(), processor.eos_id(), processor.pad_id()
    if bos < 0 and eos < 0:
        raise _unusable("it has neither a beginning nor an end token, so that no text could ever end", where)
    eos = eos if eos >= 0 else bos
    return Special(
        pad_id=pad if pad >= 0 else eos,
        unk_id=processor.unk_id(),
        bos_id=bos if bos >= 0 else eos,
        eos_id=eos,
    )


def _unusable(reason: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"not a usable SentencePiece model: {reason}",
        where,
        "give another .model file, or train a new tokenizer",
    )


def _refuse_surrogates(texts: Sequence[str]) -> None:
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
