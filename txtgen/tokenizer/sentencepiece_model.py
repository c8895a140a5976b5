"""A .model file of SentencePiece, opened: whatever is wrong with it is told."""

import sentencepiece

from txtgen.errors import CheckpointError
from txtgen.tokenizer.types import Special

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


def open_model(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    """The content of a .model file as SentencePiece reads it.

    Args:
        model: the content, which need not be trusted.
        where: what to call it in an error.

    Raises:
        CheckpointError: it is not a usable model.
    """
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


def model_special_ids(processor: sentencepiece.SentencePieceProcessor, where: str) -> Special:
    """The special ids, the missing ones replaced.

    SentencePiece gives -1 for a missing one, and for one that is a piece of text instead of a control symbol.

    Raises:
        CheckpointError: there is neither a beginning nor an end token.
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


def model_pieces(processor: sentencepiece.SentencePieceProcessor, where: str) -> list[str]:
    """All pieces, by id.

    Raises:
        CheckpointError: one of them is not text.
    """
    try:
        pieces: list[str] = processor.id_to_piece(list(range(len(processor))))
    except UnicodeDecodeError as error:
        raise _unusable("one of its pieces is not UTF-8", where) from error
    return pieces


def _unusable(reason: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"not a usable SentencePiece model: {reason}",
        where,
        "give another .model file, or train a new tokenizer",
    )
