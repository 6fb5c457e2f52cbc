"""The container that trains: its command, its environment, its resources and mounts, whatever object it stands in."""

from __future__ import annotations

import base64
import hashlib
import io
import lzma
import math
import zipfile
from collections.abc import Mapping
from typing import Any

from airflow_provider_finetune.archive import FILE_NAME, runner_bytes
from airflow_provider_finetune.launchers.local import DEFAULT_ENVIRONMENT
from airflow_provider_finetune.launchers.observed import DOMAIN, MANAGED_BY
from airflow_provider_finetune.launchers.places import OURS, RUNNER_DIRECTORY

TERMINATION_MESSAGE = "/dev/termination-log"

SHARED_MEMORY = "/dev/shm"

_RUNNER_PATH = f"{RUNNER_DIRECTORY}/{FILE_NAME}"
_RUNNER_VOLUME = f"{OURS}runner"
_SHARED_MEMORY_VOLUME = f"{OURS}shm"

_LONGEST_CHUNK = 50_000
"""Characters. A TrainJob of 2.2 takes 64 KiB an argument and Linux 128, and each ``$`` of a chunk is doubled."""

_UNPACK = """\
import base64, lzma, os, sys, tempfile
end = sys.argv.index("--")
path = os.path.join(tempfile.mkdtemp(), "finetune-runner.pyz")
with open(path, "wb") as archive:
    archive.write(lzma.decompress(base64.b85decode("".join(sys.argv[1:end]))))
os.execv(sys.executable, [sys.executable, "-u", path, *sys.argv[end + 1 :]])
"""

_CONTAINER_ENVIRONMENT = {
    # The user of a container often has no home that can be written.
    "XDG_CACHE_HOME": "/tmp/.cache",
    "HF_HOME": "/tmp/.cache/huggingface",
    "TRITON_CACHE_DIR": "/tmp/.triton",
}


def runner_config_map(namespace: str) -> dict[str, Any]:
    """Return the ConfigMap that holds the runner: immutable, and named by its content, so that there is one a version.

    :param namespace: of the workload.
    """
    archive = runner_bytes()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": _config_map_name(archive),
            "namespace": namespace,
            "labels": {MANAGED_BY: DOMAIN},
        },
        "immutable": True,
        "binaryData": {FILE_NAME: base64.b64encode(archive).decode()},
    }


def command(runner: str, spec: str, grace: int | None = None) -> tuple[list[str], list[str]]:
    """Return the container's command and arguments.

    :param runner: ``configmap`` and ``image`` start the file at its place, ``inline`` brings it in the arguments.
    :param spec: the training spec as JSON.
    :param grace: seconds from SIGTERM to SIGKILL, where they are known.
    """
    run = ["run", "--spec-json", spec, "--termination-message", TERMINATION_MESSAGE]
    run += [] if grace is None else ["--grace-seconds", str(grace)]
    if runner != "inline":
        return ["python3", "-u", _RUNNER_PATH], list(map(literal, run))
    return ["python3", "-u", "-c", _UNPACK], list(map(literal, [*_chunks(runner_bytes()), "--", *run]))


def environment(
    *,
    hub_cache: str,
    training_envs: Mapping[str, str],
    config_env: list[dict[str, Any]],
    secrets: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return the container's environment; later ones win: defaults, ``kubernetes_config``, ``training_envs``, secrets.

    :param hub_cache: directory of downloaded models, which tasks share.
    :param training_envs: the documented parameter. A value is what the program sees: ``$(NAME)`` is not replaced.
    :param config_env: ``env`` of ``kubernetes_config``, with Kubernetes' own rules.
    :param secrets: ``<secret name>/<key>`` by variable name.
    """
    defaults = {**DEFAULT_ENVIRONMENT, **_CONTAINER_ENVIRONMENT, "HF_HUB_CACHE": hub_cache}
    entries: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in defaults.items()]
    entries += config_env
    entries += [{"name": name, "value": literal(value)} for name, value in training_envs.items()]
    entries += [{"name": name, "valueFrom": {"secretKeyRef": _secret_key(of)}} for name, of in secrets.items()]
    return list({entry["name"]: entry for entry in entries}.values())


def resources(*, cpu: str, memory: str, gpus: int, gpu_resource: str) -> dict[str, Any]:
    """Return the container's resources: what it asks for is also its limit, so that nobody takes it away.

    :param cpu: quantity.
    :param memory: quantity.
    :param gpus: with 0 no GPU is asked for; what a runtime asks for by itself stays.
    :param gpu_resource: resource name of a GPU.
    """
    amounts = {"cpu": cpu, "memory": memory, **({gpu_resource: str(gpus)} if gpus else {})}
    return {"requests": amounts, "limits": dict(amounts)}


def own_volumes(runner: str, taken: set[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return volumes and mounts of every training: shared memory, and the runner where it comes as a ConfigMap.

    :param runner: see :func:`command`.
    :param taken: paths at which something is mounted already.
    """
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if runner == "configmap":
        volumes.append({"name": _RUNNER_VOLUME, "configMap": {"name": _config_map_name(runner_bytes())}})
        mounts.append({"name": _RUNNER_VOLUME, "mountPath": RUNNER_DIRECTORY, "readOnly": True})
    if SHARED_MEMORY not in taken:
        # NCCL and data loaders share memory there, and a container's own has 64 MB. Counts as the container's memory.
        volumes.append({"name": _SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": _SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY})
    return volumes, mounts


def literal(text: str) -> str:
    """Return ``text`` so that Kubernetes, which replaces ``$(NAME)`` and ``$$`` in arguments and values, gives it back.

    :param text: what the program is to see.
    """
    return text.replace("$", "$$")


def _chunks(archive: bytes) -> list[str]:
    text = base64.b85encode(lzma.compress(_stored(archive), preset=9)).decode()
    # Of about the same length, so that none can be the "--" that ends them.
    length = math.ceil(len(text) / math.ceil(len(text) / _LONGEST_CHUNK))
    return [text[start : start + length] for start in range(0, len(text), length)]


def _stored(archive: bytes) -> bytes:
    """Return the archive with its files as they are: compressed together they are a third smaller than one by one."""
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as packed, zipfile.ZipFile(stored, "w") as plain:
        for entry in packed.infolist():
            plain.writestr(zipfile.ZipInfo(entry.filename), packed.read(entry))
    return stored.getvalue()


def _config_map_name(archive: bytes) -> str:
    return f"{OURS}runner-{hashlib.sha256(archive).hexdigest()[:12]}"


def _secret_key(of: str) -> dict[str, str]:
    name, _, key = of.partition("/")
    return {"name": name, "key": key}
