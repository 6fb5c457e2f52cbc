"""The rows of a data set of any format, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_provider_finetune.runner.data import chats, columns, part, reading, tabular
from airflow_provider_finetune.runner.data.files import Place
from airflow_provider_finetune.runner.data.part import Chunk, Part
from airflow_provider_finetune.runner.data.source import Source

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


def convert(chunk: Chunk, form: str) -> Part:
    """Return the rows of a chunk as canonical rows, by the quickest way that its rows allow.

    :param chunk: some rows.
    :param form: the data set's; where it is empty no row can be used.
    """
    if form == "messages" and isinstance(chunk, (columns.Batch, columns.Slice)):
        found = Part(chunk.prefix, chunk.done, columns=dict.fromkeys(chunk.names))
        if chats.convert(chunk.batch, chunk.first, found):
            return found
    return part.convert(chunk, form)
