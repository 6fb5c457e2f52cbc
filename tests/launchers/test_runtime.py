"""Whether a training runtime lets a failed program end: a warning with the cure for each setting that does not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from airflow_provider_finetune.exceptions import TrainingRejected
from airflow_provider_finetune.launchers.runtime import check_runtime, runs_once

CONTAINER = {"name": "node", "terminationMessagePolicy": "FallbackToLogsOnError"}
POD = {"restartPolicy": "Never", "containers": [{"name": "sidecar"}, CONTAINER]}
STEP = "trainer.kubeflow.org/trainjob-ancestor-step"
LABELS = {"labels": {STEP: "trainer"}}
NODE = {"name": "node", "template": {"metadata": LABELS, "spec": {"backoffLimit": 0, "template": {"spec": POD}}}}
RUNTIME: dict[str, Any] = {"spec": {"template": {"spec": {"replicatedJobs": [{"name": "dataset-initializer"}, NODE]}}}}


def changed(
    *, jobset: Any = None, labels: Any = None, job: Any = None, pod: Any = None, container: Any = None
) -> dict[str, Any]:
    """The good runtime with settings added, or taken out where they are ``None``."""
    runtime = deepcopy(RUNTIME)
    spec = runtime["spec"]["template"]["spec"]
    node = spec["replicatedJobs"][1]["template"]
    template = node["spec"]["template"]["spec"]
    parts = (spec, node["metadata"]["labels"], node["spec"], template, template["containers"][1])
    for part, change in zip(parts, (jobset, labels, job, pod, container), strict=True):
        for name, value in (change or {}).items():
            part.pop(name, None)
            part.update({name: value} if value is not None else {})
    return runtime


def warnings_of(runtime: Any) -> list[str]:
    return check_runtime(runtime, "ClusterTrainingRuntime", "training-hub")


def test_a_runtime_that_ends_a_failed_program_is_fine() -> None:
    assert warnings_of(RUNTIME) == []
    assert runs_once(RUNTIME)
    assert warnings_of(changed(jobset={"failurePolicy": {"maxRestarts": 0}})) == []


@pytest.mark.parametrize(
    ("change", "words", "once"),
    [
        ({"pod": {"restartPolicy": None}}, "does not set restartPolicy: Never", False),
        ({"pod": {"restartPolicy": "OnFailure"}}, "does not set restartPolicy: Never", False),
        ({"job": {"backoffLimit": None}}, "does not set backoffLimit: 0", False),
        ({"job": {"backoffLimit": 3}}, "does not set backoffLimit: 0", False),
        ({"jobset": {"failurePolicy": {"maxRestarts": 2}}}, "sets failurePolicy.maxRestarts", False),
        ({"jobset": {"ttlSecondsAfterFinished": 0}}, "sets ttlSecondsAfterFinished", False),
        ({"container": {"terminationMessagePolicy": None}}, "does not set terminationMessagePolicy", True),
        ({"container": {"terminationMessagePolicy": "File"}}, "does not set terminationMessagePolicy", True),
    ],
)
def test_what_starts_a_program_again_or_hides_its_end_is_a_warning_with_a_cure(
    change: Any, words: str, once: bool
) -> None:
    runtime = changed(**change)
    (warning,) = warnings_of(runtime)
    assert f"ClusterTrainingRuntime 'training-hub' {words}" in warning
    assert "docs/kubernetes/runtime.yaml" in warning
    assert runs_once(runtime) is once


def test_the_shipped_runtimes_get_every_warning_that_applies() -> None:
    runtime = changed(
        pod={"restartPolicy": None}, job={"backoffLimit": None}, container={"terminationMessagePolicy": None}
    )
    assert len(warnings_of(runtime)) == 3


def test_a_runtime_that_may_not_be_read_is_a_warning() -> None:
    (warning,) = warnings_of(None)
    assert "may not be read" in warning
    assert "docs/kubernetes/rbac.yaml" in warning
    assert not runs_once(None)


@pytest.mark.parametrize(
    "runtime", [{}, {"spec": {"template": {"spec": {}}}}, changed(pod={"containers": [{"name": "trainer"}]})]
)
def test_a_runtime_that_cannot_train_is_an_error(runtime: Any) -> None:
    with pytest.raises(TrainingRejected, match="no replicatedJob 'node' with a container 'node'"):
        warnings_of(runtime)


@pytest.mark.parametrize("step", [None, "dataset-initializer"])
def test_a_runtime_in_which_the_trainer_would_not_start_our_program_is_an_error(step: str | None) -> None:
    with pytest.raises(TrainingRejected, match=f"no label {STEP}: trainer in the template of job 'node'"):
        warnings_of(changed(labels={STEP: step}))
