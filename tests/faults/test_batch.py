"""A short run with a fixed seed: a batch of real tasks in real pods while requests fail and processes die.

``python -m tests.faults.soak`` is the long one. What either has found has a test of its own, which needs no luck:
``tests/kubernetes``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.bed import cluster as bed
from tests.faults.arena import LAUNCHERS
from tests.faults.soak import soak

SEED, TASKS = 7, 6


# By a thread, since Airflow takes the alarm signal for limits of its own.
@pytest.mark.timeout(600, method="thread")
@pytest.mark.skipif(bool(bed.impossible()), reason=str(bed.impossible()))
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_task_gets_the_outcome_of_its_own_job(launcher: str, tmp_path: Path) -> None:
    figures = soak(launcher, TASKS, SEED, pause=(3, 7), hangs=False, keep=tmp_path)
    assert not figures.violations, "\n".join([*figures.violations, f"logs: {tmp_path}"])
    assert figures.tasks == TASKS
    # Else it was no trial.
    assert figures.faults.total() >= 10
    assert figures.kills.total() >= 3
