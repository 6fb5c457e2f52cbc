"""A training as a pod of its own.

* the object, held against golden files; what one pod cannot be
* what a template or a mutation hook must not take from it
* how it tells of itself as a workload: queued, running, ended, beside a container that runs for ever
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_provider_finetune.launchers.job_request import QUEUE, JobRequest
from airflow_provider_finetune.launchers.observed import WHOLE
from airflow_provider_finetune.launchers.phases import Phase, entered, phase_of
from airflow_provider_finetune.launchers.pod import BASE, bare_pod_state, made_as_asked, render, workload_state
from airflow_provider_finetune.launchers.refusal import CannotRender
from tests.kubernetes.fake_cluster import at, condition, own_pod, running, terminated, waiting
from tests.launchers.conftest import FULL, FULL_CONFIG, MINIMAL, stable

OWN: dict[str, Any] = {"runtime": "", "runtime_kind": ""}
FURTHER = {
    "env_from": [{"secretRef": {"name": "settings"}}],
    "priority_class_name": "training",
    "scheduler_name": "volcano",
}
REQUESTS = {
    "minimal": replace(MINIMAL, **OWN, image="registry.example/training-hub:1"),
    "full": replace(FULL, **OWN, kubernetes_config={**FULL_CONFIG, **FURTHER}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_object_is_what_it_was(holds: Callable[..., None], name: str) -> None:
    holds(f"{name}-pod", stable(render(REQUESTS[name])))


def test_every_key_of_kubernetes_config_reaches_the_pod() -> None:
    said = str(render(REQUESTS["full"])["spec"])
    for value in ("settings", "training", "volcano", "trainer", "registry", "POD_IP", "runAsNonRoot", "120"):
        assert value in said


def test_several_workers_are_no_pod() -> None:
    spec = replace(MINIMAL.spec, nodes=2)
    with pytest.raises(CannotRender, match="Use launcher='trainjob'"):
        render(replace(REQUESTS["minimal"], spec=spec))


def test_another_request_has_another_hash() -> None:
    def whole(**more: Any) -> str:
        return render(replace(REQUESTS["minimal"], **more))["metadata"]["labels"][WHOLE]

    hashes = [whole(), whole(pod_operator_arguments={"hostnetwork": True}), whole(memory="64Gi"), whole(runtime="x")]
    assert len({*hashes}) == 4
    assert whole() == hashes[0]


def altered(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    pod = copy.deepcopy(render(REQUESTS["minimal"]))
    change(pod)
    return pod


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pod: pod["metadata"].update(name="other"), "its name"),
        (lambda pod: pod["metadata"].update(namespace="other"), "its namespace"),
        (lambda pod: pod["metadata"]["labels"].pop(WHOLE), "its labels"),
        (lambda pod: pod["spec"].update(restartPolicy="OnFailure"), "restartPolicy: Never"),
        (lambda pod: pod["spec"]["containers"][0].update(name="main"), "no container 'base' with an image"),
        (lambda pod: pod["spec"]["containers"][0].pop("image"), "no container 'base' with an image"),
    ],
)
def test_what_it_is_followed_by_must_stay(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    with pytest.raises(CannotRender, match=said):
        made_as_asked(altered(change), render(REQUESTS["minimal"]))


def test_all_else_is_for_templates_and_hooks_to_change() -> None:
    def change(pod: dict[str, Any]) -> None:
        pod["metadata"]["labels"]["team"] = "nlp"
        pod["spec"]["nodeSelector"] = {"pool": "gpu"}
        del pod["spec"]["terminationGracePeriodSeconds"]

    pod = made_as_asked(altered(change), render(REQUESTS["minimal"]))
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert pod["spec"]["terminationGracePeriodSeconds"] == 300, "an old KubernetesPodOperator leaves it out"


def phase(pod: dict[str, Any]) -> Phase:
    state = bare_pod_state(pod)
    assert state.workload == workload_state(pod)
    return phase_of(state.workload, [state])


PROXY = {"name": "proxy", "state": running()}


def beside(pod: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    pod["status"]["containerStatuses"].insert(0, container)
    return pod


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (own_pod("a", gated=True), Phase.QUEUED),
        (own_pod("a"), Phase.STARTING),
        (own_pod("a", waiting("ErrImagePull")), Phase.STARTING),
        (own_pod("a", running()), Phase.RUNNING),
        (own_pod("a", terminated(0), phase="Succeeded"), Phase.SUCCEEDED),
        (own_pod("a", terminated(1), phase="Failed"), Phase.FAILED),
        # A kubelet tells the end of the container a moment earlier, and only an ended pod can stay.
        (own_pod("a", terminated(0), age=12), Phase.RUNNING),
        (beside(own_pod("a", running()), PROXY), Phase.RUNNING),
        (beside(own_pod("a", terminated(0)), PROXY), Phase.SUCCEEDED),
        (beside(own_pod("a", terminated(1)), PROXY), Phase.FAILED),
    ],
)
def test_a_phase_follows_from_the_pod_alone(pod: dict[str, Any], expected: Phase) -> None:
    assert phase(pod) is expected


def test_a_pod_in_which_something_goes_on_is_not_at_rest() -> None:
    assert not workload_state(beside(own_pod("a", terminated(1)), PROXY)).runs_once
    assert workload_state(own_pod("a", terminated(1), phase="Failed")).runs_once


def test_a_pod_that_a_node_ends_says_so_itself() -> None:
    pod = own_pod("a", phase="Failed", age=60)
    pod["status"] |= {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the deadline"}
    pod["status"]["conditions"] = [condition("Ready", 5, value="False")]
    state = workload_state(pod)
    assert (state.condition, state.reason) == ("Failed", "DeadlineExceeded")
    assert state.ended_at == datetime.fromisoformat(at(5).replace("Z", "+00:00"))


def starts_since(*seen: tuple[dict[str, Any], datetime]) -> datetime:
    """When the last state of a pod that was watched began."""
    state = None
    for pod, when in seen:
        state = bare_pod_state(pod, state, when)
    assert state
    assert state.workload
    return entered(phase_of(state.workload, [state]), state.workload, [state])


def test_time_in_a_queue_is_no_time_of_the_start() -> None:
    now = datetime.now(timezone.utc)
    later = now + timedelta(seconds=30)
    gated, free = own_pod("a", gated=True, age=3600), own_pod("a", age=3600)
    for pod in (gated, free):
        pod["metadata"]["labels"][QUEUE] = "gpus"
    assert starts_since((gated, now), (free, later), (free, later + timedelta(seconds=9))) == later
    assert starts_since((free, later)) == later, "who looks first does not know since when, and is patient"


def test_a_pod_that_no_queue_holds_starts_when_it_is_made() -> None:
    pod = own_pod("a", age=3600)
    assert starts_since((pod, datetime.now(timezone.utc))) == workload_state(pod).created


def test_the_container_has_the_name_that_mutation_hooks_know() -> None:
    (container,) = render(REQUESTS["minimal"])["spec"]["containers"]
    assert container["name"] == BASE


def test_a_request_for_a_trainjob_is_never_that_of_a_pod() -> None:
    of_trainjob: JobRequest = MINIMAL
    assert of_trainjob.whole != replace(of_trainjob, **OWN).whole
