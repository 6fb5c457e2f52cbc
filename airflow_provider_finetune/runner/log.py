"""What the runner says: to standard output for the task log, and everything to ``train.log``."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


class RunLog:
    """Lines for people, lines for programs, and the libraries' own output.

    Standard output gets our lines: readable ones, ``warning: `` and ``error: `` in front of those that are, and the
    machine-readable ones behind a mark. ``train.log`` gets these and all that the libraries print. A full disk ends
    the writing of ``train.log``, never the run.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def open(self, path: Path) -> None:
        """Begin to write ``train.log``."""
        self._file = path.open("ab", buffering=0)

    def say(self, message: str, level: str = "info") -> None:
        """Put a message into the task log, line by line."""
        mark = "" if level == "info" else f"{level}: "
        for line in message.splitlines():
            self._print(mark + line)

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
                self._file = None
                print(f"warning: train.log ends here: {error}", flush=True)

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self.raw(f"{line}\n".encode())


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log, each at most 500 characters; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line[-500:] for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]


def die_with_parent() -> None:
    """Let the kernel end this process when the one that started it is gone, so that none trains on unseen (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
