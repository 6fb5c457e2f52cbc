"""Phases and clocks, computed from jobs and pods as the API gives them.

* each state of a job and its pods, and its phase
* preemption, restarts, several nodes, conditions of another object
* which clock runs, since when, and that nothing but the objects' own times counts
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from airflow_provider_finetune.launchers.clocks import running_clock
from airflow_provider_finetune.launchers.observed import pod_state
from airflow_provider_finetune.launchers.phases import Phase, entered, phase_of
from airflow_provider_finetune.launchers.trainjob import job_state
from tests.kubernetes.fake_cluster import condition, pod, running, terminated, train_job, waiting

LIMITS = {"queue_timeout": 60.0, "startup_timeout": 30.0, "training_timeout": 100.0}
NOW = datetime.now(timezone.utc)
"""When the objects below are made."""


def seen(job: dict[str, Any], *pods: dict[str, Any], nodes: int = 1) -> tuple[Phase, int]:
    """Phase, and seconds since it began."""
    state, states = job_state(job), [pod_state(one) for one in pods]
    phase = phase_of(state, states, nodes)
    return phase, round((datetime.now(timezone.utc) - entered(phase, state, states)).total_seconds() - 0.5)


@pytest.mark.parametrize(
    ("job", "pods", "phase"),
    [
        (train_job("a"), [], Phase.STARTING),
        (train_job("a", suspend=True), [], Phase.QUEUED),
        (train_job("a", condition("Suspended", reason="Suspended"), suspend=True), [], Phase.QUEUED),
        (train_job("a", jobsStatus=[{"active": 1, "ready": 0}]), [pod("a", waiting("ErrImagePull"))], Phase.STARTING),
        (train_job("a", jobsStatus=[{"active": 0, "ready": 0}]), [pod("a", running())], Phase.RUNNING),
        (train_job("a", age=12), [pod("a", terminated(1), age=11)], Phase.RUNNING),
        (train_job("a", condition("Complete")), [], Phase.SUCCEEDED),
        (train_job("a", condition("Failed")), [pod("a", running())], Phase.FAILED),
        (train_job("a", condition("Failed", value="False")), [pod("a", running())], Phase.RUNNING),
        (train_job("a", condition("Complete", seconds_ago=3)), [], Phase.STARTING),  # of a job of the same name before
    ],
)
def test_a_phase_follows_from_conditions_and_pods(job: dict[str, Any], pods: list[Any], phase: Phase) -> None:
    assert seen(job, *pods)[0] is phase


def test_all_nodes_must_run() -> None:
    job, first = train_job("a", age=50), pod("a", running(40), age=50)
    second = pod("a", waiting("ContainerCreating"), rank=1, age=50)
    assert seen(job, first, second, nodes=2) == (Phase.STARTING, 50)
    assert seen(job, first, pod("a", running(10), rank=1, age=50), nodes=2) == (Phase.RUNNING, 10)


def test_pods_of_an_admission_that_was_taken_back_do_not_count() -> None:
    old = pod("a", running(900), age=1000, suffix="old")
    old["metadata"]["deletionTimestamp"] = old["metadata"]["creationTimestamp"]
    queued = train_job("a", condition("Suspended", 20), age=1000, suspend=True)
    assert seen(queued, old) == (Phase.QUEUED, 20)
    let_go = train_job("a", condition("Suspended", 10, value="False"), age=1000)
    assert seen(let_go, old) == (Phase.STARTING, 10)
    assert seen(let_go, old, pod("a", running(4), age=9, suffix="new")) == (Phase.RUNNING, 4)


def test_while_pods_end_a_training_stays_what_it_was() -> None:
    ending = pod("a", running(50), age=60)
    ending["metadata"]["deletionTimestamp"] = ending["metadata"]["creationTimestamp"]
    assert seen(train_job("a", age=60), ending) == (Phase.RUNNING, 50)


def test_a_pod_that_takes_the_place_of_another_starts_when_it_is_made() -> None:
    ended = pod("a", running(9000), age=9010, suffix="old")
    ended["metadata"]["deletionTimestamp"] = ended["metadata"]["creationTimestamp"]
    assert seen(train_job("a", age=9020), ended, pod("a", age=5, suffix="new")) == (Phase.STARTING, 5)


def test_a_container_that_was_started_again_has_run_since_its_first_start() -> None:
    ready = condition("Initialized", 500)
    again = pod("a", running(3), ready, age=505, restartCount=2, lastState=terminated(1, "first words", ago=20))
    assert seen(train_job("a", age=505), again) == (Phase.RUNNING, 500)
    state = pod_state(again)
    assert (state.restarts, state.exit_code, state.words) == (2, 1, "first words")
    backing_off = pod("a", waiting("CrashLoopBackOff"), ready, age=505, restartCount=1, lastState=terminated(1))
    assert seen(train_job("a", age=505), backing_off)[0] is Phase.RUNNING


def test_of_two_ends_of_a_container_the_first_failure_counts_and_a_success_always() -> None:
    again: dict[str, Any] = {"restartCount": 1, "lastState": terminated(1, "no data", ago=20)}
    assert pod_state(pod("a", terminated(1, "ended by SIGTERM"), age=30, **again)).words == "no data"
    assert pod_state(pod("a", terminated(0, "a model"), age=30, **again)).words == "a model"


def test_a_program_that_could_not_be_started_has_not_begun() -> None:
    end = terminated(128, 'exec: "python3": executable file not found', "StartError")["terminated"]
    never = pod("a", {"terminated": {**end, "startedAt": "1970-01-01T00:00:00Z"}}, age=5)
    assert seen(train_job("a", age=6), never) == (Phase.STARTING, 5)
    state, states = job_state(train_job("a", age=6)), [pod_state(never)]
    clock = running_clock(LIMITS, Phase.STARTING, state, states)
    assert clock
    assert clock.left(NOW) > 0


def test_a_program_that_runs_has_begun_whatever_the_clock_of_its_node_says() -> None:
    assert seen(train_job("a", age=6), pod("a", running(60), age=5))[0] is Phase.RUNNING


@pytest.mark.parametrize(
    ("job", "pods", "clock", "left"),
    [
        (train_job("a", suspend=True, age=20), [], "queue_timeout", 40),
        (train_job("a", condition("Suspended", 5), suspend=True, age=999), [], "queue_timeout", 55),
        (train_job("a", age=20), [], "startup_timeout", 10),
        (train_job("a", condition("Suspended", 5, value="False"), age=999), [], "startup_timeout", 25),
        (train_job("a", age=999), [pod("a", running(40), age=999)], "training_timeout", 60),
        (train_job("a", age=999), [pod("a", running(140), age=999)], "training_timeout", -40),
        (train_job("a", condition("Complete"), age=999), [], None, 0),
    ],
)
def test_each_phase_has_its_clock(job: dict[str, Any], pods: list[Any], clock: str | None, left: float) -> None:
    state, states = job_state(job), [pod_state(one) for one in pods]
    found = running_clock(LIMITS, phase_of(state, states), state, states)
    assert (found.name if found else None) == clock
    if found:
        assert found.left(NOW) == pytest.approx(left, abs=2)


def test_a_phase_without_a_limit_has_no_clock() -> None:
    job = job_state(train_job("a", age=99999))
    assert running_clock({"startup_timeout": None}, Phase.STARTING, job, []) is None
