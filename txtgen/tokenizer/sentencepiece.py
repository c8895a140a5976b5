"""A SentencePiece model as a tokenizer that loses nothing and that no text can deceive.

SentencePiece writes a space as U+2581, so a text that holds U+2581 itself would come back with a space there.
Such a text is cut at that character, which goes through its byte pieces instead.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain, compress, pairwise
from random import Random
from typing import TypeAlias

import numpy as np

from txtgen.config.tokenizer import SPECIAL_PIECES
from txtgen.errors import CheckpointError
from txtgen.tokenizer.joining import ByteJoiner, files_fingerprint, pieces_by_id, refuse_surrogates, special_ids
from txtgen.tokenizer.names import NAMES_FILE, SpecialNames, check_ids
from txtgen.tokenizer.segmentation import Bpe, Unigram, segmentations
from txtgen.tokenizer.sentencepiece_model import model_pieces, model_special_ids, open_model
from txtgen.tokenizer.sentencepiece_proto import read_model
from txtgen.tokenizer.spellings import Spellings
from txtgen.tokenizer.types import Ids, Special, TokenizerFiles

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

MODEL_FILE = "tokenizer.model"
"""The name of the model among the files of this kind of tokenizer."""

VOCABULARY_FILE = "vocab.json"
"""The name of the vocabulary, where there is one."""

_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Appended to a .model file, a protobuf message, it sets normalizer_spec.add_dummy_prefix to false."""

Draw: TypeAlias = Callable[[str], list[str]]
"""Normalised text -> the pieces of a segmentation that is drawn."""

_LINES = re.compile(r"[^\n]*\n|[^\n]+")


class SentencePieceTokenizer(ByteJoiner):
    """A SentencePiece model, on its own or with a vocabulary that gives its pieces other ids.

    A model from elsewhere keeps its own normalisation, and may lack some special ids: without a beginning
    token, the end token stands for it (and the other way round); without padding, the end token does.

    A model without byte pieces encodes a character that it does not know as the unknown id, which decodes to
    U+FFFD. With byte pieces no text encodes to the unknown id, and it decodes to nothing.

    With a vocabulary, a piece that it lacks is unknown. Of its entries that the model lacks, those that `names` lists
    are control symbols, the others text, such as the pieces of Marian's other language. A text that begins with a
    control symbol of the form >>fra<< is encoded with that token, as Marian models want it.

    Args:
        model: the content of a .model file.
        where: what to call it in an error.
        vocabulary: piece -> id; None: the ids are those of the model.
        names: the special and control tokens of the vocabulary; None: <pad>, <unk>, <s> and </s>, and every entry
            that the model lacks is a control symbol.

    Raises:
        CheckpointError: the content is not a usable SentencePiece model, or the vocabulary does not fit it.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        where: str = MODEL_FILE,
        vocabulary: Mapping[str, int] | None = None,
        names: SpecialNames | None = None,
    ) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._processor = open_model(model, where)
        own_ids = list(range(len(self._processor)))
        own_pieces = model_pieces(self._processor, where)
        unspoken = {own_pieces[self._processor.unk_id()], *compress(own_pieces, self._processor.is_control(own_ids))}
        silent = {*unspoken}
        ids = vocabulary if vocabulary is not None else {piece: i for i, piece in enumerate(own_pieces)}
        if vocabulary is None:
            self.special = model_special_ids(self._processor, where)
        else:
            check_ids(vocabulary, where)
            names = names or _usual_names(tuple(piece for piece in vocabulary if piece not in {*own_pieces}))
            self.special = _mapped_special_ids(names, vocabulary, where)
            names = names.within(vocabulary)
            silent |= names.all()
        self._given_names = names
        # Special by its name alone: the model would take a text that spells it for this piece.
        spoken = (silent & {*own_pieces}) - unspoken if vocabulary is not None else ()
        self._spoken = Spellings([piece for piece in spoken if len(piece) > 1])
        self._silent_ids = {piece: token_id for piece, token_id in ids.items() if piece in silent}
        self._text_ids = {piece: token_id for piece, token_id in ids.items() if piece not in silent}
        four = {self.special.pad_id, self.special.unk_id, self.special.bos_id, self.special.eos_id}
        self.control_ids = {piece: token_id for piece, token_id in self._silent_ids.items() if token_id not in four}
        own_bytes = compress(own_pieces, self._processor.is_byte(own_ids))
        self.byte_ids = frozenset(ids[piece] for piece in own_bytes if piece in ids)
        self.leading_space = self._processor.normalize("a").startswith((SPACE, " "))
        self._cuts_at_space_sign = not self.leading_space
        self._pieces = pieces_by_id(ids)
        self._bytes = [piece.replace(SPACE, " ").encode() for piece in self._pieces]
        for token_id in self.byte_ids:
            self._bytes[token_id] = bytes.fromhex(self._pieces[token_id][3:5])  # <0x41>
        for token_id in self._silent_ids.values():
            self._bytes[token_id] = b""
        self._bytes[self.special.unk_id] = b"" if self.byte_ids else "\ufffd".encode()
        self._space_ids = self._ids_of_space_character()

    def _ids_of_space_character(self) -> list[int]:
        """The ids that U+2581 in a text becomes."""
        if not self.byte_ids:
            return [self.special.unk_id]
        return self._ids_of([f"<0x{byte:02X}>" for byte in SPACE.encode()])

    def _ids_of(self, pieces: Sequence[str]) -> list[int]:
        unknown = self.special.unk_id
        return [self._text_ids.get(piece, unknown) for piece in pieces]

    def __reduce__(
        self,
    ) -> tuple[type["SentencePieceTokenizer"], tuple[bytes, str, Mapping[str, int] | None, SpecialNames | None]]:
        """Pickled as its files alone, so that it can be sent to another process."""
        return type(self), (self._model, MODEL_FILE, self._vocabulary, self._given_names)

    @property
    def model(self) -> bytes:
        """The content of the .model file."""
        return self._model

    @property
    def vocabulary(self) -> Mapping[str, int] | None:
        """Piece -> id, where the ids are not those of the model."""
        return self._vocabulary

    @property
    def special_pieces(self) -> Mapping[str, int]:
        """The tokens that stand for no text, special and control alike -> their ids."""
        return self._silent_ids

    @property
    def names(self) -> SpecialNames:
        """How the special tokens and control symbols are spelled."""
        if self._given_names is not None:
            return self._given_names
        own = self._processor
        found = {"pad": own.pad_id(), "unk": own.unk_id(), "bos": own.bos_id(), "eos": own.eos_id()}
        roles = {role: self._pieces[token_id] for role, token_id in found.items() if token_id >= 0}
        return SpecialNames(**roles, control=tuple(self.control_ids))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without beginning or end; never a special or control id, whatever it spells.

        Raises:
            DataError: the text holds half a surrogate pair, which is no Unicode character.
        """
        with _refusing_surrogates([text]):
            return self._encode_one(text)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of every text, faster than one by one, each as an array.

        Raises:
            DataError: as for `encode`.
        """
        with _refusing_surrogates(texts):
            batch = self._encode_arrays(list(texts))
            for row, text in enumerate(texts):
                if not self._is_plain(text):
                    batch[row] = np.array(self._encode_special_case(text), np.int32)
        return batch

    @property
    def can_sample(self) -> bool:
        """Whether texts have several segmentations: unigram and bpe models can draw them, char and word models not."""
        return self._segmentations is not None

    @cached_property
    def _segmentations(self) -> Unigram | Bpe | None:
        return segmentations(read_model(self._model))

    def sample(self, text: str, seed: int, alpha: float, nbest_size: int | None = None) -> list[int]:
        """The ids of a segmentation of a text that depends on the seed alone; it decodes to the same text.

        Args:
            text: as for `encode`.
            seed: at least 0.
            alpha: unigram: how much likelier segmentations are preferred; bpe: the share of merges left out.
            nbest_size: unigram: draw among so many likeliest segmentations of each line; None: among all.

        Raises:
            DataError: as for `encode`.

        Source: Kudo 2018, arXiv 1804.10959; bpe: Provilkov et al. 2019, arXiv 1910.13267.
        """
        refuse_surrogates([text])
        own, parts = self._segmentations, [text]
        assert own is not None
        draw: Draw = partial(own.draw, chance=Random(seed), alpha=alpha)
        if nbest_size is not None and isinstance(own, Unigram):
            draw = partial(own.draw_of_best, chance=Random(seed), alpha=alpha, size=nbest_size)
            # The best segmentations of a long text would all be the same but for a word.
            parts = [text] if self.leading_space else _LINES.findall(text)
        return [token for part in parts for token in self._encode_one(part, draw)]

    def _encode_one(self, text: str, draw: Draw | None = None) -> list[int]:
        """The ids of a text by the way that it needs."""
        return self._encode_plain(text, draw) if self._is_plain(text) else self._encode_special_case(text, draw)

    def _encode_plain(self, text: str, draw: Draw | None = None) -> list[int]:
        """What SentencePiece makes of a text, or what is drawn instead, as ids."""
        if draw is not None:
            return self._ids_of(draw(self._processor.normalize(text)))
        if self._vocabulary is None:
            return list(self._processor.encode(text))
        return self._ids_of(self._processor.encode(text, out_type=str))

    def _encode_arrays(self, texts: list[str]) -> list[Ids]:
        """What SentencePiece makes of each text, as ids."""
        threads = 1 if len(texts) == 1 else -1  # as many as there are processors
        if self._vocabulary is None:
            return list(self._processor.encode(texts, num_threads=threads, return_type="numpy"))
        found = self._processor.encode(texts, num_threads=threads, out_type=str)
        return [np.array(self._ids_of(pieces), np.int32) for pieces in found]

    def _is_plain(self, text: str) -> bool:
        """Whether SentencePiece alone encodes a text rightly."""
        if SPACE in text and self._cuts_at_space_sign:
            return False
        return self._vocabulary is None or not (self._language(text) or self._spoken.places(text))

    def _language(self, text: str) -> str:
        """The control symbol of the form >>fra<< that a text begins with, or ""."""
        if self._vocabulary is None or not text.startswith(">>"):
            return ""
        symbol = text[: text.find("<<") + 2]
        return symbol if symbol in self.control_ids else ""

    def _encode_special_case(self, text: str, draw: Draw | None = None) -> list[int]:
        """The ids of a text that begins with a language, spells a special piece, or that U+2581 parts."""
        language = self._language(text)
        if language:
            return [self.control_ids[language], *self._encode_one(text.removeprefix(language), draw)]
        if places := self._spoken.places(text):
            cuts = [0, *(start + 1 for start, _ in places), len(text)]
            first_part, *parts = [text[start:end] for start, end in pairwise(cuts)]
            rest = (self._after_special._encode_one(part, draw) for part in parts)
            return [*self._encode_one(first_part, draw), *chain.from_iterable(rest)]
        first, *others = [self._encode_plain(part, draw) for part in text.split(SPACE)]
        for ids in others:
            first += self._space_ids
            first += ids
        return first

    def encode_with_special(self, text: str) -> list[int]:
        """The ids of a text in which the special and control tokens that it spells count as such.

        For the output of a chat template, and for a user who asks for it; never for what others wrote. As in
        transformers, a model that puts a space before a text does so at its beginning only, not after each of these
        tokens; unless the model drops repeated spaces, as T5 does.

        Raises:
            DataError: as for `encode`.
        """
        ids: list[int] = []
        for part, spelled in self._spellings.split(text):
            if spelled:
                ids.append(self._silent_ids[part])
            elif part:
                ids += self._after_special.encode(part) if ids else self.encode(part)
        return ids

    def special_places(self, text: str) -> list[int]:
        """Where the spellings begin that `encode_with_special` takes for tokens, overlapping ones too."""
        return [start for start, _ in self._spellings.places(text)]

    @cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self._silent_ids)

    @cached_property
    def _after_special(self) -> "SentencePieceTokenizer":
        """The tokenizer of what follows a special token: without the space before the text."""
        drops_spaces = self._processor.normalize("a  b") == self._processor.normalize("a b")
        if not self.leading_space or drops_spaces:
            return self
        after = type(self)(self._model + _NO_DUMMY_PREFIX, MODEL_FILE, self._vocabulary, self._given_names)
        after._cuts_at_space_sign = False
        return after

    def files(self) -> TokenizerFiles:
        """The .model file; with a vocabulary, that and the names of its special tokens too."""
        if self._vocabulary is None or self._given_names is None:
            return {MODEL_FILE: self._model}
        vocabulary = json.dumps(self._vocabulary, ensure_ascii=False).encode()
        return {MODEL_FILE: self._model, VOCABULARY_FILE: vocabulary, NAMES_FILE: self._given_names.to_json()}

    def fingerprint(self) -> str:
        """SHA-256 of the .model file, or of all files where there are more, in hexadecimal."""
        files = self.files()
        return files_fingerprint(files) if len(files) > 1 else hashlib.sha256(self._model).hexdigest()


@contextmanager
def _refusing_surrogates(texts: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError):
        refuse_surrogates(texts)
        raise


def _usual_names(control: tuple[str, ...]) -> SpecialNames:
    """What SentencePiece calls the special tokens."""
    pad, unk, bos, eos = SPECIAL_PIECES
    return SpecialNames(pad, unk, bos, eos, tuple(name for name in control if name not in SPECIAL_PIECES))


def _mapped_special_ids(names: SpecialNames, vocabulary: Mapping[str, int], where: str) -> Special:
    if names.unk not in vocabulary:
        raise CheckpointError(
            f"the vocabulary lacks {names.unk!r}, the token for unknown text",
            where,
            "name its unk_token in tokenizer_config.json",
        )
    return special_ids(names, vocabulary, where)
