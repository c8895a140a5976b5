"""A tokenizer.json as a tokenizer: byte-level BPE, BPE with byte pieces, Unigram, and words, from elsewhere.

The `tokenizers` package cuts a text into tokens; special tokens and decoding are dealt with here. A special token
gets a name that nobody can spell before the package sees it, because models often hold it as a piece like any other.
Where spellings of special tokens count, these names take their place: no normalisation makes one of another text.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer.decoders import Decoder, described_decoder
from txtgen.tokenizer.joining import ByteJoiner, files_fingerprint, pieces_by_id, refuse_surrogates, special_ids
from txtgen.tokenizer.names import NAMES_FILE, SpecialNames, check_ids, parse_object
from txtgen.tokenizer.post_processor import read_framing, write_framing
from txtgen.tokenizer.spellings import Spellings
from txtgen.tokenizer.types import Ids, TokenizerFiles

JSON_FILE = "tokenizer.json"
"""The name of the file that describes such a tokenizer."""

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
"""How a text, normalised and parted, becomes tokens."""

_BPE_OPTIONS = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class HuggingFaceTokenizer(ByteJoiner):
    """A tokenizer.json, with the names of its special tokens.

    It keeps its own normalisation. The end token stands for a missing beginning, padding or unknown token (GPT-2
    has one for all of them, Qwen no beginning), and the beginning for a missing end. Truncation, padding, dropout
    and the tokens that the file would put around a text are left out. Decoding joins the bytes of the tokens and
    cleans nothing up; an unknown token decodes to U+FFFD.

    Tokens that were added without being special, such as <think>, are text: they are found in it and decoded.

    A special token is found by its spelling as it is, whatever the file says of normalisation and words.

    Args:
        content: the content of a tokenizer.json.
        names: its special tokens; what the file itself marks as special need not be named. One that the
            vocabulary lacks counts as missing.
        where: what to call it in an error.
        parsed: the content as JSON, where it has been parsed before; it is not changed.

    Raises:
        CheckpointError: the content is not a usable tokenizer, or of a kind that is not known.
        ResourceError: the tokenizers package is not installed.
    """

    kind = "huggingface"

    def __init__(
        self, content: bytes, names: SpecialNames, where: str = JSON_FILE, parsed: Mapping[str, Any] | None = None
    ) -> None:
        description = _described(parse_object(content, where) if parsed is None else parsed, where)
        names = replace(names, unk=names.unk or _unknown_piece(description["model"]))
        self._content, self._where = content, where
        pieces = description["model"].get("vocab")
        hidden = _hide(description, names, where)
        self._tokenizer = _load(description, where)
        decoder = Decoder(described_decoder(description), where)
        ids = dict(pieces) if isinstance(pieces, dict) else {piece: i for i, (piece, _) in enumerate(pieces)}
        names_of_hidden = {name: spelling for spelling, name in hidden.items()}
        for token_id, token in self._tokenizer.get_added_tokens_decoder().items():
            ids[names_of_hidden.get(token.content, token.content)] = token_id
        check_ids(ids, where)
        self._names = names.within(ids)
        self.special = special_ids(names, ids, where)
        four = {self.special.pad_id, self.special.unk_id, self.special.bos_id, self.special.eos_id}
        special = {name: ids[name] for name in hidden if name in ids}
        self._hidden = {name: hidden[name] for name in special}
        self._tokenizer.add_special_tokens([*self._hidden.values()])
        self.control_ids = {name: token_id for name, token_id in special.items() if token_id not in four}
        self.leading_space = decoder.leading_space
        self._pieces = pieces_by_id(ids)
        self._bytes = [decoder.piece_bytes(piece) for piece in self._pieces]
        for token_id, token in self._tokenizer.get_added_tokens_decoder().items():
            self._bytes[token_id] = decoder.piece_bytes(token.content) if decoder.words else token.content.encode()
        for token_id in special.values():
            self._bytes[token_id] = b""
        self.byte_ids = frozenset(
            token_id for name, token_id in ids.items() if name not in special and decoder.is_byte(name)
        )
        others = {self.special.pad_id, self.special.bos_id, self.special.eos_id}
        if not decoder.byte_level and not self.byte_ids and self.special.unk_id not in others:
            self._bytes[self.special.unk_id] = decoder.piece_bytes("\ufffd")

    def __reduce__(self) -> tuple[type["HuggingFaceTokenizer"], tuple[bytes, SpecialNames]]:
        """Pickled as its files alone, so that it can be sent to another process."""
        return type(self), (self._content, self._names)

    @property
    def names(self) -> SpecialNames:
        """How the special tokens are spelled."""
        return self._names

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without beginning or end; never a special or control id, whatever it spells.

        Raises:
            DataError: the text holds half a surrogate pair, which is no Unicode character.
            CheckpointError: the tokenizer has no token for a character of the text, nor an unknown token.
        """
        refuse_surrogates([text])
        with _faults("it cannot encode this text", self._where):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of every text, faster than one by one, each as an array.

        Raises:
            DataError, CheckpointError: as for `encode`.
        """
        refuse_surrogates(texts)
        with _faults("it cannot encode these texts", self._where):
            rows = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(row.ids, np.int32) for row in rows]

    def encode_with_special(self, text: str) -> list[int]:
        """The ids of a text in which the special and control tokens that it spells count as such.

        For the output of a chat template, and for a user who asks for it; never for what others wrote.

        Raises:
            DataError, CheckpointError: as for `encode`.
        """
        parts = self._spellings.split(text)
        return self.encode("".join(self._hidden[part] if spelled else part for part, spelled in parts))

    def special_places(self, text: str) -> list[int]:
        """Where the spellings begin that `encode_with_special` takes for tokens, overlapping ones too."""
        return [start for start, _ in self._spellings.places(text)]

    @cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self._hidden)

    def with_framing(self, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> bytes:
        """The tokenizer.json, in which these ids stand around a text.

        Raises:
            CheckpointError: an id outside the vocabulary.
        """
        description = parse_object(self._content, self._where)
        if read_framing(description.get("post_processor"), self._where) == (prefix, suffix):
            return self._content
        self._check([*prefix, *suffix])
        description["post_processor"] = write_framing(prefix, suffix, self._pieces)
        return json.dumps(description, ensure_ascii=False).encode()

    def files(self) -> TokenizerFiles:
        """The tokenizer.json and the names of its special tokens."""
        return {JSON_FILE: self._content, NAMES_FILE: self._names.to_json()}

    def fingerprint(self) -> str:
        """SHA-256 of the files, in hexadecimal."""
        return files_fingerprint(self.files())


def _described(parsed: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of the parsed file without what txtgen leaves out. Shapes that the package refuses anyway may pass."""
    model = parsed.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in _MODELS:
        found = model.get("type") if isinstance(model, dict) else model
        raise _unusable(f"its model is {str(found)[:60]!r}, not one of {', '.join(_MODELS)}", where)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key) and model.get("type") != "WordPiece":
            raise _unusable(f"its model marks parts of words with a {key}, which no known decoder joins", where)
    model = {**model, "dropout": None} if "dropout" in model else {**model}
    return {**parsed, "model": model, "truncation": None, "padding": None, "post_processor": None}


def _unknown_piece(model: dict[str, Any]) -> str | None:
    """The piece that the model itself gives for unknown text."""
    match model:
        case {"unk_token": str(piece)} if piece:
            return piece
        case {"unk_id": int(number), "vocab": list(pieces)} if 0 <= number < len(pieces):
            entry = pieces[number]
            return entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], str) else None
        case _:
            return None


def _hide(description: dict[str, Any], names: SpecialNames, where: str) -> dict[str, str]:
    """Give the special tokens names that no text can spell. Returns name -> hidden name.

    No merge of a BPE model may make or use one any longer. A hidden name is found wherever it stands.
    """
    model = description["model"]
    try:
        added = description.get("added_tokens") or []
        pieces = model["vocab"] if isinstance(model["vocab"], dict) else {piece for piece, _ in model["vocab"]}
        special = {*names.all(), *(token["content"] for token in added if token["special"])}
        key = secrets.token_hex(16)
        new = {name: f"{key}{number:08}" for number, name in enumerate(sorted(special))}
        found = {"special": True, "normalized": False, "single_word": False}
        renamed = {name: {**found, "content": hidden} for name, hidden in new.items()}
        description["added_tokens"] = [token | renamed.get(token["content"], {}) for token in added]
        if not special.isdisjoint(pieces):
            _rename_pieces(model, new)
        if model.get("unk_token"):
            model["unk_token"] = new.get(model["unk_token"], model["unk_token"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _unusable("its parts are not what they should be", where) from error
    return new


def _rename_pieces(model: dict[str, Any], new: dict[str, str]) -> None:
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[new.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        pairs = _pairs(model["merges"])
        model["merges"] = [[left, right] for left, right in pairs if not {left, right, left + right} & new.keys()]


def _pairs(merges: list[Any]) -> Iterator[tuple[str, str]]:
    """The merges of a BPE model, which older files write as texts."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _load(description: dict[str, Any], where: str) -> Any:
    """The tokenizer of the `tokenizers` package that a parsed file describes."""
    try:
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.models import BPE
    except ImportError as error:
        raise ResourceError(
            "the tokenizers package is not installed", where, "run: pip install 'txtgen[hf]'"
        ) from error
    model = description["model"]
    with _faults("its parts are not what they should be", where):
        if model.get("type") != "BPE":
            return Tokenizer.from_str(json.dumps(description))
        # A large vocabulary takes twice as long by way of JSON. Added tokens count their ids from the model's.
        empty = {**description, "added_tokens": [], "model": {**model, "vocab": {}, "merges": [], "unk_token": None}}
        tokenizer = Tokenizer.from_str(json.dumps(empty))
        options = {key: model[key] for key in _BPE_OPTIONS if model.get(key)}
        tokenizer.model = BPE(model["vocab"], list(_pairs(model["merges"])), **options)
        added = description["added_tokens"]
        tokenizer.add_tokens([AddedToken(each["content"], **{flag: each[flag] for flag in _FLAGS}) for each in added])
        return tokenizer


@contextmanager
def _faults(what: str, where: str) -> Iterator[None]:
    """Tell the errors and panics of the Rust library in three parts; a panic is no Exception."""
    try:
        yield
    except Exception as error:
        raise _unusable(f"{what} ({_short(error)})", where) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _unusable(f"{what} ({_short(error)})", where) from error


def _short(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:120]


def _unusable(reason: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"not a usable tokenizer.json: {reason}", where, "use the files of an undamaged model, all of the same one"
    )
