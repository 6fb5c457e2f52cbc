"""What is wrong with a batch. Pure: each rule is a function of the record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tests.faults.record import Program, Record, Task

LEAVES = re.compile(r"(\S+) is left over|Failed (TrainJobs|Pods) of earlier tries stay")
"""The product's own words for what it could not remove."""

_SAID = re.compile(r"program (\w+) of task (\d+)")

EXPECTED = {
    "succeeds": ["succeeded"],
    "fails": ["failed"],
    "breaks once": ["failed", "succeeded"],
    "dies once": ["failed", "succeeded"],
}
"""How the programs of each part end, in their order."""


def violations(record: Record) -> list[str]:
    """Return a sentence for each rule that is broken; none where all is well.

    :param record: what has been seen.
    """
    programs: dict[int, list[Program]] = {task.number: [] for task in record.tasks}
    for program in sorted(record.programs, key=lambda program: program.began):
        programs[program.number].append(program)
    found: list[str] = []
    for task in record.tasks:
        found += [f"task {task.number} ({task.part}): {what}" for what in _outcome(task, programs[task.number])]
        found += [f"task {task.number} ({task.part}): {what}" for what in _runs(task, programs[task.number])]
    return [*found, *_made_twice(record), *owned_by_nobody(record), *(f"a secret is in {x}" for x in record.shown)]


def _outcome(task: Task, programs: list[Program]) -> Iterator[str]:
    """Each task's outcome is its job's."""
    strangers = {run for run, _ in _SAID.findall(task.log)} - {program.run for program in programs}
    if strangers:
        yield f"its log tells of programs of others: {sorted(strangers)}"
    wanted = "failed" if task.part == "fails" else "success"
    if task.state != wanted:
        yield f"it is {task.state!r} after {task.tries} tries, not {wanted!r}"
    elif wanted == "failed":
        if not any(program.how == "failed" and f"program {program.run} " in task.log for program in programs):
            yield "it has failed by something else than its program"
    else:
        yield from _result(task, programs)


def _result(task: Task, programs: list[Program]) -> Iterator[str]:
    result = task.result or {}
    run, number, job = (
        (result.get("metrics") or {}).get("run"),
        (result.get("metrics") or {}).get("number"),
        (result.get("job") or {}).get("name"),
    )
    success = {program.run: program for program in programs if program.how == "succeeded"}
    if number != task.number or run not in success:
        yield f"its result is of program {run} of task {number}, and its own that succeeded are {sorted(success)}"
    elif job != success[run].job and "so its outcome is looked for" not in task.log:
        yield f"its result names job {job}, and its program ran in {success[run].job}"


def _runs(task: Task, programs: list[Program]) -> Iterator[str]:
    """No job twice, and no healthy one ended or started again."""
    ends = [program.how for program in programs]
    if ends != EXPECTED[task.part]:
        yield f"its programs ended as {ends}, not as {EXPECTED[task.part]}: {[program.job for program in programs]}"
    for first, second in pairwise(programs):
        if first.ended is None or second.began < first.ended:
            yield f"program {second.run} of {second.job} ran beside {first.run} of {first.job}"
    for job, times in Counter(program.job for program in programs).items():
        if times > 1:
            yield f"the program of {job} was started {times} times"


def _made_twice(record: Record) -> Iterator[str]:
    return (f"{name} was made {times} times" for name, times in Counter(record.made).items() if times > 1)


def owned_by_nobody(record: Record) -> Iterator[str]:
    """What is left has ended, and somebody keeps it: a task that has failed, or one that has said what it left."""
    tasks = {task.number: task for task in record.tasks}
    jobs = {left.name for left in record.left if left.kind != "Pod"}
    for left in record.left:
        task = tasks.get(left.number)
        owned = task is not None and (task.state == "failed" or LEAVES.search(task.log) is not None)
        if not left.ended:
            yield f"{left.kind} {left.name} of task {left.number} is still active"
        elif not owned or left.job not in jobs:
            yield f"{left.kind} {left.name} of task {left.number} is left and nobody's"
