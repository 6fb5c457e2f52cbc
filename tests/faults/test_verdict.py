"""The judge of a batch finds each thing that must not be, and nothing where all is well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.record import Left, Program, Record, Task
from tests.faults.verdict import violations

PROGRAM = Program(number=1, run="aa", job="job-1", began=10, ended=20, how="succeeded")
RESULT: dict[str, Any] = {"metrics": {"run": "aa", "number": 1}, "job": {"name": "job-1"}}
TASK = Task(number=1, part="succeeds", state="success", result=RESULT)
BROKEN = replace(PROGRAM, run="bb", job="job-0", began=1, ended=5, how="failed")
POD = Left(kind="Pod", name="pod-1", number=1, job="job-1", ended=True)
JOB = Left(kind="TrainJob", name="job-1", number=1, job="job-1", ended=True)


def record(task: Task = TASK, *programs: Program, **more: Any) -> Record:
    return Record(tasks=[task], programs=[*(programs or (PROGRAM,))], **{"made": ["job-1"], **more})


@pytest.mark.parametrize(
    "good",
    [
        record(),
        record(replace(TASK, part="breaks once"), BROKEN, PROGRAM),
        record(
            Task(number=1, part="fails", state="failed", log="program bb of task 1 plays 'fails'"), BROKEN, left=[JOB]
        ),
        record(replace(TASK, log="TrainJob job-1 is left over: it could not"), left=[JOB, POD]),
        # Its own pod had gone with the outcome, which another job has found again.
        record(replace(TASK, result={**RESULT, "job": {"name": "job-2"}}, log="so its outcome is looked for")),
    ],
)
def test_nothing_is_found_where_all_is_well(good: Record) -> None:
    assert violations(good) == []


SECOND = replace(PROGRAM, run="cc", job="job-2", began=30, ended=40)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (record(replace(TASK, state="failed", result=None)), "not 'success'"),
        (record(replace(TASK, state=None, result=None)), "it is None"),
        (record(replace(TASK, result={**RESULT, "metrics": {"run": "zz", "number": 2}})), "program zz of task 2"),
        (record(replace(TASK, result={**RESULT, "job": {"name": "job-7"}})), "names job job-7"),
        (record(replace(TASK, log="program zz of task 1 plays")), "programs of others: ['zz']"),
        (record(Task(number=1, part="fails", state="failed", log="an API server"), BROKEN), "by something else"),
        (record(TASK, replace(PROGRAM, how="killed")), "ended as ['killed']"),
        (record(TASK, replace(PROGRAM, how=None, ended=None)), "ended as [None]"),
        (record(TASK, PROGRAM, SECOND), "ended as ['succeeded', 'succeeded']"),
        (record(TASK, PROGRAM, replace(SECOND, began=15)), "ran beside aa of job-1"),
        (record(TASK, PROGRAM, replace(SECOND, job="job-1")), "started 2 times"),
        (record(made=["job-1", "job-1"]), "job-1 was made 2 times"),
        (record(left=[JOB]), "TrainJob job-1 of task 1 is left and nobody's"),
        (record(replace(TASK, log="job-1 is left over"), left=[POD]), "Pod pod-1 of task 1 is left and nobody's"),
        (record(left=[replace(JOB, ended=False)]), "TrainJob job-1 of task 1 is still active"),
        (record(shown=["triggerer.log"]), "a secret is in triggerer.log"),
    ],
)
def test_what_must_not_be_is_found(bad: Record, said: str) -> None:
    assert said in "\n".join(violations(bad))
