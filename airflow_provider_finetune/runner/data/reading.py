"""Rows of JSONL and JSON, in chunks that can be converted one by one.

A row that cannot be read comes as a :class:`~.counts.Reason`, so that it is counted with its place; where it cannot be
known where the next row begins, the file is damaged.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

from airflow_provider_finetune.runner.data.counts import Reason
from airflow_provider_finetune.runner.data.files import BLOCK, LONGEST_ROW, Broken, CutOff, Place, is_compressed, opened

_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

_BOM = b"\xef\xbb\xbf"

NOT_UTF8 = Reason("it is not UTF-8")


@dataclass(frozen=True)
class Lines:
    """Lines of JSON: ``data``, or ``size`` bytes from ``offset`` on of the file at ``path``."""

    prefix: str
    done: int
    first: int
    data: PickleBuffer | None = None
    path: Path | None = None
    offset: int = 0
    size: int = 0
    names: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[int, Any, bytes]]:
        for number, line in enumerate(io.BytesIO(self.content()), start=self.first):
            text = line.strip()
            if text:
                yield number, parse(text), text

    def content(self) -> bytes:
        if self.data is not None:
            return bytes(self.data)
        assert self.path is not None
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), self.size, self.offset)


@dataclass(frozen=True)
class Parsed:
    """Rows that had to be parsed to be found."""

    prefix: str
    done: int
    read: list[tuple[int, Any]]
    names: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[int, Any, bytes]]:
        for number, row in self.read:
            yield number, row, b""


def parse(line: bytes) -> Any:
    """Return what a line of JSON holds, or a :class:`Reason`.

    :param line: without white space around it.
    """
    try:
        text = line.decode()
        # json.loads() less what it does around this: a fifth of the time of a short row.
        row, end = _scan(text, 0)
    except UnicodeDecodeError:
        return NOT_UTF8
    except StopIteration:
        return Reason("it is not JSON (Expecting value)")
    except json.JSONDecodeError as error:
        return Reason(f"it is not JSON ({error.msg.partition(':')[0].strip()})")
    except (ValueError, RecursionError):
        # Python reads neither numbers of thousands of digits nor lists in lists a thousand deep.
        return Reason("it is not JSON that can be read")
    return row if end == len(text) else Reason("it is not JSON (Extra data)")


def lines(path: Path, place: Place) -> Iterator[Lines]:
    """Yield the lines of a JSONL file; of a plain file only where they lie, so that another process reads them.

    :param path: of the file.
    :param place: is kept up to date.
    :yields: a chunk of rows.
    :raises Damaged: the file ends too early, or is not of this format.
    """
    with opened(path) as (raw, content):
        offset, rest = 0, b""
        while block := content.read(BLOCK):
            data = rest + block
            if not offset and data.startswith(_BOM):
                offset, data = len(_BOM), data[len(_BOM) :]
            end = data.rfind(b"\n") + 1
            if not end and len(data) > LONGEST_ROW:
                raise Broken(f"has a line of more than {LONGEST_ROW >> 20} MB")
            if end:
                yield _chunk(path, place, offset, data, end, place.done(raw))
                offset += end
            rest = data[end:]
        if rest:
            yield _chunk(path, place, offset, rest, len(rest), place.done(raw))


def _chunk(path: Path, place: Place, offset: int, data: bytes, size: int, done: int) -> Lines:
    first = place.number + 1
    place.number += data.count(b"\n", 0, size)
    if is_compressed(path):
        return Lines(place.prefix, done, first, data=PickleBuffer(memoryview(data)[:size]))
    return Lines(place.prefix, done, first, path=path, offset=offset, size=size)


def array(path: Path, place: Place) -> Iterator[Parsed]:
    """Yield the rows of a JSON file that is one array.

    :param path: of the file.
    :param place: is kept up to date.
    :yields: a chunk of rows.
    :raises Damaged: the file ends too early, or is not of this format.
    """
    with opened(path) as (raw, content):
        window = _Window(content)
        if window.next() != "[":
            raise Broken("is no array of rows" if window.text else "is empty")
        window.at += 1
        rows: list[tuple[int, Any]] = []
        begun, mark = window.blocks, window.next()
        while mark != "]":
            rows.append((place.number + 1, window.value()))
            place.number += 1
            mark = window.next()
            if mark not in (",", "]"):
                raise Broken("is not JSON") if mark else CutOff("is cut off: its array has no end")
            window.at += mark == ","
            if window.blocks > begun:
                yield Parsed(place.prefix, place.done(raw), rows)
                rows, begun = [], window.blocks
        window.at += 1
        if window.next():
            raise Broken("has more behind the end of its array")
        yield Parsed(place.prefix, place.done(raw), rows)


class _Window:
    """The part of a long JSON text that is in memory: ``text``, read up to ``at``."""

    def __init__(self, content: io.RawIOBase) -> None:
        self._content = content
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.at, self.blocks = "", 0, 0

    def _more(self) -> bool:
        block = self._content.read(BLOCK) or b""
        if block and len(self.text) - self.at > LONGEST_ROW:
            raise Broken(f"has a row of more than {LONGEST_ROW >> 20} MB")
        self.text, self.at = self.text[self.at :] + self._decoder.decode(block, final=not block), 0
        self.blocks += 1
        return bool(block)

    def next(self) -> str:
        """Return the next character that is no white space, ``""`` at the end."""
        while True:
            self.at = json.decoder.WHITESPACE.match(self.text, self.at).end()  # type: ignore[attr-defined]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """Return the next value, or a :class:`Reason`."""
        self.next()
        while True:
            try:
                row, end = _scan(self.text, self.at)
            except (StopIteration, json.JSONDecodeError) as error:
                self._more_or_damaged(error)
                continue
            except (ValueError, RecursionError) as error:
                raise Broken("is not JSON that can be read") from error
            # A number at the end of what is read may go on behind it.
            if end < len(self.text) or not self._more():
                break
        begin, self.at = self.at, end
        return row if is_utf8(self.text[begin:end]) else NOT_UTF8

    def _more_or_damaged(self, error: StopIteration | json.JSONDecodeError) -> None:
        """Read on where the value may have no more than its end in the part that is not yet read."""
        at = error.value if isinstance(error, StopIteration) else error.pos
        what = "Expecting value" if isinstance(error, StopIteration) else error.msg.partition(":")[0].strip()
        # The longest that JSON has in one piece: two escapes "\uXXXX" of one character.
        may_go_on = at >= len(self.text) - 12 or what.startswith("Unterminated string")
        if not may_go_on:
            raise Broken(f"is not JSON ({what})") from error
        if not self._more():
            raise CutOff("is cut off in the middle of a row") from error


def is_utf8(text: str) -> bool:
    """Say whether ``text`` was read without an error, which would have left lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
