"""Decoding one token at a time, for text that is shown while it is generated."""

import codecs

from txtgen.tokenizer.types import Tokenizer

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDecoder:
    """Turns tokens into text as they come, and holds back the first bytes of a character until the last.

    The pieces of text that `push` and the final `flush` return make up `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = _new_utf8_decoder("replace")
        self._at_start = True

    def push(self, token_id: int) -> str:
        """The text that is certain now that this token has come; often empty within a character."""
        return self._trim(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """What was held back: U+FFFD if the tokens ended within a character, else nothing.

        The decoder is then ready for a new text.
        """
        text = self._trim(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        self._at_start = True
        return text

    def _trim(self, text: str) -> str:
        """Without the space that the tokenizer itself put before the text."""
        if text and self._at_start:
            self._at_start = False
            if self._tokenizer.leading_space:
                return text.removeprefix(" ")
        return text
