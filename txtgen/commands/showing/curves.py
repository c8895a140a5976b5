"""Metrics over steps as curves: decimated, scaled, with readable axes; drawn by the page's template as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txtgen.commands.showing.formatting import written

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 26
"""The drawing and its margins, in its own units; a page scales it."""

MAX_POINTS = 360
"""Of a curve: more than there are pixels would tell nothing more."""

MAX_DOTS = 60
"""A series of at most so many points shows each of them."""

MAX_LABEL_CHARACTERS = 9
"""Of a number at an axis: more have no room."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """Values [N] float64 at steps [N] float64, in ascending order of the steps; finite."""

    name: str
    steps: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class Line:
    """A series as it is drawn.

    path: SVG path of the means; band: of the area between least and greatest, "" where nothing was decimated. dots:
    places of points that are shown as such. points: (x, y, step, value) of what a reader can point at, the latter two
    in words.
    """

    name: str
    path: str
    band: str
    dots: list[tuple[float, float]]
    points: list[tuple[float, float, str, str]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One drawing: lines over steps. x_ticks, y_ticks: (place, label). marks: places of resumed steps. beyond: what the
    axis leaves out, in words."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[float]
    beyond: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from low to high, on a pixel range from start to stop."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, values: Floats) -> Floats:
        """Places [N] of values [N]; what is beyond the range stays just outside of it."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = math.log10(low), math.log10(high), np.log10(np.maximum(values, 1e-300))
        share = np.clip((values - low) / (high - low), -0.05, 1.05)
        return np.round(self.start + share * (self.stop - self.start), 1)


def draw(
    title: str,
    series: Sequence[Series],
    *,
    kind: str = "plain",
    from_zero: bool = False,
    clip_first: bool = False,
    marks: Sequence[int] = (),
) -> Curve | None:
    """A drawing of series that share their axes, or None if none of them has a point.

    Args:
        title: stands above it.
        series: empty ones are left out.
        kind: how values are written, see `written`.
        from_zero: the axis begins at 0.
        clip_first: what the first steps alone reach is left out, as of a loss, whose first values dwarf all others.
        marks: steps to mark.
    """
    series = [one for one in series if len(one.values)]
    if not series:
        return None
    low = min(float(one.values.min()) for one in series)
    high = max(float(one.values.max()) for one in series)
    beyond = ""
    if clip_first and (top := max(_usual_top(one.values) for one in series)) < high - 0.25 * (high - low):
        beyond, high = f"up to {written(high, kind)} at first", top
    logarithmic = not from_zero and not clip_first and low > 0 and high / low > 50
    y_low, y_high = _padded(0.0 if from_zero else low, high, logarithmic)
    first, last = min(float(one.steps[0]) for one in series), max(float(one.steps[-1]) for one in series)
    first, last = _padded(first, last, False) if last <= first else (first, last)
    x = Scale(first, last, LEFT, WIDTH - RIGHT)
    y = Scale(y_low, y_high, HEIGHT - BOTTOM, TOP, logarithmic)
    x_ticks = [tick for tick in linear_ticks(first, last, 6) if tick == round(tick)]
    y_ticks = log_ticks(y_low, y_high) if logarithmic else linear_ticks(y_low, y_high, 5)
    return Curve(
        title=title,
        lines=[_line(one, x, y, kind) for one in series],
        x_ticks=list(zip(_places(x, x_ticks), labels(x_ticks, "count"), strict=True)),
        y_ticks=list(zip(_places(y, y_ticks), labels(y_ticks, kind), strict=True)),
        marks=_places(x, [float(mark) for mark in marks if first <= mark <= last]),
        beyond=beyond,
    )


def _usual_top(values: Floats) -> float:
    """The greatest of the values after the first twentieth."""
    return float(values[len(values) // 20 if len(values) > 1 else 0 :].max())


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """The range with some room at both ends, never empty."""
    if logarithmic:
        return low / 1.1, high * 1.1
    if not high > low:
        room = abs(low) * 0.05 or 1.0
        return (0.0, high or 1.0) if low == 0 else (low - room, high + room)
    room = 0.04 * (high - low)
    return (low if low == 0 else low - room), high + room


def _places(scale: Scale, values: Sequence[float]) -> list[float]:
    places: list[float] = scale(np.array(values, dtype=np.float64)).tolist()
    return places


def _line(series: Series, x: Scale, y: Scale, kind: str) -> Line:
    steps, low, mean, high = decimate(series.steps, series.values, MAX_POINTS)
    across, middle = x(steps).tolist(), y(mean).tolist()
    band = ""
    if len(steps) < len(series.steps):
        there = [*zip(across, y(high).tolist(), strict=True)]
        back = [*zip(across, y(low).tolist(), strict=True)][::-1]
        band = _path([*there, *back]) + "Z"
    places = list(zip(across, middle, strict=True))
    words = [(written(step, "count"), written(value, kind)) for step, value in zip(steps, mean, strict=True)]
    return Line(
        name=series.name,
        path=_path(places) if len(places) > 1 else "",
        band=band,
        dots=places if len(places) <= MAX_DOTS else [],
        points=[(*place, *word) for place, word in zip(places, words, strict=True)],
    )


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def decimate(steps: Floats, values: Floats, most: int) -> tuple[Floats, Floats, Floats, Floats]:
    """At most `most` points of a series: the steps, and the least, mean and greatest values of the points that each
    stands for. The first and the last step stay."""
    if len(steps) <= most:
        return steps, values, values, values
    starts = np.arange(most) * len(steps) // most
    counts = np.diff([*starts, len(steps)])
    shown = steps[starts].copy()
    shown[-1] = steps[-1]
    return (
        shown,
        np.minimum.reduceat(values, starts),
        np.add.reduceat(values, starts) / counts,
        np.maximum.reduceat(values, starts),
    )


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, `about` so many."""
    if (high - low) <= 1e-14 * max(abs(low), abs(high)):
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, so few that their labels do not touch."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / 6))
    powers = [10.0**exponent for exponent in range(first, last + 1, every)]
    return powers if len(powers) > 1 else [low * (high / low) ** (part / 4) for part in range(1, 4)]


def labels(ticks: Sequence[float], kind: str) -> list[str]:
    """The ticks in words, with as many digits as tell neighbours apart."""
    for digits in range(2, 12):
        found = [written(tick, kind, digits) for tick in ticks]
        if max(map(len, found), default=0) > MAX_LABEL_CHARACTERS:
            return [written(tick, kind, digits - 1) for tick in ticks]
        if len(set(found)) == len(ticks) and (digits > 2 or kind != "plain" or _all_kept(ticks, digits)):
            break
    return found


def _all_kept(ticks: Sequence[float], digits: int) -> bool:
    return all(math.isclose(float(f"{tick:.{digits}g}"), tick, rel_tol=1e-9) for tick in ticks)
