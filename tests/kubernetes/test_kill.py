"""What a trigger does when it is cancelled, against an API server over HTTP.

* the job is deleted where the task waits no more, and stays where it still waits, where another try has taken it over,
  or where nobody knows
* a triggerer that cancels again and again does not keep it from that
"""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_finetune.launchers.observed import FOLLOWER
from airflow_provider_finetune.triggers import TrainingTrigger
from tests.kubernetes.fake_cluster import NAMESPACE, FakeCluster, train_job

UID = train_job("a")["metadata"]["uid"]


class Trigger(TrainingTrigger):
    """Waits for the job ``a`` of a task in a state that Airflow tells after a while."""

    def __init__(self, state: str | None) -> None:
        workload = {"kind": "trainjob", "conn_id": "cluster", "namespace": NAMESPACE, "name": "a", "uid": UID}
        super().__init__(workload=workload, clocks={}, follower="this try")
        self.state = state

    async def _task_state(self) -> str | None:
        await asyncio.sleep(0.2)
        if self.state == "unknown":
            raise RuntimeError("Airflow does not answer")
        return self.state


def is_deleted(
    monkeypatch: pytest.MonkeyPatch, state: str | None, cancels: int = 0, follower: str | None = None
) -> bool:
    """Whether a trigger that is told to kill deletes the job, though it is cancelled while it does."""

    async def run() -> bool:
        async with FakeCluster() as cluster:
            monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", cluster.connection)
            job = train_job("a")
            job["metadata"]["annotations"] |= {FOLLOWER: follower} if follower else {}
            cluster.put("trainjobs", job)
            killing = asyncio.create_task(Trigger(state).on_kill())
            for _ in range(cancels):
                await asyncio.sleep(0.05)
                killing.cancel()
            await killing
            return "a" not in cluster.objects["trainjobs"]

    return asyncio.run(run())


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "running", None])
def test_the_job_of_a_task_that_waits_no_more_is_deleted(monkeypatch: pytest.MonkeyPatch, state: str | None) -> None:
    assert is_deleted(monkeypatch, state)


@pytest.mark.parametrize("state", ["deferred", "unknown"])
def test_the_job_of_a_task_that_waits_or_may_wait_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    assert not is_deleted(monkeypatch, state)


@pytest.mark.parametrize(("follower", "deleted"), [("this try", True), ("the next", False)])
def test_a_job_is_left_to_the_try_that_has_taken_it_over(
    monkeypatch: pytest.MonkeyPatch, follower: str, deleted: bool
) -> None:
    assert is_deleted(monkeypatch, "running", follower=follower) is deleted


def test_a_triggerer_that_cancels_again_does_not_keep_the_job_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_deleted(monkeypatch, "failed", cancels=3)
