"""A mixture of objectives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from txtgen.data.examples import Outcome
from txtgen.data.objectives.base import Objective
from txtgen.data.order import Use, keyed_share
from txtgen.data.types import Record


@dataclass(frozen=True, slots=True)
class Part:
    """An objective in a mixture, the kinds of records that it learns from, and its weight."""

    objective: Objective
    reads: tuple[type[Record], ...]
    weight: float


class Mixture(Objective):
    """Gives each record to one of its parts, drawn by weight among those that can read it; to none if none can."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        objectives = [part.objective for part in parts.values()]
        one = objectives[0]
        # Wherever one part reads in both directions, what stands before must be hidden from it.
        separate = any(objective.separate for objective in objectives)
        super().__init__(one.encode, one.framing, packed=one.packed, separate=separate)
        self._parts = parts

    @property
    def parts(self) -> Mapping[str, Objective]:
        """Each part by itself, which passes over what it cannot read."""
        return {name: Mixture({name: part}) for name, part in self._parts.items()}

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each part."""
        return {name: part.weight for name, part in self._parts.items()}

    def batch(self, records: Sequence[Record], keys: Sequence[int]) -> list[Outcome]:
        """The outcome of each record from its part."""
        drawn = [self._draw(record, key) for record, key in zip(records, keys, strict=True)]
        outcomes: list[Outcome] = [[] for _ in records]
        for name, part in self._parts.items():
            places = [place for place, its in enumerate(drawn) if its == name]
            found = part.objective.batch([records[place] for place in places], [keys[place] for place in places])
            for place, outcome in zip(places, found, strict=True):
                outcomes[place] = outcome
        return outcomes

    def _draw(self, record: Record, key: int) -> str | None:
        readers = [name for name, part in self._parts.items() if isinstance(record, part.reads)]
        left = keyed_share(Use.PART, key) * sum(self._parts[name].weight for name in readers)
        for name in readers:
            left -= self._parts[name].weight
            if left < 0:
                return name
        return readers[-1] if readers else None
