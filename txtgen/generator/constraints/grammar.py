"""Texts that match a regular expression or a JSON schema, by the llguidance package."""

import json
import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from txtgen.errors import ResourceError, UsageError
from txtgen.generator.constraints.token_texts import TokenTexts

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

FREE = '%llguidance {"no_forcing": true}\n'
"""Says that text which is certain may be spelled by any tokens."""


class Grammars:
    """Makes grammars for a vocabulary and its end tokens.

    Raises:
        ResourceError: the llguidance package is not installed.
        UsageError: there is no end token, so that no text could be known to be whole.
    """

    def __init__(self, texts: TokenTexts, end: Collection[int]) -> None:
        if not end:
            raise UsageError("the model has no end token", "regex or json_schema", "leave it out")
        try:
            import llguidance
        except ImportError as error:
            fix = "run: pip install 'txtgen[constrain]'"
            raise ResourceError("the llguidance package is not installed", "regex or json_schema", fix) from error
        self.texts, self.end = texts, end
        self._package = llguidance
        self._tokenizer = cache(self._make_tokenizer)

    def regex(self, pattern: str, begins: Sequence[bool]) -> "Grammar":
        """The whole text matches the pattern.

        Raises:
            UsageError: it cannot be used.
        """
        made = self._package.LLMatcher.grammar_from_regex(pattern)
        return self._grammar("regex", json.loads(made)["grammars"][0]["lark_grammar"], begins)

    def json_schema(self, schema: str, begins: Sequence[bool]) -> "Grammar":
        """The text is JSON that the schema describes.

        Raises:
            UsageError: it cannot be used.
        """
        # A model must not be able to write spaces for ever.
        made = self._package.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": "\\x20"})
        rules = json.dumps(json.loads(made)["grammars"][0]["json_schema"])
        return self._grammar("json_schema", f"start: %json {rules}", begins)

    def _grammar(self, name: str, rules: str, begins: Sequence[bool]) -> "Grammar":
        matchers = {}
        for begin in {*begins}:
            tokenizer, canonical = self._tokenizer(begin and self.texts.tokenizer.leading_space)
            matcher = self._package.LLMatcher(tokenizer, rules if canonical else FREE + rules, log_level=0)
            refuse_error(matcher, name)
            matchers[begin] = matcher
        return Grammar(name, self.texts, self.end, [(begin, matchers[begin]) for begin in begins])

    def _make_tokenizer(self, strips: bool) -> tuple["LLTokenizer", bool]:
        """The vocabulary, and whether text that is certain is spelled as the tokenizer writes it.

        Where the first token loses a space, its numbers go on with what every token says then.
        """
        tokens = [*self.texts.all(False), *(self.texts.all(True) if strips else ())]
        spells = not strips and {bytes([byte]) for byte in range(256)} <= {*tokens}
        wrapper = self._package.TokenizerWrapper(_Vocabulary(tokens, self.texts, min(self.end)))
        return self._package.LLTokenizer(wrapper, eos_token=[*self.end]), spells


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], texts: TokenTexts, eos_token_id: int) -> None:
        self.tokens, self.texts, self.eos_token_id = tokens, texts, eos_token_id
        self.special_token_ids = [token for token, text in enumerate(tokens) if not text]

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text."""
        return list(self.texts.spell(text, begins=False))


class Match(NamedTuple):
    """What a grammar expects next, and whether the text has not begun. Never changed."""

    matcher: "LLMatcher"
    begins: bool


class Grammar:
    """The whole text is one of a grammar.

    Args:
        name: of the setting that asks for it.
        texts: of the vocabulary.
        end: the end tokens, which are possible where the text may end.
        rows: for each prompt, whether text begins after it, and the grammar's beginning.
    """

    def __init__(
        self, name: str, texts: TokenTexts, end: Collection[int], rows: Sequence[tuple[bool, "LLMatcher"]]
    ) -> None:
        self.name, self.texts, self.rows = name, texts, rows
        self._end = list(end)
        self._said = torch.tensor([not texts.is_silent(token) for token in range(texts.size)])
        # Where text begins, the token of a mere space says nothing, and yet text has begun after it.
        self._unheard = self._said & torch.tensor([not text for text in texts.all(True)])

    def start(self, row: int) -> Match:
        """Nothing was said."""
        begins, matcher = self.rows[row]
        return Match(matcher, begins and self.texts.tokenizer.leading_space)

    def after(self, state: Match, token_id: int) -> Match:
        """What a forced token says must fit, too."""
        if self.texts.is_silent(token_id):
            return state
        if state.begins and self._unheard[token_id]:
            return Match(state.matcher, False)
        matcher = state.matcher.deep_copy()
        matcher.consume_token(token_id + self.texts.size if state.begins else token_id)
        refuse_error(matcher, self.name)
        return Match(matcher, False)

    def allowed(self, state: Match) -> Tensor:
        """The tokens that the grammar can go on with."""
        found = torch.frombuffer(bytearray(state.matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        refuse_error(state.matcher, self.name)
        size = self.texts.size
        found = (found[size:] | self._unheard if state.begins else found[:size]) & self._said
        found[self._end] = state.matcher.is_accepting()
        return found


def refuse_error(matcher: "LLMatcher", name: str) -> None:
    """Raises UsageError if the grammar cannot be used, or has become too large."""
    if matcher.is_error():
        told = matcher.get_error()
        reason = re.search(r"error: (.*)", told) or re.match(r"(?:at \S+: )?(.*)", told)
        raise UsageError(reason[1] if reason else told, name, "write it otherwise; see the README for what is known")
