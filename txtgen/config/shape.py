"""What a configuration type accepts, read from its annotations: its sections, and what to expect in words."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import chain, pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from txtgen.config.base import Config, Expected
from txtgen.config.mistakes import KeyPath

_HUGE = 2**31 - 1
"""Upper limits from here on are named only to who exceeds them."""


def field_type(field: FieldInfo) -> Any:
    """The type of a field, its bounds included."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def unwrapped(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without its annotations, and these."""
    notes: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *found = get_args(annotation)
        notes += chain.from_iterable(note.metadata if isinstance(note, FieldInfo) else [note] for note in found)
    return annotation, notes


def arms(annotation: Any) -> list[Any]:
    """The alternatives of a union, None among them; of any other type, itself alone."""
    inner, _ = unwrapped(annotation)
    if get_origin(inner) in (Union, UnionType):
        return [arm for part in get_args(inner) for arm in arms(part)]
    return [annotation]


def sections(annotation: Any) -> list[type[Config]]:
    """The configuration classes that a value of this type may have."""
    inner = [unwrapped(arm)[0] for arm in arms(annotation)]
    return [arm for arm in inner if inspect.isclass(arm) and issubclass(arm, Config)]


def item_type(annotation: Any) -> Any | None:
    """The type of the items, if a value may be a list."""
    for arm in arms(annotation):
        inner, _ = unwrapped(arm)
        if get_origin(inner) is tuple:
            return get_args(inner)[0]
    return None


def tag(section: type[Config]) -> tuple[str, str]:
    """The key that tells a section's kind, and this section's value of it; empty if it has none."""
    for name, field in section.model_fields.items():
        values = get_args(field.annotation)
        if get_origin(field.annotation) is Literal and len(values) == 1:
            return name, str(values[0])
    return "", ""


def chosen(annotation: Any, node: Any) -> type[Config] | None:
    """The class that a mapping is meant for; None if it names no known kind, or is no section."""
    options = sections(annotation)
    if not isinstance(node, dict) or len(options) < 2:
        return options[0] if options else None
    name, _ = tag(options[0])
    return next((option for option in options if tag(option)[1] == node.get(name)), None)


def expected(annotation: Any, value: Any = None) -> str:
    """What a type accepts, in words; `value` is what it was given."""
    options = sections(annotation)
    words = [_expected(arm, value) for arm in arms(annotation) if unwrapped(arm)[0] not in options]
    if len(options) > 1:
        kinds = ", ".join(tag(option)[1] for option in options)
        words.insert(0, f"a section with {tag(options[0])[0]}: one of {kinds}")
    elif options:
        words.insert(0, "a section")
    return " or ".join(words)


def _expected(annotation: Any, value: Any) -> str:
    """What one alternative accepts."""
    inner, notes = unwrapped(annotation)
    for note in notes:
        if isinstance(note, Expected):
            return note.words
    origin = get_origin(inner)
    if origin is Literal:
        choices = ", ".join(str(choice) for choice in get_args(inner))
        return f"one of {choices}" if len(get_args(inner)) > 1 else choices
    if origin is tuple:
        return f"a list{_at_least(notes)}, each item {expected(get_args(inner)[0], value)}"
    if inner in (int, float):
        return ("a whole number" if inner is int else "a number") + _bounds(notes, value)
    if inner is str:
        return f"text{_at_least(notes)}"
    return {bool: "true or false", NoneType: "null"}.get(inner, "a section")


def _at_least(notes: list[Any]) -> str:
    """How long the value must be, in words."""
    least = max((note.min_length for note in notes if isinstance(note, MinLen)), default=0)
    return f" of at least {least}" if least > 1 else " that is not empty" if least else ""


def _bounds(notes: list[Any], value: Any) -> str:
    """The limits of a number, in words."""
    found = []
    for note in notes:
        match note:
            case Ge(ge=limit):
                found.append(f"at least {limit:,}".removesuffix(".0"))
            case Gt(gt=limit):
                found.append(f"above {limit:,}".removesuffix(".0"))
            case Le(le=int() | float() as limit) if limit < _HUGE or (isinstance(value, int) and value > limit):
                found.append(f"at most {limit:,}".removesuffix(".0"))
            case Lt(lt=limit):
                found.append(f"below {limit:,}".removesuffix(".0"))
    return f" ({', '.join(found)})" if found else ""


def places_of_key(key: str, annotation: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """The paths at which a type has a key, N for an index, and the kinds that it needs if not all have it."""
    options = sections(annotation)
    holders = [option for option in options if key in option.model_fields]
    if holders:
        names = " or ".join(tag(option)[1] for option in holders)
        yield (*path, key), "" if len(holders) == len(options) else f"{tag(options[0])[0]}: {names}"
    for section in options:
        for name, field in section.model_fields.items():
            inner = field_type(field)
            item = item_type(inner)
            if item is None:
                yield from places_of_key(key, inner, (*path, name))
            else:
                yield from places_of_key(key, item, (*path, name, "N"))


def all_sections(annotation: Any) -> Iterator[type[Config]]:
    """Every section class that a type can hold."""
    for section in sections(annotation):
        yield section
        for field in section.model_fields.values():
            inner = field_type(field)
            yield from all_sections(inner)
            yield from all_sections(item_type(inner))


def field_descriptions(section: type[Config]) -> dict[str, str]:
    """The texts beneath a section's fields, inherited ones included; none where the source is not at hand."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not issubclass(base, Config):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except OSError:
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in pairwise(statements):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = inspect.cleandoc(words)
    return found
