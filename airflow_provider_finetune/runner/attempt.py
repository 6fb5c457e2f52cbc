"""One attempt from spec to outcome: whatever happens, an outcome is left, and it never claims a model that is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.last_words import behind
from airflow_provider_finetune.contract.outcome import OUTCOME_MARK, PEER_FAILED, Failure, Outcome, Status
from airflow_provider_finetune.contract.spec import TrainingSpec, UnreadableSpec
from airflow_provider_finetune.runner import nodes, storage
from airflow_provider_finetune.runner.failures import UserError, explain
from airflow_provider_finetune.runner.fates import effective_parameters
from airflow_provider_finetune.runner.log import RunLog, tail
from airflow_provider_finetune.runner.meeting import Meeting, join
from airflow_provider_finetune.runner.nodes import Placement, placement
from airflow_provider_finetune.runner.reporting.chart import render_chart
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.stopping import GRACE_SECONDS, Stop
from airflow_provider_finetune.runner.supervisor import Supervisor
from airflow_provider_finetune.runner.tries import checkpoints, lineage, recovery, retention
from airflow_provider_finetune.runner.tries.lineage import SPOILT
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_LOG_TAIL_LINES = 200


def run(
    document: Path | str,
    *,
    check_only: bool,
    every_row: bool = False,
    termination_message: Path | None = None,
    grace: float = GRACE_SECONDS,
) -> int:
    """Run one attempt on this node.

    :param document: the :class:`~airflow_provider_finetune.contract.spec.TrainingSpec`, or a file that holds it.
    :param check_only: end after the check.
    :param every_row: a check looks at lengths and mask of all rows, not of a sample.
    :param termination_message: a file for the small form, beside the line on standard output.
    :param grace: seconds from SIGTERM to SIGKILL, as whoever sends them has said.
    :return: exit status, 0 or 1.
    """
    log, stop = RunLog(), Stop().listen()
    try:
        spec = _read(document)
        here = placement(spec, os.environ)
        if spec.recover and (found := recovery.find(spec)):
            log.say(f"nothing is trained: the last attempt in {found.work_dir} has all that was asked for")
            return _leave(found, None, log, None if here.node else termination_message)
        if here.node:
            return 0 if check_only else _assist(spec, here, log, stop, termination_message, grace)
        with lineage.entered(spec, check_only=check_only) as (work_dir, going_on):
            log.open(work_dir.log())
            if going_on:
                log.say(f"an earlier try of this training has been in {work_dir.path}")
            meeting = Meeting(here, spec, work_dir)
            outcome = _attempt(
                spec, work_dir, log, stop, here, meeting, grace, check_only=check_only, every_row=every_row
            )
            status = _leave(outcome, work_dir, log, termination_message)
            meeting.dismiss(outcome.failure, stop)
    except Exception as error:
        return _leave(Outcome(status="failed", failure=explain(error)), None, log, termination_message)
    return status


def _read(document: Path | str) -> TrainingSpec:
    where = f"{document}: " if isinstance(document, Path) else ""
    try:
        text = document if isinstance(document, str) else document.read_text(encoding="utf-8")
        spec = TrainingSpec.from_json(text)
        spec.record()
    except (OSError, UnreadableSpec, UnicodeDecodeError, TypeError, KeyError) as error:
        raise UserError("spec_unreadable", f"{where}{error}", "Use a runner of the provider's version") from error
    return spec


def _attempt(
    spec: TrainingSpec,
    work_dir: WorkDir,
    log: RunLog,
    stop: Stop,
    here: Placement,
    meeting: Meeting,
    grace: float,
    *,
    check_only: bool,
    every_row: bool,
) -> Outcome:
    facts: dict[str, Any] = {"work_dir": str(work_dir.path), "spec_hash": spec.whole_hash()}
    series = Series()
    try:
        storage.put_text(spec.to_json(), work_dir.spec)
        model, data = storage.shown(spec.base_model), storage.shown(spec.dataset)
        log.say(f"{spec.algorithm}: {model} on {data}; work directory {work_dir.path}")
        epochs = effective_parameters(spec)["num_epochs"]
        supervisor = Supervisor(spec, work_dir, log, stop, epochs=epochs, grace=grace)
        if check_only:
            supervisor.run("work --only check" + " --all" * every_row)
        elif here.processes == 1:
            supervisor.run()
        else:
            _train_together(supervisor, meeting, log, stop)
        series, failure = supervisor.series, _with_culprit(supervisor.failure, work_dir, here)
        facts.update(supervisor.facts)
    except Exception as error:
        failure = explain(error)
    if failure is None and not check_only and "model_uri" not in facts:
        failure = Failure(
            failure_class="infrastructure",
            cause="no_model",
            message="The training process ended without an error and without a model",
            cure="The last lines of train.log say what it did",
        )
    if failure is not None:
        for name in ("model_uri", "model_path", "model_kind", "adapter_uri"):
            facts.pop(name, None)
        printed = tail(work_dir.log(), _LOG_TAIL_LINES, log.began)
        failure = replace(behind(failure, printed), log_tail=printed)
        facts["checkpoint"] = _checkpoint(spec, work_dir, failure)
    known = {item.name for item in fields(Outcome)}
    status: Status = "failed" if failure else "checked" if check_only else "succeeded"
    outcome = Outcome(status=status, failure=failure, **{key: value for key, value in facts.items() if key in known})
    if series.last:
        outcome = _draw(outcome, spec, work_dir, series, log)
    _forget_credentials(spec, work_dir, log)
    published = outcome.status == "succeeded"
    removed = retention.tidy(spec, work_dir, published=published, check_only=check_only)
    if removed and published:
        log.say(f"{' and '.join(removed)} of the run are removed, since keep={spec.keep!r}")
    return outcome


def _train_together(supervisor: Supervisor, meeting: Meeting, log: RunLog, stop: Stop) -> None:
    """Check in one process, then train in several, here and on the other nodes."""
    meeting.open()
    if supervisor.run("work --only prepare"):
        meeting.wait_for_all(stop, log.say)
        meeting.start()
        supervisor.run("launch")


def _assist(
    spec: TrainingSpec, here: Placement, log: RunLog, stop: Stop, termination_message: Path | None, grace: float
) -> int:
    """Train on another node than the first, which alone follows, publishes and reports."""
    work_dir = None
    try:
        work_dir = join(here, spec, stop, log.say)
        log.open(work_dir.log(here.node))
        supervisor = Supervisor(spec, work_dir, log, stop, epochs=1, grace=grace, node=here.node)
        supervisor.run("launch")
        failure = _with_culprit(supervisor.failure, work_dir, here)
    except Exception as error:
        failure = explain(error)
    if failure is None:
        log.say(f"node {here.node} has done its part; node 0 reports the outcome")
        log.close()
        return 0
    if work_dir is not None:
        printed = tail(work_dir.log(here.node), _LOG_TAIL_LINES, log.began)
        failure = replace(behind(failure, printed), log_tail=printed)
    return _leave(Outcome(status="failed", failure=failure), None, log, termination_message)


def _with_culprit(failure: Failure | None, work_dir: WorkDir, here: Placement) -> Failure | None:
    """Let the nodes know each other's failures: who only sees that somebody is gone names the one that was first."""
    if failure is None or here.nodes == 1:
        return failure
    if failure.cause == PEER_FAILED:
        return nodes.culprit(work_dir, failure)
    if failure.failure_class != "preempted":
        nodes.tell(work_dir, here.node, failure)
    return failure


def _checkpoint(spec: TrainingSpec, work_dir: WorkDir, failure: Failure) -> dict[str, Any]:
    """Return what a retry goes on from, nothing where it begins anew."""
    found = None if spec.resume == "never" or failure.cause == SPOILT else checkpoints.newest(work_dir.checkpoints)
    return {"unit": found.unit, "number": found.number, "path": str(found.path)} if found else {}


def _forget_credentials(spec: TrainingSpec, work_dir: WorkDir, log: RunLog) -> None:
    """Keep the spec without signed links, which the training has needed and nobody needs any more."""
    if (shown := spec.shown()) == spec:
        return
    try:
        storage.put_text(shown.to_json(), work_dir.spec)
    except Exception as error:
        log.say(f"{work_dir.spec} still has what gives access to the data: {explain(error).message}", "warning")


def _draw(outcome: Outcome, spec: TrainingSpec, work_dir: WorkDir, series: Series, log: RunLog) -> Outcome:
    """Add metrics, curve and chart to ``outcome`` and write them; those of a failed training stay where it worked.

    What goes wrong with one of them is said, and spoils neither the others nor the reason why there is no model.
    """
    outcome = replace(outcome, metrics={**series.summary(), **outcome.metrics}, loss_curve=series.curve())
    published = outcome.status == "succeeded"
    with _failure_said("metrics", log):
        metrics = Outcome(status=outcome.status, metrics=outcome.metrics, loss_curve=outcome.loss_curve).to_json()
        storage.put_text(metrics, work_dir.metrics)
        if spec.output_metrics and published:
            storage.output_place(spec.output_metrics, "output_metrics", "metrics.json").put_text(metrics)
    with _failure_said("loss chart", log):
        page = render_chart(
            series,
            title=f"Training loss: {storage.shown(spec.base_model)}",
            subtitle=f"{spec.algorithm} on {storage.shown(spec.dataset)}",
        )
        chart = storage.place(str(work_dir.chart), "output_loss_chart", spec.mounts)
        chart.put_text(page)
        outcome = replace(outcome, loss_chart=chart.uri)
        if spec.output_loss_chart and published:
            chart = storage.output_place(spec.output_loss_chart, "output_loss_chart", "loss.html", spec.mounts)
            chart.put_text(page)
            outcome = replace(outcome, loss_chart=chart.uri)
    return outcome


@contextmanager
def _failure_said(what: str, log: RunLog) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.say(f"The {what} could not be written: {explain(error).message}", "warning")


def _leave(outcome: Outcome, work_dir: WorkDir | None, log: RunLog, termination_message: Path | None) -> int:
    """Write the outcome in both forms: the full one first, since the small one says that all is done."""
    targets = [(work_dir.outcome, outcome.to_json())] if work_dir else []
    targets += [(termination_message, outcome.to_small_json())] if termination_message else []
    if outcome.failure:
        log.quote(work_dir.log() if work_dir else Path("train.log"), outcome.failure.log_tail)
        log.say(outcome.failure.message, "error")
        log.say(outcome.failure.cure)
    elif outcome.status == "succeeded":
        log.say(f"model: {outcome.model_uri} ({outcome.model_kind}), loss chart: {outcome.loss_chart}")
        if outcome.adapter_uri:
            log.say(f"adapter: {outcome.adapter_uri}")
    for path, text in targets:
        try:
            # /dev/termination-log is a mounted file that cannot be renamed over.
            path.write_text(text, encoding="utf-8") if path == termination_message else storage.put_text(text, path)
        except OSError as error:
            log.say(f"The outcome cannot be written to {path}: {error}", "warning")
    log.machine(OUTCOME_MARK, outcome.to_small_json())
    log.close()
    return 0 if outcome.failure is None else 1
