"""The rows of a data set of any format, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_finetune.runner.data import chats, columns, forms, part, reading, tabular
from airflow_provider_finetune.runner.data.files import Place
from airflow_provider_finetune.runner.data.part import Chunk, Part
from airflow_provider_finetune.runner.data.source import Source

if TYPE_CHECKING:
    import pyarrow

_ROWS_LOOKED_AT = 100

WORTH_ARROW = 16 << 20
"""Bytes from which Arrow reads lines in less time than it takes to be imported."""

_READERS: dict[str, tuple[str, Callable[[Path, Place], Iterator[Chunk]]]] = {
    "jsonl": ("line", reading.lines),
    "json": ("row", reading.array),
    "csv": ("line", tabular.table),
    "parquet": ("row", columns.parquet),
}
"""By format what its rows are counted by, and how they are read."""

SHARED = frozenset(["jsonl", "parquet"])
"""Formats whose rows are found in much less time than they are converted in, so that processes can share the work."""


def of(source: Source, scratch: Path) -> Iterator[Chunk]:
    """Yield all rows of a data set.

    :param source: the data set.
    :param scratch: empty directory that stays until all rows are converted.
    :raises UserError: a file is damaged; its name and how far it could be read are said.
    """
    if source.tables:
        place = Place(source.name, "row ", "row")
        yield from columns.tables(source.tables(), place)
        return
    unit, read = _READERS[source.format]
    before = 0
    for path, label in zip(source.files, source.labels, strict=True):
        several = len(source.files) > 1
        prefix = "row " if unit == "row" else ""
        if several:
            prefix = f"{label} row " if unit == "row" else f"{label}:"
        place = Place(label if several else source.name, prefix, unit, before, scratch=scratch)
        before += path.stat().st_size
        with place.named():
            yield from read(path, place)


def converter(form: str, first: Chunk, size: int) -> Callable[[Chunk], Part]:
    """Return what makes canonical rows of a chunk, the quickest that is worth its start.

    :param form: the data set's.
    :param first: the first chunk with a row of this form.
    :param size: bytes of the data set.
    """
    schema = None
    if size >= WORTH_ARROW and form == "messages" and isinstance(first, reading.Lines):
        known = (row for _, row, _ in first.rows() if forms.recognise(row) == form)
        schema = chats.schema_of(islice(known, _ROWS_LOOKED_AT))
    return partial(convert, form=form, schema=schema)


def convert(chunk: Chunk, form: str, schema: pyarrow.Schema | None = None) -> Part:
    """Return the rows of a chunk as canonical rows, by the quickest way that its rows allow.

    :param chunk: some rows.
    :param form: the data set's; where it is empty no row can be used.
    :param schema: by which Arrow may read lines of JSON.
    """
    found = Part(chunk.prefix, chunk.done, columns=dict.fromkeys(chunk.names))
    if form == "messages" and isinstance(chunk, columns.Batch) and chats.of_batch(chunk.batch, chunk.first, found):
        return found
    if schema is not None and isinstance(chunk, reading.Lines) and chats.of_lines(chunk, schema, found):
        return found
    return part.convert(chunk, form)
