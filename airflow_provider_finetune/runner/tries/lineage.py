"""Which lineage an attempt belongs to: one that an earlier try of the same training has left open, or a new one."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_finetune.contract.spec import TrainingSpec, UnreadableSpec
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.tries import workdir
from airflow_provider_finetune.runner.tries.recovery import outcome_of
from airflow_provider_finetune.runner.tries.workdir import WorkDir

SPOILT = "non_finite_loss"
"""Cause of a failure after which the checkpoints may hold the numbers that are no numbers."""


@contextmanager
def entered(spec: TrainingSpec, *, check_only: bool) -> Iterator[tuple[WorkDir, bool]]:
    """Give the attempt's directory, and whether it goes on with a lineage; no other attempt enters it meanwhile.

    The newest lineage is gone on with where it is of the same training and has not ended with a model. What a check
    has left is no lineage, nor is what ended before it began; a check opens none.

    :param spec: what is to be trained, and whether it may or must go on.
    :param check_only: nothing will be trained.
    :yields: the two.
    :raises RunFailed: the directory cannot be written, or there is nothing to go on with and that was required.
    """
    if check_only or spec.resume == "never":
        yield workdir.create(Path(spec.work_dir)), False
        return
    found, why_not = _open_lineage(spec)
    lock = _locked(found) if found else None
    if found and lock is None:
        why_not, found = f"another attempt still trains in {found.path}", None
    if found is None and spec.resume == "require":
        raise nothing_to_go_on_from(why_not)
    work_dir = found or workdir.create(Path(spec.work_dir))
    lock = _locked(work_dir) if lock is None else lock
    try:
        if found:
            _clear(found)
        yield work_dir, bool(found)
    finally:
        if lock is not None:
            os.close(lock)


def nothing_to_go_on_from(why: str) -> UserError:
    """Return the error of a training that must go on and cannot.

    :param why: in words that follow "and".
    """
    return UserError(
        "nothing_to_resume",
        f"resume='require', and {why}",
        "Use resume='auto', which starts anew where there is nothing to go on from",
    )


def _open_lineage(spec: TrainingSpec) -> tuple[WorkDir | None, str]:
    for found in workdir.lineages(Path(spec.work_dir)):
        outcome = outcome_of(found)
        if (outcome is not None and outcome.status == "checked") or not found.spec.exists():
            continue
        if outcome is not None and outcome.status == "succeeded":
            return None, f"the training in {found.path} has its model already"
        if outcome is not None and outcome.failure and outcome.failure.cause == SPOILT:
            return None, f"the training in {found.path} ended with a loss that was not finite"
        if not _is_same(spec, found):
            return None, f"what was trained in {found.path} was something else"
        return found, ""
    return None, f"no earlier try has left anything in {Path(spec.work_dir).absolute()}"


def _is_same(spec: TrainingSpec, found: WorkDir) -> bool:
    try:
        left = TrainingSpec.from_json(found.spec.read_text(encoding="utf-8"))
        # A link may have been signed anew since.
        return left.shown().training_hash() == spec.shown().training_hash()
    except (OSError, UnicodeDecodeError, UnreadableSpec, KeyError, TypeError):
        return False


def _clear(found: WorkDir) -> None:
    """Remove what only the earlier try needed."""
    for directory in (found.nodes, found.proven, found.merged):
        shutil.rmtree(directory, ignore_errors=True)
    for file in (found.outcome, found.prepared, found.stopped):
        file.unlink(missing_ok=True)


def _locked(work_dir: WorkDir) -> int | None:
    """Lock a lineage by its log until this process ends, also by a kill; ``None`` where another process has it.

    On a disk without locks nobody is kept out.
    """
    lock = os.open(work_dir.log(), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        pass
    return lock
