"""The parent process: starts the child, follows it, ends it on a signal, and always leaves an outcome.

It stays on the standard library, so no fault of a training library reaches it. It is often process 1 of a container,
where a Python without a handler ignores SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.outcome import PROGRESS_MARK, Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.events import FD_VARIABLE
from airflow_provider_finetune.runner.log import RunLog
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower
from airflow_provider_finetune.runner.reporting.progress import Progress, progress_line
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.workdir import WorkDir

_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    # OpenMP's threads spin while they wait for each other: where another process wants a core, each layer waits for a
    # thread that has none, and a training was seen to take several times longer. Asleep they leave the core; where
    # nothing else runs that costs some 5 % (135 M parameters, 2 cores), and training_envs may say ACTIVE.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Of the child, where its environment does not say otherwise."""

_POLL_SECONDS = 0.5
_LAST_WORDS_SECONDS = 3.0
_GRACE_SECONDS = 25.0
"""From SIGTERM to SIGKILL for the child: less than the 30 s that Kubernetes and the local launcher give the runner."""


class Supervisor:
    """One child from its start to its end.

    :param spec: what is to be trained; ``work_dir`` holds it as a file.
    :param work_dir: the attempt's directory.
    :param log: where lines go.
    :param epochs: planned passes over the data.
    :param check_only: the child ends after the check.
    """

    def __init__(self, spec: TrainingSpec, work_dir: WorkDir, log: RunLog, *, epochs: int, check_only: bool) -> None:
        self.facts: dict[str, Any] = {"metrics": {}}
        """What the child has reported, as fields of the outcome."""
        self.failure: Failure | None = None
        self.series = Series()
        self._spec, self._work_dir, self._log = spec, work_dir, log
        self._check_only = check_only
        self._progress = Progress(epochs)
        self._follower = MetricsFollower(work_dir.checkpoints, spec.algorithm, epochs)  # type: ignore[arg-type]
        self._training = False
        self._printed_step = 0
        self._next_line = 0.0
        self._peak_memory = 0
        self._signal: int | None = None
        self._signalled_at = 0.0

    def run(self) -> None:
        """Start the child and stay until it has ended and all that it said is read."""
        oom_kills = _oom_kills()
        # Handlers first: a signal that comes while the child starts must reach it too.
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        child, events, readers = self._start()
        try:
            while child.poll() is None:
                self._turn(child, events)
        finally:
            # Nothing trains on unseen where following has failed; a child that has ended is left alone.
            child.kill()
        # A grandchild may hold the pipes open for longer than anybody wants to wait.
        until = time.monotonic() + _LAST_WORDS_SECONDS
        for reader in readers:
            reader.join(timeout=max(0.0, until - time.monotonic()))
        while not events.empty():
            self._handle(events.get())
        self._follow(final=True)
        self._judge(child.returncode, killed_for_memory=_oom_kills() > oom_kills)
        if self._peak_memory:
            self.facts["metrics"]["peak_memory_bytes"] = self._peak_memory

    def _start(self) -> tuple[subprocess.Popen[bytes], queue.Queue[dict[str, Any]], list[threading.Thread]]:
        read_fd, write_fd = os.pipe()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "airflow_provider_finetune.runner", "work", "--work-dir"]
        child = subprocess.Popen(
            [*command, str(self._work_dir.path), *(["--check-only"] if self._check_only else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[write_fd],
            env={
                **_ENVIRONMENT,
                # Processed data is this attempt's own; in the user's cache each training would leave a copy.
                "HF_DATASETS_CACHE": str(self._work_dir.data / "cache"),
                **os.environ,
                "PYTHONPATH": path,
                # "-m" would put the current directory first, where a file datasets.py poses as the library.
                "PYTHONSAFEPATH": "1",
                FD_VARIABLE: str(write_fd),
            },
        )
        os.close(write_fd)
        self._child = child
        if self._signal is not None:
            child.send_signal(signal.SIGTERM)
        events: queue.Queue[dict[str, Any]] = queue.Queue()
        return child, events, [_reader(self._keep_output), _reader(lambda: _read_events(read_fd, events))]

    def _keep_output(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        with self._child.stdout as pipe:
            while output := os.read(pipe.fileno(), 65536):
                self._log.raw(output)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._signal is None:
            self._signal, self._signalled_at = number, time.monotonic()
            if self._child is not None and self._child.poll() is None:
                self._child.send_signal(signal.SIGTERM)

    def _turn(self, child: subprocess.Popen[bytes], events: queue.Queue[dict[str, Any]]) -> None:
        with contextlib.suppress(queue.Empty):
            self._handle(events.get(timeout=_POLL_SECONDS))
        self._follow()
        if self._signal is not None and time.monotonic() - self._signalled_at > _GRACE_SECONDS:
            child.kill()

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "say":
            self._log.say(event["message"], event["level"])
        elif kind == "show":
            self._log.show(event["text"])
        elif kind == "training":
            self._training = True
        elif kind == "failed":
            self.failure = Failure(**event["failure"])
        elif kind == "report":
            self.facts["metrics"].update(event.pop("metrics", {}))
            self.facts.update(event)

    def _follow(self, *, final: bool = False) -> None:
        """Read new metrics and print a line when it is time."""
        memory = _memory(self._child)
        self._peak_memory = max(self._peak_memory, memory.get("VmHWM", 0))
        if not self._training:
            return
        points = self._follower.poll()
        for point in points:
            self.series.add(point)
        now = time.monotonic()
        self._progress.update(points, now)
        last = self.series.last
        if last is None or last.step == self._printed_step or not (final or now >= self._next_line):
            return
        figures = self._progress.figures(memory.get("VmRSS") or self._peak_memory or None)
        self._log.say(progress_line(figures))
        self._log.machine(PROGRESS_MARK, figures)
        self._printed_step, self._next_line = last.step, now + self._spec.progress_interval

    def _judge(self, returncode: int, *, killed_for_memory: bool) -> None:
        """Say why the child ended, where it could not do so itself.

        A child that had ended well, or knew what was wrong, when a signal came is not made worse by it.
        """
        if returncode == 0:
            return
        step = f" at step {self.series.last.step}" if self.series.last else " before the first step"
        # Ctrl-C reaches the child as well, which then reports its own end as a crash.
        if self._signal is not None and (self.failure is None or self.failure.cause == "library_crash"):
            self.failure = Failure(
                failure_class="preempted",
                cause="terminated",
                message=f"The training was ended by {signal.Signals(self._signal).name}{step}",
                cure="Whoever stopped the task, or the node it ran on, sent it. A retry trains again",
            )
        elif self.failure is None and killed_for_memory:
            self.failure = Failure(
                failure_class="resources",
                cause="out_of_memory",
                message=f"The kernel ended the training{step} because memory was used up",
                cure="Lower training_max_tokens_per_gpu or training_max_seq_len, or give the training more memory",
            )
        elif self.failure is None:
            end = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
            self.failure = Failure(
                failure_class="infrastructure",
                cause="killed" if returncode == -signal.SIGKILL else "library_crash",
                message=f"The training process was ended by {end}{step} without a word of its own",
                cure="The last lines of train.log stand below. SIGKILL often means that the machine ran out of memory",
            )


def _reader(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def _read_events(fd: int, events: queue.Queue[dict[str, Any]]) -> None:
    with os.fdopen(fd, encoding="utf-8") as pipe:
        for line in pipe:
            # A child that is killed while it writes leaves half a line.
            if line.endswith("\n"):
                events.put(json.loads(line))


def _memory(child: subprocess.Popen[bytes] | None) -> dict[str, int]:
    """Return resident memory now (``VmRSS``) and at its peak (``VmHWM``) in bytes; empty where there is no /proc."""
    try:
        lines = Path(f"/proc/{child.pid if child else 0}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if name in
            ("VmRSS", "VmHWM")}  # fmt: skip


def _oom_kills() -> int:
    """How many processes of this container the kernel has ended for their memory (cgroup v2); 0 where it is unknown."""
    try:
        for line in Path("/sys/fs/cgroup/memory.events").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
