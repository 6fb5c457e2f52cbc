"""What an earlier attempt has left, for a run that is to find its outcome again.

A job may be complete and its pod gone, and the outcome with it. The file beside the model has all of it.
"""

from __future__ import annotations

from pathlib import Path

from airflow_provider_finetune.contract.outcome import Outcome, UnreadableOutcome
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import storage
from airflow_provider_finetune.runner.tries import workdir
from airflow_provider_finetune.runner.tries.workdir import WorkDir


def find(spec: TrainingSpec) -> Outcome | None:
    """Return the outcome of the last attempt in the work directory, ``None`` where the training must be done.

    Only the last attempt counts: a model of an earlier one is what somebody has asked to train again.

    :param spec: its ``recover`` is the only thing in which it may differ from that attempt's.
    :raises RunFailed: a model that was published to a store cannot be looked for there now.
    """
    attempts = workdir.lineages(Path(spec.work_dir))
    outcome = outcome_of(attempts[0]) if attempts else None
    if outcome is None:
        return None
    is_ours = outcome.status == "succeeded" and outcome.spec_hash == spec.whole_hash()
    if not is_ours or not outcome.model_uri:
        return None
    # A claim's URI says nothing where it is mounted, but the path does.
    published = storage.place(outcome.model_path or outcome.model_uri, "output_model")
    return outcome if published.holds_model() else None


def outcome_of(attempt: WorkDir) -> Outcome | None:
    """Return the outcome that an attempt has left, ``None`` where it has left none that can be read.

    :param attempt: its directory.
    """
    try:
        return Outcome.from_json(attempt.outcome.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UnreadableOutcome):
        return None
