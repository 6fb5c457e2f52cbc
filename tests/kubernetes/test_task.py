"""A task on a worker and its workload, by the operator itself, against an API server over HTTP.

* from execute to deferred: how many requests, and what a next try waits for
* a lost outcome is looked for by a job of the same request
* a task that is ended while it submits leaves no workload, and one that cannot delete its workload says so
* what becomes of the workload of a training that has ended, and what is left alone
* a cluster that refuses this then changes neither result nor error
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG

from airflow_provider_finetune import LoRAOperator
from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.exceptions import AirflowFailException, TrainingFailed
from airflow_provider_finetune.launchers.container import runner_config_map
from airflow_provider_finetune.launchers.observed import IDENTITY
from airflow_provider_finetune.operators import submission
from tests.kubernetes.conftest import CORE, JOBS, RUNTIMES, ApiServer, status
from tests.kubernetes.fake_cluster import condition, pod, terminated, train_job

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

WORKLOAD = {"kind": "trainjob", "conn_id": "cluster", "namespace": "ml", "name": "a", "uid": "uid-a"}


class Task(LoRAOperator):
    """Trains on the cluster of the test."""

    log = logging.getLogger("task")  # type: ignore[assignment]  # Airflow's own writes to wherever it is configured to

    def __init__(self, **arguments: Any) -> None:
        given: dict[str, Any] = {
            "task_id": "train",
            "dag": DAG("dag", schedule=None),
            "launcher": "trainjob",
            "kubernetes_conn_id": "cluster",
            "namespace": "ml",
            "dataset": "pvc://training/train.jsonl",
            "pvc_path": "pvc://training/runs",
            "training_base_model": "org/model",
            "training_effective_batch_size": 8,
        }
        super().__init__(**{**given, **arguments})


def context(try_number: int = 1, state: str = "success") -> Any:
    ti = SimpleNamespace(
        dag_id="dag",
        run_id="run",
        task_id="train",
        map_index=-1,
        try_number=try_number,
        id=f"try-{try_number}",
        max_tries=3,
        task=SimpleNamespace(retries=3),
        xcom_push=lambda key, value: None,
        get_task_states=lambda *_, **__: {"run": {"train": state}},
    )
    return {"ti": ti}


def succeed(task: Task, state: str = "success") -> Any:
    """Come to the end of a success, after which Airflow has the task in ``state``."""
    about = context(state=state)
    result = task.execute_complete(about, event(SUCCEEDED))
    for callback in task.on_success_callback:
        callback(about)
    return result


def event(outcome: Outcome, **more: Any) -> dict[str, Any]:
    small = json.loads(outcome.to_small_json())
    return {"outcome": small, "workload": WORKLOAD, "phases": {}, "runs_once": False, **more}


def failed(cause: str = "runner_died", failure_class: Any = "infrastructure") -> Outcome:
    failure = Failure(failure_class=failure_class, cause=cause, message="It ended.", cure="Look there")
    return Outcome(status="failed", failure=failure, work_dir="/mnt/training/runs/dag/run/train/1")


def same_task(*jobs: dict[str, Any]) -> dict[str, Any]:
    for job in jobs:
        job["metadata"]["labels"][IDENTITY] = "same"
    return {"items": list(jobs)}


RUNTIME = yaml.safe_load((Path(__file__).parents[2] / "docs/kubernetes/runtime.yaml").read_text(encoding="utf-8"))


def let_submit(api: ApiServer, **answers: Any) -> None:
    """Let a task submit the job ``a``, with other answers to ``listed`` and ``made``."""
    api.answer(f"get {JOBS}", answers.get("listed", {"items": []}))
    api.answer(f"get {RUNTIMES}/training-hub", RUNTIME)
    api.answer(f"patch {CORE}/configmaps/{runner_config_map('ml')['metadata']['name']}", {"kind": "ConfigMap"})
    api.answer(f"post {JOBS}", answers.get("made", (201, train_job("a"))))


@pytest.fixture(autouse=True)
def cluster(kubeconfig: Callable[..., Path], connection: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    connection(kube_config_path=str(kubeconfig()))
    caplog.set_level(logging.INFO)


def pods(phase: str) -> dict[str, Any]:
    metadata = {"name": "old-node-0-0-x", "ownerReferences": [{"kind": "Job"}]}
    return {"items": [{"metadata": metadata, "status": {"phase": phase}}]}


def test_a_first_try_asks_for_no_pods(api: ApiServer) -> None:
    let_submit(api)
    with pytest.raises(TaskDeferred):
        Task().execute(context())
    assert len(api.asked) == 4
    assert f"GET {CORE}/pods" not in api.asked


@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf"])
def test_a_pace_of_reads_that_is_none_is_said_before_anything_is_made(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AIRFLOW__FINETUNE__READS_PER_SECOND", value)
    with pytest.raises(AirflowFailException) as error:
        Task().execute(context())
    assert f"[finetune] reads_per_second='{value}' is no number above 0" in str(error.value)
    assert "Set it to a number such as 20, or leave it out" in str(error.value)
    assert not api.asked


def test_a_next_try_waits_for_the_pods_of_those_before_it_whose_jobs_are_gone(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    let_submit(api)
    no_own_pod: dict[str, Any] = {"items": []}
    api.answer(f"get {CORE}/pods", pods("Running"), no_own_pod, pods("Running"), pods("Failed"))
    with pytest.raises(TaskDeferred):
        Task().execute(context(try_number=2))
    assert api.asked[:5] == [f"GET {JOBS}", *[f"GET {CORE}/pods"] * 4]
    assert api.asked[-1] == f"POST {JOBS}"
    assert caplog.text.count("Waiting for the end of what an earlier try has left: old-node-0-0-x") == 1
    assert api.requests[1].params == api.requests[0].params  # the label of the task instance


def test_with_many_kept_jobs_a_next_try_is_deferred_after_five_requests(api: ApiServer) -> None:
    jobs = [train_job(f"kept-{number}", condition("Failed")) for number in range(5)]
    let_submit(api, listed=same_task(*jobs))
    api.answer(f"get {CORE}/pods", pods("Failed"))
    with pytest.raises(TaskDeferred):
        Task().execute(context(try_number=6))
    assert len(api.asked) == 5


@pytest.mark.parametrize(("failure_class", "trains_again"), [("user", False), ("infrastructure", True)])
def test_a_failure_that_no_retry_mends_is_not_trained_for_again_where_the_worker_was_lost_that_was_to_tell_it(
    api: ApiServer, caplog: pytest.LogCaptureFixture, failure_class: Any, trains_again: bool
) -> None:
    left: list[dict[str, Any]] = []
    let_submit(api, listed=lambda _: {"items": left})
    with pytest.raises(TaskDeferred):
        Task().execute(context())
    made = next(request.data for request in api.requests if request.method.value == "POST")
    old = train_job("old", condition("Failed"), age=9)
    old["metadata"] |= {"labels": made["metadata"]["labels"], "annotations": made["metadata"]["annotations"]}
    failure = Failure(failure_class=failure_class, cause="told_to", message="It is so.")
    words = Outcome(status="failed", failure=failure).to_small_json()
    left.append(old)
    api.answer(f"get {CORE}/pods", {"items": [pod("old", terminated(1, words), phase="Failed")]})
    api.answer(f"patch {JOBS}/old", {"kind": "TrainJob"})
    with pytest.raises(TaskDeferred) as deferred:
        Task().execute(context(try_number=2))
    assert (api.asked.count(f"POST {JOBS}") == 2) is trains_again
    assert deferred.value.trigger.workload["name"] == ("a" if trains_again else "old")
    assert ("Following TrainJob old of an earlier try: it has ended" in caplog.text) is not trains_again


def test_pods_of_an_earlier_try_that_do_not_end_are_named(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_PODS_END_SECONDS", 0.1)
    let_submit(api)
    api.answer(f"get {CORE}/pods", pods("Running"), {"items": []}, pods("Running"))
    with pytest.raises(TrainingFailed, match=r"infrastructure: pods_stay\).* old-node-0-0-x"):
        Task().execute(context(try_number=2))
    assert f"POST {JOBS}" not in api.asked


def test_who_looks_for_a_lost_outcome_asks_for_the_same_without_gpus(api: ApiServer) -> None:
    let_submit(api)
    api.answer(f"delete {JOBS}/a", {"kind": "Status"})
    task = Task(training_resource_gpu_per_worker=2)
    with pytest.raises(TaskDeferred):
        task.execute(context())
    with pytest.raises(TaskDeferred):
        task.execute_complete(context(), event(failed("no_outcome"), recover=True))
    train, recover = (request.data for request in api.requests if request.method.value == "POST")
    assert train["metadata"]["labels"] == recover["metadata"]["labels"]  # so a next try follows it
    asked = [job["spec"]["trainer"]["resourcesPerNode"]["limits"].get("nvidia.com/gpu") for job in (train, recover)]
    assert asked == ["2", None]
    assert api.asked[4:6] == [f"DELETE {JOBS}/a", f"GET {JOBS}"]


@pytest.fixture
def killed() -> Iterator[Callable[[Task, Any], Callable[[Any], Any]]]:
    """Make an answer during which Airflow ends a task: by a signal, which calls ``on_kill`` between two lines."""
    before = signal.getsignal(signal.SIGTERM)

    def answer_of(task: Task, answer: Any) -> Callable[[Any], Any]:
        handled: list[int] = []

        def on_term(number: int, frame: Any) -> None:
            task.on_kill()
            handled.append(number)

        def answering(request: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            while not handled:
                time.sleep(0.01)
            return answer

        signal.signal(signal.SIGTERM, on_term)
        return answering

    yield answer_of
    signal.signal(signal.SIGTERM, before)


def test_a_task_that_is_ended_before_its_job_is_made_makes_none(api: ApiServer, killed: Any) -> None:
    task = Task()
    let_submit(api, listed=killed(task, {"items": []}))
    with pytest.raises(TrainingFailed, match="The task was ended while it submitted its training"):
        task.execute(context())
    assert f"POST {JOBS}" not in api.asked


def test_a_task_that_is_ended_while_its_job_is_made_deletes_it(api: ApiServer, killed: Any) -> None:
    task = Task()
    let_submit(api, made=killed(task, (201, train_job("a"))))
    api.answer(f"delete {JOBS}/a", {"kind": "Status"})
    with pytest.raises(TrainingFailed, match="The task was ended while it submitted its training"):
        task.execute(context())
    assert api.asked[-1] == f"DELETE {JOBS}/a"


def test_a_job_that_the_next_try_follows_is_not_ended_by_a_worker_that_had_hung(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    hung, following = Task(), Task()
    left: list[dict[str, Any]] = []
    let_submit(api, listed=lambda _: {"items": left})
    with pytest.raises(TaskDeferred):
        hung.execute(context())
    made = next(request.data for request in api.requests if request.method.value == "POST")
    job = train_job("a")
    job["metadata"] |= {"labels": made["metadata"]["labels"], "annotations": made["metadata"]["annotations"]}
    left.append(job)

    def note(request: Any) -> dict[str, Any]:
        job["metadata"]["annotations"] |= request.data["metadata"]["annotations"]
        return job

    api.answer(f"patch {JOBS}/a", note)
    api.answer(f"get {JOBS}/a", lambda _: job)
    api.answer(f"delete {JOBS}/a", {"kind": "Status"})
    with pytest.raises(TaskDeferred):
        following.execute(context(try_number=2))
    hung.on_kill()
    assert f"DELETE {JOBS}/a" not in api.asked
    assert "TrainJob a is left alone: a later try of this task waits for it" in caplog.text
    following.on_kill()
    assert api.asked[-1] == f"DELETE {JOBS}/a"


def test_a_kill_that_is_refused_says_that_the_job_trains_on(api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    task = Task()
    let_submit(api)
    with pytest.raises(TaskDeferred):
        task.execute(context())
    api.answer(f"get {JOBS}/a", train_job("a"))
    api.answer(f"delete {JOBS}/a", FORBIDDEN)
    task.on_kill()
    assert "TrainJob a could not be deleted and may train on. " in caplog.text
    assert "may not delete 'trainjobs'" in caplog.text


SUCCEEDED = Outcome(status="succeeded", model_uri="pvc://training/runs/dag/run/train/1/model", metrics={"loss": 1.5})
MAY_NOT = 'User "u" cannot delete resource "trainjobs" in API group "trainer.kubeflow.org"'
FORBIDDEN = status(403, "Forbidden", MAY_NOT, kind="trainjobs")


def test_the_job_of_a_success_is_deleted_before_older_ones_that_failed(api: ApiServer) -> None:
    old, young = (train_job(name, condition("Failed"), age=age) for name, age in (("old", 9), ("young", 1)))
    api.answer(f"get {JOBS}", same_task(old, train_job("a", condition("Complete"), age=5), young))
    for name in ("a", "old"):
        api.answer(f"delete {JOBS}/{name}", {"kind": "Status", "status": "Success"})
    api.answer(f"patch {JOBS}/a", {"kind": "TrainJob"})
    assert succeed(Task())["metrics"] == {"loss": 1.5}
    assert api.asked == [f"PATCH {JOBS}/a", f"GET {JOBS}", f"DELETE {JOBS}/a", f"DELETE {JOBS}/old"]


@pytest.mark.parametrize("state", ["deferred", "running", "None"])
def test_the_job_of_a_success_that_airflow_has_not_noted_is_left_to_the_next_try(
    api: ApiServer, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    """A worker was missed between the deletion and its end, or hung and went on: the next try trained it all again."""
    api.answer(f"patch {JOBS}/a", {"kind": "TrainJob"})
    task = Task()
    assert task.execute_complete(context(), event(SUCCEEDED))["metrics"] == {"loss": 1.5}
    assert api.asked == [f"PATCH {JOBS}/a"], "what the next try collects is there until Airflow has the end of this one"
    succeed(task, state)
    assert f"DELETE {JOBS}/a" not in api.asked
    assert "its job is left to the next try" in caplog.text


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        (f"get {JOBS}", "Failed TrainJobs of earlier tries stay, if there are any"),
        (f"delete {JOBS}/a", "TrainJob a is left over: "),
        (f"delete {JOBS}/old", "TrainJob old is left over: "),
    ],
)
def test_a_success_that_cannot_be_cleared_up_is_a_success_with_a_warning(
    api: ApiServer, caplog: pytest.LogCaptureFixture, refused: str, left: str
) -> None:
    answers = {
        f"get {JOBS}": same_task(train_job("old", condition("Failed"), age=9), train_job("a", condition("Complete"))),
        f"delete {JOBS}/a": {"kind": "Status"},
        f"delete {JOBS}/old": {"kind": "Status"},
        f"patch {JOBS}/a": {"kind": "TrainJob"},
        refused: FORBIDDEN,
    }
    for what, answer in answers.items():
        api.answer(what, answer)
    assert succeed(Task())["model_uri"] == SUCCEEDED.model_uri
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert left in warning
    assert "may not delete 'trainjobs'" in warning
    assert f"DELETE {JOBS}/a" in api.asked


def test_a_success_whose_connection_has_gone_is_a_success_with_a_warning(
    connection: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    connection(kube_config_path="/nowhere/config")
    assert succeed(Task())["model_uri"] == SUCCEEDED.model_uri
    assert "TrainJob a is left over: Connection 'cluster' gives no usable credentials" in caplog.text
    assert "kubectl --namespace ml delete trainjob a" in caplog.text


def test_why_a_training_failed_is_told_also_where_its_job_cannot_be_deleted(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.answer(f"delete {JOBS}/a", FORBIDDEN)
    with pytest.raises(TrainingFailed, match=r"infrastructure: runner_died\). It ended"):
        Task().execute_complete(context(), event(failed()))
    assert "TrainJob a is left over: " in caplog.text


@pytest.mark.parametrize(
    ("more", "arguments", "stays"),
    [
        ({"runs_once": True}, {}, True),
        ({"runs_once": False}, {}, False),
        ({"runs_once": True, "gone": True}, {}, False),
        ({"runs_once": True}, {"on_finish": "delete"}, False),
        ({"unknown": True}, {"on_finish": "delete"}, True),
    ],
)
def test_only_a_job_that_is_there_is_named_as_a_place_to_look_at(
    api: ApiServer, more: dict[str, Any], arguments: dict[str, Any], stays: bool
) -> None:
    api.answer(f"delete {JOBS}/a", {"kind": "Status"})
    api.answer(f"patch {JOBS}/a", {"kind": "TrainJob"})
    with pytest.raises(TrainingFailed) as error:
        Task(**arguments).execute_complete(context(), event(failed(), **more))
    assert ("TrainJob a (kubectl --namespace ml describe trainjob a)" in error.value.where) is stays
    assert (f"DELETE {JOBS}/a" in api.asked) is not (stays or "gone" in more)


def test_a_job_of_which_nothing_is_known_is_left_alone(api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainingFailed) as error:
        Task().execute_complete(context(), event(failed("forbidden"), unknown=True))
    assert not isinstance(error.value, AirflowFailException)
    assert not api.asked
    assert "TrainJob a is left alone" in caplog.text
    assert "kubectl --namespace ml get trainjob a" in caplog.text
