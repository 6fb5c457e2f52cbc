"""Failures as the runner raises them, and the reading of those that the libraries raise."""

from __future__ import annotations

import errno
import os
from typing import Any

from airflow_provider_finetune.contract.causes import failure_of, input_at_fault
from airflow_provider_finetune.contract.last_words import meaning
from airflow_provider_finetune.contract.outcome import Failure, FailureClass


class RunFailed(Exception):
    """The run cannot go on, and it is known why.

    :param failure_class: who must act, see :data:`~airflow_provider_finetune.contract.outcome.FailureClass`.
    :param cause: short stable name.
    :param message: what happened to which object.
    :param cure: what to do.
    :param parameter: the argument at fault, where it is not the usual one of the cause.
    """

    def __init__(
        self, failure_class: FailureClass, cause: str, message: str, cure: str, *, parameter: str | None = None
    ) -> None:
        super().__init__(message)
        at_fault = input_at_fault(cause) if parameter is None else parameter
        self.failure = Failure(failure_class=failure_class, cause=cause, message=message, cure=cure, parameter=at_fault)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it come from another process as what it is."""
        return _revive, (type(self), self.failure)


class UserError(RunFailed):
    """Something that only the DAG author can change, so that a retry is pointless."""

    def __init__(self, cause: str, message: str, cure: str, *, parameter: str | None = None) -> None:
        super().__init__("user", cause, message, cure, parameter=parameter)


def _revive(kind: type[RunFailed], failure: Failure) -> RunFailed:
    error = kind.__new__(kind, failure.message)
    error.failure = failure
    return error


def explain(error: BaseException) -> Failure:
    """Say what an exception of ours or of a library means for the user.

    :param error: what ended the run; its causes are looked through as well.
    :return: a failure; ``library_crash`` where the exception is none that we know.
    """
    for link in chain(error):
        if isinstance(link, RunFailed):
            return link.failure
        if known := meaning(_told(link)):
            return known
    return failure_of(
        "library_crash",
        f"The training ended with {type(error).__name__}: {_first_line(error)}",
        "The traceback stands in train.log",
    )


def _told(error: BaseException) -> str:
    # A MemoryError mostly has no text.
    return f"MemoryError: {error}" if isinstance(error, MemoryError) else str(error)


def chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception and those that it was raised from or in the handling of."""
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def is_disk_full(error: BaseException) -> bool:
    """Say whether a disk or a quota is used up.

    :param error: one exception, whose causes are not looked at.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    # safetensors, torch and shutil wrap the system's error in one of their own and keep only its text.
    return (isinstance(error, OSError) and error.errno in numbers) or any(
        os.strerror(number) in str(error) for number in numbers
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:500]
