"""A pod of its own from submission to its end, by the trigger itself, against an API server over HTTP.

* phases, outcome and requests: one watch shows the workload and its pod, and no TrainJob is asked for
* a pod that is taken away takes its end with it, which was seen before
* a container beside the one that trains; a queue; a clock that runs out; two pods for one request
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.launchers.observed import IDENTITY
from tests.kubernetes.fake_cluster import FakeCluster, condition, own_pod, pod, running, terminated, waiting
from tests.kubernetes.test_following import SUCCEEDED, event_of, in_cluster, quick, told, trigger_of, until

__all__ = ["quick", "told"]

WORDS = SUCCEEDED.to_small_json()
TERMINATED = Outcome(
    status="failed",
    failure=Failure(
        failure_class="preempted", cause="terminated", message="SIGTERM came.", cure="A retry goes on at step 40"
    ),
)


def pod_trigger(name: str, **more: Any) -> Any:
    trigger = trigger_of(name, **more)
    trigger.workload["kind"] = "pod"
    return trigger


def outcome(payload: dict[str, Any]) -> Outcome:
    return Outcome.from_json(json.dumps(payload["outcome"]))


def cause(payload: dict[str, Any]) -> str:
    failure = outcome(payload).failure
    assert failure
    return failure.cause


def test_a_training_goes_through_its_phases_and_ends_with_its_outcome(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        pending, started = own_pod("a", age=65), own_pod("a", running(60), age=65)
        ended = own_pod("a", terminated(0, WORDS, ran=60), phase="Succeeded", age=65)
        cluster.put("pods", pending)
        result = asyncio.create_task(event_of(pod_trigger("a")))
        await until(lambda: told("starting: Pod a waits for a node"))
        cluster.put("pods", started)
        await until(lambda: told("starting 5 s; running on node1"))
        cluster.put("pods", ended)
        payload = await result
        assert outcome(payload).model_uri == "pvc://claim/model"
        assert payload["workload"] == {
            "kind": "pod",
            "conn_id": "cluster",
            "namespace": "ml",
            "name": "a",
            "uid": "uid-a",
        }
        assert payload["phases"] == {"starting": 5, "running": 60}
        assert payload["runs_once"] is True
        assert not [request for request in cluster.requests if "trainjobs" in request]
        assert cluster.count("WATCH pods") == 1

    in_cluster(monkeypatch, story)


def test_the_end_of_a_pod_that_was_taken_away_was_seen_before(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("pods", own_pod("a", running(60), age=65))
        result = asyncio.create_task(event_of(pod_trigger("a")))
        await until(lambda: cluster._watchers)
        evicted = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="evicting")
        end = own_pod("a", terminated(143, TERMINATED.to_small_json(), ran=60), evicted, phase="Failed", age=65)
        cluster.put("pods", end)
        cluster.remove("pods", "a")
        payload = await result
        assert cause(payload) in ("evicted", "terminated")
        assert outcome(payload).failure.failure_class == "preempted"  # type: ignore[union-attr]

    in_cluster(monkeypatch, story)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([condition("DisruptionTarget", reason="PreemptionByScheduler", message="preempting")], "preempted"),
        ([], "preempted"),
    ],
)
def test_a_pod_that_is_gone_without_a_word_is_told_as_such(
    monkeypatch: Any, conditions: list[dict[str, str]], expected: str
) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("pods", own_pod("a", running(60), *conditions, age=65))
        result = asyncio.create_task(event_of(pod_trigger("a")))
        await until(lambda: cluster._watchers)
        cluster.remove("pods", "a")
        payload = await result
        failure = outcome(payload).failure
        assert failure
        assert failure.failure_class == expected
        assert ("PreemptionByScheduler" in failure.message) == bool(conditions)
        assert payload["gone"] is True

    in_cluster(monkeypatch, story)


def test_a_success_that_went_with_its_pod_is_a_success(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("pods", own_pod("a", running(60), age=65))
        result = asyncio.create_task(event_of(pod_trigger("a")))
        await until(lambda: cluster._watchers)
        cluster.put("pods", own_pod("a", terminated(0, WORDS, ran=60), phase="Succeeded", age=65))
        cluster.remove("pods", "a")
        assert outcome(await result).status == "succeeded"

    in_cluster(monkeypatch, story)


def test_a_proxy_that_runs_for_ever_holds_nothing_up(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        ended = own_pod("a", terminated(0, WORDS, ran=60), age=65)
        ended["status"]["containerStatuses"].append({"name": "proxy", "state": running(60)})
        cluster.put("pods", ended)
        payload = await event_of(pod_trigger("a"))
        assert outcome(payload).status == "succeeded"
        assert payload["runs_once"] is False, "the proxy holds what the pod was given"

    in_cluster(monkeypatch, story)


def test_a_queue_is_told_and_its_clock_ends_the_pod(monkeypatch: Any, told: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("pods", own_pod("a", gated=True, age=100))
        payload = await event_of(pod_trigger("a", clocks={"queue_timeout": 60.0}))
        assert told("queued: the queue holds Pod a back")
        assert cause(payload) == "queue_timeout"
        assert "DELETE pods/a" in cluster.requests

    in_cluster(monkeypatch, story)


def test_a_start_without_hope_ends_at_once(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def story(cluster: FakeCluster) -> None:
        stuck = waiting("CreateContainerConfigError", 'secret "hub" not found')
        cluster.put("pods", own_pod("a", stuck, phase="Pending"))
        payload = await event_of(pod_trigger("a"))
        assert cause(payload) == "secret_missing"
        assert "DELETE pods/a" in cluster.requests

    in_cluster(monkeypatch, story)


def test_of_two_pods_for_one_request_the_older_is_kept(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        older, younger = own_pod("a", running(60), age=65), own_pod("b", running(5), age=10)
        for one in (older, younger):
            one["metadata"]["labels"][IDENTITY] = "same"
            cluster.put("pods", one)
        result = asyncio.create_task(event_of(pod_trigger("b")))
        await until(lambda: "DELETE pods/b" in cluster.requests)
        cluster.put("pods", own_pod("a", terminated(0, WORDS, ran=60), phase="Succeeded", age=65))
        payload = await result
        assert payload["workload"]["name"] == "a"
        assert outcome(payload).status == "succeeded"

    in_cluster(monkeypatch, story)


def test_the_pods_of_trainjobs_are_not_watched(monkeypatch: Any) -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("pods", pod("other", running(60), age=65))
        cluster.put("pods", own_pod("a", terminated(0, WORDS, ran=60), phase="Succeeded", age=65))
        assert outcome(await event_of(pod_trigger("a"))).status == "succeeded"

    in_cluster(monkeypatch, story)
