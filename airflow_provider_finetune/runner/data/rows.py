"""One pass over all rows of a data set: recognised, checked, converted to one file of canonical rows.

A canonical row is a line of JSON with ``messages``, ``text``, or ``input_ids`` and ``labels``, and with ``line``, its
place in the source. It does not matter any more where the data came from and how it was written.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_finetune.runner.data import chunks, forms, pool
from airflow_provider_finetune.runner.data.counts import Dropped, Found, Hashes
from airflow_provider_finetune.runner.data.fingerprint import Digest, ensure_unchanged, stamps
from airflow_provider_finetune.runner.data.part import Part, form_of
from airflow_provider_finetune.runner.data.source import Source
from airflow_provider_finetune.runner.failures import UserError

_SECONDS_BETWEEN_LINES = 10.0
_COLUMNS_KEPT = 50


class Row(NamedTuple):
    """One row to train on: its place in the source, and either messages, a text, or token ids with their labels."""

    line: str
    messages: list[forms.Message] | None
    text: str | None
    tokens: tuple[list[int], list[int]] | None = None


@dataclass
class Structure:
    """What the pass has found.

    * ``path``: the canonical rows
    * ``form``, ``format``: see :mod:`.forms` and :class:`.Source`
    * ``rows``, ``usable``: how many there are and how many have the right form; ``dropped``: why the others have not
    * ``repeated``: rows whose content was there before; ``repeated_ids``: rows whose ``id`` was there before
    * ``empty_answers``: rows in which the assistant says nothing in one turn, and something in another
    * ``columns_left_out``: columns that are not trained on
    * ``sha256``: of the source's bytes; of tables that of their canonical rows
    * ``bytes``: of the source's files; of tables those of their canonical rows
    """

    name: str
    format: str
    path: Path
    form: str = ""
    rows: int = 0
    dropped: Dropped = field(default_factory=Dropped)
    repeated: Found = field(default_factory=Found)
    repeated_ids: Found = field(default_factory=Found)
    empty_answers: Found = field(default_factory=Found)
    columns_left_out: tuple[str, ...] = ()
    sha256: str = ""
    bytes: int = 0
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """How many rows have the right form."""
        return self.rows - self.dropped.total

    def summary(self) -> dict[str, Any]:
        """Return what ``Outcome.dataset`` has of it."""
        found = {"repeated": self.repeated, "repeated_ids": self.repeated_ids, "empty_answers": self.empty_answers}
        return {
            "name": self.name,
            "form": self.form,
            "format": self.format,
            "sha256": self.sha256,
            **({"identity": self.identity} if self.identity else {}),
            "rows": self.rows,
            "rows_dropped": self.dropped.rows,
            "dropped_lines": self.dropped.lines,
            **{f"rows_{name}": rows.count for name, rows in found.items()},
            **{f"{name}_lines": rows.lines for name, rows in found.items() if rows.count},
            "columns_left_out": list(self.columns_left_out),
        }


def read(source: Source, target: Path, say: Callable[[str], None], form: str = "") -> Structure:
    """Read every row once, without any tokenizer, and write the canonical ones.

    :param source: the data set; it is not needed any more afterwards.
    :param target: file for the canonical rows.
    :param say: is told of a long pass how far it is.
    :param form: that the rows must have; where it is empty, the first row that has one decides.
    :raises UserError: there is no row, none with a known form, or a file is damaged.
    :raises RunFailed: somebody writes to the files.
    """
    before = stamps(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = _Pass(source, target, say, form).run()
    except UserError:
        # A file that grows is read as one that is cut off.
        ensure_unchanged(source, before)
        raise
    ensure_unchanged(source, before)
    return found


class _Pass:
    """The pass over one data set."""

    def __init__(self, source: Source, target: Path, say: Callable[[str], None], form: str) -> None:
        self._source, self._say = source, say
        self._found = Structure(source.name, source.format, target, form, identity=source.identity)
        self._size = sum(path.stat().st_size for path in source.files)
        self._content, self._ids = Hashes(), Hashes()
        self._columns: dict[str, None] = {}
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def run(self) -> Structure:
        found, written = self._found, hashlib.sha256()
        scratch = tempfile.TemporaryDirectory(dir=found.path.parent)
        with (
            scratch,
            found.path.open("wb") as target,
            closing(self._parts(Path(scratch.name), target.fileno())) as parts,
        ):
            first = next(parts, None)
            # Not before the processes are there: a thread is not taken along into them.
            with Digest(self._source) as digest:
                for part in chain([first] if first else [], parts):
                    target.write(part.canonical)
                    if self._source.tables:
                        written.update(part.canonical)
                    self._absorb(part)
                found.sha256 = digest.sha256() if self._source.files else written.hexdigest()
            found.bytes = self._size or target.tell()
        found.repeated, found.repeated_ids = self._content.repeated(), self._ids.repeated()
        self._ensure_usable()
        used = (*forms.columns(found.form), "id")
        found.columns_left_out = tuple(name for name in self._columns if name not in used)
        return found

    def _parts(self, scratch: Path, target: int) -> Generator[Part, None, None]:
        """Yield the converted rows; the form of the first row that has one is the data set's.

        Where processes share the work, they have written them already.
        """
        all_chunks = chunks.of(self._source, scratch)
        for chunk in all_chunks:
            self._found.form = self._found.form or form_of(chunk) or ""
            if self._found.form:
                workers = pool.workers_for(self._size if self._source.format in chunks.SHARED else 0)
                function = chunks.converter(self._found.form, chunk, self._size)
                rest = chain([chunk], all_chunks)
                yield from pool.in_order(function, rest, workers, target) if workers else map(function, rest)
                return
            yield chunks.convert(chunk, "")

    def _absorb(self, part: Part) -> None:
        found = self._found
        found.rows += part.rows
        found.dropped.absorb(part.dropped)
        found.empty_answers.absorb(part.empty_answers)
        self._content.extend(part.hashes, part.numbers, part.prefix)
        self._ids.extend(part.ids, part.id_numbers, part.prefix)
        for name in part.columns:
            if len(self._columns) == _COLUMNS_KEPT:
                break
            self._columns[name] = None
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            of_bytes = f", {part.done >> 20} of {self._size >> 20} MB" if self._size else ""
            self._say(f"data: {found.rows} rows are read{of_bytes}")

    def _ensure_usable(self) -> None:
        found = self._found
        if not found.rows:
            raise UserError("dataset_empty", f"The dataset {found.name} has no row", "Check the task that writes it")
        if not found.form and self._columns:
            raise UserError(
                "dataset_form_unknown",
                f"The dataset {found.name} has none of the known forms; its columns are {_named(self._columns)}",
                f"Name the columns as one of these: {forms.KNOWN}",
            )
        if not found.usable:
            raise UserError(
                "dataset_unusable",
                f"The dataset {found.name} has no usable row among {found.rows}: {found.dropped.describe()}",
                "Mend the rows named",
            )


def _named(columns: dict[str, None]) -> str:
    """Name columns, unless they look like a row: a CSV file without a header has its first row there."""
    if not all(len(name) <= 40 and name.isprintable() and name.count(" ") < 4 for name in columns):
        return "texts, as if the line that names them was missing"
    return ", ".join(map(repr, columns))


def rows(path: Path) -> Iterator[Row]:
    """Yield the canonical rows of a file that :func:`read` has written."""
    with path.open("rb") as lines:
        yield from map(_row, lines)


def evenly(path: Path, total: int, wanted: int) -> Iterator[Row]:
    """Yield ``wanted`` rows that are spread evenly over the file, or all where there are no more.

    :param path: what :func:`read` has written.
    :param total: how many rows it has.
    :param wanted: how many to yield.
    :yields: a row.
    """
    wanted = min(wanted, total)
    taken = 0
    with path.open("rb") as lines:
        for index, line in enumerate(lines):
            if taken < wanted and index == taken * total // wanted:
                taken += 1
                yield _row(line)


def _row(line: bytes) -> Row:
    row = json.loads(line)
    # A row that was a chat stays one, whatever else it has.
    if messages := row.get("messages"):
        return Row(row["line"], messages, None)
    if "text" in row:
        return Row(row["line"], None, row["text"])
    return Row(row["line"], None, None, (row["input_ids"], row["labels"]))
