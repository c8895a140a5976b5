"""Numbers in words."""

import math
import time
from typing import Any

from txtgen.commands.running.run_record import number
from txtgen.commands.showing.console import duration


def formatted(value: Any, spec: str) -> str:
    """A number as its kind of figure is written, "duration" being a span of seconds; "" for anything else."""
    found = number(value)
    if found is None:
        return ""
    if spec == "duration":
        return duration(found)
    if abs(found) >= 1e9 and "%" not in spec:
        return written(found, "plain")
    return format(round(found), spec) if spec.endswith("d") else format(found, spec)


def moment(seconds: float | None) -> str:
    """A point in time, in the time of the place."""
    if seconds is None:
        return "?"
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "?"


def written(value: float, kind: str, digits: int = 4) -> str:
    """A value in words.

    kind: "plain", "share" (as a percentage), "bytes", "count" (a whole number), or "large" (the same, every digit
    told where there is room for them). digits: significant ones.
    """
    if kind == "share":
        return f"{_significant(100 * value, min(digits, 3))} %"
    if (kind == "count" and abs(value) < 1e7) or (kind == "large" and abs(value) < 1e9):
        return f"{value:,.0f}"
    units = ("B", "kB", "MB", "GB", "TB") if kind == "bytes" else ("", "k", "M", "G", "T")
    if kind != "bytes" and abs(value) < 10_000:
        return _significant(value, digits)
    if abs(value) >= 1e15:
        return _significant(value, digits) + " B" * (kind == "bytes")
    unit = units[0]
    for unit in units:
        if abs(value) < 999.5:
            break
        if unit != units[-1]:
            value /= 1000
    return f"{_significant(value, max(3, digits) if abs(value) < 1000 else 2)}{' ' if kind == 'bytes' else ''}{unit}"


def _significant(value: float, digits: int) -> str:
    """A number with so many significant digits, very small and very large ones as powers of ten."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{max(0, digits - 1)}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
