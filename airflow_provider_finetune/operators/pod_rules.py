"""The rules of ``launcher="pod"``: one worker, an image, what ``pod_operator_arguments`` may hold. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.launchers.pod import ONE_WORKER

CONFIGURED_IMAGE = "configured_image"
"""Name of the setting ``[finetune] image`` among the arguments."""

TEMPLATES = ("pod_template_file", "pod_template_dict", "full_pod_spec")
"""Arguments of KubernetesPodOperator that may bring an image with them."""

_OURS = {
    "kubernetes_conn_id": "kubernetes_conn_id",
    "in_cluster": "kubernetes_conn_id",
    "config_file": "kubernetes_conn_id",
    "cluster_context": "kubernetes_conn_id",
    "namespace": "namespace",
    "image": "image",
    "labels": "training_metadata_labels",
    "annotations": "training_metadata_annotations",
    "env_vars": "training_envs, secrets or training_kubernetes_config['env']",
    "volumes": "training_kubernetes_config['volumes']",
    "volume_mounts": "training_kubernetes_config['volume_mounts']",
    "container_resources": "training_resource_*",
    "termination_grace_period": "training_kubernetes_config['termination_grace_period_seconds']",
    "active_deadline_seconds": "training_timeout",
    "startup_timeout_seconds": "startup_timeout",
    "schedule_timeout_seconds": "startup_timeout or queue_timeout",
    "logging_interval": "progress_interval",
    "on_finish_action": "on_finish",
    "is_delete_operator_pod": "on_finish",
    "deferrable": "deferrable",
    **dict.fromkeys(
        (
            "name",
            "random_name_suffix",
            "cmds",
            "arguments",
            "base_container_name",
            "do_xcom_push",
            "xcom_sidecar_container_security_context",
            "termination_message_policy",
            "startup_check_interval_seconds",
            "base_container_status_polling_interval",
            "poll_interval",
            "get_logs",
            "container_logs",
            "init_container_logs",
            "container_name_log_prefix_enabled",
            "log_formatter",
            "log_events_on_failure",
            "log_events_on_startup",
            "log_pod_spec_on_failure",
            "on_kill_action",
            "reattach_on_restart",
            "durable",
            "skip_on_exit_code",
            "callbacks",
            "progress_callback",
            "trigger_kwargs",
        )
    ),
}
"""Arguments of KubernetesPodOperator that are this operator's to set, or that would have no effect as it waits itself,
with the argument that takes their place."""


def pod_problems(values: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[Problem]:
    """Return what one pod cannot be.

    :param values: the known values of the record in their declared types.
    :param arguments: the other arguments by name; an unknown one is missing.
    :yields: the problems.
    """
    workers = values.get("resource_num_workers", 1)
    if workers != 1:
        yield Problem("training_resource_num_workers", workers, *ONE_WORKER)
    further = arguments.get("pod_operator_arguments")
    if isinstance(further, Mapping):
        yield from refused_arguments(further, _OURS)
    images = [arguments[name] not in (None, "", "None") for name in ("image", CONFIGURED_IMAGE) if name in arguments]
    templates = any(further.get(name) for name in TEMPLATES) if isinstance(further, Mapping) else further is not None
    if len(images) == 2 and not any(images) and not templates:
        cure = "Name an image with training-hub, here, under [finetune] image or in a pod template"
        yield Problem("image", None, "launcher='pod' has no runtime that would name one", cure)


def refused_arguments(given: Iterable[str], taken: Iterable[str]) -> Iterator[Problem]:
    """Return what is wrong with names among ``pod_operator_arguments``.

    :param given: the names.
    :param taken: names that are set here, or have no effect.
    :yields: the problems.
    """
    for name in sorted(set(map(str, given)) & set(taken)):
        instead = _OURS.get(name, f"it, or training_kubernetes_config[{_IN_CONFIG.get(name, name)!r}], and not both")
        rule = f"KubernetesPodOperator's {name!r} is set by this operator, or has no effect in it"
        yield Problem("pod_operator_arguments", {name: "***"}, rule, f"Use {instead}" if instead else "Leave it out")


_IN_CONFIG = {"schedulername": "scheduler_name"}
"""Keys of ``kubernetes_config`` that KubernetesPodOperator calls otherwise."""
