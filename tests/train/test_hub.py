"""Models and data sets of the HuggingFace hub, over real HTTP with the hub's own libraries.

The questions are asked in processes with environments of their own, as these libraries read theirs when they are
imported. What is tested:

* a model: small files first, weights last, the commit recorded, the cache, offline, code only where it is trusted
* a data set: revision, config, split, rows that cannot be read, never an older state
* what a hub can refuse or break, each with its cause, and that a retry is offered only where it can help
* that neither token nor signature is seen in anything that is printed or kept
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.hub import Repository, failure
from tests.train import hub_client
from tests.train.conftest import RunRunner, chat
from tests.train.hub_server import LARGE, SIGNATURE, TOKEN, Hub

Ask = Callable[..., Any]

SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    """Ask as the runner does, one process for all orders: one answer, or the list of those to several orders."""

    def ask(*orders: dict[str, Any], **environment: str) -> Any:
        scratch = str(tmp_path / "scratch")
        ended = subprocess.run(
            [sys.executable, hub_client.__file__, json.dumps([{"scratch": scratch, **order} for order in orders])],
            capture_output=True,
            text=True,
            timeout=100,
            env={**clean(), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **environment},
        )
        assert ended.returncode == 0, ended.stderr
        for secret in (TOKEN, SIGNATURE):
            assert secret not in ended.stdout + ended.stderr
        answers = json.loads(ended.stdout.splitlines()[-1])
        return answers if len(orders) > 1 else answers[0]

    return ask


def clean() -> dict[str, str]:
    """An environment in which nobody is known to a hub, and the runner's source is found."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**ours, "PYTHONPATH": str(Path(__file__).parents[2])}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def cause(answer: dict[str, Any], whose: str = "user") -> str:
    """Return why it was refused, and whose affair that is."""
    failure = answer["failure"]
    assert failure["failure_class"] == whose, failure
    assert failure["cure"]
    return str(failure["cause"])


def test_a_model_comes_with_its_small_files_first_and_its_weights_last(
    hub: Hub, ask: Ask, files: dict[str, bytes]
) -> None:
    others = {"README.md": b"card", "code.py": b"raise SystemExit", "onnx/model.safetensors": b"other"}
    repository = hub.model("org/tiny", {**files, **others, "pytorch_model.bin": b"once more"})
    answer = ask({"model": "hf://org/tiny", "weights": True})
    sha = repository.refs["main"]
    base = answer["base"]
    assert base == {
        "name": f"org/tiny (revision {sha[:7]})",
        "path": base["path"],
        "reference": "org/tiny",
        "revision": sha,
        "weight_bytes": len(files["model.safetensors"]),
        "fetched": True,
    }
    assert answer["located"] == SMALL
    assert answer["files"] == sorted([*SMALL, "model.safetensors"])
    assert hub.requests[-1] == f"GET /storage/models/org/tiny/{sha}/model.safetensors"


def test_a_model_that_the_cache_holds_is_not_fetched_again_and_is_never_an_older_one(
    hub: Hub, ask: Ask, files: dict[str, bytes]
) -> None:
    first = hub.model("org/tiny", files).refs["main"]
    ask({"model": "org/tiny", "weights": True})
    hub.requests.clear()
    assert ask({"model": "org/tiny", "weights": True})["base"]["revision"] == first
    assert not [request for request in hub.requests if "/resolve/" in request or "/storage/" in request]

    changed = {**files, "config.json": files["config.json"].replace(b"512", b"256")}
    second = hub.model("org/tiny", changed).refs["main"]
    answer = ask({"model": "org/tiny"})
    assert answer["base"]["revision"] == second
    assert b"256" in (Path(answer["base"]["path"]) / "config.json").read_bytes()


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3", "commit"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, ask: Ask, files: dict[str, bytes], revision: str) -> None:
    repository = hub.model("org/tiny", files)
    old = repository.commit({**files, "README.md": b"old"}, "v1", "refs/pr/3")
    repository.commit(files)
    name = old if revision == "commit" else revision
    answer = ask({"model": f"org/tiny@{name}"})
    assert (answer["base"]["reference"], answer["base"]["revision"]) == ("org/tiny", old)


def test_code_is_fetched_only_where_it_is_trusted(hub: Hub, ask: Ask, files: dict[str, bytes]) -> None:
    hub.model("org/tiny", {**files, "modeling.py": b""})
    assert "modeling.py" not in ask({"model": "org/tiny"})["located"]
    assert "modeling.py" in ask({"model": "org/tiny", "trust_remote_code": True})["located"]


def test_weights_that_take_long_are_told_of_on_the_way(hub: Hub, ask: Ask, files: dict[str, bytes]) -> None:
    hub.model("org/tiny", files).seconds = 0.1
    said = ask({"model": "org/tiny", "weights": True})["said"]
    assert said[0].startswith("fetching 150.7 kB of weights of org/tiny (revision ")
    assert len(said) > 3
    assert all(line.endswith("of 150.7 kB") for line in said[1:-1])
    assert said[-1].endswith("fetched, 150.7 kB")


def test_offline_a_model_is_taken_from_the_cache_and_that_is_said(hub: Hub, ask: Ask, files: dict[str, bytes]) -> None:
    sha = hub.model("org/tiny", files).refs["main"]
    assert cause(ask({"model": "org/tiny"}, HF_HUB_OFFLINE="1")) == "hub_offline"
    ask({"model": "org/tiny", "weights": True})
    hub.requests.clear()
    answer = ask({"model": "org/tiny", "weights": True}, HF_HUB_OFFLINE="1")
    assert (answer["base"]["revision"], answer["base"]["fetched"]) == (sha, True)
    assert "HF_HUB_OFFLINE" in answer["said"][0]
    assert not hub.requests


def test_a_gated_model_needs_a_token_of_somebody_who_may(hub: Hub, ask: Ask, files: dict[str, bytes]) -> None:
    for name in ("org/gated", "refused/gated"):
        hub.model(name, files).gated = True
    answer = ask({"model": "org/gated"})
    assert cause(answer) == "model_gated"
    assert "HF_TOKEN" in answer["failure"]["cure"]
    assert cause(ask({"model": "refused/gated"}, HF_TOKEN=TOKEN)) == "model_gated"
    assert cause(ask({"model": "org/gated"}, HF_TOKEN="hf_expired")) == "hub_token_refused"
    answer = ask({"model": "org/gated", "weights": True}, HF_TOKEN=TOKEN)
    assert answer["base"]["fetched"]


def test_what_a_hub_does_not_have_or_does_not_give_is_named(hub: Hub, ask: Ask, files: dict[str, bytes]) -> None:
    hub.model("org/tiny", files)
    hub.model("org/broken", files).status = 500
    hub.model("org/empty", {"README.md": b"", "config.json": files["config.json"]})
    hub.model("org/adapter", {"adapter_config.json": b"{}"})
    names = ["org/none", "org/tiny@v9", "org/empty", "org/adapter", "hf://gpt2", "org/broken"]
    *wrong, broken = ask(*({"model": name} for name in names))
    missing = ["model_missing", "model_revision_missing", "model_incomplete", "model_incomplete", "model_name_wrong"]
    assert [cause(answer) for answer in wrong] == missing
    assert "no revision 'v9'" in wrong[1]["failure"]["message"]
    assert cause(broken, "infrastructure") == "hub_failed"
    assert "answered 500" in broken["failure"]["message"]
    assert cause(ask({"model": "org/none"}, HF_TOKEN=TOKEN)) == "model_missing"
    # Nobody listens on port 1.
    answer = ask({"model": "org/tiny"}, HF_ENDPOINT="http://127.0.0.1:1")
    assert cause(answer, "infrastructure") == "hub_unreachable"
    assert "at 127.0.0.1 cannot be reached" in answer["failure"]["message"]


def test_a_hub_that_goes_away_between_two_questions_is_not_taken_for_one_that_may_not_be_asked() -> None:
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError

    error = LocalEntryNotFoundError("nothing in the cache")
    error.__cause__ = httpx2.ConnectError("refused")
    found = failure(error, Repository("model", "org/tiny", "main", "training_base_model"))
    assert isinstance(found, RunFailed)
    assert (found.failure.failure_class, found.failure.cause) == ("infrastructure", "hub_unreachable")


def test_a_disk_that_is_full_is_not_the_hubs_fault() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert failure(error, Repository("model", "org/tiny", "main", "training_base_model")) is error


def test_weights_that_break_off_may_come_whole_at_a_retry(hub: Hub, ask: Ask, files: dict[str, bytes]) -> None:
    repository = hub.model("org/tiny", files)
    repository.cut = frozenset({"model.safetensors"})
    assert cause(ask({"model": "org/tiny", "weights": True}), "infrastructure") == "download_cut_off"
    repository.cut = frozenset()
    answer = ask({"model": "org/tiny", "weights": True})
    assert (Path(answer["base"]["path"]) / "model.safetensors").read_bytes() == files["model.safetensors"]


ROWS = [chat(f"question {n}", "answer") for n in range(2_300)]


def test_files_of_a_data_set_are_read_like_local_ones_of_the_commit_that_is_recorded(hub: Hub, ask: Ask) -> None:
    first = hub.dataset("org/chat", {"train.jsonl": jsonl(*ROWS), "test.jsonl": jsonl(ROWS[0])}).refs["main"]
    answer = ask({"dataset": "org/chat"})
    assert (answer["format"], answer["summary"]["rows"]) == ("jsonl", 2_300)
    assert answer["rows"] == ROWS[:5]
    assert answer["name"] == f"org/chat (split train: train.jsonl, revision {first[:7]})"
    expected = {"repository": "org/chat", "revision": first, "config": "default", "split": "train"}
    assert answer["identity"] == answer["summary"]["identity"] == expected
    assert not [request for request in hub.requests if "test.jsonl" in request]

    second = hub.dataset("org/chat", {"train.jsonl": jsonl(*ROWS[7:])}).refs["main"]
    newest, older = ask({"dataset": "hf://datasets/org/chat"}, {"dataset": f"hf://org/chat@{first}?split=test"})
    assert newest["rows"] == ROWS[7:12]
    assert newest["identity"]["revision"] == second
    assert older["rows"] == ROWS[:1]


BROKEN = jsonl(*ROWS[:3]) + b'{"messages": [}\n' + jsonl(ROWS[3])

NOT_JSON = "it is not JSON (Expecting value)"


def test_a_row_that_cannot_be_read_is_named_by_file_and_line_and_no_other_is_lost(hub: Hub, ask: Ask) -> None:
    files = {f"data/train-{part} [of 2].jsonl.gz": gzip.compress(BROKEN) for part in "ab"}
    hub.dataset("org/several", {**files, "data/test.jsonl": b"{"})
    hub.dataset("org/one", {"train.json": BROKEN, "README.md": b"# Chats"})
    several, one = ask({"dataset": "org/several"}, {"dataset": "org/one"})
    assert several["summary"]["dropped_lines"] == {NOT_JSON: [f"{name}:4" for name in files]}
    assert (several["summary"]["rows"], several["summary"]["format"]) == (10, "jsonl")
    assert one["summary"]["dropped_lines"] == {NOT_JSON: ["4"]}
    assert one["rows"] == ROWS[:4]


def test_broken_rows_of_a_hub_count_for_max_dropped(
    hub: Hub, run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    hub.dataset("org/chat", {"train.jsonl": BROKEN}).gated = True
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    spec |= {"dataset": "org/chat", "max_dropped": 0.2}
    within = run_runner(spec, "check", **environment)
    assert within.status == 0, within.output
    assert (within.full.dataset["rows"], within.full.dataset["rows_dropped"]) == (5, {NOT_JSON: 1})
    assert f"{NOT_JSON} (line 4)" in within.output
    beyond = run_runner({**spec, "max_dropped": 0.1}, "check", **environment)
    assert beyond.outcome.failure is not None
    assert (beyond.outcome.failure.failure_class, beyond.outcome.failure.cause) == ("user", "too_many_rows_dropped")
    assert "(line 4)" in beyond.outcome.failure.message
    for secret in (TOKEN, SIGNATURE):
        assert secret not in within.output + beyond.output


def test_what_does_not_fit_on_the_disk_is_not_fetched(hub: Hub, ask: Ask) -> None:
    hub.dataset("org/chat", {"train.jsonl": jsonl(*ROWS)})
    answer = ask({"dataset": "org/chat", "free": 1_000})
    assert cause(answer, "resources") == "disk_full"
    assert "org/chat (revision " in answer["failure"]["message"]
    assert not [request for request in hub.requests if request.startswith("GET") and "/storage/" in request]


SEPARATED = b"""---
configs:
- config_name: default
  sep: ";"
  data_files:
  - split: train
    path: train.csv
  - split: test
    path: test.csv
---
"""


def test_rows_that_only_datasets_reads_come_a_thousand_at_a_time_and_of_one_commit(hub: Hub, ask: Ask) -> None:
    rows = [{"text": f"text {n}", "number": n} for n in range(2_300)]
    first = hub.dataset("org/csv", {"README.md": SEPARATED, "train.csv": csv(rows), "test.csv": csv(rows[:1])})
    sha = first.refs["main"]
    answer = ask({"dataset": "org/csv"})
    assert answer["sizes"] == [1_000, 1_000, 300]
    assert (answer["rows"], answer["format"]) == (rows[:5], "table")
    assert answer["name"] == f"org/csv (split train, revision {sha[:7]})"
    hub.dataset("org/csv", {"README.md": SEPARATED, "train.csv": csv(rows[7:]), "test.csv": b""})
    newest, older = ask({"dataset": "org/csv"}, {"dataset": f"org/csv@{sha}?split=test"})
    assert (newest["rows"], older["rows"]) == (rows[7:12], rows[:1])


def csv(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{';'.join(map(str, row))}\n" for row in (rows[0], *(row.values() for row in rows))).encode()


CARD = b"""---
configs:
- config_name: long
  data_files: long.parquet
- config_name: short
  data_files: short.parquet
---
"""


TYPED = b"""---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: score
    dtype: int64
---
"""


def parquet(*rows: dict[str, Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    written = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), written)
    return written.getvalue().to_pybytes()


def test_of_several_configs_one_is_chosen_or_asked_for(hub: Hub, ask: Ask) -> None:
    data = {"long.parquet": parquet(*ROWS[:3]), "short.parquet": parquet(*ROWS[:2])}
    hub.dataset("org/two", {"README.md": CARD, **data})
    default = CARD.replace(b"name: short", b"name: short\n  default: true")
    hub.dataset("org/default", {"README.md": default, **data})
    names = ["org/two", "org/two?config=wide", "org/two?config=short&split=test", "org/two?config=long", "org/default"]
    unchosen, unknown, without_split, long, short = ask(*({"dataset": name} for name in names))
    assert {cause(answer) for answer in (unchosen, unknown, without_split)} == {"dataset_part_missing"}
    assert "config: one must be chosen among long, short" in unchosen["failure"]["message"]
    assert "config: there is no 'wide' among long, short" in unknown["failure"]["message"]
    assert "split: there is no 'test' among train" in without_split["failure"]["message"]
    assert long["rows"] == ROWS[:3]
    assert (short["rows"], short["identity"]["config"]) == (ROWS[:2], "short")


def test_what_a_data_set_can_lack_is_named(hub: Hub, ask: Ask) -> None:
    hub.dataset("org/gated", {"train.jsonl": jsonl(*ROWS)}).gated = True
    hub.dataset("org/pictures", {"README.md": b"", "a.xyz": b"no rows"})
    hub.dataset("org/wrong", {"train.jsonl": b'{"messages": [}\n' * 9})
    hub.dataset("org/object", {"train.json": b'{\n"messages": []\n}'})
    hub.dataset("org/cut", {"train.jsonl": jsonl(*ROWS)}).cut = frozenset({"train.jsonl"})
    assert len(jsonl(*ROWS)) > LARGE
    names = ["org/none", "org/gated", "org/pictures", "org/wrong", "org/object", "org/cut?lines=3", "org/cut"]
    *refused, cut = ask(*({"dataset": name} for name in names))
    lacking = ["missing", "gated", "unreadable", "unusable", "format", "name_wrong"]
    assert [cause(answer) for answer in refused] == [f"dataset_{what}" for what in lacking]
    assert cause(cut, "infrastructure") == "download_cut_off"
    hub.dataset("org/typed", {"README.md": TYPED, "train.csv": b"text,score\nt,1\nt,secret of a row\n"})
    typed = ask({"dataset": "org/typed"})
    assert cause(typed) == "dataset_unreadable"
    assert "secret" not in str(typed["failure"]), typed
    offline = ask({"dataset": "org/chat"}, HF_HUB_OFFLINE="1")
    assert cause(offline) == "hub_offline"
    assert "no cache is asked for data sets" in offline["failure"]["message"]
    assert ask({"dataset": "org/gated"}, HF_TOKEN=TOKEN)["rows"] == ROWS[:5]


def test_a_model_of_the_hub_is_checked_by_the_runner_and_no_secret_is_kept(
    hub: Hub, run_runner: RunRunner, spec: dict[str, Any], files: dict[str, bytes], tmp_path: Path
) -> None:
    repository = hub.model("org/tiny", files)
    repository.gated = True
    spec["base_model"] = "org/tiny"
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    ended = run_runner(spec, "check", **environment)
    assert ended.status == 0, ended.output
    assert ended.full.base_model == {"name": "org/tiny", "revision": repository.refs["main"]}
    assert "(base model's weights " in ended.output, "foreseen"
    assert not [request for request in hub.requests if "/storage/" in request], "and not fetched"
    work = Path(str(ended.outcome.work_dir))
    kept = [path.read_bytes() for path in work.rglob("*") if path.is_file()]
    for secret in (TOKEN, SIGNATURE):
        assert secret not in ended.output
        assert not [content for content in kept if secret.encode() in content]


def test_a_model_of_the_hub_is_trained_from_the_directory_that_was_checked(
    hub: Hub, run_runner: RunRunner, spec: dict[str, Any], files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.model("org/tiny", files)
    spec["base_model"] = "org/tiny"
    ended = run_runner(spec, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"))
    assert ended.status == 0, ended.output
    asked_for = [request for request in hub.requests if "/telemetry/" not in request]
    # And nothing after the weights: training-hub has read the directory.
    assert [request for request in asked_for if "/storage/" in request] == asked_for[-1:]
