"""Bytes of a file as they are needed, decompressed where its name ends in ``.gz``, and how damage is told."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from airflow_provider_finetune.runner.failures import UserError

BLOCK = 4 << 20
"""Bytes that are read and converted at once: many enough to be worth a message to another process, few in memory."""

LONGEST_ROW = 64 << 20
"""Bytes of a row. What is longer is a file without an end of a row, and would fill the memory."""


class Damaged(Exception):
    """A file ends too early, or is not of its format from here on."""

    def __init__(self, cause: str, what: str) -> None:
        super().__init__(what)
        self.cause, self.what = cause, what


class CutOff(Damaged):
    """A file ends too early."""

    def __init__(self, what: str) -> None:
        super().__init__("dataset_truncated", what)


class Broken(Damaged):
    """A file is not of its format from here on."""

    def __init__(self, what: str) -> None:
        super().__init__("dataset_broken", what)


@dataclass
class Place:
    """How far a file has been read.

    * ``file``: its name for people
    * ``prefix``: what makes the place of a row of its number
    * ``unit``: ``line`` or ``row``
    * ``before``: bytes of the files before this one
    * ``number``: of the last one that was read whole
    * ``scratch``: directory for what is needed until all rows are converted
    """

    file: str
    prefix: str
    unit: str
    before: int = 0
    number: int = 0
    scratch: Path = Path()

    def done(self, raw: BinaryIO) -> int:
        """Return how many bytes of the data set have been read with those of ``raw``."""
        return self.before + raw.tell()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say of what is damaged where it is."""
        try:
            yield
        except Damaged as error:
            where = f", after {self.unit} {self.number}" if self.number else ""
            raise UserError(
                error.cause,
                f"The dataset's file {self.file} {error.what}{where}",
                "Write or copy it again as a whole; a task that does so must have ended before this one begins",
            ) from error


def is_compressed(path: Path) -> bool:
    """Say whether a file is to be decompressed, by its name."""
    return path.suffix.lower() == ".gz"


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, io.RawIOBase]]:
    """Open a file.

    :param path: of the file.
    :yields: the file as it lies on the disk, whose position tells how much is read, and its content.
    """
    with path.open("rb", buffering=0) as raw:
        yield raw, _Inflated(raw) if is_compressed(path) else raw


class _Inflated(io.RawIOBase):
    """What a gzip file holds.

    Python's own reader takes 8 KB at a time before 3.12, and half as long again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._input = b""
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self.readall()
        while True:
            at_end = not self._input and not self._refill()
            if at_end and not self._begun:
                return b""
            try:
                data = self._member.decompress(self._input, size)
            except zlib.error as error:
                raise Broken("is no gzip file, or a damaged one") from error
            self._begun = True
            self._input = self._member.unconsumed_tail
            if self._member.eof:
                # Members may follow each other, with zeros between them.
                self._input = self._member.unused_data.lstrip(b"\0")
                self._member, self._begun = zlib.decompressobj(wbits=31), False
            if data:
                return data
            if at_end:
                raise CutOff("is cut off: its gzip stream has no end")

    def _refill(self) -> bool:
        block = self._file.read(1 << 20)
        self._input = block if self._begun else block.lstrip(b"\0")
        return bool(block)
