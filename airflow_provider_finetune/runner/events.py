"""What a training process tells the parent on its node: one JSON object a line, over a named pipe.

A process's standard output belongs to the libraries; whatever they print cannot be taken for one of ours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

VARIABLE = "FINETUNE_EVENTS"
"""Environment variable with the path of the pipe."""


class Events:
    """The child's end of the pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._seconds: dict[str, float] = {}

    @classmethod
    def from_environment(cls) -> Events:
        """Open the pipe that the parent has made; a program that a library starts does not inherit it."""
        return cls(os.open(os.environ[VARIABLE], os.O_WRONLY))

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

    def training(self, device: str) -> None:
        """Say that the check is over and that this process is about to write the metrics file.

        :param device: ``cuda`` or ``cpu``.
        """
        self._send("training", pid=os.getpid(), device=device)

    def failed(self, failure: Mapping[str, Any]) -> None:
        """Say why the run ends here."""
        self._send("failed", failure=dict(failure))

    def _send(self, kind: str, **content: Any) -> None:
        text = memoryview(json.dumps({"event": kind, **content}).encode() + b"\n")
        while text:
            text = text[os.write(self._pipe, text) :]
