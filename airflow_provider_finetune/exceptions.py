"""The errors of this provider.

::

    AirflowException
    └── FineTuneError                 every error of this provider
        ├── InvalidParameters         the DAG author must change a value; never retried (AirflowFailException)
        └── TrainingFailed            there is no model; a retry may help and resumes where it can
            └── TrainingRejected      no model, and the DAG author must act; never retried (AirflowFailException)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowException

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.contract.outcome import Failure

if TYPE_CHECKING:
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException
else:
    try:
        from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException
    except ImportError:  # Airflow 3.1 has them in the core package only
        from airflow.exceptions import AirflowFailException, AirflowNotFoundException

__all__ = [
    "AirflowFailException",
    "AirflowNotFoundException",
    "FineTuneError",
    "InvalidParameters",
    "TrainingFailed",
    "TrainingRejected",
    "training_error",
]


class FineTuneError(AirflowException):
    """Base of all errors of this provider."""


class InvalidParameters(FineTuneError, AirflowFailException):
    """Arguments of a task that no retry can make right.

    :param task_id: the task that was given them.
    :param problems: every broken rule; the message has one line for each.
    """

    def __init__(self, task_id: str, problems: Sequence[Problem]) -> None:
        super().__init__(task_id, problems)
        self.task_id = task_id
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join([f"Task {self.task_id!r} cannot train as it is written:", *map(str, self.problems)])


class TrainingFailed(FineTuneError):
    """A training ended without a model.

    :param failure: why, and what to do.
    :param where: file or directory that tells more.
    """

    def __init__(self, failure: Failure, where: str) -> None:
        super().__init__(failure, where)
        self.failure = failure
        self.where = where

    def __str__(self) -> str:
        lines = [
            f"Training failed ({self.failure.failure_class}: {self.failure.cause}). {self.failure.message}",
            f"What to do: {self.failure.cure}" if self.failure.cure else "",
            f"Where to look: {self.where}",
        ]
        return "\n".join(filter(None, lines))


class TrainingRejected(TrainingFailed, AirflowFailException):
    """A training ended without a model for a cause that only the DAG author can mend."""


def training_error(failure: Failure, where: str) -> TrainingFailed:
    """Return the error to raise for ``failure``: the one that is retried, or the one that is not.

    :param failure: why there is no model.
    :param where: file or directory that tells more.
    """
    return (TrainingRejected if failure.failure_class == "user" else TrainingFailed)(failure, where)
