"""What becomes of the workloads that earlier tries have left.

* one of the same request is followed while it trains, and collected once when it has succeeded
* what must not go on training is deleted
* which older ones a success makes useless
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_provider_finetune.launchers.adoption import adopt, leftovers
from airflow_provider_finetune.launchers.observed import JobState

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def job(name: str, age: int = 0, **state: Any) -> JobState:
    """A workload of this task instance and request, made ``age`` minutes before the start."""
    given: dict[str, Any] = {"identity": "task", "whole": "asked", "try_number": 3, **state}
    return JobState(name=name, uid=f"uid-{name}", created=START - timedelta(minutes=age), **given)


SUCCEEDED: dict[str, Any] = {"condition": "Complete"}
FAILED: dict[str, Any] = {"condition": "Failed"}

TABLE = {
    "nothing is there": ([], None, ""),
    "active, the same request": ([job("a")], "a", ""),
    "active in a queue, the same request": ([job("a", suspended=True)], "a", ""),
    "active, made before a clear": ([job("a", try_number=2)], None, "a"),
    "active, made before a clear and since": ([job("a", 5, try_number=2), job("b")], "b", "a"),
    "succeeded before a clear and not delivered": ([job("a", try_number=2, **SUCCEEDED)], "a", ""),
    "active, another request": ([job("a", whole="other")], None, "a"),
    "two active: the older is kept": ([job("young"), job("old", 5)], "old", "young"),
    "two active of one age: the same one for everybody": ([job("b"), job("a")], "a", "b"),
    "active, of both requests": ([job("a"), job("b", 5, whole="other")], "a", "b"),
    "succeeded and not delivered": ([job("a", **SUCCEEDED)], "a", ""),
    "succeeded twice and not delivered: the last": ([job("a", 5, **SUCCEEDED), job("b", **SUCCEEDED)], "b", ""),
    "succeeded, delivered and cleared: train again": ([job("a", try_number=2, delivered=True, **SUCCEEDED)], None, ""),
    "succeeded and delivered, by a try that then failed": ([job("a", delivered=True, **SUCCEEDED)], "a", ""),
    "succeeded, another request": ([job("a", whole="other", **SUCCEEDED)], None, ""),
    "succeeded and being deleted": ([job("a", deleting=True, **SUCCEEDED)], None, ""),
    "active goes before succeeded": ([job("a"), job("b", 5, **SUCCEEDED)], "a", ""),
    "failed": ([job("a", **FAILED)], None, ""),
    "failed, and the next try is active": ([job("a", 5, **FAILED), job("b")], "b", ""),
    "being deleted: not active": ([job("a", deleting=True)], None, ""),
    "being deleted beside an active one": ([job("a", 5, deleting=True), job("b")], "b", ""),
    "a stranger's": ([job("a", identity="stranger")], None, ""),
    "a stranger's without a label": ([job("a", identity="", whole="")], None, ""),
    "a stranger's beside ours": ([job("a", 5, identity="stranger"), job("b")], "b", ""),
}


@pytest.mark.parametrize("case", TABLE)
def test_earlier_workloads_are_followed_collected_or_deleted(case: str) -> None:
    existing, follow, delete = TABLE[case]
    for order in (existing, existing[::-1]):
        found = adopt(order, identity="task", whole="asked", first_try=3)
        assert (found.follow and found.follow.name) == follow
        assert [left.name for left in found.delete] == delete.split()


LOST = {
    "failed, and nobody has told": ([job("a", **FAILED)], "a"),
    "failed twice: the last": ([job("a", 5, **FAILED), job("b", **FAILED)], "b"),
    "failed, and told": ([job("a", delivered=True, **FAILED)], None),
    "failed before a clear": ([job("a", try_number=2, **FAILED)], None),
    "failed, another request": ([job("a", whole="other", **FAILED)], None),
    "failed, and being deleted": ([job("a", deleting=True, **FAILED)], None),
    "failed beside an active one": ([job("a", 5, **FAILED), job("b")], None),
}


@pytest.mark.parametrize("case", LOST)
def test_a_failure_that_nobody_has_told_is_found(case: str) -> None:
    existing, failed = LOST[case]
    found = adopt(existing, identity="task", whole="asked", first_try=3).failed
    assert (found and found.name) == failed


LEFT = {
    "failed earlier try": (job("a", 5, **FAILED), True),
    "succeeded earlier try that nobody collected": (job("a", 5, **SUCCEEDED), True),
    "failed in another run, which knows": (job("a", 5, identity="other run", delivered=True, **FAILED), True),
    "failed in another run, which may still read it": (job("a", 5, identity="other run", **FAILED), False),
    "succeeded in another run": (job("a", 5, identity="other run", delivered=True, **SUCCEEDED), False),
    "failed later": (job("a", -5, **FAILED), False),
    "still training": (job("a", 5, identity="other run"), False),
    "already being deleted": (job("a", 5, deleting=True, **FAILED), False),
}


@pytest.mark.parametrize("case", LEFT)
def test_a_success_makes_older_ends_of_its_task_useless(case: str) -> None:
    other, useless = LEFT[case]
    success = job("success", **SUCCEEDED)
    assert leftovers([success, other], success) == ([other] if useless else [])
