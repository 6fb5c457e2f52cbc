"""The rules of the launchers that run on a cluster: Kubernetes names, labels, secrets and ``kubernetes_config``.

Pure functions on what is known: all of it in ``execute``, and all but templates while a DAG file is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.contract.rules import broken_variable_names, no_credential_literals
from airflow_provider_finetune.launchers import kubernetes_config
from airflow_provider_finetune.launchers.container import SHARED_MEMORY
from airflow_provider_finetune.launchers.job_request import QUEUE
from airflow_provider_finetune.launchers.observed import DOMAIN, MANAGED_BY
from airflow_provider_finetune.launchers.places import OURS, RUNNER_DIRECTORY
from airflow_provider_finetune.launchers.refusal import CannotRender
from airflow_provider_finetune.launchers.trainjob import NEVER_CARRIED
from airflow_provider_finetune.operators.cluster_places import unreachable_places

_SUBDOMAIN = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_OBJECT_NAME = re.compile(_SUBDOMAIN)
_LABEL_KEY = re.compile(f"({_SUBDOMAIN}/)?{_NAME}")
_LABEL_VALUE = re.compile(f"({_NAME})?")
_RESOURCE = re.compile(f"{_SUBDOMAIN}/{_NAME}")
_NOTHING: tuple[Any, ...] = ("", [], {})  # 0 is a grace period


def cluster_problems(
    known: Mapping[str, Any], values: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[Problem]:
    """Return what is wrong on a cluster.

    :param known: documented inputs by name; an unknown one is missing.
    :param values: the known values of the record in their declared types.
    :param arguments: the other arguments by name; an unknown one is missing.
    """
    problems = [*_name_problems(arguments), *_metadata_problems(values)]
    given = known.get("kubernetes_config", ...)
    # What mounts there are is not known, or not readable, which is said elsewhere.
    if given is not None and (not isinstance(given, Mapping) or not given.keys() <= kubernetes_config.FORMS.keys()):
        return problems
    try:
        config = plain_config(given, arguments["launcher"])
    except CannotRender as error:
        return [*problems, Problem(error.parameter, "***", error.rule, error.cure)]
    return [*problems, *unreachable_places(known, values, arguments, config)]


def plain_config(config: Mapping[str, Any] | None, launcher: str) -> dict[str, Any]:
    """Return ``kubernetes_config`` as plain JSON, without keys that ask for nothing.

    :param config: as it was given, with known keys.
    :param launcher: ``trainjob`` or ``pod``.
    :raises CannotRender: something in it cannot be had.
    """
    config = config or {}
    never = [key for key in NEVER_CARRIED if launcher == "trainjob" and config.get(key)]
    if never:
        cure = "Set it in the pod template of the runtime that runtime= names"
        raise CannotRender(f"kubernetes_config[{never[0]!r}]", "no TrainJob can carry it", cure)
    plain = {key: value for key, value in kubernetes_config.as_json(config).items() if value not in _NOTHING}
    variables = plain.get("env", [])
    broken = (
        broken_variable_names(entry["name"] for entry in variables)
        or no_credential_literals(entry["name"] for entry in variables if entry.get("value"))
        or _what_is_ours(plain)
    )
    if broken:
        raise CannotRender("kubernetes_config", *broken)
    return plain


def _what_is_ours(config: Mapping[str, Any]) -> tuple[str, str] | None:
    for volume in config.get("volumes", []):
        if volume["name"].startswith(OURS):
            return f"volume {volume['name']!r}: names with {OURS} are the provider's own", "Give it another name"
    paths = [mount["mountPath"].rstrip("/") for mount in config.get("volume_mounts", [])]
    for path in paths:
        if not path.startswith("/"):
            return f"mountPath {path!r} is no absolute path", "Begin it with a slash"
        if f"{path}/".startswith((f"{RUNNER_DIRECTORY}/", f"{SHARED_MEMORY}/")) and path != SHARED_MEMORY:
            return f"mountPath {path!r} lies where the provider mounts something itself", "Mount it elsewhere"
        if paths.count(path) > 1:
            return f"two volumes are mounted at {path}", "Mount one of them elsewhere"
    return None


def _name_problems(arguments: Mapping[str, Any]) -> Iterator[Problem]:
    for name in ("namespace", "runtime", "queue_name"):
        value = arguments.get(name)
        if value not in (None, "", "None") and not _OBJECT_NAME.fullmatch(str(value)):
            rule = "it is no name that a Kubernetes object can have"
            yield Problem(name, value, rule, "Use lower-case letters, digits and '-'")
    resource = arguments.get("gpu_resource", "nvidia.com/gpu")
    if not _RESOURCE.fullmatch(str(resource)):
        rule = "it is no name of a resource that nodes can have"
        yield Problem("gpu_resource", resource, rule, "E.g. 'nvidia.com/gpu' or 'amd.com/gpu'")
    secrets = arguments.get("secrets")
    broken = broken_variable_names(map(str, secrets)) if isinstance(secrets, Mapping) else None
    if broken:
        yield Problem("secrets", dict.fromkeys(map(str, secrets), "***"), *broken)  # type: ignore[arg-type]


def _metadata_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    labels, annotations = values.get("metadata_labels", {}), values.get("metadata_annotations", {})
    for name, given in (("training_metadata_labels", labels), ("training_metadata_annotations", annotations)):
        for key in given:
            if not _LABEL_KEY.fullmatch(key):
                yield Problem(name, key, "it is no key that Kubernetes takes", "Use e.g. 'team' or 'example.org/team'")
            elif key == QUEUE:
                yield Problem(name, key, "it would queue the pods as well as the job", "Use queue_name")
            elif key == MANAGED_BY or key.startswith(f"{DOMAIN}/"):
                yield Problem(name, key, "the provider finds its own objects by it", "Leave it out")
    for key, value in labels.items():
        if not _LABEL_VALUE.fullmatch(value):
            rule = f"{value!r} is no value of a label: at most 63 letters, digits, '-', '_' and '.'"
            yield Problem("training_metadata_labels", key, rule, "Use training_metadata_annotations for it")
