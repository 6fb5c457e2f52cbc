"""What a task hands on once its training has ended: the result in XCom, the asset's event, or the error.

No credential is in any of it, whatever a URI of the outcome holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.contract.uris import shown
from airflow_provider_finetune.exceptions import TrainingFailed, training_error
from airflow_provider_finetune.launchers.kinds import KINDS


def result_of(outcome: Outcome, launcher: str, workload: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what the next task needs; ``adapter_uri`` is in it where there is an adapter beside the model.

    :param outcome: of a training that has succeeded.
    :param launcher: what ran it.
    :param workload: the object that ran it, on a cluster.
    """
    job = {name: workload[name] for name in ("namespace", "name", "uid")} if workload else {}
    return {
        "model_uri": _shown(outcome.model_uri),
        "model_path": outcome.model_path,
        **_adapter(outcome),
        "metrics": outcome.metrics,
        "loss_curve": outcome.loss_curve,
        "loss_chart": _shown(outcome.loss_chart),
        "job": {"launcher": launcher, "work_dir": outcome.work_dir, **job},
    }


def event_of(outcome: Outcome) -> dict[str, Any]:
    """Return what the event of the model's Asset carries.

    :param outcome: of a training that has succeeded.
    """
    base = {name: _shown(value) for name, value in outcome.base_model.items()}
    return {
        "model_uri": _shown(outcome.model_uri),
        **_adapter(outcome),
        "metrics": outcome.metrics,
        **({"base_model": base} if base else {}),
    }


def error_of(
    outcome: Outcome, event: Mapping[str, Any] | None = None, *, stays: bool = False, gpus: int = 0
) -> TrainingFailed:
    """Return why there is no model, where to look, and what the training has cost and left.

    :param outcome: of a training without a model.
    :param event: of the trigger, for one on a cluster.
    :param stays: whether its object is there for somebody to look at.
    :param gpus: how many it had on a cluster.
    """
    failure = outcome.failure or failure_of(
        "no_model",
        f"The runner ended with status {outcome.status!r} and named no model.",
        "Look at its last lines in this log.",
    )
    seconds = event["phases"].get("running", 0.0) if event else 0.0
    gpu_seconds = gpus * seconds if event else outcome.metrics.get("gpu_seconds", 0.0)
    spent = {"GPU time": _gpu_time(gpu_seconds), "Checkpoint": _checkpoint(outcome, trained=seconds > 0 or not event)}
    if event is None:
        log = Path(outcome.work_dir or "", "train.log")
        return training_error(failure, str(log if log.exists() else log.parent), spent)
    return training_error(failure, _where(outcome, event, stays=stays), spent)


def _where(outcome: Outcome, event: Mapping[str, Any], *, stays: bool) -> str:
    """Name what is left of a training on a cluster, each with the command that shows it."""
    work, pod = event["workload"], event.get("pod", {})
    kubectl = f"kubectl --namespace {work['namespace']}"
    places = []
    if stays and pod and not pod["gone"]:
        places.append(f"Pod {pod['name']} on node {pod['node'] or 'unknown'} ({kubectl} logs {pod['name']})")
    elif stays:
        kind = work["kind"]
        places.append(f"{KINDS[kind].title} {work['name']} ({kubectl} describe {kind} {work['name']})")
    if pod.get("node") and not (stays and not pod["gone"]):
        places.append(f"node {pod['node']}, where pod {pod['name']} was (kubectl describe node {pod['node']})")
    if outcome.work_dir and event["phases"].get("running"):
        places.append(f"{outcome.work_dir}/train.log")
    return "; ".join(places) or "the lines above, as nothing else is left of the training"


def _gpu_time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} GPU hours" if seconds else ""


def _checkpoint(outcome: Outcome, *, trained: bool) -> str:
    """Say what a retry goes on from; nothing where that is not known, or no step was made."""
    kept = outcome.checkpoint
    if kept:
        return f"{kept['unit']} {kept['number']} in {kept['path']}, where a retry of the same training goes on"
    # Only the runner knows what lies there.
    return "none" if trained and outcome.spec_hash else ""


def _adapter(outcome: Outcome) -> dict[str, Any]:
    return {"adapter_uri": _shown(outcome.adapter_uri)} if outcome.adapter_uri else {}


def _shown(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else value
