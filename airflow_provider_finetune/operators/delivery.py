"""What a task hands on once its training has ended: the result in XCom, the asset's event, or the error.

No credential is in any of it, whatever a URI of the outcome holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.contract.uris import shown
from airflow_provider_finetune.exceptions import TrainingFailed, training_error


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


def error_of(outcome: Outcome, workload: Mapping[str, str] | None, *, stays: bool = False) -> TrainingFailed:
    """Return why there is no model, and where to look.

    :param outcome: of a training without a model.
    :param workload: the object that ran it, on a cluster.
    :param stays: whether that object is there for somebody to look at.
    """
    failure = outcome.failure or Failure(
        failure_class="infrastructure",
        cause="no_model",
        message=f"The runner ended with status {outcome.status!r} and named no model.",
        cure="Look at its last lines in this log.",
    )
    log = Path(outcome.work_dir or "", "train.log")
    if workload is None:
        return training_error(failure, str(log if log.exists() else log.parent))
    places = [f"{log} on its volume"] if outcome.work_dir else []
    places += [f"TrainJob {workload['name']} in namespace {workload['namespace']}"] if stays else []
    return training_error(failure, ", and ".join(places) or "the lines above, as nothing else is left of the training")


def _adapter(outcome: Outcome) -> dict[str, Any]:
    return {"adapter_uri": _shown(outcome.adapter_uri)} if outcome.adapter_uri else {}


def _shown(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else value
