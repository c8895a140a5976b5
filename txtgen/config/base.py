"""The base of every configuration class: strict, frozen, and able to name all its problems at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A whole number of things, at least one."""

NonNegative = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A whole number, zero allowed."""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A fraction from 0 up to, but not including, 1."""

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""The seed of everything random."""

FIELDS_ONLY = "fields only"
"""The validation context of the loader, which asks for problems() itself, to tell them with all others."""


@dataclass(frozen=True, slots=True)
class Expected:
    """An annotation: what a value must be, in words, for errors; where the bounds do not say it well."""

    words: str


class Config(BaseModel):
    """A strict, frozen section of the configuration: unknown keys, wrong types and NaN are refused."""

    # Deferred: a command makes the validators of the sections that it meets, not of all.
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    field_of_list: ClassVar[str] = ""
    """What a list in this section's place stands for; empty: a list is no such section."""
    field_of_kinds: ClassVar[str] = ""
    """A list of sections that a mapping from their kinds to weights, or to their settings, stands for; empty: none."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Pairs of (key, complaint) for whatever concerns more than one key; the key may be dotted."""
        return iter(())

    @model_validator(mode="after")
    def _refuse_problems(self, info: ValidationInfo) -> Self:
        found = [] if info.context is FIELDS_ONLY else list(self.problems())
        if found:
            summary = "; ".join(f"{key}: {complaint}" if key else complaint for key, complaint in found)
            # A template would read braces in a complaint as placeholders, so the text goes in as context.
            raise PydanticCustomError("problems", "{summary}", {"summary": summary, "problems": found})
        return self

    def plain(self) -> dict[str, Any]:
        """This section as plain dicts, lists and scalars, ready for YAML, JSON or a checkpoint."""
        return self.model_dump(mode="json")
