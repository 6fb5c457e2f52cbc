"""SIGTERM and SIGINT, from the first line of a run to its last.

A Python that is process 1 of a container ignores SIGTERM as long as it has no handler.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.runner.tries.checkpoints import Checkpoint

GRACE_SECONDS = 30.0
"""From SIGTERM to SIGKILL, where whoever sends them has not said: what Kubernetes and the local launcher give."""


class Stop:
    """Whether somebody has asked this run to end."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that came."""
        self.pass_on: Callable[[], None] = lambda: None
        """Called when it comes, from the signal handler."""
        self._since = 0.0

    def listen(self) -> Stop:
        """Take the signals from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def longer_than(self, seconds: float) -> bool:
        """Say whether the signal came longer than ``seconds`` ago."""
        return self.number is not None and time.monotonic() - self._since > seconds

    def failure(self, when: str, checkpoint: Checkpoint | None = None) -> Failure:
        """Return the failure of a run that was ended by the signal.

        :param when: e.g. ``at step 3``.
        :param checkpoint: what a retry goes on from.
        """
        assert self.number is not None
        retry = f"goes on from {checkpoint.unit} {checkpoint.number}" if checkpoint else "trains from the beginning"
        return Failure(
            failure_class="preempted",
            cause="terminated",
            message=f"The training was ended by {signal.Signals(self.number).name} {when}",
            cure=f"Whoever stopped the task, or the node it ran on, sent it. A retry {retry}",
        )

    def _on_signal(self, number: int, frame: object) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            self.pass_on()
