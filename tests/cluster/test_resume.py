"""A real training that loses its node twice, to an eviction and to a pod of higher priority, goes on each time.

Steps and losses are those of the same training that nobody has ended; the last try has another memory limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.exceptions import TrainingFailed, TrainingRejected
from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.node import PAUSE_IMAGE
from tests.cluster.observer import OURS, Observer
from tests.cluster.tries import LAUNCHERS, Tries, Try

Step = Callable[[str, int], str]
Take = Callable[[str], None]


@pytest.fixture
def long(cluster_task: dict[str, Any], claim: Path) -> dict[str, Any]:
    """Arguments of a training of 400 steps, several seconds, of which two are at work at once."""
    few = {"training_num_epochs": 100, "training_seed": 7, "training_learning_rate": 5e-3}
    return {**cluster_task, **few, "training_resource_cpu_per_worker": "800m"}


@pytest.fixture
def at_step(cluster: Cluster, namespace: str, observed: Observer, wait: Callable[..., Any]) -> Step:
    """Wait until a job has said that it is at a step or later; return its pod."""

    def steps(pod: str) -> list[int]:
        log = cluster.kubectl("logs", pod, f"--namespace={namespace}")
        return [json.loads(line)["step"] for line in re.findall(r"^finetune-progress (\{.*\})$", log, re.MULTILINE)]

    def until(job: str, step: int) -> str:
        (pod,) = wait(lambda: observed.pods(job, phase="Running"), f"pod of {job}")
        wait(lambda: max(steps(pod), default=0) >= step, f"step {step} of {job}", 120)
        return str(pod)

    return until


@pytest.fixture
def evict(cluster: Cluster, namespace: str) -> Take:
    """Take a pod from its node as ``kubectl drain`` does."""

    def take(pod: str) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(body))

    return take


@pytest.fixture
def preempt(cluster: Cluster, namespace: str, wait: Callable[..., Any]) -> Iterator[Take]:
    """Let the scheduler take a pod from its node for one of higher priority, which will not stand beside a training."""
    name = f"{namespace}-urgent"
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": 1000,
    }
    trains = {"matchExpressions": [{"key": f"{OURS}/job", "operator": "Exists"}]}
    apart = [{"labelSelector": trains, "topologyKey": "kubernetes.io/hostname"}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "urgent", "namespace": namespace},
        "spec": {
            "priorityClassName": name,
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": apart}},
            "containers": [{"name": "base", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}],
        },
    }

    def take(_: str) -> None:
        cluster.apply(pod)
        wait(lambda: "urgent" in cluster.kubectl(*running), "the urgent pod")
        cluster.kubectl("delete", "pod", "urgent", f"--namespace={namespace}", "--grace-period=1")

    running = ("get", "pods", f"--namespace={namespace}", "--field-selector=status.phase=Running", "--output=name")
    cluster.apply({**priority, "metadata": {"name": name}})
    yield take
    cluster.kubectl("delete", "priorityclass", name)


def checkpoints(lineage: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in lineage.glob("checkpoints/checkpoint-*"))


def lose(attempt: Try, at_step: Step, step: int, take: Take) -> TrainingFailed:
    """Run a try that loses its node at a step or later; return its error."""
    job = attempt.submit()
    waiting = attempt.waiting()
    take(at_step(job, step))
    event = waiting.result(60)
    with pytest.raises(TrainingFailed) as error:
        attempt.complete(event)
    assert not isinstance(error.value, TrainingRejected), "a retry helps"
    return error.value


def outcome_in(lineage: Path) -> Outcome:
    return Outcome.from_json((lineage / "outcome.json").read_text())


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_training_that_is_evicted_and_preempted_goes_on_at_its_step_with_the_losses_of_one_that_was_not(
    claim: Path,
    long: dict[str, Any],
    launched: dict[str, dict[str, Any]],
    at_step: Step,
    evict: Take,
    preempt: Take,
    launcher: str,
) -> None:
    disturbed, undisturbed = f"disturbed-{launcher}", f"undisturbed-{launcher}"
    tries = Tries(disturbed, {**long, **launched[launcher]})
    lineage = claim / "runs" / "tries" / disturbed / "train" / "1"

    error = lose(tries.next(), at_step, 20, evict)
    assert (error.failure.failure_class, error.failure.cause) == ("preempted", "evicted")
    assert "EvictionByEvictionAPI" in error.failure.message
    (evicted_at,) = checkpoints(lineage)

    error = lose(tries.next(), at_step, evicted_at + 20, preempt)
    assert (error.failure.failure_class, error.failure.cause) == ("preempted", "preempted")
    assert "PreemptionByScheduler" in error.failure.message
    preempted_at = checkpoints(lineage)[-1]
    assert preempted_at > evicted_at

    whole = Tries(undisturbed, {**long, **launched[launcher]}).next()
    last = tries.next(training_resource_memory_per_worker="4Gi")
    for attempt in (last, whole):
        attempt.submit()
    waiting = whole.waiting()
    results = [last.finish(), whole.complete(waiting.result(120))]
    assert results[0]["metrics"]["resumed_from_step"] == preempted_at
    assert [result["metrics"]["steps"] for result in results] == [400, 400]
    ended, control = (outcome_in(lineage.parents[2] / run / "train" / "1") for run in (disturbed, undisturbed))
    assert [step for step, _ in ended.loss_curve] == [step for step, _ in control.loss_curve]
    losses = [loss for _, loss in control.loss_curve]
    assert [loss for _, loss in ended.loss_curve] == pytest.approx(losses, rel=1e-4)
