"""Rows of CSV, in chunks that can be converted one by one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_provider_finetune.runner.data.counts import Reason
from airflow_provider_finetune.runner.data.files import BLOCK, LONGEST_ROW, Broken, CutOff, Place, opened
from airflow_provider_finetune.runner.data.reading import NOT_UTF8, Parsed, is_utf8, parse


def table(path: Path, place: Place) -> Iterator[Parsed]:
    """Yield the rows of a CSV file whose first line names the columns.

    :param path: of the file.
    :param place: is kept up to date.
    :yields: a chunk of rows.
    :raises Damaged: the file ends too early, or is not of this format.
    """
    with opened(path) as (raw, content):
        text = io.TextIOWrapper(io.BufferedReader(content), encoding="utf-8-sig", errors="surrogateescape", newline="")
        csv.field_size_limit(LONGEST_ROW)
        reader = csv.reader(text, strict=True)
        names = _header(reader)
        place.number = reader.line_num
        rows: list[tuple[int, Any]] = []
        begun = place.done(raw)
        for number, row in _cells(reader, names, place):
            rows.append((number, row))
            if place.done(raw) - begun >= BLOCK or len(rows) == 10_000:
                yield Parsed(place.prefix, place.done(raw), rows)
                rows, begun = [], place.done(raw)
        yield Parsed(place.prefix, place.done(raw), rows)


def _header(reader: Any) -> list[str]:
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise Broken("is not CSV: its first line must name the columns") from error
    if "" in names or len(set(names)) < len(names):
        raise Broken("does not name its columns in the first line, each with a name of its own")
    return names


def _cells(reader: Any, names: list[str], place: Place) -> Iterator[tuple[int, Any]]:
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field limit" in str(error):
                raise CutOff(f"has a quote that opens in line {number} and is not closed") from error
            yield number, Reason(f"it is not CSV ({error})")
            continue
        finally:
            place.number = reader.line_num
        if cells:
            yield number, _row(names, cells)


def _row(names: list[str], cells: list[str]) -> Any:
    if len(cells) != len(names):
        return Reason(f"it has {len(cells)} cells, and the first line names {len(names)} columns")
    row: dict[str, Any] = dict(zip(names, cells, strict=True))
    if not is_utf8("".join(cells)):
        return NOT_UTF8
    for name in ("messages", "conversations", "history"):
        if row.get(name):
            row[name] = parse(row[name].strip().encode())
            if isinstance(row[name], Reason):
                return Reason(f"its '{name}' is not JSON")
    return row
