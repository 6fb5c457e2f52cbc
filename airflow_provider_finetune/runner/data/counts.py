"""What is counted while rows are read: those that are dropped and why, and those that are worth a look."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

LINES_KEPT = 20
"""How many places of a reason are kept: enough to find the pattern, small enough for the outcome."""

REASONS_KEPT = 20
"""How many reasons are kept apart: some name numbers of the row, and of a broken file each row has another."""

OTHER_REASONS = "other reasons"

_FEW = 100_000
"""Up to so many rows are compared by a set, which needs no NumPy: 10 MB at most."""


class Reason(str):
    """Why a row cannot be used; stands where the row would."""

    __slots__ = ()


@dataclass
class Dropped:
    """Rows that are not trained on, by reason: how many, and the first :data:`LINES_KEPT` places.

    The first :data:`REASONS_KEPT` reasons are told apart, and all further ones are one.
    """

    rows: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)

    def add(self, place: str, reason: str) -> None:
        """Count one row.

        :param place: ``5`` for line 5, ``b.jsonl:5`` where there are several files, ``row 5`` where there are no lines.
        :param reason: in words that follow "this row is left out, since".
        """
        self._count(reason, 1, [place])

    def absorb(self, others: Dropped) -> None:
        """Add rows that come later, or were dropped in a later step."""
        for reason, count in others.rows.items():
            self._count(reason, count, others.lines[reason])

    def _count(self, reason: str, count: int, places: list[str]) -> None:
        if reason not in self.rows and len(self.rows) >= REASONS_KEPT:
            reason = OTHER_REASONS
        self.rows[reason] = self.rows.get(reason, 0) + count
        lines = self.lines.setdefault(reason, [])
        lines += places[: LINES_KEPT - len(lines)]

    @property
    def total(self) -> int:
        """How many rows are dropped."""
        return sum(self.rows.values())

    def describe(self) -> str:
        """Return one sentence part for each reason, with places."""
        return "; ".join(
            f"{count} {'row' if count == 1 else 'rows'}: {reason} ({places(self.lines[reason], count)})"
            for reason, count in sorted(self.rows.items(), key=lambda item: -item[1])
        )


@dataclass
class Found:
    """Rows that are used and worth a look: how many, and the first :data:`LINES_KEPT` places."""

    count: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count one row."""
        self.absorb(Found(1, [place]))

    def absorb(self, others: Found) -> None:
        """Add rows that come later."""
        self.count += others.count
        self.lines += others.lines[: LINES_KEPT - len(self.lines)]

    @property
    def where(self) -> str:
        """The first places, for people."""
        return places(self.lines, self.count)


def places(labels: list[str], count: int) -> str:
    """Name the first places for people: ``line 1, 2, 3, 4, 5, …``.

    :param labels: at least five, or all.
    :param count: how many places there are.
    """
    shown = labels[:5]
    unit = next((unit for unit in ("line ", "row ") if all(_is_a(unit, label) for label in shown)), "")
    more = ", …" if count > len(shown) else ""
    return unit + ", ".join(label.removeprefix(unit) for label in shown) + more


def _is_a(unit: str, label: str) -> bool:
    return label.isdecimal() if unit == "line " else label.startswith(unit)


class Hashes:
    """A 64-bit hash of each row with its place, 12 bytes a row: two million rows take 24 MB.

    Among two million rows two different ones have the same hash once in ten million data sets.
    """

    def __init__(self) -> None:
        self._hashes = array("q")
        self._numbers = array("I")
        self._prefixes: list[str] = []
        self._starts: list[int] = []

    def extend(self, hashes: array[int], numbers: array[int], prefix: str) -> None:
        """Add rows.

        :param hashes: by Python's :func:`hash`, so of one process or of its forks.
        :param numbers: their lines, or what else the file counts.
        :param prefix: what makes a place of a number.
        """
        if self._prefixes[-1:] != [prefix]:
            self._prefixes.append(prefix)
            self._starts.append(len(self._hashes))
        self._hashes.extend(hashes)
        self._numbers.extend(numbers)

    def repeated(self) -> Found:
        """Return the rows that were there before."""
        later, count = _repeated(self._hashes)
        return Found(count, [self._place(index) for index in later])

    def _place(self, index: int) -> str:
        return self._prefixes[bisect_right(self._starts, index) - 1] + str(self._numbers[index])


def _repeated(hashes: array[int]) -> tuple[list[int], int]:
    """Return the first indices of those that occur earlier as well, and how many there are."""
    if len(hashes) <= _FEW:
        seen: set[int] = set()
        later = [index for index, value in enumerate(hashes) if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
        return later[:LINES_KEPT], len(later)
    import numpy as np

    values = np.frombuffer(hashes, dtype=np.int64)
    ordered = np.sort(values)
    if not (ordered[1:] == ordered[:-1]).any():
        return [], 0
    # Their places cost ten times as much to sort, and most data sets have none.
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    again = order[1:][ordered[1:] == ordered[:-1]]
    again.sort()
    return again[:LINES_KEPT].tolist(), len(again)
