"""The pod that trains, as far as it is the same in every object that it may stand in."""

from __future__ import annotations

from typing import Any

from airflow_provider_finetune.launchers import container
from airflow_provider_finetune.launchers.job_request import JobRequest
from airflow_provider_finetune.launchers.kubernetes_config import POD_FIELDS

GRACE_PERIOD = POD_FIELDS["termination_grace_period_seconds"]

GRACE_SECONDS = 60
"""From SIGTERM to SIGKILL. Kubernetes' own 30 s are scarce where a process with a hundred gigabytes has to go."""

SAVING_SECONDS = 300
"""The same where a checkpoint is saved first, which takes minutes with billions of weights: as long as training-hub's
own launcher waits for it. A pod that is done ends at once."""


def grace(request: JobRequest) -> int:
    """Return the seconds from SIGTERM to SIGKILL.

    :param request: what was asked for.
    """
    asked_for: int | None = request.kubernetes_config.get("termination_grace_period_seconds")
    usual = GRACE_SECONDS if request.spec.resume == "never" else SAVING_SECONDS
    return usual if asked_for is None else asked_for


def program(request: JobRequest, grace_seconds: int | None) -> dict[str, Any]:
    """Return what the container runs and gets: ``command``, ``args``, ``env`` and ``resources``.

    :param request: what was asked for.
    :param grace_seconds: the pod's, where it is known.
    """
    command, arguments = container.command(request.runner, request.spec.to_json(), grace_seconds)
    return {
        "command": command,
        "args": arguments,
        "env": container.environment(
            hub_cache=request.hub_cache,
            config_env=request.kubernetes_config.get("env", []),
            training_envs=request.envs,
            secrets=request.secrets,
        ),
        "resources": container.resources(
            cpu=request.cpu,
            memory=request.memory,
            # To read an outcome takes none.
            gpus=0 if request.spec.recover else request.gpus,
            gpu_resource=request.gpu_resource,
        ),
    }


def pod_spec(request: JobRequest, name: str) -> dict[str, Any]:
    """Return the pod's specification, in whose only container the program is still missing.

    :param request: what was asked for.
    :param name: of the container.
    """
    config = request.kubernetes_config
    mounts = [*config.get("volume_mounts", []), *request.claims.get("volume_mounts", [])]
    volumes, own_mounts = container.own_volumes(request.runner, {mount["mountPath"].rstrip("/") for mount in mounts})
    training: dict[str, Any] = {"name": name, "volumeMounts": [*mounts, *own_mounts]}
    if config.get("container_security_context"):
        training["securityContext"] = config["container_security_context"]
    return {
        **{name: config[key] for key, name in POD_FIELDS.items() if key in config},
        "volumes": [*config.get("volumes", []), *request.claims.get("volumes", []), *volumes],
        "containers": [training],
    }
