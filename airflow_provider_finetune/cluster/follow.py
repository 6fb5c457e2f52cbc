"""One training from submission to its end: what its task log says, which clock runs out, what came of it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from logging import Logger
from typing import Any

from airflow_provider_finetune.cluster.cache import Outage
from airflow_provider_finetune.cluster.diagnosis import NO_OUTCOME, culprit, deleted, outcome_of, run_out
from airflow_provider_finetune.cluster.hook import TrainingHook, Workload
from airflow_provider_finetune.cluster.logs import shared_budget
from airflow_provider_finetune.cluster.nodes import LostNodes
from airflow_provider_finetune.cluster.relay import LogRelay
from airflow_provider_finetune.cluster.watch import Follower, SharedWatch, following
from airflow_provider_finetune.cluster.why import SLOW_SECONDS, WhyWaiting
from airflow_provider_finetune.contract.durations import duration
from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.exceptions import TrainingFailed
from airflow_provider_finetune.launchers.clocks import running_clock, spent_before
from airflow_provider_finetune.launchers.kinds import KINDS
from airflow_provider_finetune.launchers.observed import JOB, JobState, PodState
from airflow_provider_finetune.launchers.phases import Phase, entered, phase_of, program_started

_LOOK_SECONDS = 15.0
"""How long nothing needs to happen until a training is looked at all the same."""

_UNKNOWN_SECONDS = 5.0
_LAST_WORDS_SECONDS = 60.0
"""How long the word of a training is waited for that we have ended, and that saves a checkpoint first."""

_EVIDENCE_SECONDS = 5.0
"""How long the end of a pod may come after that of its job: they are watched apart."""

_TIMED_OUT = Failure(
    failure_class="resources",
    cause="execution_timeout",
    message="The training was ended, as the task has lasted longer than its execution_timeout",
    cure="Raise execution_timeout, which also counts the wait in a queue; a retry goes on from the last checkpoint",
)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a training is followed.

    * ``limits``: seconds of the three clocks by the operators' argument, ``None`` without a limit
    * ``progress_interval``: seconds between two looks into its log
    * ``fail_fast``: a start that only the DAG author can mend is ended at once
    * ``nodes``: how many pods train together
    * ``deadline``: when the task's ``execution_timeout`` is over, in POSIX seconds; ``None`` without one
    """

    limits: Mapping[str, float | None]
    progress_interval: float = 30.0
    fail_fast: bool = True
    nodes: int = 1
    deadline: float | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline - time.time()


class Following:
    """Follows one training.

    :param workload: which; another one once an older job for the same request is followed in its place.
    :param terms: how.
    :param log: the task's.
    :param identity: identity and whole hash of the request, by which an older job is found.
    """

    def __init__(self, workload: Workload, terms: Terms, log: Logger, *, identity: tuple[str, str] = ("", "")) -> None:
        self.workload = workload
        self._kind = KINDS[workload.kind]
        self._terms, self._log, self._identity = terms, log, identity
        self._watch: SharedWatch[TrainingHook]
        self._follower: Follower
        self._began = datetime.now(timezone.utc)
        self._told: Outage | None = None
        self._phase: Phase | None = None
        self._phase_since = self._began
        self._phase_seen = time.monotonic()
        self._spent: dict[str, float] = {}
        self._relay: LogRelay | None = None
        self._reading: asyncio.Task[None] | None = None
        self._why: WhyWaiting
        self._lost = LostNodes(log)

    async def result(self) -> dict[str, Any]:
        """Return what a trigger's event carries, of JSON values only.

        :raises TrainingFailed: the cluster refuses to be watched, or a setting is wrong.
        """
        shared_budget()
        while True:
            work = self.workload
            # It is for the watch to try again.
            hook = partial(TrainingHook, work.conn_id, work.namespace, kind=self._kind, pauses=())
            watched = following(self._kind, work.conn_id, work.namespace, work.name, hook)
            async with watched as (self._watch, self._follower):
                await self._first_list()
                older = self._older()
                if older is None:
                    try:
                        return await self._to_the_end()
                    finally:
                        if self._phase:
                            self._why.stop()
                        await self._stop_reading()
                await self._give_way(older.name)
                self.workload = replace(work, name=older.name, uid=older.uid)

    async def _first_list(self) -> None:
        while not self._watch.synced:
            self._tell_outage()
            await self._follower.change(_UNKNOWN_SECONDS)

    def _older(self) -> JobState | None:
        """Return the oldest active job of the same request, where it is not the one that is followed."""
        ours = self._watch.job(self.workload.name, self.workload.uid)
        if ours is not None and not ours.active:
            return None
        identity, whole = (ours.identity, ours.whole) if ours else self._identity
        same = [job for job in self._watch.jobs(identity) if job.whole == whole and job.active] if identity else []
        oldest = min(same, key=lambda job: (job.created, job.name), default=ours)
        return None if oldest is None or oldest.uid == self.workload.uid else oldest

    async def _give_way(self, older: str) -> None:
        name = self.workload.name
        message = "%s %s was made for the same request before %s, which is deleted; the older one is followed"
        self._log.warning(message, self._kind.title, older, name)
        # Also where no list has shown it yet: its create may be younger than the list.
        await self._watch.source.delete_job(name, self.workload.uid)

    async def _to_the_end(self) -> dict[str, Any]:
        while True:
            self._tell_outage()
            job = self._watch.job(self.workload.name, self.workload.uid)
            if job is None:
                found = await self._ask_for_job()
                if found == "gone":
                    return await self._deleted()
                job = found if isinstance(found, JobState) else None
            pause = _UNKNOWN_SECONDS
            if job is not None:
                pods = self._watch.pods(job.name)
                phase = phase_of(job, pods, self._terms.nodes)
                if phase.final:
                    return await self._ended(phase, job)
                self._enter(phase, job, pods)
                self._lost.look(pods)
                failure = await self._must_end(phase, job, pods)
                if failure is None:
                    pause = self._pause(phase, job, pods)
                elif await self._end(phase):
                    outcome = await self._last_words(phase, job) or Outcome(status="failed")
                    return {**self._event(replace(outcome, status="failed", failure=failure), job), "gone": True}
            await self._follower.change(pause)

    def _tell_outage(self) -> None:
        """Say once that the API server is away, and once that it is back."""
        outage, told = self._watch.outage, self._told
        if outage and not told:
            self._log.warning("The cluster cannot be watched, which is waited for: %s", outage.reason)
            self._told = outage
        elif told and not outage:
            self._tell_return()

    def _tell_return(self) -> None:
        if self._told:
            self._log.info("The cluster can be watched again, after %s", duration(time.monotonic() - self._told.since))
            self._told = None

    async def _ask_for_job(self) -> JobState | str:
        """Return a job that no list has shown, or that it is ``"gone"``, or that this is ``"unknown"``."""
        try:
            found = await self._watch.source.job(self.workload.name)
        except TrainingFailed:
            return "unknown"
        if found is None or found["metadata"]["uid"] != self.workload.uid:
            return "gone"
        return self._kind.read(found)

    def _enter(self, phase: Phase, job: JobState, pods: Sequence[PodState]) -> None:
        """Say that a phase has begun, and how long the one before took."""
        since = entered(phase, job, pods)
        if phase is self._phase:
            self._phase_since = since
            return
        before = ""
        if self._phase is not None:
            self._why.stop()
            before = f"{self._phase.value} {duration(self._spend(since))}; "
        else:
            self._spent = spent_before(phase, job, pods)
        self._phase, self._phase_since, self._phase_seen = phase, since, time.monotonic()
        self._why = WhyWaiting(self._watch, self._terms.nodes, self._log, since)
        self._log.info("%s%s%s", before, phase.value, self._detail(phase, job, pods))

    def _spend(self, until: datetime) -> float:
        """Count the present phase as over, and return its seconds."""
        assert self._phase is not None
        spent = max(0.0, (until - self._phase_since).total_seconds())
        self._spent[self._phase.value] = self._spent.get(self._phase.value, 0.0) + spent
        return spent

    def _detail(self, phase: Phase, job: JobState, pods: Sequence[PodState]) -> str:
        if phase is Phase.QUEUED:
            return f": the queue holds {job.title} {job.name} back"
        if phase is Phase.STARTING:
            return f": {job.title} {job.name} waits for a node, its image and its volumes"
        if phase is Phase.RUNNING:
            nodes = sorted({pod.node for pod in pods if pod.live and pod.node})
            return f" on {', '.join(nodes)}" if nodes else ""
        return ""

    async def _must_end(self, phase: Phase, job: JobState, pods: Sequence[PodState]) -> Failure | None:
        """Return why the job must be ended by us, ``None`` where it need not. What is not known ends nothing."""
        if self._watch.outage:
            return None
        if phase is Phase.RUNNING:
            self._begin_reading(job, pods)
        else:
            await self._stop_reading()
            self._why.look(phase, job, pods)
        if self._terms.left <= 0:
            return _TIMED_OUT
        if self._terms.fail_fast and (hopeless := self._why.hopeless()):
            return hopeless
        clock = running_clock(self._terms.limits, phase, job, pods)
        seen_for = time.monotonic() - self._phase_seen
        # Not on the first look: a pod may just be about to take the place of one that had trained for hours.
        if clock is None or clock.left(_now()) > 0 or seen_for < min(clock.limit, SLOW_SECONDS):
            return None
        stuck = None if phase is Phase.RUNNING else await self._why.last_look(phase, job, pods)
        return run_out(clock, _now(), stuck)

    def _begin_reading(self, job: JobState, pods: Sequence[PodState]) -> None:
        if self._reading is None:
            relay = self._relay_of(job, pods)
            self._reading = asyncio.create_task(relay.run(self._terms.progress_interval))

    def _relay_of(self, job: JobState, pods: Sequence[PodState]) -> LogRelay:
        if self._relay is None:
            started = program_started(job, pods)
            self._relay = LogRelay(
                self._watch, self.workload, self._log, self._began, self._terms.progress_interval, started
            )
        return self._relay

    async def _stop_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    def _pause(self, phase: Phase, job: JobState, pods: Sequence[PodState]) -> float:
        clock = running_clock(self._terms.limits, phase, job, pods)
        left = clock.left(_now()) if clock else _LOOK_SECONDS
        soon = 1.0 if self._why.stuck and self._why.stuck.hopeless else _LOOK_SECONDS
        until_slow = SLOW_SECONDS - (time.monotonic() - self._phase_seen) if phase is not Phase.RUNNING else soon
        return max(0.5, min(left, soon, self._terms.left, until_slow if until_slow > 0 else soon))

    async def _ended(self, phase: Phase, job: JobState) -> dict[str, Any]:
        """Read the last lines, see what the pods have left, and return what came of it."""
        self._tell_return()
        await self._stop_reading()
        relay = self._relay_of(job, self._watch.pods(job.name))
        await relay.last_lines()
        pods = await self._evidence(phase, job)
        self._enter(phase, job, pods)
        outcome = outcome_of(job, pods, relay.transcript.outcome)
        recover = job.condition == "Complete" and outcome.failure is not None and outcome.failure.cause == NO_OUTCOME
        pod = culprit(pods) or next((pod for pod in pods if pod.rank == 0), None)
        return {
            **self._event(outcome, job),
            **({"pod": {"name": pod.name, "node": pod.node, "gone": not pod.live}} if pod else {}),
            **({"recover": True} if recover else {}),
        }

    async def _evidence(self, phase: Phase, job: JobState) -> list[PodState]:
        """Return the pods once they show how they ended: two watches may tell of one end in any order."""
        until = time.monotonic() + (0 if job.reason == "DeadlineExceeded" else _EVIDENCE_SECONDS)
        while not _show_the_end(phase, self._watch.pods(job.name)) and (left := until - time.monotonic()) > 0:
            await self._follower.change(left)
        if not _show_the_end(phase, self._watch.pods(job.name)):
            with suppress(TrainingFailed):
                return await self._known_pods()
        return self._watch.pods(job.name)

    async def _deleted(self) -> dict[str, Any]:
        await self._stop_reading()
        if self._relay:
            await self._relay.last_lines()
        outcome = deleted(f"{self._kind.title} {self.workload.name}", self._watch.pods(self.workload.name))
        return {**self._event(outcome, None), "gone": True}

    async def _end(self, phase: Phase) -> bool:
        """Delete the job, with its last lines shown before; return whether that was possible.

        What the watch shows may be old by now: a job that has ended meanwhile, or come further, is not ended by us.
        """
        if await self._phase_now() is not phase:
            return False
        await self._stop_reading()
        if self._relay:
            await self._relay.last_lines()
        try:
            await self._watch.source.delete_job(self.workload.name, self.workload.uid)
        except TrainingFailed as error:
            message = "%s %s cannot be deleted, which is tried again. %s"
            self._log.warning(message, self._kind.title, self.workload.name, error)
            return False
        spent = duration(self._spend(_now()))
        self._log.info("%s %s; %s %s is deleted", phase.value, spent, self._kind.title, self.workload.name)
        return True

    async def _last_words(self, phase: Phase, job: JobState) -> Outcome | None:
        """Return what a training that we have ended says of itself: where it was, and which checkpoint it has left."""
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while phase is Phase.RUNNING and (left := until - time.monotonic()) > 0:
            pods = self._watch.pods(job.name)
            if any(pod.silent and not pod.gone for pod in pods):
                return None
            if all(pod.finished_at or pod.gone for pod in pods):
                return outcome_of(job, pods)
            await self._follower.change(min(left, 1.0))
        return None

    async def _phase_now(self) -> Phase | None:
        """Return where the training is by what the server says now, ``None`` where that is not known."""
        found = await self._ask_for_job()
        if not isinstance(found, JobState) or found.deleting:
            return None
        try:
            pods = await self._known_pods()
        except TrainingFailed:
            return None
        return phase_of(found, pods, self._terms.nodes)

    async def _known_pods(self) -> list[PodState]:
        """Return the pods as the server has them now, and those that have gone as they were last seen."""
        pods = {pod.uid: pod for pod in self._watch.pods(self.workload.name)}
        listed = await self._watch.source.pods({JOB: self.workload.name})
        now = {pod["metadata"]["uid"]: self._kind.read_pod(pod, None, _now()) for pod in listed}
        return [*(pods | now).values()]

    def _event(self, outcome: Outcome, job: JobState | None) -> dict[str, Any]:
        return {
            "outcome": json.loads(outcome.to_small_json()),
            "workload": asdict(self.workload),
            "phases": {name: round(seconds, 1) for name, seconds in self._spent.items()},
            "runs_once": bool(job and job.runs_once),
        }


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _show_the_end(phase: Phase, pods: Any) -> bool:
    if phase is Phase.SUCCEEDED:
        return any(pod.rank == 0 and pod.finished_at for pod in pods)
    return any(pod.finished_at or pod.fault or pod.disruption or not pod.live for pod in pods)
