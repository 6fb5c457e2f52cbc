"""What becomes of parameters that a DAG author wrote.

Aspects: coercion by declared type (rendered templates are strings), the range of each single value, the rules between
values, values that are not known yet, and what a message says: parameter, value, rule, cure.
"""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_finetune.contract.checking import Problem, check
from airflow_provider_finetune.contract.parameters import FineTuneParameters, LoRAParameters
from airflow_provider_finetune.contract.rules import CLUSTER_RULES, RULES, credential_names

SFT = {"algorithm": "SFT"}


def problems_of(record: Any, given: dict[str, Any], **options: Any) -> list[Problem]:
    return check(record, given, **options)[1]


def the_problem(record: Any, given: dict[str, Any], **options: Any) -> Problem:
    (problem,) = problems_of(record, given, **options)
    return problem


@pytest.mark.parametrize("record", [FineTuneParameters, LoRAParameters])
def test_the_documented_defaults_are_right_and_complete(record: Any):
    values, problems = check(record, {}, further_rules=CLUSTER_RULES)
    assert not problems
    assert record(**values) == record()


@pytest.mark.parametrize("algorithm", ["OSFT", "SFT"])
def test_an_algorithm_works_without_naming_its_backend(algorithm: str):
    assert not problems_of(FineTuneParameters, {"algorithm": algorithm})


@pytest.mark.parametrize(("algorithm", "backend"), [("OSFT", "mini-trainer"), ("SFT", "instructlab-training")])
def test_an_algorithm_works_with_its_own_backend(algorithm: str, backend: str):
    assert not problems_of(FineTuneParameters, {"algorithm": algorithm, "backend": backend})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_epochs": "3"}, 3),
        ({"num_epochs": 3.0}, 3),
        ({"num_epochs": ""}, None),
        ({"num_epochs": "None"}, None),
        ({"seed": 2**53 + 1}, 2**53 + 1),
        ({"seed": str(2**53 + 1)}, 2**53 + 1),
        ({"learning_rate": "1e-5"}, 1e-5),
        ({"learning_rate": 1}, 1.0),
        ({"lora_dropout": "0.1"}, 0.1),
        ({"use_liger": "true"}, True),
        ({"use_liger": " No "}, False),
        ({"use_liger": 1}, True),
        ({"use_liger": None}, None),
        ({"resource_cpu_per_worker": 4}, "4"),
        ({"resource_cpu_per_worker": "500m"}, "500m"),
        ({"resource_num_procs_per_worker": 1}, "1"),
        ({"lr_scheduler": "None"}, None),
        ({"envs": ""}, {}),
        ({"envs": "A=1, B=x=y,"}, {"A": "1", "B": "x=y"}),
        ({"envs": {"A": "1,2", "B": 3}}, {"A": "1,2", "B": "3"}),
        ({"lora_target_modules": ""}, []),
        ({"lora_target_modules": "q_proj, v_proj"}, ["q_proj", "v_proj"]),
        ({"lora_target_modules": ("q_proj",)}, ["q_proj"]),
    ],
)
def test_what_was_written_becomes_the_declared_type(given: dict[str, Any], expected: Any):
    values, problems = check(LoRAParameters, given)
    (value,) = (values[name] for name in given)
    assert not problems
    assert value == expected
    assert type(value) is type(expected)


def test_scheduler_options_keep_the_types_of_a_dict():
    values, _ = check(FineTuneParameters, {"lr_scheduler_kwargs": {"num_cycles": 2}})
    assert values["lr_scheduler_kwargs"] == {"num_cycles": 2}


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"max_seq_len": "abc"}, "a whole number"),
        ({"max_seq_len": 1.5}, "a whole number"),
        ({"max_seq_len": True}, "a whole number"),
        ({"max_seq_len": None}, "must not be None"),
        ({"max_seq_len": [8192]}, "a whole number"),
        ({"max_seq_len": 0}, "at least 1"),
        ({"seed": 10**400}, "a whole number"),
        ({"seed": -1}, "at least 0"),
        ({"learning_rate": "abc"}, "a number"),
        ({"learning_rate": "nan"}, "a number"),
        ({"learning_rate": "inf"}, "a number"),
        ({"learning_rate": 0}, "above 0"),
        ({"lr_warmup_steps": -1}, "at least 0"),
        ({"num_epochs": 0}, "at least 1"),
        ({"effective_batch_size": 0}, "at least 1"),
        ({"max_tokens_per_gpu": 0, "max_seq_len": "{{ unknown }}"}, "at least 1"),
        ({"use_liger": "perhaps"}, "true or false"),
        ({"base_model": ""}, "must not be empty"),
        ({"base_model": "None"}, "must not be None"),
        ({"base_model": True}, "a text"),
        ({"base_model": ["a"]}, "a text"),
        ({"envs": "A"}, "KEY=VAL"),
        ({"envs": "=1"}, "KEY=VAL"),
        ({"envs": "A=1,2"}, "needs the dict form"),
        ({"envs": ["A=1"]}, "a dict or a text"),
        ({"envs": None}, "must not be None"),
        ({"envs": {"A": None}}, "the value of A"),
        ({"envs": {"A": True}}, "the value of A"),
        ({"metadata_labels": "team"}, "KEY=VAL"),
        ({"lora_target_modules": "None"}, "must not be None"),
        ({"lora_target_modules": {"q_proj": 1}}, "a list of names"),
        ({"lora_target_modules": [1]}, "a list of names"),
        ({"lora_r": 0}, "at least 1"),
        ({"lora_alpha": 0}, "at least 1"),
        ({"lora_dropout": 1}, "below 1"),
        ({"lora_dropout": -0.1}, "at least 0"),
        ({"resource_cpu_per_worker": "many"}, "Kubernetes quantity like 4 or 500m"),
        ({"resource_cpu_per_worker": "4\n"}, "Kubernetes quantity"),
        ({"resource_memory_per_worker": "32GB"}, "Kubernetes quantity like 32Gi or 512M"),
        ({"resource_gpu_per_worker": -1}, "at least 0"),
        ({"resource_num_workers": 0}, "at least 1"),
        ({"resource_num_procs_per_worker": "0"}, "'auto' or a whole number"),
        ({"resource_num_procs_per_worker": "all"}, "'auto' or a whole number"),
    ],
)
def test_a_value_out_of_type_or_range_is_a_problem(given: dict[str, Any], rule: str):
    problem = the_problem(LoRAParameters, given, is_known=lambda value: "{{" not in str(value))
    assert problem.parameter == f"training_{next(iter(given))}"
    assert rule in problem.rule


@pytest.mark.parametrize(
    ("given", "parameter", "rule", "cure"),
    [
        ({"algorithm": "DPO"}, "algorithm", "one of OSFT, SFT", "'OSFT'"),
        ({"algorithm": "sft"}, "algorithm", "one of OSFT, SFT", "'OSFT'"),
        ({"backend": "unsloth"}, "backend", "one of mini-trainer, instructlab-training", "Leave it out"),
        ({"backend": "instructlab-training"}, "backend", "OSFT runs on mini-trainer only", "mini-trainer"),
        ({"max_tokens_per_gpu": 4096}, "max_tokens_per_gpu", "less than training_max_seq_len=8192", "Raise it"),
        (
            {**SFT, "checkpoint_at_epoch": False},
            "checkpoint_at_epoch",
            "train and save no model",
            "Leave training_checkpoint_at_epoch out",
        ),
        (
            {**SFT, "checkpoint_at_epoch": False, "save_samples": 0},
            "checkpoint_at_epoch",
            "train and save no model",
            "training_save_samples above 0",
        ),
        (
            {"save_final_checkpoint": False},
            "save_final_checkpoint",
            "train and save no model",
            "training_checkpoint_at_epoch=True",
        ),
        ({"unfreeze_rank_ratio": 1.5}, "unfreeze_rank_ratio", "above 0 and below 1", "0.25"),
        ({"unfreeze_rank_ratio": 1.0}, "unfreeze_rank_ratio", "full fine-tuning", "training_algorithm='SFT'"),
        ({"unfreeze_rank_ratio": 0}, "unfreeze_rank_ratio", "0 trains nothing", "0.25"),
        ({"unfreeze_rank_ratio": -0.1}, "unfreeze_rank_ratio", "above 0 and below 1", "0.25"),
        ({**SFT, "lr_scheduler": "linear"}, "lr_scheduler", "cosine", "Leave training_lr_scheduler"),
        ({**SFT, "lr_scheduler_kwargs": "num_cycles=2"}, "lr_scheduler", "cosine", "lr_scheduler_kwargs out"),
        ({**SFT, "use_processed_dataset": True}, "use_processed_dataset", "ignore this", "'OSFT'"),
        ({"fsdp_sharding_strategy": "NO_SHARD"}, "fsdp_sharding_strategy", "ignore this", "use SFT"),
        ({**SFT, "fsdp_sharding_strategy": "SOME"}, "fsdp_sharding_strategy", "one of FULL_SHARD", "Leave it out"),
        ({"save_samples": -1}, "save_samples", "at least 0", "Leave it out"),
    ],
)
def test_a_broken_rule_names_parameter_value_rule_and_cure(given: dict[str, Any], parameter: str, rule: str, cure: str):
    problem = the_problem(FineTuneParameters, given)
    assert problem.parameter == f"training_{parameter}"
    assert problem.value == given.get(parameter)
    assert rule in problem.rule
    assert cure in problem.cure
    assert str(problem) == f"training_{parameter}={problem.value!r}: {problem.rule}. {problem.cure}."


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens_per_gpu": 8192},
        {**SFT, "checkpoint_at_epoch": False, "save_samples": 1000},
        {"save_final_checkpoint": False, "checkpoint_at_epoch": True},
        {"checkpoint_at_epoch": False},
        {**SFT, "save_final_checkpoint": False},
        {**SFT, "unfreeze_rank_ratio": 1.0},
        {**SFT, "lr_scheduler": "cosine"},
        {**SFT, "use_processed_dataset": False},
        {**SFT, "fsdp_sharding_strategy": "SHARD_GRAD_OP"},
        {"lr_scheduler": "linear", "lr_scheduler_kwargs": "num_cycles=2", "use_processed_dataset": True},
    ],
)
def test_the_nearest_right_values_pass(given: dict[str, Any]):
    assert not problems_of(FineTuneParameters, given)


def test_4_and_8_bit_exclude_each_other():
    problem = the_problem(LoRAParameters, {"lora_load_in_4bit": "true", "lora_load_in_8bit": True})
    assert (problem.parameter, problem.value) == ("training_lora_load_in_4bit", True)
    assert "exclude each other" in problem.rule
    assert problem.cure == "Set one of the two"
    assert not problems_of(LoRAParameters, {"lora_load_in_4bit": True, "lora_load_in_8bit": False})


def test_more_processes_than_gpus_are_a_problem_on_a_cluster_only():
    given = {"resource_num_procs_per_worker": 4, "resource_gpu_per_worker": 2}
    problem = the_problem(LoRAParameters, given, further_rules=CLUSTER_RULES)
    assert (problem.parameter, problem.value) == ("training_resource_num_procs_per_worker", "4")
    assert "training_resource_gpu_per_worker=2" in problem.rule
    assert "leave it at 'auto'" in problem.cure
    assert not problems_of(LoRAParameters, given)
    for procs, gpus in ((2, 2), ("auto", 2), (4, 0)):
        fitting = {"resource_num_procs_per_worker": procs, "resource_gpu_per_worker": gpus}
        assert not problems_of(LoRAParameters, fitting, further_rules=CLUSTER_RULES)


def test_a_credential_in_the_environment_is_a_problem_on_a_cluster_and_its_value_is_not_shown():
    given = {"envs": "HF_TOKEN=hf_secret"}
    problem = the_problem(LoRAParameters, given, further_rules=CLUSTER_RULES)
    assert problem.cure == "Use secrets={'HF_TOKEN': 'secret-name/key'}"
    assert "hf_secret" not in str(problem)
    assert not problems_of(LoRAParameters, given)


def test_the_values_of_a_malformed_environment_are_not_shown():
    assert "hf_secret" not in str(the_problem(LoRAParameters, {"envs": "hf_secret"}))


def test_credentials_are_known_by_the_end_of_their_names():
    credentials = [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "S3_SECRET",
        "PG_PASSWORD",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    ]
    others = ["TOKENIZERS_PARALLELISM", "SECRET_NAME", "NCCL_DEBUG", "TOKEN_COUNT"]
    assert credential_names(dict.fromkeys([*credentials, *others], "x")) == credentials


@pytest.mark.parametrize(
    ("record", "needed"),
    [
        pytest.param(record, name, id=f"{record.__name__}-{rule.check.__name__}-{name}")
        for record, rules in RULES.items()
        for rule in (*rules, *CLUSTER_RULES)
        for name in rule.needs
    ],
)
def test_a_rule_waits_for_each_value_that_it_needs(record: Any, needed: str):
    broken = {
        "algorithm": "SFT",
        "backend": "mini-trainer",
        "max_tokens_per_gpu": 10,
        "checkpoint_at_epoch": False,
        "lr_scheduler": "linear",
        "use_processed_dataset": True,
        "lora_load_in_4bit": True,
        "lora_load_in_8bit": True,
        "resource_num_procs_per_worker": "4",
        "envs": {"HF_TOKEN": "x"},
        needed: "{{ later }}",
    }
    values, problems = check(record, broken, is_known=lambda value: value != "{{ later }}", further_rules=CLUSTER_RULES)
    assert needed not in values
    rules = [rule for rule in (*RULES[record], *CLUSTER_RULES) if needed not in rule.needs]
    assert {problem.parameter.removeprefix("training_") for problem in problems} <= {rule.needs[0] for rule in rules}
    assert problems


def test_all_problems_are_found_at_once_single_values_first():
    given = {"num_epochs": 0, "learning_rate": "abc", "max_tokens_per_gpu": 10, "algorithm": "DPO"}
    assert [problem.parameter for problem in problems_of(FineTuneParameters, given)] == [
        "training_learning_rate",
        "training_num_epochs",
        "training_algorithm",
        "training_max_tokens_per_gpu",
    ]


def test_a_name_that_is_no_parameter_of_the_record_is_passed_over():
    # The operators hand over all their inputs, and some of them are no training parameters.
    assert not problems_of(LoRAParameters, {"dataset": "/data/train.jsonl"})
