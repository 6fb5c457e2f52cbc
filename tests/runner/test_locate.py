"""A data set is found by its path, and of a directory the files to train on are told from the others.

* formats by suffix and, for .json, by content; hidden files; files of other kinds
* splits by name; several formats; what is missing or cannot be read
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner.data import splits
from airflow_provider_finetune.runner.data.locate import locate
from airflow_provider_finetune.runner.data.source import Source
from airflow_provider_finetune.runner.failures import UserError


def find(path: Path | str, said: list[str] | None = None) -> Source:
    return locate(str(path), scratch=Path("nowhere"), say=([] if said is None else said).append)


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("[]")
    return root


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("a.jsonl", "jsonl"),
        ("A.JSONL", "jsonl"),
        ("a.ndjson.gz", "jsonl"),
        ("a.csv", "csv"),
        ("a.parquet", "parquet"),
        ("a.json", "json"),
    ],
)
def test_a_format_is_told_by_the_suffix(tmp_path: Path, name: str, format_: str) -> None:
    write(tmp_path, name)
    source = find(tmp_path / name)
    assert (source.format, source.files, source.labels) == (format_, (tmp_path / name,), (name,))
    assert source.name == str(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b'{"text": "t"}\n{"text": "t"}', b'{"text": "' + b"t" * 9000 + b'"}\n', b'\xef\xbb\xbf\n {"text": "t"}']
)
def test_a_json_file_with_a_row_a_line_is_read_as_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.json").write_bytes(content)
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(content))
    assert find(tmp_path / "rows.json").format == "jsonl"
    assert find(tmp_path / "rows.json.gz").format == "jsonl"


@pytest.mark.parametrize("document", [{"messages": []}, {"data": [{"text": "t"}, {"text": "t"}]}])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_json_file_that_is_one_object_is_told_as_such(tmp_path: Path, document: object, pack: Any) -> None:
    name = "rows.json" if pack is bytes else "rows.json.gz"
    write(tmp_path, "other.json")
    (tmp_path / name).write_bytes(pack(json.dumps(document, indent=2).encode()))
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name} is one JSON object over several lines") as raised:
            find(place)
        assert raised.value.failure.cause == "dataset_format"


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    write(tmp_path, "a b.jsonl")
    assert find((tmp_path / "a b.jsonl").as_uri()).files == (tmp_path / "a b.jsonl",)


def test_all_files_of_a_directory_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, "2.jsonl", "1.jsonl", "more/3.jsonl.gz", ".hidden.jsonl", ".git/x.csv", "README.md", "state.txt")
    said: list[str] = []
    source = find(tmp_path, said)
    assert source.labels == ("1.jsonl", "2.jsonl", "more/3.jsonl.gz")
    assert source.name == f"{tmp_path} (3 files)"
    assert said == []


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"]),
        (["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/validation-00000-of-00001.csv"],
         ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv"]),
        (["train/a.jsonl", "eval/a.jsonl"], ["train/a.jsonl"]),
        (["TRAIN_1.jsonl", "dev.csv"], ["TRAIN_1.jsonl"]),
        (["rows.jsonl", "valid.jsonl"], ["rows.jsonl"]),
    ],
)  # fmt: skip
def test_of_several_splits_train_is_taken_and_the_others_are_named(
    tmp_path: Path, names: list[str], taken: list[str]
) -> None:
    said: list[str] = []
    assert list(find(write(tmp_path, *names), said).labels) == taken
    (line,) = said
    assert all(name in line for name in names if name not in taken)


@pytest.mark.parametrize("names", [["test.jsonl"], ["trainer.jsonl", "testament.jsonl", "devices.jsonl"]])
def test_names_that_tell_no_split_apart_leave_nothing_out(tmp_path: Path, names: list[str]) -> None:
    assert sorted(find(write(tmp_path, *names)).labels) == sorted(names)


def test_many_files_left_out_are_named_in_part() -> None:
    said: list[str] = []
    splits.of_training(["train.csv", *(f"test-{n}.csv" for n in range(9))], "rows", "dataset", said.append)
    assert said == [
        "data: rows: 1 of 10 are taken for training; left out: test-0.csv, test-1.csv, test-2.csv, test-3.csv, "
        "test-4.csv and 4 more"
    ]


@pytest.mark.parametrize(
    ("names", "cause", "said"),
    [
        (["a.jsonl", "b.csv"], "dataset_formats_mixed", r"csv \(b.csv\) and jsonl \(a.jsonl\)"),
        (["test.jsonl", "validation.jsonl"], "dataset_split_unknown", "the splits test, validation, and no train"),
        (["README.md"], "dataset_format", "no file of a known format"),
        ([], "dataset_format", "no file of a known format"),
    ],
)
def test_a_directory_that_does_not_say_what_to_train_on_is_the_users_to_mend(
    tmp_path: Path, names: list[str], cause: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        find(write(tmp_path, *names))
    assert raised.value.failure.cause == cause


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("nowhere.jsonl", "dataset_missing"),
        ("nowhere/train.jsonl", "dataset_missing"),
        ("nowhere", "dataset_missing"),
        ("x" * 300 + ".jsonl", "dataset_unreadable"),
        ("rows.txt", "dataset_format"),
    ],
)
def test_what_is_no_data_set_is_the_users_to_mend(tmp_path: Path, name: str, cause: str) -> None:
    write(tmp_path, "rows.txt")
    with pytest.raises(UserError, match="eval_data_path") as raised:
        locate(str(tmp_path / name), argument="eval_data_path", scratch=tmp_path, say=print)
    assert raised.value.failure.cause == cause


def test_a_path_that_is_relative_is_no_id_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, "org/name/rows.jsonl"))
    assert find("org/name").labels == ("rows.jsonl",)
    with pytest.raises(UserError, match="does not exist"):
        find("org/rows.jsonl")


def test_a_claim_is_mounted_by_a_launcher_only() -> None:
    with pytest.raises(UserError, match="pvc://claim/rows") as raised:
        find("pvc://claim/rows.jsonl")
    assert raised.value.failure.cause == "unsupported_uri"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_the_users_to_mend(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl")
    (tmp_path / "rows.jsonl").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        find(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        find(tmp_path)
