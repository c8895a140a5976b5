"""The tokens that a tokenizer.json puts around a text: its "post_processor"."""

from collections.abc import Mapping, Sequence
from typing import Any

from txtgen.errors import CheckpointError


def write_framing(prefix: Sequence[int], suffix: Sequence[int], pieces: Sequence[str]) -> dict[str, Any] | None:
    """The post-processor that puts ids before and after a text; None if there are none. pieces: those of all ids."""
    names = {token_id: pieces[token_id] for token_id in (*prefix, *suffix)}
    if not names:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": names[i], "type_id": type_id}} for i in ids] for ids in (prefix, suffix)
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()},
    }


def read_framing(post_processor: Any, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor of a tokenizer.json puts before and after a text.

    Raises:
        CheckpointError: it is of a kind that is not known.
    """
    match post_processor:
        case None | {"type": "ByteLevel"}:
            return (), ()
        case {"type": "RobertaProcessing" | "BertProcessing", "cls": [str(), int(before)], "sep": [str(), int(after)]}:
            return (before,), (after,)
        case {"type": "Sequence", "processors": list(parts)}:
            prefix: tuple[int, ...] = ()
            suffix: tuple[int, ...] = ()
            for part in parts:
                first, last = read_framing(part, where)
                prefix, suffix = first + prefix, suffix + last
            return prefix, suffix
        case {"type": "TemplateProcessing", "single": list(parts), "special_tokens": dict(tokens)}:
            return _template_framing(parts, tokens, where)
        case _:
            raise _unknown_framing(where)


def _template_framing(
    parts: list[Any], tokens: Mapping[str, Any], where: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sides: list[tuple[int, ...]] = [()]
    for part in parts:
        match part:
            case {"Sequence": _}:
                sides.append(())
            case {"SpecialToken": {"id": str(name)}} if isinstance(tokens.get(name), dict):
                ids = tokens[name].get("ids")
                if not isinstance(ids, list) or not all(isinstance(token_id, int) for token_id in ids):
                    raise _unknown_framing(where)
                sides[-1] += tuple(ids)
            case _:
                raise _unknown_framing(where)
    if len(sides) != 2:
        raise _unknown_framing(where)
    return sides[0], sides[1]


def _unknown_framing(where: str) -> CheckpointError:
    return CheckpointError(
        "its post_processor is of a kind that is not known",
        where,
        "use a model whose tokenizer.json has a TemplateProcessing there, or none",
    )
