"""Rows of parquet files and of Arrow tables, in chunks that can be converted one by one."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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


@dataclass(frozen=True)
class Slice:
    """Rows of a parquet file that whoever converts them reads as well: to hand them over would take as long again.

    * ``group``, ``begin``, ``most``: the row group, the first row in it, and how many to read
    * ``names``: all columns of the file, also those that are not read
    """

    prefix: str
    done: int
    first: int
    path: Path
    file: str
    group: int
    begin: int
    most: int
    names: tuple[str, ...]

    def rows(self) -> Iterator[tuple[int, Any, bytes]]:
        for number, row in enumerate(_rows(self.batch), start=self.first):
            yield number, row, b""

    @property
    def batch(self) -> pyarrow.RecordBatch:
        """The rows, read anew unless they were the last that this process has read."""
        with Place(self.file, self.prefix, "row", number=self.first - 1).named():
            return _GroupReader.of(self).read(self.begin)


class _GroupReader:
    """Reads one row group from its beginning on, in batches of one size; a process keeps the one it used last."""

    _last: ClassVar[tuple[tuple[Path, int, int], _GroupReader] | None] = None

    def __init__(self, piece: Slice) -> None:
        import pyarrow.parquet as pq

        self._begin, self._batch = 0, None
        with _damage_named():
            file = pq.ParquetFile(piece.path, buffer_size=BLOCK // 4, pre_buffer=False)
            self._batches = file.iter_batches(
                piece.most, row_groups=[piece.group], columns=_wanted(piece.names), use_threads=False
            )

    @classmethod
    def forget(cls) -> None:
        """Let go of what is kept: another file may come under the same name."""
        cls._last = None

    @classmethod
    def of(cls, piece: Slice) -> _GroupReader:
        key = (piece.path, piece.group, piece.most)
        if cls._last is None or cls._last[0] != key or cls._last[1]._begin > piece.begin:
            cls._last = (key, cls(piece))
        return cls._last[1]

    def read(self, begin: int) -> Any:
        """Return the batch that begins at a row; those before it are read and let go."""
        with _damage_named():
            while self._batch is None or self._begin < begin:
                self._begin += self._batch.num_rows if self._batch else 0
                self._batch = next(self._batches, None)
                if self._batch is None:
                    raise Broken("has fewer rows than it says")
        return self._batch


def parquet(path: Path, place: Place) -> Iterator[Slice]:
    """Yield the rows of a parquet file; of its columns only those that a form has are read.

    :param path: of the file.
    :param place: is kept up to date.
    :yields: a chunk of rows.
    """
    # What converting imports, pandas with the first text that Arrow hands to Python: once here, not in each process.
    import pandas  # noqa: F401
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet as pq

    size = path.stat().st_size
    if is_compressed(path):
        path = _inflated(path, place.scratch)
    with _damage_named():
        file = pq.ParquetFile(path)
    names = tuple(file.schema_arrow.names)
    # Arrow's own pool keeps what is freed: 50 MB more in each process.
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            most = max(1, min(_MOST_ROWS, BLOCK // 2 * group.num_rows // max(group.total_byte_size, 1)))
            for begin in range(0, group.num_rows, most):
                first, rows = place.number + 1, min(most, group.num_rows - begin)
                place.number += rows
                done = place.before + size * place.number // file.metadata.num_rows
                yield Slice(place.prefix, done, first, path, place.file, index, begin, most, names)
    finally:
        pa.set_memory_pool(usual)
        _GroupReader.forget()


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
