"""From settings to constraints."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import NamedTuple

from txtgen.config.decoding import BeamSettings, DecodingConfig, SequentialConfig
from txtgen.decode import Constraint
from txtgen.errors import UsageError
from txtgen.generator.constraints.automata import Row, Tracked
from txtgen.generator.constraints.grammar import Grammars
from txtgen.generator.constraints.inclusion import Included, Parts
from txtgen.generator.constraints.token_texts import TokenTexts
from txtgen.generator.constraints.wording import Beginning, Forbidden
from txtgen.tokenizer import Tokenizer


class Rules(NamedTuple):
    """What is asked for: constraints, and what must be included; and the tokens that spell what must be said."""

    constraints: tuple[Constraint, ...]
    inclusion: Included | None
    spelling: frozenset[int] = frozenset()


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

    def make(self, decoding: DecodingConfig, rows: Sequence[Row]) -> Rules:
        """What the settings ask for, for each prompt.

        Raises:
            UsageError: no tokens spell a text, they are more than a row may have, or a grammar cannot be used.
            ResourceError: a package is missing.
        """
        found: list[Constraint] = []
        spelling: set[int] = set()
        begins = [row.begins for row in rows]
        in_step = not (isinstance(decoding, SequentialConfig) and decoding.speculation is not None)
        if decoding.prefix is not None and rows:
            _refuse_lack_of_room("prefix", self._count(decoding.prefix, rows), rows)
            beginning = Beginning(self.texts, decoding.prefix, begins)
            spelling.update(*beginning.spellings.values())
            found.append(Tracked(beginning, in_step))
        if decoding.regex is not None:
            found.append(Tracked(self.grammars.regex(decoding.regex, begins), in_step))
        if decoding.json_schema is not None:
            found.append(Tracked(self.grammars.json_schema(decoding.json_schema, begins), in_step))
        if decoding.bad_words:
            found.append(Tracked(Forbidden(self.texts, decoding.bad_words, begins), in_step))
        inclusion = self._inclusion(decoding, rows)
        if inclusion is not None:
            spelling |= inclusion.parts.tokens
        return Rules(tuple(found), inclusion, frozenset(spelling))

    def _inclusion(self, decoding: DecodingConfig, rows: Sequence[Row]) -> Included | None:
        if not isinstance(decoding, BeamSettings) or not decoding.include or not rows:
            return None
        for part in decoding.include:
            for name, texts in (("bad_words", decoding.bad_words), ("stop", decoding.stop)):
                if held := [text for text in texts if text in part]:
                    told = f"{part!r:.80} is to be included, and has {held[0]!r:.80} in it, of {name}"
                    raise UsageError(told, "include", "give one of the two")
        # What is forced at either end says nothing of it.
        rows = [Row(row.begins, row.limit - bool(decoding.forced_eos_token_id)) for row in rows]
        before = int(decoding.forced_bos_token_id is not None)
        if decoding.prefix is not None:
            before += self._count(decoding.prefix, rows)
        parts = Parts(self.texts, decoding.include, decoding.stop, rows, self.end)
        count = max(parts.remaining(parts.start(row)) for row in range(len(rows)))
        _refuse_lack_of_room("include", before + count, rows)
        return Included(parts)

    def _count(self, prefix: str, rows: Sequence[Row]) -> int:
        """How many tokens a prefix takes at most."""
        return max(len(self.texts.spell(prefix, begin)) for begin in {row.begins for row in rows})


def _refuse_lack_of_room(name: str, count: int, rows: Sequence[Row]) -> None:
    if count > (limit := min(row.limit for row in rows)):
        told = f"{name} takes {count} tokens, and {limit} are generated at most"
        raise UsageError(told, name, "raise max_new_tokens or max_length, or shorten it")
