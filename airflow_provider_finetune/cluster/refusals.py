"""What the API server refuses, and what it does not answer, as errors that say what to do. Pure.

Nothing that was sent is shown again: an admission check quotes a TrainJob's environment, values included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_finetune.cluster.asked import Asked
from airflow_provider_finetune.cluster.echoes import scrubbed, without_values
from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.exceptions import TrainingFailed, TrainingRejected

RBAC = "docs/kubernetes/rbac.yaml"
RBAC_OF_PODS = "rbac-pod.yaml"
TRAINER = "Kubeflow Trainer 2.1 or later"
_LONGEST_MESSAGE = 1000


class Refused(TrainingFailed):
    """The cluster did not do what it was asked to.

    :param failure: why, and what to do; ``cause`` is what code goes by.
    :param where: what was asked of whom.
    :param status: HTTP status, 0 where there was no answer.
    :param fields: names of the fields that the server does not know, for the cause ``unknown_field``.
    :param retry_after: seconds that the server asks to wait.
    """

    def __init__(
        self,
        failure: Failure,
        where: str,
        *,
        status: int = 0,
        fields: Iterable[str] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(failure, where)
        self.status = status
        self.fields = tuple(fields)
        self.retry_after = retry_after

    @property
    def cause(self) -> str:
        """Short stable name of the reason."""
        return self.failure.cause

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.cause in ("unreachable", "server_busy", "server_error")


class RefusedForGood(Refused, TrainingRejected):
    """As :class:`Refused`, for a cause that no retry mends."""


@dataclass(frozen=True)
class _Answer:
    """An API answer that is no success. ``text``: the message as it came; ``message``: what may be shown of it."""

    status: int
    reason: str
    text: str
    message: str
    details: Mapping[str, Any]


def refusal(asked: Asked, status: int, body: str, retry_after: float | None = None) -> Refused:
    """Return the error for an answer that is no success.

    :param asked: the request.
    :param status: its HTTP status.
    :param body: its body.
    :param retry_after: seconds in its ``Retry-After`` header.
    """
    answer = _read(asked, status, body)
    mapped = {
        400: _bad_request,
        401: _unauthorized,
        403: _forbidden,
        404: _not_found,
        409: _conflict,
        410: _expired,
        413: _too_large,
        422: _invalid,
        429: _busy,
    }.get(status, _server_error if status >= 500 else _unexpected)
    failure = mapped(asked, answer)
    fields = re.findall(r'unknown field "([^"]+)"', answer.text) if failure.cause == "unknown_field" else ()
    return refused(asked, failure, status=status, fields=fields, retry_after=retry_after)


def refused(asked: Asked | str, failure: Failure, **more: Any) -> Refused:
    """Return the error for a failure: the one that is retried, or the one that is not.

    :param asked: the request, or what was being done.
    :param failure: why, and what to do.
    :param more: further arguments of :class:`Refused`.
    """
    return (RefusedForGood if failure.failure_class == "user" else Refused)(failure, str(asked), **more)


def _read(asked: Asked, status: int, body: str) -> _Answer:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("kind") != "Status":
        document = {"message": body.strip() if status in (400, 404) else ""}
    text = str(document.get("message") or "")
    message = scrubbed(without_values(text), asked.secrets)
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "…"
    return _Answer(status, str(document.get("reason") or ""), text, message, document.get("details") or {})


def _bad_request(asked: Asked, answer: _Answer) -> Failure:
    fields = re.findall(r'unknown field "([^"]+)"', answer.text)
    if fields:
        return failure_of(
            "unknown_field",
            f"The cluster's Kubeflow Trainer does not know {' and '.join(fields)}",
            "Leave out what asks for it, or upgrade Kubeflow Trainer; [finetune] trainer_api, where it is set, must "
            "name the form that this Trainer takes",
        )
    return _rejected(asked, answer)


def _unauthorized(asked: Asked, answer: _Answer) -> Failure:
    return failure_of(
        "unauthorized",
        f"The API server rejects the credentials of connection {asked.conn_id!r}",
        "Renew the token or the kubeconfig in that connection; in a pod, its service account must still exist",
    )


_RIGHT = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_ADMISSION = re.compile(
    r"(?:\S+ \"[^\"]*\" is forbidden: )?"
    r"(?:admission webhook \"(?P<webhook>[^\"]+)\"|ValidatingAdmissionPolicy '(?P<policy>[^']+)' with binding '[^']+')"
    r" denied (?:the )?request: "
)
_NO_RUNTIME = re.compile(
    r'"(?P<name>[^"]+)" not found: specified (?P<kind>\w+) must be created', re.DOTALL | re.IGNORECASE
)


_NOT_YET = ("not yet ready to handle request", "status unknown for quota")
"""What its admission checks say before they have read namespaces, quotas and the like (Kubernetes' source)."""


def _forbidden(asked: Asked, answer: _Answer) -> Failure:
    right, missing = _RIGHT.search(answer.text), _NO_RUNTIME.search(answer.text)
    if right:
        where = f"in namespace {right['namespace']!r}" if right["namespace"] else "in the whole cluster"
        return failure_of(
            "forbidden",
            f"{right['user']!r}, the account of connection {asked.conn_id!r}, may not {right['verb']} "
            f"{right['resource']!r} of API group {right['group']!r} {where}",
            f"Grant it that right, or name another namespace or connection; {_least_rights(right['group'])}",
        )
    if any(words in answer.text for words in _NOT_YET):
        message = f"The API server has just started, and does not take {asked.object} yet"
        return failure_of("server_busy", message, "Run the task again in a moment")
    if "looking up service account" in answer.text:
        return failure_of(
            "service_account_missing",
            f"The service account of {asked.object} is not there: {answer.message}",
            "Make it in the job's namespace, or correct service_account_name in kubernetes_config",
        )
    if "exceeded quota: " in answer.text:
        return failure_of(
            "quota_exceeded",
            f"The quota of namespace {asked.namespace!r} is used up: {answer.message.split('exceeded quota: ', 1)[1]}",
            "Wait until others have finished, delete what is not needed, or raise the ResourceQuota",
        )
    if missing:
        return _no_runtime(missing["kind"][:1].upper() + missing["kind"][1:], missing["name"])
    if "being terminated" in answer.text:
        return failure_of(
            "namespace_ending",
            f"Namespace {asked.namespace!r} is being deleted",
            "Name another one by namespace=, or make it again",
        )
    return _rejected(asked, answer)


def _least_rights(group: str) -> str:
    by_launcher = "" if group else f", {RBAC_OF_PODS} for launcher='pod'"
    return f"{RBAC} has the least that is needed{by_launcher}"


def _no_runtime(kind: str, name: str) -> Failure:
    return failure_of(
        "runtime_missing",
        f"There is no {kind} {name!r} in the cluster",
        f"Apply docs/kubernetes/runtime.yaml, or name another by runtime= and runtime_kind=; 'kubectl get "
        f"{kind.lower()}s' lists them",
    )


def _rejected(asked: Asked, answer: _Answer) -> Failure:
    by = _ADMISSION.search(answer.text)
    who = f"The admission check {by['webhook'] or by['policy']!r}" if by else "The API server"
    why = _ADMISSION.sub("", answer.message) or answer.reason or f"HTTP {answer.status}"
    cure = "Change the argument that this comes from" + (", or ask those who run the cluster" if by else "")
    return failure_of("rejected", f"{who} refuses {asked.object}: {why}", cure)


def _not_found(asked: Asked, answer: _Answer) -> Failure:
    kind, name = answer.details.get("kind"), str(answer.details.get("name") or asked.name)
    if kind == "namespaces":
        return failure_of(
            "namespace_missing",
            f"There is no namespace {name!r} in the cluster of connection {asked.conn_id!r}",
            "Make it, or name another by namespace= or in the connection",
        )
    if "page not found" in answer.text:
        return _trainer_missing(asked) if asked.group == "trainer.kubeflow.org" else _unexpected(asked, answer)
    if asked.resource in ("clustertrainingruntimes", "trainingruntimes"):
        return _no_runtime("ClusterTrainingRuntime" if asked.resource.startswith("c") else "TrainingRuntime", name)
    return failure_of("not_found", f"There is no {asked.object}", "It was deleted; run the task again")


def _trainer_missing(asked: Asked) -> Failure:
    return failure_of(
        "trainer_missing",
        f"Kubeflow Trainer is not installed in the cluster of connection {asked.conn_id!r}, or is older than version 2",
        f"Install {TRAINER}: https://www.kubeflow.org/docs/components/trainer/operator-guides/installation/",
    )


def trainer_too_old(conn_id: str) -> Failure:
    """Return the failure of a cluster whose Trainer takes neither form of a TrainJob.

    :param conn_id: its connection.
    """
    return failure_of(
        "trainer_too_old",
        f"The Kubeflow Trainer in the cluster of connection {conn_id!r} is too old: its TrainJob has neither "
        "runtimePatches (2.2 and later) nor podTemplateOverrides (2.1)",
        f"Upgrade it to {TRAINER}",
    )


def wrong_setting(name: str, value: str, rule: str, cure: str) -> Refused:
    """Return the error for a value in Airflow's configuration.

    :param name: option of the section ``[finetune]``.
    :param value: what it is set to.
    :param rule: what it breaks.
    :param cure: what to do about it.
    """
    failure = failure_of("unknown_setting", f"[finetune] {name}={value!r} {rule}", cure)
    return refused(f"airflow.cfg or AIRFLOW__FINETUNE__{name.upper()}", failure)


def _conflict(asked: Asked, answer: _Answer) -> Failure:
    if "object is being deleted" in answer.text:
        return failure_of("being_deleted", f"{asked.object} is still being deleted", "Run the task again in a moment")
    if answer.reason == "AlreadyExists":
        return failure_of("exists", f"{asked.object} exists already in namespace {asked.namespace!r}", "Delete it")
    return failure_of("conflict", f"{asked.object} is not what it was: {answer.message}", "Run the task again")


def _expired(asked: Asked, answer: _Answer) -> Failure:
    message = f"The list of {asked.resource} took so long that the API server has no longer what it began with"
    return failure_of("expired", message, "Run the task again; the list is read anew")


def foreign(asked: Asked, what: str) -> Failure:
    """Return the failure of a name that somebody else has taken.

    :param asked: the request.
    :param what: how it shows that the object is not ours.
    """
    return failure_of(
        "exists",
        f"{asked.object} exists already in namespace {asked.namespace!r} and is not of this task: {what}",
        f"Delete it if nobody needs it: kubectl -n {asked.namespace} delete {asked.resource} {asked.name}",
    )


def _too_large(asked: Asked, answer: _Answer) -> Failure:
    return failure_of(
        "too_large",
        f"{asked.object} is larger than the API server takes",
        "Shorten training_envs, extra_args or kubernetes_config, and use runner='configmap' or 'image'",
    )


def _invalid(asked: Asked, answer: _Answer) -> Failure:
    if _ADMISSION.search(answer.text):
        return _rejected(asked, answer)
    causes = answer.details.get("causes") or ()
    if any(cause.get("field") == "metadata.uid" for cause in causes):
        # The uid of a patch is its precondition; a custom resource of another one says that it cannot be changed.
        return _conflict(asked, answer)
    lines: dict[str, None] = {}
    for cause in causes:
        text = scrubbed(without_values(str(cause.get("message") or "")), asked.secrets)
        if "some validation rules were not checked" not in text:
            field = cause.get("field")
            lines[f"{field}: {text}" if field and field != "<nil>" else text] = None
    why = "; ".join(lines)[:_LONGEST_MESSAGE] or answer.message
    return failure_of(
        "invalid", f"{asked.object} is not valid: {why}", "Change the argument that this field comes from"
    )


def _busy(asked: Asked, answer: _Answer) -> Failure:
    return failure_of("server_busy", f"The API server has too much to do for: {asked}", "Run the task again later")


def _server_error(asked: Asked, answer: _Answer) -> Failure:
    hook = re.search(r'failed calling webhook "([^"]+)"', answer.text)
    if hook:
        return failure_of(
            "server_error",
            f"The admission check {hook[1]!r} does not answer, and nothing can be made without it",
            "See whether the controller that serves it runs, e.g. 'kubectl -n kubeflow-system get pods'",
        )
    said = answer.message or answer.reason or "no reason given"
    return failure_of("server_error", f"The API server failed with HTTP {answer.status}: {said}", "Run the task again")


def _unexpected(asked: Asked, answer: _Answer) -> Failure:
    return failure_of(
        "no_kubernetes_api",
        f"What answers at the server's address is not the Kubernetes API (HTTP {answer.status})",
        f"Check the server in the kubeconfig of connection {asked.conn_id!r}, and any proxy before it",
    )


def cut_off(asked: Asked) -> Failure:
    """Return the failure of an answer that a connection has lost a part of; it is not known what came of the request.

    :param asked: the request.
    """
    message = f"The answer of the API server of connection {asked.conn_id!r} broke off"
    return failure_of("unreachable", message, "Check the network and any proxy before it; run the task again")


def starting(failure: Failure) -> Failure:
    """Return the failure of a server that refuses, and does not say that it has started.

    :param failure: what it refuses.
    """
    message = f"{failure.message}; or the API server is starting, and does not know yet what it may allow"
    return failure_of("server_error", message, f"Run the task again. Where it stays so: {failure.cure}")


def unreachable(asked: Asked, server: str, error: BaseException) -> Refused:
    """Return the error for a request without an answer.

    :param asked: the request.
    :param server: address of the API server.
    :param error: what the client says.
    """
    said = str(error) or type(error).__name__
    if "certificate" in said.lower():
        failure = failure_of(
            "untrusted_certificate",
            f"The certificate of the API server {server} is not trusted: {said}",
            f"Put the cluster's CA into the kubeconfig of connection {asked.conn_id!r} (certificate-authority-data)",
        )
    else:
        failure = failure_of(
            "unreachable",
            f"The API server {server} of connection {asked.conn_id!r} does not answer: {said}",
            "Check that it runs and that this machine reaches it; a retry goes on where this try was",
        )
    return refused(asked, failure)
