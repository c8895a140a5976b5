"""More tokens for a tokenizer, and which tokens of another one those of a tokenizer come from."""

from collections.abc import Hashable, Sequence

from txtgen.errors import CheckpointError, ConfigError
from txtgen.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer
from txtgen.tokenizer.sentencepiece_proto import CONTROL, USER_DEFINED, Piece, piece_field
from txtgen.tokenizer.types import Tokenizer


def extended(tokenizer: Tokenizer, control_symbols: Sequence[str], pieces: Sequence[str]) -> Tokenizer:
    """A tokenizer with more tokens behind its own, whose ids stay.

    Args:
        tokenizer: a SentencePiece model.
        control_symbols: tokens that no text encodes to.
        pieces: texts that become one token wherever a text has them.

    Raises:
        CheckpointError: the tokenizer is of another kind, or has ids that are not its model's own.
        ConfigError: it has such a token already, or would never write it.
    """
    if not (control_symbols or pieces):
        return tokenizer
    if not isinstance(tokenizer, SentencePieceTokenizer) or tokenizer.vocabulary is not None:
        raise CheckpointError(
            "only a SentencePiece model on its own can be given more tokens",
            f"the tokenizer of the base model is of the kind {tokenizer.kind}, from elsewhere",
            "leave control_symbols and pieces out",
        )
    known = {*tokenizer.pieces(range(len(tokenizer)))}
    added = [Piece(symbol, 0.0, CONTROL) for symbol in control_symbols]
    added += [Piece(text.replace(" ", SPACE), 0.0, USER_DEFINED) for text in pieces]
    for piece in added:
        if piece.text in known:
            raise ConfigError(f"the tokenizer has the token {piece.text!r} already", "tokenizer", "leave it out")
    found = SentencePieceTokenizer(tokenizer.model + b"".join(map(piece_field, added)))
    for number, text in enumerate(pieces, len(tokenizer) + len(control_symbols)):
        if number not in found.encode(text):
            raise ConfigError(
                f"the tokenizer would never write the piece {text!r}",
                "tokenizer.pieces",
                "it drops some of the spaces of a text: write the piece without them",
            )
    return found


def row_origins(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """For each token of a tokenizer the tokens of another one that its row is the mean of: the same token if there is
    one, else those that spell its text; none for a control symbol that the other lacks.

    Source: Gee et al. 2022, Fast Vocabulary Transfer, arXiv 2402.09977.
    """
    known = {key: token for token, key in reversed([*enumerate(_keys(old))])}
    return [[known[key]] if key in known else _spelled(old, new, token) for token, key in enumerate(_keys(new))]


def _keys(tokenizer: Tokenizer) -> list[Hashable]:
    """What each token is, whatever its id: its role, its name, the byte or the text that it stands for."""
    special = tokenizer.special
    keys: list[Hashable] = [("text", tokenizer.token_bytes(token)) for token in range(len(tokenizer))]
    for token in tokenizer.byte_ids:
        keys[token] = ("byte", tokenizer.token_bytes(token))
    for name, token in tokenizer.control_ids.items():
        keys[token] = ("control", name)
    # Where one token has several roles, it is known by the last of these.
    roles = {"pad": special.pad_id, "unk": special.unk_id, "bos": special.bos_id, "eos": special.eos_id}
    for role, token in roles.items():
        keys[token] = ("role", role)
    return keys


def _spelled(old: Tokenizer, new: Tokenizer, token: int) -> list[int]:
    """The tokens of the old tokenizer that spell the text of a new one."""
    content = new.token_bytes(token)
    try:
        text = content.decode()
    except UnicodeDecodeError:  # a part of a character
        single = {old.token_bytes(byte): byte for byte in old.byte_ids}
        return [single[bytes([byte])] for byte in content if bytes([byte]) in single]
    if old.leading_space:
        text = text.removeprefix(" ")
    return [found for found in old.encode(text) if found != old.special.unk_id] if text else []
