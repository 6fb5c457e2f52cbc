"""Failures as the runner raises them, and the reading of those that the libraries raise."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

from airflow_provider_finetune.contract.outcome import PEER_FAILED, Failure, FailureClass

_LOST_PEER = re.compile(
    r"(gloo|nccl).*(closed by peer|reset by peer|broken pipe|timed out waiting|remote process exited)", re.I | re.S
)
"""What the collective libraries of PyTorch say where another process of the training is gone."""


class RunFailed(Exception):
    """The run cannot go on, and it is known why.

    :param failure_class: who must act, see :data:`~airflow_provider_finetune.contract.outcome.FailureClass`.
    :param cause: short stable name.
    :param message: what happened to which object.
    :param cure: what to do.
    """

    def __init__(self, failure_class: FailureClass, cause: str, message: str, cure: str) -> None:
        super().__init__(message)
        self.failure = Failure(failure_class=failure_class, cause=cause, message=message, cure=cure)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it come from another process as what it is."""
        return _revive, (type(self), self.failure)


class UserError(RunFailed):
    """Something that only the DAG author can change, so that a retry is pointless."""

    def __init__(self, cause: str, message: str, cure: str) -> None:
        super().__init__("user", cause, message, cure)


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
        if _LOST_PEER.search(str(link)):
            return Failure(
                failure_class="infrastructure",
                cause=PEER_FAILED,
                message=f"Another process of this training has ended: {_first_line(link)}",
                cure="The reason is with the process that ended first: look at the other nodes' logs",
            )
        if is_disk_full(link):
            return Failure(
                failure_class="resources",
                cause="disk_full",
                message=f"The disk is full: {link}",
                cure="Free space under the work directory, or put it on a larger disk (pvc_path)",
            )
        if isinstance(link, MemoryError) or "out of memory" in str(link).lower():
            return Failure(
                failure_class="resources",
                cause="out_of_memory",
                message=f"Memory did not suffice: {_first_line(link)}",
                cure="Lower training_max_tokens_per_gpu or training_max_seq_len, or give the training more memory",
            )
    return Failure(
        failure_class="infrastructure",
        cause="library_crash",
        message=f"The training ended with {type(error).__name__}: {_first_line(error)}",
        cure="The traceback stands in train.log",
    )


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
