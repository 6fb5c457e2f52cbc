"""Rows are read as they are written in the wild, and of a damaged file it is said how far it could be read.

* JSONL: encodings, line ends, empty lines, what is no JSON; lines that are longer than what is read at once
* JSON: arrays read in parts; CSV: quotes, line numbers, cells of JSON
* gzip: in several members, cut off, damaged
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner.data import files, reading, tabular
from airflow_provider_finetune.runner.data.files import Place
from airflow_provider_finetune.runner.failures import UserError

READERS: dict[str, Any] = {"jsonl": reading.lines, "json": reading.array, "csv": tabular.table}


def read(path: Path) -> list[tuple[int, Any]]:
    """Return number and row of all."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    place = Place(path.name, "", "row" if kind == "json" else "line")
    with place.named():
        return [(number, row) for chunk in READERS[kind](path, place) for number, row, _ in chunk.rows()]


@pytest.fixture(params=["", ".gz"], ids=["plain", "gzip"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Write a file of each kind, and another time compressed."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / (name + request.param)
        path.write_bytes(gzip.compress(content) if request.param else content)
        return path

    return write


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read 16 bytes at a time."""
    monkeypatch.setattr(reading, "BLOCK", 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'{"a": 1}\n{"a": 2}', [(1, {"a": 1}), (2, {"a": 2})]),
        (b'\xef\xbb\xbf{"a": 1}\n', [(1, {"a": 1})]),
        (b'{"a": 1}\r\n{"a": 2}\r\n', [(1, {"a": 1}), (2, {"a": 2})]),
        (b'\n  \n{"a": 1}\n\n{"a": 2}\n\n', [(3, {"a": 1}), (5, {"a": 2})]),
        (b'{"a": 0, "a": 1}\n', [(1, {"a": 1})]),
        (b'{"long": "' + b"x" * 5000 + b'"}\n{"a": 1}\n', [(1, {"long": "x" * 5000}), (2, {"a": 1})]),
        ('{"a": "ü\u2028"}\n{"a": "😀"}'.encode(), [(1, {"a": "ü\u2028"}), (2, {"a": "😀"})]),
        (b"", []),
    ],
    ids=["plain", "BOM", "CRLF", "empty lines", "duplicate key: the last counts", "long", "UTF-8", "empty"],
)
def test_lines_are_read_however_they_are_written(write: Any, content: bytes, rows: list[Any]) -> None:
    assert read(write("rows.jsonl", content)) == rows


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "it is not JSON (Expecting value)"),
        (b"{'messages': []}", "it is not JSON (Expecting property name enclosed in double quotes)"),
        (b'{"a": 1} {"a": 2}', "it is not JSON (Extra data)"),
        (b'{"a": "\\x"}', "it is not JSON (Invalid \\escape)"),
        (b"}", "it is not JSON (Expecting value)"),
        (b"[" * 200_000, "it is not JSON that can be read"),
        (b'{"n": ' + b"1" * 5000 + b"}", "it is not JSON that can be read"),
        (b'{"messages": "\xff\xfe"}', "it is not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "it is not JSON (Expecting property name enclosed in double quotes)"),
    ],
)
def test_a_line_that_cannot_be_read_is_left_out_with_its_reason(write: Any, line: bytes, reason: str) -> None:
    assert read(write("rows.jsonl", b"{}\n" + line + b"\n{}")) == [(1, {}), (2, reason), (3, {})]


def test_a_line_without_an_end_is_an_error_before_it_fills_the_memory(
    write: Any, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    monkeypatch.setattr(reading, "LONGEST_ROW", 1 << 20)
    with pytest.raises(UserError, match=r"has a line of more than 1 MB, after line 1$"):
        read(write("rows.jsonl", b"{}\n" + b" " * (2 << 20)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'[{"a": 1}, {"a": 2}]', [(1, {"a": 1}), (2, {"a": 2})]),
        (b'\xef\xbb\xbf [\n {\n  "a": 1\n }\n]\n', [(1, {"a": 1})]),
        (b"[]", []),
        (b"[1234567890123, true, null, 12345678901]", [(1, 1234567890123), (2, True), (3, None), (4, 12345678901)]),
        (b'["' + b"x" * 5000 + b'", 1]', [(1, "x" * 5000), (2, 1)]),
        ('["\\ud83d\\ude00", "ü", "😀"]'.encode(), [(1, "😀"), (2, "ü"), (3, "😀")]),
        (b'["\xff", "a"]', [(1, "it is not UTF-8"), (2, "a")]),
    ],
)
def test_an_array_is_read_in_parts_wherever_they_end(write: Any, content: bytes, rows: list[Any]) -> None:
    assert read(write("rows.json", content)) == rows


def test_an_array_that_ends_anywhere_too_early_is_cut_off(write: Any, small_blocks: None) -> None:
    whole = json.dumps([{"a": "text of a row", "n": -1.5e3, "x": [True, None]}, {"b": "\n😀"}]).encode()
    for end in range(1, len(whole)):
        with pytest.raises(UserError, match="is cut off") as raised:
            read(write("rows.json", whole[:end]))
        assert raised.value.failure.cause == "dataset_truncated"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": 1}, {"a": x}, {"a": 3}' + b" " * 20, "rows.json.* is not JSON .Expecting value., after row 1"),
        (b'[{"a": 1} {"a": 2}]', "is not JSON, after row 1"),
        (b'[{"a": 1}] [2]', "has more behind the end of its array, after row 1"),
        (b"[" * 200_000, "is not JSON that can be read"),
        (b'"text"', "is no array of rows"),
        (b"", "is empty"),
    ],
)
def test_an_array_that_is_broken_says_after_which_row(write: Any, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        read(write("rows.json", content))
    assert raised.value.failure.cause == "dataset_broken"


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"a,b\n1,2\n", [(2, {"a": "1", "b": "2"})]),
        (b'\xef\xbb\xbfa, b \r\n"x\ny",2\r\n\r\n3,4', [(2, {"a": "x\ny", "b": "2"}), (5, {"a": "3", "b": "4"})]),
        (b'a\n"' + b"x" * 200_000 + b'"\n', [(2, {"a": "x" * 200_000})]),
        (
            b"a,b\n1\n1,2,3\n1,2\n",
            [
                (2, "it has 1 cells, and the first line names 2 columns"),
                (3, "it has 3 cells, and the first line names 2 columns"),
                (4, {"a": "1", "b": "2"}),
            ],
        ),
        (b"a\n\xff\nx\n", [(2, "it is not UTF-8"), (3, {"a": "x"})]),
        (b'a\n"x" y\nz\n', [(2, "it is not CSV (',' expected after '\"')"), (3, {"a": "z"})]),
        (
            b'messages,n\n"[{""role"": ""user""}]",1\n"[{\'role\': \'user\'}]",1\n',
            [(2, {"messages": [{"role": "user"}], "n": "1"}), (3, "its 'messages' is not JSON")],
        ),
        (b"", []),
        (b"a,b\n", []),
    ],
)
def test_csv_is_read_by_the_names_in_its_first_line(write: Any, content: bytes, rows: list[Any]) -> None:
    assert read(write("rows.csv", content)) == rows


@pytest.mark.parametrize(
    ("content", "cause", "said"),
    [
        (b'a,b\n1,2\n"1,2\n3,4\n', "dataset_truncated", "a quote that opens in line 3 and is not closed"),
        (b"a,,b\n1,2,3\n", "dataset_broken", "does not name its columns in the first line"),
        (b"1,1\n1,2\n", "dataset_broken", "does not name its columns in the first line"),
    ],
)
def test_csv_that_is_damaged_says_where(write: Any, content: bytes, cause: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        read(write("rows.csv", content))
    assert raised.value.failure.cause == cause


LINES = b"".join(b'{"a": %d}\n' % (number * 7919 % 1000) for number in range(3000))


@pytest.mark.parametrize("padding", [b"", b"\0" * 100], ids=["", "zeros between"])
def test_gzip_in_several_members_is_one_file(tmp_path: Path, padding: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LINES) + padding + gzip.compress(LINES) + padding)
    assert len(read(path)) == 6000


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz"])
def test_gzip_that_is_cut_off_says_after_which_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'"a"\n' + LINES if "csv" in name else LINES)[:-2000])
    with pytest.raises(UserError, match=r"is cut off: its gzip stream has no end, after line \d+") as raised:
        read(path)
    assert raised.value.failure.cause == "dataset_truncated"


def test_gzip_that_is_none_or_damaged_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(LINES)
    with pytest.raises(UserError, match="is no gzip file"):
        read(path)
    damaged = bytearray(gzip.compress(LINES))
    damaged[-6] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="no gzip file, or a damaged one"):
        read(path)


def test_a_line_in_gzip_may_be_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'"' + b"x" * (3 * files.BLOCK) + b'"\n1'))
    (_, first), (number, last) = read(path)
    assert (len(first), number, last) == (3 * files.BLOCK, 2, 1)
