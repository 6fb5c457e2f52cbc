"""What tells the content of files: their SHA-256, computed beside the reading, and whether they stay as they are."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from airflow_provider_finetune.runner.data.source import Source
from airflow_provider_finetune.runner.failures import RunFailed

_BLOCK = 1 << 20


class Digest(threading.Thread):
    """SHA-256 of the files of a data set; of a single one that of ``sha256sum``.

    Of several it is that of a line ``<sha256>  <label>`` for each, as ``sha256sum`` prints them.

    :param source: the data set.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._ended = False
        self._error: OSError | None = None
        self._digests: list[str] = []

    def run(self) -> None:
        """Read all files; hashing and reading leave the interpreter to others."""
        try:
            for path in self._source.files:
                self._digests.append(self._of(path))
        except OSError as error:
            self._error = error

    def _of(self, path: Path) -> str:
        digest, block = hashlib.sha256(), bytearray(_BLOCK)
        with path.open("rb", buffering=0) as file:
            while not self._ended and (size := file.readinto(block)):
                digest.update(memoryview(block)[:size])
        return digest.hexdigest()

    def __enter__(self) -> Digest:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self.join()

    def sha256(self) -> str:
        """Wait for the end and return the digest."""
        self.join()
        if self._error:
            raise self._error
        if len(self._digests) == 1:
            return self._digests[0]
        listing = "".join(
            f"{digest}  {label}\n" for digest, label in zip(self._digests, self._source.labels, strict=True)
        )
        return hashlib.sha256(listing.encode()).hexdigest()


Stamps = list[tuple[int, int] | None]


def stamps(source: Source) -> Stamps:
    """Return size and time of the last change of each file, ``None`` for one that is gone."""
    return [_stamp(path) for path in source.files]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def ensure_unchanged(source: Source, before: Stamps) -> None:
    """Make sure that nobody has written to the data while it was read.

    :param source: the data set.
    :param before: what :func:`stamps` returned before the first row was read.
    :raises RunFailed: somebody did.
    """
    if stamps(source) != before:
        raise RunFailed(
            "infrastructure",
            "dataset_changed",
            f"The dataset {source.name} was changed while it was read",
            "Let this task wait for the one that writes it, or write it under another name and rename it when it is "
            "whole",
        )
