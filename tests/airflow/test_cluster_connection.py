"""The cluster's connection as a running task finds it: from Airflow's own store, by ``asyncio.run`` on a worker."""

from __future__ import annotations

import json

import pytest

ASK = """
    @task
    def ask():
        import asyncio
        from airflow_provider_finetune.cluster.hook import TrainingHook
        from airflow_provider_finetune.cluster.refusals import Refused

        async def jobs():
            async with TrainingHook({conn_id!r}, pauses=()) as hook:
                await hook.list_jobs({{}})

        try:
            asyncio.run(jobs())
        except Refused as error:
            return str(error)

    ask()
"""


@pytest.fixture
def stored_connection() -> str:
    """A connection in the database, to a server that does not answer."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    extra = json.dumps({"kube_config": json.dumps(config), "namespace": "from-the-connection"})
    with create_session() as session:
        session.add(Connection(conn_id="stored_cluster", conn_type="kubernetes", extra=extra))
    return "stored_cluster"


def test_a_task_asks_the_cluster_of_a_stored_connection(run, xcom, stored_connection):
    result = run(ASK.format(conn_id=stored_connection))
    said = xcom(result.tasks["ask"])
    assert "The API server https://127.0.0.1:1 of connection 'stored_cluster' does not answer" in said
    assert "in namespace 'from-the-connection'" in said


def test_a_task_without_the_connection_is_told_how_to_make_it(run, xcom):
    said = xcom(run(ASK.format(conn_id="nowhere")).tasks["ask"])
    assert "There is no connection 'nowhere'" in said
    assert "airflow connections add nowhere" in said


def test_the_default_connection_need_not_exist(run, xcom, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    said = xcom(run(ASK.format(conn_id="kubernetes_default")).tasks["ask"])
    assert "Connection 'kubernetes_default' gives no usable credentials" in said
