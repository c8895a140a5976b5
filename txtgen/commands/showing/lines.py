"""Lines from the user: at a terminal with a mark, history and completion; else as they are piped in."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from txtgen.commands.showing.console import tell
from txtgen.errors import TxtgenError, UsageError

MARK, MORE = "> ", "… "


class Lines:
    """Asks for lines, and tells the user what is not part of the results.

    interactive: whether a user is at a terminal that shows the results; if not, nothing is told.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline: Any = None
        if self.interactive:
            with suppress(ImportError):  # Windows has none
                import readline

                self._readline = readline

    def ask(self) -> str | None:
        """The next line, or several of which all but the last end with a backslash; None at the end.

        Raises:
            UsageError: it is not text.
        """
        line = self._line(MARK)
        while line is not None and line.endswith("\\"):
            more = self._line(MORE)
            line = line[:-1] if more is None else f"{line[:-1]}\n{more}"
        return line

    def _line(self, mark: str) -> str | None:
        try:
            if self.interactive:
                return input(mark)
            line = sys.stdin.readline()
            return line.removesuffix("\n") if line else None
        except EOFError:
            self.note("")
            return None
        except UnicodeDecodeError as error:
            raise UsageError(f"not UTF-8 at byte {error.start}", "standard input", "write UTF-8") from error

    def complete(self, words: Sequence[str]) -> None:
        """Let the tabulator complete these words at the beginning of a line."""
        if self._readline is None:
            return
        readline = self._readline

        def completer(text: str, state: int) -> str | None:
            found = [word for word in words if word.startswith(readline.get_line_buffer()[: readline.get_endidx()])]
            return found[state] if text and state < len(found) else None

        readline.set_completer_delims(" ")
        readline.set_completer(completer)
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")

    def note(self, message: str) -> None:
        """Tell the user something, in grey."""
        if self.interactive:
            tell(message, "dim")

    def complain(self, error: TxtgenError) -> None:
        """Tell the user of a mistake."""
        tell(f"error: {error}", "red")
