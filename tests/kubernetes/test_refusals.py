"""What users read where the cluster refuses, from answers of a real one (Trainer 2.3, Kubernetes 1.36).

* each refusal has its cause, says which object and what to do, and whether a retry can help
* no value that was sent is ever shown, in whatever notation or words it comes back
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_finetune.cluster.asked import asked
from airflow_provider_finetune.cluster.echoes import sent_values, without_values
from airflow_provider_finetune.cluster.refusals import refusal, unreachable
from airflow_provider_finetune.exceptions import AirflowFailException, TrainingFailed

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs"
SECRET = "hf_thisMustNeverBeShown"
VALIDATOR = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '


def body(message: str, reason: str = "", **details: Any) -> str:
    return json.dumps({"kind": "Status", "message": message, "reason": reason, "details": details})


def refuse(code: int, text: str, path: str = JOBS, method: str = "POST", name: str | None = "tune-1a2b3c4d") -> Any:
    what = asked("gpu", method, path, name=name, secrets=[SECRET])
    return refusal(what, code, text)


RECORDED = {
    "unauthorized": (401, body("Unauthorized", "Unauthorized"), "credentials of connection 'gpu'", False),
    "forbidden": (
        403,
        body(
            'trainjobs.trainer.kubeflow.org is forbidden: User "system:serviceaccount:ml:norights" cannot create '
            'resource "trainjobs" in API group "trainer.kubeflow.org" in the namespace "ml"',
            "Forbidden",
            group="trainer.kubeflow.org",
            kind="trainjobs",
        ),
        "'system:serviceaccount:ml:norights', the account of connection 'gpu', may not create 'trainjobs' of API group "
        "'trainer.kubeflow.org' in namespace 'ml'",
        False,
    ),
    "quota_exceeded": (
        403,
        body(
            'trainjobs.trainer.kubeflow.org "q3" is forbidden: exceeded quota: gpu-quota, requested: '
            "count/trainjobs.trainer.kubeflow.org=1, used: count/trainjobs.trainer.kubeflow.org=2, limited: "
            "count/trainjobs.trainer.kubeflow.org=2",
            "Forbidden",
            kind="trainjobs",
        ),
        "The quota of namespace 'ml' is used up: gpu-quota, requested: ",
        True,
    ),
    "runtime_missing": (
        403,
        body(
            VALIDATOR + 'spec.RuntimeRef: Invalid value: {"name":"no-such-runtime","apiGroup":"trainer.kubeflow.org",'
            '"kind":"ClusterTrainingRuntime"}: ClusterTrainingRuntime.trainer.kubeflow.org "no-such-runtime" not '
            "found: specified clusterTrainingRuntime must be created before the TrainJob is created",
            "Forbidden",
        ),
        "There is no ClusterTrainingRuntime 'no-such-runtime' in the cluster",
        False,
    ),
    "namespace_ending": (
        403,
        body(
            'trainjobs.trainer.kubeflow.org "a" is forbidden: unable to create new content in namespace ml because it '
            "is being terminated",
            "Forbidden",
        ),
        "Namespace 'ml' is being deleted",
        False,
    ),
    "namespace_missing": (
        404,
        body('namespaces "ml" not found', "NotFound", name="ml", kind="namespaces"),
        "There is no namespace 'ml'",
        False,
    ),
    "trainer_missing": (404, "404 page not found\n", "Kubeflow Trainer is not installed", False),
    "rejected": (
        422,
        body(
            "trainjobs.trainer.kubeflow.org \"a\" is forbidden: ValidatingAdmissionPolicy 'team' with binding 'all' "
            "denied request: no team",
            "Invalid",
            causes=[{"message": "…"}],
        ),
        "The admission check 'team' refuses TrainJob 'tune-1a2b3c4d': no team",
        False,
    ),
    "exists": (
        409,
        body('trainjobs.trainer.kubeflow.org "upd" already exists', "AlreadyExists", kind="trainjobs", name="upd"),
        "TrainJob 'tune-1a2b3c4d' exists already in namespace 'ml'",
        False,
    ),
    "being_deleted": (
        409,
        body('object is being deleted: trainjobs.trainer.kubeflow.org "upd" already exists', "AlreadyExists"),
        "is still being deleted",
        True,
    ),
    "too_large": (413, "Request entity too large: limit is 3145728", "larger than the API server takes", False),
    "unknown_field": (
        400,
        body(
            'TrainJob in version "v1alpha1" cannot be handled as a TrainJob: strict decoding error: unknown field '
            '"spec.activeDeadlineSeconds", unknown field "spec.runtimePatches"',
            "BadRequest",
        ),
        "does not know spec.activeDeadlineSeconds and spec.runtimePatches",
        False,
    ),
    "expired": (
        410,
        body("The provided continue parameter is too old to display a consistent list result.", "Expired"),
        "The list of trainjobs took so long that the API server has no longer what it began with",
        True,
    ),
    "server_busy": (429, body("too many requests", "TooManyRequests"), "too much to do", True),
    "server_error": (
        500,
        body(
            'Internal error occurred: failed calling webhook "defaulter.trainjob.trainer.kubeflow.org": failed to call '
            'webhook: Post "https://…": dial tcp 127.0.0.1:9443: connect: connection refused',
            "InternalError",
        ),
        "admission check 'defaulter.trainjob.trainer.kubeflow.org' does not answer",
        True,
    ),
}


@pytest.mark.parametrize("cause", RECORDED)
def test_a_refusal_names_its_cause_and_cure_and_whether_a_retry_helps(cause: str) -> None:
    code, text, words, retried = RECORDED[cause]
    error = refuse(code, text)
    assert (error.cause, error.status) == (cause, code)
    assert words in str(error)
    assert error.failure.cure
    assert isinstance(error, TrainingFailed)
    assert isinstance(error, AirflowFailException) is not retried


@pytest.mark.parametrize("said", ["not yet ready to handle request", "status unknown for quota: gpus, resources: pods"])
def test_a_check_that_has_not_read_what_it_needs_is_a_passing_cause(said: str) -> None:
    error = refuse(403, body(f'trainjobs.trainer.kubeflow.org "a" is forbidden: {said}', "Forbidden", kind="trainjobs"))
    assert error.passing
    assert not isinstance(error, AirflowFailException)


def test_a_starting_server_is_a_passing_cause() -> None:
    text = "the request has been made before all known HTTP paths have been installed, please try again"
    error = refuse(503, body(text, "ServiceUnavailable"))
    assert error.passing
    assert text in str(error)


def test_a_runtime_that_is_not_there_is_named_when_it_is_read() -> None:
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainingruntimes/tune"
    text = body(
        'trainingruntimes.trainer.kubeflow.org "tune" not found', "NotFound", name="tune", kind="trainingruntimes"
    )
    error = refuse(404, text, path, "GET", None)
    assert error.cause == "runtime_missing"
    assert "There is no TrainingRuntime 'tune'" in str(error)


@pytest.mark.parametrize("answer", ["<html>Please log in</html>", "[]", ""])
def test_a_server_that_is_no_kubernetes_is_said_to_be_none(answer: str) -> None:
    assert refuse(302, answer).cause == "no_kubernetes_api"


def test_an_invalid_field_is_named_with_its_reason() -> None:
    causes = [
        {"field": "metadata.labels", "message": f'Invalid value: "{SECRET}": a valid label must be short'},
        {"field": "<nil>", "message": "Invalid value: null: some validation rules were not checked because …"},
        {"field": "spec.runtimeRef", "message": "Required value"},
    ]
    error = refuse(422, body("TrainJob is invalid: [everything at once]", "Invalid", causes=causes))
    assert error.failure.message == (
        "TrainJob 'tune-1a2b3c4d' is not valid: metadata.labels: a valid label must be short; "
        "spec.runtimeRef: Required value"
    )


ECHOES = {
    "JSON": f'spec.trainer.env: Invalid value: [{{"name":"HF_TOKEN","value":"{SECRET}"}},{{"name":"PET_NNODES",'
    '"value":"a\\": b]"}]: must not have reserved envs, invalid envs configured: [PET_NNODES]',
    "Go": f'spec.trainer.env: Invalid value: []v1.EnvVar{{v1.EnvVar{{Name:"A: B", Value:"{SECRET}"}}}}: must not be',
    "Go, with back quotes": f"spec.x: Invalid value: `{SECRET}: ]`: must not be",
    "a pointer": f'spec.trainer: Invalid value: &v1alpha1.Trainer{{Env:"{SECRET}"}}: must not be',
    "cut short": f'spec.trainer.env: Invalid value: [{{"name":"HF_TOKEN","value":"{SECRET}',
    "without quotes": f"spec.x: Invalid value: {SECRET}, {SECRET}: must not be",
    "a list": f'[spec.a: Duplicate value: {{"value":"{SECRET}"}}, spec.b: Unsupported value: "{SECRET}": supported '
    'values: "a", spec.c: Invalid value: 5: too large]',
    "free words": f"policy no-tokens: the container has HF_TOKEN={SECRET}, which is not allowed",
    "free words in JSON": 'policy: {"value": "' + SECRET + '"} is not allowed',
}


@pytest.mark.parametrize("notation", ECHOES)
@pytest.mark.parametrize("code", [400, 403, 422, 500])
def test_no_value_that_was_sent_comes_back(notation: str, code: int) -> None:
    message = VALIDATOR + ECHOES[notation]
    causes = [{"field": "spec.trainer.env", "message": ECHOES[notation]}]
    for text in (body(message), body(message, causes=causes), json.dumps({"kind": "Status", "message": message})):
        error = refuse(code, text)
        assert SECRET not in str(error)
        assert SECRET not in repr(error.failure)
        assert error.__cause__ is None


def test_field_and_reason_are_left_of_what_an_admission_check_says() -> None:
    error = refuse(403, body(VALIDATOR + ECHOES["JSON"], "Forbidden"))
    assert error.failure.message == (
        "The admission check 'validator.trainjob.trainer.kubeflow.org' refuses TrainJob 'tune-1a2b3c4d': "
        "spec.trainer.env: must not have reserved envs, invalid envs configured: [PET_NNODES]"
    )


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("spec.trainer: Invalid value: field is immutable", "spec.trainer: field is immutable"),
        ('spec.trainer.env[1]: Duplicate value: {"name":"A"}', "spec.trainer.env[1]: Duplicate value"),
        (
            "[spec.a: Required value, <nil>: Invalid value: null: not checked]",
            "[spec.a: Required value, <nil>: not checked]",
        ),
        (
            'spec.a: Invalid value: "x-node-0": name is too long, 63 at most',
            "spec.a: name is too long, 63 at most",
        ),
        ("spec.runtimePatches: Forbidden: only when suspended", "spec.runtimePatches: Forbidden: only when suspended"),
    ],
)
def test_the_reason_survives_without_the_value(said: str, left: str) -> None:
    assert without_values(said) == left


def test_the_values_of_all_environment_variables_are_known_to_be_secret() -> None:
    container = {
        "env": [{"name": "A", "value": SECRET}, {"name": "B", "value": "true"}, {"name": "C", "valueFrom": {}}]
    }
    assert list(sent_values({"spec": {"trainer": container, "patches": [{"containers": [container]}]}})) == [SECRET] * 2


@pytest.mark.parametrize(
    ("said", "cause", "retried"),
    [
        ("Cannot connect to host 10.0.0.1:6443 ssl:default [Connect call failed]", "unreachable", True),
        ("", "unreachable", True),
        (
            "Cannot connect to host 10.0.0.1:6443 [SSLCertVerificationError: certificate verify failed]",
            "untrusted_certificate",
            False,
        ),
    ],
)
def test_no_answer_is_retried_and_a_false_certificate_is_not(said: str, cause: str, retried: bool) -> None:
    error = unreachable(asked("gpu", "GET", JOBS), "https://10.0.0.1:6443", OSError(said))
    assert error.cause == cause
    assert "https://10.0.0.1:6443" in str(error)
    assert isinstance(error, AirflowFailException) is not retried


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", JOBS, "list trainjobs in namespace 'ml', by connection 'gpu'"),
        ("GET", JOBS + "/a", "get trainjobs 'a' in namespace 'ml', by connection 'gpu'"),
        ("DELETE", JOBS + "/a", "delete trainjobs 'a' in namespace 'ml', by connection 'gpu'"),
        ("GET", "/api/v1/namespaces/ml/pods/p/log", "get pods/log 'p' in namespace 'ml', by connection 'gpu'"),
        (
            "GET",
            "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/r",
            "get clustertrainingruntimes 'r', by connection 'gpu'",
        ),
    ],
)
def test_a_request_is_told_in_kubernetes_words(method: str, path: str, words: str) -> None:
    assert str(asked("gpu", method, path)) == words
