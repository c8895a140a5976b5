"""Decoding one token at a time, for text that is shown while it is generated."""

import codecs
from collections.abc import Sequence

from txtgen.tokenizer.types import Tokenizer

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDecoder:
    """Turns tokens into text as they come; holds back the first bytes of a character, and what may be a stop string.

    Text ends where the first stop string begins. What `push` and the final `flush` return makes up the text up to
    there: without stop strings, `tokenizer.decode` of all the ids.

    Args:
        tokenizer: of the tokens.
        stops: texts, none of them empty. They are looked for in UTF-8: U+FFFD is found where it was written as such.
        begins: whether the text begins here. A space that the tokenizer itself put there is none of the text.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, begins: bool = True) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop.encode() for stop in stops]
        self._begins = begins and tokenizer.leading_space
        self._utf8 = _new_utf8_decoder("replace")
        self._start()

    def _start(self) -> None:
        self._waiting, self._ended, self._at_start = b"", False, self._begins

    def push(self, token_id: int) -> str:
        """The text that is certain now that this token has come; often empty within a character."""
        new = self._tokenizer.token_bytes(token_id)
        if new and self._at_start:
            new, self._at_start = new.removeprefix(b" "), False
        if not self._stops:
            return self._utf8.decode(new)
        if self._ended:
            return ""
        self._waiting += new
        place = first_stop(self._waiting, self._stops)
        self._ended = place is not None
        certain = len(self._waiting) - self._held_back() if place is None else place
        text = self._utf8.decode(self._waiting[:certain])
        self._waiting = self._waiting[certain:]
        return text

    def flush(self) -> str:
        """What was held back, the beginning of a character as U+FFFD. The decoder is then ready for a new text."""
        text = self._utf8.decode(b"" if self._ended else self._waiting, final=True)
        self._utf8.reset()
        self._start()
        return text

    def _held_back(self) -> int:
        """How many of the last bytes may be the beginning of a stop string."""
        longest = min(len(self._waiting), max(map(len, self._stops)) - 1)
        ends = (count for count in range(longest, 0, -1) if self._waiting.endswith(self._beginnings(count)))
        return next(ends, 0)

    def _beginnings(self, count: int) -> tuple[bytes, ...]:
        return tuple(stop[:count] for stop in self._stops if len(stop) > count)


def first_stop(text: bytes, stops: Sequence[bytes]) -> int | None:
    """Where in the text the first of the stop strings begins; None if none is in it."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)
