"""Whether a training runtime ends a failed program once and for all, and keeps its last words. Pure.

A TrainJob cannot set any of this, and the runtimes that Kubeflow ships leave it open: a program that fails then runs
seven times, and its log is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.exceptions import training_error

NODE = "node"
"""Name of the replicated job and of the container that train."""

_STEP = "trainer.kubeflow.org/trainjob-ancestor-step"
"""Label of the replicated job into which the Trainer puts a TrainJob's ``spec.trainer``; with none it ignores that."""

_CURE = "docs/kubernetes/runtime.yaml has it right"


def runs_once(runtime: Mapping[str, Any] | None) -> bool:
    """Return whether nothing starts a failed program again, as far as is known.

    :param runtime: the object; ``None`` where it may not be read.
    """
    return runtime is not None and not _what_restarts(runtime)


def check_runtime(runtime: Mapping[str, Any] | None, kind: str, name: str) -> list[str]:
    """Return what is wrong with a runtime but does not hinder a training, each with its cure.

    :param runtime: the object; ``None`` where it may not be read.
    :param kind: ``ClusterTrainingRuntime`` or ``TrainingRuntime``.
    :param name: its name.
    :raises TrainingRejected: it has no job or container that could train, or the Trainer would not start ours in it.
    """
    which = f"{kind} {name!r}"
    if runtime is None:
        return [
            f"{which} may not be read, so it is not known whether a failed training would be started again. Grant "
            "'get' on it; docs/kubernetes/rbac.yaml shows how"
        ]
    broken = _what_cannot_train(runtime)
    if broken:
        what, cure = broken
        cure = f"Name another by runtime=, or {cure}; {_CURE}"
        failure = Failure(failure_class="user", cause="runtime_without_node", message=f"{which} {what}", cure=cure)
        raise training_error(failure, f"kubectl get {kind.lower()} {name} -o yaml")
    warnings = [f"{which} {what}: {effect}. {cure}" for what, effect, cure in _what_restarts(runtime)]
    if (_container(runtime) or {}).get("terminationMessagePolicy") != "FallbackToLogsOnError":
        warnings.append(
            f"{which} does not set terminationMessagePolicy: FallbackToLogsOnError: a program that dies before it can "
            f"say why leaves no word. Set it in container {NODE!r}; {_CURE}"
        )
    return warnings


def _what_cannot_train(runtime: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return why a TrainJob would not train in a runtime, and what to change in it."""
    if _container(runtime) is None:
        what = f"has no replicatedJob {NODE!r} with a container {NODE!r}: nothing in it could train"
        return what, f"name job and container {NODE!r}"
    labels = ((_node(runtime).get("template") or {}).get("metadata") or {}).get("labels") or {}
    if labels.get(_STEP) != "trainer":
        label = f"{_STEP}: trainer"
        what = (
            f"has no label {label} in the template of job {NODE!r}: the Trainer would start the runtime's own program"
        )
        return what, f"set {label} in template.metadata.labels of that job"
    return None


def _what_restarts(runtime: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what would start a failed program again: the setting, its effect, the cure."""
    jobset, job = _jobset(runtime), (_node(runtime).get("template") or {}).get("spec") or {}
    pod = (job.get("template") or {}).get("spec") or {}
    found = []
    if pod.get("restartPolicy") != "Never":
        effect = "a failed program is started again in its pod, and the pod with its log is deleted in the end"
        found.append(("does not set restartPolicy: Never", effect, f"Set it in job {NODE!r}; {_CURE}"))
    if job.get("backoffLimit") != 0:
        effect = "a failed program is started again in up to six more pods"
        found.append(("does not set backoffLimit: 0", effect, f"Set it in job {NODE!r}; {_CURE}"))
    if (jobset.get("failurePolicy") or {}).get("maxRestarts"):
        effect = "a failed training is started again, and the pods that knew why are deleted"
        found.append(("sets failurePolicy.maxRestarts", effect, f"Leave it out: Airflow retries; {_CURE}"))
    if jobset.get("ttlSecondsAfterFinished") is not None:
        effect = "a failed training is started again each time that its JobSet has been deleted, without end"
        found.append(("sets ttlSecondsAfterFinished", effect, f"Leave it out; {_CURE}"))
    return found


def _jobset(runtime: Mapping[str, Any]) -> Mapping[str, Any]:
    return ((runtime.get("spec") or {}).get("template") or {}).get("spec") or {}


def _node(runtime: Mapping[str, Any]) -> Mapping[str, Any]:
    jobs = _jobset(runtime).get("replicatedJobs") or ()
    return next((job for job in jobs if job.get("name") == NODE), {})


def _container(runtime: Mapping[str, Any]) -> Mapping[str, Any] | None:
    job = (_node(runtime).get("template") or {}).get("spec") or {}
    containers = ((job.get("template") or {}).get("spec") or {}).get("containers") or ()
    return next((container for container in containers if container.get("name") == NODE), None)
