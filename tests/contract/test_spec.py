"""The document that says what to train.

Aspects: its form is pinned (it may grow, nothing may change or go), a reader refuses what it would ignore, hashes are
stable over versions, also where these bring new fields and parameters, and depend on what they should, nothing in it
is a secret.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pytest

from airflow_provider_finetune.contract.parameters import OPERATOR_ONLY, FineTuneParameters, LoRAParameters
from airflow_provider_finetune.contract.spec import RECORDS, VERSION, TrainingSpec, UnreadableSpec

SPEC = TrainingSpec(
    algorithm="lora_sft",
    base_model="org/model",
    dataset="/data/train.jsonl",
    work_dir="/runs/dag/run/train",
    parameters={"lora_r": 8, "learning_rate": 2e-4, "lora_target_modules": ["q_proj"]},
    extra_args={"weight_decay": 0.1},
    output_model="file:///models/out",
)

# What the first version wrote. A new optional field is added here; a change of any other kind needs a new version.
GOLDEN = {
    "algorithm": "lora_sft",
    "base_model": "org/model",
    "dataset": "/data/train.jsonl",
    "work_dir": "/runs/dag/run/train",
    "parameters": {"lora_r": 8, "learning_rate": 0.0002, "lora_target_modules": ["q_proj"]},
    "extra_args": {"weight_decay": 0.1},
    "output_model": "file:///models/out",
    "output_metrics": None,
    "output_loss_chart": None,
    "output_kind": "adapter",
    "processes_per_node": "auto",
    "nodes": 1,
    "device": "auto",
    "resume": "auto",
    "keep": "model",
    "max_dropped": 0.05,
    "show_samples": 0,
    "progress_interval": 30.0,
    "mounts": {},
    "recover": False,
    "version": 1,
}


def document(**changes: Any) -> str:
    return json.dumps({**GOLDEN, **changes})


def test_the_document_is_what_it_was():
    assert json.loads(SPEC.to_json()) == GOLDEN
    assert TrainingSpec.from_json(json.dumps(GOLDEN)) == SPEC


def test_a_document_without_the_optional_fields_is_read():
    required = {name: GOLDEN[name] for name in ("version", "algorithm", "base_model", "dataset", "work_dir")}
    assert TrainingSpec.from_json(json.dumps(required)) == TrainingSpec(
        algorithm="lora_sft", base_model="org/model", dataset="/data/train.jsonl", work_dir="/runs/dag/run/train"
    )


def test_equal_specs_give_equal_bytes():
    reordered = replace(SPEC, parameters=dict(reversed(SPEC.parameters.items())))
    assert reordered.to_json() == SPEC.to_json()
    assert TrainingSpec.from_json(SPEC.to_json()).to_json() == SPEC.to_json()


def test_a_newer_version_is_refused_with_what_to_do():
    with pytest.raises(
        UnreadableSpec, match=rf"version {VERSION + 1}.*reads version {VERSION}.*provider's own version"
    ):
        TrainingSpec.from_json(document(version=VERSION + 1))


def test_a_field_that_would_be_ignored_is_refused_by_name():
    with pytest.raises(UnreadableSpec, match=r"unknown fields \['quantum'\]"):
        TrainingSpec.from_json(document(quantum=True))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"spec"', "{}", '{"version": "1"}', '{"version": 1}'])
def test_what_is_no_spec_is_refused(text: str):
    with pytest.raises(UnreadableSpec):
        TrainingSpec.from_json(text)


@pytest.mark.parametrize(
    ("algorithm", "record"), [("osft", FineTuneParameters), ("sft", FineTuneParameters), ("lora_sft", LoRAParameters)]
)
def test_the_parameters_become_the_record_of_the_algorithm(algorithm: str, record: Any):
    spec = replace(SPEC, algorithm=algorithm, parameters={"num_epochs": 2})
    assert spec.record() == record(num_epochs=2)


def test_hashes_are_what_they_were():
    # Another training hash, and no checkpoint is found again; another whole hash, and a job that an older version has
    # submitted is not followed.
    assert SPEC.training_hash() == "75416d8473572718"
    assert SPEC.whole_hash() == "3a8820e6e82a490d"


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "sft"},
        {"base_model": "org/other"},
        {"dataset": "/data/other.jsonl"},
        {"parameters": {"lora_r": 16}},
        {"extra_args": {}},
    ],
)
def test_what_decides_the_weights_changes_both_hashes(change: dict[str, Any]):
    other = replace(SPEC, **change)
    assert other.training_hash() != SPEC.training_hash()
    assert other.whole_hash() != SPEC.whole_hash()


@pytest.mark.parametrize(
    "change", [{"output_model": None}, {"nodes": 2}, {"work_dir": "/elsewhere"}, {"device": "cpu"}]
)
def test_where_to_train_and_publish_changes_the_whole_hash_only(change: dict[str, Any]):
    other = replace(SPEC, **change)
    assert other.training_hash() == SPEC.training_hash()
    assert other.whole_hash() != SPEC.whole_hash()


@dataclass(frozen=True, kw_only=True)
class LaterSpec(TrainingSpec):
    """A spec with one more field."""

    later: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LaterParameters(LoRAParameters):
    """Parameters with one more."""

    later: int | None = None


def test_a_field_or_parameter_that_a_later_version_adds_changes_no_hash(monkeypatch: pytest.MonkeyPatch):
    hashes = (SPEC.training_hash(), SPEC.whole_hash())
    monkeypatch.setitem(RECORDS, "lora_sft", LaterParameters)
    later = LaterSpec(**(asdict(SPEC) | {"parameters": SPEC.parameters | {"later": None}}))
    assert (later.training_hash(), later.whole_hash()) == hashes
    other = replace(later, parameters=later.parameters | {"later": 1})
    assert other.training_hash() != hashes[0]
    assert replace(later, later=["x"]).whole_hash() != hashes[1]


def test_a_parameter_that_is_left_out_is_its_default():
    all_given = {name: value for name, value in asdict(SPEC.record()).items() if name not in OPERATOR_ONLY}
    assert replace(SPEC, parameters=all_given).whole_hash() == SPEC.whole_hash()


@pytest.mark.parametrize("change", [{"mounts": {"pvc://claim": "/mnt"}}, {"recover": True}])
def test_how_places_are_called_and_a_second_look_at_the_result_ask_for_nothing_else(change: dict[str, Any]):
    other = replace(SPEC, **change)
    assert (other.training_hash(), other.whole_hash()) == (SPEC.training_hash(), SPEC.whole_hash())


@pytest.mark.parametrize("record", list(dict.fromkeys(RECORDS.values())))
def test_the_environment_where_credentials_are_is_no_part_of_it(record: Any):
    travelling = {item.name for item in fields(TrainingSpec)} | {item.name for item in fields(record)} - OPERATOR_ONLY
    assert not {name for name in travelling if name in ("envs", "env", "secrets", "kubernetes_config")}


def test_a_spec_that_is_kept_has_no_signature_and_is_the_same_otherwise():
    signed = "https://host/rows.jsonl?X-Amz-Signature=nobody-may-see"
    spec = TrainingSpec(
        algorithm="lora_sft",
        base_model="hf://org/name@main",
        dataset=signed,
        work_dir="/work",
        output_model="s3://bucket/model",
        extra_args={"eval_data_path": signed, "eval_steps": 5},
    )
    link = "https://host/rows.jsonl"
    shown = replace(spec, dataset=link, extra_args={"eval_data_path": link, "eval_steps": 5})
    assert spec.shown() == shown
    assert shown.shown() == shown
