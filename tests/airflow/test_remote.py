"""Data, models and results behind URLs, through real task runs with a stand-in for the runner.

Aspects: URIs from Assets, XCom and templates; a remote model in XCom and in the asset's event, with its adapter and the
revision of its base; mapped instances; URLs that give access to what they name, in log, rendered fields and XCom; the
example DAG.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner

from tests.airflow.test_authoring import spec_of
from tests.airflow.test_local import asset_events

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "remote_data.py"
MASKS_RENDERED_FIELDS = hasattr(task_runner, "_serialize_template_field")
"""Airflow 3.1 hands them on as they are; masked are its logs alone."""

SIGNATURE = "0123456789abcdef%2Fsigned"


@pytest.mark.parametrize(
    ("head", "dataset"),
    [
        ("", 'Asset("s3://bucket/rows.jsonl")'),
        ("", '"s3://{{ params.bucket }}/rows.jsonl"'),
        ('first = task(lambda: "s3://bucket/rows.jsonl", task_id="prepare")()', "first"),
    ],
)
def test_a_uri_reaches_the_runner_from_an_asset_a_template_and_an_upstream_result(run, local, head, dataset):
    result = run(
        f'{head}\nLoRAOperator(task_id="train", **{{**LOCAL, "dataset": {dataset}}})',
        dag_arguments='params={"bucket": "bucket"}',
    )
    assert result.state == "success"
    assert spec_of(local, result)["dataset"] == "s3://bucket/rows.jsonl"


def test_a_remote_model_is_handed_on_by_its_uri_with_its_adapter_and_the_revision_of_its_base(run, xcom):
    result = run(
        """
        LoRAOperator(
            task_id="train",
            output_model=Asset("s3://bucket/model"),
            output_kind="{{ 'both' }}",
            training_base_model="org/model@main",
            **LOCAL,
        )
        """
    )
    assert result.state == "success"
    said = xcom(result.tasks["train"])
    assert (said["model_uri"], said["model_path"]) == ("s3://bucket/model", None)
    assert said["adapter_uri"] == "s3://bucket/model/adapter"
    ((uri, extra),) = asset_events(result)
    assert (uri, extra["model_uri"], extra["adapter_uri"]) == (uri, uri, f"{uri}/adapter")
    assert extra["base_model"] == {"name": "org/model", "revision": "1a2b3c4"}


def test_mapped_instances_publish_below_their_index_in_a_store(run, xcom):
    result = run(
        """
        LoRAOperator.partial(task_id="train", output_model="s3://bucket/sweep/", **LOCAL).expand(training_seed=[1, 2])
        """
    )
    assert result.state == "success"
    uris = [xcom(result.tasks[f"train/{index}"], "model_uri") for index in (0, 1)]
    assert uris == ["s3://bucket/sweep/0", "s3://bucket/sweep/1"]


def rendered(result: SimpleNamespace, task: str) -> dict[str, Any]:
    """What the UI shows of a task's rendered templates."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.utils.session import create_session
    from sqlalchemy import select

    ti = result.tasks[task]
    found = select(RenderedTaskInstanceFields).where(
        RenderedTaskInstanceFields.dag_id == ti.dag_id,
        RenderedTaskInstanceFields.run_id == ti.run_id,
        RenderedTaskInstanceFields.task_id == ti.task_id,
        RenderedTaskInstanceFields.map_index == ti.map_index,
    )
    with create_session() as session:
        fields: dict[str, Any] = session.scalars(found).one().rendered_fields
        return fields


@pytest.mark.parametrize(
    "body",
    [
        'LoRAOperator(task_id="train", **{**LOCAL, "dataset": "https://host/rows.jsonl?page=7&X-Amz-Signature=%s"})',
        """
        signed = task(
            lambda: "https://host/rows.jsonl?page=7&X-Amz-Signature=%s", task_id="sign", show_return_value_in_logs=False
        )
        LoRAOperator(task_id="train", **{**LOCAL, "dataset": signed()})
        """,
        """
        LOCAL.pop("dataset")
        LoRAOperator.partial(task_id="train", **LOCAL).expand(
            dataset=["https://host/rows.jsonl?page=7&X-Amz-Signature=%s"]
        )
        """,
    ],
)
def test_the_signature_of_a_url_is_masked_where_templates_are_shown_and_reaches_the_runner(run, local, xcom, body):
    result = run(body % SIGNATURE)
    assert result.state == "success"
    task = next(name for name in result.tasks if name.startswith("train"))
    if MASKS_RENDERED_FIELDS:
        assert rendered(result, task)["dataset"] == "https://host/rows.jsonl?page=7&X-Amz-Signature=***"
    assert spec_of(local, result, task)["dataset"].endswith(SIGNATURE)
    assert SIGNATURE not in result.log
    assert SIGNATURE not in json.dumps(xcom(result.tasks[task]))


def test_a_credential_that_a_template_brings_is_refused_and_shown_nowhere(run, monkeypatch):
    result = run(
        """
        LoRAOperator(task_id="train", retries=2, output_model="s3://AKIAKEY123:{{ params.word }}@bucket/m", **LOCAL)
        """,
        dag_arguments='params={"word": "topsecret123"}',
    )
    assert (result.state, result.tasks["train"].try_number) == ("failed", 1)
    assert "output_model='s3://***': a credential stands in it" in result.log
    assert "topsecret123" not in result.log
    if MASKS_RENDERED_FIELDS:
        assert rendered(result, "train")["output_model"] == "s3://***:***@bucket/m"


def test_a_credential_in_a_dag_file_is_an_import_error_that_does_not_say_it(parse):
    error = parse('LoRAOperator(task_id="train", output_model="s3://AKIAKEY123:topsecret123@bucket/m", **LOCAL)').error
    problem = error.split("cannot train as it is written:")[1]
    assert "output_model='s3://***': a credential stands in it" in problem
    assert "topsecret123" not in problem


def test_the_example_takes_data_base_model_and_results_from_afar():
    train = runpy.run_path(str(EXAMPLE))["train"]
    assert train.training_base_model.count("@") == 1
    assert (train.dataset.split(":")[0], train.output_model.split(":")[0], train.pvc_path) == ("s3", "s3", None)
    assert [asset.uri for asset in train.outlets] == [train.output_model]
