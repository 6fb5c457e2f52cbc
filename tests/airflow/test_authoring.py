"""The ways in which Airflow lets a DAG author pass arguments, each through a real DAG file.

Aspects: default_args; partial and expand; expand_kwargs; a mapped task group; edges from upstream results; Jinja with
typed coercion; native rendering; None from a template; serialisation; Asset and Path; the configured default launcher.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def spec_of(local: dict[str, Any], result: SimpleNamespace, task: str = "train") -> dict[str, Any]:
    """Return the spec that the runner was given; the safe form of the run id is the one directory below the DAG's."""
    (run_dir,) = Path(local["pvc_path"], result.dag.dag_id).iterdir()
    return json.loads((run_dir / task / "1" / "received.json").read_text())


def test_default_args_reach_documented_and_other_arguments(run, local):
    result = run(
        'LoRAOperator(task_id="train", **LOCAL)',
        dag_arguments='default_args={"training_lora_r": 4, "training_num_epochs": 2, "max_dropped": 0.5}',
    )
    assert result.state == "success"
    spec = spec_of(local, result)
    assert (spec["parameters"]["lora_r"], spec["parameters"]["num_epochs"], spec["max_dropped"]) == (4, 2, 0.5)


def test_expand_trains_once_for_each_value_in_a_directory_of_its_own(run, local, xcom, tmp_path):
    result = run(
        f"""
        LoRAOperator.partial(task_id="train", output_model={str(tmp_path / "models")!r}, **LOCAL).expand(
            training_learning_rate=[1e-4, 1e-5]
        )
        """
    )
    assert result.state == "success"
    rates = [spec_of(local, result, f"train/{index}")["parameters"]["learning_rate"] for index in (0, 1)]
    assert rates == [1e-4, 1e-5]
    paths = [xcom(result.tasks[f"train/{index}"])["model_path"] for index in (0, 1)]
    assert paths == [str(tmp_path / "models/0"), str(tmp_path / "models/1")]


def test_expand_kwargs_takes_documented_and_other_arguments(run, local):
    result = run(
        """
        LoRAOperator.partial(task_id="train", **LOCAL).expand_kwargs(
            [{"training_lora_r": 4, "show_samples": 1}, {"training_lora_r": 8, "show_samples": 2}]
        )
        """
    )
    assert result.state == "success"
    specs = [spec_of(local, result, f"train/{index}") for index in (0, 1)]
    assert [(spec["parameters"]["lora_r"], spec["show_samples"]) for spec in specs] == [(4, 1), (8, 2)]


def test_a_mapped_upstream_result_is_kept_as_an_edge(run, local):
    result = run(
        """
        @task
        def rates():
            return [1e-4, 2e-4]

        LoRAOperator.partial(task_id="train", **LOCAL).expand(training_learning_rate=rates())
        """
    )
    assert result.state == "success"
    assert result.dag.get_task("train").upstream_task_ids == {"rates"}
    assert spec_of(local, result, "train/1")["parameters"]["learning_rate"] == 2e-4


def test_an_argument_of_a_mapped_task_group_is_not_judged_before_it_is_known(run, local):
    result = run(
        """
        @task_group
        def sweep(rank):
            LoRAOperator(task_id="train", training_lora_r=rank, **LOCAL)

        sweep.expand(rank=[2, 4])
        """
    )
    assert result.state == "success"
    assert spec_of(local, result, "sweep.train/1")["parameters"]["lora_r"] == 4


def test_an_upstream_result_is_an_edge_and_a_value(run, local):
    result = run(
        """
        @task
        def prep():
            return "file:///prepared.jsonl"

        LoRAOperator(task_id="train", **{**LOCAL, "dataset": prep()})
        """
    )
    assert result.state == "success"
    assert result.dag.get_task("train").upstream_task_ids == {"prep"}
    assert spec_of(local, result)["dataset"] == "file:///prepared.jsonl"


def test_the_output_of_an_operator_is_an_edge_inside_a_dict_too(parse):
    parsed = parse(
        """
        @task
        def decay():
            return 0.1

        LoRAOperator(task_id="train", extra_args={"weight_decay": decay()}, **LOCAL)
        """
    )
    assert parsed.dag.get_task("train").upstream_task_ids == {"decay"}


@pytest.mark.parametrize("native", ["True", "False"])
def test_rendered_templates_take_the_declared_types(run, local, native):
    result = run(
        """
        LoRAOperator(
            task_id="train",
            training_learning_rate="{{ params.rate }}",
            training_lora_use_dora="{{ 1 == 1 }}",
            training_lora_target_modules="{{ 'q_proj' }},v_proj",
            training_envs="A={{ params.rate }},B=2",
            training_lr_warmup_steps="{{ none }}",
            training_base_model="{{ dag.dag_id }}/model",
            **LOCAL,
        )
        """,
        dag_arguments=f'params={{"rate": Param(1e-5)}}, render_template_as_native_obj={native}',
    )
    assert result.state == "success"
    spec = spec_of(local, result)
    parameters = spec["parameters"]
    assert parameters["learning_rate"] == 1e-5
    assert parameters["lora_use_dora"] is True
    assert parameters["lora_target_modules"] == ["q_proj", "v_proj"]
    assert parameters["lr_warmup_steps"] is None
    assert spec["base_model"] == f"{result.dag.dag_id}/model"


def test_the_two_operators_name_the_algorithm_to_the_runner(run, local):
    result = run(
        """
        LoRAOperator(task_id="lora", **LOCAL)
        FineTuneOperator(task_id="osft", **LOCAL)
        FineTuneOperator(task_id="sft", training_algorithm="SFT", **LOCAL)
        """
    )
    assert result.state == "success"
    algorithms = {name: spec_of(local, result, name)["algorithm"] for name in ("lora", "osft", "sft")}
    assert algorithms == {"lora": "lora_sft", "osft": "osft", "sft": "sft"}


def test_a_serialised_dag_keeps_the_documented_arguments(parse):
    try:
        from airflow.serialization.serialized_objects import DagSerialization as Serialization
    except ImportError:
        from airflow.serialization.serialized_objects import SerializedDAG as Serialization  # type: ignore[attr-defined,assignment]
    parsed = parse(
        """
        LoRAOperator(
            task_id="train",
            training_lora_r=4,
            training_envs={"A": "1,2"},
            output_model=Asset("file:///models/one"),
            training_timeout=timedelta(hours=1),
            **LOCAL,
        )
        """
    )
    restored = Serialization.deserialize_dag(json.loads(json.dumps(Serialization.serialize_dag(parsed.dag))))
    train: Any = restored.get_task("train")
    assert (train.training_lora_r, train.training_envs) == (4, {"A": "1,2"})
    assert train.output_model == "file:///models/one"
    assert [asset.uri for asset in train.outlets] == ["file:///models/one"]


def test_an_asset_stands_for_its_uri_and_a_path_for_its_text(run, local, tmp_path):
    result = run(
        """
        LoRAOperator(
            task_id="train",
            **{**LOCAL, "dataset": Asset("file:///data/asset.jsonl"), "pvc_path": Path(LOCAL["pvc_path"])},
            output_metrics=Path("/tmp/{{ dag.dag_id }}"),
        )
        """
    )
    assert result.state == "success"
    spec = spec_of(local, result)
    assert spec["dataset"] == "file:///data/asset.jsonl"
    assert spec["output_metrics"] == f"/tmp/{result.dag.dag_id}"


def test_launcher_and_interpreter_come_from_the_configuration_where_the_task_names_none(run, local, monkeypatch):
    monkeypatch.setenv("AIRFLOW__FINETUNE__LAUNCHER", "local")
    monkeypatch.setenv("AIRFLOW__FINETUNE__LOCAL_PYTHON", local["local_python"])
    monkeypatch.setenv("AIRFLOW__FINETUNE__WORK_DIR", local["pvc_path"])
    result = run('LoRAOperator(task_id="train", dataset="org/data")')
    assert result.state == "success"
    assert spec_of(local, result)["dataset"] == "org/data"


def test_without_a_root_the_files_lie_below_airflow_home(run, local, monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    result = run('LoRAOperator(task_id="train", **{**LOCAL, "pvc_path": None})')
    assert result.state == "success"
    assert Path(os.environ["AIRFLOW_HOME"], "finetune", result.dag.dag_id).is_dir()
