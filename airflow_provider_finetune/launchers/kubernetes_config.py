"""``kubernetes_config`` as plain JSON, and its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_finetune.launchers.refusal import CannotRender

FORMS: dict[str, type] = {
    "volumes": list,
    "volume_mounts": list,
    "env": list,
    "env_from": list,
    "node_selector": dict,
    "tolerations": list,
    "affinity": dict,
    "service_account_name": str,
    "security_context": dict,
    "container_security_context": dict,
    "image_pull_secrets": list,
    "priority_class_name": str,
    "scheduler_name": str,
    "termination_grace_period_seconds": int,
}
"""Keys of ``kubernetes_config``, those of ``dsl.TaskConfig`` and further ones of a pod, with the form of each."""

POD_FIELDS = {
    "node_selector": "nodeSelector",
    "tolerations": "tolerations",
    "affinity": "affinity",
    "service_account_name": "serviceAccountName",
    "security_context": "securityContext",
    "image_pull_secrets": "imagePullSecrets",
    "priority_class_name": "priorityClassName",
    "scheduler_name": "schedulerName",
    "termination_grace_period_seconds": "terminationGracePeriodSeconds",
}
"""Field of a pod's specification for each key that has one of its own."""

_NEEDED = {"volumes": ("name",), "volume_mounts": ("name", "mountPath"), "env": ("name",)}
_WORDS = {list: "a list", dict: "a dict", str: "a text", int: "a whole number"}


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``kubernetes_config`` with its ``kubernetes.client`` models as the JSON that they stand for.

    :param config: its keys are known ones.
    :raises CannotRender: a value has not the form of its key.
    """
    plain = {key: _plain(key, value) for key, value in config.items() if value is not None}
    for key, value in plain.items():
        if not isinstance(value, FORMS[key]) or isinstance(value, bool):
            raise _broken(key, f"it must be {_WORDS[FORMS[key]]}")
        for entry in value if isinstance(value, list) else ():
            missing = [name for name in _NEEDED.get(key, ()) if not isinstance(entry, Mapping) or name not in entry]
            if missing:
                raise _broken(key, f"an entry has no {missing[0]!r}")
    return plain


def json_of(value: Any) -> Any:
    """Return a value of which nothing is known as JSON that is the same whenever the value is.

    :param value: JSON, models of kubernetes.client, or objects that are what they hold.
    """
    if isinstance(value, Mapping):
        return {str(name): json_of(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_of(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    names = getattr(type(value), "attribute_map", None)
    held = vars(value) if names is None else {name: getattr(value, name) for name in names}
    return {type(value).__name__: {name: json_of(inner) for name, inner in held.items() if inner is not None}}


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(key, inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(key, inner) for inner in value]
    # The models of kubernetes.client, old and new, have this in common; they are too heavy to import for a look.
    names = getattr(type(value), "attribute_map", None)
    if isinstance(names, Mapping):
        given = {json_name: getattr(value, name) for name, json_name in names.items()}
        return {name: _plain(key, inner) for name, inner in given.items() if inner is not None}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise _broken(key, f"a {type(value).__name__} is nothing that JSON has")


def _broken(key: str, rule: str) -> CannotRender:
    cure = "Use Kubernetes' JSON with its camelCase names, or models of kubernetes.client"
    return CannotRender(f"kubernetes_config[{key!r}]", rule, cure)
