"""A training as a TrainJob.

Aspects: the whole object, in each form of the API (golden files); what each form carries, held against the table; a
form that lacks something says so; the Trainer's traps; what counts as the same request; sizes.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.launchers.job_request import JobRequest
from airflow_provider_finetune.launchers.kubernetes_config import FORMS
from airflow_provider_finetune.launchers.observed import IDENTITY, JOB, MANAGED_BY, TASK, WHOLE
from airflow_provider_finetune.launchers.refusal import CannotRender
from airflow_provider_finetune.launchers.trainjob import (
    CARRIED,
    NEVER_CARRIED,
    TrainerApi,
    Unsupported,
    render,
)
from tests.launchers.conftest import FULL, FULL_CONFIG, MINIMAL, OLD_CONFIG, PATCHES_CONFIG, stable

NEWEST, TRAINER_2_2, TRAINER_2_1 = TrainerApi
FULLEST = {NEWEST: FULL_CONFIG, TRAINER_2_2: PATCHES_CONFIG, TRAINER_2_1: OLD_CONFIG}
REMOTE = replace(
    MINIMAL,
    spec=replace(
        MINIMAL.spec, dataset="s3://bucket/rows", output_model="s3://bucket/model", output_kind="both", mounts={}
    ),
    secrets={"AWS_ACCESS_KEY_ID": "s3/id"},
    claims={
        "volumes": [{"name": "finetune-scratch", "emptyDir": {}}],
        "volume_mounts": [{"name": "finetune-scratch", "mountPath": "/var/lib/finetune"}],
    },
)
TWO_NODES = replace(MINIMAL, spec=replace(MINIMAL.spec, algorithm="osft", nodes=2, processes_per_node=4), gpus=4)


def pods_of(job: dict[str, Any]) -> dict[str, Any]:
    """The pod template that the Trainer merges into the runtime's."""
    if "podTemplateOverrides" in job["spec"]:
        (override,) = job["spec"]["podTemplateOverrides"]
        assert override["targetJobs"] == [{"name": "node"}]
        return override
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    return replicated["template"]["spec"]["template"]


@pytest.mark.parametrize("api", TrainerApi)
@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("minimal", MINIMAL),
        ("full", FULL),
        ("inline", replace(MINIMAL, runner="inline")),
        ("two-nodes", TWO_NODES),
        ("remote", REMOTE),
    ],
)
def test_the_object_is_what_it_was(holds, name: str, request_: JobRequest, api: TrainerApi):
    config = {key: value for key, value in FULLEST[api].items() if key in request_.kubernetes_config}
    holds(f"{name}-{api.value}", stable(render(replace(request_, kubernetes_config=config), api)))


def test_every_key_of_kubernetes_config_has_its_row_in_the_table():
    assert CARRIED.keys() == FORMS.keys()
    assert set(NEVER_CARRIED) == {"env_from", "priority_class_name", "scheduler_name"}


@pytest.mark.parametrize("api", TrainerApi)
def test_each_key_that_a_form_carries_reaches_the_pod_and_each_other_is_refused_by_name(api: TrainerApi):
    for key, value in FULL_CONFIG.items():
        request = replace(MINIMAL, kubernetes_config={key: value})
        if api in CARRIED[key]:
            assert json.dumps(value)[1:-1] in json.dumps(render(request, api))
        else:
            with pytest.raises(Unsupported, match=rf"too old to carry {key}.*runtime's pod template"):
                render(request, api)


def test_an_older_form_names_all_that_it_lacks():
    with pytest.raises(Unsupported) as caught:
        render(FULL, TRAINER_2_1)
    lacking = ["security_context", "container_security_context", "termination_grace_period_seconds"]
    assert caught.value.keys == lacking


def test_the_oldest_form_has_no_deadline_and_the_two_older_no_grace_period():
    request = replace(MINIMAL, deadline=60)
    jobs = {api: render(request, api) for api in TrainerApi}
    deadlines = [jobs[api]["spec"].get("activeDeadlineSeconds") for api in TrainerApi]
    grace = [pods_of(jobs[api])["spec"].get("terminationGracePeriodSeconds") for api in TrainerApi]
    assert deadlines == [60, 60, None]
    assert grace == [300, None, None]


@pytest.mark.parametrize(
    ("resume", "config", "seconds"),
    [("auto", {}, 300), ("never", {}, 60), ("auto", {"termination_grace_period_seconds": 45}, 45)],
)
def test_the_runner_knows_how_long_it_has_to_save(resume: str, config: dict[str, int], seconds: int):
    request = replace(MINIMAL, spec=replace(MINIMAL.spec, resume=resume), kubernetes_config=config)
    job = render(request, TrainerApi.RUNTIME_PATCHES)
    assert pods_of(job)["spec"]["terminationGracePeriodSeconds"] == seconds
    arguments = job["spec"]["trainer"]["args"]
    assert arguments[arguments.index("--grace-seconds") + 1] == str(seconds)


@pytest.mark.parametrize("api", TrainerApi)
def test_the_trainer_is_always_told_nodes_and_processes(api: TrainerApi):
    trainer = render(TWO_NODES, api)["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)


def test_no_node_at_all_is_refused_because_the_trainer_would_call_it_complete():
    with pytest.raises(CannotRender, match="training_resource_num_workers: it must be at least 1"):
        render(replace(MINIMAL, spec=replace(MINIMAL.spec, nodes=0)), NEWEST)


@pytest.mark.parametrize("api", TrainerApi)
def test_a_queue_is_a_label_and_holding_back_is_left_to_it(api: TrainerApi):
    job = render(replace(MINIMAL, queue_name="gpus"), api)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "kueue.x-k8s.io/queue-name" not in pods_of(job)["metadata"]["labels"]
    assert "suspend" not in job["spec"]


@pytest.mark.parametrize("api", TrainerApi)
def test_job_and_pods_are_found_by_labels_whose_values_kubernetes_takes(api: TrainerApi):
    job = render(replace(FULL, kubernetes_config=OLD_CONFIG), api)
    on_job, on_pods = job["metadata"]["labels"], pods_of(job)["metadata"]["labels"]
    assert {MANAGED_BY, IDENTITY, TASK, WHOLE, "team"} <= on_job.keys()
    assert on_pods == {"team": "nlp", JOB: FULL.name, **{key: on_job[key] for key in (MANAGED_BY, IDENTITY)}}
    for value in (*on_job.values(), *on_pods.values()):
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)
    assert job["metadata"]["annotations"]["airflow-provider-finetune/run_id"] == "manual__2026-01-01T00:00:00+00:00"


def test_a_label_of_the_user_never_takes_the_place_of_ours():
    job = render(replace(MINIMAL, user_labels={IDENTITY: "x", MANAGED_BY: "x", JOB: "x"}), NEWEST)
    assert job["metadata"]["labels"][IDENTITY] == MINIMAL.labels[IDENTITY]
    assert pods_of(job)["metadata"]["labels"][JOB] == MINIMAL.name


def test_the_image_of_the_runtime_stays_where_none_is_named():
    assert "image" not in render(MINIMAL, NEWEST)["spec"]["trainer"]


def test_what_the_user_mounts_as_shared_memory_stays_in_place_of_ours():
    config = {
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
        "volume_mounts": [{"name": "shm", "mountPath": "/dev/shm/"}],
    }
    ours = pods_of(render(MINIMAL, NEWEST))["spec"]
    theirs = pods_of(render(replace(MINIMAL, kubernetes_config=config), NEWEST))["spec"]
    assert [it["emptyDir"] for it in ours["volumes"] if "emptyDir" in it] == [{"medium": "Memory"}]
    assert [it["name"] for it in theirs["volumes"] if "emptyDir" in it] == ["shm"]


@pytest.mark.parametrize(
    "change",
    [
        {"image": "other"},
        {"envs": {"A": "2"}},
        {"secrets": {"A": "b/c"}},
        {"gpus": 2},
        {"queue_name": "q"},
        {"kubernetes_config": {"node_selector": {"a": "b"}}},
        {"deadline": 5},
        {"user_labels": {"a": "b"}},
        {"spec": replace(MINIMAL.spec, dataset="/mnt/training/other.jsonl")},
    ],
)
def test_another_request_has_another_hash(change: dict[str, Any]):
    assert replace(MINIMAL, **change).whole != MINIMAL.whole


def test_another_try_of_the_same_request_has_the_same_hash():
    other = replace(MINIMAL, name="other", annotations={}, labels={}, spec=replace(MINIMAL.spec, recover=True))
    assert other.whole == MINIMAL.whole == "5481c6e945412646"


def test_rendering_changes_nothing_in_the_request():
    before = copy.deepcopy(FULL)
    render(FULL, NEWEST)
    assert before == FULL


def with_extra(size: int) -> TrainingSpec:
    return replace(MINIMAL.spec, extra_args={"system_prompt": "x" * size})


def test_an_argument_that_no_trainjob_would_take_is_refused_with_its_size():
    with pytest.raises(CannotRender, match=r"argument 3 of the container has 65,\d{3} bytes.*files on the claim"):
        render(replace(MINIMAL, spec=with_extra(65_100)), NEWEST)
    render(replace(MINIMAL, spec=with_extra(64_000)), NEWEST)


def test_an_object_that_is_too_large_is_refused_with_its_size():
    with pytest.raises(CannotRender, match=r"TrainJob: it has 26\d,\d{3} bytes.*256,000"):
        render(replace(MINIMAL, envs={"A": "x" * 260_000}), NEWEST)


def test_more_variables_than_a_trainjob_takes_are_refused():
    with pytest.raises(CannotRender, match=r"1\d\d environment variables, and a TrainJob takes 128"):
        render(replace(MINIMAL, envs={f"A{n}": "1" for n in range(128)}), NEWEST)
