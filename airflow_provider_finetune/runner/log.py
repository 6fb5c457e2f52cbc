"""What the runner says: to standard output for the task log, and everything to ``train.log``."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from airflow_provider_finetune.contract.outcome import DATA_MARK, OUTCOME_MARK, PROGRESS_MARK


class RunLog:
    """Lines for people, lines for programs, and the libraries' own output.

    Standard output gets our lines: readable ones, ``warning: `` and ``error: `` in front of those that are, and the
    machine-readable ones behind a mark. ``train.log`` gets these and all that the libraries print. A full disk ends
    the writing of ``train.log``, and a reader that is gone that of standard output, never the run.
    """

    def __init__(self) -> None:
        self.began = 0
        """Where in ``train.log`` this try begins, behind those before it."""
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Whatever the locale: the launcher reads UTF-8, and no character of a message may end the run.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")

    def open(self, path: Path) -> None:
        """Begin to write ``train.log``."""
        try:
            self._file = path.open("ab", buffering=0)
            self.began = self._file.tell()
        except OSError as error:
            self._print(f"warning: there will be no train.log: {error}")

    def close(self) -> None:
        """End ``train.log``."""
        with self._lock:
            if self._file is not None:
                # A network disk may say only now that it was full.
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None

    def say(self, message: str, level: str = "info") -> None:
        """Put a message into the task log, line by line."""
        mark = "" if level == "info" else f"{level}: "
        for line in message.splitlines():
            self._print(mark + line)

    def show(self, text: str) -> None:
        """Put text of the data into the task log: not into ``train.log``, whose end travels in a failure's outcome."""
        for line in text.splitlines():
            # Behind a bar no line can be taken for one of ours.
            self._to_stdout(DATA_MARK + line)

    def quote(self, path: Path, lines: Sequence[str]) -> None:
        """Put the end of a log into the task log, folded where Airflow shows it.

        :param path: of the log.
        :param lines: of it.
        """
        if lines:
            for line in (f"::group::The last {len(lines)} lines of {path}", *lines, "::endgroup::"):
                self._to_stdout(line)

    def machine(self, mark: str, content: Mapping[str, Any] | str) -> None:
        """Put one machine-readable line into the task log."""
        self._print(mark + (content if isinstance(content, str) else json.dumps(content)))

    def raw(self, output: bytes) -> None:
        """Keep what a library has printed."""
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(output)
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
                self._to_stdout(f"warning: train.log ends here: {error}")

    def _print(self, line: str) -> None:
        self._to_stdout(line)
        self.raw(f"{line}\n".encode(errors="backslashreplace"))

    @staticmethod
    def _to_stdout(line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, flush=True)


def tail(path: Path, lines: int, since: int = 0) -> list[str]:
    """Return the last lines of a log, each at most 500 characters; nothing where it cannot be read.

    Lines for machines are left out.

    :param path: the log.
    :param lines: how many at most.
    :param since: position in the log before which nothing is read.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    found = [line[-500:] for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return [line for line in found if not (_LEAKS.match(line) or line.startswith(_MARKS))][-lines:]


_TAIL_BYTES = 128 << 10
_MARKS = (PROGRESS_MARK, OUTCOME_MARK, DATA_MARK, "::")


_LEAKS = re.compile(r"nanobind: | - (leaked |\.\.\. skipped remainder)|See https://nanobind")
"""What Triton's binding says when a process that has raised ends: dozens of lines behind the reason."""


def die_with_parent() -> None:
    """Let the kernel end this process when the one that started it is gone, so that none trains on unseen (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
