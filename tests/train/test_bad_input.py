"""Bad input ends before the first training step, with a message that says what to do.

Each case is the runner as a real process; the outcome says ``user``, so that nobody retries in vain.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import Ended, Rows, RunRunner, chat, write_rows
from tests.train.hub_server import Hub
from tests.train.servers import S3, SECRET, Answer, Request, Web, s3_refusal, status

Spec = dict[str, Any]


def refused(ended: Ended, cause: str, whose: str = "user") -> str:
    """Check that the run was refused for ``cause`` and return message and cure."""
    failure = ended.outcome.failure
    assert failure is not None, ended.output
    assert (ended.status, failure.failure_class, failure.cause) == (1, whose, cause), failure
    assert failure.cure
    assert f"error: {failure.message}" in ended.output
    assert "step 1/" not in ended.output
    return f"{failure.message} {failure.cure}"


def ensure_unseen(secret: str, ended: Ended) -> None:
    """Check that ``secret`` was neither printed nor kept in the work directory."""
    assert secret not in ended.output
    kept = [path for path in Path(str(ended.outcome.work_dir)).rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if secret.encode() in path.read_bytes()]


def test_a_dataset_that_is_missing(run_runner: RunRunner, spec: Spec, tmp_path: Path) -> None:
    spec["dataset"] = str(tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl does not exist" in refused(run_runner(spec), "dataset_missing")


def test_a_dataset_that_is_empty(run_runner: RunRunner, spec: Spec, tmp_path: Path) -> None:
    spec["dataset"] = str(write_rows(tmp_path / "empty.jsonl", []))
    assert "has no row" in refused(run_runner(spec), "dataset_empty")


def test_a_dataset_of_another_format(run_runner: RunRunner, spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("a,b\n")
    spec["dataset"] = str(tmp_path / "rows.xlsx")
    assert ".jsonl" in refused(run_runner(spec), "dataset_format")


def test_a_dataset_without_a_usable_row_names_reasons_and_lines(
    run_runner: RunRunner, spec: Spec, tmp_path: Path
) -> None:
    rows: Rows = [{"messages": []}, {"messages": "a"}, chat("question", " "), {"messages": [{"content": "no role"}]}]
    spec["dataset"] = str(write_rows(tmp_path / "rows.jsonl", rows))
    said = refused(run_runner(spec), "dataset_unusable")
    assert "2 rows: it has no list 'messages' (line 1, 2)" in said
    assert "it has no assistant message with text (line 3)" in said
    assert "a message has no 'role' (line 4)" in said


def test_a_directory_with_two_formats_names_them(
    run_runner: RunRunner, spec: Spec, dataset: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    shutil.copy(dataset, rows / "a.jsonl")
    (rows / "b.csv").write_text("question,answer\nWhy?,So.\n")
    spec["dataset"] = str(rows)
    assert "csv (b.csv) and jsonl (a.jsonl)" in refused(run_runner(spec), "dataset_formats_mixed")


def test_json_that_is_broken_names_the_line(run_runner: RunRunner, spec: Spec, dataset: Path) -> None:
    lines = dataset.read_text().splitlines()
    lines[4] = lines[4][:-9]
    lines[9] = "{'messages': []}"
    dataset.write_text("\n".join(lines))
    said = refused(run_runner(spec), "too_many_rows_dropped")
    assert "2 of 24 rows" in said
    assert "(line 5)" in said
    assert "(line 10)" in said
    assert "max_dropped=0.05" in said


def test_broken_rows_within_max_dropped_are_left_out_and_said(run_runner: RunRunner, spec: Spec, dataset: Path) -> None:
    lines = dataset.read_text().splitlines()
    lines[4] = lines[4][:-9]
    dataset.write_text("\n".join(lines))
    ended = run_runner(spec, "check")
    assert ended.outcome.dataset["rows_used"] == 23
    assert "warning: data: 23 rows can be used; 1 is left out: 1 row: it is not JSON" in ended.output


def test_rows_of_which_nothing_to_train_on_is_left(run_runner: RunRunner, spec: Spec) -> None:
    spec["parameters"]["max_seq_len"] = 10
    assert "raise training_max_seq_len" in refused(run_runner(spec), "dataset_unusable")


def test_a_dataset_of_a_claim_that_is_mounted_nowhere(run_runner: RunRunner, spec: Spec) -> None:
    spec["dataset"] = "pvc://claim/rows.jsonl"
    assert "pvc://claim/rows.jsonl" in refused(run_runner(spec), "unsupported_uri")


def _cut_off(request: Request) -> None:
    request.head(200, Content_Length=1000)
    request.send(b'{"messages"')
    request.close_connection = True


@pytest.mark.parametrize(
    ("answer", "cause", "whose"),
    [
        (status(404), "dataset_missing", "user"),
        (_cut_off, "download_cut_off", "infrastructure"),
        (s3_refusal(403, "AccessDenied"), "dataset_unreadable", "user"),
    ],
    ids=["missing", "cut off", "expired"],
)
def test_data_that_a_server_does_not_give(
    run_runner: RunRunner, spec: Spec, web: Web, answer: Answer, cause: str, whose: str
) -> None:
    web.answers["/rows.jsonl"] = answer
    spec["dataset"] = f"{web.url}/rows.jsonl?X-Amz-Signature={SECRET}"
    ended = run_runner(spec)
    assert f"{web.url}/rows.jsonl" in refused(ended, cause, whose)
    ensure_unseen(SECRET, ended)


def test_credentials_that_have_expired(run_runner: RunRunner, spec: Spec, s3: S3, web: Web) -> None:
    web.answers["*"] = s3_refusal(400, "ExpiredToken")
    spec["dataset"] = f"{s3.url}/rows.jsonl"
    ended = run_runner(spec, AWS_ENDPOINT_URL=web.url, AWS_SESSION_TOKEN=SECRET)
    assert "the credentials have expired" in refused(ended, "dataset_unreadable")
    ensure_unseen(SECRET, ended)


def test_a_bucket_that_may_not_be_written_is_found_before_the_data_is_read(
    run_runner: RunRunner, spec: Spec, s3: S3
) -> None:
    spec |= {"output_model": f"{s3.url}/model", "dataset": "/nowhere.jsonl"}
    reader = s3.user("s3:GetObject", "s3:ListBucket")
    ended = run_runner(spec, **reader)
    assert f"{s3.url}/model cannot be written" in refused(ended, "output_not_writable")
    ensure_unseen(reader["AWS_SECRET_ACCESS_KEY"], ended)


def test_a_gated_model(run_runner: RunRunner, spec: Spec, hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.model("org/tiny", files).gated = True
    spec["base_model"] = "org/tiny"
    ended = run_runner(spec, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"))
    assert "HF_TOKEN" in refused(ended, "model_gated")


def test_a_model_that_is_missing(run_runner: RunRunner, spec: Spec, tmp_path: Path) -> None:
    spec["base_model"] = str(tmp_path / "no-model")
    assert "there is no directory" in refused(run_runner(spec), "model_missing")


Damage = Callable[[Path], None]


def _without_tokenizer(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda model: (model / "config.json").unlink(), "model_incomplete"),
        (_without_tokenizer, "model_without_tokenizer"),
        (lambda model: (model / "chat_template.jinja").unlink(), "model_without_chat_template"),
        (lambda model: _edit(model / "config.json", model_type="llama99"), "architecture_unknown"),
        (
            lambda model: _edit(model / "tokenizer_config.json", eos_token=None, pad_token=None),
            "tokenizer_without_end",
        ),
    ],
    ids=["config", "tokenizer", "chat template", "architecture", "end token"],
)
def test_a_model_that_lacks_something(
    run_runner: RunRunner, spec: Spec, tiny_model: Path, tmp_path: Path, damage: Damage, cause: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    damage(model)
    spec["base_model"] = str(model)
    assert str(model) in refused(run_runner(spec), cause)


def test_a_hub_that_cannot_be_reached_may_be_reached_by_a_retry(run_runner: RunRunner, spec: Spec) -> None:
    spec["base_model"] = "hf://someone/some-model"
    # Nobody listens on port 1.
    ended = run_runner(spec, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:1")
    assert "someone/some-model" in refused(ended, "hub_unreachable", "infrastructure")


def test_a_work_directory_that_cannot_be_written(run_runner: RunRunner, spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spec["work_dir"] = str(tmp_path / "file" / "work")
    assert str(tmp_path / "file" / "work") in refused(run_runner(spec), "work_dir_not_writable")


def test_an_output_that_cannot_be_written_is_found_before_training(
    run_runner: RunRunner, spec: Spec, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    spec["output_model"] = str(tmp_path / "file" / "model")
    assert "output_model" in refused(run_runner(spec), "output_not_writable")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantisation_on_a_cpu(run_runner: RunRunner, spec: Spec, bits: int) -> None:
    spec["parameters"][f"lora_load_in_{bits}bit"] = True
    assert f"training_lora_load_in_{bits}bit=True" in refused(run_runner(spec), "quantisation_needs_cuda")


def test_a_keyword_that_training_hub_would_drop(run_runner: RunRunner, spec: Spec) -> None:
    spec["extra_args"] = {"wieght_decay": 0.1}
    assert "would ignore wieght_decay" in refused(run_runner(spec), "keyword_unknown")


@pytest.mark.parametrize(
    ("parameters", "extra_args", "cause", "named"),
    [
        ({"lora_target_modules": ["q_prjo"]}, {}, "adapter_does_not_fit", "q_prjo"),
        ({"lr_scheduler": "wavy"}, {}, "arguments_refused", "wavy"),
        ({}, {"weight_decay": "much"}, "arguments_refused", "much"),
        ({}, {"dataset_type": "alpaca"}, "dataset_type_unknown", "alpaca"),
    ],
)
def test_what_the_libraries_would_refuse_in_the_middle_is_refused_before(
    run_runner: RunRunner, spec: Spec, parameters: Spec, extra_args: Spec, cause: str, named: str
) -> None:
    spec["parameters"] |= parameters
    spec["extra_args"] = extra_args
    assert named in refused(run_runner(spec), cause)


def test_rows_that_are_longer_than_the_model_reads(run_runner: RunRunner, spec: Spec, dataset: Path) -> None:
    write_rows(dataset, [chat("Long?", "yes " * 200)])
    spec["parameters"] |= {"max_seq_len": 1024, "max_tokens_per_gpu": 1024}
    assert "training_max_seq_len=512" in refused(run_runner(spec), "rows_longer_than_model")


def test_a_disk_that_is_too_small_for_all_checkpoints(run_runner: RunRunner, spec: Spec, tmp_path: Path) -> None:
    spec |= {"algorithm": "sft", "output_model": str(tmp_path / "model"), "keep": "checkpoints"}
    spec["parameters"] |= {"num_epochs": 100_000_000, "lr_warmup_steps": 0}
    said = refused(run_runner(spec), "disk_too_small", "resources")
    assert f"GB for checkpoints in {tmp_path / 'work' / '1' / 'checkpoints'}" in said
    assert f"GB for published model in {tmp_path / 'model'}" in said


@pytest.mark.parametrize("algorithm", ["osft", "sft", "lora_sft"])
def test_a_gpu_that_was_asked_for(run_runner: RunRunner, spec: Spec, algorithm: str) -> None:
    ended = run_runner({**spec, "algorithm": algorithm, "device": "cuda"}, CUDA_VISIBLE_DEVICES="")
    assert "driver" in refused(ended, "no_cuda_device", "infrastructure")


def test_an_interpreter_without_training_hub(
    run_runner: RunRunner, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", sys._base_executable)  # type: ignore[attr-defined]
    assert "local_python" in refused(run_runner(spec), "training_hub_missing")


@pytest.mark.parametrize(
    "document", ["{", '{"version": 99}', '{"version": 1, "algorithm": "lora_sft", "colour": "red"}']
)
def test_a_spec_that_cannot_be_followed(run_runner: RunRunner, document: str) -> None:
    assert "spec.json" in refused(run_runner(document if document == "{" else json.loads(document)), "spec_unreadable")
