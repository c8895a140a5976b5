"""Constraints on what is generated: how it begins, what it does not say, and which grammar it keeps."""

from collections.abc import Collection, Sequence
from functools import cache, cached_property
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from txtgen.config.decoding import DecodingConfig
from txtgen.decode import Constraint
from txtgen.errors import UsageError
from txtgen.generator.grammar import Grammars
from txtgen.generator.token_texts import TokenTexts
from txtgen.tokenizer import Tokenizer

State = TypeVar("State")


class Row(NamedTuple):
    """What a constraint must know of a prompt: whether text begins after it, and how many tokens may follow."""

    begins: bool
    limit: int


class Automaton(Protocol[State]):
    """Reads tokens one by one. A state is never changed, for several sequences may go on from it."""

    def start(self, row: int) -> State:
        """Before any token that is generated for prompt `row`."""

    def after(self, state: State, token_id: int) -> State:
        """After one token more."""

    def allowed(self, state: State) -> Tensor:
        """The tokens that may follow, [V] bool."""


class Tracked(Generic[State]):
    """An automaton as a constraint: remembers the state of each sequence, made from that of the one a token shorter.

    So beams may be reordered, copied and dropped, and nobody needs to tell.
    """

    def __init__(self, automaton: Automaton[State]) -> None:
        self.automaton = automaton
        self._length = 0
        self._states: dict[tuple[int, tuple[int, ...]], State] = {}

    def allowed(self, row: int, token_ids: tuple[int, ...]) -> Tensor:
        """[V] bool: what may follow these new tokens."""
        return self.automaton.allowed(self.state(row, token_ids))

    def state(self, row: int, token_ids: tuple[int, ...]) -> State:
        """The state after these new tokens, generated for prompt `row`."""
        key = row, token_ids
        if key not in self._states:
            found = self.automaton.start(row)
            if token_ids:
                found = self.automaton.after(self.state(row, token_ids[:-1]), token_ids[-1])
            if len(token_ids) > self._length:
                # All sequences of a search grow at once: what is shorter than by one is asked for no more.
                self._length = len(token_ids)
                self._states = {
                    known: state for known, state in self._states.items() if len(known[1]) >= self._length - 1
                }
            self._states[key] = found
        return self._states[key]


class Beginning:
    """The text begins with a prefix, in the tokens that the tokenizer writes it in; one of them may say more.

    A state is whether the text begins there, and how many of these tokens were said; None: all of the prefix was.

    Args:
        texts: of the vocabulary.
        prefix: the text.
        begins: for each prompt, whether text begins after it.
    """

    def __init__(self, texts: TokenTexts, prefix: str, begins: Sequence[bool]) -> None:
        self.texts, self.begins = texts, begins
        self.spellings = {begin: texts.spell(prefix, begin) for begin in {*begins}}
        self._masks = cache(self._mask)

    def start(self, row: int) -> tuple[bool, int | None]:
        """Nothing was said."""
        return self.begins[row], 0

    def after(self, state: tuple[bool, int | None], token_id: int) -> tuple[bool, int | None]:
        """A token that is not the next one holds all that was left."""
        begins, count = state
        if count is None or self.texts.is_silent(token_id):
            return state
        spelling = self.spellings[begins]
        goes_on = token_id == spelling[count] and count + 1 < len(spelling)
        return begins, count + 1 if goes_on else None

    def allowed(self, state: tuple[bool, int | None]) -> Tensor:
        """The next token, and every other one that begins with all that is left."""
        return self._masks(state)

    def _mask(self, state: tuple[bool, int | None]) -> Tensor:
        begins, count = state
        if count is None:
            return torch.ones(self.texts.size, dtype=torch.bool)
        left, first = self.spellings[begins][count:], begins and count == 0
        return mask_of([left[0], *self.texts.beginning_with(self.texts.said(left, first), first)], self.texts.size)


class TextEnd(NamedTuple):
    """The last bytes of a text, as many as matter; and whether it has no text yet."""

    tail: bytes
    begins: bool


class Forbidden:
    """Some texts are not said, whatever tokens spell them.

    Args:
        texts: of the vocabulary.
        parts: what is not said.
        begins: for each prompt, whether text begins after it.
    """

    def __init__(self, texts: TokenTexts, parts: Sequence[str], begins: Sequence[bool]) -> None:
        self.texts, self.begins = texts, begins
        self.parts = [part.encode() for part in parts]
        self._reach = max(map(len, self.parts)) - 1
        self._masks = cache(self._mask)

    def start(self, row: int) -> TextEnd:
        """Nothing was said."""
        return TextEnd(b"", self.begins[row])

    def after(self, state: TextEnd, token_id: int) -> TextEnd:
        """Whatever may be the beginning of a part."""
        text = state.tail + self.texts.all(state.begins)[token_id]
        return TextEnd(text[max(0, len(text) - self._reach) :], state.begins and self.texts.is_silent(token_id))

    def allowed(self, state: TextEnd) -> Tensor:
        """The tokens that neither hold a part nor end one."""
        tail, begins = state
        ends = {part[size:] for part in self.parts for size in range(1, len(part)) if tail.endswith(part[:size])}
        return self._masks(frozenset(ends), begins)

    def _mask(self, ends: frozenset[bytes], begins: bool) -> Tensor:
        """The tokens that hold no part and begin with none of these."""
        if not ends:
            texts = self.texts.all(begins)
            return ~mask_of([token for token, text in enumerate(texts) if self._is_held(text)], self.texts.size)
        ending = [token for end in ends for token in self.texts.beginning_with(end, begins)]
        return self._masks(frozenset(), begins) & ~mask_of(ending, self.texts.size)

    def _is_held(self, text: bytes) -> bool:
        return any(part in text for part in self.parts)


def mask_of(token_ids: Sequence[int], size: int) -> Tensor:
    """[V] bool: True for these tokens."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(token_ids)] = True
    return mask


class Constraints:
    """Makes constraints for the texts of a tokenizer.

    Args:
        tokenizer: of the text that is generated.
        size: of the model's vocabulary, which the tokenizer need not fill.
        end: the end tokens.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, end: Collection[int]) -> None:
        self.tokenizer, self.size, self.end = tokenizer, size, end

    @cached_property
    def texts(self) -> TokenTexts:
        """What the tokens say."""
        return TokenTexts(self.tokenizer, self.size)

    @cached_property
    def grammars(self) -> Grammars:
        """What makes grammars."""
        return Grammars(self.texts, self.end)

    def make(self, decoding: DecodingConfig, rows: Sequence[Row]) -> tuple[Constraint, ...]:
        """What the settings ask for, for each prompt.

        Raises:
            UsageError: no tokens spell a text, they are more than a row may have, or a grammar cannot be used.
            ResourceError: a package is missing.
        """
        begins = [row.begins for row in rows]
        found: list[Constraint] = []
        if decoding.prefix is not None:
            beginning = Beginning(self.texts, decoding.prefix, begins)
            for row in rows:
                _refuse_lack_of_room("prefix", len(beginning.spellings[row.begins]), row.limit)
            found.append(Tracked(beginning))
        if decoding.regex is not None:
            found.append(Tracked(self.grammars.regex(decoding.regex, begins)))
        if decoding.json_schema is not None:
            found.append(Tracked(self.grammars.json_schema(decoding.json_schema, begins)))
        if decoding.bad_words:
            found.append(Tracked(Forbidden(self.texts, decoding.bad_words, begins)))
        return tuple(found)


def _refuse_lack_of_room(name: str, count: int, limit: int) -> None:
    if count > limit:
        told = f"{name} takes {count} tokens, and {limit} are generated at most"
        raise UsageError(told, name, "raise max_new_tokens or max_length, or shorten it")
