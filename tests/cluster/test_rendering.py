"""What each version of the Trainer says of the objects that are rendered.

Aspects: it takes its own form with all that the table of keys says, strictly checked, and nothing more; the others'
forms are refused; the Trainer's own webhooks take it as well; which form a cluster takes is found out on the way; a pod
of its own is taken too.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.cluster import making
from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.launchers import pod
from airflow_provider_finetune.launchers.container import runner_config_map
from airflow_provider_finetune.launchers.job_request import JobRequest
from airflow_provider_finetune.launchers.observed import IDENTITY
from airflow_provider_finetune.launchers.trainjob import CARRIED, TrainerApi, render
from tests.cluster.bed import controllers, runtime
from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.trainer_api import TrainerAPI
from tests.launchers.conftest import FULL, FULL_CONFIG, MINIMAL

FORMS = {
    "2.1.0": TrainerApi.POD_TEMPLATE_OVERRIDES,
    "2.2.0": TrainerApi.RUNTIME_PATCHES_2_2,
    "2.3.0": TrainerApi.RUNTIME_PATCHES,
}

REQUESTS = {
    "minimal": MINIMAL,
    "full": FULL,
    "inline": replace(MINIMAL, runner="inline"),
    "two nodes": replace(MINIMAL, spec=replace(MINIMAL.spec, nodes=2)),
}


def carried_by(form: TrainerApi, request: JobRequest, namespace: str = "default") -> JobRequest:
    config = {key: value for key, value in request.kubernetes_config.items() if form in CARRIED[key]}
    return replace(request, kubernetes_config=config, namespace=namespace)


@pytest.mark.parametrize("name", REQUESTS)
def test_each_version_takes_its_own_form_with_all_that_it_is_said_to_carry(trainer_api: TrainerAPI, name: str):
    form = FORMS[trainer_api.version]
    trainer_api.dry_run(render(carried_by(form, REQUESTS[name]), form))


def test_a_newer_form_is_refused_by_the_field_that_an_older_version_lacks(trainer_api: TrainerAPI):
    order = list(TrainerApi)
    lacking = {"2.1.0": "runtimePatches", "2.2.0": "terminationGracePeriodSeconds"}
    for form in order[: order.index(FORMS[trainer_api.version])]:
        if form is TrainerApi.RUNTIME_PATCHES or trainer_api.version == "2.1.0":
            with pytest.raises(subprocess.CalledProcessError) as refusal:
                trainer_api.dry_run(render(carried_by(form, MINIMAL), form))
            assert f'{lacking[trainer_api.version]}"' in refusal.value.stderr


def test_no_version_takes_a_key_that_the_table_denies_it(trainer_api: TrainerAPI):
    form = FORMS[trainer_api.version]
    for key in (key for key, forms in CARRIED.items() if form not in forms):
        job = render(carried_by(form, MINIMAL), form)
        with pytest.raises(subprocess.CalledProcessError) as refusal:
            trainer_api.dry_run(with_key(job, key))
        assert "unknown field" in refusal.value.stderr


def test_a_submission_finds_the_form_by_itself_within_five_requests(
    trainer_api: TrainerAPI, train_python: Path, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    kubectl = partial(controllers.kubectl, trainer_api.programs, trainer_api.kubeconfig)
    kubectl("apply", "--filename=-", stdin=json.dumps(runtime.load(train_python)))
    connect(trainer_api.kubeconfig, "bare")
    monkeypatch.setattr(making, "_trainer_api", {})
    form = FORMS[trainer_api.version]
    request = carried_by(form, FULL)

    def requests() -> Counter[str]:
        """What the server has answered so far of what a submission asks for, by its own count."""
        found = re.findall(r"^apiserver_request_total{(.*)} (\d+)$", kubectl("get", "--raw=/metrics"), re.M)
        asked: Counter[str] = Counter()
        for labels, count in found:
            of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if of["resource"] in ("trainjobs", "clustertrainingruntimes", "configmaps"):
                asked[f"{of['verb']} {of['resource']}"] += int(count)
        return asked

    async def submit() -> dict[str, Any]:
        async with TrainingHook("bare", "default") as hook:
            await hook.list_jobs({IDENTITY: request.labels[IDENTITY]})
            await hook.runtime(request.runtime_kind, request.runtime)
            await making.ensure_config_map(hook, runner_config_map(hook.namespace))
            return await making.create_trainjob(hook, lambda form: render(carried_by(form, request), form))

    before = requests()
    made = asyncio.run(submit())
    asked = requests() - before
    assert asked["POST trainjobs"] == (1 if form is TrainerApi.RUNTIME_PATCHES else 2)
    assert asked.total() <= 5, asked
    rendered = render(request, form)["spec"]
    assert {name: made["spec"][name] for name in rendered} == rendered


def test_the_api_server_takes_a_pod_of_its_own(cluster: Cluster, namespace: str):
    further = {"env_from": [{"configMapRef": {"name": "settings"}}], "scheduler_name": "volcano"}
    config = {**FULL_CONFIG, **further, "service_account_name": "airflow"}
    own: dict[str, Any] = {"runtime": "", "runtime_kind": "", "image": "registry.example/training-hub:1"}
    request = replace(FULL, namespace=namespace, kubernetes_config=config, **own)
    strict = ("create", "--dry-run=server", "--validate=strict", "--filename=-")
    assert "created (server dry run)" in cluster.kubectl(*strict, stdin=json.dumps(pod.render(request)))


def with_key(job: dict[str, Any], key: str) -> dict[str, Any]:
    """The object as it were if its form carried the key."""
    words = key.removeprefix("container_").split("_")
    name = words[0] + "".join(map(str.title, words[1:]))
    value: Any = FULL_CONFIG.get(key, [] if key == "env_from" else "x")
    spec = _pod_spec(job)
    (spec["containers"][0] if key in ("env_from", "container_security_context") else spec)[name] = value
    return job


def _pod_spec(job: dict[str, Any]) -> dict[str, Any]:
    if "podTemplateOverrides" in job["spec"]:
        return job["spec"]["podTemplateOverrides"][0]["spec"]
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]
    return patch["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_webhooks_of_a_running_trainer_take_it(cluster: Cluster, namespace: str, name: str):
    form = TrainerApi.RUNTIME_PATCHES
    for manifest in (render(carried_by(form, REQUESTS[name], namespace), form), runner_config_map(namespace)):
        created = cluster.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(manifest))
        assert "created (server dry run)" in created
