"""The parent process: starts the child, follows it, ends it on a signal, and always leaves an outcome.

It stays on the standard library, so no fault of a training library reaches it. It is often process 1 of a container,
which inherits the children of all others.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.last_words import NCCL_FAILURE, last_exception, meaning_of_log
from airflow_provider_finetune.contract.outcome import PEER_FAILED, PROGRESS_MARK, Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.environment import child_environment
from airflow_provider_finetune.runner.events import VARIABLE
from airflow_provider_finetune.runner.gpu import Gpus
from airflow_provider_finetune.runner.log import RunLog, tail
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower
from airflow_provider_finetune.runner.reporting.progress import Progress, progress_line
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.stopping import Stop
from airflow_provider_finetune.runner.tries import checkpoints
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_POLL_SECONDS = 0.5
_FOLLOWS_FROM_A_SIGNAL = ("library_crash", "ended_early", NCCL_FAILURE)
_LAST_WORDS_SECONDS = 3.0
_READ_LINES = 1000
"""Of ``train.log``, in which the reason of an end without a word is looked for."""

_TO_REPORT_SECONDS = 5.0
"""Of the grace period, kept for the outcome when the child has gone."""


class Supervisor:
    """The children of one attempt, one after the other, each from its start to its end.

    :param spec: what is to be trained; ``work_dir`` holds it as a file.
    :param work_dir: the attempt's directory.
    :param log: where lines go.
    :param stop: ends the child.
    :param epochs: planned passes over the data.
    :param grace: seconds from SIGTERM to SIGKILL for this process.
    :param node: which of several nodes this is.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        work_dir: WorkDir,
        log: RunLog,
        stop: Stop,
        *,
        epochs: int,
        grace: float,
        node: int = 0,
    ) -> None:
        self.facts: dict[str, Any] = {"metrics": {}, "plan": {}}
        """What the children have reported, as fields of the outcome."""
        self.failure: Failure | None = None
        self.series = Series()
        self._spec, self._work_dir, self._log, self._stop = spec, work_dir, log, stop
        self._grace = max(grace - _TO_REPORT_SECONDS, grace / 2)
        self._node, self._scratch = node, work_dir.scratch(node)
        self._progress = Progress(epochs)
        self._follower = MetricsFollower(work_dir.checkpoints, spec.algorithm, epochs)  # type: ignore[arg-type]
        self._trainer: int | None = None
        self._gpus: Gpus | None = None
        self._training_since = 0.0
        self._printed_step = 0
        self._next_line = 0.0
        self._peak_memory = 0
        self._peak_gpu_memory = 0
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, command: str = "work") -> bool:
        """Start a child and stay until it has ended and all that it said is read.

        :param command: of the runner's own command line.
        :return: whether it has done what it should.
        """
        oom_kills = _oom_kills()
        environment = child_environment(self._scratch)
        with tempfile.TemporaryDirectory(prefix="finetune-", dir=environment["TMPDIR"]) as directory:
            # Not a pipe that is handed down: the launcher of several processes closes it.
            channel = os.path.join(directory, "events")
            os.mkfifo(channel)
            child, events, readers, write_fd = self._start(command, {**environment, VARIABLE: channel}, channel)
            try:
                while child.poll() is None:
                    self._turn(child, events)
            finally:
                # Nothing trains on unseen where following has failed; a child that has ended is left alone.
                child.kill()
                os.close(write_fd)
            # A grandchild may hold the pipes open for longer than anybody wants to wait.
            until = time.monotonic() + _LAST_WORDS_SECONDS
            for reader in readers:
                reader.join(timeout=max(0.0, until - time.monotonic()))
        while not events.empty():
            self._handle(events.get())
        self._follow(final=True)
        self._judge(child.returncode, killed_for_memory=_oom_kills() > oom_kills)
        figures = {
            "peak_memory_bytes": self._peak_memory,
            "peak_gpu_memory_bytes": self._peak_gpu_memory,
            "gpu_seconds": round(self._gpus.count * (time.monotonic() - self._training_since)) if self._gpus else 0,
            "tokens_per_second": None if self.series.tokens_per_second else self._progress.overall_tokens_per_second(),
        }
        self.facts["metrics"].update({name: figure for name, figure in figures.items() if figure})
        return self.failure is None

    def _start(
        self, command: str, environment: dict[str, str], channel: str
    ) -> tuple[subprocess.Popen[bytes], queue.Queue[dict[str, Any]], list[threading.Thread], int]:
        # An end for writing of our own keeps the channel open until the child has ended, whoever comes and goes.
        read_fd = os.open(channel, os.O_RDONLY | os.O_NONBLOCK)
        write_fd = os.open(channel, os.O_WRONLY)
        os.set_blocking(read_fd, True)
        program = [sys.executable, "-m", "airflow_provider_finetune.runner", *command.split()]
        try:
            child = subprocess.Popen(
                [*program, "--work-dir", str(self._work_dir.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        except OSError:
            os.close(read_fd)
            os.close(write_fd)
            raise
        self._child, self._stop.pass_on = child, self._end_child
        if self._stop.number is not None:
            self._end_child()
        events: queue.Queue[dict[str, Any]] = queue.Queue()
        readers = [_reader(self._keep_output), _reader(lambda: _read_events(read_fd, events))]
        return child, events, readers, write_fd

    def _end_child(self) -> None:
        if self._child is not None and self._child.poll() is None:
            # A training that saves and returns as if it were done is told by this that it is not.
            with contextlib.suppress(OSError):
                self._work_dir.stopped.touch()
            self._child.send_signal(signal.SIGTERM)

    def _keep_output(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        with self._child.stdout as pipe:
            while output := os.read(pipe.fileno(), 65536):
                self._log.raw(output)

    def _turn(self, child: subprocess.Popen[bytes], events: queue.Queue[dict[str, Any]]) -> None:
        with contextlib.suppress(queue.Empty):
            self._handle(events.get(timeout=_POLL_SECONDS))
        self._follow()
        if os.getpid() == 1:
            _reap_orphans(child.pid)
        if self._stop.longer_than(self._grace):
            child.kill()

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "say":
            self._log.say(event["message"], event["level"])
        elif kind == "show":
            self._log.show(event["text"])
        elif kind == "training":
            self._trainer = event["pid"]
            self._gpus = Gpus() if event.get("device") == "cuda" else None
            self._training_since = time.monotonic()
        elif kind == "failed":
            # What has come first is the cause, unless it is only that somebody else is gone.
            if self.failure is None or self.failure.cause == PEER_FAILED:
                self.failure = Failure(**event["failure"])
        elif kind == "report":
            for name in ("metrics", "plan"):
                self.facts[name].update(event.pop(name, {}))
            self.facts.update(event)

    def _follow(self, *, final: bool = False) -> None:
        """Read new metrics and print a line when it is time."""
        memory = _memory(self._trainer or (self._child.pid if self._child else 0))
        self._peak_memory = max(self._peak_memory, memory.get("VmHWM", 0))
        if self._trainer is None:
            return
        on_gpu = self._gpus.memory_used() if self._gpus else 0
        self._peak_gpu_memory = max(self._peak_gpu_memory, on_gpu)
        points = self._follower.poll()
        for point in points:
            self.series.add(point)
        now = time.monotonic()
        self._progress.update(points, now)
        last = self.series.last
        if last is None or last.step == self._printed_step or not (final or now >= self._next_line):
            return
        in_use = on_gpu if self._gpus else memory.get("VmRSS") or self._peak_memory
        figures = self._progress.figures(in_use or None)
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
        if self._stop.number is not None and (self.failure is None or self.failure.cause in _FOLLOWS_FROM_A_SIGNAL):
            self.failure = self._stop.failure(step.strip(), checkpoints.newest(self._work_dir.checkpoints))
        elif self.failure is None and killed_for_memory:
            self.failure = failure_of(
                "out_of_memory",
                f"The kernel ended the training{step} because memory was used up",
                "Raise training_resource_memory_per_worker, or lower training_max_tokens_per_gpu or "
                "training_max_seq_len",
            )
        elif self.failure is None:
            self.failure = self._without_a_word(returncode, step)

    def _without_a_word(self, returncode: int, step: str) -> Failure:
        """Return why the child has ended, by its status and by what was printed."""
        printed = tail(self._work_dir.log(self._node), _READ_LINES, self._log.began)
        if returncode != -signal.SIGKILL and (known := meaning_of_log(printed)):
            return known
        end = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
        raised = last_exception(printed)
        return failure_of(
            "killed" if returncode == -signal.SIGKILL else "library_crash",
            f"The training process was ended by {end}{step} without a word of its own"
            + f"; its last exception: {raised}" * bool(raised),
            "The last lines of train.log stand above. SIGKILL often means that the machine ran out of memory",
        )


def _reader(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def _read_events(fd: int, events: queue.Queue[dict[str, Any]]) -> None:
    with os.fdopen(fd, encoding="utf-8") as pipe:
        for line in pipe:
            # A child that is killed while it writes leaves half a line, also before the next one of another.
            with contextlib.suppress(ValueError):
                events.put(json.loads(line))


def _reap_orphans(child: int) -> None:
    """Bury the children of others that have become ours; ``child`` itself is waited for where it was started."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child:
            os.waitpid(ended.si_pid, 0)


def _memory(pid: int) -> dict[str, int]:
    """Return resident memory now (``VmRSS``) and at its peak (``VmHWM``) in bytes; empty where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
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
