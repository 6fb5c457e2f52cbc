"""Plain chats of whole chunks as canonical rows, without a Python object for each message: in a third of the time.

It does for them what :mod:`.part` does for every row, to the byte; a chunk that has anything else is left to it. Of
parquet JSON is made; lines of JSON are copied once Arrow has read them, which is stricter than Python is.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, compress, repeat
from typing import TYPE_CHECKING, Any

from airflow_provider_finetune.runner.data import forms
from airflow_provider_finetune.runner.data.part import BETWEEN_TEXTS, Part, hash_of_id

if TYPE_CHECKING:
    import pyarrow

    from airflow_provider_finetune.runner.data.reading import Lines

_ESCAPES = {b"\\": b"\\\\", b'"': b'\\"', b"\n": b"\\n", b"\t": b"\\t", b"\r": b"\\r"}
"""What JSON escapes in nearly all texts; a batch with other control characters is left to others."""

_NEXT_ROW, _NEXT_TEXT, _NEXT_TURN = "\x01", "\x02", "\x03"
"""Stand for the JSON between the texts until these are escaped."""

_ROW_ENDS = b'"}\n'

_BEGIN, _END = b'{"messages":[{"role":"', b'"}]'

_JSON = {_NEXT_TEXT: b'","content":"', _NEXT_TURN: b'"},{"role":"', _NEXT_ROW: _END + b"\n" + _BEGIN}


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
    turns = chats.flatten()
    try:
        turns.validate(full=True)
    except pa.ArrowInvalid:
        return False
    opened = _written(chats)
    if opened is None:
        return False
    answered = _take(part, range(first, first + len(chats)), opened, chats, batch)
    part.canonical = _kept(part, opened, answered)
    return True


def schema_of(rows: Iterable[Any]) -> pyarrow.Schema | None:
    """Return what Arrow is to read lines of JSON by, ``None`` where they cannot be read by it as by Python.

    :param rows: some that have ``messages``; a chunk with other keys or types is not read by it.
    """
    # What converting imports: once here, not in each process.
    import numpy  # noqa: F401
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.json
    import pyarrow.types as is_type

    rows = list(rows)
    try:
        kind = pa.infer_type(rows)
        names = dict.fromkeys(chain.from_iterable(rows))
        schema = pa.schema([kind.field(name) for name in names])
    except (pa.ArrowException, ValueError, TypeError, KeyError):
        return None
    if "messages" not in names or not _are_chats(schema.field("messages").type):
        return None
    return schema if all(_is_exact(field.type) or is_type.is_floating(field.type) for field in schema) else None


def of_lines(lines: Lines, schema: pyarrow.Schema, part: Part) -> bool:
    """Convert lines of JSON with ``messages``.

    :param lines: the rows.
    :param schema: what :func:`schema_of` has returned.
    :param part: takes what has become of them.
    :return: whether it could be done; if not, ``part`` is as it was.
    """
    import pyarrow.compute as pc

    content = lines.content()
    rows = _Rows(lines, content)
    table = _parsed(content, schema) if rows.numbers else None
    # Each line begins with a brace and ends with one, so none can end in the row of another.
    if table is None or table.num_rows != len(rows.numbers):
        return False
    batch = table.combine_chunks().to_batches()[0]
    chats = batch.column("messages")
    if not _is_plain(chats):
        return False
    turns = chats.flatten()
    texts = pc.binary_join_element_wise(turns.field("role"), turns.field("content"), BETWEEN_TEXTS)
    told = _joined(chats, texts, BETWEEN_TEXTS)
    part.columns |= dict.fromkeys(schema.names)
    answered = _take(part, rows.numbers, told.cast("binary").to_pylist(), chats, batch)
    whole = answered.all()
    part.canonical = rows.canonical(part.label) if whole else _kept(part, rows.opened(), answered)
    return True


class _Rows:
    """Lines of JSON as rows without their last brace; none where one of them is not in braces.

    * ``numbers``: of the lines that hold one
    """

    def __init__(self, lines: Lines, content: bytes) -> None:
        self._content, self._first = content, lines.first
        self._ends = _ends_in_braces(content)
        self._opened: list[bytes] = []
        self.numbers: Sequence[int]
        if self._ends is not None:
            self.numbers = range(lines.first, lines.first + len(self._ends))
            return
        texts = [(number, line.strip()) for number, line in enumerate(io.BytesIO(content), start=lines.first)]
        rows = [(number, text) for number, text in texts if text]
        if not all(text.startswith(b"{") and text.endswith(b"}") for _, text in rows):
            rows = []
        self.numbers, self._opened = [number for number, _ in rows], [text[:-1] for _, text in rows]

    def opened(self) -> Sequence[bytes]:
        """Return them one by one."""
        return self._opened or [line[:-2] for line in io.BytesIO(self._content)]

    def canonical(self, label: bytes) -> bytes | memoryview:
        """Return all of them with label and number, without a Python object for each."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._ends is None:
            return _labelled(self._opened, label, self.numbers)
        offsets = np.concatenate(([0], self._ends + 1)).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self._content)]
        lines = pa.Array.from_buffers(pa.binary(), len(self._ends), buffers)
        numbers = pc.cast(pa.array(np.arange(self._first, self._first + len(self._ends))), pa.string())
        whole = pc.binary_join_element_wise(
            pc.binary_slice(lines, 0, -2), pa.scalar(label), numbers.cast(pa.binary()), pa.scalar(_ROW_ENDS), b""
        )
        _, ends, text = whole.buffers()
        return memoryview(text).cast("B")[: np.frombuffer(ends, dtype=np.int32)[len(whole)]]


def _ends_in_braces(content: bytes) -> Any:
    """Return where lines end, ``None`` where one is not in braces, as nearly all are."""
    import numpy as np

    text = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not len(ends) or ends[-1] != len(text) - 1 or text[0] != ord("{") or (text[ends[:-1] + 1] != ord("{")).any():
        return None
    return ends if (text[ends - 1] == ord("}")).all() else None


def _labelled(opened: Iterable[bytes], label: bytes, numbers: Iterable[int]) -> bytes:
    ends = [b"%d%b" % (number, _ROW_ENDS) for number in numbers]
    return b"".join(chain.from_iterable(zip(opened, repeat(label), ends, strict=False)))


def _parsed(content: bytes, schema: pyarrow.Schema) -> pyarrow.Table | None:
    """Read lines by Arrow, as strictly as Python does and more: keys must be known, and none be there twice."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.json as pj
    import pyarrow.types as is_type

    whole = pj.ReadOptions(use_threads=False, block_size=len(content) + 1)
    strict = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    try:
        # Its reader looks at no byte of a text.
        ends = pa.array([0, len(content)], pa.int32()).buffers()[1]
        pa.StringArray.from_buffers(1, ends, pa.py_buffer(content)).validate(full=True)
        table = pj.read_json(pa.BufferReader(content), whole, strict)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    # It reads "Inf", which is no JSON, and numbers of any length.
    floats = [column for column in table.columns if is_type.is_floating(column.type)]
    return table if all(pc.all(pc.is_finite(column)).as_py() is not False for column in floats) else None


def _is_exact(kind: Any, levels: int = 20) -> bool:
    """Say whether what Arrow reads as of this type is what Python reads; its reader is not made for endless nesting."""
    import pyarrow.types as is_type

    if is_type.is_list(kind) or is_type.is_struct(kind):
        inner = [kind.value_type] if is_type.is_list(kind) else [field.type for field in kind]
        return levels > 0 and all(_is_exact(each, levels - 1) for each in inner)
    return any(known(kind) for known in (is_type.is_string, is_type.is_int64, is_type.is_boolean, is_type.is_null))


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


def _written(chats: Any) -> list[bytes] | None:
    """Return canonical rows without their end, ``None`` where a text has a control character that is seldom."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    turns = chats.flatten()
    roles, texts = (turns.field(name).cast(pa.string()) for name in ("role", "content"))
    rows = _joined(chats, pc.binary_join_element_wise(roles, texts, _NEXT_TEXT), _NEXT_TURN)
    written = bytes(pc.binary_join(pa.ListArray.from_arrays([0, len(rows)], rows), _NEXT_ROW)[0].as_buffer())
    for character, escape in _ESCAPES.items():
        written = written.replace(character, escape)
    if np.count_nonzero(np.frombuffer(written, dtype=np.uint8) < ord(" ")) != 2 * len(texts) - 1:
        return None
    for mark, json in _JSON.items():
        written = written.replace(mark.encode(), json)
    return (_BEGIN + written + _END).split(b"\n")


def _offsets(chats: Any) -> Any:
    """Return where the messages of each row begin among those of all."""
    import pyarrow.compute as pc

    return pc.subtract(chats.offsets, chats.offsets[0])


def _joined(chats: Any, texts: Any, between: str) -> Any:
    """Return one text for each row, made of those of its messages."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.binary_join(pa.ListArray.from_arrays(_offsets(chats), texts), between)


def _take(part: Part, numbers: Sequence[int], told: Sequence[bytes], chats: Any, batch: Any) -> Any:
    """Count rows, told by the texts in ``told``; return which of them have an answer and are kept."""
    answered, empty = _answers(chats)
    part.rows += len(numbers)
    for number in compress(numbers, empty) if empty.any() else ():
        part.empty_answers.add(f"{part.prefix}{number}")
    ids = batch.column("id").to_pylist() if "id" in batch.schema.names else []
    if not answered.all():
        for number in compress(numbers, ~answered):
            part.dropped.add(f"{part.prefix}{number}", forms.NO_ANSWER)
        numbers, told, ids = (list(compress(each, answered)) for each in (numbers, told, ids))
    part.hashes.extend(array("q", map(hash, told)))
    part.numbers.extend(array("I", numbers))
    _take_ids(part, ids, numbers)
    return answered


def _kept(part: Part, opened: Sequence[bytes], answered: Any) -> bytes:
    """Return canonical rows of those that have an answer, which ``part`` has the numbers of."""
    return _labelled(opened if answered.all() else compress(opened, answered), part.label, part.numbers)


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


def _answers(chats: Any) -> tuple[Any, Any]:
    """Say of each row whether the assistant says something in it, and whether in one turn nothing."""
    import numpy as np
    import pyarrow.compute as pc

    turns = chats.flatten()
    roles, texts = turns.field("role"), turns.field("content")
    assistant = pc.equal(roles, "assistant").to_numpy(zero_copy_only=False)
    blank = pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0)).to_numpy(zero_copy_only=False)
    begins = _offsets(chats).to_numpy()[:-1]
    answered = np.logical_or.reduceat(assistant & ~blank, begins)
    return answered, answered & np.logical_or.reduceat(assistant & blank, begins)
