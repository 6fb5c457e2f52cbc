"""The errors of this provider.

::

    AirflowException
    └── FineTuneError                 every error of this provider
        ├── InvalidParameters         the DAG author must change a value; never retried (AirflowFailException)
        └── TrainingFailed            there is no model; a retry may help and resumes where it can
            └── TrainingRejected      no model, and the DAG author must act; never retried (AirflowFailException)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowException

from airflow_provider_finetune.contract.causes import input_at_fault
from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.contract.outcome import Failure, FailureClass

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
    :param where: file, object or command that tells more.
    :param spent: what else is known of it, by what it is: GPU time, the checkpoint that is kept.
    """

    def __init__(self, failure: Failure, where: str, spent: Mapping[str, str] | None = None) -> None:
        super().__init__(failure, where)
        self.failure = failure
        self.where = where
        self.spent = dict(spent or {})

    def __str__(self) -> str:
        failure = self.failure
        facts = {
            "What to do": failure.cure,
            "Argument": failure.parameter or input_at_fault(failure.cause),
            "Where to look": self.where,
            **self.spent,
            "Retry": _RETRIES[failure.failure_class],
        }
        lines = [f"{name}: {fact}" for name, fact in facts.items() if fact]
        return "\n".join([f"Training failed ({failure.failure_class}: {failure.cause}). {failure.message}", *lines])


class TrainingRejected(TrainingFailed, AirflowFailException):
    """A training ended without a model for a cause that only the DAG author can mend."""


_RETRIES: Mapping[FailureClass, str] = {
    "user": "none, as it would end the same way until somebody mends this",
    "resources": "of use once the request has changed, or where there is room by then",
    "infrastructure": "may help",
    "preempted": "goes on with the same training, from its checkpoint where there is one",
}


def training_error(failure: Failure, where: str, spent: Mapping[str, str] | None = None) -> TrainingFailed:
    """Return the error to raise for ``failure``: the one that is retried, or the one that is not.

    What asks for more than there is stays retryable: room comes free, and a template may ask for more with each try.

    :param failure: why there is no model.
    :param where: file, object or command that tells more.
    :param spent: see :class:`TrainingFailed`.
    """
    return (TrainingRejected if failure.failure_class == "user" else TrainingFailed)(failure, where, spent)
