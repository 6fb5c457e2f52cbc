"""The hook against real API servers: it finds the form of a TrainJob that each version of the Trainer takes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from airflow_provider_finetune.cluster import making
from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.launchers.observed import DELIVERED, IDENTITY
from airflow_provider_finetune.launchers.trainjob import TrainerApi
from tests.cluster.bed.trainer_api import TrainerAPI

FORMS = {"2.1.0": "podTemplateOverrides", "2.2.0": "runtimePatches-2.2", "2.3.0": "runtimePatches"}


def manifest(form: TrainerApi) -> dict[str, Any]:
    """A TrainJob that uses what only this form has."""
    labels = {"labels": {"form": form.name}}
    grace = {"terminationGracePeriodSeconds": 5} if form is TrainerApi.RUNTIME_PATCHES else {}
    job = {"name": "node", "template": {"spec": {"template": {"metadata": labels, "spec": grace}}}}
    runtime = {"template": {"spec": {"replicatedJobs": [job]}}}
    own = {
        TrainerApi.POD_TEMPLATE_OVERRIDES: {
            "podTemplateOverrides": [{"targetJobs": [{"name": "node"}], "metadata": labels}]
        }
    }.get(form, {"runtimePatches": [{"manager": "tests.example.org/hook", "trainingRuntimeSpec": runtime}]})
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "tune", "labels": {IDENTITY: "i1"}},
        "spec": {"runtimeRef": {"name": "training-hub"}, "trainer": {"numNodes": 1}, **own},
    }


def test_each_trainer_gets_the_form_that_it_takes(trainer_api: TrainerAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"kube_config_path": str(trainer_api.kubeconfig)}
    monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    monkeypatch.setattr(making, "_trainer_api", {})
    tried = []

    def render(form: TrainerApi) -> dict[str, Any]:
        tried.append(form.value)
        return manifest(form)

    async def life() -> None:
        async with TrainingHook("cluster", "default") as hook:
            made = await making.create_trainjob(hook, render)
            uid = made["metadata"]["uid"]
            assert await making.create_trainjob(hook, render) == made  # the name is taken, by ourselves
            for other in ("11111111-2222-3333-4444-555555555555", uid):
                assert await hook.job("tune")
                await hook.mark("tune", other, DELIVERED)
                marked = DELIVERED in ((await hook.job("tune")) or {})["metadata"].get("annotations", {})
                assert marked is (other == uid)
                await hook.delete_job("tune", other)
            assert await hook.job("tune") is None

    asyncio.run(life())
    assert tried[-1] == tried[-2] == FORMS[trainer_api.version]
