"""What is published of a training: which kinds of model, where, and in which form.

* LoRA: the adapter, the merged model or both; an adapter names the base model as the user did
* all chat templates of a model that has several
* full models: weights in the dtypes of the base model, shard by shard; no buffers, and all files of the base model
* the last model that was saved, or the best where that was asked for
* a store that is away for a while; where the model is when it cannot be put into its place
* a fault on the way leaves the place as it was
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import arrival, merging, publishing
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.model import BaseModel
from airflow_provider_finetune.runner.prepared import Prepared
from airflow_provider_finetune.runner.tries.workdir import WorkDir
from airflow_provider_finetune.runner.turns import ChatTemplate
from tests.train.conftest import RunRunner, chat, write_rows
from tests.train.servers import S3, Request, Web, forwarded
from tests.train.test_merging import save_adapter
from tests.train.tiny_model import CHATML, save_tiny_model


@contextmanager
def told() -> Iterator[tuple[Events, list[dict[str, Any]]]]:
    """Events, and after the block what was told by them."""
    reading, writing = os.pipe()
    messages: list[dict[str, Any]] = []
    try:
        yield Events(writing), messages
    finally:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            messages.extend(json.loads(line) for line in pipe)


@pytest.fixture
def work_dir(tmp_path: Path) -> WorkDir:
    """A lineage in which a LoRA training has ended."""
    base = save_tiny_model(tmp_path / "base", dtype="bfloat16")
    save_adapter(base, tmp_path / "work" / "1" / "checkpoints")
    metrics = {"step": 1, "loss": 1.0, "epoch": 1.0, "max_steps": 1}
    (tmp_path / "work" / "1" / "checkpoints" / "training_metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    return WorkDir(tmp_path / "work" / "1")


@pytest.fixture
def prepared(tmp_path: Path, work_dir: WorkDir) -> Prepared:
    rows = write_rows(tmp_path / "rows.jsonl", [chat("What?", "That.")] * 4)
    weights = (tmp_path / "base" / "model.safetensors").stat().st_size
    base = BaseModel("org/base", str(tmp_path / "base"), "org/base", "1a2b", weights, fetched=True)
    return Prepared(base, CHATML, {"data_path": str(rows)}, "cpu", "0123")


@pytest.fixture
def lora(tmp_path: Path) -> TrainingSpec:
    return TrainingSpec(
        algorithm="lora_sft", base_model="org/base", dataset="d", work_dir="w", output_model=str(tmp_path / "out")
    )


def facts(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What was reported for the outcome."""
    found: dict[str, Any] = {}
    for message in messages:
        found |= message if message["event"] == "report" else {}
    return found


def test_both_kinds_lie_beside_each_other_and_the_merged_model_is_the_model(
    lora: TrainingSpec, work_dir: WorkDir, prepared: Prepared, tmp_path: Path
) -> None:
    with told() as (events, messages):
        publishing.publish(replace(lora, output_kind="both"), work_dir, prepared, events)
    found, out = facts(messages), tmp_path / "out"
    assert (found["model_kind"], found["model_path"]) == ("merged", str(out / "merged"))
    assert (found["model_uri"], found["adapter_uri"]) == ((out / "merged").as_uri(), (out / "adapter").as_uri())
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "merged"]
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "1a2b")
    card = (out / "adapter" / "README.md").read_text()
    assert "base_model: org/base" in card
    assert str(tmp_path) not in card
    said = " ".join(message["message"] for message in messages if message["event"] == "say")
    assert "merged: its logits differ by 0." in said
    assert not (work_dir.path / "merged").exists()
    assert not (work_dir.path / "proven").exists()
    trained = json.loads((work_dir.checkpoints / "adapter_config.json").read_text())
    assert trained["base_model_name_or_path"] == prepared.base.path, "the checkpoint is left as it is"


def test_the_merged_model_alone_takes_the_place(
    lora: TrainingSpec, work_dir: WorkDir, prepared: Prepared, tmp_path: Path
) -> None:
    with told() as (events, messages):
        publishing.publish(replace(lora, output_kind="merged"), work_dir, prepared, events)
    found = facts(messages)
    assert (found["model_kind"], found["model_path"]) == ("merged", str(tmp_path / "out"))
    assert "adapter_uri" not in found
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_a_published_adapter_finds_a_base_model_that_is_a_path(
    lora: TrainingSpec, work_dir: WorkDir, prepared: Prepared, tmp_path: Path
) -> None:
    named = tmp_path / "named by the user"
    named.symlink_to(tmp_path / "base")
    with told() as (events, _):
        publishing.publish(
            lora, work_dir, replace(prepared, base=replace(prepared.base, reference=str(named), revision=None)), events
        )
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.peft_config["default"].base_model_name_or_path == str(named)


@pytest.mark.parametrize("output_kind", ["adapter", "merged"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_model_with_several_chat_templates_keeps_them_and_may_be_replaced(
    lora: TrainingSpec, work_dir: WorkDir, prepared: Prepared, s3: S3, remote: bool, output_kind: str
) -> None:
    templates: ChatTemplate = {"default": CHATML, "tool_use": "{{ tools }}"}
    for directory in (Path(prepared.base.path), work_dir.checkpoints):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        tokenizer.chat_template = templates
        tokenizer.save_pretrained(directory)
    lora = replace(lora, output_kind=output_kind, output_model=f"{s3.url}/m" if remote else lora.output_model)
    for _ in range(2):
        with told() as (events, _messages):
            publishing.publish(lora, work_dir, replace(prepared, chat_template=templates), events)
    if remote:
        assert s3.read("m/additional_chat_templates/tool_use.jinja") == b"{{ tools }}"
    else:
        assert AutoTokenizer.from_pretrained(lora.output_model).chat_template == templates


def _publish_through(web: Web, s3: S3, monkeypatch: pytest.MonkeyPatch, failing: int) -> list[str]:
    """Let so many uploads of the weights fail, and return those that were begun."""
    begun: list[str] = []

    def refuses(request: Request) -> bool:
        if request.command == "PUT" and request.path.endswith("adapter_model.safetensors"):
            begun.append(request.path)
            return len(begun) <= failing
        return False

    web.answers["*"] = forwarded(s3.endpoint, refuses)
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(publishing, "_PAUSES", (0.01, 0.01))
    return begun


def test_a_store_that_is_away_for_a_while_is_tried_again(
    lora: TrainingSpec,
    work_dir: WorkDir,
    prepared: Prepared,
    s3: S3,
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = _publish_through(web, s3, monkeypatch, failing=2)
    with told() as (events, messages):
        publishing.publish(replace(lora, output_model=f"{s3.url}/m"), work_dir, prepared, events)
    assert len(begun) == 3
    assert facts(messages)["model_uri"] == f"{s3.url}/m"
    assert "m/adapter_model.safetensors" in s3.names("m/")
    said = [message["message"] for message in messages if message.get("level") == "warning"]
    assert len(said) == 2
    assert all("cannot be written: the server answers 503. It is published again in 0 s" in line for line in said)


@pytest.mark.parametrize("in_scratch", [False, True])
def test_a_store_that_stays_away_fails_the_run_and_the_model_is_named_where_it_stays(
    lora: TrainingSpec,
    work_dir: WorkDir,
    prepared: Prepared,
    s3: S3,
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
    in_scratch: bool,
) -> None:
    begun = _publish_through(web, s3, monkeypatch, failing=99)
    if in_scratch:
        monkeypatch.setattr(publishing, "SCRATCH_DIRECTORY", str(work_dir.path.parent))
    with told() as (events, _), pytest.raises(RunFailed) as raised:
        publishing.publish(replace(lora, output_model=f"{s3.url}/m"), work_dir, prepared, events)
    assert len(begun) == 3
    failure = raised.value.failure
    assert (failure.failure_class, failure.cause) == ("infrastructure", "output_unreachable")
    assert (work_dir.path / "proven" / "adapter_model.safetensors").is_file()
    assert (f"The model is whole in {work_dir.path / 'proven'}" in failure.cure) != in_scratch


def test_a_place_that_is_the_users_to_mend_is_tried_once(
    lora: TrainingSpec, work_dir: WorkDir, prepared: Prepared, s3: S3
) -> None:
    s3.put("m/notes.txt", "mine")
    with told() as (events, messages), pytest.raises(RunFailed, match="no model of its own") as raised:
        publishing.publish(replace(lora, output_model=f"{s3.url}/m"), work_dir, prepared, events)
    assert not [message for message in messages if message.get("level") == "warning"]
    assert f"The model is whole in {work_dir.path / 'proven'}" in raised.value.failure.cure


@pytest.mark.parametrize("kind", ["merged", "both"])
def test_a_merge_that_has_gone_wrong_is_not_published(
    lora: TrainingSpec,
    work_dir: WorkDir,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    merge = merging.merge

    def corrupted(adapter: Path, base_model: str, target: Path, **options: Any) -> None:
        merge(adapter, base_model, target, **options)
        weights = load_file(target / "model.safetensors")
        weights["model.layers.0.mlp.down_proj.weight"] *= -1
        save_file(weights, target / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(merging, "merge", corrupted)
    with told() as (events, messages), pytest.raises(RunFailed, match="its answers are not those"):
        publishing.publish(replace(lora, output_kind=kind), work_dir, prepared, events)
    assert not (tmp_path / "out").exists()
    assert "model_uri" not in facts(messages)
    assert (work_dir.checkpoints / "adapter_model.safetensors").is_file()


def test_weights_are_narrowed_to_the_base_models_file_by_file(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", dtype="bfloat16")
    mixed = load_file(base / "model.safetensors")
    mixed["model.norm.weight"] = mixed["model.norm.weight"].float()
    save_file(mixed, base / "model.safetensors", {"format": "pt"})
    trained = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    checkpoint, model = tmp_path / "checkpoint", tmp_path / "model"
    trained.save_pretrained(checkpoint, max_shard_size="40KB")
    arrival.collect(checkpoint, model)
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert arrival.narrow(model, str(base)) == "bfloat16"
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 1
    found = {name: weight.dtype for shard in shards for name, weight in load_file(shard).items()}
    assert found == {name: weight.dtype for name, weight in mixed.items()}, "also where one weight is of another dtype"
    assert json.loads((model / "config.json").read_text())["dtype"] == "bfloat16"
    total = json.loads((model / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == sum(weight.nbytes for shard in shards for weight in load_file(shard).values())
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before, "the checkpoint is left as it is"
    assert {file.name for file in model.iterdir()} == set(before), "and nothing else lies there"


def test_a_model_as_mini_trainer_leaves_it_becomes_one_that_loads_as_its_base_model_does(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    checkpoint, model = tmp_path / "checkpoint", tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(checkpoint, max_shard_size="40KB")
    (checkpoint / "generation_config.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"use_cache": False}))
    # Its buffers become weights when it moves a model to the GPU, and its files have no metadata.
    shard = max(checkpoint.glob("*.safetensors"))
    tensors = load_file(shard)
    buffers = {f"model.rotary_emb.{name}": torch.ones(8) for name in ("inv_freq", "original_inv_freq")}
    save_file(tensors | buffers, shard)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    index["metadata"]["total_size"] += 64
    index["weight_map"] |= dict.fromkeys(buffers, shard.name)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    arrival.collect(checkpoint, model)
    arrival.complete(model, str(base))
    assert load_file(model / shard.name).keys() == tensors.keys()
    _, loading = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert not any(loading.values()), loading
    assert json.loads((model / "config.json").read_text())["use_cache"] is True
    assert (model / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    written = json.loads((model / "model.safetensors.index.json").read_text())
    assert buffers.keys().isdisjoint(written["weight_map"])
    assert written["metadata"]["total_size"] == index["metadata"]["total_size"] - 64
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before, "the checkpoint is left as it is"


@pytest.mark.parametrize(
    ("saved", "published"),
    [
        (["samples_8", "samples_24", "samples_16"], "samples_24"),
        (["samples_8.0", "samples_24.0", "samples_16.0"], "samples_24.0"),
        (["samples_8.0_best_val_loss", "samples_16.0_best_val_loss", "samples_24.0"], "samples_16.0_best_val_loss"),
        (["samples_24", "last_epoch"], "last_epoch"),
        ([], None),
    ],
)
def test_the_last_model_is_found_and_the_best_where_it_was_asked_for(
    tmp_path: Path, saved: list[str], published: str | None
) -> None:
    for name in saved:
        (tmp_path / "hf_format" / name).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (tmp_path / "hf_format" / name / file).write_text("{}")
    found = publishing.find(tmp_path, "osft")
    assert (found.name if found else None) == published


def test_a_model_whose_base_model_is_float32_stays_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    arrival.collect(tiny_model, tmp_path / "model")
    assert arrival.narrow(tmp_path / "model", str(tiny_model)) is None


def test_a_run_merges_and_publishes_both_and_the_next_one_replaces_them(
    run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec |= {"output_model": str(tmp_path / "out"), "output_kind": "both", "base_model": str(tmp_path / "base")}
    save_tiny_model(tmp_path / "base", dtype="bfloat16", tied=True)
    for _ in range(2):
        ended = run_runner(spec)
        assert ended.status == 0, ended.output
    outcome = ended.full
    assert (outcome.model_kind, outcome.model_uri) == ("merged", (tmp_path / "out" / "merged").as_uri())
    assert outcome.adapter_uri == (tmp_path / "out" / "adapter").as_uri()
    assert f"adapter: {outcome.adapter_uri}" in ended.output
    assert outcome.metrics["seconds_merging"] > 0
    assert not [name for name in ("proven", "merged") if (tmp_path / "work" / "2" / name).exists()]
    spec["base_model"] = str(tmp_path / "out" / "merged")
    assert run_runner(spec).outcome.failure is not None, "what is needed is not replaced"


def test_a_directory_with_a_model_does_not_become_one_with_two(
    run_runner: RunRunner, spec: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "out")
    failure = run_runner({**spec, "output_model": str(tmp_path / "out"), "output_kind": "both"}).outcome.failure
    assert failure is not None
    assert failure.cause == "output_in_use"
    assert "output_kind='both' puts the directories" in failure.message


def test_a_full_model_is_published_in_the_dtype_of_its_base_model(
    run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec |= {"algorithm": "sft", "base_model": str(tmp_path / "base")}
    spec["parameters"] |= {"algorithm": "SFT", "num_epochs": 3, "accelerate_full_state_at_epoch": True}
    base = save_tiny_model(tmp_path / "base", dtype="bfloat16")
    ended = run_runner({**spec, "keep": "checkpoints"})
    assert ended.status == 0, ended.output
    assert ended.output.count("the weights were trained in float32 and are published in bfloat16") == 1
    assert ended.outcome.model_path is not None
    published = Path(ended.outcome.model_path)
    assert (published / "model.safetensors").stat().st_size == (base / "model.safetensors").stat().st_size
    assert json.loads((published / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    kept = tmp_path / "work" / "1" / "checkpoints" / "hf_format"
    assert sorted(path.name for path in kept.iterdir()) == ["samples_24", "samples_48", "samples_72"]
    assert load_file(kept / "samples_72" / "model.safetensors")["lm_head.weight"].dtype == torch.float32
