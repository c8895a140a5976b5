"""What the tokens of a tokenizer.json mean: the bytes of every piece, by the decoder that the file names."""

import re
from collections.abc import Iterator
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


class Decoder:
    """The decoder of a tokenizer.json as a table: what each piece is in bytes.

    byte_level: the pieces are bytes written as characters. byte_pieces: pieces such as <0x41> are bytes.
    leading_space: whether a space at the beginning of a text is taken away.

    Args:
        description: the "decoder" of the file.
        where: what to call the file in an error.

    Raises:
        CheckpointError: the decoder is of a kind that is not known.
    """

    def __init__(self, description: Any, where: str) -> None:
        self.byte_level = self.byte_pieces = self.leading_space = False
        self._space: str | None = None
        steps = list(_steps(description))
        for step in steps:
            match step:
                case {"type": "ByteLevel"}:
                    self.byte_level = True
                case {"type": "ByteFallback"}:
                    self.byte_pieces = True
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
                return bytes(_BYTE_OF[character] for character in piece)
            except KeyError:
                return piece.encode()
        if self.byte_pieces and (found := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(found[1])
        return (piece.replace(self._space, " ") if self._space else piece).encode()

    def is_byte(self, piece: str) -> bool:
        """Whether a piece stands for one byte of a character that has no piece of its own."""
        if self.byte_level:
            return len(piece) == 1 and _BYTE_OF.get(piece, 0) >= 0x80
        return self.byte_pieces and _BYTE_PIECE.fullmatch(piece) is not None


def _steps(description: Any) -> Iterator[Any]:
    """The decoders in a description, one after the other."""
    if isinstance(description, dict) and description.get("type") == "Sequence":
        for part in description.get("decoders", []):
            yield from _steps(part)
    else:
        yield description


def _unknown_decoder(step: Any, where: str) -> CheckpointError:
    name = step.get("type") if isinstance(step, dict) else step
    return CheckpointError(
        f"tokenizers with the decoder {str(name)[:60]} are not known",
        where,
        "use a model with byte-level BPE (GPT-2, BART, Llama 3, Qwen) or SentencePiece pieces (T5, Llama, Mistral)",
    )
