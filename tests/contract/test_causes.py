"""One vocabulary of causes: what the code says, the list of them, and the page that people read are the same.

* each cause in the code is in the list, with its class, and the other way round
* ``docs/causes.md`` has each once, with its class and what to do
* the argument at fault is one of the operators'
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from airflow_provider_finetune import FineTuneOperator, LoRAOperator
from airflow_provider_finetune.contract.causes import CAUSES, failure_of, input_at_fault
from airflow_provider_finetune.contract.outcome import FailureClass
from airflow_provider_finetune.operators.base import TrainingOperator

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "airflow_provider_finetune"
PAGE = ROOT / "docs" / "causes.md"
CLASSES = get_args(FailureClass)

CAUSE_AT = {"UserError": 0, "RunFailed": 1, "failure_of": 0, "Rule": 2, "_meaning": 0, "_failed": 1, "_error": 0}
"""Which argument is the cause, of what makes a failure; the class of ``RunFailed`` stands before it."""

BY_VARIABLE = {
    "architecture_not_loadable",
    "dataset_truncated",
    "model_without_tokenizer",
    "peer_failed",
    "queue_timeout",
    "startup_timeout",
}
"""Causes whose name no call has in it."""


def said() -> Iterator[tuple[str, set[str], set[str]]]:
    """Where the code makes a failure, with the classes and the causes that the call names."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                given = {one.arg: one.value for one in node.keywords}
                where = f"{file.relative_to(ROOT)}:{node.lineno}"
                if "cause" in given and "failure_class" in given:
                    yield where, words(given["failure_class"]), words(given["cause"])
                elif len(node.args) > CAUSE_AT.get(name, len(node.args)):
                    classes = {"UserError": {"user"}, "RunFailed": words(node.args[0])}.get(name, set())
                    yield where, classes, words(node.args[CAUSE_AT[name]])


def words(expression: ast.expr) -> set[str]:
    """The names that an expression may be: a text, one of two, one that begins with the kind of a thing, a constant."""
    if isinstance(expression, ast.JoinedStr):
        end = expression.values[-1]
        return {f"{kind}{end.value!s}" for kind in ("model", "dataset")} if isinstance(end, ast.Constant) else set()
    constants = {"NO_OUTCOME": "no_outcome", "NCCL_FAILURE": "nccl_failure", "GPU_OUT_OF_MEMORY": "gpu_out_of_memory"}
    names = [constants.get(one.id) for one in ast.walk(expression) if isinstance(one, ast.Name)]
    texts = [one.value for one in ast.walk(expression) if isinstance(one, ast.Constant)]
    return {one for one in [*names, *texts] if isinstance(one, str) and re.fullmatch("[a-z_]+", one)}


def test_each_cause_in_the_code_is_in_the_list_with_its_class():
    for where, classes, causes in said():
        assert causes <= {*CAUSES}, where
        # Where it may be either of two, which belongs to which is not seen here.
        if len(classes) == len(causes) == 1:
            assert classes <= {*CAUSES[next(iter(causes))].classes}, where


def test_nothing_is_in_the_list_that_the_code_does_not_say():
    assert {*CAUSES} - {cause for _, _, causes in said() for cause in causes} == BY_VARIABLE


def test_the_page_has_each_cause_once_with_its_class_and_a_cure():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(CAUSES)
    for name, classes, what, cure in rows:
        told, known = {one for one in CLASSES if one in classes}, {*CAUSES[name].classes}
        assert told == known or (classes.startswith("that of ") and len(known) > 1), name
        assert what.strip(), name
        assert cure.strip(), name


def test_the_argument_at_fault_is_one_of_the_operators():
    operators = (FineTuneOperator, LoRAOperator, TrainingOperator)
    arguments = {name for operator in operators for name in inspect.signature(operator.__init__).parameters}
    assert {cause.parameter for cause in CAUSES.values()} - {""} <= arguments
    assert (input_at_fault("dataset_empty"), input_at_fault("of_a_later_version")) == ("dataset", "")
    failure = failure_of("image_missing", "m", "c")
    assert (failure.failure_class, failure.parameter) == ("user", "image")
    assert failure_of("image_missing", "m", "c", parameter="runtime").parameter == "runtime"
