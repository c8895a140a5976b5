"""What is in a .model file: as much of its protobuf message as another library needs to do the same.

Source: sentencepiece_model.proto of SentencePiece 0.2.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from txtgen.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The types of pieces."""

UNIGRAM, BPE, WORD, CHAR = range(1, 5)
"""The types of models."""


@dataclass(frozen=True, slots=True)
class Piece:
    """An entry of the vocabulary; its id is its place."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class ModelContent:
    """pieces: the vocabulary. type: UNIGRAM, BPE, WORD or CHAR. charsmap: the compiled normalisation, often empty.

    add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces, whitespace_as_suffix: what is done with spaces.
    """

    pieces: tuple[Piece, ...]
    type: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    whitespace_as_suffix: bool


def read_model(model: bytes) -> ModelContent:
    """The content of a .model file that SentencePiece has accepted.

    Raises:
        CheckpointError: it is cut short after all.
    """
    pieces = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    for number, value in _fields(model):
        match number, value:
            case 1, bytes(content):
                pieces.append(_piece(content))
            case 2, bytes(content):
                trainer.update(_fields(content))
            case 3, bytes(content):
                normalizer.update(_fields(content))
    charsmap = normalizer.get(2, b"")
    return ModelContent(
        pieces=tuple(pieces),
        type=int(trainer.get(3, UNIGRAM)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
        escape_whitespaces=bool(normalizer.get(5, True)),
        whitespace_as_suffix=bool(trainer.get(24, False)),
    )


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    text, score = fields.get(1, b""), fields.get(2, bytes(4))
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise _damaged()
    return Piece(text.decode(), struct.unpack("<f", score)[0], int(fields.get(3, NORMAL)))


def piece_field(piece: Piece) -> bytes:
    """A piece as a field of a .model file: appended to one, it becomes the last entry of the vocabulary."""
    text = piece.text.encode()
    content = b"\x0a" + _as_varint(len(text)) + text + b"\x15" + struct.pack("<f", piece.score)
    content += b"\x18" + _as_varint(piece.type)
    return b"\x0a" + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a protobuf message: their numbers, and a whole number or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        match key & 7:
            case 0:
                value, place = _varint(message, place)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, place = _varint(message, place)
            case 5:
                size = 4
            case _:
                raise _damaged()
        if place + size > len(message):
            raise _damaged()
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _damaged()


def _damaged() -> CheckpointError:
    return CheckpointError("not a usable SentencePiece model: it is damaged", fix="give another .model file")
