"""One training from submission to its end, by the trigger itself, against an API server over HTTP.

* phases in the task log, the event and its outcome, twenty trainings at once
* clocks that run out, starts that are hopeless, jobs that others delete, an older job of the same request
* the log of the training in the log of the task; the server away and back
* kill, restart and the state of the task before Airflow 3.3
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger

from airflow_provider_finetune.cluster import cache, follow, relay, why
from airflow_provider_finetune.contract.outcome import OUTCOME_MARK, PROGRESS_MARK, Failure, Outcome
from airflow_provider_finetune.launchers.observed import IDENTITY
from airflow_provider_finetune.triggers import TrainingTrigger
from tests.kubernetes.fake_cluster import (
    NAMESPACE,
    FakeCluster,
    at,
    condition,
    event,
    pod,
    running,
    terminated,
    train_job,
    waiting,
)

SUCCEEDED = Outcome(status="succeeded", model_uri="pvc://claim/model", metrics={"loss": 1.5})
NO_LIMITS = {"queue_timeout": None, "startup_timeout": None, "training_timeout": None}
KILLED_BY_TRIGGER = hasattr(BaseTrigger, "on_kill")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cache, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(cache, "_LONGEST_DELAY", 0.2)
    monkeypatch.setattr(cache, "_REFUSED_SECONDS", 0.3)
    monkeypatch.setattr(relay, "_FIRST_LOOK_SECONDS", 0.1)
    for module in (follow, why):
        monkeypatch.setattr(module, "SLOW_SECONDS", 0.6)
    monkeypatch.setattr(why, "_HOPELESS_SECONDS", 0.1)
    monkeypatch.setattr(follow, "_EVIDENCE_SECONDS", 0.5)
    monkeypatch.setattr(follow, "_UNKNOWN_SECONDS", 0.2)


def trigger_of(name: str, *, uid: str = "", clocks: dict[str, Any] | None = None, **more: Any) -> TrainingTrigger:
    workload = {
        "kind": "trainjob",
        "conn_id": "cluster",
        "namespace": NAMESPACE,
        "name": name,
        "uid": uid or f"uid-{name}",
    }
    trigger = TrainingTrigger(workload=workload, clocks={**NO_LIMITS, **(clocks or {})}, progress_interval=0.2, **more)
    path, arguments = trigger.serialize()
    assert path == "airflow_provider_finetune.triggers.TrainingTrigger"
    trigger = TrainingTrigger(**json.loads(json.dumps(arguments)))
    trigger._log = logging.getLogger("task")  # type: ignore[assignment]  # Airflow's own writes to wherever it is configured to
    return trigger


async def event_of(trigger: TrainingTrigger) -> dict[str, Any]:
    """What the trigger fires: JSON, once."""
    events = [fired.payload async for fired in trigger.run()]
    assert len(events) == 1
    assert json.loads(json.dumps(events[0])) == events[0]
    return dict(events[0])


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """Lines of the task log that contain a text."""

    def lines(text: str = "") -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.name == "task"]
        return [line for line in said if text in line]

    return lines


def in_cluster(monkeypatch: pytest.MonkeyPatch, story: Callable[[FakeCluster], Any]) -> None:
    async def run() -> None:
        async with FakeCluster() as cluster:
            monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", cluster.connection)
            await asyncio.wait_for(story(cluster), 60)

    asyncio.run(run())


async def until(true: Callable[[], Any], seconds: float = 15) -> None:
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("what was waited for has not happened")


def succeed(cluster: FakeCluster, name: str, words: str | None = None, **job: Any) -> None:
    said = SUCCEEDED.to_small_json() if words is None else words
    cluster.put("pods", pod(name, terminated(0, said), phase="Succeeded"))
    cluster.put("trainjobs", train_job(name, condition("Complete"), **job))


def test_a_training_goes_through_its_phases_and_ends_with_its_outcome(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        # Made at once: times that are told apart must not depend on how long this takes.
        held = train_job("a", condition("Suspended", 130), age=131, suspend=True)
        let_go = train_job("a", condition("Suspended", 65, value="False"), age=131)
        started, ended = pod("a", running(60), age=65), train_job("a", condition("Complete"), age=131)
        words = pod("a", terminated(0, SUCCEEDED.to_small_json(), ran=60), phase="Succeeded", age=65)
        cluster.put("trainjobs", held)
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: told("queued: the queue holds TrainJob a back"))
        cluster.put("trainjobs", let_go)
        await until(lambda: told("queued 1 min 5 s; starting"))
        cluster.put("pods", started)
        await until(lambda: told("starting 5 s; running on node1"))
        cluster.put("pods", words)
        cluster.put("trainjobs", ended)
        payload = await result
        outcome = Outcome.from_json(json.dumps(payload["outcome"]))
        assert (outcome.status, outcome.model_uri, outcome.metrics) == ("succeeded", "pvc://claim/model", {"loss": 1.5})
        assert payload["workload"]["name"] == "a"
        assert payload["runs_once"] is True
        assert "recover" not in payload
        assert payload["phases"] == {"queued": 65, "starting": 5, "running": 60}
        assert told()[-1] == "running 1 min; succeeded"
        assert "DELETE trainjobs/a" not in cluster.requests

    in_cluster(monkeypatch, story)


def test_twenty_trainings_at_once_share_two_watches(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        names = [f"j{number}" for number in range(20)]
        for name in names:
            cluster.put("trainjobs", train_job(name))
        results = [asyncio.create_task(event_of(trigger_of(name))) for name in names]
        await until(lambda: cluster.count("WATCH") == 2)
        for name in names:
            succeed(cluster, name)
        payloads = await asyncio.gather(*results)
        assert [payload["workload"]["name"] for payload in payloads] == names
        assert {payload["outcome"]["status"] for payload in payloads} == {"succeeded"}
        assert cluster.count("GET trainjobs") == cluster.count("WATCH trainjobs") == cluster.count("WATCH pods") == 1

    in_cluster(monkeypatch, story)


def test_an_end_is_heard_while_others_take_all_turns_to_read(monkeypatch: Any, told: Any) -> None:
    class Busy:
        async def turn(self, *, first: bool = False) -> None:
            await asyncio.sleep(0 if first else 60)

    for module in (why, relay):
        monkeypatch.setattr(module, "shared_budget", Busy)

    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a", condition("Suspended", 130), age=131, suspend=True))
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: told("queued"))
        cluster.put("trainjobs", train_job("a", condition("Suspended", 65, value="False"), age=131))
        cluster.put("pods", pod("a", running(60), age=65))
        await until(lambda: told("running"))
        succeed(cluster, "a", age=131)
        assert (await asyncio.wait_for(result, 5))["outcome"]["status"] == "succeeded"

    in_cluster(monkeypatch, story)


def test_a_job_that_has_ended_before_is_told_at_once_also_after_a_restart(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        succeed(cluster, "a", age=100)
        assert (await event_of(trigger_of("a")))["outcome"]["status"] == "succeeded"
        assert (await event_of(trigger_of("a")))["outcome"]["status"] == "succeeded"

    in_cluster(monkeypatch, story)


def test_a_complete_job_whose_pod_has_gone_with_its_words_asks_for_recovery(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a", condition("Complete")))
        payload = await event_of(trigger_of("a"))
        assert payload["recover"] is True
        assert payload["outcome"]["status"] == "failed"
        assert payload["outcome"]["failure"]["cause"] == "no_outcome"

    in_cluster(monkeypatch, story)


def test_the_cause_is_kept_of_a_pod_that_goes_before_the_job_fails(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        cluster.put("pods", pod("a", running(5)))
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: told("running"))
        evicted = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting")
        cluster.put("pods", pod("a", running(5), evicted))
        cluster.remove("pods", "a-node-0-0-abc")
        cluster.put("trainjobs", train_job("a", condition("Failed", reason="FailedJobs")))
        failure = (await result)["outcome"]["failure"]
        assert (failure["failure_class"], failure["cause"]) == ("preempted", "evicted")
        assert "Eviction API: evicting" in failure["message"]

    in_cluster(monkeypatch, story)


def test_a_training_that_was_ended_says_itself_what_it_has_left(monkeypatch: Any, told: Any) -> None:
    kept = {"unit": "step", "number": 7, "path": "/mnt/c/checkpoint-7"}
    failure = Failure(failure_class="preempted", cause="terminated", message="SIGTERM")
    words = Outcome(status="failed", failure=failure, work_dir="/mnt/c", checkpoint=kept).to_small_json()

    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a", age=30))
        cluster.put("pods", pod("a", running(20), age=30))
        deleted = cluster.remove

        def remove(kind: str, name: str) -> None:
            if kind == "pods":
                cluster.put("pods", pod("a", terminated(1, words, ran=20), phase="Failed", age=30))
            deleted(kind, name)

        monkeypatch.setattr(cluster, "remove", remove)
        payload = await event_of(trigger_of("a", clocks={"training_timeout": 10}))
        outcome = payload["outcome"]
        assert outcome["failure"]["cause"] == "training_timeout"
        assert (outcome["work_dir"], outcome["checkpoint"]) == ("/mnt/c", kept)

    in_cluster(monkeypatch, story)


@pytest.mark.parametrize("readable", [True, False])
def test_what_only_kueues_own_object_says_is_told_where_it_may_be_read(
    monkeypatch: Any, told: Any, readable: bool
) -> None:
    said = condition("QuotaReserved", 1, "False", reason="Inadmissible", message="LocalQueue q doesn't exist")
    labels = {"kueue.x-k8s.io/job-uid": "uid-a"}

    async def story(cluster: FakeCluster) -> None:
        if not readable:
            cluster.refuse["workloads"] = (403, "no right")
        item = {"metadata": {"name": "trainjob-a", "uid": "w", "labels": labels}, "status": {"conditions": [said]}}
        cluster.put("workloads", item)
        cluster.put("trainjobs", train_job("a", condition("Suspended", 30), age=30, suspend=True))
        payload = await event_of(trigger_of("a", clocks={"queue_timeout": None if readable else 1}))
        cause = payload["outcome"]["failure"]["cause"]
        assert cause == ("queue_missing" if readable else "queue_timeout")
        assert "trainjobs/a" in str(cluster.requests)

    in_cluster(monkeypatch, story)


def test_lines_of_the_training_are_in_the_task_log_once_and_before_the_word_failed(monkeypatch: Any, told: Any) -> None:
    words = Outcome(status="failed", failure=Failure(failure_class="user", cause="bad_rows", message="Row 7"))
    machine = [PROGRESS_MARK + json.dumps({"step": 1}), OUTCOME_MARK + words.to_small_json()]

    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        cluster.put("pods", pod("a", running(-2)))
        log = cluster.logs["a-node-0-0-abc"] = [f"{at(3)} step 1", f"{at(3)} {machine[0]}"]
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: told("step 1"))
        log.append(f"{at(2)} warning: slow disk")
        await until(lambda: told("slow disk"))
        log += [f"{at(1)} {machine[1]}", f"{at(1)} error: Row 7 is empty"]
        cluster.put("pods", pod("a", terminated(1, words.to_small_json()), phase="Failed"))
        cluster.put("trainjobs", train_job("a", condition("Failed", reason="FailedJobs")))
        assert (await result)["outcome"]["failure"]["cause"] == "bad_rows"
        *lines, last = told()
        assert [line for line in lines if line in ("step 1", "slow disk", "Row 7 is empty")] == [
            "step 1",
            "slow disk",
            "Row 7 is empty",
        ]
        assert last.endswith("; failed")
        assert not told("finetune-")

    in_cluster(monkeypatch, story)


def test_where_the_trainer_tells_the_progress_the_log_is_read_at_first_and_then_seldom(
    monkeypatch: Any, told: Any
) -> None:
    async def story(cluster: FakeCluster) -> None:
        status = {
            "progressPercentage": 40,
            "estimatedRemainingSeconds": 90,
            "metrics": [{"name": "loss", "value": "1.2"}],
        }
        cluster.put("trainjobs", train_job("a", trainerStatus=status))
        cluster.put("pods", pod("a", running(-2)))
        log = cluster.logs["a-node-0-0-abc"] = [f"{at(1)} warning: 7 rows are left out"]
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: told("progress 40 %  loss 1.2  ETA 1 min 30 s"))
        await until(lambda: told("7 rows are left out"))
        log.append(f"{at(0)} step 2")
        await asyncio.sleep(0.5)
        assert not told("step 2")
        assert cluster.count("GET pods/a-node-0-0-abc/log") == 1
        succeed(cluster, "a")
        await result
        assert len(told("progress 40 %")) == len(told("step 2")) == 1

    in_cluster(monkeypatch, story)


@pytest.mark.parametrize(("lines", "shown", "missing"), [(100, 100, 0), (900, 900, 0), (1500, 1000, 1)])
def test_of_a_log_that_is_long_at_the_first_look_more_is_read_and_what_is_missing_is_said(
    monkeypatch: Any, told: Any, lines: int, shown: int, missing: int
) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        cluster.put("pods", pod("a", running(-2)))
        cluster.logs["a-node-0-0-abc"] = [f"{at(1)} line {number}" for number in range(lines)]
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: told(f"line {lines - 1}"))
        succeed(cluster, "a")
        await result
        assert (len(told("line ")), len(told("is missing here"))) == (shown, missing)

    in_cluster(monkeypatch, story)


@pytest.mark.parametrize(
    ("job", "shown", "clock", "words"),
    [
        (
            lambda: train_job("a", suspend=True, age=70),
            lambda: None,
            "queue_timeout",
            "insufficient quota for nvidia.com/gpu",
        ),
        (
            lambda: train_job("a", age=70),
            lambda: waiting("ErrImagePull", "dial tcp: i/o timeout"),
            "startup_timeout",
            "registry",
        ),
        (lambda: train_job("a", age=99), lambda: running(70), "training_timeout", "was ended after 1 min"),
    ],
)
def test_a_clock_that_runs_out_deletes_the_job_and_says_what_it_waited_for(
    monkeypatch: Any, told: Any, job: Any, shown: Any, clock: str, words: str
) -> None:
    async def story(cluster: FakeCluster) -> None:
        # Made here and not while tests are collected, which may be minutes before.
        cluster.put("trainjobs", job())
        cluster.events = [
            event("TrainJob", "a", "CreatedWorkload", f"Created Workload: {NAMESPACE}/trainjob-a-180d6"),
            event("Workload", "trainjob-a-180d6", "Pending", "insufficient quota for nvidia.com/gpu in flavor gpu"),
        ]
        if state := shown():
            cluster.put("pods", pod("a", state, age=69))
        payload = await event_of(trigger_of("a", clocks={clock: 60}))
        failure = payload["outcome"]["failure"]
        assert (failure["cause"], payload["gone"]) == (clock, True)
        assert list(payload["phases"].values())[-1] >= 60
        assert told()[-1].endswith("; TrainJob a is deleted")
        assert f"{clock}=60 s" in failure["message"]
        assert words in failure["message"]
        assert clock in failure["cure"]
        assert cluster.count("DELETE trainjobs/a") == 1

    in_cluster(monkeypatch, story)


@pytest.mark.parametrize("suspend", [False, True])
def test_an_execution_timeout_that_is_over_while_a_task_is_deferred_deletes_the_job(
    monkeypatch: Any, told: Any, suspend: bool
) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a", suspend=suspend))
        payload = await event_of(trigger_of("a", deadline=time.time() + 1))
        assert (payload["outcome"]["failure"]["cause"], payload["gone"]) == ("execution_timeout", True)
        assert told()[-1].endswith("; TrainJob a is deleted")
        assert cluster.count("DELETE trainjobs/a") == 1

    in_cluster(monkeypatch, story)


def test_a_training_of_which_the_watch_has_not_heard_is_not_ended_for_its_start(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a", age=58))
        cluster.put("pods", pod("a", waiting("ContainerCreating"), age=57, phase="Pending"))
        result = asyncio.create_task(event_of(trigger_of("a", clocks={"startup_timeout": 60.0})))
        await until(lambda: told("starting"))
        # Without a word to those who watch: their connection is dead, and nobody knows it yet.
        (name,) = cluster.objects["pods"]
        cluster.objects["pods"][name] = pod("a", running(1), age=57)
        await until(lambda: cluster.count("GET pods") == 3)
        assert not cluster.count("DELETE")
        succeed(cluster, "a", age=62)
        assert (await result)["outcome"]["status"] == "succeeded"

    in_cluster(monkeypatch, story)


def test_a_start_that_only_the_author_can_mend_is_ended_at_once(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        cluster.put("pods", pod("a", waiting("CreateContainerConfigError", 'secret "hf" not found'), phase="Pending"))
        failure = (await event_of(trigger_of("a")))["outcome"]["failure"]
        assert (failure["failure_class"], failure["cause"]) == ("user", "secret_missing")
        assert cluster.count("DELETE trainjobs/a") == 1
        assert told("Still starting")

    in_cluster(monkeypatch, story)


def test_without_fail_fast_it_is_waited_for(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        cluster.put("pods", pod("a", waiting("CreateContainerConfigError", 'secret "hf" not found'), phase="Pending"))
        result = asyncio.create_task(event_of(trigger_of("a", fail_fast=False)))
        await until(lambda: told("Still starting"))
        await asyncio.sleep(0.5)
        cluster.put("pods", pod("a", running()))
        succeed(cluster, "a")
        assert (await result)["outcome"]["status"] == "succeeded"
        assert len(told("Still starting")) == 1

    in_cluster(monkeypatch, story)


def test_events_are_asked_for_only_when_a_start_takes_long(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a", age=-60))
        cluster.events = [event("Job", "a-node-0", "FailedCreate", "is forbidden: exceeded quota: gpu-quota")]
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: cluster.count("WATCH") == 2)
        assert not cluster.count("GET events")
        await until(lambda: told("gpu-quota"))
        asked = cluster.count("GET events")
        for number in range(5):
            cluster.put("trainjobs", train_job("a", age=number))
            await asyncio.sleep(0.05)
        assert cluster.count("GET events") == asked
        succeed(cluster, "a")
        await result

    in_cluster(monkeypatch, story)


def test_a_job_that_somebody_deletes_is_gone_when_the_server_says_so(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        result = asyncio.create_task(event_of(trigger_of("a")))
        await until(lambda: told("starting"))
        cluster.remove("trainjobs", "a")
        payload = await result
        failure = payload["outcome"]["failure"]
        assert (failure["failure_class"], failure["cause"], payload["gone"]) == ("preempted", "deleted", True)
        assert cluster.count("GET trainjobs/a") == 1

    in_cluster(monkeypatch, story)


def test_another_job_of_the_same_name_is_not_followed(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        succeed(cluster, "a")
        assert (await event_of(trigger_of("a", uid="other")))["outcome"]["failure"]["cause"] == "deleted"

    in_cluster(monkeypatch, story)


def test_of_two_active_jobs_of_one_request_the_older_is_kept_and_followed(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        for name, age in (("old", 10), ("young", 1)):
            job = train_job(name, age=age)
            job["metadata"]["labels"][IDENTITY] = "same"
            cluster.put("trainjobs", job)
        result = asyncio.create_task(event_of(trigger_of("young", identity="same", whole="w")))
        again = asyncio.create_task(event_of(trigger_of("old")))
        await until(lambda: cluster.count("DELETE") == 1)
        restarted = asyncio.create_task(event_of(trigger_of("young", identity="same", whole="w")))
        await asyncio.sleep(0.2)
        succeed(cluster, "old")
        for payload in await asyncio.gather(result, again, restarted):
            assert payload["workload"]["name"] == "old"
            assert payload["outcome"]["status"] == "succeeded"
        assert {request for request in cluster.requests if "DELETE" in request} == {"DELETE trainjobs/young"}

    in_cluster(monkeypatch, story)


def test_a_younger_job_that_no_list_shows_yet_is_deleted_as_well(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        for name, age in (("old", 10), ("young", 1)):
            job = train_job(name, age=age)
            job["metadata"]["labels"][IDENTITY] = "same"
            cluster.put("trainjobs", job)
        cluster.unlisted.add("young")
        result = asyncio.create_task(event_of(trigger_of("young", identity="same", whole="w")))
        await until(lambda: cluster.count("DELETE trainjobs/young") == 1)
        succeed(cluster, "old")
        assert (await result)["workload"]["name"] == "old"

    in_cluster(monkeypatch, story)


def test_the_task_is_told_once_that_the_server_is_away_and_once_that_it_is_back(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a", age=100))
        cluster.put("pods", pod("a", running(50), age=99))
        result = asyncio.create_task(event_of(trigger_of("a", clocks={"training_timeout": 52.0})))
        await until(lambda: told("running"))
        await cluster.stop()
        await until(lambda: told("cannot be watched"))
        await asyncio.sleep(2.5)
        assert not result.done()
        succeed(cluster, "a", age=100)
        await cluster.start()
        assert (await result)["outcome"]["status"] == "succeeded"
        assert len(told("cannot be watched")) == len(told("can be watched again, after")) == 1

    in_cluster(monkeypatch, story)


def test_a_triggerer_without_the_right_to_watch_says_which_and_lets_the_job_train(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        message = 'pods is forbidden: User "t" cannot list resource "pods" in API group "" in the namespace "ml"'
        cluster.refuse["pods"] = (403, message)
        payload = await event_of(trigger_of("a"))
        failure = payload["outcome"]["failure"]
        assert (payload["unknown"], failure["failure_class"], failure["cause"]) == (True, "infrastructure", "forbidden")
        assert "TrainJob ml/a is no longer followed, and may train on" in failure["message"]
        assert "may not list 'pods'" in failure["message"]
        assert not cluster.count("DELETE")

    in_cluster(monkeypatch, story)


def test_a_triggerer_with_a_wrong_setting_says_which_and_lets_the_job_train(monkeypatch: Any) -> None:
    monkeypatch.setenv("AIRFLOW__FINETUNE__READS_PER_SECOND", "many")

    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        payload = await event_of(trigger_of("a"))
        assert payload["unknown"] is True
        assert "reads_per_second='many' is no number above 0" in payload["outcome"]["failure"]["message"]

    in_cluster(monkeypatch, story)


async def cancelled(cluster: FakeCluster, trigger: TrainingTrigger) -> None:
    cluster.put("trainjobs", train_job("a"))
    waiting_for = asyncio.create_task(event_of(trigger))
    await until(lambda: cluster.count("WATCH") == 2)
    waiting_for.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting_for


def test_a_trigger_that_has_fired_deletes_nothing(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        succeed(cluster, "a")
        trigger = trigger_of("a")
        await event_of(trigger)
        await trigger.on_kill()
        await trigger.cleanup()
        assert not cluster.count("DELETE")

    in_cluster(monkeypatch, story)


@pytest.mark.parametrize(
    ("answer", "deleted"),
    [("deferred", 0), ("failed", 1), ("success", 1), (None, 1), (KeyError("no such task"), 0), (TimeoutError(), 0)],
)
def test_before_airflow_3_3_the_end_of_a_trigger_deletes_the_job_of_a_task_that_is_no_longer_deferred(
    monkeypatch: Any, answer: Any, deleted: int
) -> None:
    async def story(cluster: FakeCluster) -> None:
        from airflow.sdk.execution_time import task_runner

        class Server:
            def send(self, message: Any) -> Any:
                assert message.task_ids == ["train"]
                if isinstance(answer, Exception):
                    raise answer
                return SimpleNamespace(task_states={"run": {"train_3": answer}})

        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Server(), raising=False)
        trigger = trigger_of("a")
        trigger.__dict__["_task_instance"] = trigger.__dict__["task_instance"] = SimpleNamespace(
            dag_id="dag", task_id="train", run_id="run", map_index=3
        )
        await cancelled(cluster, trigger)
        await trigger.cleanup()
        assert cluster.count("DELETE") == (0 if KILLED_BY_TRIGGER else deleted)

    in_cluster(monkeypatch, story)
