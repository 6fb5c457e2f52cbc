"""Measure what deferred trainings cost one triggerer and the API server: requests, memory, CPU, and time to the event.

Run it with an interpreter that has Airflow and this package (Linux): ``python bench/waiting.py --trainings 1000``.

* One process is an API server: TrainJobs and pods of the usual size, and logs that grow by a line a second. Of ten
  trainings two are held back by a queue, one waits for its node and seven train.
* This process is the triggerer: one event loop in which each training is followed by its own ``TrainingTrigger``. All
  begin at once, as after a restart. What Airflow itself adds, its log files and its database, is not counted.

Three windows of equal length follow each other: all begin, nothing changes, and trainings end at the rate of all of
them in a minute. Connections are plain HTTP: encryption costs some CPU more.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.kubernetes.fake_cluster import FakeCluster

POLL_SECONDS = 2.0
"""``poll_interval`` of KubernetesPodOperator: how often its trigger reads its pod."""

AGE = 600.0
"""Seconds; how old the trainings are when the triggerer begins to follow them."""

CLOCKS = {"queue_timeout": None, "startup_timeout": 1800.0, "training_timeout": None}

_WARM_UP = 10
"""Trainings that are followed for a moment before, so that what is there once per process is not counted."""

_TICK = 0.02
"""Seconds of the sleeps whose delay tells how long the event loop stands still."""


# The API server.


def serve(pipe: Connection, trainings: int) -> None:
    """Be the API server, until the pipe sends ``None``.

    :param pipe: sends the connection; ``"fill"`` makes all trainings, of which there are a few at first; ``"requests"``
        is answered with those since the last time, and a list of names with when each of them has ended, in
        :func:`time.monotonic`.
    :param trainings: how many.
    """
    asyncio.run(_serve(pipe, trainings))


async def _serve(pipe: Connection, trainings: int) -> None:
    from tests.kubernetes.fake_cluster import FakeCluster

    async with FakeCluster() as cluster:
        lines: list[str] = []
        _fill(cluster, lines, _WARM_UP)
        printing = asyncio.create_task(_print(lines))
        pipe.send(cluster.connection)
        while (order := await asyncio.to_thread(pipe.recv)) is not None:
            if order == "fill":
                _fill(cluster, lines, trainings)
                pipe.send(None)
            elif order == "requests":
                pipe.send([*cluster.requests])
                cluster.requests.clear()
            else:
                pipe.send(await _end(cluster, order, 60 / trainings))
        printing.cancel()


def _fill(cluster: FakeCluster, lines: list[str], trainings: int) -> None:
    for number in range(trainings):
        name = f"train-{number:04}"
        if name not in cluster.objects["trainjobs"]:
            _place(cluster, name, number % 10)
            cluster.logs[f"{name}-node-0-0-abc"] = lines


def _place(cluster: FakeCluster, name: str, kind: int) -> None:
    """Make the objects of one training: two of ten are queued, one is starting, the others are running."""
    from tests.kubernetes.fake_cluster import condition, event, pod, running, train_job, waiting

    if kind < 2:
        cluster.put("trainjobs", _full(train_job(name, condition("Suspended", AGE), age=AGE, suspend=True)))
        cluster.events.append(event("TrainJob", name, "CreatedWorkload", f"Created Workload: ml/trainjob-{name}"))
        cause = "couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu"
        cluster.events.append(event("Workload", f"trainjob-{name}", "Pending", cause))
        return
    cluster.put("trainjobs", _full(train_job(name, condition("Suspended", AGE, value="False"), age=AGE)))
    state = waiting("ContainerCreating") if kind == 2 else running(AGE)
    cluster.put("pods", _full(pod(name, state, age=AGE, phase="Pending" if kind == 2 else "Running")))


def _full(thing: dict[str, Any]) -> dict[str, Any]:
    """Give an object the size of a real one, some 10 kB: environment and bookkeeping of its fields."""
    env = [{"name": f"VARIABLE_{number}", "value": f"value of variable {number}"} for number in range(60)]
    fields: dict[str, Any] = {
        f'k:{{"name":"VARIABLE_{number}"}}': {".": {}, "f:name": {}, "f:value": {}} for number in range(60)
    }
    managed = [{"manager": "trainer", "fieldsV1": {"f:spec": {"f:containers": {"f:env": fields}}}}]
    return {
        **thing,
        "metadata": {**thing["metadata"], "managedFields": managed},
        "spec": {**thing["spec"], "containers": [{"name": "node", "env": env}]},
    }


async def _print(lines: list[str]) -> None:
    """Let the log of all trainings, of which they share one, grow by a line a second."""
    for step in range(1_000_000):
        moment = time.time() if step >= 200 else time.time() - 200 + step
        text = f"step {step}/1000000  loss 1.2345  learning rate 0.0002  1234 tokens/s  ETA 3 h 12 min"
        lines.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment))}.{step % 1000:03}000000Z {text}")
        if step >= 200:
            await asyncio.sleep(1)


async def _end(cluster: FakeCluster, names: Sequence[str], pause: float) -> dict[str, float]:
    """End trainings one after another and return when each did."""
    from airflow_provider_finetune.contract.outcome import Outcome
    from tests.kubernetes.fake_cluster import condition, pod, terminated, train_job

    curve = [[float(step), 1.2345] for step in range(100)]
    words = Outcome(status="succeeded", model_uri="pvc://claim/model", loss_curve=curve).to_small_json()
    ended, begin = {}, time.monotonic()
    for number, name in enumerate(names):
        await asyncio.sleep(begin + number * pause - time.monotonic())
        cluster.put("pods", _full(pod(name, terminated(0, words), age=AGE, phase="Succeeded")))
        cluster.put("trainjobs", _full(train_job(name, condition("Complete"), age=AGE)))
        ended[name] = time.monotonic()
    return ended


# The triggerer.


class Waiting:
    """All trainings, followed in this event loop.

    :param names: of the jobs.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._told: dict[str, float] = {}
        self._log = logging.getLogger("task")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._log.addHandler(logging.NullHandler())
        self._tasks = {name: asyncio.create_task(self._follow(name)) for name in names}

    async def _follow(self, name: str) -> None:
        from airflow_provider_finetune.triggers import TrainingTrigger

        workload = {"kind": "trainjob", "conn_id": "cluster", "namespace": "ml", "name": name, "uid": f"uid-{name}"}
        trigger = TrainingTrigger(workload=workload, clocks=CLOCKS, identity=f"i-{name}", whole="w")
        trigger._log = self._log  # type: ignore[assignment]  # Airflow's own writes to wherever it is configured to
        async for event in trigger.run():
            outcome = event.payload["outcome"]
            if outcome["status"] != "succeeded":
                sys.exit(f"{name} has not succeeded: {outcome}")
            self._told[name] = time.monotonic()

    async def delays(self, ended: Mapping[str, float]) -> list[float]:
        """Return the seconds from the end of each job to its event, in order of size.

        :param ended: when each job has ended.
        """
        await asyncio.gather(*(self._tasks[name] for name in ended))
        return sorted(self._told[name] - then for name, then in ended.items())

    async def stop(self) -> None:
        """Follow no longer."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


class Window:
    """CPU seconds and the longest standstill of the event loop, from its making until :meth:`close`.

    The longest pass of the garbage collector stands beside it: one over all that Airflow has loaded takes 0.2 s,
    whoever caused it.
    """

    def __init__(self) -> None:
        self._begin, self._cpu = time.monotonic(), time.process_time()
        self.standstill = self.cpu_per_minute = self.collection = self._collecting_since = 0.0
        gc.callbacks.append(self._collect)
        self._ticking = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            self.standstill = max(self.standstill, time.monotonic() - due)

    def _collect(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collecting_since = time.monotonic()
        else:
            self.collection = max(self.collection, time.monotonic() - self._collecting_since)

    def close(self) -> None:
        """Take the figures."""
        gc.callbacks.remove(self._collect)
        self.cpu_per_minute = (time.process_time() - self._cpu) / (time.monotonic() - self._begin) * 60
        self._ticking.cancel()

    def __str__(self) -> str:
        stood = (
            f"longest standstill {1000 * self.standstill:.0f} ms (garbage collector: {1000 * self.collection:.0f} ms)"
        )
        return f"{self.cpu_per_minute:.1f} CPU seconds per minute, {stood}"


async def measure(pipe: Connection, trainings: int, seconds: float) -> None:
    """Go through the three windows and print what they show.

    :param pipe: to the API server.
    :param trainings: how many.
    :param seconds: length of a window.
    """
    names = [f"train-{number:04}" for number in range(trainings)]
    await _warm_up(names[:_WARM_UP])
    await _ask(pipe, "fill")
    await _ask(pipe, "requests")
    before = _resident_bytes()

    window, waiting = Window(), Waiting(names)
    await asyncio.sleep(seconds)
    window.close()
    print(f"\nall begin, {seconds:g} s: {window}")
    print(f"  requests: {_counted(await _ask(pipe, 'requests'))}")

    window = Window()
    await asyncio.sleep(seconds)
    window.close()
    print(f"nothing changes, {seconds:g} s: {window}")
    print(f"  requests per minute: {_counted(await _ask(pipe, 'requests'), 60 / seconds)}")
    print(f"  memory per training: {(_resident_bytes() - before) / trainings:,.0f} bytes of RSS, ", end="")
    print(f"of which kept records: {_bytes_of(_records()) / trainings:,.0f} bytes")

    window, chosen = Window(), random.sample(names, min(trainings, int(trainings * seconds / 60)))
    delays = await waiting.delays(await _ask(pipe, chosen))
    window.close()
    print(f"{len(chosen)} trainings end, {60 / trainings:.2g} s apart: {window}")
    print(f"  requests: {_counted(await _ask(pipe, 'requests'))}")
    print(f"  from end to event: median {statistics.median(delays):.2f} s, ", end="")
    print(f"95 % {delays[int(0.95 * len(delays))]:.2f} s, longest {delays[-1]:.2f} s")
    await waiting.stop()


async def _warm_up(names: Sequence[str]) -> None:
    """Import and open whatever is there once per process, so that it is not counted."""
    waiting = Waiting(names)
    await asyncio.sleep(8)
    await waiting.stop()


async def _ask(pipe: Connection, order: Any) -> Any:
    pipe.send(order)
    return await asyncio.to_thread(pipe.recv)


def _counted(requests: Sequence[str], factor: float = 1) -> str:
    """Count requests such as ``GET pods/a/log`` by verb and resource."""
    kinds = []
    for request in requests:
        verb, _, path = request.partition(" ")
        resource, *rest = path.split("/")
        reads = {"GET": "get" if rest else "list"}.get(verb, verb.lower())
        kinds.append(f"{reads} {resource}/log" if rest[-1:] == ["log"] else f"{reads} {resource}")
    counts = Counter(kinds).most_common()
    return ", ".join([f"{len(requests) * factor:,.0f}", *(f"{kind} {count * factor:,.0f}" for kind, count in counts)])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _records() -> list[Any]:
    from airflow_provider_finetune.cluster import watch

    return [
        kind.by_job
        for watches in watch._shared.values()
        for shared in watches.values()
        for kind in (shared._jobs, shared._pods)
    ]


def _bytes_of(thing: Any, seen: set[int] | None = None) -> int:
    """Return the size of records with all that they hold, each thing once."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type):
        return 0
    seen.add(id(thing))
    inner: list[Any] = [getattr(thing, name) for name in getattr(thing, "__slots__", ()) if hasattr(thing, name)]
    if isinstance(thing, dict):
        inner += [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple)):
        inner += thing
    return sys.getsizeof(thing) + sum(_bytes_of(part, seen) for part in inner)


def main() -> int:
    """Start the API server, wait for the trainings, report."""
    parser = argparse.ArgumentParser(description="What deferred trainings cost one triggerer and the API server.")
    parser.add_argument("--trainings", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--window", type=float, default=22, help="seconds of each window, at most 60 (default: 22)")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as home:
        os.environ["AIRFLOW_HOME"] = home
        server = context.Process(target=serve, args=(theirs, arguments.trainings), daemon=True)
        server.start()
        connection = pipe.recv()
        os.environ["AIRFLOW_CONN_CLUSTER"] = connection
        print(
            f"{arguments.trainings} trainings, load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
        )
        asyncio.run(measure(pipe, arguments.trainings, arguments.window))
        pipe.send(None)
        server.join(10)
    polls = arguments.trainings * 60 / POLL_SECONDS
    print(f"computed, not measured: reading each pod every {POLL_SECONDS:g} s is {polls:,.0f} requests per minute")
    return 0


if __name__ == "__main__":
    sys.exit(main())
