"""Sections written in short: a list or a mapping in place of one, or a section that does not tell its kind."""

from collections.abc import Mapping
from typing import Any

from txtgen.config.base import Config
from txtgen.config.shape import chosen, field_type, item_type, sections, tag


def in_full(annotation: Any, node: Any, default: Any = None) -> Any:
    """The tree in which every section is a mapping that tells its kind.

    Args:
        annotation: the type of what the tree is to become.
        node: plain dicts, lists and scalars.
        default: what stands in the tree's place if nothing is said; a section with no kind amends it.
    """
    options = sections(annotation)
    if isinstance(node, list) and item_type(annotation) is None:
        node = next(({option.field_of_list: node} for option in options if option.field_of_list), node)
    if isinstance(node, list):
        return [in_full(item_type(annotation), item) for item in node]
    if not isinstance(node, dict):
        return node
    if len(options) > 1 and tag(options[0])[0] not in node:
        of_kinds = next(filter(None, (_of_kinds(option, node) for option in options)), None)
        node = of_kinds or (default.plain() | node if isinstance(default, Config) else node)
    section = chosen(annotation, node)
    known = section.model_fields if section else {}
    return {
        key: in_full(field_type(known[key]), value, known[key].default) if key in known else value
        for key, value in node.items()
    }


def parts_of_kinds(section: type[Config]) -> list[type[Config]]:
    """The sections that a mapping from kinds may name, where such a mapping stands for this one; else none."""
    if not section.field_of_kinds:
        return []
    return sections(item_type(field_type(section.model_fields[section.field_of_kinds])))


def _of_kinds(section: type[Config], node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a mapping from kinds stands for; None if no key is one. Keys that are none are told of there."""
    if node.keys().isdisjoint(tag(part)[1] for part in parts_of_kinds(section)):
        return None
    name, own_kind = tag(section)
    settings = [value if isinstance(value, Mapping) else {"weight": value} for value in node.values()]
    parts = [{name: kind, **part} for kind, part in zip(node, settings, strict=True)]
    return {name: own_kind, section.field_of_kinds: parts}
