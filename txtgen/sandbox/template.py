"""A chat template: compiled once, rendered for every conversation, its failures told as ours."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date

from jinja2.environment import Template

from txtgen.errors import CheckpointError, DataError, safe_text
from txtgen.sandbox.budget import MAX_OUTPUT, UNITS, TooMuch, spending
from txtgen.sandbox.environment import Environment
from txtgen.sandbox.functions import Refused
from txtgen.sandbox.metering import metered
from txtgen.sandbox.tree import check_tree


class ChatTemplate:
    """A template, ready to render conversations.

    Args:
        source: the Jinja text.
        today: what `strftime_now` tells, whatever day it is, so that a conversation always gives the same text.

    Raises:
        CheckpointError: it is no template, or does what none may do.
    """

    def __init__(self, source: str, today: date) -> None:
        with _guarded(UNITS):
            environment = Environment(today)
            tree = environment.parse(source)
            check_tree(tree)
            code = environment.compile(metered(tree))
            self._template = Template.from_code(environment, code, environment.make_globals(None))

    def render(self, messages: Sequence[Mapping[str, str]], reply: bool, tokens: Mapping[str, str]) -> str:
        """The text of a conversation.

        Args:
            messages: the turns, each with its role and content. The longer they are, the more may be spent.
            reply: open a turn of the assistant at the end.
            tokens: spellings by the names that templates use, such as "bos_token".

        Raises:
            DataError: the template refuses the conversation.
            CheckpointError: the template fails, or exceeds what a rendering may spend.
        """
        size = sum(len(text) for message in messages for text in message.values())
        limit, parts, length = MAX_OUTPUT + 4 * size, [], 0
        with _guarded(UNITS + size):
            values = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
            for part in self._template.generate(**values, add_generation_prompt=reply, **tokens):
                length += len(part)
                if length > limit:
                    raise TooMuch(f"it writes more than {limit} characters")
                parts.append(part)
        return "".join(parts)


@contextmanager
def _guarded(units: int) -> Iterator[None]:
    """With so much to spend; whatever a template's code raises becomes one of our errors."""
    try:
        with spending(units):
            yield
    except Refused as error:
        raise DataError(
            f"the chat template refuses the conversation: {_shown(error)}", "messages", "change the turns"
        ) from error
    except RecursionError as error:
        raise _fault("it is nested or calls itself too deeply") from error
    except TooMuch as error:
        raise _fault(str(error)) from error
    except Exception as error:
        # It runs a stranger's program, which can fail in every way that Python knows.
        raise _fault(f"{type(error).__name__}: {_shown(error)}") from error


def _shown(error: Exception) -> str:
    return safe_text(" ".join(str(error)[:300].split()))


def _fault(reason: str) -> CheckpointError:
    return CheckpointError(
        f"the chat template cannot be used: {reason}", "format.template", "mend it, or set format.kind to text"
    )
