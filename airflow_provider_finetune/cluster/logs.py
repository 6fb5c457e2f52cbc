"""Reading the end of a training's log again and again, so that each line is shown once, at a pace the server bears."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple
from weakref import WeakKeyDictionary

from airflow_provider_finetune.cluster.refusals import wrong_setting
from airflow_provider_finetune.settings import setting

READS_PER_SECOND = 20.0
"""Of logs and events, by all jobs that one triggerer follows; ``[finetune] reads_per_second`` sets another."""


class ReadBudget:
    """Turns in the order in which they were asked for, evenly spaced; one that nobody waits for any more is given on.

    :param per_second: how many.
    """

    def __init__(self, per_second: float) -> None:
        self._spacing = 1 / per_second
        self._next = 0.0
        self._first: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, *, first: bool = False) -> None:
        """Wait for a turn.

        :param first: before all who have not said so: the end of a training waits for it.
        """
        turn = asyncio.get_running_loop().create_future()
        (self._first if first else self._others).append(turn)
        if self._timer is None:
            self._give()
        await turn

    def _give(self) -> None:
        self._timer = None
        while waiting := self._first or self._others:
            now = time.monotonic()
            if now < self._next:
                self._timer = asyncio.get_running_loop().call_later(self._next - now, self._give)
                return
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                # A timer is always a little late, which must not make the pace slower.
                self._next = (self._next if now - self._next < self._spacing else now) + self._spacing


def reads_per_second() -> float:
    """Return how many reads one triggerer may ask of an API server per second.

    :raises Refused: ``[finetune] reads_per_second`` is no number above 0.
    """
    said = setting("reads_per_second") or str(READS_PER_SECOND)
    try:
        number = float(said)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        cure = f"Set it to a number such as {READS_PER_SECOND:g}, or leave it out"
        raise wrong_setting("reads_per_second", said, "is no number above 0", cure)
    return number


_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, ReadBudget] = WeakKeyDictionary()


def shared_budget() -> ReadBudget:
    """Return the budget of this event loop.

    :raises Refused: as :func:`reads_per_second`.
    """
    loop = asyncio.get_running_loop()
    if loop not in _budgets:
        _budgets[loop] = ReadBudget(reads_per_second())
    return _budgets[loop]


class _Moment(NamedTuple):
    """A time of a log line: Python's own have no nanoseconds."""

    seconds: int
    nanoseconds: int

    def __str__(self) -> str:
        return f"{datetime.fromtimestamp(self.seconds, timezone.utc):%H:%M:%S}"


class LogTail(NamedTuple):
    """Last lines of a log, each behind its time; ``whole``: there are no others before them."""

    lines: Sequence[str]
    whole: bool


class NewLines:
    """Tells which lines of a log's end have not been seen yet.

    Lines carry their time. Several may have the same, so it is also counted how many of the last time were seen.

    :param since: lines before it have been shown by somebody else; ``None`` shows all.
    """

    def __init__(self, since: datetime | None = None) -> None:
        self._last = _Moment(int(since.timestamp()), 0) if since else None
        self._seen_at_last = 0

    def reaches_back(self, tail: LogTail) -> bool:
        """Return whether nothing is missing between what was seen and what ``tail`` begins with.

        :param tail: the end of the log.
        """
        first = next((parsed[0] for parsed in map(_parsed, tail.lines) if parsed), None)
        return tail.whole or first is None or (self._last is not None and first <= self._last)

    def of(self, tail: LogTail) -> list[str]:
        """Return the new lines, and remember them as seen; one says where some are missing.

        :param tail: the end of the log.
        """
        complete, before = self.reaches_back(tail), self._last
        lines = [parsed for parsed in map(_parsed, tail.lines) if parsed]
        old = sum(1 for moment, _ in lines if self._last is not None and moment < self._last)
        same = sum(1 for moment, _ in lines if moment == self._last)
        new = lines[old + min(same, self._seen_at_last) :]
        if new:
            last = new[-1][0]
            self._seen_at_last = sum(1 for moment, _ in lines if moment == last)
            self._last = last
        texts = [text for _, text in new]
        if complete:
            return texts
        missing = f"from {before} to {lines[0][0]} UTC" if before else f"before {lines[0][0]} UTC"
        return [f"warning: what was printed {missing} is missing here, as it is more than is read at once", *texts]


def _parsed(line: str) -> tuple[_Moment, str] | None:
    """Split a line such as ``2026-01-01T10:00:00.123456789Z text``; ``None`` where it was cut."""
    time_text, _, text = line.partition(" ")
    clock, _, rest = time_text.partition(".")
    digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
    zone = rest[len(digits) :] if rest else ""
    try:
        whole = datetime.fromisoformat(f"{clock.replace('Z', '')}{(zone or 'Z').replace('Z', '+00:00')}")
        return _Moment(int(whole.timestamp()), int((digits or "0").ljust(9, "0"))), text
    except ValueError:
        return None
