"""read_model: what SentencePiece itself says of a model."""

import pytest
import sentencepiece
from hf_folders import LLAMA, T5, spm

from txtgen.errors import CheckpointError
from txtgen.tokenizer.sentencepiece_proto import BPE, BYTE, CHAR, CONTROL, UNIGRAM, UNKNOWN, read_model


@pytest.mark.parametrize(
    ("options", "model_type"), [(LLAMA, BPE), (T5, UNIGRAM), ({"model_type": "char", "vocab_size": 300}, CHAR)]
)
def test_a_model_is_read(options: dict[str, object], model_type: int) -> None:
    content = read_model(spm(**options))
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm(**options))
    assert content.type == model_type
    assert len(content.pieces) == len(processor)
    for token_id, piece in enumerate(content.pieces):
        assert piece.text == processor.id_to_piece(token_id)
        assert piece.score == processor.get_score(token_id)
        assert (piece.type == CONTROL) == processor.is_control(token_id)
        assert (piece.type == BYTE) == processor.is_byte(token_id)
        assert (piece.type == UNKNOWN) == processor.is_unknown(token_id)
    assert content.add_dummy_prefix
    assert content.remove_extra_whitespaces == (options is not LLAMA)
    assert content.escape_whitespaces
    assert not content.whitespace_as_suffix
    assert bool(content.charsmap) == (options is not LLAMA)


@pytest.mark.parametrize("cut", [1, 3, 10, 1000])
def test_half_a_model_is_told(cut: int) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        read_model(spm(**LLAMA)[:-cut] + b"\x0a\xff\xff\x7f")


@pytest.mark.parametrize("message", [b"\xff" * 20, b"\x0f", b"\x0a\x05abc", b"\x0a\x02\x12\x01"])
def test_nonsense_is_told(message: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        read_model(message)
