"""Some rows of a data set, converted: what one process does for the others."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted
from typing import Any, Protocol

from airflow_provider_finetune.runner.data import forms
from airflow_provider_finetune.runner.data.counts import Dropped, Found, Reason

_encoded = json.JSONEncoder(ensure_ascii=False, default=str).encode

BETWEEN_TEXTS = "\x1f"
"""Between the texts of a row where it is hashed: no text of a chat has it."""

_UNKNOWN_FORM = Reason("it has none of the known forms")
_HALF_A_CHARACTER = Reason("its text has half of a character (a lone surrogate such as \\ud83d)")


class Chunk(Protocol):
    """Some rows of one file.

    * ``prefix``: what makes the place of a row of its number
    * ``done``: bytes of the data set that are read with it
    * ``names``: of the columns, where they are known without looking at the rows
    """

    @property
    def prefix(self) -> str: ...

    @property
    def done(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def rows(self) -> Iterator[tuple[int, Any, bytes]]:
        """Yield number, row or :class:`Reason`, and the source's own JSON of the row where it has one."""


@dataclass
class Part:
    """What has become of a chunk.

    * ``canonical``: lines for the file of canonical rows
    * ``hashes``, ``numbers``: of each usable row the hash of its content, and its number; ``ids``, ``id_numbers``: of
      its id
    * ``columns``: names of the columns seen, in their order
    """

    prefix: str
    done: int
    canonical: bytes | memoryview = b""
    rows: int = 0
    dropped: Dropped = field(default_factory=Dropped)
    empty_answers: Found = field(default_factory=Found)
    hashes: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("I"))
    ids: array[int] = field(default_factory=lambda: array("q"))
    id_numbers: array[int] = field(default_factory=lambda: array("I"))
    columns: dict[str, None] = field(default_factory=dict)

    @property
    def label(self) -> bytes:
        """What stands in a canonical row before its number, which ``"}`` follows."""
        return f',"line":{quoted(self.prefix)[:-1]}'.encode()


def form_of(chunk: Chunk) -> str | None:
    """Return the form of the first row in ``chunk`` that has one."""
    return next(filter(None, (forms.recognise(row) for _, row, _ in chunk.rows())), None)


def convert(chunk: Chunk, form: str) -> Part:
    """Return the rows of ``chunk`` as canonical rows.

    :param chunk: some rows.
    :param form: the data set's; where it is empty no row can be used.
    """
    part = Part(chunk.prefix, chunk.done, columns=dict.fromkeys(chunk.names))
    label = part.label
    lines: list[bytes] = []
    keys: Any = None
    for number, row, source in chunk.rows():
        part.rows += 1
        if type(row) is dict and row.keys() != keys:
            keys = row.keys()
            part.columns |= dict.fromkeys(keys)
        opened = _opened(row, form, source, number, part)
        if isinstance(opened, Reason):
            part.dropped.add(f"{chunk.prefix}{number}", opened)
        else:
            lines += opened, label, b'%d"}\n' % number
    part.canonical = b"".join(lines)
    return part


def _opened(row: Any, form: str, source: bytes, number: int, part: Part) -> bytes | Reason:
    """Return a canonical row without its end, ``line`` and brace; count what is worth a look."""
    if isinstance(row, Reason):
        return row
    converted = forms.convert(row, form) if form else _UNKNOWN_FORM
    if isinstance(converted, Reason):
        return converted
    content: list[str] = []
    empty_answer = False
    for message in converted.get("messages", ()):
        role, text = message["role"], message["content"]
        content += role, text
        if role == "assistant" and forms.is_blank(text):
            empty_answer = True
    try:
        told = BETWEEN_TEXTS.join(content or [converted.get("text", "")]).encode()
        opened = _copied(row, converted, source) or _written(converted)
    except UnicodeEncodeError:
        return _HALF_A_CHARACTER
    # A row is told by what it says; where it is written anew, its JSON is just that.
    part.hashes.append(hash(told) if source and told else hash(opened))
    part.numbers.append(number)
    if empty_answer:
        part.empty_answers.add(f"{part.prefix}{number}")
    if (identity := hash_of_id(row.get("id"))) is not None:
        part.ids.append(identity)
        part.id_numbers.append(number)
    return opened


def hash_of_id(identifier: Any) -> int | None:
    """Return a hash of what tells a row, ``None`` where nothing does."""
    if not isinstance(identifier, (str, int)) or identifier == "":
        return None
    # As a text, since Python's hash of -1 is that of -2.
    return hash(str(identifier))


def _copied(row: forms.Row, converted: forms.Row, source: bytes) -> bytes:
    """Return the source's own JSON of a row where nothing had to be changed: to write it anew takes three times as
    long.

    Keys are read from the left to the right, so a ``line`` at the end wins over one of the row.
    """
    key, value = next(iter(converted.items()))
    if not source or "input_ids" in converted or value is not row.get(key) or (key == "text" and "messages" in row):
        return b""
    return source[:-1]


def _written(converted: forms.Row) -> bytes:
    if "text" in converted:
        return f'{{"text":{quoted(converted["text"])}'.encode()
    if "input_ids" in converted:
        return _encoded(converted)[:-1].encode()
    return f'{{"messages":[{",".join(map(_message, converted["messages"]))}]'.encode()


def _message(message: forms.Message) -> str:
    if len(message) > 2:
        return _encoded(message)
    return f'{{"role":{quoted(message["role"])},"content":{quoted(message["content"])}}}'
