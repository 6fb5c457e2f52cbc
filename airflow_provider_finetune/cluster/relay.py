"""Puts what a training says into its task log."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from datetime import datetime, timedelta
from logging import Logger
from typing import Any

from airflow_provider_finetune.cluster.hook import TrainingHook, Workload
from airflow_provider_finetune.cluster.logs import LogTail, NewLines, shared_budget
from airflow_provider_finetune.cluster.watch import SharedWatch
from airflow_provider_finetune.contract.durations import duration
from airflow_provider_finetune.exceptions import TrainingFailed
from airflow_provider_finetune.launchers.transcript import Transcript

_LINES = 100
_MORE_LINES = 1000
_FIRST_LOOK_SECONDS = 5.0
_LAST_LOOK_SECONDS = 60.0


_SELDOM_SECONDS = 300.0
"""Between two looks into a log whose progress the Trainer tells."""


class LogRelay:
    """The log of rank 0, line by line and each once, and the progress that the Trainer itself knows.

    :param watch: what is known of the training.
    :param workload: which training.
    :param log: the task's.
    :param began: since when it is followed.
    :param interval: seconds between two looks.
    :param started: when its program began.
    """

    def __init__(
        self,
        watch: SharedWatch[TrainingHook],
        workload: Workload,
        log: Logger,
        began: datetime,
        interval: float,
        started: datetime | None,
    ) -> None:
        self.transcript = Transcript()
        self._watch, self._workload, self._log = watch, workload, log
        overlap = began - timedelta(seconds=interval)
        earlier = started is not None and started < overlap
        if earlier:
            log.info("The training runs since %s; what it said before stands in the log from then", started)
        self._new = NewLines(overlap if earlier else None)
        self._progress: tuple[tuple[str, Any], ...] = ()

    async def run(self, interval: float) -> None:
        """Look again and again until cancelled.

        :param interval: seconds between two looks.
        """
        await asyncio.sleep(min(interval, _FIRST_LOOK_SECONDS))
        read_at = -math.inf
        while True:
            job = self._watch.job(self._workload.name, self._workload.uid)
            progress = job.progress if job else ()
            if progress:
                self._show_progress(progress)
            pause = _SELDOM_SECONDS if progress else 0
            if time.monotonic() >= read_at + pause and not self._watch.outage:
                read_at = time.monotonic()
                await self._read()
            await asyncio.sleep(interval)

    async def last_lines(self) -> None:
        """Look once more at the end, as long as there is something to read from."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read(first=True), _LAST_LOOK_SECONDS)

    async def _read(self, *, first: bool = False) -> None:
        pods = [pod for pod in self._watch.pods(self._workload.name) if pod.rank == 0 and not pod.gone]
        if not pods:
            return
        name = max(pods, key=lambda pod: pod.created).name
        # A refusal is told by the watch, where it lasts; the lines come with the next look.
        with suppress(TrainingFailed):
            tail = await self._tail(name, _LINES, first)
            if not self._new.reaches_back(tail):
                tail = await self._tail(name, _MORE_LINES, first)
            for line in self._new.of(tail):
                said = self.transcript.take(line)
                if said:
                    self._log.log(*said)

    async def _tail(self, pod: str, lines: int, first: bool) -> LogTail:
        await shared_budget().turn(first=first)
        return await self._watch.source.log_tail(pod, lines=lines)

    def _show_progress(self, progress: tuple[tuple[str, Any], ...]) -> None:
        if progress == self._progress:
            return
        self._progress, known = progress, dict(progress)
        parts = [f"{known['progressPercentage']} %"] if "progressPercentage" in known else []
        parts += [f"{metric.get('name')} {metric.get('value')}" for metric in known.get("metrics") or ()]
        if known.get("estimatedRemainingSeconds"):
            parts.append(f"ETA {duration(known['estimatedRemainingSeconds'])}")
        self._log.log(logging.INFO, "progress %s", "  ".join(parts))
