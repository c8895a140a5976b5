"""What the tokens of a tokenizer.json mean: the bytes of every piece, by the decoder that the file names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from txtgen.errors import CheckpointError

_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in byte-level BPE: itself if it can be seen, else one above 255.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + n) for n, byte in enumerate(unseen)}


_BYTE_OF = {character: byte for byte, character in byte_characters().items()}
_LATIN1 = dict.fromkeys(range(256), 256) | {ord(character): byte for character, byte in _BYTE_OF.items()}
"""What stands for a byte becomes the character of that number, anything else one above 255."""

_CLEANED = {f" {end}": end for end in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")} | {" do not": " don't"}
"""What the decoder of WordPiece does to a word with a space before it, if it cleans up."""


def described_decoder(description: Mapping[str, Any]) -> Any:
    """The "decoder" of a tokenizer.json; where it has none, the one that its other parts leave no doubt about."""
    decoder, model = description.get("decoder"), description.get("model")
    if decoder is None and _has_byte_level(description.get("pre_tokenizer")):
        return {"type": "ByteLevel"}
    if decoder is None and isinstance(model, dict) and model.get("type") == "WordLevel":
        return {"type": "WordLevel"}
    return decoder


def is_byte_level(description: Mapping[str, Any]) -> bool:
    """Whether the pieces of a tokenizer.json are bytes written as characters."""
    return _has_byte_level(described_decoder(description))


def _has_byte_level(description: Any) -> bool:
    return any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in _steps(description))


class Decoder:
    """The decoder of a tokenizer.json as a table: what each piece is in bytes.

    byte_level: the pieces are bytes written as characters. byte_pieces: pieces such as <0x41> are bytes.
    words: the pieces are words, with spaces between them. leading_space: whether a space at the beginning of a text
    is taken away.

    Args:
        description: the "decoder" of the file.
        where: what to call the file in an error.

    Raises:
        CheckpointError: the decoder is of a kind that is not known.
    """

    def __init__(self, description: Any, where: str) -> None:
        self.byte_level = self.byte_pieces = self.words = self.leading_space = self._clean = False
        self._space: str | None = None
        self._continuing = ""
        steps = list(_steps(description))
        for step in steps:
            match step:
                case {"type": "ByteLevel"}:
                    self.byte_level = True
                case {"type": "ByteFallback"}:
                    self.byte_pieces = True
                case {"type": "WordLevel"}:
                    self.words = self.leading_space = True
                case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(clean)} if prefix:
                    self.words = self.leading_space = True
                    self._continuing, self._clean = prefix, clean
                case {"type": "Fuse"}:
                    pass
                case {"type": "Metaspace", "replacement": str(space)}:
                    self._space = space
                    old = "always" if step.get("add_prefix_space", True) else "never"
                    self.leading_space = step.get("prepend_scheme", old) != "never"
                case {"type": "Replace", "pattern": {"String": str(space)}, "content": " "}:
                    self._space = space
                case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                    self.leading_space = start == 1
                case _:
                    raise _unknown_decoder(step, where)
        if not steps:
            raise _unknown_decoder(description, where)

    def piece_bytes(self, piece: str) -> bytes:
        """The UTF-8 of a piece, perhaps of a part of a character."""
        if self.byte_level:
            try:
                return piece.translate(_LATIN1).encode("latin-1")
            except UnicodeEncodeError:
                return piece.encode()
        if self.words:
            return self._word(piece).encode()
        if self.byte_pieces and (found := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(found[1])
        return (piece.replace(self._space, " ") if self._space else piece).encode()

    def _word(self, piece: str) -> str:
        """A word with the space before it, or the rest of one."""
        if self._continuing and piece.startswith(self._continuing):
            return piece.removeprefix(self._continuing)
        word = f" {piece}"
        for spelled, cleaned in _CLEANED.items() if self._clean else ():
            word = word.replace(spelled, cleaned)
        return word

    def is_byte(self, piece: str) -> bool:
        """Whether a piece stands for one byte of a character that has no piece of its own."""
        if self.byte_level:
            return len(piece) == 1 and _BYTE_OF.get(piece, 0) >= 0x80
        return self.byte_pieces and _BYTE_PIECE.fullmatch(piece) is not None


def _steps(description: Any) -> Iterator[Any]:
    """The steps in the description of a decoder or a pre-tokenizer, one after the other."""
    stack = [description]
    while stack:
        match stack.pop():
            case {"type": "Sequence", "decoders": list(parts)} | {"type": "Sequence", "pretokenizers": list(parts)}:
                stack += reversed(parts)
            case step:
                yield step


def _unknown_decoder(step: Any, where: str) -> CheckpointError:
    name = step.get("type") if isinstance(step, dict) else step
    return CheckpointError(
        f"tokenizers with the decoder {str(name)[:60]} are not known",
        where,
        "use a model with byte-level BPE (GPT-2, BART, Llama 3, Qwen), SentencePiece pieces (T5, Llama, Mistral), "
        "WordLevel or WordPiece",
    )
