"""Parquet files and what ``datasets`` saves are read like every other data set, and large files of lines by Arrow.

* forms and types of columns; only the columns of a form are read; places; several processes
* files that are empty, damaged, of other columns; texts that are no UTF-8
* duplicates among many rows
* chunks of chats that are converted as a whole give what their rows give one by one
"""

from __future__ import annotations

import gzip
import json
import random
from array import array
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_finetune.runner.data import chats, chunks, columns, counts, part, pool, reading, rows
from airflow_provider_finetune.runner.data.locate import locate
from airflow_provider_finetune.runner.failures import UserError
from tests.train.conftest import chat


def read(path: Path, **arguments: Any) -> rows.Structure:
    source = locate(str(path), scratch=path.parent / "scratch", say=print, **arguments)
    return rows.read(source, path.parent / "rows.out", print)


def contents(found: rows.Structure) -> list[list[str]]:
    return [[message["content"] for message in row.messages or []] for row in rows.rows(found.path)]


MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))

CHATS = [{**chat(f'{number} "ü"\n', "😀" * (number % 5)), "id": number % 90, "n": number} for number in range(100)]


@pytest.mark.parametrize("workers", [0, 2])
def test_chats_in_parquet_are_read_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(pool, "workers_for", lambda size: workers)
    monkeypatch.setattr(columns, "_MOST_ROWS", 7)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(CHATS), path, row_group_size=30)
    found = read(path)
    assert (found.form, found.rows, found.usable) == ("messages", 100, 80)
    assert found.dropped.lines == {
        "it has no assistant message with text": [f"row {number}" for number in range(1, 101, 5)]
    }
    assert contents(found) == [[m["content"] for m in row["messages"]] for row in CHATS if row["n"] % 5]
    assert [row.line for row in rows.rows(found.path)][:2] == ["row 2", "row 3"]
    assert (found.repeated_ids.count, found.columns_left_out) == (8, ("n",))


ODD = {
    "a message without a text": [{"role": "assistant", "content": None}],
    "no message": [],
    "nothing": None,
    "a control character": chat("\x07", "a\x1f")["messages"],
    "what stands for the JSON around a text": chat("\x19}],\x01", "\x19")["messages"],
}


@pytest.mark.parametrize("odd", [*ODD, None])
def test_whole_batches_are_converted_to_what_single_rows_are(odd: str | None) -> None:
    table = [{**row, "id": row["id"] or None} for row in CHATS] + [chat("q", "\u2028\t\r\\"), chat("e", " \n")]
    table.append({"messages": [*chat("q", "a")["messages"], {"role": '"', "content": ""}]})
    if odd:
        table.append({"messages": ODD[odd]})
    batch = pa.RecordBatch.from_pylist(table, schema=pa.schema({"messages": MESSAGES, "id": pa.int64()}))
    chunk = columns.Batch("x row ", 0, 1001, batch.slice(3), ("messages", "id"))
    single = part.convert(chunk, "messages")
    assert chunks.convert(chunk, "messages") == single
    found = part.Part("x row ", 0, columns=dict.fromkeys(chunk.names))
    assert chats.of_batch(chunk.batch, chunk.first, found) == (odd is None)
    assert found == (single if odd is None else part.Part("x row ", 0, columns=dict.fromkeys(chunk.names)))


def test_a_batch_without_any_answer_is_counted_and_nothing_of_it_is_kept() -> None:
    batch = pa.RecordBatch.from_pylist([chat("q", " ")] * 3, schema=pa.schema({"messages": MESSAGES}))
    found = chunks.convert(columns.Batch("row ", 0, 1, batch), "messages")
    assert (found.rows, found.dropped.total, len(found.canonical), len(found.hashes)) == (3, 3, 0, 0)


def lines(table: list[dict[str, Any]], **how: Any) -> bytes:
    return b"".join(json.dumps(row, **how).encode() + b"\n" for row in table)


def as_one_and_as_single(content: bytes) -> tuple[bool, part.Part, part.Part]:
    """Convert lines as a whole, where that is possible, and one by one."""
    schema = chats.schema_of(CHATS)
    chunk = reading.Lines("x:", 0, 1001, data=PickleBuffer(content))
    found = part.Part("x:", 0)
    could = chats.of_lines(chunk, schema, found)
    single = part.convert(chunk, "messages")
    assert chunks.convert(chunk, "messages", schema) == (found if could else single)
    return could, found, single


@pytest.mark.parametrize("how", [{}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_whole_chunks_of_lines_are_converted_to_what_single_lines_are(how: dict[str, Any]) -> None:
    plain = lines([*CHATS, {**chat("e", " \n"), "id": None, "n": 1}], **how)
    for content in (plain, plain.replace(b"\n", b" \r\n\n"), plain.rstrip()):
        could, found, single = as_one_and_as_single(content)
        assert could
        assert found == single


ODD_LINES = {
    "another key": b'{"messages": [], "z": 1}',
    "another type": b'{"messages": [], "n": "1"}',
    "a key that is there twice": b'{"messages": [], "n": 1, "n": 2}',
    "a long number": b'{"messages": [], "n": ' + b"9" * 5000 + b"}",
    "no number": b'{"messages": [], "n": Inf}',
    "nested without end": b'{"messages": ' + b"[" * 100_000,
    "no chat": b"{}",
    "null": b"null",
    "two in a line": lines(CHATS[:1]).strip() * 2,
    "null behind a row": lines(CHATS[:1]).strip() + b" null " + lines(CHATS[:1]).strip(),
    "one in two lines": lines(CHATS[:1]).replace(b", ", b",\n"),
    "half a character": lines(CHATS[1:2]).replace(b"ud83d", b"ud83d "),
    "no UTF-8": lines(CHATS[1:2]).replace(b'"user"', b'"\xff"'),
    "a control character": lines(CHATS[1:2]).replace(b'"user"', b'"\x07"'),
    "a vertical tab": b"\x0b",
    "a text without an end": b'{"messages": [{"role": "}',
}


@pytest.mark.parametrize("odd", ODD_LINES)
def test_lines_that_are_none_of_plain_chats_are_converted_one_by_one(odd: str) -> None:
    could, found, _ = as_one_and_as_single(lines(CHATS[:3]) + ODD_LINES[odd] + b"\n" + lines(CHATS[3:5]))
    assert not could
    assert found == part.Part("x:", 0)


def test_rows_of_deep_nesting_are_not_left_to_arrow() -> None:
    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    assert chats.schema_of([{**CHATS[1], "deep": [[1]]}]) is not None
    assert chats.schema_of([{**CHATS[1], "deep": deep}]) is None


def test_whatever_stands_in_lines_a_whole_chunk_says_what_they_say() -> None:
    chance = random.Random(5)
    pieces = rb"null { } [ ] , : }{ NaN -Infinity 1e999 01 \u0000 \ud83d \ude00".split()
    pieces += [b'"', b"\\", b"\n", b"\r\n", b"}\n{", b"\x00", b"\x1c", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"]
    quick = 0
    for _ in range(2000):
        content = lines(chance.sample(CHATS, 3), ensure_ascii=chance.random() < 0.5)
        for _ in range(chance.randrange(3)):
            at = chance.randrange(len(content))
            content = content[:at] + chance.choice(pieces) + content[at + chance.randrange(2) :]
        could, found, single = as_one_and_as_single(content)
        quick += could
        assert not could or found == single, content
    assert quick > 700


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_those_of_single_lines_whichever_chunks_are_converted_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, compressed: bool
) -> None:
    monkeypatch.setattr(reading, "BLOCK", 2048)
    content = lines(CHATS[:50]) + b"{broken\n" + lines(CHATS) + lines([{**CHATS[7], "new": "key"}])
    path = tmp_path / ("rows.jsonl.gz" if compressed else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if compressed else content)
    single, canonical = read(path), (tmp_path / "rows.out").read_bytes()
    monkeypatch.setattr(chunks, "WORTH_ARROW", 0)
    monkeypatch.setattr(pool, "workers_for", lambda size: workers)
    assert (read(path), (tmp_path / "rows.out").read_bytes()) == (single, canonical)
    assert (single.repeated.count, single.columns_left_out) == (41, ("n", "new"))
    assert single.dropped.lines["it is not JSON (Expecting property name enclosed in double quotes)"] == ["51"]


def test_keys_that_arrow_adds_to_every_message_are_not_taken_for_a_tools(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "q", "name": "x"}, {"role": "assistant", "content": "a"}]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (kept,) = rows.rows(read(tmp_path / "rows.parquet").path)
    assert kept.messages == row["messages"]


@pytest.mark.parametrize(
    ("column", "form"),
    [
        (pa.array([[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], None]), "sharegpt"),
        (pa.array([[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], None]), "messages"),
        (
            pa.array(
                [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], [None]],
                pa.large_list(pa.struct({"role": pa.dictionary(pa.int8(), pa.string()), "content": pa.large_string()})),
            ),
            "messages",
        ),
        (pa.array(["t", None], pa.string_view()), "text"),
        (pa.array(["t", ""]).dictionary_encode(), "text"),
    ],
)
def test_columns_of_every_type_give_the_rows_that_they_hold(tmp_path: Path, column: Any, form: str) -> None:
    name = {"sharegpt": "conversations"}.get(form, form)
    pq.write_table(pa.table({name: column}), tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet")
    assert (found.form, found.rows, found.usable) == (form, 2, 1)
    if form != "text":
        assert contents(found) == [["q", "a"]]


def test_a_file_is_not_taken_for_the_one_that_had_its_name_before(tmp_path: Path) -> None:
    for text in ("one", "two"):
        pq.write_table(pa.table({"text": [text]}), tmp_path / "rows.parquet")
        assert [row.text for row in rows.rows(read(tmp_path / "rows.parquet").path)] == [text]


def test_values_of_a_slice_are_its_own() -> None:
    array_ = pa.array([[{"a": "1", "b": 1}], None, [], [{"a": "2", "b": 2}, None, {"a": None, "b": 3}]] * 2)
    for begin in range(8):
        piece = array_.slice(begin, 3)
        expected = [
            items and [item and {key: value for key, value in item.items() if value is not None} for item in items]
            for items in piece.to_pylist()
        ]
        assert columns._values(piece) == expected


def test_a_text_that_is_no_utf8_drops_its_row_and_no_other(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"\xff\xfe", b"three", b"four", b"\xc3"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet")
    assert found.dropped.lines == {"it is not UTF-8": ["row 2", "row 5"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_in_gzip_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(pool, "workers_for", lambda size: workers)
    pq.write_table(pa.Table.from_pylist(CHATS), tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    assert read(tmp_path / "rows.parquet.gz").usable == 80
    assert {path.name for path in tmp_path.iterdir()} == {"rows.parquet", "rows.parquet.gz", "rows.out"}


@pytest.mark.parametrize(
    ("table", "cause", "said"),
    [
        (pa.table({"messages": pa.array([], pa.list_(pa.string()))}), "dataset_empty", "has no row"),
        (pa.table({"q": ["x"], "a": ["y"]}), "dataset_form_unknown", "its columns are 'q', 'a'"),
        (pa.table({"messages": ["not a list"]}), "dataset_unusable", "it has no list 'messages' .row 1"),
    ],
)
def test_parquet_without_rows_to_train_on_is_the_users_to_mend(
    tmp_path: Path, table: Any, cause: str, said: str
) -> None:
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=said) as raised:
        read(tmp_path / "rows.parquet")
    assert raised.value.failure.cause == cause


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_that_is_damaged_says_how_far_it_could_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(pool, "workers_for", lambda size: workers)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [str(random.random()) for _ in range(9000)]}), path, row_group_size=3000)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"rows.parquet is no parquet file that can be read, or not a whole one$"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no parquet file"):
        read(path)
    begin = len(whole) // 2
    path.write_bytes(whole[:begin] + bytes(20_000) + whole[begin + 20_000 :])
    with pytest.raises(UserError, match=r"or not a whole one, after row 3000$") as raised:
        read(path)
    assert raised.value.failure.cause == "dataset_broken"


def test_what_datasets_has_saved_is_read_and_train_taken(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(CHATS)
    data.save_to_disk(str(tmp_path / "one"))
    found = read(tmp_path / "one")
    assert (found.format, found.usable, found.columns_left_out) == ("table", 80, ("n",))
    assert found.bytes == found.path.stat().st_size
    assert len(found.sha256) == 64
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(str(tmp_path / "several"))
    again = read(tmp_path / "several")
    assert (again.usable, again.sha256, again.identity) == (80, found.sha256, {"split": "train"})
    (tmp_path / "several/train/state.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read") as raised:
        read(tmp_path / "several")
    assert raised.value.failure.cause == "dataset_broken"


def test_all_splits_that_are_taken_are_read_one_after_the_other(tmp_path: Path) -> None:
    parts = {
        f"train_{name}": datasets.Dataset.from_list(CHATS[begin : begin + 50]) for name, begin in (("a", 0), ("b", 50))
    }
    test = datasets.Dataset.from_list(CHATS[:1])
    datasets.DatasetDict(**parts, test=test).save_to_disk(str(tmp_path / "several"))
    found = read(tmp_path / "several")
    assert (found.rows, found.usable, found.identity) == (100, 80, {"split": "train_a+train_b"})
    assert contents(found) == [[m["content"] for m in row["messages"]] for row in CHATS if row["n"] % 5]
    assert read(tmp_path / "several" / "train_b").rows == 50


def test_splits_that_cannot_be_read_as_one_are_to_be_named_by_their_directory(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(CHATS[1:3])
    other = data.map(lambda row: {"messages": "no list"})
    for number, parts in enumerate([{"train_a": data, "train_b": other}, {"test": data, "validation": data}]):
        directory = tmp_path / str(number)
        datasets.DatasetDict(**parts).save_to_disk(str(directory))
        with pytest.raises(UserError, match=", ".join(parts)) as raised:
            read(directory)
        assert raised.value.failure.cause == "dataset_split_unknown"
        assert f"{directory}/<split>" in raised.value.failure.cure


def test_duplicates_among_many_rows_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = array("q", (random.Random(1).randrange(-500, 500) for _ in range(3000)))
    few = counts._repeated(hashes)
    monkeypatch.setattr(counts, "_FEW", 0)
    assert counts._repeated(hashes) == few
    assert counts._repeated(array("q")) == ([], 0)
