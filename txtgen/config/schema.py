"""What a configuration may hold, as a JSON Schema: all that the loader takes, short forms included."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from txtgen.config.base import Config
from txtgen.config.shape import all_sections, field_descriptions, field_type, item_type, sections, tag
from txtgen.config.short_forms import parts_of_kinds

Schema = dict[str, Any]


def schema(kind: Any) -> Schema:
    """The JSON Schema (2020-12) of a configuration class or a union of them, for editors."""
    found = TypeAdapter(kind).json_schema()
    definitions = {**found.get("$defs", {}), found.get("title", ""): found}
    for section in dict.fromkeys(all_sections(kind)):
        properties, words = definitions[section.__name__]["properties"], field_descriptions(section)
        for name, field in section.model_fields.items():
            properties[name] = _with_short_forms(properties[name], field_type(field), field.default, definitions)
            if name in words:
                properties[name]["description"] = words[name]
    whole = _with_short_forms(found, kind, None, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def _with_short_forms(node: Schema, annotation: Any, default: Any, definitions: Mapping[str, Schema]) -> Schema:
    """The schema of a value, its short forms allowed."""
    if "items" in node and sections(item_type(annotation)):
        return {**node, "items": _with_short_forms(node["items"], item_type(annotation), None, definitions)}
    if "anyOf" in node:
        arms = [_with_short_forms(arm, annotation, default, definitions) for arm in node["anyOf"]]
        return {**node, "anyOf": arms}
    if "discriminator" in node:
        options = sections(annotation)
        name = tag(options[0])[0]
        # Only what amends the default need not tell its kind.
        amended = [
            arm if type(default) is option else {**arm, "required": [name]}
            for arm, option in zip(node["oneOf"], options, strict=True)
        ]
        short = [_of_kinds(parts, definitions) for option in options if (parts := parts_of_kinds(option))]
        return {**node, "oneOf": [*amended, *short]}
    if "$ref" in node and (option := sections(annotation)[0]).field_of_list:
        of_list = definitions[option.__name__]["properties"][option.field_of_list]
        arms = [{"$ref": node["$ref"]}, {key: of_list[key] for key in ("type", "items")}]
        return {**{key: value for key, value in node.items() if key != "$ref"}, "anyOf": arms}
    return node


def _of_kinds(parts: list[type[Config]], definitions: Mapping[str, Schema]) -> Schema:
    """The schema of a mapping from kinds to weights or settings."""
    named = {
        tag(part)[1]: {
            "anyOf": [
                *definitions[part.__name__]["properties"]["weight"]["anyOf"],
                {"$ref": f"#/$defs/{part.__name__}"},
            ]
        }
        for part in parts
    }
    return {"type": "object", "properties": named, "minProperties": 1, "additionalProperties": False}
