"""One shared watch on our jobs and one on their pods, per kind, connection, namespace and event loop, for all who
follow them.

It keeps small records and not the objects, wakes a follower only for its own job, and remembers the pods of a followed
job that have gone. It belongs to none of its followers: it outlives the first, and ends with the last.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_finetune.cluster.cache import Cache, Outage, Patience, Source, as_workload, delay, explained
from airflow_provider_finetune.launchers.kinds import POD, Kind
from airflow_provider_finetune.launchers.observed import DOMAIN, MANAGED_BY, JobState, PodState

SourceT = TypeVar("SourceT", bound=Source)


class Follower:
    """One who waits for changes of one job.

    :param job: its name.
    """

    def __init__(self, job: str) -> None:
        self.job = job
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Let :meth:`change` return."""
        self._changed.set()

    async def change(self, timeout: float | None) -> bool:
        """Wait until something may have changed since the last call, and return whether it has.

        :param timeout: seconds to wait at most.
        """
        with suppress(asyncio.TimeoutError):  # not TimeoutError: another class before Python 3.11
            await asyncio.wait_for(self._changed.wait(), timeout)
        changed = self._changed.is_set()
        self._changed.clear()
        return changed


class SharedWatch(Generic[SourceT]):
    """The watches of one kind of job in one connection and namespace, and what they have seen.

    :param kind: with pods of their own one watch shows both, the job and its pod.
    :param open_source: makes what to read from; entered and left by the watch itself.
    """

    def __init__(self, kind: Kind, open_source: Callable[[], AbstractAsyncContextManager[SourceT]]) -> None:
        self._open_source = open_source
        self._followers: dict[str, set[Follower]] = {}
        selector = {MANAGED_BY: DOMAIN, **dict(kind.selector)}
        self._pods: Cache[PodState] = Cache(
            "pods", selector, lambda pod, before: kind.read_pod(pod, before, datetime.now(timezone.utc)), self
        )
        self._jobs: Cache[JobState] | Cache[PodState] = self._pods
        if kind is not POD:
            self._jobs = Cache(kind.resource, selector, lambda job, _: kind.read(job), self)
        self._source: SourceT | None = None
        self._unopened: Outage | None = None
        self._error: Exception | None = None
        # In an empty context: the lines that it logs would land in the log of the first task that follows.
        self._task = contextvars.Context().run(asyncio.create_task, self._run())

    @property
    def source(self) -> SourceT:
        """The open source, for requests of a follower's own; there once :meth:`synced` has returned."""
        assert self._source is not None
        return self._source

    @property
    def outage(self) -> Outage | None:
        """Since when and why the API server cannot be watched; ``None`` while it can.

        :raises Exception: what has ended the watch, or has refused it for good.
        """
        if self._error:
            raise self._error
        outages = [found for found in (self._unopened, self._jobs.outage, self._pods.outage) if found]
        return min(outages, key=lambda outage: outage.since) if outages else None

    @property
    def synced(self) -> bool:
        """Whether all jobs and pods have been listed once.

        :raises Exception: as :attr:`outage`.
        """
        if self._error:
            raise self._error
        return self._jobs.synced and self._pods.synced

    def job(self, name: str, uid: str) -> JobState | None:
        """Return a job as it was last seen; ``None`` does not mean that it is gone.

        :param name: its name.
        :param uid: its uid: another job may have had the name.
        """
        return self._workloads(name).get(uid)

    def jobs(self, identity: str) -> list[JobState]:
        """Return all jobs of an identity.

        :param identity: value of the label.
        """
        names = self._jobs.names.get(identity, ())
        return [job for name in names for job in self._workloads(name).values() if job.identity == identity]

    def _workloads(self, name: str) -> dict[str, JobState]:
        found: Iterable[JobState | PodState] = self._jobs.by_job.get(name, {}).values()
        there = [state for state in found if not (isinstance(state, PodState) and state.gone)]
        return {job.uid: job for state in there if (job := as_workload(state))}

    def pods(self, job: str) -> list[PodState]:
        """Return the pods of a job, those that have gone included.

        :param job: its name.
        """
        return [*self._pods.by_job.get(job, {}).values()]

    def followed(self, job: str) -> bool:
        """Return whether anybody follows a job.

        :param job: its name.
        """
        return job in self._followers

    def enter(self, follower: Follower) -> None:
        """Begin to wake a follower.

        :param follower: who.
        """
        self._followers.setdefault(follower.job, set()).add(follower)

    def leave(self, follower: Follower) -> bool:
        """Cease to wake a follower, and return whether it was the last.

        :param follower: who.
        """
        others = self._followers[follower.job]
        others.discard(follower)
        if not others:
            del self._followers[follower.job]
            self._pods.forget_the_gone(follower.job)
        return not self._followers

    def wake(self, job: str) -> None:
        """Wake all who follow a job.

        :param job: its name.
        """
        for follower in self._followers.get(job, ()):
            follower.wake()

    def wake_all(self) -> None:
        """Wake every follower."""
        for job in self._followers:
            self.wake(job)

    def fail(self, error: Exception) -> None:
        """Let every follower end with an error.

        :param error: what :attr:`synced` raises from now on.
        """
        self._error = error
        self.wake_all()

    async def stop(self) -> None:
        """End the watches."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        patience, failures = Patience(), 0
        while self._source is None:
            try:
                async with self._open_source() as source:
                    self._source, self._unopened = source, None
                    await asyncio.gather(*(cache.run(source) for cache in {self._jobs, self._pods}))
            except Exception as error:
                failures += 1
                if self._source or patience.ends(error):
                    self.fail(error)
                    return
                if failures == 2:  # the connection is Airflow's to give, whose API server may start as well
                    self._unopened = Outage(time.monotonic(), explained(error), listing=True)
                    self.wake_all()
                await asyncio.sleep(delay(failures))


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], SharedWatch[Any]]] = WeakKeyDictionary()


@asynccontextmanager
async def following(
    kind: Kind,
    conn_id: str,
    namespace: str,
    job: str,
    open_source: Callable[[], AbstractAsyncContextManager[SourceT]],
) -> AsyncIterator[tuple[SharedWatch[SourceT], Follower]]:
    """Follow a job by the watch that all of this event loop share; the first to come begins it, the last ends it.

    :param kind: what the job is.
    :param conn_id: id of the connection.
    :param namespace: the job's namespace.
    :param job: the job's name.
    :param open_source: makes what to read from, where the watch is not there yet.
    :yields: the watch, and what waits for changes of the job.
    """
    watches = _shared.setdefault(asyncio.get_running_loop(), {})
    key = (kind.name, conn_id, namespace)
    if key not in watches:
        watches[key] = SharedWatch(kind, open_source)
    watch: SharedWatch[SourceT] = watches[key]
    follower = Follower(job)
    watch.enter(follower)
    try:
        yield watch, follower
    finally:
        if watch.leave(follower):
            # Whoever comes while it ends must find none.
            if watches.get(key) is watch:
                del watches[key]
            await watch.stop()
