"""What is said while something large arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 10.0
"""Seconds between two lines."""


@contextmanager
def said(say: Callable[[str], None], what: str, into: Path, total: int | None = None) -> Iterator[None]:
    """Say every ten seconds how much has arrived while the block runs, and at its end how much it was.

    The directory is looked at from outside, since each library shows its progress in a way of its own.

    :param say: takes one line for people.
    :param what: what arrives, e.g. ``weights of org/name``.
    :param into: the directory that grows; files of an earlier try that end in ``.incomplete`` count as new.
    :param total: bytes to come, where they are known.
    """
    of = "" if total is None else f" of {size(total)}"
    before = _bytes_in(into, besides=".incomplete")
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(INTERVAL):
            say(f"{what}: {size(_bytes_in(into) - before)}{of}")

    watcher = threading.Thread(target=watch, name="transfer", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    say(f"{what}: fetched, {size(_bytes_in(into) - before)}")


def size(count: int) -> str:
    """Write a number of bytes as people read it, in powers of 1,000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _bytes_in(directory: Path, besides: str | None = None) -> int:
    """Bytes of the files of a directory, which come and go while it is read."""
    found = 0
    for path in directory.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink() and not (besides and path.name.endswith(besides)):
                found += path.stat().st_size
        except FileNotFoundError:
            continue
    return found
