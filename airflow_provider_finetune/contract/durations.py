"""Spans of time as people read them, the same in the lines of both sides."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A span of time in its two largest units, such as ``3 min 10 s``."""
    whole = round(seconds)
    for size, unit, rest_size, rest_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // rest_size
            return f"{whole // size} {unit} {rest} {rest_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
