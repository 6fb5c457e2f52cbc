"""What becomes in a real cluster of the jobs that earlier tries have left.

* a try that crashes before it is deferred, while it waits, before or after its result is delivered
* two processes of one try; two tries at once; two Airflows in one namespace
* a clear; other parameters; another memory limit; a failure
* a job that somebody has deleted, or is about to
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_finetune.cluster import follow, making
from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.exceptions import TrainingFailed, TrainingRejected
from airflow_provider_finetune.operators import submission
from airflow_provider_finetune.operators.cluster_run import ClusterRun
from tests.cluster.observer import Observer
from tests.cluster.stand_in import FAILURE, SUCCESS, StandIn
from tests.cluster.tries import Crash, Jobs, Running, Told, Tries, Try, jobs, program, run_id, running, told, tries

__all__ = ["jobs", "program", "run_id", "running", "told", "tries"]

FINALIZER = "tests.example.org/keeps"


def crash(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, *, after: bool = False) -> None:
    """Let the process end at its next call of a method: before or after it has done its work."""
    whole = getattr(owner, method)

    def ending(self: Any, *arguments: Any, **named: Any) -> Any:
        if after:
            whole(self, *arguments, **named)
        raise Crash

    monkeypatch.setattr(owner, method, ending)


# Crashes.


def test_a_job_whose_try_crashed_before_it_was_deferred_is_followed_by_the_next(
    tries: Tries, program: StandIn, jobs: Jobs, told: Told, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        create = making.create_job

        async def ending(hook: TrainingHook, manifest: Any) -> Any:
            await create(hook, manifest)
            raise Crash

        patch.setattr(making, "create_job", ending)
        with pytest.raises(Crash):
            tries.next().submit()
    second = tries.next()
    job = second.submit()
    assert jobs() == [job]
    assert f"{job} of an earlier try: it still trains" in told()
    program.end(SUCCESS)
    assert second.finish()["model_uri"] == "pvc://work/model"
    assert jobs() == []


def test_a_job_that_succeeded_while_nobody_waited_is_collected_by_the_next_try(
    tries: Tries, program: StandIn, jobs: Jobs, told: Told, observed: Observer, wait: Callable[..., Any]
):
    program.end(SUCCESS)
    job = tries.next().submit()
    wait(lambda: observed.is_complete(job), "end of the training")
    second = tries.next()
    assert second.submit() == job
    assert f"{job} of an earlier try: it has ended, and nobody has collected it" in told()
    assert second.finish()["job"]["name"] == job
    assert second.xcom["metrics"] == {"loss": 1.5}
    assert jobs() == []


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("on_finish", "mark"), [("delete", "mark_delivered"), ("keep", "settle")])
def test_a_result_whose_delivery_crashed_is_delivered_again_by_the_next_try(
    tries: Tries, program: StandIn, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, on_finish: str, mark: str, after: bool
):
    program.end(SUCCESS)
    first = tries.next(on_finish=on_finish)
    job = first.submit()
    with monkeypatch.context() as patch:
        crash(patch, ClusterRun, mark, after=after)
        with pytest.raises(Crash):
            first.finish()
    assert first.xcom["model_uri"] == "pvc://work/model", "it was passed on, and Airflow does not know that all was"
    second = tries.next()
    assert second.submit() == job
    assert second.finish()["job"]["name"] == job
    assert second.xcom == first.xcom
    assert jobs() == ([job] if on_finish == "keep" else [])


def test_a_job_that_nobody_could_follow_any_more_is_followed_by_the_next_try(
    tries: Tries, program: StandIn, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
):
    first = tries.next()
    job = first.submit()
    with monkeypatch.context() as patch:

        async def refused(self: Any) -> None:
            failure = Failure(failure_class="user", cause="forbidden", message="May not.", cure="Grant it")
            raise TrainingRejected(failure, "there")

        patch.setattr(follow.Following, "result", refused)
        event = first.wait()
    with pytest.raises(TrainingFailed, match="is no longer followed, and may train on") as error:
        first.complete(event)
    assert not isinstance(error.value, TrainingRejected), "a retry helps"
    second = tries.next()
    assert (second.submit(), jobs()) == (job, [job])
    program.end(SUCCESS)
    second.finish()


# Two at once.


def test_two_processes_of_one_try_make_one_job(tries: Tries, program: StandIn, jobs: Jobs):
    both = [(first := tries.next()), tries.again(first.ti.id)]
    with ThreadPoolExecutor() as threads:
        (job,) = set(threads.map(Try.submit, both))
        assert jobs() == [job]
        program.end(SUCCESS)
    events = [waiting.result(60) for waiting in [attempt.waiting() for attempt in both]]
    assert events[0]["outcome"] == events[1]["outcome"]
    both[1].complete(events[1])
    assert jobs() == []


def test_of_two_tries_at_once_the_job_of_the_older_is_kept(
    tries: Tries, program: StandIn, jobs: Jobs, told: Told, running: Running, monkeypatch: pytest.MonkeyPatch
):
    older = tries.next().submit()
    running(older)
    second = tries.next()
    with monkeypatch.context() as patch:

        async def nothing(self: TrainingHook, selector: Any) -> list[Any]:
            return []

        # As when both have looked before one has made its job.
        patch.setattr(TrainingHook, "list_jobs", nothing)
        patch.setattr(TrainingHook, "pods_that_stay", lambda self, selector, timeout: nothing(self, selector))
        younger = second.submit()
    assert sorted(jobs()) == sorted([older, younger])
    program.end(SUCCESS)
    result = second.finish()
    assert result["job"]["name"] == older
    assert f"before {younger}, which is deleted; the older one is followed" in told()
    assert jobs() == []


def test_two_airflows_in_one_namespace_leave_each_others_jobs_alone(
    tries: Tries, program: StandIn, jobs: Jobs, running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://one.example.org")
    first = tries.next()
    of_one = first.submit()
    pod = running(of_one)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://two.example.org")
    # Of the same DAG, run and task, cleared and with other parameters.
    second = tries.next(cleared=True, training_learning_rate=1e-5)
    of_two = second.submit()
    assert sorted(jobs()) == sorted([of_one, of_two])
    program.end(SUCCESS)
    assert second.finish()["job"]["name"] == of_two
    assert jobs() == [of_one]
    assert not program.has_saved(pod)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://one.example.org")
    assert first.finish()["job"]["name"] == of_one


# What the user wants now.


def test_a_task_that_is_cleared_after_its_success_trains_anew(tries: Tries, program: StandIn, jobs: Jobs):
    program.end(SUCCESS)
    first = tries.next(on_finish="keep")
    job = first.submit()
    first.finish()
    second = tries.next(cleared=True)
    new = second.submit()
    assert new != job
    assert second.finish()["job"]["name"] == new
    assert sorted(jobs()) == sorted([job, new])


@pytest.mark.parametrize(
    ("cleared", "change"),
    [(True, {"training_learning_rate": 1e-5}), (False, {"training_resource_memory_per_worker": "48Mi"})],
)
def test_a_job_of_another_request_is_ended_and_has_saved_before_the_new_one_is_made(
    tries: Tries,
    program: StandIn,
    jobs: Jobs,
    observed: Observer,
    running: Running,
    cleared: bool,
    change: dict[str, Any],
):
    job = tries.next().submit()
    pod, before = running(job), training_hash(observed, job)
    second = tries.next(cleared=cleared, **change)
    new = second.submit()
    assert (jobs(), program.has_saved(pod), observed.pods(job, phase="Running")) == ([new], True, [])
    assert (training_hash(observed, new) == before) is not cleared, "what is the same training goes on"
    program.end(SUCCESS)
    second.finish()


def training_hash(observed: Observer, job: str) -> str:
    spec = observed.workload(job)["spec"]
    (arguments,) = [spec["trainer"]["args"]] if "trainer" in spec else [one["args"] for one in spec["containers"]]
    return TrainingSpec.from_json(arguments[arguments.index("--spec-json") + 1]).training_hash()


def test_a_failure_stays_while_the_next_try_trains_and_goes_with_its_success(
    tries: Tries, program: StandIn, jobs: Jobs
):
    program.end(FAILURE)
    first = tries.next()
    job = first.submit()
    with pytest.raises(TrainingFailed, match="library_crash"):
        first.finish()
    program.go_on()
    second = tries.next()
    new = second.submit()
    assert sorted(jobs()) == sorted([job, new])
    program.end(SUCCESS)
    second.finish()
    assert jobs() == []


def test_a_task_that_is_killed_while_it_waits_ends_its_pod_which_saves_before(
    tries: Tries, program: StandIn, jobs: Jobs, observed: Observer, running: Running, wait: Callable[..., Any]
):
    first = tries.next()
    job = first.submit()
    pod = running(job)
    first.kill()
    assert jobs() == []
    wait(lambda: observed.pods(job) == [], "end of the pod")
    assert program.has_saved(pod)


# What others do.


def test_a_job_that_somebody_deletes_is_a_failure_that_a_retry_mends(
    tries: Tries, program: StandIn, jobs: Jobs, observed: Observer, running: Running
):
    first = tries.next()
    job = first.submit()
    pod = running(job)
    waiting = first.waiting()
    observed.cluster.kubectl("delete", observed.resource(job), f"--namespace={observed.namespace}")
    event = waiting.result(60)
    # A pod of its own says more: how its program ended.
    with pytest.raises(TrainingFailed, match=r"preempted: (deleted|terminated)\). (TrainJob|Pod) " + job):
        first.complete(event)
    second = tries.next()
    new = second.submit()
    assert (jobs(), program.has_saved(pod), observed.pods(job, phase="Running")) == ([new], True, [])
    program.end(SUCCESS)
    second.finish()


@pytest.mark.parametrize("tries", ["pod"], indirect=True)
def test_a_pod_of_its_own_that_is_being_deleted_has_saved_before_the_next_is_made(
    tries: Tries, program: StandIn, jobs: Jobs, observed: Observer, running: Running
):
    job = tries.next().submit()
    pod = running(job)
    observed.cluster.kubectl("delete", observed.resource(job), f"--namespace={observed.namespace}", "--wait=false")
    new = tries.next().submit()
    assert (jobs(), program.has_saved(pod)) == ([new], True)


@pytest.mark.parametrize("tries", ["trainjob"], indirect=True)
def test_beside_a_job_that_is_being_deleted_none_is_made_while_its_pod_may_write(
    tries: Tries,
    program: StandIn,
    jobs: Jobs,
    observed: Observer,
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
):
    job = tries.next().submit()
    pod = running(job)
    patch_of(observed, job, {"metadata": {"finalizers": [FINALIZER]}})
    observed.cluster.kubectl("delete", "trainjob", job, f"--namespace={observed.namespace}", "--wait=false")
    with monkeypatch.context() as patch:
        patch.setattr(submission, "_PODS_END_SECONDS", 1.0)
        with pytest.raises(TrainingFailed, match=rf"pods_stay\).* {pod}"):
            tries.next().submit()
    assert jobs() == [job]
    patch_of(observed, job, {"metadata": {"finalizers": None}})
    second = tries.next()
    new = second.submit()
    assert (jobs(), program.has_saved(pod), observed.pods(job, phase="Running")) == ([new], True, [])
    program.end(SUCCESS)
    second.finish()


def patch_of(observed: Observer, job: str, patch: dict[str, Any]) -> None:
    merge = ("--type=merge", f"--patch={json.dumps(patch)}")
    observed.cluster.kubectl("patch", "trainjob", job, f"--namespace={observed.namespace}", *merge)
