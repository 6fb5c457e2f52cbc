"""What is known of one kind of object, and the list and watch that keep it true."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast

from airflow_provider_finetune.exceptions import TrainingFailed, TrainingRejected
from airflow_provider_finetune.launchers.observed import JOB, JobState, PodState

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_SHORT_WATCH = 1.0
"""Seconds; one that ends sooner and without an event is not begun again at once."""

_SETTLED_WATCH = 5.0
"""Seconds; one that lasted longer had been accepted, whatever it ended with."""

_REFUSED_SECONDS = 300.0
"""How long a beginning must be refused until nobody waits any more, e.g. for a right that is missing."""

_MAY_PASS = ("unauthorized", "trainer_missing", "no_kubernetes_api")
"""Refusals that come also while a server starts or a token is renewed."""


class Source(Protocol):
    """What a watch reads from: :class:`TrainingHook`, as far as it is needed here."""

    async def list_raw(self, resource: str, selector: Mapping[str, str | None], after: str = "") -> dict[str, Any]:
        """Return a page of a list as the API gives it; its ``metadata.continue`` is ``after`` of the next."""
        ...

    def watch(
        self, resource: str, selector: Mapping[str, str | None], resource_version: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield ``{"type": ..., "object": ...}`` until the server ends the watch."""
        ...


State = TypeVar("State", JobState, PodState)

Read = Callable[[Mapping[str, Any], State | None], State]
"""Makes the record of an object, given that which was made of it before."""


@dataclass(frozen=True)
class Outage:
    """A time in which the API server does not answer, or refuses.

    * ``since``: :func:`time.monotonic` at its beginning
    * ``reason``: what an attempt ended with
    * ``listing``: it was a list that failed, and not a watch
    """

    since: float
    reason: str
    listing: bool


class Patience:
    """Tells when it is in vain to wait: each attempt is refused, for a cause that only people mend, and for minutes."""

    def __init__(self) -> None:
        self._since: float | None = None

    def ends(self, error: Exception) -> bool:
        """Return whether nobody needs to wait any more.

        :param error: what the last attempt ended with, as those before it were told.
        """
        if not isinstance(error, TrainingRejected) or error.failure.cause in _MAY_PASS:
            self._since = None
            return False
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since >= _REFUSED_SECONDS


class _Expired(Exception):
    """The version that a watch was to go on from is no longer known."""


class _BrokenWatch(Exception):
    """The server has ended a watch with an error."""


class Listeners(Protocol):
    """Whom changes concern."""

    def wake(self, job: str) -> None:
        """Tell those who follow a job that something has changed."""
        ...

    def wake_all(self) -> None:
        """Tell everybody."""
        ...

    def followed(self, job: str) -> bool:
        """Return whether anybody follows a job."""
        ...

    def fail(self, error: Exception) -> None:
        """Tell everybody that waiting is in vain."""
        ...


class Cache(Generic[State]):
    """What is known of one kind of object.

    * ``synced``: all were listed once; ``outage``: since when and why they cannot be watched
    * ``by_job``: records by name of the job and uid of the object
    * ``names``: of jobs, by identity

    :param resource: of the API.
    :param selector: labels of those that are watched.
    :param read: makes the record of an object.
    :param listeners: whom changes concern.
    """

    def __init__(
        self, resource: str, selector: Mapping[str, str | None], read: Read[State], listeners: Listeners
    ) -> None:
        self._resource, self._selector = resource, selector
        self.synced = False
        self.outage: Outage | None = None
        self.by_job: dict[str, dict[str, State]] = {}
        self.names: dict[str, set[str]] = {}
        self._read: Read[State] = read
        self._listeners = listeners
        self._version = ""
        self._failures = 0
        self._patience = Patience()
        self._served = False

    async def run(self, source: Source) -> None:
        """List and watch until cancelled.

        :param source: what to read from.
        """
        while True:
            listing, began = not self._version, time.monotonic()
            try:
                if listing:
                    await self._list(source)
                listing, began = False, time.monotonic()
                heard = await self._watch(source)
                self._answered()
                if not heard and time.monotonic() - began < _SHORT_WATCH:
                    await asyncio.sleep(delay(0))
            except _Expired:
                self._version = ""
                await asyncio.sleep(delay(0))
            except Exception as error:
                if not listing and time.monotonic() - began > _SETTLED_WATCH:
                    self._answered()
                self._failed(error, listing=listing)
                await asyncio.sleep(delay(self._failures))

    async def _list(self, source: Source) -> None:
        seen: set[str] = set()
        after, version = "", ""
        while after or not version:
            page = await source.list_raw(self._resource, self._selector, after)
            seen.update(self._take(item).uid for item in page.get("items") or ())
            after, version = page["metadata"].get("continue") or "", page["metadata"]["resourceVersion"]
        missing = [state for states in self.by_job.values() for state in states.values() if state.uid not in seen]
        for state in missing:
            self._remove(state)
        self._version = version
        if not self.synced:
            self.synced = True
            self._listeners.wake_all()
        if self.outage and self.outage.listing:
            self._answered()

    async def _watch(self, source: Source) -> bool:
        heard = False
        watched = source.watch(self._resource, self._selector, self._version)
        events = cast("AsyncGenerator[dict[str, Any], None]", watched)
        # Else its connection stays open until the garbage is collected, where an event has raised.
        async with aclosing(events):
            async for event in events:
                self._event(event)
                heard = True
                self._answered()
        return heard

    def _event(self, event: Mapping[str, Any]) -> None:
        kind, thing = event["type"], event["object"]
        if kind == "ERROR":
            # The answer had begun with status 200 before the error was known.
            if thing.get("code") == 410:
                raise _Expired
            raise _BrokenWatch(f"the watch on {self._resource} ended with {thing.get('code')}: {thing.get('message')}")
        self._version = thing["metadata"]["resourceVersion"]
        if kind != "BOOKMARK":
            state = self._take(thing)
            if kind == "DELETED":
                self._remove(state)

    def _take(self, thing: Mapping[str, Any]) -> State:
        state = self._read(thing, self._known(thing))
        states = self.by_job.setdefault(_job(state), {})
        if states.get(state.uid) != state:
            states[state.uid] = state
            if workload := as_workload(state):
                self.names.setdefault(workload.identity, set()).add(workload.name)
            self._listeners.wake(_job(state))
        return state

    def _known(self, thing: Mapping[str, Any]) -> State | None:
        metadata = thing["metadata"]
        name = (metadata.get("labels") or {}).get(JOB, metadata["name"])
        return self.by_job.get(name, {}).get(metadata["uid"])

    def _remove(self, state: State) -> None:
        name = _job(state)
        if isinstance(state, PodState) and self._listeners.followed(name):
            if not state.gone:
                # The cause of an end is in the pod and nowhere else.
                self.by_job[name][state.uid] = replace(state, gone=True)
                self._listeners.wake(name)
            return
        self._drop(name, state.uid)
        self._listeners.wake(name)

    def _drop(self, name: str, uid: str) -> None:
        state = self.by_job[name].pop(uid)
        if self.by_job[name]:
            return
        del self.by_job[name]
        if workload := as_workload(state):
            self.names[workload.identity].discard(name)
            if not self.names[workload.identity]:
                del self.names[workload.identity]

    def forget_the_gone(self, name: str) -> None:
        """Drop what was remembered for followers of a job that has none any more.

        :param name: the job's.
        """
        for state in [*self.by_job.get(name, {}).values()]:
            if isinstance(state, PodState) and state.gone:
                self._drop(name, state.uid)

    def _answered(self) -> None:
        self._failures = 0
        self._served = True
        if self.outage:
            self.outage = None
            self._listeners.wake_all()

    def _failed(self, error: Exception, *, listing: bool) -> None:
        self._failures += 1
        in_vain = self._patience.ends(error) and not self._served
        self._version = ""  # a list tells at once that the server is back; a watch is silent until something changes
        if self._failures == 1:
            return  # a connection was cut, and the next one may hold: not worth a line in every task's log
        known, self.outage = self.outage, self.outage or Outage(time.monotonic(), explained(error), listing)
        if in_vain:
            self._listeners.fail(error)
        elif known is None:
            self._listeners.wake_all()


def explained(error: Exception) -> str:
    """Return what an error says, without what to do about it.

    :param error: of a request.
    """
    return error.failure.message if isinstance(error, TrainingFailed) else str(error) or type(error).__name__


def as_workload(state: JobState | PodState) -> JobState | None:
    """Return what a record says of a workload, ``None`` for a pod of a TrainJob.

    :param state: the record.
    """
    return state if isinstance(state, JobState) else state.workload


def _job(state: JobState | PodState) -> str:
    return state.name if isinstance(state, JobState) else state.job


def delay(failures: int) -> float:
    """Return seconds: twice as long each time, and never the same for two who lost the same server.

    :param failures: how many there were in a row.
    """
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures, 10)) * (0.5 + random.random() / 2)
