"""Runs and ends a runner process on this machine.

The runner gets a session, and so a process group, of its own: whatever it starts is ended with it. It is asked first
(SIGTERM to the runner alone, which then saves and ends its children) and the whole group is killed after a grace
period. :meth:`RunnerProcess.terminate` only asks; the waiting :meth:`RunnerProcess.run` goes on reading, since a
runner whose output nobody reads would hang in its last words, and kills where the grace period ends.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.1
_LAST_WORDS_SECONDS = 1.0


class RunnerProcess:
    """One process with its group, from start to end.

    :param command: program and arguments.
    :param env: the whole environment.
    :param cwd: working directory; ``None`` is this process's own.
    :param grace: seconds between asking the runner to end and killing its group.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, grace: float = 30.0
    ) -> None:
        self.command = list(command)
        self.env = dict(env)
        self.cwd = cwd
        self.grace = grace
        self.timed_out = False
        self.terminating = False
        self._kill_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, on_line: Callable[[str], None], *, timeout: float | None = None) -> int:
        """Start the process and wait for its end, and see to it that nothing of its group is left.

        :param on_line: gets each line of stdout and stderr, without the line end.
        :param timeout: seconds after which the process is asked to end; ``timed_out`` is true then.
        :return: exit status; ``-n`` where signal ``n`` ended it.
        :raises OSError: the program cannot be started.
        """
        self._process = subprocess.Popen(
            self.command,
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if self.terminating:
            self._ask_to_end(self._process)
        try:
            self._follow(self._process, on_line, None if timeout is None else time.monotonic() + timeout)
        except BaseException:
            self.terminate()
            self._follow(self._process, lambda line: None, None)
            raise
        finally:
            self._kill_group(self._process)
            if self._process.stdout is not None:
                self._process.stdout.close()
        return self._process.returncode

    def terminate(self) -> None:
        """Ask the process to end; returns at once. May be called at any time, often, and from a signal handler."""
        self.terminating = True
        if self._process is not None:
            self._ask_to_end(self._process)

    def _ask_to_end(self, process: subprocess.Popen[bytes]) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self.grace
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def _follow(self, process: subprocess.Popen[bytes], on_line: Callable[[str], None], ask_at: float | None) -> None:
        """Pass on the output until the process has ended and what it left in the pipe is read."""
        assert process.stdout is not None
        output = _Lines(process.stdout.fileno())
        with output:
            while process.poll() is None:
                for line in output.read(_POLL_SECONDS):
                    on_line(line)
                now = time.monotonic()
                if ask_at is not None and now >= ask_at and not self.terminating:
                    self.timed_out = True
                    self.terminate()
                if self._kill_at is not None and now >= self._kill_at:
                    self._kill_group(process)
            self._kill_group(process)
            # A process that left the group may hold the pipe open for ever.
            until = time.monotonic() + _LAST_WORDS_SECONDS
            while not output.at_end and time.monotonic() < until:
                for line in output.read(_POLL_SECONDS):
                    on_line(line)
            for line in output.rest():
                on_line(line)

    @staticmethod
    def _kill_group(process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Lines:
    """Reads lines from a pipe without ever waiting longer than told."""

    def __init__(self, descriptor: int) -> None:
        self.at_end = False
        self._descriptor = descriptor
        self._partial = b""
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> _Lines:
        self._selector.register(self._descriptor, selectors.EVENT_READ)
        return self

    def __exit__(self, *exception: object) -> None:
        self._selector.close()

    def read(self, timeout: float) -> list[str]:
        """Return the lines that arrive within ``timeout`` seconds, as soon as there is one."""
        if self.at_end:
            time.sleep(timeout)
            return []
        if not self._selector.select(timeout):
            return []
        chunk = os.read(self._descriptor, 65536)
        self.at_end = not chunk
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]

    def rest(self) -> list[str]:
        """Return a last line that has no line end."""
        rest, self._partial = self._partial, b""
        return [rest.decode(errors="replace")] if rest else []
