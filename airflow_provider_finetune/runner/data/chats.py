"""Plain chats of whole chunks as canonical rows, without a Python object for each message: in a third of the time.

It does for them what :mod:`.part` does for every row, to the byte; a chunk that has anything else is left to it. Of
parquet JSON is made; lines of JSON are copied once Arrow has read them.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

from airflow_provider_finetune.runner.data import forms, lines_by_arrow
from airflow_provider_finetune.runner.data.part import BETWEEN_TEXTS, Part, hash_of_id

if TYPE_CHECKING:
    import pyarrow

    from airflow_provider_finetune.runner.data.reading import Lines

_ESCAPES = {b"\\": b"\\\\", b'"': b'\\"', b"\n": b"\\n", b"\t": b"\\t", b"\r": b"\\r"}
"""What JSON escapes in nearly all texts; a batch with other control characters is left to others."""

_ROW_ENDS = '"}\n'

_QUOTE, _LINE_END = "\x19", "\x01"
"""Stand for ``"`` and the end of a line in the JSON around the texts until these are escaped: one sum makes both."""

_TO_CHARACTER = ord('"') - ord(_QUOTE)

_BEGIN, _NEXT_TEXT, _NEXT_TURN, _PLACE, _END = (
    json.replace('"', _QUOTE).replace("\n", _LINE_END)
    for json in ('{"messages":[{"role":"', '","content":"', '"},{"role":"', '"}],"line":"', _ROW_ENDS)
)


def of_batch(batch: pyarrow.RecordBatch, first: int, part: Part) -> bool:
    """Convert a batch of rows with ``messages``.

    :param batch: the rows.
    :param first: number of the first one.
    :param part: takes what has become of them.
    :return: whether it could be done; if not, ``part`` is as it was.
    """
    import pyarrow as pa

    if "messages" not in batch.schema.names or not _is_plain(chats := batch.column("messages")):
        return False
    # Further keys of a message would have to be written as well.
    if chats.type.value_type.num_fields > 2:
        return False
    try:
        chats.flatten().validate(full=True)
    except pa.ArrowInvalid:
        return False
    answers = _Answers(chats, range(first, first + len(chats)))
    kept = answers.of(batch)
    written = _written(kept.column("messages"), part, answers.numbers)
    if written is None:
        return False
    part.canonical, told = written
    answers.count(part, told, kept)
    return True


def schema_of(rows: Iterable[Any]) -> pyarrow.Schema | None:
    """Return what :func:`of_lines` needs, ``None`` where it cannot convert lines such as these.

    :param rows: some that have ``messages``.
    """
    schema = lines_by_arrow.schema_of(rows)
    if schema is None or "messages" not in schema.names or not _are_chats(schema.field("messages").type):
        return None
    return schema


def of_lines(lines: Lines, schema: pyarrow.Schema, part: Part) -> bool:
    """Convert lines of JSON with ``messages``.

    :param lines: the rows.
    :param schema: what :func:`schema_of` has returned.
    :param part: takes what has become of them.
    :return: whether it could be done; if not, ``part`` is as it was.
    """
    import pyarrow.compute as pc

    content = lines.content()
    numbers, opened = lines_by_arrow.opened(content, lines.first)
    batch = lines_by_arrow.parsed(content, schema) if numbers else None
    # Each line begins with a brace and ends with one, so none can end in the row of another.
    if batch is None or len(batch) != len(numbers) or not _is_plain(batch.column("messages")):
        return False
    answers = _Answers(batch.column("messages"), numbers)
    kept = answers.of(batch)
    turns = kept.column("messages").flatten()
    texts = pc.binary_join_element_wise(turns.field("role"), turns.field("content"), BETWEEN_TEXTS)
    told = _joined(kept.column("messages"), texts, BETWEEN_TEXTS).cast("binary").to_pylist()
    part.columns |= dict.fromkeys(schema.names)
    part.canonical = _placed(answers.of(opened), part.label, answers.numbers)
    answers.count(part, told, kept)
    return True


class _Answers:
    """Which rows have an answer of the assistant, and so are kept.

    * ``numbers``: of those rows
    """

    def __init__(self, chats: Any, numbers: Sequence[int]) -> None:
        import numpy as np
        import pyarrow.compute as pc

        turns = chats.flatten()
        roles, texts = turns.field("role"), turns.field("content")
        assistant = pc.equal(roles, "assistant").to_numpy(zero_copy_only=False)
        blank = pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0)).to_numpy(zero_copy_only=False)
        begins = _offsets(chats).to_numpy()[:-1]
        self._all = numbers
        self._has_one = np.logical_or.reduceat(assistant & ~blank, begins)
        self._has_empty = self._has_one & np.logical_or.reduceat(assistant & blank, begins)
        self._every = self._has_one.all()
        self.numbers = numbers if self._every else [*compress(numbers, self._has_one)]

    def of(self, rows: Any) -> Any:
        """Return those that are kept."""
        import pyarrow as pa

        return rows if self._every else rows.filter(pa.array(self._has_one))

    def count(self, part: Part, told: Iterable[bytes], kept: pyarrow.RecordBatch) -> None:
        """Count all rows; those that are kept are told by the texts in ``told``."""
        part.rows += len(self._all)
        for number in compress(self._all, self._has_empty) if self._has_empty.any() else ():
            part.empty_answers.add(f"{part.prefix}{number}")
        for number in () if self._every else compress(self._all, ~self._has_one):
            part.dropped.add(f"{part.prefix}{number}", forms.NO_ANSWER)
        part.hashes.extend(array("q", map(hash, told)))
        part.numbers.extend(array("I", self.numbers))
        if "id" in kept.schema.names:
            _take_ids(part, kept.column("id").to_pylist(), self.numbers)


def _placed(opened: Any, label: bytes, numbers: Sequence[int]) -> memoryview:
    """Return canonical rows: what is opened, with label, number and end."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = _decimal(numbers).cast(pa.binary())
    return _content(pc.binary_join_element_wise(opened, pa.scalar(label), places, pa.scalar(_ROW_ENDS.encode()), b""))


def _decimal(numbers: Sequence[int]) -> Any:
    import pyarrow as pa

    return pa.array(numbers, pa.int64()).cast(pa.string())


def _content(texts: Any) -> memoryview:
    """Return the bytes of all texts, one behind the other."""
    _, offsets, content = texts.buffers()
    end = memoryview(offsets).cast("i")[len(texts)] if len(texts) else 0
    return memoryview(content or b"").cast("B")[:end]


def _are_chats(kind: Any) -> bool:
    """Say whether rows of this type are lists of messages with a role and a text."""
    import pyarrow.types as is_type

    if not is_type.is_list(kind) or not is_type.is_struct(kind.value_type):
        return False
    types = {field.name: field.type for field in kind.value_type}
    return all(
        name in types and (is_type.is_string(types[name]) or is_type.is_large_string(types[name]))
        for name in ("role", "content")
    )


def _is_plain(chats: Any) -> bool:
    """Say whether all rows have messages, and these each a role and a text."""
    import pyarrow.compute as pc

    if not _are_chats(chats.type):
        return False
    if chats.null_count or not len(chats) or pc.min(pc.list_value_length(chats)).as_py() == 0:
        return False
    turns = chats.flatten()
    return not (turns.null_count or turns.field("role").null_count or turns.field("content").null_count)


def _written(chats: Any, part: Part, numbers: Sequence[int]) -> tuple[bytes, list[bytes]] | None:
    """Return canonical rows, and of each what stands before its place.

    ``None`` where a text has a control character that is seldom.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    turns = chats.flatten()
    roles, texts = (turns.field(name).cast(pa.string()) for name in ("role", "content"))
    rows = _joined(chats, pc.binary_join_element_wise(roles, texts, _NEXT_TEXT), _NEXT_TURN)
    places = _decimal(numbers)
    marked = bytes(_content(pc.binary_join_element_wise(_BEGIN, rows, _PLACE + part.prefix, places, _END, "")))
    for character, escape in _ESCAPES.items():
        marked = marked.replace(character, escape)
    characters = np.frombuffer(marked, dtype=np.uint8)
    is_mark = characters < ord(" ")
    between = len(texts) * _marks(_NEXT_TEXT) + (len(texts) - len(rows)) * _marks(_NEXT_TURN)
    if np.count_nonzero(is_mark) != len(rows) * _marks(_BEGIN + _PLACE + _END) + between:
        return None
    written = (characters + is_mark * np.uint8(_TO_CHARACTER)).tobytes()
    tail = len(part.label) + len(_ROW_ENDS)
    lengths = pc.binary_length(places).to_pylist()
    return written, [line[: -tail - length] for line, length in zip(io.BytesIO(written), lengths, strict=True)]


def _marks(json: str) -> int:
    return json.count(_QUOTE) + json.count(_LINE_END)


def _offsets(chats: Any) -> Any:
    """Return where the messages of each row begin among those of all."""
    import pyarrow.compute as pc

    return pc.subtract(chats.offsets, chats.offsets[0])


def _joined(chats: Any, texts: Any, between: str) -> Any:
    """Return one text for each row, made of those of its messages."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.binary_join(pa.ListArray.from_arrays(_offsets(chats), texts), between)


def _take_ids(part: Part, ids: Sequence[Any], numbers: Sequence[int]) -> None:
    if all(ids) and {*map(type, ids)} == {str}:
        part.ids.extend(array("q", map(hash, ids)))
        part.id_numbers.extend(array("I", numbers))
        return
    hashes = [
        (value, number) for value, number in zip(map(hash_of_id, ids), numbers, strict=False) if value is not None
    ]
    part.ids.extend(array("q", [value for value, _ in hashes]))
    part.id_numbers.extend(array("I", [number for _, number in hashes]))
