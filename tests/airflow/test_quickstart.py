"""The quickstart DAG: the parts of it that need no training.

Tested: it parses; each task waits for those whose results it uses; the prepared chats are what a training accepts; they
are the same each time; none of the held-out ones is trained on, and the question that the report shows is one of them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from airflow.sdk import DAG

QUICKSTART = Path(__file__).parents[2] / "example_dags" / "quickstart.py"


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The DAG file as Airflow imports it, with its files under ``tmp_path``."""
    monkeypatch.setenv("AIRFLOW__FINETUNE__WORK_DIR", str(tmp_path))
    spec = importlib.util.spec_from_file_location("quickstart", QUICKSTART)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["lora", "sft", "osft"])
def dag(quickstart: ModuleType, request: pytest.FixtureRequest) -> DAG:
    dag: DAG = quickstart.DAGS[request.param]
    assert dag.dag_id == f"quickstart_{request.param}"
    return dag


def prepare(dag: DAG) -> dict[str, list[dict[str, Any]]]:
    """Run data_prep's own function; the rows of each file that it wrote."""
    paths = dag.get_task("data_prep").python_callable()  # type: ignore[union-attr]
    return {part: [json.loads(line) for line in Path(path).read_text().splitlines()] for part, path in paths.items()}


def test_each_task_waits_for_the_tasks_whose_results_it_uses(dag: DAG) -> None:
    assert {task.task_id: task.upstream_task_ids for task in dag.tasks} == {
        "data_prep": set(),
        "fine_tune": {"data_prep"},
        "evaluate": {"data_prep", "fine_tune"},
        "report": {"fine_tune", "evaluate"},
    }


def test_the_base_model_can_be_chosen_when_the_dag_is_triggered(dag: DAG) -> None:
    assert dag.params["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert dag.get_task("fine_tune").training_base_model == "{{ params.base_model }}"  # type: ignore[union-attr]


def test_every_row_is_one_question_and_one_answer(quickstart: ModuleType, dag: DAG) -> None:
    parts = prepare(dag)
    assert {part: len(rows) for part, rows in parts.items()} == {
        "train": quickstart.ROWS,
        "held_out": quickstart.HELD_OUT,
    }
    for row in parts["train"] + parts["held_out"]:
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert re.fullmatch(r"What does `[\w.]+` do in Python\?", question["content"])
        assert re.fullmatch(r"[A-Z].{28,198}\.", answer["content"])


def test_the_data_are_the_same_each_time(dag: DAG) -> None:
    assert prepare(dag) == prepare(dag)


def test_no_held_out_question_or_answer_is_trained_on(dag: DAG) -> None:
    parts = prepare(dag)
    texts = {part: {message["content"] for row in rows for message in row["messages"]} for part, rows in parts.items()}
    assert not texts["train"] & texts["held_out"]


def test_the_question_that_the_report_shows_is_held_out(dag: DAG) -> None:
    shown = prepare(dag)["held_out"][0]["messages"]
    assert shown[0]["content"] == "What does `textwrap.dedent` do in Python?"
    assert shown[1]["content"].startswith("Remove any common leading whitespace")
