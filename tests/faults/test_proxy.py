"""The proxy: each fault is what its name says, and what is drawn depends on the seed alone.

Behind it is an API server of three objects, before it the product's own client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.cluster.refusals import Refused
from airflow_provider_finetune.launchers.observed import DOMAIN, MANAGED_BY
from tests.cluster.bed.certificates import kubeconfig
from tests.faults.plan import Fault, Kind, Plan
from tests.faults.proxy import FaultProxy
from tests.kubernetes.fake_cluster import FakeCluster, condition, train_job

OURS = {MANAGED_BY: DOMAIN}
Use = Callable[[TrainingHook, FakeCluster], Coroutine[Any, Any, Any]]
Meet = Callable[[Kind, Fault | None, Use], Any]


class One(Plan):
    """Draws one fault for all requests of a kind: aiohttp asks once more where a connection is dropped."""

    def __init__(self, kind: Kind, fault: Fault | None) -> None:
        self._kind, self._fault = kind, fault

    def draw(self, kind: Kind) -> tuple[Fault | None, float]:
        return self._fault if kind is self._kind else None, 0.2


@pytest.fixture
def meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Meet:
    """Let the product's client meet a fault, and return what comes of it."""

    def run(kind: Kind, fault: Fault | None, use: Use) -> Any:
        async def inside() -> Any:
            async with FakeCluster() as cluster:
                for number in range(3):
                    cluster.put("trainjobs", train_job(f"job-{number}"))
                config = yaml.safe_load(json.loads(cluster.connection)["extra"]["kube_config"])
                server = config["clusters"][0]["cluster"]["server"]
                with FaultProxy(server, Path(), One(kind, fault), tmp_path / "certificates") as proxy:
                    path = kubeconfig(tmp_path / "config", proxy.url, proxy.authority.path, {"token": "t"}, "ml")
                    extra = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(path)}}
                    monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", json.dumps(extra))
                    async with TrainingHook("cluster", "ml", pauses=()) as hook:
                        return await use(hook, cluster)

        return asyncio.run(inside())

    return run


async def read(hook: TrainingHook, cluster: FakeCluster) -> Any:
    try:
        return (await hook.job("job-1") or {})["metadata"]["name"]
    except Refused as error:
        return error.cause, error.retry_after


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (None, "job-1"),
        (Fault.SLOW, "job-1"),
        (Fault.DROPPED, ("unreachable", None)),
        (Fault.LOST, ("unreachable", None)),
        (Fault.HALVED, ("unreachable", None)),
        (Fault.TRIMMED, ("unreachable", None)),
        (Fault.BUSY, ("server_busy", 2.0)),
        (Fault.BROKEN, ("server_error", None)),
        (Fault.AWAY, ("server_error", None)),
    ],
)
def test_a_request_meets_its_fault(meet: Meet, fault: Fault, seen: Any) -> None:
    assert meet(Kind.READ, fault, read) == seen


@pytest.mark.parametrize(("fault", "arrives"), [(Fault.DROPPED, False), (Fault.LOST, True), (Fault.LATE, True)])
def test_a_change_whose_answer_is_lost_has_arrived_all_the_same(meet: Meet, fault: Fault, arrives: bool) -> None:
    async def delete(hook: TrainingHook, cluster: FakeCluster) -> bool:
        try:
            await asyncio.wait_for(hook.delete_job("job-1", "uid-job-1"), 0.1 if fault is Fault.LATE else 5)
        except (Refused, asyncio.TimeoutError):
            await asyncio.sleep(0.5)
        return "job-1" not in cluster.objects["trainjobs"]

    assert meet(Kind.CHANGE, fault, delete) is arrives


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (Fault.CUT, ["MODIFIED", "unreachable"]),
        (Fault.ENDED, ["MODIFIED"]),
        (Fault.EXPIRED, ["MODIFIED", "ERROR 410"]),
        (Fault.AWAY, ["server_error"]),
    ],
)
def test_a_watch_meets_its_fault(meet: Meet, fault: Fault, seen: list[str]) -> None:
    async def watch(hook: TrainingHook, cluster: FakeCluster) -> list[str]:
        version, found = (await hook.list_raw("trainjobs", OURS))["metadata"]["resourceVersion"], []

        async def change() -> None:
            for pause in (0.05, 0.3):
                await asyncio.sleep(pause)
                cluster.put("trainjobs", train_job("job-1", condition("Complete")))

        changing = asyncio.create_task(change())
        try:
            async for event in hook.watch("trainjobs", OURS, version):
                found.append(f"{event['type']} {event['object'].get('code', '')}".strip())
        except Refused as error:
            found.append(error.cause)
        changing.cancel()
        return found

    assert meet(Kind.WATCH, fault, watch) == seen


def test_what_is_drawn_depends_on_the_seed_and_the_kind_alone() -> None:
    one, other = Plan(7), Plan(7)
    first = [one.draw(Kind.CREATE) for _ in range(20)]
    second = []
    for _ in range(20):
        other.draw(Kind.WATCH)
        second.append(other.draw(Kind.CREATE))
    assert first == second
    assert first != [Plan(8).draw(Kind.CREATE) for _ in range(20)]
