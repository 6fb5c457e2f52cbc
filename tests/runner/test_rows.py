"""One pass over a data set: what is used, left out and worth a look is counted and named by its place.

* canonical rows, their places, the fingerprint; the same by one process and by several
* reasons and places of rows that are left out; duplicates, repeated ids, empty answers, columns left out
* what ends the pass: no row, no known form, no usable row, a change of the file, a killed process
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner.data import chunks, counts, pool, reading, rows
from airflow_provider_finetune.runner.data.counts import Dropped, Found
from airflow_provider_finetune.runner.data.locate import of_files
from airflow_provider_finetune.runner.data.part import Part
from airflow_provider_finetune.runner.failures import RunFailed, UserError

GOOD = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'


def chat(question: str, answer: str = "a", **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **more,
    }


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(tmp_path: Path, *contents: bytes, suffix: str = "jsonl") -> rows.Structure:
    """Read a data set of one file or of several."""
    paths = [tmp_path / f"{letter}.{suffix}" for letter in "abcdef"[: len(contents)]]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    source = of_files(paths, name="rows", argument="dataset", say=print, root=tmp_path if len(paths) > 1 else None)
    return rows.read(source, tmp_path / "data" / "rows.out", print)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD,
        GOOD + b"\r\n" + GOOD + b"\r\n",
        b"\n  \n" + GOOD + b"\n\n" + GOOD + b"\n\n",
        GOOD + b"\n" + b'{"messages": [], ' + GOOD[1:],
        GOOD + b"\n" + b'{"score": NaN, ' + GOOD[1:],
        GOOD + b"\n" + b'{"line": 7, "text": "x", ' + GOOD[1:],
        GOOD + b"\n" + GOOD.replace(b'"a"', b'"' + b"long " * 400_000 + b'"'),
    ],
    ids=["BOM", "CRLF", "empty lines", "duplicate key", "NaN beside the messages", "keys of ours", "2 MB in a line"],
)
def test_chats_are_read_however_they_are_written(tmp_path: Path, content: bytes) -> None:
    found = read(tmp_path, content)
    assert (found.rows, found.usable, found.form, found.format) == (2, 2, "messages", "jsonl")
    assert (found.sha256, found.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    kept = list(rows.rows(found.path))
    assert [(row.messages or [{}])[0]["content"] for row in kept] == ["q", "q"]
    assert [row.text for row in kept] == [None, None]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"messages": [', "it is not JSON"),
        (b"[" * 200_000, "it is not JSON"),
        (b'{"n": ' + b"1" * 5000 + b"}", "it is not JSON"),
        (b'{"messages": "\xff\xfe"}', "it is not UTF-8"),
        (b"[1]", "it has no list 'messages'"),
        (b'"it is text"', "it has no list 'messages'"),
        (b'{"messages": [{"role": "user", "content": NaN}]}', "a message has no text in 'content'"),
        (
            b'{"messages": [{"role": "assistant", "content": "\\ud83d"}]}',
            "its text has half of a character (a lone surrogate such as \\ud83d)",
        ),
        (
            b'{"messages": [{"from": "gpt", "value": "\\uDE00"}]}',
            "its text has half of a character (a lone surrogate such as \\ud83d)",
        ),
        (b'{"text": "t"}', "it has the form 'text', and the data set the form 'messages'"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted_by_reason_and_line_and_left_out(
    tmp_path: Path, row: bytes, reason: str
) -> None:
    found = read(tmp_path, GOOD + b"\n" + row + b"\n" + GOOD)
    ((said, count),) = found.dropped.rows.items()
    assert said.startswith(reason)
    assert (count, found.dropped.lines[said]) == (1, ["2"])
    assert [row.line for row in rows.rows(found.path)] == ["1", "3"]


def test_a_pair_of_surrogates_is_a_character_and_one_in_a_column_that_is_not_used_does_no_harm(tmp_path: Path) -> None:
    found = read(tmp_path, lines(chat("\U0001f600"), chat("q", note="\ud83d")))
    assert found.usable == 2
    assert [(row.messages or [])[0]["content"] for row in rows.rows(found.path)] == ["\U0001f600", "q"]


def test_forms_other_than_chats_are_converted_and_keep_their_line(tmp_path: Path) -> None:
    content = 'instruction,input,output\n"Say ""hi""",,"ü\n2"\nx,y,z\n'
    found = read(tmp_path, content.encode(), suffix="csv")
    assert (found.form, found.usable) == ("alpaca", 2)
    assert [(row.line, [message["content"] for message in row.messages or []]) for row in rows.rows(found.path)] == [
        ("2", ['Say "hi"', "ü\n2"]),
        ("4", ["x\n\ny", "z"]),
    ]


def test_a_text_is_no_chat_even_where_messages_stand_beside_it(tmp_path: Path) -> None:
    found = read(tmp_path, lines({"text": "one"}, {"text": "two", "messages": chat("q")["messages"]}))
    assert found.form == "text"
    assert list(rows.rows(found.path)) == [rows.Row("1", None, "one"), rows.Row("2", None, "two")]


def test_the_form_is_that_of_the_first_row_that_has_one(tmp_path: Path) -> None:
    found = read(tmp_path, b'{"x": 1}\nbroken\n' + lines({"text": "t"}, chat("q")))
    assert found.form == "text"
    assert found.dropped.rows == {
        "it has no text in 'text'": 1,
        "it is not JSON (Expecting value)": 1,
        "it has the form 'messages', and the data set the form 'text'": 1,
    }


def test_places_name_the_file_where_there_are_several(tmp_path: Path) -> None:
    found = read(tmp_path, lines(chat("1"), chat("2")), b"broken\n" + lines(chat("2"), chat("3")))
    assert [row.line for row in rows.rows(found.path)] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:2", "b.jsonl:3"]
    assert found.dropped.describe() == "1 row: it is not JSON (Expecting value) (b.jsonl:1)"
    assert found.repeated == Found(1, ["b.jsonl:2"])
    digests = [(label, hashlib.sha256((tmp_path / label).read_bytes()).hexdigest()) for label in ("a.jsonl", "b.jsonl")]
    listing = "".join(f"{digest}  {label}\n" for label, digest in digests)
    assert found.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert found.name == "rows (2 files)"


def test_rows_of_an_array_are_named_by_their_number(tmp_path: Path) -> None:
    found = read(tmp_path, json.dumps([chat("1"), {}, chat("1")], indent=1).encode(), suffix="json")
    assert [row.line for row in rows.rows(found.path)] == ["row 1", "row 3"]
    assert found.dropped.describe() == "1 row: it has no list 'messages' (row 2)"
    assert found.repeated.where == "row 3"


def test_what_is_worth_a_look_is_counted_with_places_and_reaches_the_outcome(tmp_path: Path) -> None:
    quiet = chat("5")
    quiet["messages"] += [{"role": "user", "content": "more"}, {"role": "assistant", "content": ""}]
    found = read(
        tmp_path,
        lines(
            chat("1", id="a", topic="x"),
            chat("2", id="b"),
            chat("1", id="c"),
            chat("4", id="a"),
            quiet,
            chat("1"),
            chat("7", id=-1),
            chat("8", id=-2),
            {},
        ),
    )
    assert found.repeated == Found(2, ["3", "6"])
    assert found.repeated_ids == Found(1, ["4"])
    assert found.empty_answers == Found(1, ["5"])
    assert found.columns_left_out == ("topic",)


def test_rows_are_drawn_evenly_from_the_whole_file(tmp_path: Path) -> None:
    found = read(tmp_path, lines(*(chat(str(number)) for number in range(100))))
    drawn = [int(row.line) for row in rows.evenly(found.path, found.usable, 10)]
    assert drawn == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    assert len(list(rows.evenly(found.path, found.usable, 99))) == 99
    assert len(list(rows.evenly(found.path, found.usable, 1000))) == 100


@pytest.mark.parametrize("compressed", [False, True])
def test_several_processes_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    content = b"".join(
        lines(chat(f"{number % 900} ü\n", id=number % 950)) if number % 100 else b"{broken\n\n"
        for number in range(1000)
    )
    content, suffix = (gzip.compress(content), "jsonl.gz") if compressed else (content, "jsonl")
    monkeypatch.setattr(reading, "BLOCK", 4096)
    alone = read(tmp_path, content, suffix=suffix)
    canonical = alone.path.read_bytes()
    monkeypatch.setattr(pool, "workers_for", lambda size: 2)
    shared = read(tmp_path, content, suffix=suffix)
    assert shared.path.read_bytes() == canonical
    assert shared == alone
    assert (alone.rows, alone.dropped.total, alone.repeated.count, alone.repeated_ids.count) == (1000, 10, 99, 49)
    assert alone.dropped.lines == {
        "it is not JSON (Expecting property name enclosed in double quotes)": [
            str(1 + number + number // 100) for number in range(0, 1000, 100)
        ]
    }


def test_a_file_that_is_cut_off_ends_the_pass_also_where_processes_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK", 4096)
    monkeypatch.setattr(pool, "workers_for", lambda size: 2)
    content = gzip.compress(b"".join(lines(chat(str(number * 7919))) for number in range(2000)))
    with pytest.raises(UserError, match=r"its gzip stream has no end, after line \d+$"):
        read(tmp_path, content[:-100], suffix="jsonl.gz")


def test_many_places_of_one_reason_are_named_in_part() -> None:
    dropped = Dropped()
    for line in range(1, 100):
        dropped.add(str(line), "it is not UTF-8")
    more = Dropped()
    more.add("100", "it is not JSON")
    more.add("101", "it is not UTF-8")
    dropped.absorb(more)
    assert dropped.describe() == "100 rows: it is not UTF-8 (line 1, 2, 3, 4, 5, …); 1 row: it is not JSON (line 100)"
    assert len(dropped.lines["it is not UTF-8"]) == counts.LINES_KEPT


def test_of_many_reasons_and_columns_some_are_told_apart_and_every_row_is_counted(tmp_path: Path) -> None:
    cells = b"".join(b"q,a" + b",x" * number + b"\n" for number in range(100))
    found = read(tmp_path, b"prompt,completion\n" + cells, suffix="csv")
    assert (found.rows, found.usable, found.dropped.total) == (100, 1, 99)
    assert len(found.dropped.rows) == counts.REASONS_KEPT + 1
    assert found.dropped.rows["other reasons"] == 99 - counts.REASONS_KEPT
    assert found.dropped.lines["other reasons"][0] == str(counts.REASONS_KEPT + 3)
    wide: dict[str, Any] = {f"column {number}": number for number in range(100)}
    assert len(read(tmp_path, lines(chat("q", **wide))).columns_left_out) < 50


@pytest.mark.parametrize(
    ("suffix", "content", "cause", "said"),
    [
        ("jsonl", b"", "dataset_empty", "has no row"),
        ("jsonl", b"\n\n", "dataset_empty", "has no row"),
        ("csv", b"prompt,completion\n", "dataset_empty", "has no row"),
        ("json", b"[]", "dataset_empty", "has no row"),
        ("jsonl", b'{"q": 1, "a": 2}\n', "dataset_form_unknown", "its columns are 'q', 'a'"),
        ("csv", b"q;a\n1;2\n", "dataset_form_unknown", "its columns are 'q;a'"),
        ("csv", b"What is the one secret of this row?,b\n1,2\n", "dataset_form_unknown", "line that names them"),
        ("jsonl", b"broken\n{\n", "dataset_unusable", "no usable row among 2: .*line 1"),
        ("jsonl", b'{"messages": []}\n', "dataset_unusable", "1 row: it has no list 'messages' .line 1"),
        ("json", b'[{"text": "one"}, {"te', "dataset_truncated", "rows is cut off in the middle of a row, after row 1"),
    ],
)
def test_data_without_rows_to_train_on_is_the_users_to_mend(
    tmp_path: Path, suffix: str, content: bytes, cause: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        read(tmp_path, content, suffix=suffix)
    assert raised.value.failure.cause == cause
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("content", [lines(chat("q")) * 3, b"{broken"], ids=["good rows", "half a row"])
def test_a_file_that_changes_while_it_is_read_is_an_error_that_a_retry_may_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    of = chunks.of

    def while_it_grows(source: Any, scratch: Path) -> Any:
        yield from of(source, scratch)
        with source.files[0].open("ab") as file:
            file.write(lines(chat("more")))

    monkeypatch.setattr(chunks, "of", while_it_grows)
    with pytest.raises(RunFailed) as raised:
        read(tmp_path, content)
    assert (raised.value.failure.failure_class, raised.value.failure.cause) == ("infrastructure", "dataset_changed")


def test_a_long_pass_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 1 << 20)
    monkeypatch.setattr(rows, "_SECONDS_BETWEEN_LINES", 0.0)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(chat("long " * 100)) * 4000)
    said: list[str] = []
    rows.read(of_files([path], name="rows", argument="", say=said.append), tmp_path / "out", said.append)
    assert said[-1] == "data: 4000 rows are read, 2 of 2 MB"
    assert len(said) == 3


def _killed(item: int) -> Part:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return Part("", 0)


def _failing(item: int) -> Part:
    if item == 3:
        raise UserError("cause", "message", "cure")
    return Part("", 0, canonical=b"x")


def test_a_process_that_is_killed_is_an_error_and_no_wait_for_ever() -> None:
    with pytest.raises(RunFailed, match="was killed") as raised:
        list(pool.in_order(_killed, range(100), 2, 1))
    assert raised.value.failure.failure_class == "infrastructure"


def test_what_ends_one_process_ends_the_pass_as_what_it_is(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as target, pytest.raises(UserError, match="message") as raised:
        list(pool.in_order(_failing, range(100), 2, target.fileno()))
    assert raised.value.failure.cure == "cure"


def _full(item: str) -> Part:
    return Part("", 0, canonical=item.encode())


def test_a_disk_that_is_full_for_one_process_is_said() -> None:
    with Path("/dev/full").open("wb") as target, pytest.raises(OSError, match="No space left"):
        list(pool.in_order(_full, "several", 2, target.fileno()))


def _pid(_: int) -> Part:
    return Part("", os.getpid())


def test_no_process_outlives_the_one_that_started_it() -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        parts = pool.in_order(_pid, iter(range(1000)), 2, write_end)
        os.write(write_end, " ".join(str(next(parts).done) for _ in range(3)).encode())
        time.sleep(60)
        os._exit(0)
    helpers = {int(pid) for pid in os.read(read_end, 1000).split()}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until = time.monotonic() + 10
    while any(_runs(pid) for pid in helpers):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.close(read_end)
    os.close(write_end)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_small_data_starts_no_process() -> None:
    assert pool.workers_for((16 << 20) - 1) == 0
