"""Rows of parquet files and of Arrow tables, in chunks that can be converted one by one."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_finetune.runner.data import forms
from airflow_provider_finetune.runner.data.counts import Reason
from airflow_provider_finetune.runner.data.files import BLOCK, Broken, Place, is_compressed, opened

if TYPE_CHECKING:
    import pyarrow

_MOST_ROWS = 4096

_WANTED = frozenset(["id", *(name for form in forms.NAMES for name in forms.columns(form))])


@dataclass(frozen=True)
class Batch:
    """Rows as columns.

    * ``names``: all columns of the source, also those that are not read
    """

    prefix: str
    done: int
    first: int
    batch: pyarrow.RecordBatch = field(repr=False)
    names: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[int, Any, bytes]]:
        for number, row in enumerate(_rows(self.batch), start=self.first):
            yield number, row, b""


def parquet(path: Path, place: Place) -> Iterator[Batch]:
    """Yield the rows of a parquet file; of its columns only those that a form has are read.

    :param path: of the file.
    :param place: is kept up to date.
    :yields: a chunk of rows.
    :raises Damaged: it is no parquet file, or not a whole one.
    """
    # What converting imports, pandas with the first text that Arrow hands to Python: once here, not in each process.
    import pandas  # noqa: F401
    import pyarrow.compute  # noqa: F401
    import pyarrow.parquet as pq

    size = path.stat().st_size
    if is_compressed(path):
        path = _inflated(path, place.scratch)
    with lean_memory(), _damage_named():
        file = pq.ParquetFile(path, buffer_size=BLOCK // 4, pre_buffer=False)
        names = tuple(file.schema_arrow.names)
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            most = max(1, min(_MOST_ROWS, BLOCK // 2 * group.num_rows // max(group.total_byte_size, 1)))
            last = place.number + group.num_rows
            for batch in file.iter_batches(most, row_groups=[index], columns=_wanted(names), use_threads=False):
                first = place.number + 1
                place.number += batch.num_rows
                done = place.before + size * place.number // file.metadata.num_rows
                yield Batch(place.prefix, done, first, batch, names)
            if place.number < last:
                raise Broken("has fewer rows than it says")


@contextmanager
def lean_memory() -> Iterator[None]:
    """Let Arrow give back what it has freed: its own pool keeps 50 MB in each process."""
    import pyarrow as pa

    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def _wanted(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in _WANTED] or list(names)


@contextmanager
def _damage_named() -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise Broken("is no parquet file that can be read, or not a whole one") from error


def _inflated(path: Path, scratch: Path) -> Path:
    """Return a file that can be read from its end, as parquet is."""
    target = scratch / f"{len(list(scratch.iterdir()))}.parquet"
    with opened(path) as (_, content), target.open("wb") as plain:
        shutil.copyfileobj(io.BufferedReader(content), plain, BLOCK)
    return target


def tables(source: Iterator[pyarrow.Table], place: Place) -> Iterator[Batch]:
    """Yield the rows of Arrow tables.

    :param source: the tables.
    :param place: is kept up to date.
    :yields: a chunk of rows.
    """
    for table in source:
        names = tuple(table.column_names)
        for batch in table.select(_wanted(names)).to_batches():
            yield from _pieces(batch, place, names)


def _pieces(batch: Any, place: Place, names: tuple[str, ...]) -> Iterator[Batch]:
    """Yield a batch in pieces of a size that memory can hold several times."""
    most = max(1, min(_MOST_ROWS, BLOCK * batch.num_rows // max(batch.nbytes, 1)))
    for begin in range(0, batch.num_rows, most):
        piece = batch.slice(begin, most)
        first = place.number + 1
        place.number += piece.num_rows
        yield Batch(place.prefix, 0, first, piece, names)


def _rows(batch: Any) -> Iterator[Any]:
    """Yield rows as dicts; Arrow does not look at the bytes of a text, so they may be no UTF-8."""
    import pyarrow as pa

    try:
        cells = [_values(column) for column in batch.columns]
    except (UnicodeDecodeError, pa.ArrowException):
        half = batch.num_rows // 2
        if not half:
            yield Reason("it is not UTF-8")
            return
        yield from _rows(batch.slice(0, half))
        yield from _rows(batch.slice(half))
        return
    names = batch.schema.names
    for row in zip(*cells, strict=True):
        yield dict(zip(names, row, strict=True))


def _values(array: Any) -> list[Any]:
    """Return what ``array.to_pylist()`` returns, for texts, lists and structs in a tenth of its time.

    A struct's keys without a value are left out, since Arrow gives every message the keys of all.
    """
    import pyarrow.types as is_type

    kind = array.type
    if is_type.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if is_type.is_string(kind) or is_type.is_large_string(kind):
        return array.to_numpy(zero_copy_only=False).tolist()
    if is_type.is_list(kind) or is_type.is_large_list(kind):
        offsets = array.offsets.to_pylist()
        first, last = offsets[0] if offsets else 0, offsets[-1] if offsets else 0
        items = _values(array.values.slice(first, last - first))
        found: list[Any] = [items[begin - first : end - first] for begin, end in pairwise(offsets)]
    elif is_type.is_struct(kind) and kind.num_fields:
        names = [field.name for field in kind]
        fields = [_values(array.field(index)) for index in range(len(names))]
        found = [dict(zip(names, cells, strict=True)) for cells in zip(*fields, strict=True)]
        if any(array.field(index).null_count for index in range(len(names))):
            found = [{name: value for name, value in item.items() if value is not None} for item in found]
    else:
        return array.to_pylist()
    if array.null_count:
        return [item if valid else None for item, valid in zip(found, array.is_valid().to_pylist(), strict=True)]
    return found
