"""What the training child tells its parent: one JSON object a line, over a pipe of its own.

The child's standard output belongs to the libraries; whatever they print cannot be taken for one of ours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

FD_VARIABLE = "FINETUNE_EVENTS_FD"
"""Environment variable that names the pipe's file descriptor in the child."""


class Events:
    """The child's end of the pipe."""

    def __init__(self, fd: int) -> None:
        self._pipe = os.fdopen(fd, "w", buffering=1)
        self._seconds: dict[str, float] = {}

    @classmethod
    def from_environment(cls) -> Events:
        """Open the pipe that the parent has handed down."""
        fd = int(os.environ[FD_VARIABLE])
        # A program that a library starts would hold the pipe open after this process has ended.
        os.set_inheritable(fd, False)
        return cls(fd)

    def say(self, message: str) -> None:
        """Put one line into the task log."""
        self._send("say", level="info", message=message)

    def warn(self, message: str) -> None:
        """Put one warning into the task log."""
        self._send("say", level="warning", message=message)

    def show(self, text: str) -> None:
        """Put text of the data into the task log, and nowhere else."""
        self._send("show", text=text)

    def report(self, **facts: Any) -> None:
        """Add facts to the outcome: fields of :class:`~airflow_provider_finetune.contract.outcome.Outcome`."""
        self._send("report", **facts)

    @contextmanager
    def timed(self, metric: str) -> Iterator[None]:
        """Report the seconds that the block takes as a metric; blocks of one metric add up."""
        began = time.monotonic()
        yield
        self._seconds[metric] = self._seconds.get(metric, 0.0) + time.monotonic() - began
        self.report(metrics={metric: round(self._seconds[metric], 3)})

    def training(self) -> None:
        """Say that the check is over and the metrics file is about to grow."""
        self._send("training")

    def failed(self, failure: Mapping[str, Any]) -> None:
        """Say why the run ends here."""
        self._send("failed", failure=dict(failure))

    def _send(self, kind: str, **content: Any) -> None:
        self._pipe.write(json.dumps({"event": kind, **content}) + "\n")
