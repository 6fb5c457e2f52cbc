"""Lines of a training's log: each once, and at a pace that all share.

* several reads that overlap, lines of one time, tails that do not reach back, a beginning that others have shown
* the budget of reads: its pace, who comes first, turns of those who have left
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone

from airflow_provider_finetune.cluster.logs import LogTail, NewLines, ReadBudget

LOG = [f"2026-01-01T10:00:{second:02}.{fraction}Z line {second}" for second, fraction in enumerate("123456789")]


def whole(*lines: str) -> LogTail:
    return LogTail(lines, whole=True)


def end(*lines: str) -> LogTail:
    return LogTail(lines, whole=False)


def test_each_line_is_new_once() -> None:
    new = NewLines()
    assert new.of(whole(*LOG[:3])) == ["line 0", "line 1", "line 2"]
    assert new.of(end(*LOG[1:5])) == ["line 3", "line 4"]
    assert new.of(end(*LOG[1:5])) == []
    assert new.of(whole()) == []


def test_lines_of_the_same_time_are_told_apart_by_their_number() -> None:
    same = [f"2026-01-01T10:00:00.5Z line {number}" for number in range(4)]
    new = NewLines()
    assert new.of(whole(*same[:2])) == ["line 0", "line 1"]
    assert new.of(whole(*same)) == ["line 2", "line 3"]
    assert new.of(whole(*same, *LOG[3:4])) == ["line 3"]


def test_times_are_compared_as_times() -> None:
    new = NewLines()
    assert new.of(whole("2026-01-01T11:00:00.5+01:00 a", "2026-01-01T10:00:00.500000001Z b")) == ["a", "b"]
    assert new.of(end("2026-01-01T10:00:00.500000001Z b", "2026-01-01T10:00:01Z c")) == ["c"]


def test_a_tail_that_does_not_reach_back_says_so() -> None:
    new = NewLines()
    new.of(whole(*LOG[:2]))
    assert not new.reaches_back(end(*LOG[4:]))
    missing, *rest = new.of(end(*LOG[4:]))
    assert missing.startswith("warning: what was printed from 10:00:01 to 10:00:04 UTC is missing here")
    assert rest[0] == "line 4"


def test_a_first_tail_that_is_not_the_whole_log_says_so() -> None:
    missing, *rest = NewLines().of(end(*LOG[4:]))
    assert missing.startswith("warning: what was printed before 10:00:04 UTC is missing here")
    assert rest[0] == "line 4"


def test_what_somebody_else_has_shown_is_left_out() -> None:
    since = datetime(2026, 1, 1, 10, 0, 6, tzinfo=timezone.utc)
    assert NewLines(since).of(end(*LOG)) == ["line 6", "line 7", "line 8"]


def test_a_line_that_was_cut_is_left_out() -> None:
    assert NewLines().of(whole("01-01T10:00:00Z cut", "", *LOG[:1])) == ["line 0"]


def test_reads_are_spaced_evenly_and_in_order() -> None:
    turns: list[int] = []

    async def read(budget: ReadBudget, number: int) -> None:
        await budget.turn()
        turns.append(number)

    async def story() -> float:
        budget, began = ReadBudget(100), time.monotonic()
        await asyncio.gather(*(read(budget, number) for number in range(21)))
        return time.monotonic() - began

    assert asyncio.run(story()) >= 0.19
    assert turns == list(range(21))


def test_who_is_waited_for_comes_first_and_a_turn_of_one_who_has_left_is_not_lost() -> None:
    turns: list[str] = []

    async def read(budget: ReadBudget, name: str, *, first: bool) -> None:
        await budget.turn(first=first)
        turns.append(name)

    async def story() -> float:
        budget, began = ReadBudget(20), time.monotonic()
        await budget.turn()
        gone = [asyncio.create_task(read(budget, "gone", first=False)) for _ in range(100)]
        others = [asyncio.create_task(read(budget, "routine", first=False))]
        others += [asyncio.create_task(read(budget, f"end {number}", first=True)) for number in range(2)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*others)
        return time.monotonic() - began

    assert asyncio.run(story()) < 2
    assert turns == ["end 0", "end 1", "routine"]
