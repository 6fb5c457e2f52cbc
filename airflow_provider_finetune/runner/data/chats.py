"""Chats of Arrow batches as canonical rows, without a Python object for each message: in a third of the time.

It does for plain chats what :mod:`.part` does for every row, to the byte; a batch that has anything else is left to it.
"""

from __future__ import annotations

from array import array
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING, Any

from airflow_provider_finetune.runner.data import forms
from airflow_provider_finetune.runner.data.part import Part, hash_of_id

if TYPE_CHECKING:
    import pyarrow

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
"""What JSON escapes in nearly all texts; a batch with other control characters is left to others."""


def convert(batch: pyarrow.RecordBatch, first: int, part: Part) -> bool:
    """Convert a batch of rows with ``messages``.

    :param batch: the rows.
    :param first: number of the first one.
    :param part: takes what has become of them.
    :return: whether it could be done; if not, ``part`` is as it was.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _is_plain(batch):
        return False
    chats = batch.column("messages")
    offsets = pc.subtract(chats.offsets, chats.offsets[0])
    turns = chats.flatten()
    roles, texts = (turns.field(name).cast(pa.string()) for name in ("role", "content"))
    escaped, there = texts, bytes(_bytes(texts))
    for character, escape in _ESCAPES.items():
        if character.encode() in there:
            escaped = pc.replace_substring(escaped, character, escape)
    written = pc.binary_join_element_wise('{"role":"', roles, '","content":"', escaped, '"}', "")
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, written), ",")
    opened = pc.binary_join_element_wise('{"messages":[', joined, "]", "")
    if _has_control_characters(opened) or _has_control_characters(roles) or _needs_escapes(roles):
        return False
    answered, empty = _answers(roles, texts, offsets)
    numbers = pa.array(range(first, first + batch.num_rows))
    label = f',"line":{quoted(part.prefix)[:-1]}'
    lines = pc.binary_join_element_wise(opened, label, numbers.cast(pa.string()), '"}\n', "")
    _count(part, batch, opened, answered, empty, first)
    part.canonical = bytes(_bytes(lines.filter(answered)))
    return True


def _is_plain(batch: Any) -> bool:
    """Say whether all rows have messages, and these a role and a text in UTF-8 and nothing else."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as is_type

    if "messages" not in batch.schema.names or not is_type.is_list(kind := batch.schema.field("messages").type):
        return False
    item = kind.value_type
    if not is_type.is_struct(item) or sorted(field.name for field in item) != ["content", "role"]:
        return False
    if not all(is_type.is_string(field.type) or is_type.is_large_string(field.type) for field in item):
        return False
    chats = batch.column("messages")
    if chats.null_count or not batch.num_rows or pc.min(pc.list_value_length(chats)).as_py() == 0:
        return False
    turns = chats.flatten()
    if turns.null_count or any(turns.field(index).null_count for index in range(2)):
        return False
    try:
        turns.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _needs_escapes(roles: Any) -> bool:
    import pyarrow.compute as pc

    return any(pc.any(pc.match_substring(roles, character)).as_py() for character in _ESCAPES)


def _has_control_characters(texts: Any) -> bool:
    import numpy as np

    return bool(np.frombuffer(_bytes(texts), dtype=np.uint8).min(initial=255) < ord(" "))


def _bytes(texts: Any) -> Any:
    """Return the bytes of all texts, one after the other, without a copy."""
    import pyarrow as pa

    if not len(texts):
        return b""
    begins = memoryview(texts.buffers()[1]).cast("i")
    assert texts.type == pa.string()
    return memoryview(texts.buffers()[2])[begins[texts.offset] : begins[texts.offset + len(texts)]]


def _answers(roles: Any, texts: Any, offsets: Any) -> tuple[Any, Any]:
    """Say of each row whether the assistant says something in it, and whether in one turn nothing."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    assistant = pc.equal(roles, "assistant").to_numpy(zero_copy_only=False)
    blank = pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0)).to_numpy(zero_copy_only=False)
    begins = offsets.to_numpy()[:-1]
    answered = np.logical_or.reduceat(assistant & ~blank, begins)
    return pa.array(answered), answered & np.logical_or.reduceat(assistant & blank, begins)


def _count(part: Part, batch: Any, opened: Any, answered: Any, empty: Any, first: int) -> None:
    import numpy as np
    import pyarrow as pa

    part.rows += batch.num_rows
    used = answered.to_numpy(zero_copy_only=False)
    for index in np.flatnonzero(~used).tolist():
        part.dropped.add(f"{part.prefix}{first + index}", forms.NO_ANSWER)
    for index in np.flatnonzero(empty).tolist():
        part.empty_answers.add(f"{part.prefix}{first + index}")
    part.hashes.extend(map(hash, opened.filter(answered).cast(pa.binary()).to_pylist()))
    numbers = (np.flatnonzero(used) + first).tolist()
    part.numbers.extend(numbers)
    if "id" in batch.schema.names:
        hashes = zip(map(hash_of_id, batch.column("id").filter(answered).to_pylist()), numbers, strict=True)
        known = [(value, number) for value, number in hashes if value is not None]
        part.ids.extend(array("q", [value for value, _ in known]))
        part.id_numbers.extend(array("I", [number for _, number in known]))
