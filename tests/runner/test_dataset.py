"""Chat rows are read as they are written in the wild, and whatever cannot be used is counted with its reason.

* encodings, line ends, empty lines, duplicate keys, numbers that JSON lacks
* what is wrong with a row, by line; how many may be
* files that are missing, cannot be read, or change while they are read
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from airflow_provider_finetune.runner import dataset
from airflow_provider_finetune.runner.dataset import Dropped
from airflow_provider_finetune.runner.failures import RunFailed, UserError

GOOD = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'


def rows_file(tmp_path: Path, content: bytes) -> Path:
    """Write a data set."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD,
        GOOD + b"\r\n" + GOOD + b"\r\n",
        b"\n  \n" + GOOD + b"\n\n" + GOOD + b"\n\n",
        GOOD + b"\n" + b'{"messages": [], ' + GOOD[1:],
        GOOD + b"\n" + b'{"score": NaN, ' + GOOD[1:],
        GOOD + b"\n" + GOOD.replace(b'"a"', b'"' + b"long " * 400_000 + b'"'),
    ],
    ids=["BOM", "CRLF", "empty lines", "duplicate key: the last counts", "NaN beside the messages", "2 MB in a line"],
)
def test_rows_are_read_however_they_are_written(tmp_path: Path, content: bytes) -> None:
    path = rows_file(tmp_path, content)
    found = dataset.check_structure(path)
    assert (found.rows, found.usable) == (2, 2)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert [messages[0]["content"] for _, messages in dataset.chat_rows(path)] == ["q", "q"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"messages": [', "it is not JSON"),
        (b"[" * 200_000, "it is not JSON"),
        (b'{"n": ' + b"1" * 5000 + b"}", "it is not JSON"),
        (b'{"messages": "\xff\xfe"}', "it is not UTF-8"),
        (b"[1]", "it has no list 'messages'"),
        (b'{"messages": {}}', "it has no list 'messages'"),
        (b'{"messages": ["q"]}', "a message has no 'role'"),
        (b'{"messages": [{"role": "user", "content": NaN}]}', "a message has no text in 'content'"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud83d"}]}', "a message has half of a character"),
        (b'{"messages": [{"role": "user", "content": "q"}]}', "it has no assistant message with text"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted_by_reason_and_line_and_left_out(
    tmp_path: Path, row: bytes, reason: str
) -> None:
    path = rows_file(tmp_path, GOOD + b"\n" + row + b"\n" + GOOD)
    found = dataset.check_structure(path)
    ((said, count),) = found.dropped.rows.items()
    assert said.startswith(reason)
    assert (count, found.dropped.lines[said]) == (1, [2])
    assert [line for line, _ in dataset.chat_rows(path)] == [1, 3]


def test_many_lines_with_one_reason_are_named_in_part() -> None:
    dropped = Dropped()
    for line in range(1, 100):
        dropped.add(line, "it is not UTF-8")
    dropped.add(100, "it is not JSON")
    assert dropped.describe() == "99 rows: it is not UTF-8 (line 1, 2, 3, 4, 5, …); 1 row: it is not JSON (line 100)"
    assert len(dropped.lines["it is not UTF-8"]) == dataset.LINES_KEPT


@pytest.mark.parametrize(("count", "max_dropped", "fails"), [(1, 0.01, False), (2, 0.01, True), (0, 0, False)])
def test_more_than_the_allowed_share_is_an_error(count: int, max_dropped: float, fails: bool) -> None:
    dropped = Dropped()
    for line in range(count):
        dropped.add(line, "it is not UTF-8")
    if not fails:
        dataset.ensure_few_dropped(100, dropped, max_dropped)
        return
    with pytest.raises(UserError, match="2 of 100 rows") as raised:
        dataset.ensure_few_dropped(100, dropped, max_dropped)
    assert "max_dropped" in raised.value.failure.cure


def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path: Path) -> None:
    (tmp_path / "ROWS.JSONL").write_bytes(GOOD)
    assert dataset.locate(str(tmp_path / "ROWS.JSONL")) == tmp_path / "ROWS.JSONL"


@pytest.mark.parametrize(
    ("name", "cause"),
    [("nowhere.jsonl", "dataset_missing"), ("", "dataset_format"), ("x" * 300 + ".jsonl", "dataset_unreadable")],
)
def test_what_is_no_data_set_is_the_users_to_mend(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(UserError, match="eval_data_path") as raised:
        dataset.locate(str(tmp_path / name), "eval_data_path")
    assert raised.value.failure.cause == cause


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_the_users_to_mend(tmp_path: Path) -> None:
    rows_file(tmp_path, GOOD).chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        dataset.locate(str(tmp_path / "rows.jsonl"))


def test_a_file_that_changes_while_it_is_read_is_an_error_that_a_retry_may_cure(tmp_path: Path) -> None:
    path = rows_file(tmp_path, GOOD)
    found = dataset.check_structure(path)
    dataset.ensure_unchanged(found)
    with path.open("a") as file:
        file.write("\n" + json.dumps({"messages": []}))
    with pytest.raises(RunFailed) as raised:
        dataset.ensure_unchanged(found)
    assert (raised.value.failure.failure_class, raised.value.failure.cause) == ("infrastructure", "dataset_changed")
