"""The document that says what came of a training.

Aspects: its form is pinned, a reader passes over what a later version adds and refuses what is no outcome, the small
form fits a termination message whatever the outcome, and keeps what matters most.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import SMALL_FORM_BYTES, Failure, Outcome, UnreadableOutcome

FAILURE = Failure(
    failure_class="resources",
    cause="out_of_memory",
    message="The training process was killed for memory",
    cure="Ask for more memory",
    log_tail=["step 1", "step 2"],
    parameter="training_resource_memory_per_worker",
)

OUTCOME = Outcome(
    status="succeeded",
    model_uri="file:///runs/1/model",
    model_path="/runs/1/model",
    model_kind="adapter",
    metrics={"loss": 1.5, "steps": 20},
    loss_chart="file:///runs/1/loss.html",
    work_dir="/runs/1",
    spec_hash="0123456789abcdef",
    dataset={"rows": 10, "rows_dropped": {}},
    versions={"training-hub": "0.11.2"},
    loss_curve=[[1, 2.5], [20, 1.5]],
)

# What the first version wrote. A new field with a default is added here; nothing may change or go.
GOLDEN = {
    "status": "succeeded",
    "model_uri": "file:///runs/1/model",
    "model_path": "/runs/1/model",
    "model_kind": "adapter",
    "adapter_uri": None,
    "metrics": {"loss": 1.5, "steps": 20},
    "failure": None,
    "loss_chart": "file:///runs/1/loss.html",
    "work_dir": "/runs/1",
    "spec_hash": "0123456789abcdef",
    "base_model": {},
    "plan": {},
    "dataset": {"rows": 10, "rows_dropped": {}},
    "versions": {"training-hub": "0.11.2"},
    "loss_curve": [[1, 2.5], [20, 1.5]],
    "checkpoint": {},
    "version": 1,
}

GOLDEN_FAILURE = {
    "failure_class": "resources",
    "cause": "out_of_memory",
    "message": "The training process was killed for memory",
    "cure": "Ask for more memory",
    "log_tail": ["step 1", "step 2"],
    "parameter": "training_resource_memory_per_worker",
}


def small(outcome: Outcome) -> dict[str, Any]:
    text = outcome.to_small_json()
    assert len(text.encode()) <= SMALL_FORM_BYTES
    Outcome.from_json(text)
    document: dict[str, Any] = json.loads(text)
    return document


def test_the_document_is_what_it_was():
    assert json.loads(OUTCOME.to_json()) == GOLDEN
    failed = json.loads(Outcome(status="failed", failure=FAILURE).to_json())
    assert failed["failure"] == GOLDEN_FAILURE


@pytest.mark.parametrize("outcome", [OUTCOME, Outcome(status="failed", failure=FAILURE), Outcome(status="checked")])
def test_both_forms_are_read_back(outcome: Outcome):
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert Outcome.from_json(outcome.to_small_json()) == outcome


def test_what_a_later_version_adds_is_passed_over():
    later = {**GOLDEN, "version": 2, "carbon": 3.5, "status": "failed", "failure": {**GOLDEN_FAILURE, "node": "n1"}}
    assert Outcome.from_json(json.dumps(later)) == replace(OUTCOME, status="failed", failure=FAILURE, version=2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Killed",
        "null",
        "5",
        "[]",
        "{}",
        '"status"',
        '{"status": 200}',
        '{"status": "ok", "model_uri": "x"}',
        '{"status": "failed", "failure": "boom"}',
        '{"status": "failed", "failure": {"cause": "x"}}',
        OUTCOME.to_json()[:100],
        "[" * SMALL_FORM_BYTES,
    ],
)
def test_what_is_no_outcome_is_unreadable(text: str):
    with pytest.raises(UnreadableOutcome, match="not an outcome of the runner"):
        Outcome.from_json(text)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_lacks_is_an_error_and_no_broken_document(number: float):
    outcome = replace(OUTCOME, metrics={"loss": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        outcome.to_json()
    with pytest.raises(ValueError, match="not JSON compliant"):
        outcome.to_small_json()


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    curve = [[float(step), 1.0 / step] for step in range(1, 101)]
    document = small(replace(OUTCOME, loss_curve=curve * 4))
    kept = document["loss_curve"]
    assert (kept[0], kept[-1]) == (curve[0], curve[-1])
    assert 10 < len(kept) < 400
    assert document["metrics"] == OUTCOME.metrics
    assert document["dataset"] == OUTCOME.dataset


LONG_FIELDS = {
    "loss_curve": [[float(step), 0.123456789] for step in range(1000)],
    "dataset": {"sha256": "x" * 64, "path": "/data/" + "x" * 5000},
    "versions": {f"package-{number}": "1.0.0" for number in range(400)},
}


def test_curve_data_set_and_versions_go_before_metrics_and_addresses():
    document = small(replace(OUTCOME, **LONG_FIELDS))  # type: ignore[arg-type]
    kept = ("status", "model_uri", "model_path", "model_kind", "metrics", "loss_chart", "work_dir", "spec_hash")
    assert {name: document[name] for name in kept} == {name: GOLDEN[name] for name in kept}
    assert document["dataset"] == {"sha256": "x" * 64}
    assert not document.keys() & {"loss_curve", "versions"}


def test_metrics_go_before_the_model():
    document = small(replace(OUTCOME, metrics={f"metric-{number}": number for number in range(1000)}))
    assert document["model_uri"] == OUTCOME.model_uri
    assert "metrics" not in document


def test_a_long_log_loses_its_oldest_lines_and_the_failure_is_whole():
    lines = [f"line {number} " + "x" * 100 for number in range(200)]
    document = small(Outcome(status="failed", failure=replace(FAILURE, log_tail=lines), metrics={"steps": 3}))
    kept = document["failure"].pop("log_tail")
    assert kept == lines[-len(kept) :]
    assert len(kept) > 20
    assert document["failure"] == {name: value for name, value in GOLDEN_FAILURE.items() if name != "log_tail"}
    assert document["metrics"] == {"steps": 3}


DATASET = {
    "name": "/data/train.jsonl",
    "sha256": "0" * 64,
    "identity": {"revision": "1a2b3c4"},
    "rows": 9000,
    "rows_dropped": {"it is not UTF-8": 900},
    "dropped_lines": {f"reason {number}": [str(line) for line in range(20)] for number in range(10)},
    "repeated_lines": [f"a-part-of-the-data.jsonl:{line}" for line in range(20)],
    "rows_used": 8100,
    "columns_left_out": [f"column {number}" for number in range(50)],
}


def test_places_of_rows_go_before_the_data_are_unknown_and_the_last_lines_of_the_log_before_both():
    lines = [f"line {number} " + "x" * 200 for number in range(40)]
    outcome = Outcome(status="failed", failure=replace(FAILURE, log_tail=lines), dataset=DATASET, versions={"x": "1"})
    document = small(outcome)
    assert document["dataset"] == DATASET, "the log is long, and what came first in it matters least"
    assert document["failure"]["log_tail"] == lines[-len(document["failure"]["log_tail"]) :]
    longer = replace(FAILURE, log_tail=["x" * 450 for _ in range(40)])
    document = small(replace(outcome, failure=longer, work_dir="/" + "w" * 400))
    assert len(document["failure"]["log_tail"]) == 5
    assert document["dataset"] == {name: it for name, it in DATASET.items() if not name.endswith("_lines")}
    document = small(replace(outcome, failure=longer, work_dir="/" + "w" * 3400))
    assert document["dataset"].keys() == {"sha256", "identity", "rows"}
    assert not document["failure"]["log_tail"]


def test_a_long_failure_is_cut_and_keeps_class_cause_and_the_metrics():
    failure = replace(FAILURE, message="m" * 50_000, cure="c" * 300, log_tail=["x" * 9000])
    document = small(Outcome(status="failed", failure=failure, metrics={"steps": 3}))
    kept = document["failure"]
    assert (kept["failure_class"], kept["cause"]) == ("resources", "out_of_memory")
    assert kept["message"].startswith("mmm")
    assert kept["message"].endswith("…")
    assert len(kept["message"]) > 200
    assert kept["cure"] == failure.cure
    assert document["metrics"] == {"steps": 3}


@pytest.mark.parametrize("character", ["x", "é", "語", "🙂", '"', "\n"])
@pytest.mark.parametrize("length", [100, 1000, 5000, 100_000])
def test_the_small_form_fits_whatever_is_long(character: str, length: int):
    text = character * length
    failure = Failure(failure_class="user", cause=text, message=text, cure=text, log_tail=[text] * 20)
    whole = Outcome(
        status="failed",
        model_uri=text,
        model_path=text,
        metrics={text: text},
        failure=failure,
        loss_chart=text,
        work_dir=text,
        dataset={"path": text},
        versions={"x": text},
        loss_curve=LONG_FIELDS["loss_curve"],  # type: ignore[arg-type]
    )
    document = small(whole)
    assert document["status"] == "failed"
    assert document["failure"]["failure_class"] == "user"
    assert "failure" not in small(replace(whole, status="succeeded", failure=None))


def test_shortening_leaves_the_outcome_as_it_is():
    outcome = replace(OUTCOME, **LONG_FIELDS)  # type: ignore[arg-type]
    before = outcome.to_json()
    outcome.to_small_json()
    assert outcome.to_json() == before
