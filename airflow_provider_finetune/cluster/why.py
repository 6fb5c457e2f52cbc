"""Finds out why a training waits, and says it in its task log when it is something new."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from logging import Logger
from typing import Any

from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.cluster.logs import shared_budget
from airflow_provider_finetune.cluster.waiting import Stuck, events_of, why_queued, why_stuck
from airflow_provider_finetune.cluster.watch import SharedWatch
from airflow_provider_finetune.contract.durations import duration
from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.exceptions import TrainingFailed
from airflow_provider_finetune.launchers.observed import JobState, PodState
from airflow_provider_finetune.launchers.phases import Phase

SLOW_SECONDS = 10.0
"""How long a start may take before it is asked why."""

_HOPELESS_SECONDS = 3.0
"""How long a cause that time does not mend must last, for what was made a moment before may not be seen yet."""

_ASK_AGAIN_SECONDS = (30.0, 300.0)
"""Between two looks at events: at first, and at most."""

_VAGUE = ("slow_start", "no_pods", "image_pull")
"""Causes of which events may tell more."""

_WORKLOAD = re.compile(r"Created Workload: [^/\s]+/(\S+)")
"""How Kueue tells in which object of its own it keeps its reasons."""


class WhyWaiting:
    """Why one phase of one training lasts.

    Pods are looked at each time; events, which cost requests, only when it takes long, and then rarely. Nobody waits
    for the answer, which may take long where many ask: it wakes the follower.

    :param watch: what is known of the training.
    :param nodes: how many pods train together.
    :param log: the task's.
    :param since: when the phase began.
    """

    def __init__(self, watch: SharedWatch[TrainingHook], nodes: int, log: Logger, since: datetime) -> None:
        self.stuck: Stuck | None = None
        self._watch, self._nodes, self._log, self._since = watch, nodes, log, since
        self._began = self._stuck_since = time.monotonic()
        self._ask_at = 0.0
        self._pause = _ASK_AGAIN_SECONDS[0]
        self._asking: asyncio.Task[Stuck | None] | None = None

    def hopeless(self) -> Failure | None:
        """Return the cause where time will not mend it and it has lasted for a moment."""
        lasted = time.monotonic() - self._stuck_since >= _HOPELESS_SECONDS
        return self.stuck.failure if self.stuck and self.stuck.hopeless and lasted else None

    def look(self, phase: Phase, job: JobState, pods: Sequence[PodState]) -> None:
        """Look once more, and say what is new.

        :param phase: queued or starting.
        :param job: the workload.
        :param pods: its pods, as far as they are known.
        """
        now, waited = time.monotonic(), (datetime.now(timezone.utc) - self._since).total_seconds()
        slow = max(now - self._began, waited) >= SLOW_SECONDS
        stuck = why_stuck(job, pods, (), self._nodes) if phase is Phase.STARTING else None
        answered, told = self._answer(now)
        if stuck is None or stuck.failure.cause in _VAGUE:
            stuck = told or stuck if answered else self.stuck
            if slow and now >= self._ask_at and not self._asking:
                self._asking = asyncio.create_task(self._by_events(phase, job, pods))
                self._asking.add_done_callback(lambda _: self._watch.wake(job.name))
        if stuck and not (slow or stuck.hopeless):
            stuck = None
        if stuck and (self.stuck is None or stuck.failure.cause != self.stuck.failure.cause):
            self._stuck_since = now
            said = stuck.failure
            self._log.warning("Still %s after %s. %s. %s", phase.value, duration(waited), said.message, said.cure)
        self.stuck = stuck

    def stop(self) -> None:
        """Ask no longer."""
        if self._asking:
            self._asking.cancel()

    def _answer(self, now: float) -> tuple[bool, Stuck | None]:
        """Return whether an answer has come since the last look, and which."""
        if self._asking is None or not self._asking.done():
            return False, None
        told, self._asking = self._asking.result(), None
        self._ask_at, self._pause = now + self._pause, min(2 * self._pause, _ASK_AGAIN_SECONDS[1])
        return True, told

    async def last_look(self, phase: Phase, job: JobState, pods: Sequence[PodState]) -> Stuck | None:
        """Return why the training still waits when its time is over, however short that was.

        :param phase: queued or starting.
        :param job: the workload.
        :param pods: its pods, as far as they are known.
        """
        return await self._by_events(phase, job, pods, first=True) or self.stuck

    async def _by_events(
        self, phase: Phase, job: JobState, pods: Sequence[PodState], *, first: bool = False
    ) -> Stuck | None:
        try:
            if phase is Phase.STARTING:
                return why_stuck(job, pods, await self._events(events_of(job, pods), first), self._nodes)
            events = await self._events([job.name], first)
            names = [found[1] for event in events if (found := _WORKLOAD.search(event.get("message") or ""))]
            said = await self._events(names[-1:], first) or events
            return why_queued(job, said, await self._watch.source.queue_conditions(job.uid))
        except TrainingFailed:
            return None

    async def _events(self, names: Iterable[str], first: bool) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for name in names:
            await shared_budget().turn(first=first)  # one for each request
            found += await self._watch.source.events([name])
        return found
