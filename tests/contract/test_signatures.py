"""What the two operators promise about their 38 documented inputs, and about the few of their own.

Aspects: the documentation of the pipelines components (``tests/parameters/*.tsv``), signature, contract record,
docstring and ``template_fields`` say the same about each input; both operators say the same about an input they share;
each input becomes an attribute.
"""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from airflow_provider_finetune.contract.checking import check
from airflow_provider_finetune.contract.parameters import declared_types
from airflow_provider_finetune.operators.base import TrainingOperator
from airflow_provider_finetune.operators.finetune import FineTuneOperator
from airflow_provider_finetune.operators.lora import LoRAOperator

Operator: TypeAlias = "type[FineTuneOperator] | type[LoRAOperator]"

OWN: dict[Operator, list[str]] = {FineTuneOperator: [], LoRAOperator: ["output_kind"]}
"""Inputs that the pipelines component does not have, behind those that it has."""

TABLES: dict[Operator, str] = {FineTuneOperator: "finetuning.tsv", LoRAOperator: "lora.tsv"}

FORMS: dict[Any, tuple[str, str]] = {
    str: ("str", "Text"),
    int: ("int", "WholeNumber"),
    float: ("float", "Number"),
    bool: ("bool", "Switch"),
    str | None: ("Optional[str]", "Text | None"),
    int | None: ("Optional[int]", "WholeNumber | None"),
    float | None: ("Optional[float]", "Number | None"),
    bool | None: ("Optional[bool]", "Switch | None"),
    dict[str, str]: ("str", "Pairs"),
    dict[str, Any]: ("str", "Pairs"),
    list[str]: ("str", "Names"),
}
"""Declared in the record: type in the table, annotation in the signature."""

OTHER_ANNOTATIONS = {
    "training_base_model": "Place",
    "training_data_output_dir": "Place | None",
    "training_resource_num_procs_per_worker": "WholeNumber",  # "auto" is a text, and texts are in it
    "kubernetes_config": "Mapping[str, Any] | XComArg | None",
}

DEFAULTS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": {"True": True}.__getitem__, "str": str}
"""How the table writes the default of a type; of all others, and of ``pvc_path``, it is ``None``."""


def rows_of(operator: Operator) -> list[dict[str, str]]:
    with (Path(__file__).parents[1] / "parameters" / TABLES[operator]).open(encoding="utf-8") as table:
        return list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))


def arguments_of(operator: Operator) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(operator.__init__).parameters
    return {name: item for name, item in parameters.items() if name not in ("self", "kwargs")}


def descriptions_of(operator: Operator) -> dict[str, str]:
    found = re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", inspect.getdoc(operator) or "", re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


@pytest.mark.parametrize(
    ("operator", "row"),
    [
        pytest.param(operator, row, id=f"{operator.__name__}-{row['name']}")
        for operator in TABLES
        for row in rows_of(operator)
    ],
)
def test_table_signature_record_docstring_and_template_fields_agree(operator: Operator, row: dict[str, str]):
    name, field = row["name"], row["name"].removeprefix("training_")
    argument = arguments_of(operator)[name]
    default = None if row["default"] == "None" else DEFAULTS[row["type"]](row["default"])

    assert argument.kind is inspect.Parameter.KEYWORD_ONLY
    assert (argument.default, type(argument.default)) == (default, type(default))
    description = descriptions_of(operator)[name]
    assert description.endswith("(templated).")
    assert ("``None``" in description) == (default is None) or "reserved: no effect" in description
    assert name in operator.template_fields
    if field == name:
        assert argument.annotation == OTHER_ANNOTATIONS.get(name, "Place | None")
        return

    documented, annotation = FORMS[declared_types(operator.record)[field]]
    assert row["type"] == documented
    assert argument.annotation == OTHER_ANNOTATIONS.get(name, annotation)
    values, problems = check(operator.record, {field: argument.default})
    assert not problems
    assert values[field] == getattr(operator.record(), field)


@pytest.mark.parametrize("operator", TABLES)
def test_there_are_38_inputs_in_the_order_of_the_table_and_then_our_own(operator: Operator):
    names = [row["name"] for row in rows_of(operator)]
    assert len(names) == 38
    names += OWN[operator]
    assert list(arguments_of(operator)) == names
    assert list(descriptions_of(operator)) == names
    assert tuple(operator.template_fields) == (*names, *TrainingOperator.template_fields)
    trained = {name.removeprefix("training_") for name in names if name.startswith("training_")}
    assert {item.name for item in fields(operator.record)} == trained


def test_an_input_of_both_operators_is_documented_in_the_same_words():
    finetune, lora = (descriptions_of(operator) for operator in TABLES)
    shared = finetune.keys() & lora.keys()
    assert {name: finetune[name] for name in shared} == {name: lora[name] for name in shared}


@pytest.mark.parametrize("operator", TABLES)
def test_each_template_field_is_an_attribute_and_each_input_has_its_default(operator: Operator):
    task = operator(task_id="train", dataset="/data/train.jsonl", launcher="local")
    for name in operator.template_fields:
        assert hasattr(task, name)
    for name, argument in arguments_of(operator).items():
        assert getattr(task, name) == ("/data/train.jsonl" if name == "dataset" else argument.default)


@pytest.mark.parametrize("operator", TABLES)
def test_a_subclass_may_render_fewer_fields(operator: Operator):
    plain = type("Plain", (operator,), {"template_fields": ("dataset",)})
    task = plain(task_id="train", dataset="/data/train.jsonl", training_seed=7, launcher="local")
    assert task.training_seed == 7


def test_the_algorithm_is_training_hubs_own_name():
    arguments: dict[str, Any] = {"task_id": "train", "dataset": "/data/train.jsonl", "launcher": "local"}
    assert FineTuneOperator(**arguments).algorithm({"algorithm": "OSFT"}) == "osft"
    assert FineTuneOperator(**arguments).algorithm({"algorithm": "SFT"}) == "sft"
    assert LoRAOperator(**arguments).algorithm({}) == "lora_sft"
