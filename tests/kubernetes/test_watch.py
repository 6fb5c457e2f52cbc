"""The shared watch, against an API server over HTTP.

* one list and one watch per kind for all followers; the first may leave, the last one ends it
* the ordinary end of a watch, a version that has expired, errors, a server that is away and back
* what is refused at the beginning, for a moment, for minutes, or because Airflow does not give the connection
* what is remembered of pods that have gone, and for how long; who is woken
* how much memory an object costs
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from airflow_provider_finetune.cluster import cache
from airflow_provider_finetune.cluster.hook import PAGE, TrainingHook
from airflow_provider_finetune.cluster.watch import SharedWatch, following
from airflow_provider_finetune.launchers.kinds import TRAINJOB
from airflow_provider_finetune.launchers.observed import JobState, PodState, pod_state
from airflow_provider_finetune.launchers.trainjob import job_state
from tests.kubernetes.fake_cluster import (
    NAMESPACE,
    FakeCluster,
    condition,
    pod,
    running,
    terminated,
    train_job,
    waiting,
)

Watch = SharedWatch[TrainingHook]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(cache, "_LONGEST_DELAY", 0.2)
    monkeypatch.setattr(cache, "_REFUSED_SECONDS", 0.5)


@asynccontextmanager
async def watching(cluster: FakeCluster, job: str = "a") -> AsyncIterator[tuple[Watch, Any]]:
    def hook() -> TrainingHook:
        return TrainingHook("cluster", NAMESPACE, pauses=())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_CLUSTER", cluster.connection)
        async with following(TRAINJOB, "cluster", NAMESPACE, job, hook) as (watch, follower):
            await until(lambda: watch.synced)
            yield watch, follower


async def until(true: Callable[[], Any], seconds: float = 10) -> None:
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("what was waited for has not happened")


def in_cluster(test: Callable[[FakeCluster], Any]) -> None:
    async def run() -> None:
        async with FakeCluster() as cluster:
            await test(cluster)

    asyncio.run(run())


def test_twenty_followers_share_one_list_and_one_watch_of_each_kind() -> None:
    async def story(cluster: FakeCluster) -> None:
        for number in range(20):
            cluster.put("trainjobs", train_job(f"j{number}"))
        async with AsyncExitStack() as stack:
            for number in range(20):
                watch, _ = await stack.enter_async_context(watching(cluster, f"j{number}"))
            await until(lambda: cluster.count("WATCH") == 2)
            assert watch.job("j7", "uid-j7")
            assert sorted(cluster.requests) == ["GET pods", "GET trainjobs", "WATCH pods", "WATCH trainjobs"]

    in_cluster(story)


def test_a_long_list_is_read_in_pages() -> None:
    async def story(cluster: FakeCluster) -> None:
        names = [f"j{number}" for number in range(2 * PAGE + 1)]
        for name in names:
            cluster.put("trainjobs", train_job(name))
        async with watching(cluster, "j0") as (watch, _):
            assert all(watch.job(name, f"uid-{name}") for name in names)
            assert cluster.count("GET trainjobs") == 3

    in_cluster(story)


def test_a_list_that_expires_between_two_pages_is_read_anew() -> None:
    async def story(cluster: FakeCluster) -> None:
        for number in range(PAGE + 1):
            cluster.put("trainjobs", train_job(f"j{number}"))
        cluster.expired = 1
        async with watching(cluster, "j0") as (watch, _):
            assert watch.job(f"j{PAGE}", f"uid-j{PAGE}")
            assert cluster.count("GET trainjobs") == 4

    in_cluster(story)


def test_a_follower_is_woken_by_its_own_job_and_pods_only_and_not_by_what_says_nothing_new() -> None:
    async def story(cluster: FakeCluster) -> None:
        job = train_job("a")
        cluster.put("trainjobs", job)
        cluster.put("trainjobs", train_job("b"))
        async with watching(cluster, "a") as (watch, follower):
            await follower.change(0)
            cluster.put("trainjobs", train_job("b", condition("Complete")))
            cluster.put("trainjobs", {**job, "status": {"jobsStatus": [{"active": 1}]}})
            cluster.put("pods", pod("b", running()))
            await until(lambda: watch.pods("b"))
            assert not await follower.change(0.1)
            cluster.put("pods", pod("a", running()))
            assert await follower.change(5)

    in_cluster(story)


def test_the_ordinary_end_of_a_watch_is_followed_by_the_next_from_the_last_version() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with watching(cluster) as (watch, _):
            await until(lambda: cluster.count("WATCH") == 2)
            cluster.send("trainjobs", {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "500"}}})
            await asyncio.sleep(0.05)
            cluster.end_watches()
            await until(lambda: cluster.count("WATCH") == 4)
            cluster.put("trainjobs", train_job("a"))
            await until(lambda: cluster.count("GET") == 2)
            assert watch.outage is None

    in_cluster(story)


def test_a_version_that_has_expired_is_an_error_under_status_200_and_listed_anew() -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        async with watching(cluster) as (watch, _):
            await until(lambda: cluster.count("WATCH") == 2)
            cluster.oldest = 1000
            cluster.end_watches()
            cluster.objects["trainjobs"].clear()
            await until(lambda: cluster.count("GET trainjobs") >= 2)
            cluster.oldest = 0
            await until(lambda: watch.job("a", "uid-a") is None)
            assert watch.outage is None

    in_cluster(story)


def test_another_error_event_is_tried_again_and_told_where_it_lasts() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with watching(cluster) as (watch, _):
            error = {"type": "ERROR", "object": {"code": 500, "message": "etcd is slow"}}
            await until(lambda: cluster.count("WATCH trainjobs") == 1)
            cluster.send("trainjobs", error)
            await until(lambda: cluster.count("WATCH trainjobs") == 2)
            cluster.send("trainjobs", error)
            await until(lambda: watch.outage)
            assert watch.outage
            assert "500: etcd is slow" in watch.outage.reason
            await until(lambda: cluster.count("WATCH trainjobs") == 3)
            cluster.put("trainjobs", train_job("a"))
            await until(lambda: watch.outage is None and watch.job("a", "uid-a"))

    in_cluster(story)


def test_a_server_that_is_away_is_an_outage_until_it_is_back_and_nothing_is_forgotten() -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("trainjobs", train_job("a"))
        async with watching(cluster) as (watch, follower):
            await until(lambda: cluster.count("WATCH") == 2)
            await follower.change(0)
            await cluster.stop()
            await until(lambda: watch.outage)
            assert await follower.change(0)
            assert watch.outage
            assert "does not answer" in watch.outage.reason
            assert watch.job("a", "uid-a")
            cluster.put("trainjobs", train_job("a", condition("Complete")))
            await cluster.start()
            await until(lambda: watch.outage is None)
            job = watch.job("a", "uid-a")
            assert job
            assert job.condition == "Complete"

    in_cluster(story)


def test_a_right_that_is_missing_from_the_beginning_ends_the_wait() -> None:
    message = 'pods is forbidden: User "u" cannot list resource "pods" in API group "" in the namespace "ml"'

    async def story(cluster: FakeCluster) -> None:
        cluster.refuse["pods"] = (403, message)
        with pytest.raises(Exception, match="may not list 'pods'"):
            async with watching(cluster):
                pass

    in_cluster(story)


def test_a_right_to_watch_that_is_missing_from_the_beginning_ends_the_wait() -> None:
    message = 'pods is forbidden: User "u" cannot watch resource "pods" in API group "" in the namespace "ml"'

    async def story(cluster: FakeCluster) -> None:
        cluster.refuse["WATCH pods"] = (403, message)
        async with watching(cluster) as (watch, _):
            with pytest.raises(Exception, match="may not watch 'pods'"):
                await until(lambda: watch.outage and watch.synced is False)

    in_cluster(story)


@pytest.mark.parametrize(
    ("seconds", "what", "answer"),
    [
        (60.0, "pods", (403, 'User "u" cannot list resource "pods" in API group "" in the namespace "ml"')),
        (0.0, "trainjobs", (401, "Unauthorized")),
        (0.0, "trainjobs", (404, "404 page not found")),
        (0.0, "WATCH pods", (404, "404 page not found")),
    ],
)
def test_what_is_refused_while_servers_start_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, seconds: float, what: str, answer: tuple[int, str]
) -> None:
    monkeypatch.setattr(cache, "_REFUSED_SECONDS", seconds)

    async def story(cluster: FakeCluster) -> None:
        cluster.refuse[what] = answer
        verb = what if " " in what else f"GET {what}"

        async def let_in() -> None:
            await until(lambda: cluster.count(verb) >= 6)
            cluster.refuse.clear()

        opening = asyncio.create_task(let_in())
        async with watching(cluster) as (watch, _):
            await opening
            await until(lambda: len(cluster._watchers) == 2)
            cluster.put("trainjobs", train_job("a"))
            cluster.put("pods", pod("a", running()))
            await until(lambda: watch.outage is None and watch.job("a", "uid-a"))

    in_cluster(story)


NO_FILE = json.dumps({"conn_type": "kubernetes", "extra": {"kube_config_path": "/nowhere/config"}})


def test_a_connection_that_cannot_be_used_yet_is_waited_for_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_REFUSED_SECONDS", 60.0)
    monkeypatch.setenv("AIRFLOW_CONN_LATE", NO_FILE)

    async def story(cluster: FakeCluster) -> None:
        async with following(TRAINJOB, "late", NAMESPACE, "a", lambda: TrainingHook("late", NAMESPACE, pauses=())) as (
            watch,
            _,
        ):
            await until(lambda: watch.outage)
            assert watch.outage
            assert "there is no file /nowhere/config" in watch.outage.reason
            monkeypatch.setenv("AIRFLOW_CONN_LATE", cluster.connection)
            await until(lambda: watch.synced and watch.outage is None)

    in_cluster(story)


def test_a_connection_that_can_never_be_used_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BAD", NO_FILE)

    async def story(cluster: FakeCluster) -> None:
        async with following(TRAINJOB, "bad", NAMESPACE, "a", lambda: TrainingHook("bad", NAMESPACE, pauses=())) as (
            watch,
            _,
        ):
            with pytest.raises(Exception, match="there is no file /nowhere/config"):
                await until(lambda: watch.synced)

    in_cluster(story)


def test_a_right_that_is_lost_later_is_an_outage() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with watching(cluster) as (watch, _):
            await until(lambda: cluster.count("WATCH") == 2)
            cluster.refuse["pods"] = (401, "Unauthorized")
            cluster.end_watches()
            await until(lambda: watch.outage)
            await asyncio.sleep(0.5)
            assert watch.synced
            cluster.refuse.clear()
            await until(lambda: watch.outage is None)

    in_cluster(story)


def test_the_first_follower_may_be_cancelled_and_the_last_one_out_ends_the_watch() -> None:
    async def story(cluster: FakeCluster) -> None:
        async def follow() -> None:
            async with watching(cluster, "a") as (_, follower):
                await follower.change(None)
                await asyncio.sleep(60)

        first = asyncio.create_task(follow())
        await until(lambda: cluster.count("GET") == 2)
        async with watching(cluster, "b") as (watch, _):
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            cluster.put("trainjobs", train_job("b"))
            await until(lambda: watch.job("b", "uid-b"))
            assert cluster.count("GET") == 2
        await until(lambda: not cluster._watchers)
        async with watching(cluster, "c"):
            assert cluster.count("GET") == 4

    in_cluster(story)


def test_what_the_watch_logs_belongs_to_no_task() -> None:
    whose = contextvars.ContextVar("whose", default="nobody's")
    seen: list[str] = []

    class Source:
        async def __aenter__(self) -> Source:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def list_raw(self, resource: str, selector: Mapping[str, str | None], after: str = "") -> dict[str, Any]:
            seen.append(whose.get())
            return {"metadata": {"resourceVersion": "1"}}

        async def watch(
            self, resource: str, selector: Mapping[str, str | None], resource_version: str
        ) -> AsyncIterator[dict[str, Any]]:
            await asyncio.sleep(60)
            yield {}

    async def story() -> None:
        whose.set("the first task's")
        async with following(TRAINJOB, "other", NAMESPACE, "a", Source) as (watch, _):
            await until(lambda: watch.synced)

    asyncio.run(story())
    assert set(seen) == {"nobody's"}


def test_pods_that_have_gone_are_remembered_while_somebody_follows_their_job() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with watching(cluster, "a") as (watch, _):
            await until(lambda: cluster.count("WATCH") == 2)
            for job in ("a", "b"):
                cluster.put("pods", pod(job, running()))
                cluster.put("pods", pod(job, terminated(1, "the cause")))
                cluster.remove("pods", f"{job}-node-0-0-abc")
            cluster.put("pods", pod("c", running()))
            await until(lambda: watch.pods("c"))
            [gone] = watch.pods("a")
            assert (gone.gone, gone.words) == (True, "the cause")
            assert not watch.pods("b")
            async with watching(cluster, "c") as (same, _):
                assert same is watch
                cluster.remove("pods", "c-node-0-0-abc")
                await until(lambda: watch.pods("c")[0].gone)
            assert not watch.pods("c")

    in_cluster(story)


def test_a_pod_that_went_unseen_is_gone_with_the_next_list() -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.put("pods", pod("a", running()))
        async with watching(cluster, "a") as (watch, _):
            await until(lambda: cluster.count("WATCH") == 2)
            await cluster.stop()
            cluster.remove("pods", "a-node-0-0-abc")
            await cluster.start()
            await until(lambda: watch.pods("a")[0].gone)

    in_cluster(story)


def test_an_object_costs_little_memory() -> None:
    pull = f'failed to pull and unpack image "registry.example/image:1": {"failed to resolve reference " * 8}'
    gc.collect()
    tracemalloc.start()
    jobs: list[JobState] = [job_state(train_job(f"job-{number}")) for number in range(500)]
    pods: list[PodState] = [pod_state(pod(f"job-{n}", waiting("ErrImagePull", pull))) for n in range(500)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 500 < 3000
    assert len(jobs) == len(pods)
