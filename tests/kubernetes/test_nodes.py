"""A node that does not answer: how its pods show it, and what the task log says of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_provider_finetune.cluster.nodes import LostNodes
from airflow_provider_finetune.launchers.observed import pod_state
from tests.kubernetes.fake_cluster import condition, pod, running, terminated

CALLED_NOT_READY = condition("Ready", value="False")


@pytest.mark.parametrize(
    ("shown", "silent"),
    [
        (pod("a", running(), condition("Ready"), ready=True), False),
        (pod("a", running(), CALLED_NOT_READY, ready=True), True),
        (pod("a", running(), condition("Ready", value="False", reason="ContainersNotReady"), ready=False), False),
        (pod("a", running(), condition("Ready", value="False", reason="ReadinessGatesNotReady"), ready=True), False),
        (pod("a", terminated(0), condition("Ready", value="False", reason="PodCompleted"), ready=False), False),
        (pod("a", None, CALLED_NOT_READY, phase="Pending"), False),
    ],
)
def test_a_pod_that_only_the_cluster_calls_not_ready_is_on_a_node_that_does_not_answer(
    shown: dict[str, Any], silent: bool
) -> None:
    assert pod_state(shown).silent is silent


def test_a_lost_node_is_told_once_with_what_to_do_and_that_it_answers_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runs, lost = (pod_state(pod("a", running(), found, ready=True)) for found in (condition("Ready"), CALLED_NOT_READY))
    nodes = LostNodes(logging.getLogger("task"))
    for seen in (runs, lost, lost, runs, runs):
        nodes.look([seen])
    away, back = (record.getMessage() for record in caplog.records)
    assert away.startswith(f"Node node1 does not answer, so it is not known whether pod {runs.name} trains on")
    assert "kubectl taint node node1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in away
    assert back == "Node node1 answers again"
