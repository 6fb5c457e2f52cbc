"""The requests of a training, over real HTTP.

* from the first question to a running job: which requests, and how many
* both forms of a TrainJob, names that are taken, ConfigMaps
* deletion and the delivery mark hold only for the object that is meant
* log tails, events and watches: bounded, complete, and typed errors where a connection breaks
* passing causes are tried again, credentials renewed once
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.cluster import hook as hook_module
from airflow_provider_finetune.cluster import making
from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.cluster.refusals import Refused
from airflow_provider_finetune.exceptions import AirflowFailException
from airflow_provider_finetune.launchers.observed import DELIVERED, IDENTITY
from airflow_provider_finetune.launchers.trainjob import TrainerApi
from tests.kubernetes.conftest import CORE, JOBS, RUNTIMES, TOKEN, ApiServer, status

Call = Callable[..., Any]
CONFIG_MAP = {"metadata": {"name": "runner-abc"}, "immutable": True, "binaryData": {"a": "AAAA"}}
SECRET = "hf_thisMustNeverBeShown"
NOT_FOUND = status(404, "NotFound", 'trainjobs.trainer.kubeflow.org "a" not found', name="a", kind="trainjobs")
MAY_NOT = 'trainjobs is forbidden: User "u" cannot list resource "trainjobs" in API group "trainer.kubeflow.org"'
FORBIDDEN = status(403, "Forbidden", MAY_NOT, kind="trainjobs")
NO_PATH = status(403, "Forbidden", 'forbidden: User "u" cannot get path "/readyz"')
READY, NOT_READY = (200, b"ok"), (500, b"[-]poststarthook/rbac/bootstrap-roles failed")
EXISTS = status(409, "AlreadyExists", 'trainjobs.trainer.kubeflow.org "tune" already exists', kind="trainjobs")


def render(api: TrainerApi) -> dict[str, Any]:
    trainer = {"env": [{"name": "HF_TOKEN", "value": SECRET}]}
    spec = {"trainer": trainer, api.value.split("-")[0]: [api.value]}
    return {"metadata": {"name": "tune", "labels": {IDENTITY: "i1"}}, "spec": spec}


def unknown(*fields: str) -> tuple[int, Any]:
    named = ", ".join(f'unknown field "{field}"' for field in fields)
    return status(400, "BadRequest", f"TrainJob cannot be handled as a TrainJob: strict decoding error: {named}")


def error_of(call: Call, use: Callable[[TrainingHook], Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        call(use)
    return caught.value


def test_a_training_starts_after_four_requests_and_five_the_first_time(api: ApiServer, call: Call) -> None:
    made = {"metadata": {"name": "tune", "uid": "u1"}}
    api.answer(f"get {JOBS}", {"items": []})
    api.answer(f"get {RUNTIMES}/training-hub", {"metadata": {"name": "training-hub"}})
    api.answer(f"patch {CORE}/configmaps/runner-abc", CONFIG_MAP)
    api.answer(f"post {JOBS}", (201, made))

    async def start(hook: TrainingHook) -> Any:
        await hook.list_jobs({IDENTITY: "i1"})
        await hook.runtime("ClusterTrainingRuntime", "training-hub")
        await making.ensure_config_map(hook, CONFIG_MAP)
        return await making.create_trainjob(hook, render)

    assert call(start) == made
    assert api.asked == [
        f"GET {JOBS}",
        f"GET {RUNTIMES}/training-hub",
        f"PATCH {CORE}/configmaps/runner-abc",
        f"POST {JOBS}",
    ]
    assert api.requests[0].params == {"labelSelector": f"{IDENTITY}=i1"}
    assert api.requests[3].params == {"fieldValidation": "Strict"}
    assert api.requests[3].data == render(TrainerApi.RUNTIME_PATCHES)
    assert call(start) == made
    assert len(api.asked) == 4 + 4


def test_an_older_trainer_gets_the_older_form_and_is_remembered(api: ApiServer, call: Call) -> None:
    def created(request: Any) -> Any:
        spec = request.data["spec"]
        return unknown("spec.activeDeadlineSeconds", "spec.runtimePatches") if "runtimePatches" in spec else spec

    api.answer(f"post {JOBS}", created)

    async def twice(hook: TrainingHook) -> Any:
        return [await making.create_trainjob(hook, render), await making.create_trainjob(hook, render)]

    assert [list(spec)[1] for spec in call(twice)] == ["podTemplateOverrides"] * 2
    assert len(api.asked) == 3


def test_a_form_between_the_two_is_found(api: ApiServer, call: Call) -> None:
    deep = "spec.runtimePatches[0].trainingRuntimeSpec.template.spec.terminationGracePeriodSeconds"
    api.answer(
        f"post {JOBS}",
        lambda request: unknown(deep) if request.data["spec"]["runtimePatches"] == ["runtimePatches"] else request.data,
    )
    made = call(lambda hook: making.create_trainjob(hook, render))
    assert made["spec"]["runtimePatches"] == ["runtimePatches-2.2"]


def test_a_setting_skips_the_question(api: ApiServer, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FINETUNE__TRAINER_API", "podTemplateOverrides")
    api.answer(f"post {JOBS}", lambda request: request.data)
    assert "podTemplateOverrides" in call(lambda hook: making.create_trainjob(hook, render))["spec"]
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("setting", "fields", "cause"),
    [
        ("", ["spec.runtimePatches", "spec.podTemplateOverrides"], "trainer_too_old"),
        ("", ["spec.invention"], "unknown_field"),
        ("podTemplateOverrides", ["spec.podTemplateOverrides"], "unknown_field"),
        ("podSpecOverrides", [], "unknown_setting"),
    ],
)
def test_a_trainer_that_takes_no_form_is_refused_by_name(
    api: ApiServer, call: Call, monkeypatch: pytest.MonkeyPatch, setting: str, fields: list[str], cause: str
) -> None:
    monkeypatch.setenv("AIRFLOW__FINETUNE__TRAINER_API", setting)
    api.answer(f"post {JOBS}", unknown(*fields))
    error = error_of(call, lambda hook: making.create_trainjob(hook, render))
    assert error.cause == cause
    assert isinstance(error, AirflowFailException)
    assert all(field in str(error) for field in fields if cause == "unknown_field")


def test_a_cluster_without_trainer_is_refused_by_name(api: ApiServer, call: Call) -> None:
    error = error_of(call, lambda hook: hook.list_jobs({}))
    assert error.cause == "trainer_missing"
    assert "Install Kubeflow Trainer 2.1 or later" in str(error)


def test_a_job_that_another_process_of_this_try_has_made_is_followed(api: ApiServer, call: Call) -> None:
    ours = {"metadata": {"name": "tune", "uid": "u1", "labels": {IDENTITY: "i1"}}}
    api.answer(f"post {JOBS}", EXISTS)
    api.answer(f"get {JOBS}/tune", ours)
    assert call(lambda hook: making.create_trainjob(hook, render)) == ours


@pytest.mark.parametrize("labels", [{IDENTITY: "i2"}, {}, None])
def test_a_strangers_job_of_this_name_is_an_error_that_names_it(api: ApiServer, call: Call, labels: Any) -> None:
    api.answer(f"post {JOBS}", EXISTS)
    api.answer(f"get {JOBS}/tune", {"metadata": {"name": "tune", "labels": labels}})
    error = error_of(call, lambda hook: making.create_trainjob(hook, render))
    assert "TrainJob 'tune' exists already in namespace 'ml' and is not of this task" in str(error)


def test_a_job_that_is_being_deleted_is_worth_a_retry(api: ApiServer, call: Call) -> None:
    api.answer(f"post {JOBS}", status(409, "AlreadyExists", 'object is being deleted: trainjobs "tune" already exists'))
    error = error_of(call, lambda hook: making.create_trainjob(hook, render))
    assert not isinstance(error, AirflowFailException)


def test_what_an_admission_check_echoes_is_in_no_part_of_the_error(api: ApiServer, call: Call) -> None:
    denied = f'admission webhook "v" denied the request: spec.trainer.env: Invalid value: [{{"value":"{SECRET}"}}]: no'
    api.answer(f"post {JOBS}", status(403, "Forbidden", denied))
    error: BaseException | None = error_of(call, lambda hook: making.create_trainjob(hook, render))
    while error:
        assert SECRET not in f"{error} {error.args}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("answer", [status(409, "Conflict", "…"), status(422, "Invalid", "field is immutable")])
def test_a_config_map_with_other_content_is_not_run(api: ApiServer, call: Call, answer: Any) -> None:
    api.answer(f"patch {CORE}/configmaps/runner-abc", answer)
    error = error_of(call, lambda hook: making.ensure_config_map(hook, CONFIG_MAP))
    assert "ConfigMap 'runner-abc' exists already in namespace 'ml' and is not of this task" in str(error)


def test_a_runtime_that_may_not_be_read_is_unknown(api: ApiServer, call: Call) -> None:
    message = (
        'clustertrainingruntimes.trainer.kubeflow.org "r" is forbidden: User "u" cannot get resource '
        '"clustertrainingruntimes" in API group "trainer.kubeflow.org" at the cluster scope'
    )
    api.answer(f"get {RUNTIMES}/r", status(403, "Forbidden", message, kind="clustertrainingruntimes"))
    for readiness in (READY, NO_PATH):
        api.answer("get /readyz", readiness)
        assert call(lambda hook: hook.runtime("ClusterTrainingRuntime", "r"), pauses=(0.01,)) is None


def test_a_runtime_of_the_namespace_is_read_there(api: ApiServer, call: Call) -> None:
    api.answer("get /apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainingruntimes/r", {"metadata": {}})
    assert call(lambda hook: hook.runtime("TrainingRuntime", "r")) == {"metadata": {}}


def test_a_deletion_is_in_the_background_and_of_one_object_only(api: ApiServer, call: Call) -> None:
    api.answer(f"delete {JOBS}/a", {"kind": "Status", "status": "Success"})
    call(lambda hook: hook.delete_job("a", "u1"))
    assert api.requests[0].data["propagationPolicy"] == "Background"
    assert api.requests[0].data["preconditions"] == {"uid": "u1"}


def test_the_delivery_mark_is_put_on_one_object_only(api: ApiServer, call: Call) -> None:
    api.answer(f"patch {JOBS}/a", {"kind": "TrainJob"})
    call(lambda hook: hook.mark("a", "u1", DELIVERED))
    assert api.requests[0].data == {"metadata": {"uid": "u1", "annotations": {DELIVERED: "true"}}}
    assert api.requests[0].headers["Content-Type"] == "application/merge-patch+json"


OTHER_UID = [
    {"reason": "FieldValueInvalid", "message": "Invalid value: …: field is immutable", "field": "metadata.uid"}
]


@pytest.mark.parametrize(
    "answer",
    [
        NOT_FOUND,
        status(409, "Conflict", "the UID in the precondition (u1) does not match the UID in record"),
        status(422, "Invalid", "TrainJob is invalid: metadata.uid: …: field is immutable", causes=OTHER_UID),
    ],
)
def test_what_is_gone_needs_neither_deletion_nor_mark(api: ApiServer, call: Call, answer: Any) -> None:
    api.answer(f"delete {JOBS}/a", answer)
    api.answer(f"patch {JOBS}/a", answer)
    call(lambda hook: hook.delete_job("a", "u1"))
    call(lambda hook: hook.mark("a", "u1", DELIVERED))


def test_a_job_is_read_or_is_not_there(api: ApiServer, call: Call) -> None:
    api.answer(f"get {JOBS}/a", {"kind": "TrainJob"}, NOT_FOUND)
    assert call(lambda hook: hook.job("a")) == {"kind": "TrainJob"}
    assert call(lambda hook: hook.job("a")) is None


def pods(**phases: str) -> dict[str, Any]:
    owners = {"ownerReferences": [{"kind": "Job"}]}
    return {
        "items": [{"metadata": {"name": name, **owners}, "status": {"phase": phase}} for name, phase in phases.items()]
    }


def test_the_wait_ends_when_no_pod_can_write_any_more(api: ApiServer, call: Call) -> None:
    api.answer(f"get {CORE}/pods", pods(a="Running", b="Failed"), pods(a="Failed", b="Succeeded"))
    assert call(lambda hook: hook.pods_that_stay({IDENTITY: "i1"}, 20)) == []
    assert api.requests[0].params == {"labelSelector": f"{IDENTITY}=i1"}
    assert len(api.asked) == 2


def test_the_wait_for_pods_has_an_end_and_names_those_that_stay(api: ApiServer, call: Call) -> None:
    api.answer(f"get {CORE}/pods", pods(a="Running", b="Failed"))
    assert call(lambda hook: hook.pods_that_stay({IDENTITY: "i1"}, 0.2)) == ["a"]


def test_the_last_lines_of_a_log_come_with_their_times(api: ApiServer, call: Call) -> None:
    api.answer(
        f"get {CORE}/pods/p/log", "2026-01-01T00:00:00Z loss 2.0\n2026-01-01T00:00:01Z na\u00efve\n".encode() + b"\xff"
    )
    tail = call(lambda hook: hook.log_tail("p", lines=20))
    assert tail == (["2026-01-01T00:00:00Z loss 2.0", "2026-01-01T00:00:01Z naïve", "\ufffd"], True)
    assert api.requests[0].params == {"container": "node", "tailLines": "20", "timestamps": "true"}


@pytest.mark.parametrize(
    "answer",
    [
        status(400, "BadRequest", 'container "node" in pod "p" is waiting to start: ContainerCreating'),
        status(404, "NotFound", 'pods "p" not found', kind="pods", name="p"),
    ],
)
def test_a_pod_that_has_not_begun_or_is_gone_has_no_log(api: ApiServer, call: Call, answer: Any) -> None:
    api.answer(f"get {CORE}/pods/p/log", answer)
    assert call(lambda hook: hook.log_tail("p", lines=20)) == ([], True)


def test_of_a_long_log_the_end_is_kept(api: ApiServer, call: Call) -> None:
    text = b"".join(b"%05d %s\n" % (number, b"x" * 1000) for number in range(100))
    api.answer(f"get {CORE}/pods/p/log", text)
    lines, whole = call(lambda hook: hook.log_tail("p", lines=200))
    assert not whole
    assert lines[-1].startswith("00099")
    assert all(len(line) == 1006 for line in lines)
    assert 60 <= len(lines) <= 65


def test_as_many_lines_as_were_asked_for_may_not_be_all(api: ApiServer, call: Call) -> None:
    api.answer(f"get {CORE}/pods/p/log", b"one\ntwo\n")
    assert call(lambda hook: hook.log_tail("p", lines=2)) == (["one", "two"], False)


def test_the_reading_of_an_endless_log_stops(api: ApiServer, call: Call) -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        while sent < 200_000_000:
            sent += 100_000
            yield b"x" * 100_000

    api.handler[f"get {CORE}/pods/p/log"] << endless()
    tail = call(lambda hook: hook.log_tail("p", lines=5))
    assert sum(map(len, tail.lines)) <= 65536
    assert sent < 100_000_000  # what lies in the buffers of both sides


@pytest.mark.parametrize("served", ["v1beta2", "v1beta1", None])
def test_what_kueue_says_of_a_job_is_read_in_any_of_its_versions(
    api: ApiServer, call: Call, served: str | None
) -> None:
    said = [{"type": "QuotaReserved", "status": "False"}]
    for version in ("v1beta2", "v1beta1"):
        found = {"items": [{"status": {"conditions": said}}, {}]} if version == served else status(404, "NotFound", "")
        api.answer(f"get /apis/kueue.x-k8s.io/{version}/namespaces/ml/workloads", found)
    assert call(lambda hook: hook.queue_conditions("u1")) == (said if served else [])
    assert api.requests[0].params == {"labelSelector": "kueue.x-k8s.io/job-uid=u1"}


def test_events_of_several_objects_are_in_order_of_time_whoever_wrote_them(api: ApiServer, call: Call) -> None:
    def events(request: Any) -> Any:
        times = {
            "involvedObject.name=tune": {"eventTime": "2026-01-01T00:00:02Z", "lastTimestamp": None},
            "involvedObject.name=tune-node-0": {"lastTimestamp": "2026-01-01T00:00:01Z", "eventTime": None},
        }
        return {"items": [{"metadata": {}, **times[request.params["fieldSelector"]]}]}

    api.answer(f"get {CORE}/events", events)
    found = call(lambda hook: hook.events(["tune", "tune-node-0", "tune"]))
    assert [event["lastTimestamp"] or event["eventTime"] for event in found] == [
        "2026-01-01T00:00:01Z",
        "2026-01-01T00:00:02Z",
    ]
    assert len(api.asked) == 2


EXPIRED = {"type": "ERROR", "object": {"kind": "Status", "reason": "Expired", "code": 410}}


def watch(call: Call) -> list[dict[str, Any]]:
    async def collect(hook: TrainingHook) -> list[dict[str, Any]]:
        return [event async for event in hook.watch("pods", {"a": "b"}, "12")]

    found: list[dict[str, Any]] = call(collect)
    return found


def test_a_watch_gives_all_that_the_server_says_and_ends_quietly(api: ApiServer, call: Call) -> None:
    large = {"type": "ADDED", "object": {"metadata": {"name": "x" * 3_000_000}}}
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in (large, {"type": "BOOKMARK"}, EXPIRED))
    api.handler[f"get {CORE}/pods"] << (lines[:100], lines[100:-20], lines[-20:])
    assert watch(call) == [large, {"type": "BOOKMARK"}, EXPIRED]
    asked = dict(api.requests[0].params)
    assert 300 <= int(asked.pop("timeoutSeconds")) <= 600
    assert asked == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "labelSelector": "a=b",
        "resourceVersion": "12",
    }


def test_a_watch_that_breaks_is_a_passing_error(api: ApiServer, call: Call) -> None:
    def breaking(request: Any) -> Any:
        yield b'{"type": "ADDED"}\n'
        request._raw_request.transport.abort()
        yield b'{"type'

    api.handler[f"get {CORE}/pods"] << breaking
    seen: list[Any] = []

    async def collect(hook: TrainingHook) -> None:
        async for event in hook.watch("pods", {}, "12"):
            seen.append(event)

    assert error_of(call, collect).passing


def test_a_watch_of_which_nothing_comes_is_a_passing_error(
    api: ApiServer, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_module, "SILENT_SECONDS", 0.3)

    async def silent(request: Any) -> Any:
        yield b'{"type": "BOOKMARK"}\n'
        await asyncio.sleep(20)

    api.handler[f"get {CORE}/pods"] << silent
    seen: list[Any] = []

    async def collect(hook: TrainingHook) -> None:
        async for event in hook.watch("pods", {}, "12"):
            seen.append(event)

    assert error_of(call, collect).passing
    assert seen == [{"type": "BOOKMARK"}]


def test_a_list_says_where_a_watch_goes_on(api: ApiServer, call: Call) -> None:
    api.answer(f"get {JOBS}", {"metadata": {"resourceVersion": "12"}, "items": []})
    listed = call(lambda hook: hook.list_raw("trainjobs", {"a": "b", "c": "d"}))
    assert listed["metadata"]["resourceVersion"] == "12"
    assert api.requests[0].params == {"labelSelector": "a=b,c=d", "limit": "100"}


def test_the_next_page_of_a_list_is_asked_for_by_the_word_of_the_one_before(api: ApiServer, call: Call) -> None:
    api.answer(f"get {JOBS}", {"metadata": {"resourceVersion": "12"}, "items": []})
    call(lambda hook: hook.list_raw("trainjobs", {"a": "b"}, "next/+="))
    assert api.requests[0].params == {"labelSelector": "a=b", "limit": "100", "continue": "next/+="}


@pytest.mark.parametrize(
    "passing", [status(503, "ServiceUnavailable", "try again"), status(429, "TooManyRequests", "")]
)
def test_a_passing_cause_is_tried_again(api: ApiServer, call: Call, passing: Any) -> None:
    api.answer(f"get {JOBS}", passing, {"items": []})
    assert call(lambda hook: hook.list_jobs({}), pauses=(0.01, 0.01)) == []
    assert len(api.asked) == 2


def test_an_answer_that_breaks_off_is_asked_for_again_and_is_no_other_server(api: ApiServer, call: Call) -> None:
    half, json_type = b'{"items": [{"metadata": {"na', {"Content-Type": "application/json"}
    api.answer(f"get {JOBS}", half, {"items": []}, headers=json_type)
    assert call(lambda hook: hook.list_jobs({}), pauses=(0.01,)) == []
    api.answer(f"get {CORE}/pods", half, headers=json_type)
    error = error_of(call, lambda hook: hook.pods({}))
    assert (error.cause, error.passing) == ("unreachable", True)
    api.answer(f"get {JOBS}/a", b"<html>Log in", headers={"Content-Type": "text/html"})
    assert error_of(call, lambda hook: hook.job("a")).cause == "no_kubernetes_api"


def test_a_refusal_that_breaks_off_says_nothing(api: ApiServer, call: Call) -> None:
    """Half of "already exists" was taken for another conflict, and a training that had been made for none."""
    half = EXISTS[0], json.dumps(EXISTS[1])[:40].encode()
    api.answer(f"post {JOBS}", half, EXISTS, headers={"Content-Type": "application/json"})
    made = {"metadata": {"name": "tune", "uid": "u1", "labels": {IDENTITY: "i1"}}}
    api.answer(f"get {JOBS}/tune", made)
    assert call(lambda hook: making.create_trainjob(hook, render), pauses=(0.01,)) == made


def test_a_server_asks_for_time_and_gets_it(api: ApiServer, call: Call) -> None:
    api.answer(f"get {JOBS}", status(429, "TooManyRequests", ""), headers={"Retry-After": "7"})
    assert error_of(call, lambda hook: hook.list_jobs({})).retry_after == 7


def test_a_refusal_is_not_tried_again(api: ApiServer, call: Call) -> None:
    api.answer(f"get {JOBS}/a", status(403, "Forbidden", "no"))
    with pytest.raises(Refused):
        call(lambda hook: hook.job("a"), pauses=(0.01,))
    assert len(api.asked) == 1


@pytest.mark.parametrize("readiness", [READY, NOT_READY, NO_PATH])
def test_a_right_that_a_starting_server_does_not_know_of_is_asked_for_again(
    api: ApiServer, call: Call, readiness: Any
) -> None:
    api.answer("get /readyz", readiness)
    # The attempts of a passing cause are used up before: the server was away.
    api.answer(f"get {JOBS}", status(503, "ServiceUnavailable", ""), FORBIDDEN, {"items": []})
    pauses = (0.01,) if readiness is READY else (0.01, 0.01)
    assert call(lambda hook: hook.list_jobs({}), pauses=pauses) == []


@pytest.mark.parametrize(
    ("readiness", "cause", "for_good", "attempts"),
    [
        # One attempt more, as it may have become ready since it has refused.
        (READY, "forbidden", True, 2),
        (NO_PATH, "server_error", False, 3),
        (NOT_READY, "server_error", False, 3),
    ],
)
def test_a_right_that_is_missing_is_an_error_for_good_where_the_server_has_started(
    api: ApiServer, call: Call, readiness: Any, cause: str, for_good: bool, attempts: int
) -> None:
    api.answer("get /readyz", readiness)
    api.answer(f"get {JOBS}", FORBIDDEN)
    with pytest.raises(Refused) as caught:
        call(lambda hook: hook.list_jobs({}), pauses=(0.01, 0.01))
    assert caught.value.cause == cause
    assert isinstance(caught.value, AirflowFailException) is for_good
    assert "may not list 'trainjobs'" in str(caught.value)
    assert api.asked.count(f"GET {JOBS}") == attempts


def test_a_token_that_was_rotated_is_read_again(
    api: ApiServer, call: Call, kubeconfig: Callable[..., Path], tmp_path: Path
) -> None:
    api.answer(f"get {JOBS}", {"items": []})
    api.tokens = {TOKEN}

    async def over_a_rotation(hook: TrainingHook) -> list[Any]:
        before = await hook.list_jobs({})
        kubeconfig(token="the-next")
        api.tokens = {"the-next"}
        return [before, *await asyncio.gather(*(hook.list_jobs({}) for _ in range(5)))]

    assert call(over_a_rotation) == [[]] * 6


def test_a_token_that_stays_rejected_is_an_error_after_one_more_attempt(api: ApiServer, call: Call) -> None:
    api.tokens = {"another"}
    error = error_of(call, lambda hook: hook.list_jobs({}))
    assert error.cause == "unauthorized"
    assert len(api.asked) == 2


def test_a_name_cannot_lead_out_of_its_place(api: ApiServer, call: Call) -> None:
    error_of(call, lambda hook: hook.job("../../../secrets/x"))
    assert api.requests[0].url.raw_path == f"{JOBS}/..%2F..%2F..%2Fsecrets%2Fx"
