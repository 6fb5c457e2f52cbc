"""A whole run with data and model from anywhere and results to anywhere, each place behind real HTTP.

* data from a store, compressed; the base model from a hub; adapter, metrics and chart to a store
* data from a hub, the base model from a store
* plain text behind a signed link, trained to the end
* a directory of parquet files with splits; adapter and merged model beside each other
* nothing that lets anybody in is printed or kept
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.train.conftest import Ended, RunRunner, chat
from tests.train.hub_server import SIGNATURE, TOKEN, Hub
from tests.train.servers import S3, SECRET, Web, content

Spec = dict[str, Any]

KEPT = {"spec.json", "outcome.json", "metrics.json", "loss.html", "train.log"}
"""What stays of a run whose model is published elsewhere."""

CHATS = [chat(f"What is {n}?", f"It is {n}.") for n in range(24)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def work_of(ended: Ended) -> Path:
    """Return the work directory of a run that has succeeded."""
    assert ended.outcome.status == "succeeded", ended.output
    return Path(str(ended.outcome.work_dir))


def ensure_secret(ended: Ended, *secrets: str) -> None:
    """Check that none of the secrets was printed, or is kept in the work directory."""
    kept = {path: path.read_bytes() for path in work_of(ended).parent.rglob("*") if path.is_file()}
    for secret in secrets:
        assert secret not in ended.output
        assert not [path for path, found in kept.items() if secret.encode() in found]


def test_data_of_a_store_and_a_model_of_a_hub_make_an_adapter_in_a_store(
    run_runner: RunRunner, spec: Spec, s3: S3, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    repository = hub.model("org/tiny", files)
    repository.gated = True
    spec |= {
        "base_model": "hf://org/tiny@main",
        "dataset": s3.put("rows/train.jsonl.gz", gzip.compress(jsonl(CHATS))),
        "output_model": f"{s3.url}/models/mine",
        "output_metrics": f"{s3.url}/metrics/mine.json",
        "output_loss_chart": f"{s3.url}/charts/",
    }
    hub_home = tmp_path / "hf"
    ended = run_runner(spec, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_HOME=str(hub_home), HF_TOKEN=TOKEN)
    work_dir, outcome = work_of(ended), ended.full

    assert outcome.model_uri == f"{s3.url}/models/mine"
    assert (outcome.model_kind, outcome.model_path) == ("adapter", None)
    assert outcome.base_model == {"name": "org/tiny", "revision": repository.refs["main"]}
    assert (outcome.dataset["rows_used"], outcome.dataset["name"]) == (24, f"{s3.url}/rows/train.jsonl.gz")
    adapter = json.loads(s3.read("models/mine/adapter_config.json"))
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/tiny", repository.refs["main"])
    names = set(s3.names("models/mine"))
    assert names >= {f"models/mine/{name}" for name in ("adapter_model.safetensors", "tokenizer.json")}
    assert json.loads(s3.read("metrics/mine.json"))["metrics"]["steps"] == 6
    assert outcome.loss_chart == f"{s3.url}/charts/loss.html"
    assert b"<svg" in s3.read("charts/loss.html")
    assert {*s3.names()} == names | {"rows/train.jsonl.gz", "metrics/mine.json", "charts/loss.html"}

    assert {entry.name for entry in work_dir.iterdir()} == KEPT
    ensure_secret(ended, TOKEN, SIGNATURE, SECRET)
    assert not [name for name in s3.names() if any(secret in s3.read(name) for secret in (TOKEN.encode(), b"AKIA"))]


def test_data_of_a_hub_and_a_model_of_a_store_make_a_merged_model(
    run_runner: RunRunner, spec: Spec, s3: S3, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    repository = hub.dataset("org/chats", {"train.jsonl": jsonl(CHATS), "test.jsonl": jsonl(CHATS[:2])})
    for name, file in files.items():
        s3.put(f"models/tiny/{name}", file)
    spec |= {"base_model": f"{s3.url}/models/tiny", "dataset": "org/chats@main?split=train", "output_kind": "merged"}
    ended = run_runner(spec, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"))
    assert {entry.name for entry in work_of(ended).iterdir()} == {*KEPT, "model"}, "what was fetched is gone"
    found = ended.full.dataset
    assert (found["rows_used"], found["identity"]["revision"]) == (24, repository.refs["main"])
    assert ended.full.base_model == {"name": f"{s3.url}/models/tiny"}
    config = json.loads((Path(str(ended.outcome.model_path)) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    ensure_secret(ended, SECRET)


def test_plain_text_behind_a_signed_link_is_trained_to_the_end(run_runner: RunRunner, spec: Spec, web: Web) -> None:
    texts = [{"text": f"The number {n} comes after {n - 1}.", "source": "book"} for n in range(24)]
    web.answers["/texts.jsonl"] = content(jsonl(texts))
    spec["dataset"] = f"{web.url}/texts.jsonl?X-Amz-Signature={SECRET}"
    ended = run_runner(spec)
    assert {entry.name for entry in work_of(ended).iterdir()} == {*KEPT, "model"}
    found = ended.full.dataset
    assert (found["form"], found["loss_on"], found["end_of_turn"]) == ("text", "all", "<|im_end|>")
    assert found["name"] == f"{web.url}/texts.jsonl"
    assert found["columns_left_out"] == ["source"]
    assert ended.outcome.metrics["loss"] < ended.full.loss_curve[0][1]
    ensure_secret(ended, SECRET)


def test_a_directory_of_parquet_makes_an_adapter_and_a_merged_model(
    run_runner: RunRunner, spec: Spec, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    pq.write_table(pa.Table.from_pylist(CHATS[:10]), rows / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(CHATS[10:20]), rows / "train-00001-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(CHATS[20:]), rows / "test-00000-of-00001.parquet")
    spec |= {"dataset": rows.as_uri(), "output_model": (tmp_path / "out").as_uri(), "output_kind": "both"}
    ended = run_runner(spec)
    assert {entry.name for entry in work_of(ended).iterdir()} == KEPT
    assert "2 of 3 are taken for training; left out: test-00000-of-00001.parquet" in ended.output
    assert (ended.full.dataset["format"], ended.full.dataset["rows_used"]) == ("parquet", 20)
    assert ended.outcome.model_path == str(tmp_path / "out" / "merged")
    assert ended.full.adapter_uri == (tmp_path / "out" / "adapter").as_uri()
    assert (tmp_path / "out" / "merged" / "config.json").is_file()
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
