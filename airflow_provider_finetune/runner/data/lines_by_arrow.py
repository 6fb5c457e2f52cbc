"""Lines of JSON read by Arrow where it reads them as Python does, or more strictly."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow


def schema_of(rows: Iterable[Any]) -> pyarrow.Schema | None:
    """Return the types that rows like these have, ``None`` where Arrow might read another value than Python.

    :param rows: some, in which all keys occur.
    """
    # What reading imports: once here, not in each process.
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
    return schema if all(_is_exact(field.type) or is_type.is_floating(field.type) for field in schema) else None


def parsed(content: bytes, schema: pyarrow.Schema) -> pyarrow.RecordBatch | None:
    """Return what lines hold, ``None`` where Python would refuse one of them, or might read it otherwise.

    :param content: the lines.
    :param schema: what :func:`schema_of` has returned: lines with other keys or types are not read, nor those that have
        a key twice.
    """
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
    if any(pc.all(pc.is_finite(column)).as_py() is False for column in floats):
        return None
    return table.combine_chunks().to_batches()[0]


def opened(content: bytes, first: int) -> tuple[Sequence[int], Any]:
    """Return the numbers of the lines that hold a row, and the rows without their last brace, as Arrow has texts.

    Where one of them is not in braces there are none.

    :param content: the lines.
    :param first: number of the first.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if (ends := _ends_in_braces(content)) is not None:
        offsets = np.concatenate(([0], ends + 1)).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content)]
        lines = pa.Array.from_buffers(pa.binary(), len(ends), buffers)
        return range(first, first + len(ends)), pc.binary_slice(lines, 0, -2)
    texts = [(number, line.strip()) for number, line in enumerate(io.BytesIO(content), start=first)]
    rows = [(number, text) for number, text in texts if text]
    if not all(text.startswith(b"{") and text.endswith(b"}") for _, text in rows):
        rows = []
    return [number for number, _ in rows], pa.array([text[:-1] for _, text in rows], pa.binary())


def _ends_in_braces(content: bytes) -> Any:
    """Return where lines end, ``None`` where one is not in braces, as nearly all are."""
    import numpy as np

    text = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not len(ends) or ends[-1] != len(text) - 1 or text[0] != ord("{") or (text[ends[:-1] + 1] != ord("{")).any():
        return None
    return ends if (text[ends - 1] == ord("}")).all() else None


def _is_exact(kind: Any, levels: int = 20) -> bool:
    """Say whether what Arrow reads as of this type is what Python reads; its reader is not made for endless nesting."""
    import pyarrow.types as is_type

    if is_type.is_list(kind) or is_type.is_struct(kind):
        inner = [kind.value_type] if is_type.is_list(kind) else [field.type for field in kind]
        return levels > 0 and all(_is_exact(each, levels - 1) for each in inner)
    return any(known(kind) for known in (is_type.is_string, is_type.is_int64, is_type.is_boolean, is_type.is_null))
